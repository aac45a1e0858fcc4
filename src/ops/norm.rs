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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ops::testing::{
        Autograd, GRADIENT_TOLERANCE, VALUE_TOLERANCE, assert_bits_do_not_depend_on_threads, assert_close,
        assert_gradient, dot, on_threads, relative_error, sum, values, wide,
    };

    const EPS: f32 = 1e-5;

    /// Rows and channels; the last have several tasks and a rest.
    const SHAPES: [[usize; 2]; 11] =
        [[1, 1], [3, 1], [1, 2], [17, 15], [5, 16], [64, 17], [63, 63], [130, 65], [300, 129], [1, 1000], [9, 20_000]];

    struct Case {
        x: Vec<f32>,
        gain: Vec<f32>,
        bias: Vec<f32>,
        dy: Vec<f32>,
    }

    fn case([n, c]: [usize; 2]) -> Case {
        let gain = values(2, c).into_iter().map(|x| 1.0 + 0.5 * x).collect();
        Case { x: values(1, n * c), gain, bias: values(3, c), dy: values(4, n * c) }
    }

    fn run_forward(case: &Case) -> (Vec<f32>, Vec<[f32; 2]>) {
        let mut y = vec![f32::NAN; case.x.len()];
        let mut stats = vec![[f32::NAN; 2]; case.x.len() / case.gain.len()];
        let (gain, bias) = (case.gain.as_slice().into(), case.bias.as_slice().into());
        forward(y.as_mut_slice().into(), stats.as_mut_slice().into(), case.x.as_slice().into(), gain, bias, EPS);
        (y, stats)
    }

    /// Adds to `[dx, dgain, dbias]`.
    fn run_backward(case: &Case, stats: &[[f32; 2]], [dx, dgain, dbias]: &mut [Vec<f32>; 3]) {
        let (dgain, dbias) = (dgain.as_mut_slice().into(), dbias.as_mut_slice().into());
        let (dy, x) = (case.dy.as_slice().into(), case.x.as_slice().into());
        backward(dx.as_mut_slice().into(), dgain, dbias, dy, x, stats.into(), case.gain.as_slice().into());
    }

    fn expected(case: &Case) -> (Vec<f64>, [Vec<f64>; 3]) {
        let [x, gain, bias, dy] = [&case.x, &case.gain, &case.bias, &case.dy].map(|values| wide(values));
        let (dx, dgain, dbias) = reference::backward(&dy, &x, &gain, EPS.into());
        (reference::forward(&x, &gain, &bias, EPS.into()), [dx, dgain, dbias])
    }

    #[test]
    fn reference_gradients_are_finite_differences_and_candles() {
        let [n, c] = [4, 6];
        let Case { x, gain, bias, dy } = case([n, c]);
        let [x, gain, bias, dy] = [x, gain, bias, dy].map(|values| wide(&values));
        // Large enough to matter.
        let eps = 0.05;
        let (dx, dgain, dbias) = reference::backward(&dy, &x, &gain, eps);
        let loss = |x: &[f64], gain: &[f64], bias: &[f64]| dot(&reference::forward(x, gain, bias, eps), &dy);
        assert_gradient(&dx, &x, |x| loss(x, &gain, &bias), "dx");
        assert_gradient(&dgain, &gain, |gain| loss(&x, gain, &bias), "dgain");
        assert_gradient(&dbias, &bias, |bias| loss(&x, &gain, bias), "dbias");

        let (xs, gains) = (Autograd::leaf(&x, &[n, c]), Autograd::leaf(&gain, &[c]));
        let biases = Autograd::leaf(&bias, &[c]);
        let centred = xs.broadcast_sub(&xs.mean_keepdim(1).unwrap()).unwrap();
        let variance = centred.sqr().unwrap().mean_keepdim(1).unwrap();
        let normal = centred.broadcast_div(&(variance + eps).unwrap().sqrt().unwrap()).unwrap();
        let y = normal.broadcast_mul(&gains).unwrap().broadcast_add(&biases).unwrap();
        assert_close(&reference::forward(&x, &gain, &bias, eps), &Autograd::elements(&y), 1e-13, "y");
        let gradients = Autograd::backward(&y, &dy);
        assert_close(&dx, &Autograd::gradient(&gradients, &xs), 1e-13, "dx of candle");
        assert_close(&dgain, &Autograd::gradient(&gradients, &gains), 1e-13, "dgain of candle");
        assert_close(&dbias, &Autograd::gradient(&gradients, &biases), 1e-13, "dbias of candle");
    }

    #[test]
    fn forward_overwrites_and_backward_adds_the_definition_over_odd_shapes() {
        on_threads(2, |_| {
            for shape in SHAPES {
                let [n, c] = shape;
                let case = case(shape);
                let (expected_y, expected) = expected(&case);
                let (y, stats) = run_forward(&case);
                assert_close(&y, &expected_y, VALUE_TOLERANCE, format!("y {shape:?}"));
                let old = [values(5, n * c), values(6, c), values(7, c)];
                let mut gradients = old.clone();
                run_backward(&case, &stats, &mut gradients);
                for (((actual, expected), old), name) in
                    gradients.iter().zip(&expected).zip(&old).zip(["dx", "dgain", "dbias"])
                {
                    assert_close(actual, &sum(old, expected), GRADIENT_TOLERANCE, format!("{name} {shape:?}"));
                }
            }
        });
    }

    #[test]
    fn a_constant_row_gives_the_bias_and_finite_gradients() {
        for constant in [0.0, 1.0, -3.25, 1e4, 1e30] {
            let mut case = case([3, 17]);
            case.x[17..34].fill(constant);
            let (y, stats) = run_forward(&case);
            assert_eq!(stats[1], [constant, 1.0 / EPS.sqrt()], "of {constant}");
            assert_eq!(y[17..34], case.bias);
            let mut gradients = [vec![0.0; 51], vec![0.0; 17], vec![0.0; 17]];
            run_backward(&case, &stats, &mut gradients);
            let (_, expected) = expected(&case);
            for (actual, expected) in gradients.iter().zip(&expected) {
                assert_close(actual, expected, GRADIENT_TOLERANCE, format!("gradients with a row of {constant}"));
            }
        }
    }

    /// At 10,000 the unit in the last place is 1e-3, so that the mean, rounded, shifts a row of unit noise by up to that
    /// much; a variance from the mean of squares would be off by more than itself.
    #[test]
    fn rows_with_a_huge_offset_keep_the_precision_of_their_mean() {
        let mut case = case([5, 768]);
        for x in &mut case.x {
            *x += 1e4;
        }
        let (y, stats) = run_forward(&case);
        let (expected_y, expected) = expected(&case);
        let error = relative_error(&y, &expected_y);
        assert!(error < 1e-3, "{error:e}");
        let mut gradients = [vec![0.0; 5 * 768], vec![0.0; 768], vec![0.0; 768]];
        run_backward(&case, &stats, &mut gradients);
        for (actual, expected) in gradients.iter().zip(&expected) {
            let error = relative_error(actual, expected);
            assert!(error < 1e-3, "{error:e}");
        }
    }

    #[test]
    fn not_a_number_stays_in_its_row_and_visible() {
        let mut case = case([3, 65]);
        case.x[70] = f32::NAN;
        let (y, stats) = run_forward(&case);
        assert!(y[65..130].iter().all(|x| x.is_nan()));
        assert!(y[..65].iter().chain(&y[130..]).all(|x| x.is_finite()));
        let mut gradients = [vec![0.0; 195], vec![0.0; 65], vec![0.0; 65]];
        run_backward(&case, &stats, &mut gradients);
        assert!(gradients[0][65..130].iter().all(|x| x.is_nan()));
        assert!(gradients[0][..65].iter().all(|x| x.is_finite()));
    }

    #[test]
    fn results_have_the_same_bits_on_any_number_of_threads() {
        let case = case([300, 129]);
        assert_bits_do_not_depend_on_threads(|_| {
            let (y, stats) = run_forward(&case);
            let mut gradients = [vec![0.0; y.len()], vec![0.0; 129], vec![0.0; 129]];
            run_backward(&case, &stats, &mut gradients);
            [y, stats.concat(), gradients.concat()].concat()
        });
    }
}
