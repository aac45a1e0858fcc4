//! AdamW over flat buffers on the device; the twin of `optim/adamw.rs`, whose factors it uses.

use half::bf16;

use super::{Arg, Gpu, Grid, View, ViewMut};
use crate::optim::adamw::Factors;

/// Elements that share one byte of `decays`: parameters start at multiples of it.
pub const DECAY_GROUP: usize = 128;

/// How the masters become the numbers that matrix products read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest bfloat16.
    Nearest,
    /// Up or down, in the mean right; the key belongs to the step.
    Stochastic(u64),
}

impl Rounding {
    fn args(self) -> [Arg; 2] {
        match self {
            Self::Nearest => [Arg::I32(0), Arg::U64(0)],
            Self::Stochastic(key) => [Arg::I32(1), Arg::U64(key)],
        }
    }
}

/// The copy of the masters that a step with this rounding has left.
pub fn round(gpu: &Gpu, copy: ViewMut<bf16>, params: View<f32>, rounding: Rounding) {
    let len = params.len();
    assert_eq!(copy.len(), len, "size of the rounded copy");
    let [is_stochastic, key] = rounding.args();
    let args = [copy.arg(), params.arg(), Arg::U64(len as u64), is_stochastic, key];
    gpu.launch("adamw_copy", Grid::new(len.div_ceil(8 * 256), 256), &args);
}

/// The buffers of a step, all of one length.
pub struct Buffers<'a> {
    /// f32 masters.
    pub params: ViewMut<'a, f32>,
    /// Their gradients.
    pub gradients: View<'a, f32>,
    /// First moments.
    pub means: ViewMut<'a, f32>,
    /// Second moments.
    pub squares: ViewMut<'a, f32>,
    /// The masters rounded.
    pub copy: Option<ViewMut<'a, bf16>>,
    /// Whether weight decay applies, for each [`DECAY_GROUP`] elements.
    pub decays: View<'a, u8>,
}

/// One step.
pub fn step(gpu: &Gpu, factors: &Factors, rounding: Rounding, buffers: Buffers) {
    let len = buffers.params.len();
    let lens = [buffers.gradients.len(), buffers.means.len(), buffers.squares.len()];
    assert!(lens == [len; 3] && buffers.decays.len() == len.div_ceil(DECAY_GROUP), "sizes of an optimizer step");
    assert!(buffers.copy.as_ref().is_none_or(|copy| copy.len() == len), "size of the rounded copy");
    let [is_stochastic, key] = rounding.args();
    let Factors {
        gradient_scale,
        keep,
        beta1,
        one_minus_beta1,
        beta2,
        one_minus_beta2,
        step_size,
        inverse_root_correction2,
        eps,
    } = *factors;
    let mut args = vec![
        buffers.params.arg_in_place(),
        buffers.gradients.arg(),
        buffers.means.arg_in_place(),
        buffers.squares.arg_in_place(),
        super::optional_mut(buffers.copy),
        buffers.decays.arg(),
        Arg::U64(len as u64),
    ];
    let numbers = [gradient_scale, keep, beta1, one_minus_beta1, beta2, one_minus_beta2];
    args.extend(numbers.into_iter().chain([step_size, inverse_root_correction2, eps]).map(Arg::F32));
    args.extend([is_stochastic, key]);
    gpu.launch("adamw", Grid::new(len.div_ceil(8 * 256), 256), &args);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gpu::testing;
    use crate::gpu::testing::{F32_TOLERANCE, check, on_both};
    use crate::ops::random;
    use crate::ops::testing::{assert_close, values};
    use crate::optim::adamw::AdamW;
    use crate::recipe::Optimizer;

    const SCALE: f64 = 0.25;

    fn options() -> Optimizer {
        Optimizer { learning_rate: 1e-2, weight_decay: 0.1, ..Optimizer::default() }
    }

    #[test]
    fn steps_are_the_cpus_and_the_copy_is_rounded_to_nearest() {
        for len in [128, 384, 2048 + 128, 100] {
            let decayed = [0..len.min(128), len.min(256)..len];
            let optimizer = AdamW::new(&options(), len, &decayed);
            let mut expected = [values(1, len), vec![0.0; len], vec![0.0; len]];
            let first_params = expected[0].clone();
            let gradients: Vec<Vec<f32>> = (0..3).map(|step| values(10 + step, len)).collect();
            for (step, gradients) in gradients.iter().enumerate() {
                let [params, means, squares] = &mut expected;
                optimizer.step(step as u64, 1e-2, SCALE, params, gradients, means, squares);
            }
            let Some([params, means, squares, copy]) = on_both(|gpu| {
                let mut params = gpu.buffer_of(&first_params).unwrap();
                let [mut means, mut squares] = [(); 2].map(|()| gpu.zeros::<f32>(len).unwrap());
                let mut copy = gpu.zeros::<bf16>(len).unwrap();
                let decays: Vec<u8> = (0..len.div_ceil(DECAY_GROUP)).map(|group| u8::from(group != 1)).collect();
                let decays = gpu.buffer_of(&decays).unwrap();
                for (i, gradients) in gradients.iter().enumerate() {
                    let gradients = gpu.buffer_of(gradients).unwrap();
                    let buffers = Buffers {
                        params: params.view_mut(),
                        gradients: gradients.view(),
                        means: means.view_mut(),
                        squares: squares.view_mut(),
                        copy: Some(copy.view_mut()),
                        decays: decays.view(),
                    };
                    step(gpu, &optimizer.factors(i as u64, 1e-2, SCALE), Rounding::Nearest, buffers);
                }
                let [params, means, squares] = [&params, &means, &squares].map(|buffer| check(gpu, buffer.view()));
                [params, means, squares, check(gpu, copy.view())]
            }) else {
                return;
            };
            for (actual, expected) in [&params, &means, &squares].into_iter().zip(&expected) {
                assert_close(actual, expected, F32_TOLERANCE, format!("{len} elements"));
            }
            assert!(copy.iter().zip(&params).all(|(copy, &param)| *copy == bf16::from_f32(param).to_f32()));
        }
    }

    #[test]
    fn stochastic_rounding_goes_to_a_neighbour_and_is_right_in_the_mean() {
        const KEY: u64 = 0x5_0000_0007;
        let len = 1 << 16;
        for gpu in testing::gpus().into_iter().flatten() {
            // A quarter of the way from one bfloat16 to the next.
            let value: f32 = 1.0 + 0.25 / 128.0;
            let mut params = gpu.buffer_of(&vec![value; len]).unwrap();
            let [mut means, mut squares, gradients] = [(); 3].map(|()| gpu.zeros::<f32>(len).unwrap());
            let mut copy = gpu.zeros::<bf16>(len).unwrap();
            let decays = gpu.zeros::<u8>(len / DECAY_GROUP).unwrap();
            let optimizer = AdamW::new(&options(), len, &[]);
            let buffers = Buffers {
                params: params.view_mut(),
                gradients: gradients.view(),
                means: means.view_mut(),
                squares: squares.view_mut(),
                copy: Some(copy.view_mut()),
                decays: decays.view(),
            };
            step(&gpu, &optimizer.factors(0, 1e-2, 1.0), Rounding::Stochastic(KEY), buffers);
            let copy = check(&gpu, copy.view());
            let is_up = |i| (random::bits(KEY, i, 0) & 0xffff) + (value.to_bits() & 0xffff) > 0xffff;
            let expected = (0..).map(|i| if is_up(i) { 1.0 + 1.0 / 128.0 } else { 1.0 });
            assert!(copy.iter().copied().zip(expected).all(|(x, expected): (f32, f32)| x == expected));
            for len in [1, 9, len] {
                let mut again = gpu.zeros::<bf16>(len).unwrap();
                round(&gpu, again.view_mut(), params.view().window(0..len), Rounding::Stochastic(KEY));
                assert_eq!(check(&gpu, again.view()), copy[..len]);
                round(&gpu, again.view_mut(), params.view().window(0..len), Rounding::Nearest);
                assert!(check(&gpu, again.view()).iter().all(|&x| x == 1.0));
            }
            let share = copy.iter().filter(|&&x| x > 1.0).count() as f64 / len as f64;
            // Four standard deviations: sqrt(0.25 * 0.75 / 65,536) is 1.7e-3.
            assert!((share - 0.25).abs() < 7e-3, "{share}");
        }
    }
}
