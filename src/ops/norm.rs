//! Normalisation over channels: `y (n, c) = (x - mean) rstd factor + bias`, statistics over a row's channels.
//!
//! [`NormKind`] says what is removed: [`NormKind::Layer`] takes mean and (biased) variance, `rstd = 1 / sqrt(variance +
//! eps)`; the RMS kinds leave the mean in, `mean = 0` and `rstd = 1 / sqrt(mean(x²) + eps)`, which is the same formula.
//! The factor is the gain, or one more than it. The bias is optional.
//!
//! Saved: `x` and, per row, mean and rstd. Backward: `dx += …` (the residual stream's gradient already holds what came
//! past the branch), `dgain +=`, `dbias +=`.

use rayon::prelude::*;

use super::{Buffer, View, ViewMut, math, rows_per_task};

/// Per row: mean, then rstd.
pub type NormStats = Buffer<[f32; 2]>;

/// What a normalisation removes, and how its gain counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Mean and variance are removed.
    Layer,
    /// `y = x rstd gain` with `rstd = 1 / sqrt(mean(x²) + eps)`; no mean.
    Rms,
    /// As [`NormKind::Rms`], with the factor `1 + gain`: Gemma.
    RmsOnePlus,
}

/// `y = (x - mean) rstd factor + bias`; fills `stats`.
pub fn forward(
    kind: NormKind,
    y_nc: ViewMut<f32>,
    stats_n: ViewMut<[f32; 2]>,
    x_nc: View<f32>,
    gain_c: View<f32>,
    bias_c: Option<View<f32>>,
    eps: f32,
) {
    match kind {
        NormKind::Layer => forward_of::<true>(y_nc, stats_n, x_nc, gain_c, bias_c, eps, itself),
        NormKind::Rms => forward_of::<false>(y_nc, stats_n, x_nc, gain_c, bias_c, eps, itself),
        NormKind::RmsOnePlus => forward_of::<false>(y_nc, stats_n, x_nc, gain_c, bias_c, eps, one_more),
    }
}

/// `dx += rstd (g - mean(g) - x̂ mean(g x̂))` with `g = dy factor` and `x̂ = (x - mean) rstd`; the RMS kinds have no
/// `mean(g)`. `dgain += Σ dy x̂`, `dbias += Σ dy`.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    kind: NormKind,
    dx_nc: ViewMut<f32>,
    dgain_c: ViewMut<f32>,
    dbias_c: Option<ViewMut<f32>>,
    dy_nc: View<f32>,
    x_nc: View<f32>,
    stats_n: View<[f32; 2]>,
    gain_c: View<f32>,
) {
    match kind {
        NormKind::Layer => add_dx::<true>(dx_nc, dy_nc, x_nc, stats_n, gain_c, itself),
        NormKind::Rms => add_dx::<false>(dx_nc, dy_nc, x_nc, stats_n, gain_c, itself),
        NormKind::RmsOnePlus => add_dx::<false>(dx_nc, dy_nc, x_nc, stats_n, gain_c, one_more),
    }
    add_parameter_gradients(dgain_c, dbias_c, dy_nc, x_nc, stats_n);
}

#[inline(always)]
fn itself(gain: f32) -> f32 {
    gain
}

#[inline(always)]
fn one_more(gain: f32) -> f32 {
    1.0 + gain
}

fn forward_of<const CENTRED: bool>(
    y_nc: ViewMut<f32>,
    stats_n: ViewMut<[f32; 2]>,
    x_nc: View<f32>,
    gain_c: View<f32>,
    bias_c: Option<View<f32>>,
    eps: f32,
    factor: impl Fn(f32) -> f32 + Sync,
) {
    let (gain, bias) = (gain_c.cpu(), bias_c.map(View::cpu));
    let c = gain.len();
    let rows = rows_per_task(c);
    let y = y_nc.cpu().par_chunks_mut(rows * c);
    let stats = stats_n.cpu().par_chunks_mut(rows);
    y.zip(stats).zip(x_nc.cpu().par_chunks(rows * c)).for_each(|((y, stats), x)| {
        math::vectorized(
            #[inline(always)]
            || {
                for ((y, stats), x) in y.chunks_exact_mut(c).zip(stats).zip(x.chunks_exact(c)) {
                    let mean = if CENTRED { math::sum(x, |x| x) / c as f32 } else { 0.0 };
                    let variance = math::sum(x, |x| (x - mean) * (x - mean)) / c as f32;
                    let rstd = 1.0 / (variance + eps).sqrt();
                    *stats = [mean, rstd];
                    let row = y.iter_mut().zip(x).zip(gain);
                    match bias {
                        None => {
                            for ((y, &x), &gain) in row {
                                *y = (x - mean) * rstd * factor(gain);
                            }
                        }
                        Some(bias) => {
                            for (((y, &x), &gain), &bias) in row.zip(bias) {
                                *y = (x - mean) * rstd * factor(gain) + bias;
                            }
                        }
                    }
                }
            },
        );
    });
}

fn add_dx<const CENTRED: bool>(
    dx_nc: ViewMut<f32>,
    dy_nc: View<f32>,
    x_nc: View<f32>,
    stats_n: View<[f32; 2]>,
    gain_c: View<f32>,
    factor: impl Fn(f32) -> f32 + Sync,
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
                    let sum_of_g = if CENTRED { math::sum_pairs(dy, gain, |dy, gain| dy * factor(gain)) } else { 0.0 };
                    let g_mean = sum_of_g / c as f32;
                    let mut lanes = [0.0f32; 16];
                    for (i, ((&dy, &gain), &x)) in dy.iter().zip(gain).zip(x).enumerate() {
                        lanes[i % 16] += dy * factor(gain) * (x - mean);
                    }
                    let gx_mean = math::sum(&lanes, |x| x) * rstd / c as f32;
                    for (((dx, &dy), &gain), &x) in dx.iter_mut().zip(dy).zip(gain).zip(x) {
                        *dx += rstd * (dy * factor(gain) - g_mean - (x - mean) * rstd * gx_mean);
                    }
                }
            },
        );
    });
}

/// Bands of columns, each walking the rows in order: the sums do not depend on the number of threads.
fn add_parameter_gradients(
    dgain_c: ViewMut<f32>,
    dbias_c: Option<ViewMut<f32>>,
    dy_nc: View<f32>,
    x_nc: View<f32>,
    stats_n: View<[f32; 2]>,
) {
    const BAND: usize = 64;
    let (dy, x, stats) = (dy_nc.cpu(), x_nc.cpu(), stats_n.cpu());
    let c = dgain_c.len();
    let add = |band: usize, dgain: &mut [f32], dbias: Option<&mut [f32]>| {
        let columns = band * BAND..band * BAND + dgain.len();
        math::vectorized(
            #[inline(always)]
            || {
                // The bias's sum is computed even if nobody wants it: dy is at hand.
                let (mut gain_sum, mut bias_sum) = ([0.0f32; BAND], [0.0f32; BAND]);
                for ((dy, x), &[mean, rstd]) in dy.chunks_exact(c).zip(x.chunks_exact(c)).zip(stats) {
                    let (dy, x) = (&dy[columns.clone()], &x[columns.clone()]);
                    for (((gain_sum, bias_sum), &dy), &x) in gain_sum.iter_mut().zip(&mut bias_sum).zip(dy).zip(x) {
                        *gain_sum += dy * (x - mean) * rstd;
                        *bias_sum += dy;
                    }
                }
                for (dgain, sum) in dgain.iter_mut().zip(gain_sum) {
                    *dgain += sum;
                }
                for (dbias, sum) in dbias.into_iter().flatten().zip(bias_sum) {
                    *dbias += sum;
                }
            },
        );
    };
    let bands = dgain_c.cpu().par_chunks_mut(BAND).enumerate();
    match dbias_c {
        None => bands.for_each(|(band, dgain)| add(band, dgain, None)),
        Some(dbias) => {
            bands.zip(dbias.cpu().par_chunks_mut(BAND)).for_each(|((band, dgain), dbias)| add(band, dgain, Some(dbias)))
        }
    }
}

/// The definition, in plain loops.
pub mod reference {
    use super::NormKind;
    use crate::ops::real::Real;

    fn stats<T: Real>(kind: NormKind, x: &[T], eps: T) -> (T, T) {
        let c = T::from_usize(x.len());
        let mean = if kind == NormKind::Layer { x.iter().copied().sum::<T>() / c } else { T::ZERO };
        let variance = x.iter().map(|&x| (x - mean) * (x - mean)).sum::<T>() / c;
        (mean, T::ONE / (variance + eps).sqrt())
    }

    fn factors<T: Real>(kind: NormKind, gain_c: &[T]) -> Vec<T> {
        let more = if kind == NormKind::RmsOnePlus { T::ONE } else { T::ZERO };
        gain_c.iter().map(|&gain| more + gain).collect()
    }

    /// `y`.
    pub fn forward<T: Real>(kind: NormKind, x_nc: &[T], gain_c: &[T], bias_c: Option<&[T]>, eps: T) -> Vec<T> {
        let factors = factors(kind, gain_c);
        let mut y = Vec::new();
        for x in x_nc.chunks(gain_c.len()) {
            let (mean, rstd) = stats(kind, x, eps);
            for (i, (&x, &factor)) in x.iter().zip(&factors).enumerate() {
                y.push((x - mean) * rstd * factor + bias_c.map_or(T::ZERO, |bias| bias[i]));
            }
        }
        y
    }

    /// `(dx, dgain, dbias)`.
    pub fn backward<T: Real>(
        kind: NormKind,
        dy_nc: &[T],
        x_nc: &[T],
        gain_c: &[T],
        eps: T,
    ) -> (Vec<T>, Vec<T>, Vec<T>) {
        let c = gain_c.len();
        let factors = factors(kind, gain_c);
        let (mut dx, mut dgain, mut dbias) = (Vec::new(), vec![T::ZERO; c], vec![T::ZERO; c]);
        for (dy, x) in dy_nc.chunks(c).zip(x_nc.chunks(c)) {
            let (mean, rstd) = stats(kind, x, eps);
            let normal: Vec<T> = x.iter().map(|&x| (x - mean) * rstd).collect();
            let g: Vec<T> = dy.iter().zip(&factors).map(|(&dy, &factor)| dy * factor).collect();
            let g_mean =
                if kind == NormKind::Layer { g.iter().copied().sum::<T>() / T::from_usize(c) } else { T::ZERO };
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

    /// Every kind, with and without bias.
    const ALL: [(NormKind, bool); 6] = [
        (NormKind::Layer, true),
        (NormKind::Layer, false),
        (NormKind::Rms, true),
        (NormKind::Rms, false),
        (NormKind::RmsOnePlus, true),
        (NormKind::RmsOnePlus, false),
    ];

    /// Rows and channels; the last have several tasks and a rest.
    const SHAPES: [[usize; 2]; 11] =
        [[1, 1], [3, 1], [1, 2], [17, 15], [5, 16], [64, 17], [63, 63], [130, 65], [300, 129], [1, 1000], [9, 20_000]];

    struct Case {
        kind: NormKind,
        x: Vec<f32>,
        gain: Vec<f32>,
        bias: Option<Vec<f32>>,
        dy: Vec<f32>,
    }

    impl Case {
        /// What the bias is, or is as good as.
        fn bias(&self) -> Vec<f32> {
            self.bias.clone().unwrap_or_else(|| vec![0.0; self.gain.len()])
        }
    }

    /// Factors are around 1, whatever the kind.
    fn case((kind, with_bias): (NormKind, bool), [n, c]: [usize; 2]) -> Case {
        let middle = if kind == NormKind::RmsOnePlus { 0.0 } else { 1.0 };
        let gain = values(2, c).into_iter().map(|x| middle + 0.5 * x).collect();
        Case { kind, x: values(1, n * c), gain, bias: with_bias.then(|| values(3, c)), dy: values(4, n * c) }
    }

    fn run_forward(case: &Case) -> (Vec<f32>, Vec<[f32; 2]>) {
        let mut y = vec![f32::NAN; case.x.len()];
        let mut stats = vec![[f32::NAN; 2]; case.x.len() / case.gain.len()];
        let (gain, bias) = (case.gain.as_slice().into(), case.bias.as_deref().map(View::from));
        let (y_window, stats_window) = (y.as_mut_slice().into(), stats.as_mut_slice().into());
        forward(case.kind, y_window, stats_window, case.x.as_slice().into(), gain, bias, EPS);
        (y, stats)
    }

    /// Adds to `[dx, dgain, dbias]`, to the last if there is a bias.
    fn run_backward(case: &Case, stats: &[[f32; 2]], [dx, dgain, dbias]: &mut [Vec<f32>; 3]) {
        let (dx, dgain) = (dx.as_mut_slice().into(), dgain.as_mut_slice().into());
        let dbias = case.bias.as_ref().map(|_| dbias.as_mut_slice().into());
        let (dy, x) = (case.dy.as_slice().into(), case.x.as_slice().into());
        backward(case.kind, dx, dgain, dbias, dy, x, stats.into(), case.gain.as_slice().into());
    }

    fn expected(case: &Case) -> (Vec<f64>, [Vec<f64>; 3]) {
        let [x, gain, bias, dy] = [&case.x, &case.gain, &case.bias(), &case.dy].map(|values| wide(values));
        let (dx, dgain, dbias) = reference::backward(case.kind, &dy, &x, &gain, EPS.into());
        let dbias = if case.bias.is_some() { dbias } else { vec![0.0; gain.len()] };
        let bias = case.bias.is_some().then_some(bias.as_slice());
        (reference::forward(case.kind, &x, &gain, bias, EPS.into()), [dx, dgain, dbias])
    }

    #[test]
    fn reference_gradients_are_finite_differences_and_candles() {
        let [n, c] = [4, 6];
        for (kind, with_bias) in ALL {
            let case = case((kind, with_bias), [n, c]);
            let [x, gain, bias, dy] = [&case.x, &case.gain, &case.bias(), &case.dy].map(|values| wide(values));
            let forward = |x: &[f64], gain: &[f64], bias: &[f64], eps| {
                reference::forward(kind, x, gain, with_bias.then_some(bias), eps)
            };
            // Large enough to matter.
            let eps = 0.05;
            let (dx, dgain, dbias) = reference::backward(kind, &dy, &x, &gain, eps);
            let loss = |x: &[f64], gain: &[f64], bias: &[f64]| dot(&forward(x, gain, bias, eps), &dy);
            assert_gradient(&dx, &x, |x| loss(x, &gain, &bias), format!("{kind:?} dx"));
            assert_gradient(&dgain, &gain, |gain| loss(&x, gain, &bias), format!("{kind:?} dgain"));
            if with_bias {
                assert_gradient(&dbias, &bias, |bias| loss(&x, &gain, bias), format!("{kind:?} dbias"));
            }

            let (xs, gains) = (Autograd::leaf(&x, &[n, c]), Autograd::leaf(&gain, &[c]));
            let biases = Autograd::leaf(&bias, &[c]);
            let centred = match kind {
                NormKind::Layer => xs.broadcast_sub(&xs.mean_keepdim(1).unwrap()).unwrap(),
                NormKind::Rms | NormKind::RmsOnePlus => xs.as_tensor().clone(),
            };
            let factors =
                if kind == NormKind::RmsOnePlus { (&*gains + 1.0).unwrap() } else { gains.as_tensor().clone() };
            let variance = centred.sqr().unwrap().mean_keepdim(1).unwrap();
            let normal = centred.broadcast_div(&(variance + eps).unwrap().sqrt().unwrap()).unwrap();
            let y = normal.broadcast_mul(&factors).unwrap().broadcast_add(&biases).unwrap();
            assert_close(&forward(&x, &gain, &bias, eps), &Autograd::elements(&y), 1e-13, format!("{kind:?} y"));
            let gradients = Autograd::backward(&y, &dy);
            let leaves = [(&dx, &xs, "dx"), (&dgain, &gains, "dgain"), (&dbias, &biases, "dbias")];
            for (ours, leaf, name) in leaves {
                assert_close(ours, &Autograd::gradient(&gradients, leaf), 1e-13, format!("{kind:?} {name} of candle"));
            }
        }
    }

    #[test]
    fn forward_overwrites_and_backward_adds_the_definition_over_odd_shapes() {
        on_threads(2, |_| {
            for (kind, shape) in ALL.into_iter().flat_map(|kind| SHAPES.map(|shape| (kind, shape))) {
                let [n, c] = shape;
                let case = case(kind, shape);
                let (expected_y, expected) = expected(&case);
                let (y, stats) = run_forward(&case);
                assert_close(&y, &expected_y, VALUE_TOLERANCE, format!("{kind:?} y {shape:?}"));
                let old = [values(5, n * c), values(6, c), values(7, c)];
                let mut gradients = old.clone();
                run_backward(&case, &stats, &mut gradients);
                for (((actual, expected), old), name) in
                    gradients.iter().zip(&expected).zip(&old).zip(["dx", "dgain", "dbias"])
                {
                    let expected = sum(old, expected);
                    assert_close(actual, &expected, GRADIENT_TOLERANCE, format!("{kind:?} {name} {shape:?}"));
                }
            }
        });
    }

    #[test]
    fn rms_kinds_have_no_mean_and_differ_by_the_one() {
        let rms = case((NormKind::Rms, true), [3, 17]);
        let less = rms.gain.iter().map(|gain| gain - 1.0).collect();
        let one_plus = Case { kind: NormKind::RmsOnePlus, gain: less, ..case((NormKind::Rms, true), [3, 17]) };
        let ((y, stats), (same_y, same_stats)) = (run_forward(&rms), run_forward(&one_plus));
        assert!(stats.iter().all(|[mean, _]| *mean == 0.0));
        assert_eq!(stats, same_stats);
        assert_close(&y, &same_y, VALUE_TOLERANCE, "y");
    }

    #[test]
    fn a_constant_row_gives_finite_gradients_and_without_its_mean_the_bias() {
        for (kind, constant) in ALL.into_iter().flat_map(|kind| [0.0, 1.0, -3.25, 1e4, 1e18].map(|x| (kind, x))) {
            let mut case = case(kind, [3, 17]);
            case.x[17..34].fill(constant);
            let (y, stats) = run_forward(&case);
            if case.kind == NormKind::Layer || constant == 0.0 {
                assert_eq!(stats[1], [constant, 1.0 / EPS.sqrt()], "of {constant}");
                assert_eq!(y[17..34], case.bias());
            }
            let mut gradients = [vec![0.0; 51], vec![0.0; 17], vec![0.0; 17]];
            run_backward(&case, &stats, &mut gradients);
            let (expected_y, expected) = expected(&case);
            assert_close(&y, &expected_y, VALUE_TOLERANCE, format!("{kind:?} y with a row of {constant}"));
            for (actual, expected) in gradients.iter().zip(&expected) {
                assert_close(actual, expected, GRADIENT_TOLERANCE, format!("{kind:?}: gradients, a row of {constant}"));
            }
        }
    }

    /// The mean of a constant survives what its square does not; then PyTorch's RMS norm, too, gives zeros.
    #[test]
    fn a_row_whose_squares_overflow_gives_the_bias_and_no_gradient() {
        for kind in ALL {
            let mut case = case(kind, [1, 17]);
            case.x.fill(1e30);
            let (y, stats) = run_forward(&case);
            assert_eq!(y, case.bias());
            let mut gradients = [vec![0.0; 17], vec![0.0; 17], vec![0.0; 17]];
            run_backward(&case, &stats, &mut gradients);
            assert!(gradients.iter().flatten().all(|x| x.is_finite()), "{kind:?}");
            if case.kind != NormKind::Layer {
                assert_eq!(stats, [[0.0, 0.0]]);
                assert_eq!(gradients[..2], [vec![0.0; 17], vec![0.0; 17]]);
            }
        }
    }

    /// At 10,000 the unit in the last place is 1e-3, so that the mean, rounded, shifts a row of unit noise by up to that
    /// much; a variance from the mean of squares would be off by more than itself.
    #[test]
    fn rows_with_a_huge_offset_keep_the_precision_of_their_mean() {
        let mut case = case((NormKind::Layer, true), [5, 768]);
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
        for kind in ALL {
            let mut case = case(kind, [3, 65]);
            case.x[70] = f32::NAN;
            let (y, stats) = run_forward(&case);
            assert!(y[65..130].iter().all(|x| x.is_nan()), "{kind:?}");
            assert!(y[..65].iter().chain(&y[130..]).all(|x| x.is_finite()), "{kind:?}");
            let mut gradients = [vec![0.0; 195], vec![0.0; 65], vec![0.0; 65]];
            run_backward(&case, &stats, &mut gradients);
            assert!(gradients[0][65..130].iter().all(|x| x.is_nan()), "{kind:?}");
            assert!(gradients[0][..65].iter().all(|x| x.is_finite()), "{kind:?}");
            assert!(gradients[1].iter().all(|x| x.is_nan()), "{kind:?}");
        }
    }

    #[test]
    fn results_have_the_same_bits_on_any_number_of_threads() {
        for kind in ALL {
            let case = case(kind, [300, 129]);
            assert_bits_do_not_depend_on_threads(|_| {
                let (y, stats) = run_forward(&case);
                let mut gradients = [vec![0.0; y.len()], vec![0.0; 129], vec![0.0; 129]];
                run_backward(&case, &stats, &mut gradients);
                [y, stats.concat(), gradients.concat()].concat()
            });
        }
    }
}
