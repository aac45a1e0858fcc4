//! What the tests of the operations share: numbers, errors, finite differences, candle's autograd, thread pools.
//!
//! The chain of proof: an operation's `reference::<f64>` is held to central finite differences of itself
//! ([`assert_gradient`]) and to candle's autograd in f64 ([`Autograd`]); the fast code is held to the reference. Errors
//! are relative, ‖a − b‖ / ‖b‖ over a whole tensor ([`relative_error`]).

#![allow(clippy::unwrap_used)]

use std::fmt::Display;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::real::Real;
use super::{Device, random};

/// Rounding of what is a sum over up to some thousand inputs: ten units in the last place, for sums that nearly cancel.
pub(crate) const VALUE_TOLERANCE: f64 = 2e-6;
/// Rounding of gradients, which are sums over as many rows, one after the other.
pub(crate) const GRADIENT_TOLERANCE: f64 = 5e-6;

/// Uniformly distributed numbers in `[-1, 1)`.
pub(crate) fn values(seed: u64, len: usize) -> Vec<f32> {
    (0..len as u64).map(|i| 2.0 * random::uniform(seed, 0, i) - 1.0).collect()
}

/// Whole numbers below `end`.
pub(crate) fn numbers_below(end: usize, seed: u64, len: usize) -> Vec<u32> {
    (0..len as u64).map(|i| (random::uniform(seed, 1, i) * end as f32) as u32).collect()
}

/// The same numbers in double precision.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

/// The sum, element by element, in double precision.
pub(crate) fn sum<A: Real, B: Real>(a: &[A], b: &[B]) -> Vec<f64> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.to_f64() + b.to_f64()).collect()
}

/// The inner product.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `‖actual − expected‖ / ‖expected‖`, or `‖actual‖` if nothing but zeros is expected.
pub(crate) fn relative_error<A: Real, B: Real>(actual: &[A], expected: &[B]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut actual.iter().zip(expected).map(|(a, b)| a.to_f64() - b.to_f64()));
    let size = norm(&mut expected.iter().map(|b| b.to_f64()));
    if size == 0.0 { difference } else { difference / size }
}

/// Fails unless the relative error is at most the tolerance; not a number fails too.
pub(crate) fn assert_close<A: Real, B: Real>(actual: &[A], expected: &[B], tolerance: f64, what: impl Display) {
    let error = relative_error(actual, expected);
    assert!(error <= tolerance, "{what}: relative error {error:e} above {tolerance:e}");
}

/// Holds `gradient` to central differences of `loss` at `x`.
pub(crate) fn assert_gradient(gradient: &[f64], x: &[f64], loss: impl Fn(&[f64]) -> f64, what: impl Display) {
    // The error of the quotient: about 1e-10 from the third derivative, and as much from rounding.
    const STEP: f64 = 1e-5;
    let mut x = x.to_vec();
    let quotients: Vec<f64> = (0..x.len())
        .map(|i| {
            let here = x[i];
            let mut at = |value| {
                x[i] = value;
                loss(&x)
            };
            let quotient = (at(here + STEP) - at(here - STEP)) / (2.0 * STEP);
            x[i] = here;
            quotient
        })
        .collect();
    assert_close(gradient, &quotients, 1e-8, what);
}

/// Leaves of a graph of candle's in f64.
pub(crate) struct Autograd;

impl Autograd {
    /// A leaf of that shape.
    pub(crate) fn leaf(values: &[f64], shape: &[usize]) -> Var {
        Var::from_slice(values, shape, &candle_core::Device::Cpu).unwrap()
    }

    /// A tensor without gradient.
    pub(crate) fn constant(values: &[f64], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape, &candle_core::Device::Cpu).unwrap()
    }

    /// Gradients of `Σ y dy`.
    pub(crate) fn backward(y: &Tensor, dy: &[f64]) -> GradStore {
        let dy = Self::constant(dy, y.dims());
        (y * dy).unwrap().sum_all().unwrap().backward().unwrap()
    }

    /// All elements, row-major.
    pub(crate) fn elements(tensor: &Tensor) -> Vec<f64> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The gradient of a leaf.
    pub(crate) fn gradient(gradients: &GradStore, leaf: &Var) -> Vec<f64> {
        Self::elements(gradients.get(leaf).unwrap())
    }
}

/// Runs `compute` in a pool of that many threads.
pub(crate) fn on_threads<R: Send>(threads: usize, compute: impl FnOnce(&Device) -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| compute(&Device::cpu()))
}

/// Fails unless `compute` gives the same bits with 1, 2 and 3 threads, and every time.
pub(crate) fn assert_bits_do_not_depend_on_threads(compute: impl Fn(&Device) -> Vec<f32> + Sync) {
    let bits =
        |threads| on_threads(threads, |device| compute(device).into_iter().map(f32::to_bits).collect::<Vec<_>>());
    let expected = bits(1);
    for threads in [1, 2, 3, 3] {
        assert!(bits(threads) == expected, "{threads} threads give other bits than one");
    }
}
