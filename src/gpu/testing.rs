//! What the tests of kernels share: numbers in both formats, and two GPUs that must agree.
//!
//! The two are emulated ones that run threads in opposite orders. With the environment variable `ASSAY_TEST_GPU=N` they
//! are twice this machine's GPU N, so that the same tests hold a card to the same definitions, and their agreement says
//! that two runs on it give the same bits. An error on the card that one test leaves behind is not to be another's: run
//! them with `--test-threads=1` there.

#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;

use bytemuck::Pod;

use super::{Dtype, Element, Gpu, View, cuda, emulator};
use crate::ops::testing::values;

/// Rounding of what is computed in f32 as a sum of up to some thousand terms.
pub(crate) const F32_TOLERANCE: f64 = 2e-6;

/// Rounding of a result in that format: bfloat16 has eight bits, and a number may be half a unit away.
pub(crate) fn tolerance<T: Element>() -> f64 {
    match T::DTYPE {
        Dtype::F32 => F32_TOLERANCE,
        Dtype::Bf16 => 1.0 / 256.0,
    }
}

/// Numbers that the format holds exactly, and the same in f64.
pub(crate) fn rounded<T: Element>(seed: u64, len: usize) -> (Vec<T>, Vec<f64>) {
    let numbers: Vec<T> = values(seed, len).into_iter().map(T::from_f32).collect();
    let wide = numbers.iter().map(|x| x.to_f32().into()).collect();
    (numbers, wide)
}

/// The card that the tests were told to use, opened once; `None` if they were told nothing.
pub(crate) fn card() -> Option<Gpu> {
    static CARD: OnceLock<Option<Gpu>> = OnceLock::new();
    let card = CARD.get_or_init(|| {
        let index = std::env::var("ASSAY_TEST_GPU").ok()?;
        let index = index.parse().unwrap_or_else(|_| panic!("ASSAY_TEST_GPU is {index}: give a GPU's number"));
        Some(cuda::open(index).unwrap_or_else(|error| panic!("ASSAY_TEST_GPU: {error:#}")))
    });
    card.clone()
}

/// Two GPUs that must give the same bits. `None` where there is neither a card to use nor a C++ compiler.
pub(crate) fn gpus() -> Option<[Gpu; 2]> {
    let Some(card) = card() else { return emulator::gpus() };
    // What an earlier test left behind, if it failed, was told there.
    let _ = card.synchronize();
    Some([card.clone(), card])
}

/// A window's elements, as f32, after everything queued; panics with what went wrong on the way.
pub(crate) fn check<T: Element + Pod>(gpu: &Gpu, view: View<T>) -> Vec<f32> {
    gpu.to_vec(view).unwrap().into_iter().map(T::to_f32).collect()
}

/// The results of `compute` on the first of [`gpus`], after those on the second were found to be the same bits.
pub(crate) fn on_both<const N: usize>(compute: impl Fn(&Gpu) -> [Vec<f32>; N]) -> Option<[Vec<f32>; N]> {
    let [gpu, other] = gpus()?;
    let results = compute(&gpu);
    let bits = |results: &[Vec<f32>; N]| -> Vec<Vec<u32>> {
        results.iter().map(|result| result.iter().map(|x| x.to_bits()).collect()).collect()
    };
    for (i, (one, other)) in bits(&results).into_iter().zip(bits(&compute(&other))).enumerate() {
        let first = one.iter().zip(&other).position(|(one, other)| one != other);
        assert!(first.is_none(), "result {i} differs in the second order, or run, first at element {first:?}");
    }
    Some(results)
}
