//! Bias and pointwise function between the MLP's two matrices: `y (n, m) = f(x (n, m) + bias (m))`.
//!
//! Fused, because the bias costs nothing while the function is computed and a walk over the widest activation else.
//! Saved: `x` (without the bias). Backward: `dx = dy f'(x + bias)` in place of `dy`, `dbias += column sums of dx`.

use rayon::prelude::*;

use super::{View, ViewMut, linear, math, rows_per_task};
use crate::model::arch::Activation;

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;
const SQRT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// `1 / sqrt(2 pi)`, the height of the normal density.
const INV_SQRT_2PI: f32 = 0.398_942_3;

/// `0.5 (1 + tanh u) = logistic(2 u)`: one exponential instead of a tanh.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    x * math::logistic(2.0 * SQRT_2_OVER_PI * x * (1.0 + CUBIC * x * x))
}

#[inline(always)]
fn gelu_tanh_slope(x: f32) -> f32 {
    let gate = math::logistic(2.0 * SQRT_2_OVER_PI * x * (1.0 + CUBIC * x * x));
    gate + x * gate * (1.0 - gate) * 2.0 * SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x)
}

#[inline(always)]
fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + math::erf(x * SQRT_HALF))
}

#[inline(always)]
fn gelu_erf_slope(x: f32) -> f32 {
    0.5 * (1.0 + math::erf(x * SQRT_HALF)) + x * INV_SQRT_2PI * math::exp(-0.5 * x * x)
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    // Written so that NaN stays NaN.
    if x < 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn relu_slope(x: f32) -> f32 {
    if x > 0.0 { 1.0 } else { 0.0 }
}

/// `y = f(x + bias)`.
pub fn forward(activation: Activation, y_nm: ViewMut<f32>, x_nm: View<f32>, bias_m: View<f32>) {
    match activation {
        Activation::GeluTanh => map(y_nm, x_nm, bias_m, gelu_tanh),
        Activation::GeluErf => map(y_nm, x_nm, bias_m, gelu_erf),
        Activation::Relu => map(y_nm, x_nm, bias_m, relu),
    }
}

/// `dy` becomes `dx = dy f'(x + bias)`; `dbias += Σ dx`.
pub fn backward(
    activation: Activation,
    mut dy_nm: ViewMut<f32>,
    dbias_m: ViewMut<f32>,
    x_nm: View<f32>,
    bias_m: View<f32>,
) {
    match activation {
        Activation::GeluTanh => scale_by_slope(dy_nm.reborrow(), x_nm, bias_m, gelu_tanh_slope),
        Activation::GeluErf => scale_by_slope(dy_nm.reborrow(), x_nm, bias_m, gelu_erf_slope),
        Activation::Relu => scale_by_slope(dy_nm.reborrow(), x_nm, bias_m, relu_slope),
    }
    linear::add_column_sums(dbias_m, dy_nm.as_view());
}

fn map(y_nm: ViewMut<f32>, x_nm: View<f32>, bias_m: View<f32>, f: impl Fn(f32) -> f32 + Sync) {
    for_rows(y_nm, x_nm, bias_m, |y, x| *y = f(x));
}

fn scale_by_slope(dy_nm: ViewMut<f32>, x_nm: View<f32>, bias_m: View<f32>, slope: impl Fn(f32) -> f32 + Sync) {
    for_rows(dy_nm, x_nm, bias_m, |dy, x| *dy *= slope(x));
}

/// Calls `f(y, x + bias)` on every element.
#[inline(always)]
fn for_rows(y_nm: ViewMut<f32>, x_nm: View<f32>, bias_m: View<f32>, f: impl Fn(&mut f32, f32) + Sync) {
    let bias = bias_m.cpu();
    let m = bias.len();
    let rows = rows_per_task(m);
    y_nm.cpu().par_chunks_mut(rows * m).zip(x_nm.cpu().par_chunks(rows * m)).for_each(|(y, x)| {
        math::vectorized(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(m).zip(x.chunks_exact(m)) {
                    for ((y, &x), &bias) in y.iter_mut().zip(x).zip(bias) {
                        f(y, x + bias);
                    }
                }
            },
        );
    });
}

/// The definition, in plain loops.
pub mod reference {
    use crate::model::arch::Activation;
    use crate::ops::real::Real;

    /// `f(x)`.
    pub fn value<T: Real>(activation: Activation, x: T) -> T {
        let c = T::from_f64;
        match activation {
            Activation::GeluTanh => {
                let u = c((2.0 / std::f64::consts::PI).sqrt()) * (x + c(0.044715) * x * x * x);
                c(0.5) * x * (T::ONE + u.tanh())
            }
            Activation::GeluErf => c(0.5) * x * (T::ONE + (x / c(2.0).sqrt()).erf()),
            Activation::Relu => x.max(T::ZERO),
        }
    }

    /// `f'(x)`.
    pub fn slope<T: Real>(activation: Activation, x: T) -> T {
        let c = T::from_f64;
        match activation {
            Activation::GeluTanh => {
                let k = c((2.0 / std::f64::consts::PI).sqrt());
                let t = (k * (x + c(0.044715) * x * x * x)).tanh();
                c(0.5) * (T::ONE + t) + c(0.5) * x * (T::ONE - t * t) * k * (T::ONE + c(3.0 * 0.044715) * x * x)
            }
            Activation::GeluErf => {
                let density = (-x * x / c(2.0)).exp() / c((2.0 * std::f64::consts::PI).sqrt());
                c(0.5) * (T::ONE + (x / c(2.0).sqrt()).erf()) + x * density
            }
            Activation::Relu if x > T::ZERO => T::ONE,
            Activation::Relu => T::ZERO,
        }
    }

    /// `y = f(x + bias)`.
    pub fn forward<T: Real>(activation: Activation, x_nm: &[T], bias_m: &[T]) -> Vec<T> {
        x_nm.iter().zip(bias_m.iter().cycle()).map(|(&x, &bias)| value(activation, x + bias)).collect()
    }

    /// `(dx, dbias)`.
    pub fn backward<T: Real>(activation: Activation, dy_nm: &[T], x_nm: &[T], bias_m: &[T]) -> (Vec<T>, Vec<T>) {
        let mut dbias = vec![T::ZERO; bias_m.len()];
        let dx = (0..dy_nm.len())
            .map(|i| {
                let column = i % bias_m.len();
                let dx = dy_nm[i] * slope(activation, x_nm[i] + bias_m[column]);
                dbias[column] += dx;
                dx
            })
            .collect();
        (dx, dbias)
    }
}
