//! Head and loss in one: `logits (n, v) = x (n, c) weight (v, c)ᵀ + bias (v)`, where the bias is optional; the loss per
//! row = `logsumexp(logits) - logits[target]`.
//!
//! The logits are never there as a whole: rows go through in chunks, and backward turns a chunk's logits in place into
//! their gradient `scale (softmax - onehot)`. Forward and backward are one call, because the gradient of a mean is known
//! before the loss is: `dx` is overwritten, `dweight` and `dbias` are added to. A row whose target is [`NO_TARGET`] has
//! loss 0 and no gradient. Nothing is saved.

use rayon::prelude::*;

use super::linear::Start;
use super::{Buffer, Device, View, ViewMut, linear, math};

/// The target of a row that predicts nothing: the last token of a sequence.
pub const NO_TARGET: u32 = u32::MAX;

/// Rows of logits that exist at a time.
pub const CHUNK_ROWS: usize = 512;

/// Memory for one chunk of logits.
pub struct LogitsChunk(Buffer<f32>);

impl LogitsChunk {
    /// Room for as many rows as a chunk has, or fewer if there are never more than `max_rows`.
    pub fn new(max_rows: usize, v: usize) -> Self {
        Self(Buffer::zeros(max_rows.min(CHUNK_ROWS) * v))
    }

    /// Elements that it holds.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The loss of each row; 0 where there is no target.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    device: &Device,
    losses_n: ViewMut<f32>,
    x_nc: View<f32>,
    weight_vc: View<f32>,
    bias_v: Option<View<f32>>,
    targets_n: View<u32>,
    c: usize,
    chunk: &mut LogitsChunk,
) {
    let v = weight_vc.len() / c;
    let targets = targets_n.cpu();
    for (losses, first) in losses_n.cpu().chunks_mut(CHUNK_ROWS).zip((0..).step_by(CHUNK_ROWS)) {
        let n = losses.len();
        let x = x_nc.window(first * c..(first + n) * c);
        let mut logits = chunk.0.view_mut().window(0..n * v);
        linear::forward(device, [n, v, c], logits.reborrow(), x, weight_vc, bias_v, Start::Zero);
        let rows = losses.par_iter_mut().zip(logits.cpu().par_chunks(v)).zip(&targets[first..first + n]);
        rows.for_each(|((loss, logits), &target)| {
            math::vectorized(
                #[inline(always)]
                || {
                    if target == NO_TARGET {
                        *loss = 0.0;
                        return;
                    }
                    let max = math::max(logits);
                    let sum = math::sum(logits, |x| math::exp(x - max));
                    *loss = sum.ln() + (max - logits[target as usize]);
                },
            );
        });
    }
}

/// The loss of each row; `dx = scale dloss/dx`, `dweight += scale dloss/dweight`, `dbias += scale dloss/dbias`, where
/// `loss` is the sum over rows.
#[allow(clippy::too_many_arguments)]
pub fn forward_backward(
    device: &Device,
    losses_n: ViewMut<f32>,
    mut dx_nc: ViewMut<f32>,
    mut dweight_vc: ViewMut<f32>,
    mut dbias_v: Option<ViewMut<f32>>,
    x_nc: View<f32>,
    weight_vc: View<f32>,
    bias_v: Option<View<f32>>,
    targets_n: View<u32>,
    c: usize,
    scale: f32,
    chunk: &mut LogitsChunk,
) {
    let v = weight_vc.len() / c;
    let targets = targets_n.cpu();
    for (losses, first) in losses_n.cpu().chunks_mut(CHUNK_ROWS).zip((0..).step_by(CHUNK_ROWS)) {
        let n = losses.len();
        let range = first * c..(first + n) * c;
        let x = x_nc.window(range.clone());
        let mut logits = chunk.0.view_mut().window(0..n * v);
        linear::forward(device, [n, v, c], logits.reborrow(), x, weight_vc, bias_v, Start::Zero);
        let rows = losses.par_iter_mut().zip(logits.reborrow().cpu().par_chunks_mut(v));
        rows.zip(&targets[first..first + n]).for_each(|((loss, logits), &target)| {
            math::vectorized(
                #[inline(always)]
                || *loss = loss_to_gradient(logits, target, scale),
            );
        });
        let dx = dx_nc.reborrow().window(range);
        let dbias = dbias_v.as_mut().map(ViewMut::reborrow);
        let dlogits = logits.as_view();
        linear::backward(device, [n, v, c], dx, false, dweight_vc.reborrow(), dbias, dlogits, x, weight_vc);
    }
}

/// Turns a row of logits into `scale (softmax - onehot(target))` and returns the loss.
#[inline(always)]
fn loss_to_gradient(logits: &mut [f32], target: u32, scale: f32) -> f32 {
    if target == NO_TARGET {
        logits.fill(0.0);
        return 0.0;
    }
    let max = math::max(logits);
    let target_logit = logits[target as usize];
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = logits.as_chunks_mut::<16>();
    for block in chunks.chunks_mut(math::BLOCK_CHUNKS) {
        let mut block_lanes = [0.0f32; 16];
        for chunk in block {
            for (lane, x) in block_lanes.iter_mut().zip(chunk) {
                *x = math::exp(*x - max);
                *lane += *x;
            }
        }
        for (lane, sum) in lanes.iter_mut().zip(block_lanes) {
            *lane += sum;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = math::exp(*x - max);
        *lane += *x;
    }
    let sum = math::sum(&lanes, |x| x);
    let factor = scale / sum;
    for x in logits.iter_mut() {
        *x *= factor;
    }
    logits[target as usize] -= scale;
    sum.ln() + (max - target_logit)
}

/// The definition, in plain loops.
pub mod reference {
    use super::NO_TARGET;
    use crate::ops::real::Real;

    /// Losses, and `[dx, dweight, dbias]` of `scale` times their sum.
    pub fn forward_backward<T: Real>(
        x_nc: &[T],
        weight_vc: &[T],
        bias_v: Option<&[T]>,
        targets_n: &[u32],
        c: usize,
        scale: T,
    ) -> (Vec<T>, [Vec<T>; 3]) {
        let mut losses = Vec::new();
        let mut dx = vec![T::ZERO; x_nc.len()];
        let mut dweight = vec![T::ZERO; weight_vc.len()];
        let mut dbias = vec![T::ZERO; weight_vc.len() / c];
        for (row, (x, &target)) in x_nc.chunks(c).zip(targets_n).enumerate() {
            if target == NO_TARGET {
                losses.push(T::ZERO);
                continue;
            }
            let logit = |(id, weight): (usize, &[T])| {
                let bias = bias_v.map_or(T::ZERO, |bias| bias[id]);
                x.iter().zip(weight).map(|(&x, &weight)| x * weight).sum::<T>() + bias
            };
            let logits: Vec<T> = weight_vc.chunks(c).enumerate().map(logit).collect();
            let max = logits.iter().copied().fold(T::NEG_INFINITY, T::max);
            let sum = logits.iter().map(|&x| (x - max).exp()).sum::<T>();
            losses.push(sum.ln() + (max - logits[target as usize]));
            for (id, &logit) in logits.iter().enumerate() {
                let onehot = if id == target as usize { T::ONE } else { T::ZERO };
                let dlogit = scale * ((logit - max).exp() / sum - onehot);
                dbias[id] += dlogit;
                for j in 0..c {
                    dx[row * c + j] += dlogit * weight_vc[id * c + j];
                    dweight[id * c + j] += dlogit * x[j];
                }
            }
        }
        (losses, [dx, dweight, dbias])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ops::testing::{
        Autograd, GRADIENT_TOLERANCE, VALUE_TOLERANCE, assert_bits_do_not_depend_on_threads, assert_close,
        assert_gradient, numbers_below, on_threads, sum, values, wide,
    };

    const SCALE: f32 = 0.375;

    struct Case {
        x: Vec<f32>,
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
        targets: Vec<u32>,
        c: usize,
    }

    /// Rows, vocabulary, channels; every third row predicts nothing. Logits are of the size of a trained model's.
    fn case([n, v, c]: [usize; 3], with_bias: bool) -> Case {
        let x = values(1, n * c).into_iter().map(|x| 8.0 * x).collect();
        let mut targets = numbers_below(v, 3, n);
        targets.iter_mut().skip(2).step_by(3).for_each(|target| *target = NO_TARGET);
        let bias = with_bias.then(|| values(5, v).into_iter().map(|x| 4.0 * x).collect());
        Case { x, weight: values(2, v * c), bias, targets, c }
    }

    /// The definition of losses, and `[dx, dweight, dbias]`.
    fn expected(case: &Case) -> (Vec<f64>, [Vec<f64>; 3]) {
        let Case { x, weight, bias, targets, c } = case;
        let bias = bias.as_deref().map(wide);
        reference::forward_backward(&wide(x), &wide(weight), bias.as_deref(), targets, *c, SCALE.into())
    }

    /// Losses of forward alone, then losses, `dx` and what `dweight` and `dbias` have become (`dbias` stays in a case
    /// without bias).
    fn run(device: &Device, case: &Case, old_dweight: &[f32], old_dbias: &[f32]) -> [Vec<f32>; 5] {
        let Case { x, weight, bias, targets, c } = case;
        let bias = bias.as_deref().map(View::from);
        let (x, weight, targets): (View<f32>, View<f32>, View<u32>) =
            (x.as_slice().into(), weight.as_slice().into(), targets.as_slice().into());
        let mut chunk = LogitsChunk::new(targets.len(), weight.len() / c);
        chunk.0.as_mut_slice().fill(f32::NAN);
        let mut scored = vec![f32::NAN; targets.len()];
        forward(device, scored.as_mut_slice().into(), x, weight, bias, targets, *c, &mut chunk);
        chunk.0.as_mut_slice().fill(f32::NAN);
        let (mut losses, mut dx) = (vec![f32::NAN; targets.len()], vec![f32::NAN; x.len()]);
        let (mut dweight, mut dbias) = (old_dweight.to_vec(), old_dbias.to_vec());
        forward_backward(
            device,
            losses.as_mut_slice().into(),
            dx.as_mut_slice().into(),
            dweight.as_mut_slice().into(),
            bias.map(|_| dbias.as_mut_slice().into()),
            x,
            weight,
            bias,
            targets,
            *c,
            SCALE,
            &mut chunk,
        );
        [scored, losses, dx, dweight, dbias]
    }

    /// Two rows of the given logits, made by a weight of one channel, each with the target.
    fn of_logits(logits: &[f32], target: u32) -> Case {
        Case { x: vec![1.0; 2], weight: logits.to_vec(), bias: None, targets: vec![target; 2], c: 1 }
    }

    #[test]
    fn reference_gradients_are_finite_differences_and_candles() {
        let (n, v) = (5, 7);
        for with_bias in [true, false] {
            let Case { x, weight, bias, targets, c } = case([n, v, 3], with_bias);
            let (x, weight, scale) = (wide(&x), wide(&weight), f64::from(SCALE));
            let bias = bias.map_or_else(|| vec![0.0; v], |bias| wide(&bias));
            let run = |x: &[f64], weight: &[f64], bias: &[f64]| {
                reference::forward_backward(x, weight, with_bias.then_some(bias), &targets, c, scale)
            };
            let (losses, [dx, dweight, dbias]) = run(&x, &weight, &bias);
            let loss = |x: &[f64], weight: &[f64], bias: &[f64]| scale * run(x, weight, bias).0.iter().sum::<f64>();
            assert_gradient(&dx, &x, |x| loss(x, &weight, &bias), "dx");
            assert_gradient(&dweight, &weight, |weight| loss(&x, weight, &bias), "dweight");
            if with_bias {
                assert_gradient(&dbias, &bias, |bias| loss(&x, &weight, bias), "dbias");
            }

            let (xs, weights) = (Autograd::leaf(&x, &[n, c]), Autograd::leaf(&weight, &[v, c]));
            let biases = Autograd::leaf(&bias, &[v]);
            let logits = xs.matmul(&weights.t().unwrap()).unwrap().broadcast_add(&biases).unwrap();
            let sums = logits.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
            let has_target: Vec<f64> = targets.iter().map(|&target| f64::from(target != NO_TARGET)).collect();
            let index: Vec<u32> = targets.iter().map(|&target| if target == NO_TARGET { 0 } else { target }).collect();
            let index = candle_core::Tensor::from_vec(index, (n, 1), &candle_core::Device::Cpu).unwrap();
            let rows = (sums - logits.gather(&index, 1).unwrap()).unwrap();
            let rows = (rows * Autograd::constant(&has_target, &[n, 1])).unwrap();
            assert_close(&losses, &Autograd::elements(&rows), 1e-13, "losses of candle");
            let gradients = Autograd::backward(&rows, &[scale; 5]);
            assert_close(&dx, &Autograd::gradient(&gradients, &xs), 1e-13, "dx of candle");
            assert_close(&dweight, &Autograd::gradient(&gradients, &weights), 1e-13, "dweight of candle");
            assert_close(&dbias, &Autograd::gradient(&gradients, &biases), 1e-13, "dbias of candle");
        }
    }

    #[test]
    fn fast_code_gives_the_definition_over_odd_shapes_and_several_chunks() {
        let shapes = [
            [1, 1, 1],
            [3, 1, 17],
            [1, 2, 3],
            [2, 2, 1],
            [17, 15, 16],
            [16, 17, 65],
            [65, 64, 63],
            [130, 1000, 16],
            [CHUNK_ROWS, 17, 5],
            [CHUNK_ROWS + 1, 1000, 15],
            [2 * CHUNK_ROWS + 76, 65, 3],
        ];
        for (threads, with_bias) in [(1, true), (1, false), (3, true), (3, false)] {
            on_threads(threads, |device| {
                for shape in shapes {
                    let case = case(shape, with_bias);
                    let what = format!("{shape:?}, bias: {with_bias}");
                    let (old_dweight, old_dbias) = (values(4, case.weight.len()), values(6, shape[1]));
                    let [scored, losses, dx, dweight, dbias] = run(device, &case, &old_dweight, &old_dbias);
                    let (expected_losses, [expected_dx, expected_dweight, expected_dbias]) = expected(&case);
                    assert_close(&scored, &expected_losses, VALUE_TOLERANCE, format!("losses alone {what}"));
                    assert_close(&losses, &expected_losses, VALUE_TOLERANCE, format!("losses {what}"));
                    assert_close(&dx, &expected_dx, GRADIENT_TOLERANCE, format!("dx {what}"));
                    let expected = sum(&old_dweight, &expected_dweight);
                    assert_close(&dweight, &expected, GRADIENT_TOLERANCE, format!("dweight {what}"));
                    let expected = if with_bias { sum(&old_dbias, &expected_dbias) } else { wide(&old_dbias) };
                    assert_close(&dbias, &expected, GRADIENT_TOLERANCE, format!("dbias {what}"));
                }
            });
        }
    }

    #[test]
    fn rows_without_target_have_neither_loss_nor_gradient() {
        on_threads(1, |device| {
            let mut case = case([5, 17, 3], true);
            case.targets.fill(NO_TARGET);
            let (old_dweight, old_dbias) = (values(4, 51), values(6, 17));
            let [scored, losses, dx, dweight, dbias] = run(device, &case, &old_dweight, &old_dbias);
            assert_eq!((scored, losses, dx), (vec![0.0; 5], vec![0.0; 5], vec![0.0; 15]));
            assert_eq!((dweight, dbias), (old_dweight, old_dbias));
        });
    }

    /// A common offset of all logits must not cost digits of a small loss: trained models have offsets around -100.
    #[test]
    fn an_offset_of_all_logits_does_not_cost_precision() {
        on_threads(1, |device| {
            for offset in [0.0, -128.0, 8192.0] {
                let logits: Vec<f32> = [1.0, -6.0, -7.5, -9.0].iter().map(|logit| offset + logit).collect();
                let exact = (1.0 + f64::exp(-7.0) + f64::exp(-8.5) + f64::exp(-10.0)).ln();
                let [scored, losses, ..] = run(device, &of_logits(&logits, 0), &[0.0; 4], &[]);
                assert_close(&scored, &[exact; 2], 2e-5, format!("losses alone at {offset}"));
                assert_close(&losses, &[exact; 2], 2e-5, format!("losses at {offset}"));
            }
        });
    }

    #[test]
    fn extreme_logits_give_the_losses_of_the_definition() {
        const INF: f32 = f32::INFINITY;
        on_threads(1, |device| {
            for (logits, target, loss, gradient) in [
                ([1e4, -1e4, 0.0], 0, 0.0, [0.0, 0.0, 0.0]),
                ([1e4, -1e4, 0.0], 1, 2e4, [1.0, -1.0, 0.0]),
                ([-1e4, -1e4, -1e4], 2, 3f32.ln(), [1.0 / 3.0, 1.0 / 3.0, -2.0 / 3.0]),
                ([1e30, -1e30, 0.0], 2, 1e30, [1.0, 0.0, -1.0]),
                ([-INF, 2.0, 2.0], 1, 2f32.ln(), [0.0, -0.5, 0.5]),
                ([-INF, 2.0, -INF], 1, 0.0, [0.0, 0.0, 0.0]),
                ([-INF, 2.0, 2.0], 0, INF, [-1.0, 0.5, 0.5]),
            ] {
                let case = of_logits(&logits, target);
                let [scored, losses, _, dweight, _] = run(device, &case, &[0.0; 3], &[]);
                assert!(
                    (scored[0] - loss).abs() <= 2e-7 * loss || scored[0] == loss,
                    "{logits:?} {target}: {scored:?}"
                );
                assert_eq!(scored, losses);
                let expected: Vec<f32> = gradient.iter().map(|gradient| 2.0 * SCALE * gradient).collect();
                assert_close(&dweight, &expected, 1e-6, format!("{logits:?} {target}"));
            }
        });
    }

    #[test]
    fn not_a_number_among_the_logits_makes_the_loss_not_a_number() {
        on_threads(1, |device| {
            for v in [1, 2, 17, 100] {
                for poisoned in [0, v / 2, v - 1] {
                    for poison in [f32::NAN, f32::INFINITY] {
                        let mut logits = values(1, v);
                        logits[poisoned] = poison;
                        let of_weight = of_logits(&logits, 0);
                        let of_bias = Case { weight: vec![0.0; v], bias: Some(logits), ..of_logits(&[], 0) };
                        for case in [of_weight, of_bias] {
                            let [scored, losses, _, dweight, dbias] = run(device, &case, &vec![0.0; v], &vec![0.0; v]);
                            let what = format!("{poison} of {v}");
                            assert!(scored.iter().chain(&losses).chain(&dweight).all(|x| x.is_nan()), "{what}");
                            assert!(case.bias.is_none() || dbias.iter().all(|x| x.is_nan()), "{what}");
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn results_have_the_same_bits_on_any_number_of_threads() {
        for (shape, with_bias) in [([130, 1000, 16], false), ([CHUNK_ROWS + 1, 400, 65], true)] {
            let case = case(shape, with_bias);
            let (old_dweight, old_dbias) = (values(4, case.weight.len()), values(6, shape[1]));
            assert_bits_do_not_depend_on_threads(|device| run(device, &case, &old_dweight, &old_dbias).concat());
        }
    }
}
