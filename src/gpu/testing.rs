//! What the tests of kernels share: numbers in both formats, and two emulated GPUs that must agree.

#![allow(clippy::unwrap_used)]

use bytemuck::Pod;

use super::{Dtype, Element, Gpu, View, emulator};
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

/// A window's elements, as f32, after everything queued; panics with what went wrong on the way.
pub(crate) fn check<T: Element + Pod>(gpu: &Gpu, view: View<T>) -> Vec<f32> {
    gpu.to_vec(view).unwrap().into_iter().map(T::to_f32).collect()
}

/// The results of `compute` on a GPU that runs threads and blocks in ascending order, after those of one that runs them in
/// descending order were found to be the same bits. `None` where there is no C++ compiler.
pub(crate) fn on_both<const N: usize>(compute: impl Fn(&Gpu) -> [Vec<f32>; N]) -> Option<[Vec<f32>; N]> {
    let [ascending, descending] = emulator::gpus()?;
    let results = compute(&ascending);
    let bits = |results: &[Vec<f32>; N]| -> Vec<Vec<u32>> {
        results.iter().map(|result| result.iter().map(|x| x.to_bits()).collect()).collect()
    };
    for (i, (one, other)) in bits(&results).into_iter().zip(bits(&compute(&descending))).enumerate() {
        let first = one.iter().zip(&other).position(|(one, other)| one != other);
        assert!(first.is_none(), "result {i} depends on the order of threads, first at element {first:?}");
    }
    Some(results)
}
