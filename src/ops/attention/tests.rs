//! Proof of attention: reference by finite differences and candle's autograd, fast code by the reference.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::ops::random::attention_site;
use crate::ops::testing::{
    Autograd, assert_bits_do_not_depend_on_threads, assert_close, assert_gradient, dot, on_threads, values, wide,
};
use candle_core::Tensor;

/// Scores are sums of up to 64 products, and their rounding reaches the probabilities through the exponential.
const TOLERANCE: f64 = 2e-6;

fn shape(b: usize, t: usize, h: usize, d: usize) -> Shape {
    Shape { b, t, h, d, scale: 1.0 / (d as f32).sqrt() }
}

/// Around the size of a tile, several tiles, head sizes as small as they come, other scales than the usual.
fn shapes() -> Vec<Shape> {
    let mut shapes: Vec<Shape> = [1, 2, 63, 64, 65, 130, 200]
        .into_iter()
        .flat_map(|t| [shape(1, t, 1, 16), shape(2, t, 3, 3), shape(1, t, 2, 64), shape(3, t, 2, 1)])
        .collect();
    shapes.push(Shape { scale: 1.0, ..shape(2, 65, 2, 16) });
    shapes.push(Shape { scale: 0.03, ..shape(1, 130, 1, 16) });
    shapes
}

fn mask() -> Mask {
    Mask::new(5, attention_site(1), 0.25)
}

/// The mask's factor at an index for the reference.
fn keep(mask: Option<Mask>) -> impl Fn(usize) -> f64 {
    move |index| mask.map_or(1.0, |mask| mask.scale_at(index as u64, 0).into())
}

fn qkv_of(shape: Shape) -> Vec<f32> {
    values(1, shape.b * shape.t * 3 * shape.c()).into_iter().map(|x| 2.0 * x).collect()
}

fn dy_of(shape: Shape) -> Vec<f32> {
    values(2, shape.b * shape.t * shape.c())
}

/// `y`, log-sum-exp and `dqkv` of buffers that held no numbers before.
fn run(device: &Device, shape: Shape, qkv: &[f32], dy: &[f32], mask: Option<Mask>) -> [Vec<f32>; 3] {
    // Room for longer sequences than these, as in a decoder whose memory is reused.
    let mut scratch = Scratch::new(device, shape.t + 10);
    scratch.tiles.as_mut_slice().fill(f32::NAN);
    let mut y = vec![f32::NAN; dy.len()];
    let mut lse = vec![f32::NAN; shape.b * shape.h * shape.t];
    let mut dqkv = vec![f32::NAN; qkv.len()];
    forward(shape, y.as_mut_slice().into(), lse.as_mut_slice().into(), qkv.into(), mask, &mut scratch);
    scratch.tiles.as_mut_slice().fill(f32::NAN);
    let (y_view, lse_view) = (y.as_slice().into(), lse.as_slice().into());
    backward(shape, dqkv.as_mut_slice().into(), dy.into(), qkv.into(), y_view, lse_view, mask, &mut scratch);
    [y, lse, dqkv]
}

/// The parts of `qkv` or its gradient that belong to queries, keys or values.
fn third<T: Copy>(qkv: &[T], which: usize, c: usize) -> Vec<T> {
    qkv.chunks(3 * c).flat_map(|row| row[which * c..(which + 1) * c].iter().copied()).collect()
}

#[test]
fn reference_gradients_are_finite_differences_with_and_without_dropout() {
    let shape = shape(2, 4, 2, 3);
    let (qkv, dy) = (wide(&qkv_of(shape)), wide(&dy_of(shape)));
    for mask in [None, Some(mask())] {
        let dqkv = reference::backward(shape, &dy, &qkv, keep(mask));
        let loss = |qkv: &[f64]| dot(&reference::forward(shape, qkv, keep(mask)), &dy);
        assert_gradient(&dqkv, &qkv, loss, format!("dqkv with {mask:?}"));
    }
}

#[test]
fn reference_is_candles_attention_with_and_without_dropout() {
    let shape = Shape { scale: 0.7, ..shape(2, 5, 3, 4) };
    let Shape { b, t, h, d, scale } = shape;
    let (qkv, dy) = (wide(&qkv_of(shape)), wide(&dy_of(shape)));
    let seen: Vec<f64> = (0..t * t).map(|i| if i % t <= i / t { 0.0 } else { f64::NEG_INFINITY }).collect();
    for mask in [None, Some(mask())] {
        let factors: Vec<f64> = (0..b * h * t * t).map(keep(mask)).collect();
        let leaf = Autograd::leaf(&qkv, &[b, t, 3, h, d]);
        let attend = || -> candle_core::Result<Tensor> {
            let part = |which| leaf.narrow(2, which, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
            let (q_bhtd, k_bhtd, v_bhtd): (Tensor, Tensor, Tensor) = (part(0)?, part(1)?, part(2)?);
            let scores = (q_bhtd.matmul(&k_bhtd.t()?)? * f64::from(scale))?;
            let weights = scores.broadcast_add(&Autograd::constant(&seen, &[t, t]))?.exp()?;
            let probabilities = weights.broadcast_div(&weights.sum_keepdim(3)?)?;
            let kept = (probabilities * Autograd::constant(&factors, &[b, h, t, t]))?;
            kept.matmul(&v_bhtd)?.transpose(1, 2)?.contiguous()
        };
        let y = attend().unwrap();
        assert_close(&reference::forward(shape, &qkv, keep(mask)), &Autograd::elements(&y), 1e-13, "y");
        let expected = Autograd::gradient(&Autograd::backward(&y, &dy), &leaf);
        assert_close(&reference::backward(shape, &dy, &qkv, keep(mask)), &expected, 1e-13, "dqkv");
    }
}

#[test]
fn fast_code_gives_the_definition_over_odd_shapes_and_overwrites() {
    on_threads(2, |device| {
        for shape in shapes() {
            for mask in [None, Some(mask())] {
                let (qkv, dy) = (qkv_of(shape), dy_of(shape));
                let [y, lse, dqkv] = run(device, shape, &qkv, &dy, mask);
                let what = format!("{shape:?}, dropout {}", mask.is_some());
                let expected = reference::forward(shape, &wide(&qkv), keep(mask));
                assert_close(&y, &expected, TOLERANCE, format!("y of {what}"));
                assert!(lse.iter().all(|lse| lse.is_finite()));
                let expected = reference::backward(shape, &wide(&dy), &wide(&qkv), keep(mask));
                for (which, name) in ["dq", "dk", "dv"].iter().enumerate() {
                    // A row of one key has no gradient of its query and key but rounding.
                    if shape.t == 1 && which < 2 {
                        assert!(third(&dqkv, which, shape.c()).iter().all(|x| x.abs() < 1e-5), "{name} of {what}");
                        continue;
                    }
                    let (actual, expected) = (third(&dqkv, which, shape.c()), third(&expected, which, shape.c()));
                    assert_close(&actual, &expected, TOLERANCE, format!("{name} of {what}"));
                }
            }
        }
    });
}

#[test]
fn later_tokens_change_nothing_before_them() {
    on_threads(1, |device| {
        let shape = shape(2, 130, 2, 16);
        let (qkv, dy) = (qkv_of(shape), dy_of(shape));
        let [expected, ..] = run(device, shape, &qkv, &dy, None);
        for first_changed in [1, 63, 64, 65, 129] {
            let mut changed = qkv.clone();
            for sequence in changed.chunks_mut(130 * 3 * shape.c()) {
                sequence[first_changed * 3 * shape.c()..].fill(9.0);
            }
            let [y, ..] = run(device, shape, &changed, &dy, None);
            for (y, expected) in y.chunks(130 * shape.c()).zip(expected.chunks(130 * shape.c())) {
                assert_eq!(y[..first_changed * shape.c()], expected[..first_changed * shape.c()]);
                assert_ne!(y[first_changed * shape.c()..], expected[first_changed * shape.c()..]);
            }
        }
    });
}

/// The log-sum-exp is saved rounded: of scores around 10,000 it keeps 5e-4, which backward's probabilities inherit.
#[test]
fn scores_of_ten_thousand_neither_overflow_nor_lose_the_definition() {
    on_threads(1, |device| {
        let shape = Shape { scale: 1.0, ..shape(1, 70, 2, 4) };
        let (mut qkv, dy) = (qkv_of(shape), dy_of(shape));
        // Queries and keys share an offset in their first channel, which adds ±10,000 to all scores of a row.
        for (row, tokens) in qkv.chunks_mut(3 * shape.c()).enumerate() {
            for head in 0..2 {
                tokens[head * 4] = if row % 2 == 0 { 128.0 } else { -128.0 };
                tokens[shape.c() + head * 4] = 80.0;
            }
        }
        let [y, _, dqkv] = run(device, shape, &qkv, &dy, None);
        let expected = reference::forward(shape, &wide(&qkv), keep(None));
        assert_close(&y, &expected, 1e-3, "y");
        let expected = reference::backward(shape, &wide(&dy), &wide(&qkv), keep(None));
        assert_close(&dqkv, &expected, 1e-3, "dqkv");
    });
}

#[test]
fn certainty_gives_the_value_of_one_key_and_no_gradient_of_scores() {
    on_threads(1, |device| {
        // Every query scores 10,000 at key 0 and -10,000 at the others.
        let shape = Shape { scale: 1.0, ..shape(1, 66, 1, 1) };
        let mut qkv = qkv_of(shape);
        for (row, tokens) in qkv.chunks_mut(3).enumerate() {
            tokens[0] = 100.0;
            tokens[1] = if row == 0 { 100.0 } else { -100.0 };
        }
        let dy = dy_of(shape);
        let [y, _, dqkv] = run(device, shape, &qkv, &dy, None);
        assert_eq!(y, vec![qkv[2]; 66]);
        assert!(third(&dqkv, 0, 1).iter().chain(&third(&dqkv, 1, 1)).all(|x| x.abs() < 1e-2), "{dqkv:?}");
        assert_close(&third(&dqkv, 2, 1)[..1], &[wide(&dy).iter().sum::<f64>()], 1e-5, "dv of key 0");
        assert!(third(&dqkv, 2, 1)[1..].iter().all(|&x| x == 0.0));
    });
}

#[test]
fn not_a_number_reaches_every_later_token_of_its_head_and_no_other_sequence() {
    on_threads(1, |device| {
        let shape = shape(2, 70, 2, 3);
        for channel in 0..3 {
            let (mut qkv, dy) = (qkv_of(shape), dy_of(shape));
            // A key of token 5 in head 1 of sequence 0 is not a number.
            qkv[5 * 3 * shape.c() + shape.c() + 3 + channel] = f32::NAN;
            let [y, _, dqkv] = run(device, shape, &qkv, &dy, None);
            for (token, y) in y.chunks(shape.c()).enumerate() {
                assert!(y[..3].iter().all(|x| x.is_finite()), "head 0 of token {token}");
                assert_eq!(y[3..].iter().all(|x| x.is_nan()), (5..70).contains(&token), "head 1 of token {token}");
            }
            assert!(dqkv[70 * 3 * shape.c()..].iter().all(|x| x.is_finite()));
            assert!(third(&dqkv, 2, shape.c())[3..6].iter().all(|x| x.is_nan()));
        }
    });
}

#[test]
fn results_have_the_same_bits_on_any_number_of_threads() {
    for (shape, mask) in [(shape(2, 130, 3, 16), None), (shape(1, 200, 5, 64), Some(mask()))] {
        let (qkv, dy) = (qkv_of(shape), dy_of(shape));
        assert_bits_do_not_depend_on_threads(|device| run(device, shape, &qkv, &dy, mask).concat());
    }
}
