//! Normalisation with the residual stream's additions fused in; the twin of `ops/norm.rs`.
//!
//! Statistics and the residual stream are f32; `T` is the format of the branches and of `y`. Saved: the sum `x` and, per row,
//! mean and rstd.

use half::bf16;

use super::{Arg, Element, Gpu, Grid, View, ViewMut, column_sums, optional};
use crate::ops::norm::NormKind;

/// Blocks of a backward pass, each of which leaves one partial sum: fixed, so that the bits depend on no card.
const MAX_BLOCKS: usize = 512;

/// Shared memory that every card gives a block.
const SHARED_BYTES: usize = 99 * 1024;
/// The widest rows of a forward pass: one warp keeps one of them.
pub const MAX_WIDTH_FORWARD: usize = SHARED_BYTES / 4 / 8 * 8;
/// The widest rows of a backward pass: a block keeps three sums for each channel, in rounds of all its threads.
pub const MAX_WIDTH_BACKWARD: usize = (SHARED_BYTES - 33 * 4) / 12 / (8 * MAX_THREADS) * (8 * MAX_THREADS);

/// Threads of a block of a backward pass, of which each has eight channels in a round.
const MAX_THREADS: usize = 256;

/// What a forward pass reads and writes.
pub struct Forward<'a, T> {
    /// The result, (n, c).
    pub y: ViewMut<'a, T>,
    /// The result as f32, where it is the next residual stream.
    pub wide: Option<ViewMut<'a, f32>>,
    /// `x` with the branches added, where it is kept.
    pub sum: Option<ViewMut<'a, f32>>,
    /// Mean and rstd of each row, (n, 2).
    pub stats: ViewMut<'a, [f32; 2]>,
    /// The residual stream, (n, c).
    pub x: View<'a, f32>,
    /// What is added to it before.
    pub branches: [Option<View<'a, T>>; 2],
    /// (c).
    pub gain: View<'a, f32>,
    /// (c).
    pub bias: Option<View<'a, f32>>,
}

/// `sum = x + branches`; `y = (sum - mean) rstd factor + bias`.
pub fn forward<T: Element>(gpu: &Gpu, kind: NormKind, eps: f32, io: Forward<T>) {
    let c = io.gain.len();
    let n = io.stats.len();
    let expected = n * c;
    assert_eq!((io.x.len(), io.y.len()), (expected, expected), "sizes of a norm");
    assert!(io.branches.iter().flatten().all(|branch| branch.len() == expected), "sizes of a norm's branches");
    assert!([&io.wide, &io.sum].into_iter().flatten().all(|out| out.len() == expected), "sizes of a norm's outputs");
    let row_bytes = c.next_multiple_of(8) * 4;
    let warps = (48 * 1024 / row_bytes).clamp(1, 8);
    let grid = Grid { shared_bytes: (warps * row_bytes) as u32, ..Grid::new(n.div_ceil(warps), 32 * warps as u32) };
    let [branch1, branch2] = io.branches;
    let args = [
        io.y.arg(),
        super::optional_mut(io.wide),
        super::optional_mut(io.sum),
        io.stats.arg(),
        io.x.arg(),
        optional(branch1),
        optional(branch2),
        io.gain.arg(),
        optional(io.bias),
        Arg::I32(n as i32),
        Arg::I32(c as i32),
        Arg::F32(eps),
        Arg::I32(code(kind)),
    ];
    gpu.launch(&format!("norm_forward_{}", T::SUFFIX), grid, &args);
}

/// What a backward pass reads and writes; `D` is the format of `dy`.
pub struct Backward<'a, D> {
    /// The residual stream's gradient, (n, c).
    pub dx: ViewMut<'a, f32>,
    /// Whether it is added to.
    pub is_added: bool,
    /// The same rounded, as operand of matrix products.
    pub narrow: Option<ViewMut<'a, bf16>>,
    /// Gradients (c) of the biases of layers whose outputs have that gradient: the sum of its rounded rows is added to each.
    pub narrow_sums: [Option<ViewMut<'a, f32>>; 2],
    /// (c), added to.
    pub dgain: ViewMut<'a, f32>,
    /// (c), added to.
    pub dbias: Option<ViewMut<'a, f32>>,
    /// (n, c).
    pub dy: View<'a, D>,
    /// Added to `dy`: the gradient of a branch that begins at the same place.
    pub side: Option<View<'a, bf16>>,
    /// What forward kept.
    pub x: View<'a, f32>,
    /// What forward kept.
    pub stats: View<'a, [f32; 2]>,
    /// (c).
    pub gain: View<'a, f32>,
    /// [`partials_len`] elements.
    pub partials: ViewMut<'a, f32>,
}

/// Elements of scratch that a backward pass over `n` rows needs.
pub fn partials_len(n: usize, c: usize) -> usize {
    n.min(MAX_BLOCKS) * 3 * c
}

/// `dx =` or `+=` the gradient through the norm; `dgain`, `dbias`, `narrow_sums +=`.
pub fn backward<D: Element>(gpu: &Gpu, kind: NormKind, io: Backward<D>) {
    let c = io.gain.len();
    let n = io.stats.len();
    let expected = n * c;
    assert_eq!((io.dx.len(), io.dy.len(), io.x.len()), (expected, expected, expected), "sizes of a norm's gradient");
    assert!(io.narrow.as_ref().is_none_or(|narrow| narrow.len() == expected), "sizes of a norm's gradient");
    assert!(io.side.is_none_or(|side| side.len() == expected), "sizes of a norm's gradient");
    let num_blocks = n.min(MAX_BLOCKS);
    let partials = io.partials.window(0..partials_len(n, c));
    let threads = c.div_ceil(8).next_multiple_of(32).min(MAX_THREADS);
    let sums_bytes = 3 * c.next_multiple_of(8 * threads) * 4;
    let grid = Grid { shared_bytes: (sums_bytes + 33 * 4) as u32, ..Grid::new(num_blocks, threads as u32) };
    let [first, second] = io.narrow_sums;
    let sums_narrow = first.is_some() || second.is_some();
    let args = [
        if io.is_added { io.dx.arg_in_place() } else { io.dx.arg() },
        super::optional_mut(io.narrow),
        partials.arg(),
        io.dy.arg(),
        optional(io.side),
        io.x.arg(),
        io.stats.arg(),
        io.gain.arg(),
        Arg::I32(n as i32),
        Arg::I32(c as i32),
        Arg::I32(code(kind)),
        Arg::I32(io.is_added.into()),
        Arg::I32(sums_narrow.into()),
    ];
    gpu.launch(&format!("norm_backward_{}", D::SUFFIX), grid, &args);
    column_sums::add_partials(gpu, [Some(io.dgain), io.dbias, first], partials.as_view(), c);
    if second.is_some() {
        column_sums::add_partials(gpu, [None, None, second], partials.as_view(), c);
    }
}

fn code(kind: NormKind) -> i32 {
    match kind {
        NormKind::Layer => 0,
        NormKind::Rms => 1,
        NormKind::RmsOnePlus => 2,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gpu::testing::{F32_TOLERANCE, check, on_both, rounded, tolerance};
    use crate::ops::norm::reference;
    use crate::ops::testing::{sum, values, wide};

    const EPS: f32 = 1e-5;
    const KINDS: [(NormKind, bool); 4] =
        [(NormKind::Layer, true), (NormKind::Layer, false), (NormKind::Rms, false), (NormKind::RmsOnePlus, false)];
    /// Rows and channels: one warp and several rounds, aligned and not, more rows than a backward pass has blocks.
    const SHAPES: [[usize; 2]; 8] =
        [[1, 1], [3, 8], [17, 15], [5, 64], [33, 264], [9, 257], [2, 2056], [MAX_BLOCKS + 3, 24]];

    fn forward_is_the_definition<T: Element>() {
        for ((kind, with_bias), [n, c]) in KINDS.into_iter().flat_map(|kind| SHAPES.map(|shape| (kind, shape))) {
            for num_branches in 0..=2 {
                let (x, gain, bias) = (values(1, n * c), values(2, c), values(3, c));
                let branches: Vec<(Vec<T>, Vec<f64>)> = (0..num_branches).map(|i| rounded(4 + i, n * c)).collect();
                let expected_sum = branches.iter().fold(wide(&x), |total, (_, branch)| sum(&total, branch));
                let (wide_gain, wide_bias) = (wide(&gain), wide(&bias));
                let bias_of = with_bias.then_some(wide_bias.as_slice());
                let expected = reference::forward(kind, &expected_sum, &wide_gain, bias_of, EPS.into());
                let Some([y, widened, kept]) = on_both(|gpu| {
                    let mut y = gpu.zeros::<T>(n * c).unwrap();
                    let mut widened = gpu.zeros::<f32>(n * c).unwrap();
                    let mut kept = gpu.zeros::<f32>(n * c).unwrap();
                    let mut stats = gpu.zeros::<[f32; 2]>(n).unwrap();
                    let (x, gain) = (gpu.buffer_of(&x).unwrap(), gpu.buffer_of(&gain).unwrap());
                    let bias = gpu.buffer_of(&bias).unwrap();
                    let on_gpu: Vec<_> = branches.iter().map(|(branch, _)| gpu.buffer_of(branch).unwrap()).collect();
                    let io = Forward {
                        y: y.view_mut(),
                        wide: Some(widened.view_mut()),
                        sum: Some(kept.view_mut()),
                        stats: stats.view_mut(),
                        x: x.view(),
                        branches: [0, 1].map(|i| on_gpu.get(i).map(|branch| branch.view())),
                        gain: gain.view(),
                        bias: with_bias.then(|| bias.view()),
                    };
                    forward(gpu, kind, EPS, io);
                    [check(gpu, y.view()), check(gpu, widened.view()), check(gpu, kept.view())]
                }) else {
                    return;
                };
                let what = format!("{kind:?} {n} x {c}, {num_branches} branches");
                crate::ops::testing::assert_close(&y, &expected, tolerance::<T>(), &what);
                crate::ops::testing::assert_close(&widened, &expected, F32_TOLERANCE, format!("f32 of {what}"));
                crate::ops::testing::assert_close(&kept, &expected_sum, F32_TOLERANCE, format!("sum of {what}"));
            }
        }
    }

    #[test]
    fn forward_is_the_definition_in_f32() {
        forward_is_the_definition::<f32>();
    }

    #[test]
    fn forward_is_the_definition_in_bf16() {
        forward_is_the_definition::<bf16>();
    }

    fn backward_is_the_definition<D: Element>() {
        for ((kind, with_bias), [n, c]) in KINDS.into_iter().flat_map(|kind| SHAPES.map(|shape| (kind, shape))) {
            for (is_added, has_side, wanted) in
                [(true, false, [true; 2]), (false, true, [false, true]), (true, false, [true, false])]
            {
                let (x, gain, (dy, wide_dy)) = (values(1, n * c), values(2, c), rounded::<D>(3, n * c));
                let (side, wide_side) = rounded::<bf16>(7, n * c);
                let wide_dy = if has_side { sum(&wide_dy, &wide_side) } else { wide_dy };
                let (old_dx, old_dgain, old_dbias) = (values(4, n * c), values(5, c), values(6, c));
                let old_sums = [values(8, c), values(9, c)];
                let (dx, dgain, dbias) = reference::backward(kind, &wide_dy, &wide(&x), &wide(&gain), EPS.into());
                let expected_dx = if is_added { sum(&dx, &old_dx) } else { dx };
                let Some([dx, narrow, actual_dgain, actual_dbias, first, second]) = on_both(|gpu| {
                    let (on_gpu, gains) = (gpu.buffer_of(&x).unwrap(), gpu.buffer_of(&gain).unwrap());
                    let (mut y, mut stats) = (gpu.zeros::<f32>(n * c).unwrap(), gpu.zeros::<[f32; 2]>(n).unwrap());
                    let io = Forward {
                        y: y.view_mut(),
                        wide: None,
                        sum: None,
                        stats: stats.view_mut(),
                        x: on_gpu.view(),
                        branches: [None, None],
                        gain: gains.view(),
                        bias: None,
                    };
                    forward(gpu, kind, EPS, io);
                    let mut dx = gpu.buffer_of(&old_dx).unwrap();
                    let mut narrow = gpu.zeros::<bf16>(n * c).unwrap();
                    let (mut dgain, mut dbias) =
                        (gpu.buffer_of(&old_dgain).unwrap(), gpu.buffer_of(&old_dbias).unwrap());
                    let mut partials = gpu.zeros::<f32>(partials_len(n, c)).unwrap();
                    let (dy, side) = (gpu.buffer_of(&dy).unwrap(), gpu.buffer_of(&side).unwrap());
                    let [mut first, mut second] = old_sums.each_ref().map(|old| gpu.buffer_of(old).unwrap());
                    let io = Backward {
                        dx: dx.view_mut(),
                        is_added,
                        narrow: Some(narrow.view_mut()),
                        narrow_sums: [wanted[0].then(|| first.view_mut()), wanted[1].then(|| second.view_mut())],
                        dgain: dgain.view_mut(),
                        dbias: with_bias.then(|| dbias.view_mut()),
                        dy: dy.view(),
                        side: has_side.then(|| side.view()),
                        x: on_gpu.view(),
                        stats: stats.view(),
                        gain: gains.view(),
                        partials: partials.view_mut(),
                    };
                    backward(gpu, kind, io);
                    [
                        check(gpu, dx.view()),
                        check(gpu, narrow.view()),
                        check(gpu, dgain.view()),
                        check(gpu, dbias.view()),
                        check(gpu, first.view()),
                        check(gpu, second.view()),
                    ]
                }) else {
                    return;
                };
                let what = format!("{kind:?} {n} x {c}, added: {is_added}");
                let close = crate::ops::testing::assert_close;
                // A row of one or two channels has a gradient of nearly nothing, made of larger terms.
                if c > 2 {
                    close(&dx, &expected_dx, 3.0 * F32_TOLERANCE, format!("dx of {what}"));
                    close(&narrow, &expected_dx, tolerance::<bf16>(), format!("narrow dx of {what}"));
                }
                close(&actual_dgain, &sum(&dgain, &old_dgain), 3.0 * F32_TOLERANCE, format!("dgain of {what}"));
                let dbias = if with_bias { sum(&dbias, &old_dbias) } else { wide(&old_dbias) };
                close(&actual_dbias, &dbias, 3.0 * F32_TOLERANCE, format!("dbias of {what}"));
                // Of what was rounded, which is off by far more than its sum.
                let sums: Vec<f64> =
                    (0..c).map(|i| narrow.iter().skip(i).step_by(c).map(|&x| f64::from(x)).sum()).collect();
                for ((actual, old), is_wanted) in [&first, &second].into_iter().zip(&old_sums).zip(wanted) {
                    let expected = if is_wanted { sum(&sums, old) } else { wide(old) };
                    close(actual, &expected, 3.0 * F32_TOLERANCE, format!("sums of the rounded gradient of {what}"));
                }
            }
        }
    }

    #[test]
    fn backward_is_the_definition_in_f32() {
        backward_is_the_definition::<f32>();
    }

    #[test]
    fn backward_is_the_definition_in_bf16() {
        backward_is_the_definition::<bf16>();
    }
}
