//! Layer normalisation over channels: `y (n, c) = (x - mean) rstd gain + bias`, mean and variance over a row's channels,
//! `rstd = 1 / sqrt(variance + eps)` with the biased variance.
//!
//! Saved: `x` and, per row, mean and rstd. Backward: `dx += …` (the residual stream's gradient already holds what came
//! past the branch), `dgain +=`, `dbias +=`.

use rayon::prelude::*;

use super::{Buffer, View, ViewMut, math, rows_per_task};

/// Per row: mean, then rstd.
pub type NormStats = Buffer<[f32; 2]>;

/// `y = (x - mean) rstd gain + bias`; fills `stats`.
pub fn forward(
    y_nc: ViewMut<f32>,
    stats_n: ViewMut<[f32; 2]>,
    x_nc: View<f32>,
    gain_c: View<f32>,
    bias_c: View<f32>,
    eps: f32,
) {
    let (gain, bias) = (gain_c.cpu(), bias_c.cpu());
    let c = gain.len();
    let rows = rows_per_task(c);
    let y = y_nc.cpu().par_chunks_mut(rows * c);
    let stats = stats_n.cpu().par_chunks_mut(rows);
    y.zip(stats).zip(x_nc.cpu().par_chunks(rows * c)).for_each(|((y, stats), x)| {
        math::vectorized(
            #[inline(always)]
            || {
                for ((y, stats), x) in y.chunks_exact_mut(c).zip(stats).zip(x.chunks_exact(c)) {
                    let mean = math::sum(x, |x| x) / c as f32;
                    let variance = math::sum(x, |x| (x - mean) * (x - mean)) / c as f32;
                    let rstd = 1.0 / (variance + eps).sqrt();
                    *stats = [mean, rstd];
                    for (((y, &x), &gain), &bias) in y.iter_mut().zip(x).zip(gain).zip(bias) {
                        *y = (x - mean) * rstd * gain + bias;
                    }
                }
            },
        );
    });
}

/// `dx += rstd (g - mean(g) - x̂ mean(g x̂))` with `g = dy gain` and `x̂ = (x - mean) rstd`; `dgain += Σ dy x̂`, `dbias += Σ dy`.
pub fn backward(
    dx_nc: ViewMut<f32>,
    dgain_c: ViewMut<f32>,
    dbias_c: ViewMut<f32>,
    dy_nc: View<f32>,
    x_nc: View<f32>,
    stats_n: View<[f32; 2]>,
    gain_c: View<f32>,
) {
    let (gain, dy, x, stats) = (gain_c.cpu(), dy_nc.cpu(), x_nc.cpu(), stats_n.cpu());
    let c = gain.len();
    let rows = rows_per_task(c);
    let tasks = dx_nc.cpu().par_chunks_mut(rows * c).zip(dy.par_chunks(rows * c)).zip(x.par_chunks(rows * c));
    tasks.zip(stats.par_chunks(rows)).for_each(|(((dx, dy), x), stats)| {
        math::vectorized(
            #[inline(always)]
            || {
                let rows = dx.chunks_exact_mut(c).zip(dy.chunks_exact(c)).zip(x.chunks_exact(c)).zip(stats);
                for (((dx, dy), x), &[mean, rstd]) in rows {
                    let g_mean = math::sum_pairs(dy, gain, |dy, gain| dy * gain) / c as f32;
                    let mut lanes = [0.0f32; 16];
                    for (i, ((&dy, &gain), &x)) in dy.iter().zip(gain).zip(x).enumerate() {
                        lanes[i % 16] += dy * gain * (x - mean);
                    }
                    let gx_mean = math::sum(&lanes, |x| x) * rstd / c as f32;
                    for (((dx, &dy), &gain), &x) in dx.iter_mut().zip(dy).zip(gain).zip(x) {
                        *dx += rstd * (dy * gain - g_mean - (x - mean) * rstd * gx_mean);
                    }
                }
            },
        );
    });
    // Bands of columns, each walking the rows in order: the sums do not depend on the number of threads.
    const BAND: usize = 64;
    let bands = dgain_c.cpu().par_chunks_mut(BAND).zip(dbias_c.cpu().par_chunks_mut(BAND)).enumerate();
    bands.for_each(|(band, (dgain, dbias))| {
        let columns = band * BAND..band * BAND + dgain.len();
        math::vectorized(
            #[inline(always)]
            || {
                let (mut gain_sum, mut bias_sum) = ([0.0f32; BAND], [0.0f32; BAND]);
                for ((dy, x), &[mean, rstd]) in dy.chunks_exact(c).zip(x.chunks_exact(c)).zip(stats) {
                    let (dy, x) = (&dy[columns.clone()], &x[columns.clone()]);
                    for (((gain_sum, bias_sum), &dy), &x) in gain_sum.iter_mut().zip(&mut bias_sum).zip(dy).zip(x) {
                        *gain_sum += dy * (x - mean) * rstd;
                        *bias_sum += dy;
                    }
                }
                for ((dgain, dbias), (gain_sum, bias_sum)) in
                    dgain.iter_mut().zip(dbias).zip(gain_sum.iter().zip(bias_sum))
                {
                    *dgain += gain_sum;
                    *dbias += bias_sum;
                }
            },
        );
    });
}

/// The definition, in plain loops.
pub mod reference {
    use crate::ops::real::Real;

    fn stats<T: Real>(x: &[T], eps: T) -> (T, T) {
        let c = T::from_usize(x.len());
        let mean = x.iter().copied().sum::<T>() / c;
        let variance = x.iter().map(|&x| (x - mean) * (x - mean)).sum::<T>() / c;
        (mean, T::ONE / (variance + eps).sqrt())
    }

    /// `y`.
    pub fn forward<T: Real>(x_nc: &[T], gain_c: &[T], bias_c: &[T], eps: T) -> Vec<T> {
        let mut y = Vec::new();
        for x in x_nc.chunks(gain_c.len()) {
            let (mean, rstd) = stats(x, eps);
            y.extend(x.iter().zip(gain_c).zip(bias_c).map(|((&x, &gain), &bias)| (x - mean) * rstd * gain + bias));
        }
        y
    }

    /// `(dx, dgain, dbias)`.
    pub fn backward<T: Real>(dy_nc: &[T], x_nc: &[T], gain_c: &[T], eps: T) -> (Vec<T>, Vec<T>, Vec<T>) {
        let c = gain_c.len();
        let (mut dx, mut dgain, mut dbias) = (Vec::new(), vec![T::ZERO; c], vec![T::ZERO; c]);
        for (dy, x) in dy_nc.chunks(c).zip(x_nc.chunks(c)) {
            let (mean, rstd) = stats(x, eps);
            let normal: Vec<T> = x.iter().map(|&x| (x - mean) * rstd).collect();
            let g: Vec<T> = dy.iter().zip(gain_c).map(|(&dy, &gain)| dy * gain).collect();
            let g_mean = g.iter().copied().sum::<T>() / T::from_usize(c);
            let gx_mean = g.iter().zip(&normal).map(|(&g, &x)| g * x).sum::<T>() / T::from_usize(c);
            for i in 0..c {
                dx.push(rstd * (g[i] - g_mean - normal[i] * gx_mean));
                dgain[i] += dy[i] * normal[i];
                dbias[i] += dy[i];
            }
        }
        (dx, dgain, dbias)
    }
}
