//! Pointwise function between the MLP's two matrices: `y (n, m) = f(x (n, m) + bias (m))`, or gated,
//! `y (n, m) = f(gate) up` where a row of `x (n, 2 m)` holds `m` elements of gate, then `m` of up.
//!
//! The optional bias is fused, because it costs nothing while the function is computed and a walk over the widest
//! activation else. Saved: `x` (without the bias). Backward: `dx = dy f'(x + bias)` in place of `dy`, `dbias += column
//! sums of dx`; gated, `dx` is twice as wide as `dy` and overwritten: `dgate = dy up f'(gate)`, `dup = dy f(gate)`.

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
    /// `max(x, 0)²`: `relu2`.
    Relu2,
    /// `x / (1 + e^-x)`: `silu`, also called `swish`.
    Silu,
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

#[inline(always)]
fn relu2(x: f32) -> f32 {
    relu(x) * relu(x)
}

#[inline(always)]
fn relu2_slope(x: f32) -> f32 {
    2.0 * relu(x)
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x * math::logistic(x)
}

#[inline(always)]
fn silu_slope(x: f32) -> f32 {
    let gate = math::logistic(x);
    gate * (1.0 + x * (1.0 - gate))
}

/// `y = f(x + bias)`.
pub fn forward(activation: Activation, y_nm: ViewMut<f32>, x_nm: View<f32>, bias_m: Option<View<f32>>, m: usize) {
    match activation {
        Activation::GeluTanh => map(y_nm, x_nm, bias_m, m, gelu_tanh),
        Activation::GeluErf => map(y_nm, x_nm, bias_m, m, gelu_erf),
        Activation::Relu => map(y_nm, x_nm, bias_m, m, relu),
        Activation::Relu2 => map(y_nm, x_nm, bias_m, m, relu2),
        Activation::Silu => map(y_nm, x_nm, bias_m, m, silu),
    }
}

/// `dy` becomes `dx = dy f'(x + bias)`; `dbias += Σ dx`.
pub fn backward(
    activation: Activation,
    mut dy_nm: ViewMut<f32>,
    dbias_m: Option<ViewMut<f32>>,
    x_nm: View<f32>,
    bias_m: Option<View<f32>>,
    m: usize,
) {
    let dx_nm = dy_nm.reborrow();
    match activation {
        Activation::GeluTanh => scale_by_slope(dx_nm, x_nm, bias_m, m, gelu_tanh_slope),
        Activation::GeluErf => scale_by_slope(dx_nm, x_nm, bias_m, m, gelu_erf_slope),
        Activation::Relu => scale_by_slope(dx_nm, x_nm, bias_m, m, relu_slope),
        Activation::Relu2 => scale_by_slope(dx_nm, x_nm, bias_m, m, relu2_slope),
        Activation::Silu => scale_by_slope(dx_nm, x_nm, bias_m, m, silu_slope),
    }
    if let Some(dbias_m) = dbias_m {
        linear::add_column_sums(dbias_m, dy_nm.as_view());
    }
}

/// `y = f(gate) up`, where each row of `x` holds gate, then up.
pub fn gated_forward(activation: Activation, y_nm: ViewMut<f32>, x_n2m: View<f32>, m: usize) {
    match activation {
        Activation::GeluTanh => gate(y_nm, x_n2m, m, gelu_tanh),
        Activation::GeluErf => gate(y_nm, x_n2m, m, gelu_erf),
        Activation::Relu => gate(y_nm, x_n2m, m, relu),
        Activation::Relu2 => gate(y_nm, x_n2m, m, relu2),
        Activation::Silu => gate(y_nm, x_n2m, m, silu),
    }
}

/// `dgate = dy up f'(gate)`, then `dup = dy f(gate)` in each row of `dx`.
pub fn gated_backward(activation: Activation, dx_n2m: ViewMut<f32>, dy_nm: View<f32>, x_n2m: View<f32>, m: usize) {
    match activation {
        Activation::GeluTanh => gate_gradient(dx_n2m, dy_nm, x_n2m, m, gelu_tanh, gelu_tanh_slope),
        Activation::GeluErf => gate_gradient(dx_n2m, dy_nm, x_n2m, m, gelu_erf, gelu_erf_slope),
        Activation::Relu => gate_gradient(dx_n2m, dy_nm, x_n2m, m, relu, relu_slope),
        Activation::Relu2 => gate_gradient(dx_n2m, dy_nm, x_n2m, m, relu2, relu2_slope),
        Activation::Silu => gate_gradient(dx_n2m, dy_nm, x_n2m, m, silu, silu_slope),
    }
}

fn map(y_nm: ViewMut<f32>, x_nm: View<f32>, bias_m: Option<View<f32>>, m: usize, f: impl Fn(f32) -> f32 + Sync) {
    for_rows(
        y_nm,
        x_nm,
        bias_m,
        m,
        #[inline(always)]
        |y, x| *y = f(x),
    );
}

fn scale_by_slope(
    dy_nm: ViewMut<f32>,
    x_nm: View<f32>,
    bias_m: Option<View<f32>>,
    m: usize,
    slope: impl Fn(f32) -> f32 + Sync,
) {
    for_rows(
        dy_nm,
        x_nm,
        bias_m,
        m,
        #[inline(always)]
        |dy, x| *dy *= slope(x),
    );
}

/// Calls `f(y, x + bias)` on every element.
#[inline(always)]
fn for_rows(
    y_nm: ViewMut<f32>,
    x_nm: View<f32>,
    bias_m: Option<View<f32>>,
    m: usize,
    f: impl Fn(&mut f32, f32) + Sync,
) {
    let bias = bias_m.map(View::cpu);
    let rows = rows_per_task(m);
    y_nm.cpu().par_chunks_mut(rows * m).zip(x_nm.cpu().par_chunks(rows * m)).for_each(|(y, x)| {
        math::vectorized(
            #[inline(always)]
            || match bias {
                None => {
                    for (y, &x) in y.iter_mut().zip(x) {
                        f(y, x);
                    }
                }
                Some(bias) => {
                    for (y, x) in y.chunks_exact_mut(m).zip(x.chunks_exact(m)) {
                        for ((y, &x), &bias) in y.iter_mut().zip(x).zip(bias) {
                            f(y, x + bias);
                        }
                    }
                }
            },
        );
    });
}

fn gate(y_nm: ViewMut<f32>, x_n2m: View<f32>, m: usize, f: impl Fn(f32) -> f32 + Sync) {
    let rows = rows_per_task(2 * m);
    y_nm.cpu().par_chunks_mut(rows * m).zip(x_n2m.cpu().par_chunks(rows * 2 * m)).for_each(|(y, x)| {
        math::vectorized(
            #[inline(always)]
            || {
                for (y, x) in y.chunks_exact_mut(m).zip(x.chunks_exact(2 * m)) {
                    let (gate, up) = x.split_at(m);
                    for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                        *y = f(gate) * up;
                    }
                }
            },
        );
    });
}

fn gate_gradient(
    dx_n2m: ViewMut<f32>,
    dy_nm: View<f32>,
    x_n2m: View<f32>,
    m: usize,
    f: impl Fn(f32) -> f32 + Sync,
    slope: impl Fn(f32) -> f32 + Sync,
) {
    let rows = rows_per_task(2 * m);
    let tasks = dx_n2m.cpu().par_chunks_mut(rows * 2 * m).zip(dy_nm.cpu().par_chunks(rows * m));
    tasks.zip(x_n2m.cpu().par_chunks(rows * 2 * m)).for_each(|((dx, dy), x)| {
        math::vectorized(
            #[inline(always)]
            || {
                let rows = dx.chunks_exact_mut(2 * m).zip(dy.chunks_exact(m)).zip(x.chunks_exact(2 * m));
                for ((dx, dy), x) in rows {
                    let ((dgate, dup), (gate, up)) = (dx.split_at_mut(m), x.split_at(m));
                    // By index: five iterators in one are more than the compiler turns into vector code.
                    for i in 0..m {
                        dgate[i] = dy[i] * up[i] * slope(gate[i]);
                        dup[i] = dy[i] * f(gate[i]);
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
            Activation::Relu2 => x.max(T::ZERO) * x.max(T::ZERO),
            Activation::Silu => x / (T::ONE + (-x).exp()),
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
            Activation::Relu2 => c(2.0) * x.max(T::ZERO),
            Activation::Silu => {
                let gate = T::ONE / (T::ONE + (-x).exp());
                gate + x * gate * (T::ONE - gate)
            }
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

    /// `y = f(gate) up`.
    pub fn gated_forward<T: Real>(activation: Activation, x_n2m: &[T], m: usize) -> Vec<T> {
        let mut y = Vec::new();
        for x in x_n2m.chunks(2 * m) {
            y.extend((0..m).map(|i| value(activation, x[i]) * x[m + i]));
        }
        y
    }

    /// `dx`.
    pub fn gated_backward<T: Real>(activation: Activation, dy_nm: &[T], x_n2m: &[T], m: usize) -> Vec<T> {
        let mut dx = Vec::new();
        for (dy, x) in dy_nm.chunks(m).zip(x_n2m.chunks(2 * m)) {
            dx.extend((0..m).map(|i| dy[i] * x[m + i] * slope(activation, x[i])));
            dx.extend((0..m).map(|i| dy[i] * value(activation, x[i])));
        }
        dx
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

    const ALL: [Activation; 5] =
        [Activation::GeluTanh, Activation::GeluErf, Activation::Relu, Activation::Relu2, Activation::Silu];

    /// Rows and columns; the last have several tasks and a rest.
    const SHAPES: [[usize; 2]; 9] =
        [[1, 1], [1, 65], [17, 1], [3, 15], [5, 16], [64, 17], [130, 129], [33, 2000], [3, 20_000]];

    /// `x`, bias and `dy`, with sums between -5 and 5.
    fn case([n, m]: [usize; 2]) -> [Vec<f32>; 3] {
        let times = |factor: f32, values: Vec<f32>| values.into_iter().map(|x| factor * x).collect();
        [times(4.0, values(1, n * m)), values(2, m), values(3, n * m)]
    }

    /// Gate and up between -5 and 5, and `dy`.
    fn gated_case([n, m]: [usize; 2]) -> [Vec<f32>; 2] {
        [values(1, n * 2 * m).into_iter().map(|x| 5.0 * x).collect(), values(3, n * m)]
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
            Activation::Relu2 => x.relu()?.sqr(),
            Activation::Silu => x / (x.neg()?.exp()? + 1.0)?,
        }
    }

    fn value_of(activation: Activation, x: f32) -> f32 {
        let mut y = [f32::NAN];
        forward(activation, y.as_mut_slice().into(), [x].as_slice().into(), Some([0.0].as_slice().into()), 1);
        y[0]
    }

    fn slope_of(activation: Activation, x: f32) -> f32 {
        let (mut dy, mut dbias) = ([1.0], [0.0]);
        let (x, bias) = ([x], [0.0]);
        let (x, bias) = (x.as_slice().into(), Some(bias.as_slice().into()));
        backward(activation, dy.as_mut_slice().into(), Some(dbias.as_mut_slice().into()), x, bias, 1);
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
    fn gated_reference_gradients_are_finite_differences_and_candles() {
        let [n, m] = [5, 7];
        let [x, dy] = gated_case([n, m]).map(|values| wide(&values));
        for activation in ALL {
            let dx = reference::gated_backward(activation, &dy, &x, m);
            let loss = |x: &[f64]| dot(&reference::gated_forward(activation, x, m), &dy);
            assert_gradient(&dx, &x, loss, format!("{activation:?} dx"));

            let xs = Autograd::leaf(&x, &[n, 2 * m]);
            let (gate, up) = (xs.narrow(1, 0, m).unwrap(), xs.narrow(1, m, m).unwrap());
            let y = (of_candle(activation, &gate).unwrap() * up).unwrap();
            let values = reference::gated_forward(activation, &x, m);
            assert_close(&values, &Autograd::elements(&y), 1e-13, format!("{activation:?} y"));
            let gradients = Autograd::backward(&y, &dy);
            assert_close(&dx, &Autograd::gradient(&gradients, &xs), 1e-13, format!("{activation:?} dx of candle"));
        }
    }

    #[test]
    fn fast_code_gives_the_definition_over_odd_shapes() {
        on_threads(2, |_| {
            for shape in SHAPES {
                let [n, m] = shape;
                let [x, bias, dy] = case(shape);
                let old_dbias = values(5, m);
                for (activation, with_bias) in ALL.into_iter().flat_map(|f| [(f, true), (f, false)]) {
                    let what = format!("{activation:?} {shape:?}, bias: {with_bias}");
                    let expected_bias = if with_bias { wide(&bias) } else { vec![0.0; m] };
                    let given_bias = with_bias.then(|| bias.as_slice().into());
                    let mut y = vec![f32::NAN; n * m];
                    forward(activation, y.as_mut_slice().into(), x.as_slice().into(), given_bias, m);
                    let expected_y = reference::forward(activation, &wide(&x), &expected_bias);
                    assert_close(&y, &expected_y, VALUE_TOLERANCE, &what);

                    let (expected_dx, expected_dbias) =
                        reference::backward(activation, &wide(&dy), &wide(&x), &expected_bias);
                    for with_dbias in [true, false] {
                        let (mut dx, mut dbias) = (dy.clone(), old_dbias.clone());
                        let dbias_window = with_dbias.then(|| dbias.as_mut_slice().into());
                        let dx_window = dx.as_mut_slice().into();
                        backward(activation, dx_window, dbias_window, x.as_slice().into(), given_bias, m);
                        assert_close(&dx, &expected_dx, VALUE_TOLERANCE, format!("dx {what}"));
                        let added = if with_dbias { expected_dbias.clone() } else { vec![0.0; m] };
                        let expected_dbias = sum(&old_dbias, &added);
                        assert_close(&dbias, &expected_dbias, GRADIENT_TOLERANCE, format!("dbias {what}"));
                    }
                }
            }
        });
    }

    #[test]
    fn fast_gated_code_gives_the_definition_over_odd_shapes() {
        on_threads(2, |_| {
            for shape in SHAPES {
                let [n, m] = shape;
                let [x, dy] = gated_case(shape);
                for activation in ALL {
                    let what = format!("{activation:?} {shape:?}");
                    let (mut y, mut dx) = (vec![f32::NAN; n * m], vec![f32::NAN; n * 2 * m]);
                    gated_forward(activation, y.as_mut_slice().into(), x.as_slice().into(), m);
                    let expected = reference::gated_forward(activation, &wide(&x), m);
                    assert_close(&y, &expected, VALUE_TOLERANCE, &what);
                    let dx_window = dx.as_mut_slice().into();
                    gated_backward(activation, dx_window, dy.as_slice().into(), x.as_slice().into(), m);
                    let expected = reference::gated_backward(activation, &wide(&dy), &wide(&x), m);
                    assert_close(&dx, &expected, VALUE_TOLERANCE, format!("dx {what}"));
                }
            }
        });
    }

    /// Errors relative to the larger of 1 and the value: the far tails are products with a tiny factor, whose own
    /// relative error does not matter.
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
                let expected = reference::slope(activation, exact);
                let error = (f64::from(slope_of(activation, x)) - expected).abs() / expected.abs().max(1.0);
                assert!(error < 2e-6, "{activation:?}'({x}): {error:e}");
            }
            // Silu's tail is the longest.
            for x in [if activation == Activation::Silu { 100.0 } else { 30.0 }, 1e4, 1e10] {
                let (value, slope) = if activation == Activation::Relu2 { (x * x, 2.0 * x) } else { (x, 1.0) };
                assert_eq!((value_of(activation, x), value_of(activation, -x)), (value, 0.0), "{activation:?}");
                assert_eq!((slope_of(activation, x), slope_of(activation, -x)), (slope, 0.0), "{activation:?}");
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
            for x in [[f32::NAN, 1.0], [1.0, f32::NAN]] {
                let (mut y, mut dx) = ([0.0], [0.0; 2]);
                gated_forward(activation, y.as_mut_slice().into(), x.as_slice().into(), 1);
                gated_backward(activation, dx.as_mut_slice().into(), [1.0].as_slice().into(), x.as_slice().into(), 1);
                assert!(y[0].is_nan(), "{activation:?} of {x:?}");
                assert!(dx.iter().any(|x| x.is_nan()), "{activation:?} of {x:?}: {dx:?}");
            }
        }
    }

    #[test]
    fn a_gate_far_in_its_tail_is_open_or_shut() {
        for activation in ALL.into_iter().filter(|activation| *activation != Activation::Relu2) {
            for (gate, y, dx) in [(1e4, -2e4, [-6.0, 3e4]), (-1e4, 0.0, [0.0, 0.0])] {
                let (x, mut actual_y, mut actual_dx) = ([gate, -2.0], [f32::NAN], [f32::NAN; 2]);
                let dx_window = actual_dx.as_mut_slice().into();
                gated_forward(activation, actual_y.as_mut_slice().into(), x.as_slice().into(), 1);
                gated_backward(activation, dx_window, [3.0].as_slice().into(), x.as_slice().into(), 1);
                assert_eq!((actual_y, actual_dx), ([y], dx), "{activation:?}");
            }
        }
    }

    #[test]
    fn results_have_the_same_bits_on_any_number_of_threads() {
        let shape = [130, 129];
        let [x, bias, dy] = case(shape);
        let [gated_x, _] = gated_case(shape);
        for activation in ALL {
            for with_bias in [true, false] {
                assert_bits_do_not_depend_on_threads(|_| {
                    let (mut y, mut dx, mut dbias) = (vec![0.0; x.len()], dy.clone(), vec![0.0; bias.len()]);
                    let (x, bias) = (x.as_slice().into(), with_bias.then(|| bias.as_slice().into()));
                    forward(activation, y.as_mut_slice().into(), x, bias, 129);
                    let dbias_window = with_bias.then(|| dbias.as_mut_slice().into());
                    backward(activation, dx.as_mut_slice().into(), dbias_window, x, bias, 129);
                    [y, dx, dbias].concat()
                });
            }
            assert_bits_do_not_depend_on_threads(|_| {
                let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; gated_x.len()]);
                let (x, dy) = (gated_x.as_slice().into(), dy.as_slice().into());
                gated_forward(activation, y.as_mut_slice().into(), x, 129);
                gated_backward(activation, dx.as_mut_slice().into(), dy, x, 129);
                [y, dx].concat()
            });
        }
    }
}
