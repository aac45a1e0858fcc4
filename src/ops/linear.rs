//! The linear layer `y (n, o) = x (n, i) weight (o, i)ᵀ + bias (o)`.
//!
//! Forward can add to what `y` holds, for a residual branch: then `y += x weightᵀ` after the caller put the residual
//! there. Backward: `dx = dy weight` (overwritten), `dweight += dyᵀ x`, `dbias += column sums of dy`. Saved: `x`.

use rayon::prelude::*;

use super::matmul::{Order, matmul};
use super::{Device, View, ViewMut, math, rows_per_task};

/// `y = residual + bias + x weightᵀ`; without a residual `y = bias + x weightᵀ`.
pub fn forward(
    device: &Device,
    mut y_no: ViewMut<f32>,
    x_ni: View<f32>,
    weight_oi: View<f32>,
    bias_o: View<f32>,
    residual_no: Option<View<f32>>,
) {
    let o = bias_o.len();
    let (n, i) = (y_no.len() / o, weight_oi.len() / o);
    // The bias is put where the product accumulates: one walk over y less than adding it afterwards.
    fill_rows(y_no.reborrow(), bias_o, residual_no);
    matmul(device, [n, o, i], 1.0, (x_ni, Order::N), (weight_oi, Order::T), 1.0, y_no);
}

/// `y = x weightᵀ`, nothing else: for an operation that adds the bias itself.
pub fn forward_without_bias(
    device: &Device,
    [n, o, i]: [usize; 3],
    y_no: ViewMut<f32>,
    x_ni: View<f32>,
    w_oi: View<f32>,
) {
    matmul(device, [n, o, i], 1.0, (x_ni, Order::N), (w_oi, Order::T), 0.0, y_no);
}

/// `dx = dy weight`, `dweight += dyᵀ x`, `dbias += Σ dy`.
pub fn backward(
    device: &Device,
    dx_ni: ViewMut<f32>,
    dweight_oi: ViewMut<f32>,
    dbias_o: ViewMut<f32>,
    dy_no: View<f32>,
    x_ni: View<f32>,
    weight_oi: View<f32>,
) {
    backward_without_bias(device, dbias_o.len(), dx_ni, dweight_oi, dy_no, x_ni, weight_oi);
    add_column_sums(dbias_o, dy_no);
}

/// `dx = dy weight`, `dweight += dyᵀ x`, for `o` outputs.
pub fn backward_without_bias(
    device: &Device,
    o: usize,
    dx_ni: ViewMut<f32>,
    dweight_oi: ViewMut<f32>,
    dy_no: View<f32>,
    x_ni: View<f32>,
    weight_oi: View<f32>,
) {
    let (n, i) = (dy_no.len() / o, weight_oi.len() / o);
    matmul(device, [n, i, o], 1.0, (dy_no, Order::N), (weight_oi, Order::N), 0.0, dx_ni);
    matmul(device, [o, i, n], 1.0, (dy_no, Order::T), (x_ni, Order::N), 1.0, dweight_oi);
}

fn fill_rows(y_no: ViewMut<f32>, bias_o: View<f32>, residual_no: Option<View<f32>>) {
    let bias = bias_o.cpu();
    let o = bias.len();
    let rows = rows_per_task(o);
    let y = y_no.cpu().par_chunks_mut(rows * o);
    match residual_no {
        None => y.for_each(|y| y.chunks_exact_mut(o).for_each(|row| row.copy_from_slice(bias))),
        Some(residual) => y.zip(residual.cpu().par_chunks(rows * o)).for_each(|(y, residual)| {
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
    }
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
    fn forward_overwrites_with_the_definition_and_adds_the_residual() {
        on_threads(2, |device| {
            for shape in SHAPES {
                let [n, i, o] = shape;
                let Case { x, weight, bias, residual, .. } = case(shape);
                let product = reference::forward(&wide(&x), &wide(&weight), &wide(&bias));
                let mut y = vec![f32::NAN; n * o];
                let inputs = || (x.as_slice().into(), weight.as_slice().into());
                forward(device, y.as_mut_slice().into(), inputs().0, inputs().1, bias.as_slice().into(), None);
                assert_close(&y, &product, VALUE_TOLERANCE, format!("{shape:?}"));

                let mut y = vec![f32::NAN; n * o];
                let added = Some(residual.as_slice().into());
                forward(device, y.as_mut_slice().into(), inputs().0, inputs().1, bias.as_slice().into(), added);
                assert_close(&y, &sum(&residual, &product), VALUE_TOLERANCE, format!("{shape:?} with residual"));

                let mut y = vec![f32::NAN; n * o];
                forward_without_bias(device, [n, o, i], y.as_mut_slice().into(), inputs().0, inputs().1);
                let product = reference::forward(&wide(&x), &wide(&weight), &vec![0.0; o]);
                assert_close(&y, &product, VALUE_TOLERANCE, format!("{shape:?} without bias"));
            }
        });
    }

    #[test]
    fn backward_overwrites_dx_and_adds_to_the_parameters_gradients() {
        on_threads(2, |device| {
            for shape in SHAPES {
                let [n, i, o] = shape;
                let Case { x, weight, dy, .. } = case(shape);
                let (dx, dweight, dbias) = reference::backward(&wide(&dy), &wide(&x), &wide(&weight), o);
                let (old_dweight, old_dbias) = (values(7, o * i), values(8, o));
                for with_bias in [true, false] {
                    let mut actual_dx = vec![f32::NAN; n * i];
                    let (mut actual_dweight, mut actual_dbias) = (old_dweight.clone(), old_dbias.clone());
                    let dx_window = actual_dx.as_mut_slice().into();
                    let dweight_window = actual_dweight.as_mut_slice().into();
                    let (dy, x, weight) = (dy.as_slice().into(), x.as_slice().into(), weight.as_slice().into());
                    if with_bias {
                        let dbias_window = actual_dbias.as_mut_slice().into();
                        backward(device, dx_window, dweight_window, dbias_window, dy, x, weight);
                        assert_close(
                            &actual_dbias,
                            &sum(&old_dbias, &dbias),
                            GRADIENT_TOLERANCE,
                            format!("dbias {shape:?}"),
                        );
                    } else {
                        backward_without_bias(device, o, dx_window, dweight_window, dy, x, weight);
                    }
                    assert_close(&actual_dx, &dx, VALUE_TOLERANCE, format!("dx {shape:?}"));
                    let expected = sum(&old_dweight, &dweight);
                    assert_close(&actual_dweight, &expected, GRADIENT_TOLERANCE, format!("dweight {shape:?}"));
                }
            }
        });
    }

    #[test]
    fn results_have_the_same_bits_on_any_number_of_threads() {
        for shape in [[65, 64, 129], [300, 5, 129], [700, 96, 200]] {
            let [n, i, o] = shape;
            let Case { x, weight, bias, residual, dy } = case(shape);
            assert_bits_do_not_depend_on_threads(|device| {
                let mut y = vec![0.0; n * o];
                let (x, weight) = (x.as_slice().into(), weight.as_slice().into());
                let (bias, residual) = (bias.as_slice().into(), Some(residual.as_slice().into()));
                forward(device, y.as_mut_slice().into(), x, weight, bias, residual);
                let (mut dx, mut dweight, mut dbias) = (vec![0.0; n * i], vec![0.0; o * i], vec![0.0; o]);
                let (dw, db) = (dweight.as_mut_slice().into(), dbias.as_mut_slice().into());
                backward(device, dx.as_mut_slice().into(), dw, db, dy.as_slice().into(), x, weight);
                [y, dx, dweight, dbias].concat()
            });
        }
    }
}
