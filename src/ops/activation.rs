//! Bias and pointwise function between the MLP's two matrices: `y (n, m) = f(x (n, m) + bias (m))`.
//!
//! Fused, because the bias costs nothing while the function is computed and a walk over the widest activation else.
//! Saved: `x` (without the bias). Backward: `dx = dy f'(x + bias)` in place of `dy`, `dbias += column sums of dx`.

use rayon::prelude::*;

use super::{View, ViewMut, linear, math, rows_per_task};

/// The pointwise function between the two matrices of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`: `gelu_new`, GPT-2's default.
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt 2))`: `gelu`.
    GeluErf,
    /// `max(x, 0)`: `relu`.
    Relu,
}

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
    use super::Activation;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ops::testing::{
        Autograd, GRADIENT_TOLERANCE, VALUE_TOLERANCE, assert_bits_do_not_depend_on_threads, assert_close,
        assert_gradient, dot, on_threads, sum, values, wide,
    };
    use candle_core::Tensor;

    const ALL: [Activation; 3] = [Activation::GeluTanh, Activation::GeluErf, Activation::Relu];

    /// Rows and columns; the last have several tasks and a rest.
    const SHAPES: [[usize; 2]; 9] =
        [[1, 1], [1, 65], [17, 1], [3, 15], [5, 16], [64, 17], [130, 129], [33, 2000], [3, 20_000]];

    /// `x`, bias and `dy`, with sums between -5 and 5.
    fn case([n, m]: [usize; 2]) -> [Vec<f32>; 3] {
        let times = |factor: f32, values: Vec<f32>| values.into_iter().map(|x| factor * x).collect();
        [times(4.0, values(1, n * m)), values(2, m), values(3, n * m)]
    }

    /// In elementary functions, because the derivatives of candle's `gelu` have constants of six digits.
    fn of_candle(activation: Activation, x: &Tensor) -> candle_core::Result<Tensor> {
        let half = (x * 0.5)?;
        match activation {
            Activation::GeluTanh => {
                let inner = ((x + (x.powf(3.0)? * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
                half * (inner.tanh()? + 1.0)?
            }
            Activation::GeluErf => half * ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?,
            Activation::Relu => x.relu(),
        }
    }

    fn value_of(activation: Activation, x: f32) -> f32 {
        let mut y = [f32::NAN];
        forward(activation, y.as_mut_slice().into(), [x].as_slice().into(), [0.0].as_slice().into());
        y[0]
    }

    fn slope_of(activation: Activation, x: f32) -> f32 {
        let (mut dy, mut dbias) = ([1.0], [0.0]);
        let (x, bias) = ([x], [0.0]);
        let (x, bias) = (x.as_slice().into(), bias.as_slice().into());
        backward(activation, dy.as_mut_slice().into(), dbias.as_mut_slice().into(), x, bias);
        assert!(dy[0].to_bits() == dbias[0].to_bits() || dy[0] == 0.0, "{dy:?} {dbias:?}");
        dy[0]
    }

    #[test]
    fn reference_gradients_are_finite_differences_and_candles() {
        let [n, m] = [5, 7];
        let [x, bias, dy] = case([n, m]).map(|values| wide(&values));
        for activation in ALL {
            let (dx, dbias) = reference::backward(activation, &dy, &x, &bias);
            let loss = |x: &[f64], bias: &[f64]| dot(&reference::forward(activation, x, bias), &dy);
            assert_gradient(&dx, &x, |x| loss(x, &bias), format!("{activation:?} dx"));
            assert_gradient(&dbias, &bias, |bias| loss(&x, bias), format!("{activation:?} dbias"));

            let (xs, biases) = (Autograd::leaf(&x, &[n, m]), Autograd::leaf(&bias, &[m]));
            let input = xs.broadcast_add(&biases).unwrap();
            let y = of_candle(activation, &input).unwrap();
            let values = reference::forward(activation, &x, &bias);
            assert_close(&values, &Autograd::elements(&y), 1e-13, format!("{activation:?} y"));
            let gradients = Autograd::backward(&y, &dy);
            assert_close(&dx, &Autograd::gradient(&gradients, &xs), 1e-13, format!("{activation:?} dx of candle"));
            assert_close(
                &dbias,
                &Autograd::gradient(&gradients, &biases),
                1e-13,
                format!("{activation:?} dbias of candle"),
            );
        }
    }

    #[test]
    fn fast_code_gives_the_definition_over_odd_shapes() {
        on_threads(2, |_| {
            for shape in SHAPES {
                let [n, m] = shape;
                let [x, bias, dy] = case(shape);
                let old_dbias = values(4, m);
                for activation in ALL {
                    let what = format!("{activation:?} {shape:?}");
                    let mut y = vec![f32::NAN; n * m];
                    forward(activation, y.as_mut_slice().into(), x.as_slice().into(), bias.as_slice().into());
                    assert_close(&y, &reference::forward(activation, &wide(&x), &wide(&bias)), VALUE_TOLERANCE, &what);

                    let (mut dx, mut dbias) = (dy.clone(), old_dbias.clone());
                    let (dx_window, dbias_window) = (dx.as_mut_slice().into(), dbias.as_mut_slice().into());
                    backward(activation, dx_window, dbias_window, x.as_slice().into(), bias.as_slice().into());
                    let (expected_dx, expected_dbias) =
                        reference::backward(activation, &wide(&dy), &wide(&x), &wide(&bias));
                    assert_close(&dx, &expected_dx, VALUE_TOLERANCE, format!("dx {what}"));
                    let expected_dbias = sum(&old_dbias, &expected_dbias);
                    assert_close(&dbias, &expected_dbias, GRADIENT_TOLERANCE, format!("dbias {what}"));
                }
            }
        });
    }

    /// Errors of values relative to the larger of 1 and the value: the far tails are products with a tiny factor, whose
    /// own relative error does not matter.
    #[test]
    fn values_and_slopes_are_exact_from_tail_to_tail() {
        let mut points: Vec<f32> = (-24_000..24_000).map(|i| i as f32 / 2000.0).collect();
        points.extend([13.0, 20.0, 30.0, 100.0, 1e4, 1e10].iter().flat_map(|&x| [x, -x]));
        for activation in ALL {
            for &x in &points {
                let exact = f64::from(x);
                let expected = reference::value(activation, exact);
                let error = (f64::from(value_of(activation, x)) - expected).abs() / expected.abs().max(1.0);
                assert!(error < 1e-6, "{activation:?}({x}): {error:e}");
                let error = (f64::from(slope_of(activation, x)) - reference::slope(activation, exact)).abs();
                assert!(error < 2e-6, "{activation:?}'({x}): {error:e}");
            }
            for x in [30.0, 1e4, 1e10] {
                assert_eq!((value_of(activation, x), value_of(activation, -x)), (x, 0.0), "{activation:?}");
                assert_eq!((slope_of(activation, x), slope_of(activation, -x)), (1.0, 0.0), "{activation:?}");
            }
            assert_eq!((value_of(activation, 0.0), value_of(activation, -0.0)), (0.0, 0.0));
            assert_eq!(value_of(activation, f32::INFINITY), f32::INFINITY);
        }
    }

    #[test]
    fn not_a_number_stays_visible() {
        for activation in ALL {
            assert!(value_of(activation, f32::NAN).is_nan(), "{activation:?}");
            if activation != Activation::Relu {
                assert!(slope_of(activation, f32::NAN).is_nan(), "{activation:?}");
            }
        }
    }

    #[test]
    fn results_have_the_same_bits_on_any_number_of_threads() {
        let shape = [130, 129];
        let [x, bias, dy] = case(shape);
        for activation in ALL {
            assert_bits_do_not_depend_on_threads(|_| {
                let (mut y, mut dx, mut dbias) = (vec![0.0; x.len()], dy.clone(), vec![0.0; bias.len()]);
                let (x, bias) = (x.as_slice().into(), bias.as_slice().into());
                forward(activation, y.as_mut_slice().into(), x, bias);
                backward(activation, dx.as_mut_slice().into(), dbias.as_mut_slice().into(), x, bias);
                [y, dx, dbias].concat()
            });
        }
    }
}
