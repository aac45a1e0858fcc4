//! Head and loss in one, over chunks of rows; the twin of `ops/cross_entropy.rs`.
//!
//! The head's matrix and bias have more rows than the vocabulary, because matrix products like multiples of
//! [`VOCABULARY_MULTIPLE`]: those rows are zero, their logits are never looked at and their gradients are zero.

use super::{Arg, Element, Gpu, Grid, View, ViewMut, column_sums, linear};

/// What the vocabulary is padded to on the device, never outside.
pub const VOCABULARY_MULTIPLE: usize = 128;

/// Rows of logits that exist at a time.
pub const CHUNK_ROWS: usize = 4096;

/// Threads per row.
const THREADS: u32 = 256;

/// The model's head.
#[derive(Clone, Copy)]
pub struct Head<'a, T> {
    /// (padded v, c).
    pub weight: View<'a, T>,
    /// (padded v).
    pub bias: Option<View<'a, T>>,
    /// Tokens that exist.
    pub v: usize,
    /// Channels.
    pub c: usize,
}

impl<T> Head<'_, T> {
    /// Rows of the matrix.
    pub fn padded_v(&self) -> usize {
        self.weight.len() / self.c
    }
}

/// Elements of a chunk of logits for up to `rows` rows.
pub fn logits_len(rows: usize, v: usize) -> usize {
    rows.min(CHUNK_ROWS) * v.next_multiple_of(VOCABULARY_MULTIPLE)
}

/// The loss of each row of x (n, c); 0 where there is no target. The logits are f32 whatever the operands' format; as many rows
/// exist at a time as fit into `logits`.
pub fn forward<T: Element>(
    gpu: &Gpu,
    mut losses: ViewMut<f32>,
    x: View<T>,
    head: Head<T>,
    targets: View<u32>,
    mut logits: ViewMut<f32>,
) {
    let stride = head.padded_v();
    for_chunks(losses.len(), logits.len() / stride, |first, n| {
        let mut logits = logits.reborrow().window(0..n * stride);
        let x = x.window(first * head.c..(first + n) * head.c);
        linear::forward(gpu, [n, stride, head.c], logits.reborrow(), x, head.weight, head.bias);
        let (losses, targets) = (losses.reborrow().window(first..first + n), targets.window(first..first + n));
        let sizes = [Arg::I32(head.v as i32), Arg::I32(stride as i32)];
        let args = [losses.arg(), logits.arg(), targets.arg(), sizes[0], sizes[1]];
        gpu.launch("cross_entropy_forward_f32", grid(n), &args);
    });
}

/// Gradients of the head.
pub struct HeadGradients<'a> {
    /// (padded v, c).
    pub dweight: ViewMut<'a, f32>,
    /// Whether that is added to.
    pub is_added: bool,
    /// (padded v), added to.
    pub dbias: Option<ViewMut<'a, f32>>,
}

/// Elements of scratch for the gradient of a head's bias.
pub fn partials_len(rows: usize, v: usize) -> usize {
    column_sums::partials_len(rows.min(CHUNK_ROWS), v.next_multiple_of(VOCABULARY_MULTIPLE))
}

/// The loss of each row; `dx = scale dloss/dx`, `dweight =` or `+=` and `dbias += scale dloss/d…`, where `loss` is the sum over
/// rows.
#[allow(clippy::too_many_arguments)]
pub fn forward_backward<T: Element>(
    gpu: &Gpu,
    mut losses: ViewMut<f32>,
    mut dx: ViewMut<T>,
    mut gradients: HeadGradients,
    x: View<T>,
    head: Head<T>,
    targets: View<u32>,
    scale: f32,
    mut logits: ViewMut<T>,
    mut partials: ViewMut<f32>,
) {
    let stride = head.padded_v();
    for_chunks(losses.len(), logits.len() / stride, |first, n| {
        let shape = [n, stride, head.c];
        let rows = first * head.c..(first + n) * head.c;
        let mut logits = logits.reborrow().window(0..n * stride);
        let x = x.window(rows.clone());
        linear::forward(gpu, shape, logits.reborrow(), x, head.weight, head.bias);
        let (losses, targets) = (losses.reborrow().window(first..first + n), targets.window(first..first + n));
        let sizes = [Arg::I32(head.v as i32), Arg::I32(stride as i32), Arg::F32(scale)];
        let args = [losses.arg(), logits.arg_in_place(), targets.arg(), sizes[0], sizes[1], sizes[2]];
        gpu.launch(&format!("cross_entropy_backward_{}", T::SUFFIX), grid(n), &args);
        let dlogits = logits.as_view();
        linear::backward_input(gpu, shape, dx.reborrow().window(rows), false, dlogits, head.weight);
        let is_added = gradients.is_added || first > 0;
        linear::backward_weight(gpu, shape, gradients.dweight.reborrow(), is_added, dlogits, x);
        if let Some(dbias) = &mut gradients.dbias {
            column_sums::add(gpu, dbias.reborrow(), dlogits, partials.reborrow());
        }
    });
}

fn for_chunks(n: usize, chunk_rows: usize, mut work: impl FnMut(usize, usize)) {
    for first in (0..n).step_by(chunk_rows) {
        work(first, chunk_rows.min(n - first));
    }
}

fn grid(n: usize) -> Grid {
    Grid { shared_bytes: 33 * 4, ..Grid::new(n, THREADS) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use half::bf16;

    use super::*;
    use crate::gpu::testing::{F32_TOLERANCE, check, on_both, rounded, tolerance};
    use crate::ops::cross_entropy::{NO_TARGET, reference};
    use crate::ops::testing::{assert_close, numbers_below, sum, values};

    const SCALE: f32 = 0.375;

    /// `numbers` as rows of a padded matrix.
    fn padded<T: Element>(numbers: &[T], v: usize) -> Vec<T> {
        let mut padded = numbers.to_vec();
        padded.resize(numbers.len() / v * v.next_multiple_of(VOCABULARY_MULTIPLE), T::from_f32(0.0));
        padded
    }

    fn losses_and_gradients_are_the_definition<T: Element>() {
        for ([n, v, c], with_bias, is_added) in [
            ([1, 1, 1], true, true),
            ([5, 17, 16], false, false),
            ([33, 320, 24], true, false),
            ([7, 3001, 8], false, true),
            ([CHUNK_ROWS + 2, 40, 8], true, false),
            ([CHUNK_ROWS + 1, 3, 8], false, true),
        ] {
            let ((weight, wide_weight), (bias, wide_bias)) = (rounded::<T>(2, v * c), rounded::<T>(3, v));
            let (x, wide_x) = rounded::<T>(1, n * c);
            let mut targets = numbers_below(v, 4, n);
            targets.iter_mut().skip(2).step_by(3).for_each(|target| *target = NO_TARGET);
            let (old_dweight, old_dbias) = (values(5, v * c), values(6, v));
            let padded_v = v.next_multiple_of(VOCABULARY_MULTIPLE);
            let first_dweight = if is_added { padded(&old_dweight, v) } else { vec![f32::NAN; padded_v * c] };
            let Some([scored, losses, dx, dweight, dbias]) = on_both(|gpu| {
                let weight = gpu.buffer_of(&[padded(&weight, v)].concat()).unwrap();
                let mut tall = bias.clone();
                tall.resize(padded_v, T::from_f32(0.0));
                let bias = gpu.buffer_of(&tall).unwrap();
                let (x, targets) = (gpu.buffer_of(&x).unwrap(), gpu.buffer_of(&targets).unwrap());
                let head = Head { weight: weight.view(), bias: with_bias.then(|| bias.view()), v, c };
                let [mut scored, mut losses] = [(); 2].map(|()| gpu.zeros::<f32>(n).unwrap());
                let mut wide_logits = gpu.zeros::<f32>(logits_len(n, v)).unwrap();
                forward(gpu, scored.view_mut(), x.view(), head, targets.view(), wide_logits.view_mut());
                let (mut logits, mut dx) = (gpu.zeros::<T>(logits_len(n, v)).unwrap(), gpu.zeros::<T>(n * c).unwrap());
                let mut dweight = gpu.buffer_of(&first_dweight).unwrap();
                let mut tall = old_dbias.clone();
                tall.resize(padded_v, 0.0);
                let mut dbias = gpu.buffer_of(&tall).unwrap();
                let gradients =
                    HeadGradients { dweight: dweight.view_mut(), is_added, dbias: with_bias.then(|| dbias.view_mut()) };
                let mut partials = gpu.zeros(partials_len(n, v)).unwrap();
                let (losses_window, targets, scratch) = (losses.view_mut(), targets.view(), partials.view_mut());
                let (dx_window, logits) = (dx.view_mut(), logits.view_mut());
                forward_backward(
                    gpu,
                    losses_window,
                    dx_window,
                    gradients,
                    x.view(),
                    head,
                    targets,
                    SCALE,
                    logits,
                    scratch,
                );
                let [scored, losses] = [check(gpu, scored.view()), check(gpu, losses.view())];
                [scored, losses, check(gpu, dx.view()), check(gpu, dweight.view()), check(gpu, dbias.view())]
            }) else {
                return;
            };
            let what = format!("{n} rows of {v} from {c}, added: {is_added}");
            let wide_bias = with_bias.then_some(wide_bias.as_slice());
            let (expected, [expected_dx, expected_dweight, expected_dbias]) =
                reference::forward_backward(&wide_x, &wide_weight, wide_bias, &targets, c, SCALE.into());
            assert_close(&scored, &expected, F32_TOLERANCE, format!("losses alone of {what}"));
            assert_close(&losses, &expected, tolerance::<T>(), format!("losses of {what}"));
            // The logits are rounded, and once more as gradients.
            let twice = 2.5 * tolerance::<T>();
            if v > 1 {
                assert_close(&dx, &expected_dx, twice, format!("dx of {what}"));
            }
            let (own, padding) = dweight.split_at(v * c);
            assert!(padding.iter().all(|&x| x == 0.0), "padding of dweight of {what}");
            let expected_dweight = if is_added { sum(&expected_dweight, &old_dweight) } else { expected_dweight };
            assert_close(own, &expected_dweight, twice, format!("dweight of {what}"));
            let (own, padding) = dbias.split_at(v);
            assert!(padding.iter().all(|&x| x == 0.0), "padding of dbias of {what}");
            let expected =
                if with_bias { sum(&expected_dbias, &old_dbias) } else { crate::ops::testing::wide(&old_dbias) };
            assert_close(own, &expected, twice, format!("dbias of {what}"));
        }
    }

    #[test]
    fn losses_and_gradients_are_the_definition_in_f32() {
        losses_and_gradients_are_the_definition::<f32>();
    }

    #[test]
    fn losses_and_gradients_are_the_definition_in_bf16() {
        losses_and_gradients_are_the_definition::<bf16>();
    }

    #[test]
    fn extreme_logits_give_the_losses_of_the_definition() {
        const INF: f32 = f32::INFINITY;
        for (logits, target, loss) in [
            ([1e4, -1e4, 0.0], 0, 0.0),
            ([1e4, -1e4, 0.0], 1, 2e4),
            ([-1e4, -1e4, -1e4], 2, 3f32.ln()),
            ([1e30, -1e30, 0.0], 2, 1e30),
            ([-INF, 2.0, 2.0], 1, 2f32.ln()),
            ([-INF, 2.0, 2.0], 0, INF),
            ([INF, 2.0, 2.0], 1, f32::NAN),
            ([2.0, f32::NAN, 2.0], 0, f32::NAN),
        ] {
            // Behind so many logits of probability zero, which are all that a thread sees before it comes to the others.
            for before in [0, 8 * THREADS as usize] {
                let (v, padded_v) = (before + 3, (before + 3).next_multiple_of(VOCABULARY_MULTIPLE));
                let Some([losses]) = on_both(|gpu| {
                    // Of the bias, since an infinite weight is no number times the others' zero.
                    let mut bias = [vec![-INF; before], logits.to_vec()].concat();
                    bias.resize(padded_v, 0.0);
                    let bias = gpu.buffer_of(&bias).unwrap();
                    let (weight, x) = (gpu.zeros(padded_v).unwrap(), gpu.zeros::<f32>(1).unwrap());
                    let head = Head { weight: weight.view(), bias: Some(bias.view()), v, c: 1 };
                    let (mut losses, targets) =
                        (gpu.zeros(1).unwrap(), gpu.buffer_of(&[before as u32 + target]).unwrap());
                    let mut scratch = gpu.zeros(logits_len(1, v)).unwrap();
                    forward(gpu, losses.view_mut(), x.view(), head, targets.view(), scratch.view_mut());
                    [check(gpu, losses.view())]
                }) else {
                    return;
                };
                let (actual, what) = (losses[0], format!("{before}, then {logits:?} {target}: {}", losses[0]));
                assert!(
                    (actual - loss).abs() <= 2e-7 * loss || actual == loss || actual.is_nan() && loss.is_nan(),
                    "{what}"
                );
            }
        }
    }
}
