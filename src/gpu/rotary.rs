//! Rotary position embedding in place; the twin of `ops/rotary.rs`.

use anyhow::Result;

use super::{Arg, Buffer, Element, Gpu, Grid, ViewMut};
use crate::ops::rotary::{self, Pairing, Shape};

/// Cosines and sines of the angles of all positions, on the device.
pub struct Table {
    cos: Buffer<f32>,
    sin: Buffer<f32>,
    num_pairs: usize,
}

impl Table {
    /// The CPU's table on the device.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(gpu: &Gpu, table: &rotary::Table) -> Result<Self> {
        let (cos, sin) = (gpu.buffer_of(table.cos())?, gpu.buffer_of(table.sin())?);
        Ok(Self { cos, sin, num_pairs: table.num_pairs() })
    }
}

/// Rotates queries and keys.
pub fn forward<T: Element>(gpu: &Gpu, shape: Shape, qkv: ViewMut<T>, table: &Table) {
    rotate(gpu, shape, qkv, table, 1.0);
}

/// Rotates their gradients back.
pub fn backward<T: Element>(gpu: &Gpu, shape: Shape, dqkv: ViewMut<T>, table: &Table) {
    rotate(gpu, shape, dqkv, table, -1.0);
}

fn rotate<T: Element>(gpu: &Gpu, shape: Shape, qkv: ViewMut<T>, table: &Table, direction: f32) {
    let Shape { heads, d, row_len, size, t, first_position, pairing } = shape;
    assert!(size == 2 * table.num_pairs && size <= d && heads * d <= row_len, "sizes of a rotation {shape:?}");
    assert!(qkv.len().is_multiple_of(row_len), "{} elements of a rotation {shape:?}", qkv.len());
    assert!((first_position + t) * table.num_pairs <= table.cos.len(), "positions of a rotation {shape:?}");
    if size == 0 {
        return;
    }
    let n = qkv.len() / row_len;
    let rotated = 2 * n * heads * size * size_of::<T>();
    let mut args = vec![qkv.arg().moving(rotated), table.cos.view().arg(), table.sin.view().arg()];
    let is_interleaved = usize::from(pairing == Pairing::Interleaved);
    let sizes = [n, t, first_position, heads, d, row_len, table.num_pairs, is_interleaved];
    args.extend(sizes.map(|size| Arg::I32(size as i32)));
    args.push(Arg::F32(direction));
    let num_threads = n * heads * table.num_pairs.div_ceil(8);
    gpu.launch(&format!("rotate_{}", T::SUFFIX), Grid::new(num_threads.div_ceil(256), 256), &args);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use half::bf16;

    use super::*;
    use crate::gpu::testing::{check, on_both, rounded, tolerance};
    use crate::ops::rotary::reference;
    use crate::ops::testing::{assert_close, wide};

    fn rotations_are_the_definition<T: Element>() {
        for pairing in [Pairing::Halves, Pairing::Interleaved] {
            for (heads, d, size, t, extra) in [
                (1, 2, 2, 1, 0),
                (3, 12, 12, 5, 12),
                (2, 16, 4, 7, 32),
                (2, 24, 18, 3, 5),
                (5, 64, 64, 9, 128),
                (1, 8, 0, 2, 0),
            ] {
                let row_len = heads * d + extra;
                let shape = Shape { heads, d, row_len, size, t, first_position: 3, pairing };
                let inv_freq: Vec<f32> = (0..size / 2).map(|i| 0.3 / (i + 1) as f32).collect();
                let table = rotary::Table::new(&inv_freq, t + 4, 1.0);
                let (qkv, wide_qkv) = rounded::<T>(1, 2 * t * row_len);
                let Some([turned, turned_back]) = on_both(|gpu| {
                    let table = Table::new(gpu, &table).unwrap();
                    let [mut turned, mut turned_back] = [(); 2].map(|()| gpu.buffer_of(&qkv).unwrap());
                    forward(gpu, shape, turned.view_mut(), &table);
                    backward(gpu, shape, turned_back.view_mut(), &table);
                    [check(gpu, turned.view()), check(gpu, turned_back.view())]
                }) else {
                    return;
                };
                let (cos, sin) = (wide(table.cos()), wide(table.sin()));
                let expected = reference::forward(shape, &wide_qkv, &cos, &sin);
                assert_close(&turned, &expected, tolerance::<T>(), format!("{shape:?}"));
                let expected = reference::backward(shape, &wide_qkv, &cos, &sin);
                assert_close(&turned_back, &expected, tolerance::<T>(), format!("gradient of {shape:?}"));
            }
        }
    }

    #[test]
    fn rotations_are_the_definition_in_f32() {
        rotations_are_the_definition::<f32>();
    }

    #[test]
    fn rotations_are_the_definition_in_bf16() {
        rotations_are_the_definition::<bf16>();
    }
}
