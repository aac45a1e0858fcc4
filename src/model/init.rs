//! The first weights of a model trained from scratch, as GPT-2's.
//!
//! Matrices and embeddings are normal with deviation 0.02; the two projections of each block that write into the
//! residual stream are divided by `sqrt(2 layers)`, so that its variance does not grow with depth; biases are 0, gains
//! are 1 (or 0 where they are counted from 1). Each parameter has a random stream of its own, named after it: its numbers
//! depend on the seed and its name only, not on the other parameters, nor on the number of threads.

use super::arch::{Arch, NormKind};
use super::layout::{Layout, Param};
use crate::ops::random;

/// Standard deviation of matrices and embeddings.
const DEVIATION: f32 = 0.02;

/// Fills the flat buffer of parameters.
///
/// # Panics
/// If `params` has another length than `layout`.
pub fn scratch(arch: &Arch, layout: &Layout, seed: u64, params: &mut [f32]) {
    assert_eq!(params.len(), layout.len(), "the buffer must hold every parameter");
    let key = random::derive_named(seed, "init");
    for param in layout.params() {
        let window = &mut params[param.range.clone()];
        match start_of(param, arch) {
            Start::Constant(value) => window.fill(value),
            Start::Normal(deviation) => random::fill_normal(random::derive_named(key, &param.name), deviation, window),
        }
    }
}

enum Start {
    Constant(f32),
    Normal(f32),
}

fn start_of(param: &Param, arch: &Arch) -> Start {
    if param.name.ends_with(".gain") {
        // Gemma's gains are counted from 1.
        Start::Constant(if arch.norm == NormKind::RmsOnePlus && param.is_used() { 0.0 } else { 1.0 })
    } else if !param.is_matrix() {
        Start::Constant(0.0)
    } else if param.name.ends_with(".attention.out.weight") || param.name.ends_with(".mlp.down.weight") {
        Start::Normal((f64::from(DEVIATION) / (2.0 * arch.layers as f64).sqrt()) as f32)
    } else {
        Start::Normal(DEVIATION)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn initialised(arch: &Arch, seed: u64, num_threads: usize) -> Vec<f32> {
        let layout = Layout::of(arch);
        let mut params = vec![f32::NAN; layout.len()];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        pool.install(|| scratch(arch, &layout, seed, &mut params));
        params
    }

    /// Bounds are five standard errors of the respective moment.
    #[test]
    fn every_parameter_has_gpt2s_moments() {
        let arch = Arch { tied_head: false, ..Arch::gpt2(4_000, 512, 192, 2, 3) };
        let params = initialised(&arch, 1, 2);
        for param in Layout::of(&arch).params() {
            let values: Vec<f64> = params[param.range.clone()].iter().map(|&value| f64::from(value)).collect();
            let expected = match param.name.rsplit_once('.').unwrap() {
                (_, "gain") => {
                    assert!(values.iter().all(|&value| value == 1.0), "{}", param.name);
                    continue;
                }
                (_, "bias") => {
                    assert!(values.iter().all(|&value| value == 0.0), "{}", param.name);
                    continue;
                }
                (before, _) if before.ends_with("attention.out") || before.ends_with("mlp.down") => 0.01,
                _ => 0.02,
            };
            let num = values.len() as f64;
            let moment = |power| values.iter().map(|value| (value / expected).powi(power)).sum::<f64>() / num;
            for (power, normal, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
                let bound = 5.0 * f64::sqrt(variance / num);
                assert!((moment(power) - normal).abs() < bound, "{} {power}: {}", param.name, moment(power));
            }
            // Neighbours, and the two numbers that come from one radius, are uncorrelated.
            for lag in [1, 64, 128] {
                let correlation =
                    values.windows(lag + 1).map(|w| w[0] * w[lag]).sum::<f64>() / (num * expected.powi(2));
                assert!(correlation.abs() < 5.0 / num.sqrt(), "{} lag {lag}: {correlation}", param.name);
            }
        }
    }

    #[test]
    fn bits_depend_on_the_seed_but_not_on_threads_or_depth() {
        let arch = Arch::gpt2(1_000, 128, 96, 2, 3);
        let one = initialised(&arch, 1, 1);
        assert_eq!(one, initialised(&arch, 1, 3));
        let embedding = Layout::of(&arch).get("embed.token").unwrap().range.clone();
        let deeper = initialised(&Arch { layers: 3, ..arch.clone() }, 1, 2);
        assert_eq!(one[embedding.clone()], deeper[embedding.clone()]);
        let other = initialised(&arch, 2, 2);
        assert_eq!(one[embedding.clone()].iter().zip(&other[embedding]).filter(|(a, b)| a == b).count(), 0);
    }
}
