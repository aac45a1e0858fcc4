//! The linear layer `y (n, o) = x (n, i) weight (o, i)ᵀ + bias (o)`; the bias is optional.
//!
//! Forward can add to a residual or to what `y` holds ([`Start`]). Backward: `dx = dy weight` (overwritten, or added to
//! where several layers share an input), `dweight += dyᵀ x`, `dbias += column sums of dy`. Saved: `x`.

use rayon::prelude::*;

use super::matmul::{Order, matmul};
use super::{Device, View, ViewMut, math, rows_per_task};

/// What `y` holds before the product is added.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Nothing: `y` is overwritten.
    Zero,
    /// `y = residual + …`.
    Residual(View<'a, f32>),
    /// What `y` holds already: `y += …`.
    Kept,
}

/// `y = start + bias + x weightᵀ`.
pub fn forward(
    device: &Device,
    [n, o, i]: [usize; 3],
    mut y_no: ViewMut<f32>,
    x_ni: View<f32>,
    weight_oi: View<f32>,
    bias_o: Option<View<f32>>,
    start: Start,
) {
    // The bias is put where the product accumulates: one walk over y less than adding it afterwards.
    let beta = if prepare(y_no.reborrow(), bias_o, start) { 1.0 } else { 0.0 };
    matmul(device, [n, o, i], 1.0, (x_ni, Order::N), (weight_oi, Order::T), beta, y_no);
}

/// `dx = dy weight` (`dx +=` with `add_to_dx`), `dweight += dyᵀ x`, `dbias += Σ dy`.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    device: &Device,
    [n, o, i]: [usize; 3],
    dx_ni: ViewMut<f32>,
    add_to_dx: bool,
    dweight_oi: ViewMut<f32>,
    dbias_o: Option<ViewMut<f32>>,
    dy_no: View<f32>,
    x_ni: View<f32>,
    weight_oi: View<f32>,
) {
    let beta = if add_to_dx { 1.0 } else { 0.0 };
    matmul(device, [n, i, o], 1.0, (dy_no, Order::N), (weight_oi, Order::N), beta, dx_ni);
    matmul(device, [o, i, n], 1.0, (dy_no, Order::T), (x_ni, Order::N), 1.0, dweight_oi);
    if let Some(dbias_o) = dbias_o {
        add_column_sums(dbias_o, dy_no);
    }
}

/// Writes `start + bias` to `y`, unless that is nothing; whether there is something to add to.
fn prepare(y_no: ViewMut<f32>, bias_o: Option<View<f32>>, start: Start) -> bool {
    const TASK: usize = 16_384;
    let y = y_no.cpu();
    match (bias_o, start) {
        (None, Start::Zero) => return false,
        (None, Start::Kept) => {}
        (None, Start::Residual(residual)) => y
            .par_chunks_mut(TASK)
            .zip(residual.cpu().par_chunks(TASK))
            .for_each(|(y, residual)| y.copy_from_slice(residual)),
        (Some(bias), start) => {
            let bias = bias.cpu();
            let o = bias.len();
            let rows = rows_per_task(o);
            let y = y.par_chunks_mut(rows * o);
            match start {
                Start::Zero => y.for_each(|y| y.chunks_exact_mut(o).for_each(|row| row.copy_from_slice(bias))),
                Start::Residual(residual) => y.zip(residual.cpu().par_chunks(rows * o)).for_each(|(y, residual)| {
                    math::vectorized(
                        #[inline(always)]
                        || {
                            for (y, residual) in y.chunks_exact_mut(o).zip(residual.chunks_exact(o)) {
                                for ((y, &residual), &bias) in y.iter_mut().zip(residual).zip(bias) {
                                    *y = residual + bias;
                                }
                            }
                        },
                    );
                }),
                Start::Kept => y.for_each(|y| {
                    math::vectorized(
                        #[inline(always)]
                        || {
                            for y in y.chunks_exact_mut(o) {
                                for (y, &bias) in y.iter_mut().zip(bias) {
                                    *y += bias;
                                }
                            }
                        },
                    );
                }),
            }
        }
    }
    true
}

/// `sums (o) += Σ rows of x (n, o)`, in tasks over bands of columns, each walking the rows in order.
pub(crate) fn add_column_sums(sums_o: ViewMut<f32>, x_no: View<f32>) {
    const BAND: usize = 64;
    let (sums, x) = (sums_o.cpu(), x_no.cpu());
    let o = sums.len();
    sums.par_chunks_mut(BAND).enumerate().for_each(|(band, sums)| {
        math::vectorized(
            #[inline(always)]
            || {
                let mut total = [0.0f32; BAND];
                for row in x.chunks_exact(o) {
                    for (total, &x) in total.iter_mut().zip(&row[band * BAND..band * BAND + sums.len()]) {
                        *total += x;
                    }
                }
                for (sum, total) in sums.iter_mut().zip(total) {
                    *sum += total;
                }
            },
        );
    });
}

/// The definition, in plain loops.
pub mod reference {
    use crate::ops::real::Real;

    /// `y = x weightᵀ + bias`.
    pub fn forward<T: Real>(x_ni: &[T], weight_oi: &[T], bias_o: &[T]) -> Vec<T> {
        let i = weight_oi.len() / bias_o.len();
        let mut y_no = Vec::new();
        for x in x_ni.chunks(i) {
            for (row, &bias) in weight_oi.chunks(i).zip(bias_o) {
                y_no.push(x.iter().zip(row).fold(bias, |sum, (&x, &w)| sum + x * w));
            }
        }
        y_no
    }

    /// `(dx, dweight, dbias)`.
    pub fn backward<T: Real>(dy_no: &[T], x_ni: &[T], weight_oi: &[T], o: usize) -> (Vec<T>, Vec<T>, Vec<T>) {
        let i = weight_oi.len() / o;
        let mut dx = vec![T::ZERO; x_ni.len()];
        let mut dweight = vec![T::ZERO; weight_oi.len()];
        let mut dbias = vec![T::ZERO; o];
        for row in 0..dy_no.len() / o {
            for out in 0..o {
                let dy = dy_no[row * o + out];
                dbias[out] += dy;
                for input in 0..i {
                    dx[row * i + input] += dy * weight_oi[out * i + input];
                    dweight[out * i + input] += dy * x_ni[row * i + input];
                }
            }
        }
        (dx, dweight, dbias)
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

    /// Rows, inputs, outputs; the last have several tasks of rows and a rest.
    const SHAPES: [[usize; 3]; 12] = [
        [1, 1, 1],
        [1, 17, 3],
        [3, 1, 65],
        [17, 15, 1],
        [16, 16, 16],
        [63, 65, 64],
        [65, 64, 129],
        [130, 33, 63],
        [5, 129, 17],
        [2, 64, 1000],
        [300, 5, 129],
        [16_400, 3, 1],
    ];

    struct Case {
        x: Vec<f32>,
        weight: Vec<f32>,
        bias: Vec<f32>,
        residual: Vec<f32>,
        dy: Vec<f32>,
    }

    fn case([n, i, o]: [usize; 3]) -> Case {
        let seed = (n * 1_000_000 + i * 1000 + o) as u64;
        Case {
            x: values(seed, n * i),
            weight: values(seed + 1, o * i),
            bias: values(seed + 2, o),
            residual: values(seed + 3, n * o),
            dy: values(seed + 4, n * o),
        }
    }

    #[test]
    fn reference_gradients_are_finite_differences_and_candles() {
        let [n, i, o] = [4, 3, 5];
        let Case { x, weight, bias, dy, .. } = case([n, i, o]);
        let [x, weight, bias, dy] = [x, weight, bias, dy].map(|values| wide(&values));
        let (dx, dweight, dbias) = reference::backward(&dy, &x, &weight, o);
        assert_gradient(&dx, &x, |x| dot(&reference::forward(x, &weight, &bias), &dy), "dx");
        assert_gradient(&dweight, &weight, |weight| dot(&reference::forward(&x, weight, &bias), &dy), "dweight");
        assert_gradient(&dbias, &bias, |bias| dot(&reference::forward(&x, &weight, bias), &dy), "dbias");

        let (xs, weights) = (Autograd::leaf(&x, &[n, i]), Autograd::leaf(&weight, &[o, i]));
        let biases = Autograd::leaf(&bias, &[o]);
        let y = xs.matmul(&weights.t().unwrap()).unwrap().broadcast_add(&biases).unwrap();
        assert_close(&reference::forward(&x, &weight, &bias), &Autograd::elements(&y), 1e-14, "y");
        let gradients = Autograd::backward(&y, &dy);
        assert_close(&dx, &Autograd::gradient(&gradients, &xs), 1e-14, "dx");
        assert_close(&dweight, &Autograd::gradient(&gradients, &weights), 1e-14, "dweight");
        assert_close(&dbias, &Autograd::gradient(&gradients, &biases), 1e-14, "dbias");
    }

    #[test]
    fn forward_adds_the_definition_to_every_start_with_and_without_bias() {
        on_threads(2, |device| {
            for shape in SHAPES {
                let [n, i, o] = shape;
                let Case { x, weight, bias, residual, .. } = case(shape);
                let kept = values(9, n * o);
                for with_bias in [true, false] {
                    let expected_bias = if with_bias { wide(&bias) } else { vec![0.0; o] };
                    let product = reference::forward(&wide(&x), &wide(&weight), &expected_bias);
                    let starts = [
                        (Start::Zero, vec![f32::NAN; n * o], product.clone()),
                        (Start::Residual(residual.as_slice().into()), vec![f32::NAN; n * o], sum(&residual, &product)),
                        (Start::Kept, kept.clone(), sum(&kept, &product)),
                    ];
                    for (case, (start, mut y, expected)) in starts.into_iter().enumerate() {
                        let (x, weight) = (x.as_slice().into(), weight.as_slice().into());
                        let bias = with_bias.then(|| bias.as_slice().into());
                        forward(device, [n, o, i], y.as_mut_slice().into(), x, weight, bias, start);
                        let what = format!("{shape:?} start {case}, bias: {with_bias}");
                        assert_close(&y, &expected, VALUE_TOLERANCE, what);
                    }
                }
            }
        });
    }

    #[test]
    fn backward_overwrites_or_adds_to_dx_and_adds_to_the_parameters_gradients() {
        on_threads(2, |device| {
            for shape in SHAPES {
                let [n, i, o] = shape;
                let Case { x, weight, dy, .. } = case(shape);
                let (dx, dweight, dbias) = reference::backward(&wide(&dy), &wide(&x), &wide(&weight), o);
                let (old_dx, old_dweight, old_dbias) = (values(6, n * i), values(7, o * i), values(8, o));
                for (with_bias, add_to_dx) in [(true, true), (true, false), (false, true), (false, false)] {
                    let what = format!("{shape:?}, bias: {with_bias}, added: {add_to_dx}");
                    let mut actual_dx = if add_to_dx { old_dx.clone() } else { vec![f32::NAN; n * i] };
                    let (mut actual_dweight, mut actual_dbias) = (old_dweight.clone(), old_dbias.clone());
                    let dbias_window = with_bias.then(|| actual_dbias.as_mut_slice().into());
                    backward(
                        device,
                        [n, o, i],
                        actual_dx.as_mut_slice().into(),
                        add_to_dx,
                        actual_dweight.as_mut_slice().into(),
                        dbias_window,
                        dy.as_slice().into(),
                        x.as_slice().into(),
                        weight.as_slice().into(),
                    );
                    let expected = if add_to_dx { sum(&old_dx, &dx) } else { dx.clone() };
                    assert_close(&actual_dx, &expected, VALUE_TOLERANCE, format!("dx {what}"));
                    let expected = sum(&old_dweight, &dweight);
                    assert_close(&actual_dweight, &expected, GRADIENT_TOLERANCE, format!("dweight {what}"));
                    let expected = if with_bias { sum(&old_dbias, &dbias) } else { wide(&old_dbias) };
                    assert_close(&actual_dbias, &expected, GRADIENT_TOLERANCE, format!("dbias {what}"));
                }
            }
        });
    }

    #[test]
    fn not_a_number_stays_in_its_row_and_visible() {
        let shape = [5, 17, 33];
        let [n, i, o] = shape;
        let Case { mut x, weight, bias, mut residual, .. } = case(shape);
        x[i] = f32::NAN;
        residual[3 * o] = f32::NAN;
        for with_bias in [true, false] {
            let mut y = vec![0.0; n * o];
            let bias = with_bias.then(|| bias.as_slice().into());
            let start = Start::Residual(residual.as_slice().into());
            let (x, weight) = (x.as_slice().into(), weight.as_slice().into());
            forward(&Device::cpu(), [n, o, i], y.as_mut_slice().into(), x, weight, bias, start);
            for (index, y) in y.into_iter().enumerate() {
                assert_eq!(y.is_nan(), index / o == 1 || index == 3 * o, "{index}, bias: {with_bias}");
            }
        }
    }

    #[test]
    fn results_have_the_same_bits_on_any_number_of_threads() {
        for shape in [[65, 64, 129], [300, 5, 129], [700, 96, 200]] {
            let [n, i, o] = shape;
            let Case { x, weight, bias, residual, dy } = case(shape);
            for with_bias in [true, false] {
                assert_bits_do_not_depend_on_threads(|device| {
                    let mut results = Vec::new();
                    let (x, weight) = (x.as_slice().into(), weight.as_slice().into());
                    for start in [Start::Zero, Start::Residual(residual.as_slice().into()), Start::Kept] {
                        let mut y = dy.clone();
                        let bias = with_bias.then(|| bias.as_slice().into());
                        forward(device, [n, o, i], y.as_mut_slice().into(), x, weight, bias, start);
                        results.extend(y);
                    }
                    let (mut dx, mut dweight, mut dbias) = (vec![0.5; n * i], vec![0.0; o * i], vec![0.0; o]);
                    let (dw, db) = (dweight.as_mut_slice().into(), with_bias.then(|| dbias.as_mut_slice().into()));
                    let dx_window = dx.as_mut_slice().into();
                    backward(device, [n, o, i], dx_window, with_bias, dw, db, dy.as_slice().into(), x, weight);
                    [results, dx, dweight, dbias].concat()
                });
            }
        }
    }
}
