//! Attention as in [`crate::ops::attention`], whose [`Shape`] this takes: forward in bf16 and f32, backward in bf16.
//!
//! Head sizes go up to [`MAX_HEAD_SIZE_BF16`] and [`MAX_HEAD_SIZE_F32`]; scales are positive. Nothing is saved but what
//! backward is given: `qkv`, `y` and the log-sum-exp. A sequence of `qkv` has less than 2³¹ elements. There is no dropout.
//! Two runs give the same bits.

use half::bf16;

use super::{Arg, Dtype, Element, Gpu, Grid, View, ViewMut, optional};
use crate::ops::attention::Shape;

/// The largest head that forward and backward take in bf16.
pub const MAX_HEAD_SIZE_BF16: usize = 128;
/// The largest head that forward takes in f32.
pub const MAX_HEAD_SIZE_F32: usize = 256;

/// A kernel's head size, its block and its tiles, as they are in `kernels/attention*.cu`.
struct Tiles {
    /// Channels of a head, of which a smaller head uses the first.
    channels: usize,
    threads: u32,
    /// Rows that a block owns: of queries, or of keys in the gradient of these.
    rows: usize,
    shared_bytes: usize,
}

impl Tiles {
    /// Of the bf16 kernels: `owned` tiles of a block's own rows, and two stages of two tiles that pass by.
    fn bf16(channels: usize, rows: usize, owned: usize, passing: usize, statistics: usize) -> Self {
        let shared_bytes = 2 * channels * (owned * rows + 4 * passing) + 4 * 4 * statistics;
        Self { channels, threads: 128, rows, shared_bytes }
    }

    fn forward_bf16(d: usize) -> Self {
        if d <= 64 { Self::bf16(64, 128, 1, 64, 0) } else { Self::bf16(128, 128, 1, 32, 0) }
    }

    fn dkv(d: usize) -> Self {
        if d <= 64 { Self::bf16(64, 128, 2, 32, 32) } else { Self::bf16(128, 64, 2, 32, 32) }
    }

    /// Tiles that pass by take the place of the block's own.
    fn dq(d: usize) -> Self {
        if d <= 64 { Self::bf16(64, 128, 2, 0, 0) } else { Self::bf16(128, 64, 2, 0, 0) }
    }

    /// Queries, keys or values in their place, and probabilities; rows are padded by four numbers.
    fn forward_f32(d: usize) -> Self {
        let (channels, threads, rows) = match d {
            0..=64 => (64, 256, 64),
            65..=128 => (128, 256, 64),
            _ => (256, 128, 32),
        };
        let shared_bytes = 4 * (2 * rows * (channels + 4) + rows * (rows + 4));
        Self { channels, threads, rows, shared_bytes }
    }

    /// Launches a kernel that computes so many products of all queries and keys, in blocks of so many heads.
    fn launch(&self, gpu: &Gpu, kernel: &str, dtype: Dtype, shape: Shape, [products, heads]: [usize; 2], args: &[Arg]) {
        // All heads of a sequence have their longest blocks first, so that only short ones are left at the end.
        let blocks = [heads, shape.t.div_ceil(self.rows), shape.b].map(|blocks| blocks as u32);
        let grid = Grid { blocks, threads: self.threads, shared_bytes: self.shared_bytes as u32 };
        let name = format!("attention_{kernel}_d{}_{}", self.channels, dtype.suffix());
        gpu.launch_arithmetic(&name, grid, args, (forward_flops(shape) / 2 * products as u64, dtype));
    }
}

/// Asserts what [`crate::ops::attention`] does of sizes, and what kernels need besides.
fn check(shape: Shape, max_d: usize, qkv: usize, y: usize, lse: usize, key_bias_ht: Option<View<f32>>) {
    shape.check(key_bias_ht.map(|bias| bias.len()));
    let n = shape.b * shape.t;
    let expected = (n * shape.qkv_width(), n * shape.y_width(), n * shape.h);
    assert_eq!((qkv, y, lse), expected, "sizes of an attention {shape:?}");
    assert!((1..=max_d).contains(&shape.d), "head size of an attention {shape:?}");
    assert!(shape.scale > 0.0, "scale of an attention {shape:?}");
    assert!(shape.b <= 65_535, "sequences of an attention {shape:?}");
    // Kernels count the elements of a sequence, and of a tile behind its end, in 32 bits.
    assert!((shape.t + 128) * shape.qkv_width() <= i32::MAX as usize, "length of an attention {shape:?}");
}

/// The arguments that all kernels end with, from the biases on.
fn shape_args(shape: Shape, key_bias_ht: Option<View<f32>>) -> [Arg; 9] {
    let int = |value: usize| Arg::I32(value as i32);
    // A window that reaches over the whole sequence is none.
    let window = shape.window.filter(|&window| window < shape.t).unwrap_or(0);
    [
        optional(key_bias_ht),
        int(key_bias_ht.map_or(0, |bias| bias.len() / shape.h)),
        int(shape.t),
        int(shape.h),
        int(shape.kv_heads),
        int(shape.d),
        int(shape.causal.into()),
        int(window),
        Arg::F32(shape.scale),
    ]
}

/// `y` and the log-sum-exp of each row of scores.
pub fn forward<T: Element>(
    gpu: &Gpu,
    shape: Shape,
    y_btc: ViewMut<T>,
    lse_bht: ViewMut<f32>,
    qkv: View<T>,
    key_bias_ht: Option<View<f32>>,
) {
    let (max_d, tiles): (_, fn(usize) -> Tiles) = match T::DTYPE {
        Dtype::Bf16 => (MAX_HEAD_SIZE_BF16, Tiles::forward_bf16),
        Dtype::F32 => (MAX_HEAD_SIZE_F32, Tiles::forward_f32),
    };
    check(shape, max_d, qkv.len(), y_btc.len(), lse_bht.len(), key_bias_ht);
    let mut args = vec![y_btc.arg(), lse_bht.arg(), qkv.arg()];
    args.extend(shape_args(shape, key_bias_ht));
    tiles(shape.d).launch(gpu, "forward", T::DTYPE, shape, [2, shape.h], &args);
}

/// `dqkv` from `dy` and what forward saved; `delta_bht` is memory of (b, h, t) that is overwritten, by
/// minus the inner product of `dy` and `y` for each token and head.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    gpu: &Gpu,
    shape: Shape,
    mut dqkv: ViewMut<bf16>,
    mut delta_bht: ViewMut<f32>,
    dy_btc: View<bf16>,
    qkv: View<bf16>,
    y_btc: View<bf16>,
    lse_bht: View<f32>,
    key_bias_ht: Option<View<f32>>,
) {
    check(shape, MAX_HEAD_SIZE_BF16, qkv.len(), y_btc.len(), lse_bht.len(), key_bias_ht);
    let gradients = (dqkv.len(), dy_btc.len(), delta_bht.len());
    assert_eq!(gradients, (qkv.len(), y_btc.len(), lse_bht.len()), "gradient sizes of an attention {shape:?}");
    let shape_args = shape_args(shape, key_bias_ht);
    // Each writes its own part of `dqkv`.
    let dq_bytes = dy_btc.len() * size_of::<bf16>();
    let dkv_bytes = dqkv.len() * size_of::<bf16>() - dq_bytes;
    let mut args =
        vec![dqkv.reborrow().arg().moving(dq_bytes), delta_bht.reborrow().arg(), dy_btc.arg(), qkv.arg(), y_btc.arg()];
    args.push(lse_bht.arg());
    args.extend(shape_args);
    Tiles::dq(shape.d).launch(gpu, "backward_dq", Dtype::Bf16, shape, [3, shape.h], &args);

    // After that of queries, which makes delta.
    let mut args = vec![dqkv.arg().moving(dkv_bytes), dy_btc.arg(), qkv.arg(), lse_bht.arg(), delta_bht.arg()];
    args.extend(shape_args);
    Tiles::dkv(shape.d).launch(gpu, "backward_dkv", Dtype::Bf16, shape, [4, shape.kv_heads], &args);
}

/// Floating-point operations of [`forward`], by which its speed is told: two products of 2 d for each pair of a query
/// and a key that it sees. Of a causal shape without a window these are counted as half of all pairs, and with one as
/// the pairs of the band, of which the first `window` queries have half of a square.
pub fn forward_flops(shape: Shape) -> u64 {
    let [b, t, h, d] = [shape.b, shape.t, shape.h, shape.d].map(|size| size as u64);
    let window = shape.window.map_or(t, |window| t.min(window as u64));
    // Twice the pairs, which keeps halves whole.
    let pairs = if shape.causal { window * window + 2 * (t - window) * window } else { 2 * t * t };
    2 * b * h * d * pairs
}

/// Those of [`backward`], by which its speed is told: five products where forward has two. The kernels compute seven, for
/// two of them twice.
pub fn backward_flops(shape: Shape) -> u64 {
    forward_flops(shape) / 2 * 5
}

#[cfg(test)]
mod tests;
