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
