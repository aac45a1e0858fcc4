//! Rotary position embedding: in each head, pairs of the first `size` dimensions are rotated, in place, by an angle
//! that grows with the token's position: `(x, y) → (x cos - y sin, y cos + x sin)`.
//!
//! The buffer holds `row_len` elements per token, of which the first `heads · d` are the heads to rotate: queries and
//! keys of an attention's `qkv`, whose values stay as they are. Token `r` has position `first_position + r % t`.
//! Nothing is saved: backward rotates the gradient back, in place.

use rayon::prelude::*;

use super::{Buffer, ViewMut, math, rows_per_task};

/// Which dimensions of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `i` and `i + size / 2` (Llama, NeoX, Falcon, Phi).
    Halves,
    /// `2 i` and `2 i + 1` (GPT-J).
    Interleaved,
}

/// Cosines and sines of the angles of all positions.
pub struct Table {
    /// (positions, size / 2).
    cos: Buffer<f32>,
    /// (positions, size / 2).
    sin: Buffer<f32>,
    num_pairs: usize,
}

impl Table {
    /// The angle of pair `i` at a position is `position / position_scale · inv_freq[i]`, in single precision as
    /// everywhere; its cosine and sine are computed in double precision and rounded.
    pub fn new(inv_freq: &[f32], positions: usize, position_scale: f32) -> Self {
        let num_pairs = inv_freq.len();
        let (mut cos, mut sin) = (Buffer::zeros(positions * num_pairs), Buffer::zeros(positions * num_pairs));
        let elements = cos.as_mut_slice().iter_mut().zip(sin.as_mut_slice());
        for (i, (cos, sin)) in elements.enumerate() {
            let angle = f64::from((i / num_pairs) as f32 / position_scale * inv_freq[i % num_pairs]);
            (*cos, *sin) = (angle.cos() as f32, angle.sin() as f32);
        }
        Self { cos, sin, num_pairs }
    }

    /// Cosines of all positions, (positions, pairs).
    pub(crate) fn cos(&self) -> &[f32] {
        self.cos.as_slice()
    }

    /// Sines of all positions, (positions, pairs).
    pub(crate) fn sin(&self) -> &[f32] {
        self.sin.as_slice()
    }

    /// Pairs that are turned in each head.
    pub(crate) fn num_pairs(&self) -> usize {
        self.num_pairs
    }

    /// Cosines and sines of one position.
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.num_pairs..(position + 1) * self.num_pairs;
        (&self.cos.as_slice()[range.clone()], &self.sin.as_slice()[range])
    }
}

/// Where the heads lie that are rotated, and at which positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Heads to rotate, the first ones of a token.
    pub heads: usize,
    /// Head size.
    pub d: usize,
    /// Elements of a token in the buffer.
    pub row_len: usize,
    /// Dimensions of a head that are rotated, the first ones; an even number.
    pub size: usize,
    /// Tokens per sequence.
    pub t: usize,
    /// Position of the first token of each sequence.
    pub first_position: usize,
    /// Which dimensions are rotated together.
    pub pairing: Pairing,
}

/// Rotates queries and keys.
pub fn forward(shape: Shape, qkv: ViewMut<f32>, table: &Table) {
    rotate(shape, qkv, table, 1.0);
}

/// Rotates their gradients back.
pub fn backward(shape: Shape, dqkv: ViewMut<f32>, table: &Table) {
    rotate(shape, dqkv, table, -1.0);
}

/// Rotates by the table's angles times `direction`, 1 or -1.
fn rotate(shape: Shape, buffer: ViewMut<f32>, table: &Table, direction: f32) {
    let Shape { heads, d, row_len, size, t, first_position, pairing } = shape;
    assert!(size == 2 * table.num_pairs && size <= d && heads * d <= row_len, "sizes of a rotation {shape:?}");
    assert!(buffer.len().is_multiple_of(row_len), "{} elements of a rotation {shape:?}", buffer.len());
    if size == 0 {
        return;
    }
    assert!((first_position + t) * table.num_pairs <= table.cos.len(), "positions of a rotation {shape:?}");
    let rows = rows_per_task(row_len);
    buffer.cpu().par_chunks_mut(rows * row_len).enumerate().for_each(|(task, tokens)| {
        math::vectorized(
            #[inline(always)]
            || {
                for (i, token) in tokens.chunks_exact_mut(row_len).enumerate() {
                    let (cos, sin) = table.at(first_position + (task * rows + i) % t);
                    for head in token[..heads * d].chunks_exact_mut(d) {
                        match pairing {
                            Pairing::Halves => {
                                let (x, y) = head[..size].split_at_mut(size / 2);
                                for (((x, y), &cos), &sin) in x.iter_mut().zip(y).zip(cos).zip(sin) {
                                    (*x, *y) = rotated((*x, *y), cos, direction * sin);
                                }
                            }
                            Pairing::Interleaved => {
                                let (pairs, _) = head[..size].as_chunks_mut();
                                for (([x, y], &cos), &sin) in pairs.iter_mut().zip(cos).zip(sin) {
                                    (*x, *y) = rotated((*x, *y), cos, direction * sin);
                                }
                            }
                        }
                    }
                }
            },
        );
    });
}

#[inline(always)]
fn rotated((x, y): (f32, f32), cos: f32, sin: f32) -> (f32, f32) {
    (x * cos - y * sin, y * cos + x * sin)
}

/// The definition, in plain loops.
pub mod reference {
    use super::{Pairing, Shape};
    use crate::ops::real::Real;

    /// The rotated buffer; `cos` and `sin` are (positions, size / 2).
    pub fn forward<T: Real>(shape: Shape, qkv: &[T], cos: &[T], sin: &[T]) -> Vec<T> {
        let num_pairs = shape.size / 2;
        let mut rotated = qkv.to_vec();
        for r in 0..qkv.len() / shape.row_len {
            let position = shape.first_position + r % shape.t;
            for head in 0..shape.heads {
                for i in 0..num_pairs {
                    let (x, y) = match shape.pairing {
                        Pairing::Halves => (i, i + num_pairs),
                        Pairing::Interleaved => (2 * i, 2 * i + 1),
                    };
                    let start = r * shape.row_len + head * shape.d;
                    let (x, y) = (start + x, start + y);
                    let (cos, sin) = (cos[position * num_pairs + i], sin[position * num_pairs + i]);
                    rotated[x] = qkv[x] * cos - qkv[y] * sin;
                    rotated[y] = qkv[y] * cos + qkv[x] * sin;
                }
            }
        }
        rotated
    }

    /// The gradient of the buffer before the rotation from that after it.
    pub fn backward<T: Real>(shape: Shape, dqkv: &[T], cos: &[T], sin: &[T]) -> Vec<T> {
        let back: Vec<T> = sin.iter().map(|&sin| -sin).collect();
        forward(shape, dqkv, cos, &back)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ops::testing::{
        Autograd, assert_bits_do_not_depend_on_threads, assert_close, assert_gradient, dot, on_threads, relative_error,
        values, wide,
    };
    use candle_core::Tensor;

    /// Two products and a sum for each element.
    const TOLERANCE: f64 = 2e-7;

    fn inv_freq(size: usize) -> Vec<f32> {
        (0..size / 2).map(|i| 100f32.powf(-2.0 * i as f32 / size as f32)).collect()
    }

    fn table_of(shape: Shape) -> Table {
        Table::new(&inv_freq(shape.size), shape.first_position + shape.t + 3, 1.0)
    }

    /// Cosines and sines in double precision.
    fn wide_table(shape: Shape) -> (Vec<f64>, Vec<f64>) {
        let table = table_of(shape);
        (wide(table.cos.as_slice()), wide(table.sin.as_slice()))
    }

    /// Of two sequences: one and several tasks, partial and full sizes, odd head sizes, with and without values behind.
    fn shapes() -> Vec<Shape> {
        let cases = [
            (1, 2, 2, 0, 1),
            (2, 4, 2, 3, 5),
            (3, 6, 6, 5, 4),
            (3, 7, 4, 7, 9),
            (5, 64, 64, 64, 200),
            (4, 80, 32, 160, 70),
            (2, 5, 0, 5, 3),
        ];
        let shape = |(heads, d, size, values, t)| {
            let row_len = heads * d + values;
            [Pairing::Halves, Pairing::Interleaved]
                .into_iter()
                .flat_map(move |pairing| [0, 13].map(|first_position| (pairing, first_position)))
                .map(move |(pairing, first_position)| Shape { heads, d, row_len, size, t, first_position, pairing })
        };
        cases.into_iter().flat_map(shape).collect()
    }

    fn qkv_of(shape: Shape) -> Vec<f32> {
        values(1, 2 * shape.t * shape.row_len)
    }

    fn forward_of(shape: Shape, qkv: &[f32]) -> Vec<f32> {
        let mut qkv = qkv.to_vec();
        forward(shape, qkv.as_mut_slice().into(), &table_of(shape));
        qkv
    }

    fn backward_of(shape: Shape, dqkv: &[f32]) -> Vec<f32> {
        let mut dqkv = dqkv.to_vec();
        backward(shape, dqkv.as_mut_slice().into(), &table_of(shape));
        dqkv
    }

    fn small_shapes() -> impl Iterator<Item = Shape> {
        shapes().into_iter().filter(|shape| shape.t * shape.row_len < 300)
    }

    #[test]
    fn reference_gradients_are_finite_differences() {
        for shape in small_shapes() {
            let (cos, sin) = wide_table(shape);
            let qkv = wide(&qkv_of(shape));
            let weights = wide(&values(2, qkv.len()));
            let gradient = reference::backward(shape, &weights, &cos, &sin);
            let loss = |qkv: &[f64]| dot(&reference::forward(shape, qkv, &cos, &sin), &weights);
            assert_gradient(&gradient, &qkv, loss, format!("{shape:?}"));
        }
    }

    /// `x cos + turned(x) sin` as the usual implementations write it, with `turned` (x, y) → (-y, x) for each pair.
    fn candles(shape: Shape, leaf: &Tensor, cos: &[f64], sin: &[f64]) -> candle_core::Result<Tensor> {
        let Shape { heads, d, row_len, size, t, first_position, pairing } = shape;
        let num_pairs = size / 2;
        let angles = |table: &[f64]| {
            let rows = Autograd::constant(&table[first_position * num_pairs..][..t * num_pairs], &[t, 1, num_pairs]);
            match pairing {
                Pairing::Halves => Tensor::cat(&[&rows, &rows], 2),
                Pairing::Interleaved => Tensor::stack(&[&rows, &rows], 3)?.reshape((t, 1, size)),
            }
        };
        let rotated_bthd = leaf.narrow(2, 0, heads * d)?.reshape((2, t, heads, d))?;
        let (x, kept) = (rotated_bthd.narrow(3, 0, size)?, rotated_bthd.narrow(3, size, d - size)?);
        let turned = match pairing {
            Pairing::Halves => {
                Tensor::cat(&[&x.narrow(3, num_pairs, num_pairs)?.neg()?, &x.narrow(3, 0, num_pairs)?], 3)?
            }
            Pairing::Interleaved => {
                let pairs = x.reshape((2, t, heads, num_pairs, 2))?;
                let swapped = [pairs.narrow(4, 1, 1)?.neg()?, pairs.narrow(4, 0, 1)?];
                Tensor::cat(&swapped, 4)?.reshape((2, t, heads, size))?
            }
        };
        let x = (x.broadcast_mul(&angles(cos)?)? + turned.broadcast_mul(&angles(sin)?)?)?;
        let x = Tensor::cat(&[&x, &kept], 3)?.reshape((2, t, heads * d))?;
        Tensor::cat(&[&x, &leaf.narrow(2, heads * d, row_len - heads * d)?], 2)
    }

    #[test]
    fn reference_is_candles_rotation() {
        for shape in small_shapes().filter(|shape| shape.size > 0) {
            let (cos, sin) = wide_table(shape);
            let qkv = wide(&qkv_of(shape));
            let weights = wide(&values(2, qkv.len()));
            let leaf = Autograd::leaf(&qkv, &[2, shape.t, shape.row_len]);
            let y = candles(shape, leaf.as_tensor(), &cos, &sin).unwrap();
            let actual = reference::forward(shape, &qkv, &cos, &sin);
            assert_close(&actual, &Autograd::elements(&y), 1e-14, format!("{shape:?}"));
            let expected = Autograd::gradient(&Autograd::backward(&y, &weights), &leaf);
            let actual = reference::backward(shape, &weights, &cos, &sin);
            assert_close(&actual, &expected, 1e-14, format!("gradient of {shape:?}"));
        }
    }

    #[test]
    fn fast_code_gives_the_definition_and_leaves_the_rest_alone() {
        on_threads(2, |_| {
            for shape in shapes() {
                let (cos, sin) = wide_table(shape);
                let qkv = qkv_of(shape);
                let rotated = forward_of(shape, &qkv);
                let expected = reference::forward(shape, &wide(&qkv), &cos, &sin);
                assert_close(&rotated, &expected, TOLERANCE, format!("{shape:?}"));
                let gradient = backward_of(shape, &qkv);
                let expected = reference::backward(shape, &wide(&qkv), &cos, &sin);
                assert_close(&gradient, &expected, TOLERANCE, format!("gradient of {shape:?}"));
                for ((before, rotated), gradient) in
                    qkv.iter().zip(&rotated).zip(&gradient).enumerate().filter_map(|(i, elements)| {
                        let channel = i % shape.row_len;
                        let kept = channel >= shape.heads * shape.d || channel % shape.d >= shape.size;
                        kept.then_some(elements)
                    })
                {
                    assert!(rotated == before && gradient == before);
                }
            }
        });
    }

    #[test]
    fn backward_undoes_forward() {
        on_threads(2, |_| {
            for shape in shapes() {
                let qkv = qkv_of(shape);
                let error = relative_error(&backward_of(shape, &forward_of(shape, &qkv)), &qkv);
                assert!(error <= TOLERANCE, "{shape:?}: {error:e}");
            }
        });
    }

    #[test]
    fn scores_depend_on_the_distance_of_positions_only() {
        for pairing in [Pairing::Halves, Pairing::Interleaved] {
            let shape = Shape { heads: 1, d: 16, row_len: 16, size: 16, t: 1, first_position: 0, pairing };
            let table = Table::new(&inv_freq(16), 100, 1.0);
            let at = |seed, first_position| {
                let mut x = values(seed, 16);
                forward(Shape { first_position, ..shape }, x.as_mut_slice().into(), &table);
                wide(&x)
            };
            let expected = dot(&at(1, 7), &at(2, 0));
            assert!((dot(&at(1, 97), &at(2, 90)) - expected).abs() < 1e-5);
            assert!((dot(&at(1, 97), &at(2, 80)) - expected).abs() > 1e-2);
        }
    }

    #[test]
    fn tables_hold_the_angles_of_scaled_positions() {
        let table = Table::new(&[1.0, 0.1], 2049, 4.0);
        assert_eq!(table.at(0), (&[1.0, 1.0][..], &[0.0, 0.0][..]));
        let angles = [512.0, f64::from(512.0f32 * 0.1)];
        let (cos, sin) = table.at(2048);
        assert_eq!(cos, angles.map(|angle| angle.cos() as f32));
        assert_eq!(sin, angles.map(|angle| angle.sin() as f32));
    }

    #[test]
    fn rotations_have_the_same_bits_on_any_number_of_threads() {
        for shape in shapes() {
            let qkv = qkv_of(shape);
            assert_bits_do_not_depend_on_threads(|_| [forward_of(shape, &qkv), backward_of(shape, &qkv)].concat());
        }
    }
}
