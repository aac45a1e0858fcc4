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

/// A causal shape in which each query head has its own keys.
fn shape(b: usize, t: usize, h: usize, d: usize) -> Shape {
    Shape { b, t, h, kv_heads: h, d, scale: 1.0 / (d as f32).sqrt(), causal: true, window: None }
}

/// Shapes with shared keys, windows and without causality, for sequences of `t` tokens.
fn general_shapes(t: usize) -> Vec<Shape> {
    let grouped = Shape { kv_heads: 2, ..shape(2, t, 6, 5) };
    let single = Shape { kv_heads: 1, ..shape(1, t, 4, 16) };
    let mut shapes = vec![grouped, single];
    for window in [1, 5, 64, 1000].map(Some) {
        shapes.extend([Shape { window, ..grouped }, Shape { window, ..shape(1, t, 1, 16) }]);
    }
    shapes.extend([grouped, single, shape(2, t, 3, 3)].map(|shape| Shape { causal: false, ..shape }));
    shapes
}

/// Around the size of a tile, several tiles, head sizes as small as they come, other scales than the usual.
fn shapes() -> Vec<Shape> {
    let mut shapes: Vec<Shape> = [1, 2, 63, 64, 65, 130, 200]
        .into_iter()
        .flat_map(|t| [shape(1, t, 1, 16), shape(2, t, 3, 3), shape(1, t, 2, 64), shape(3, t, 2, 1)])
        .collect();
    shapes.push(Shape { scale: 1.0, ..shape(2, 65, 2, 16) });
    shapes.push(Shape { scale: 0.03, ..shape(1, 130, 1, 16) });
    shapes.extend([1, 64, 65, 200].into_iter().flat_map(general_shapes));
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
    values(1, shape.b * shape.t * shape.qkv_width()).into_iter().map(|x| 2.0 * x).collect()
}

fn dy_of(shape: Shape) -> Vec<f32> {
    values(2, shape.b * shape.t * shape.y_width())
}

/// Biases of more keys than the shape has.
fn key_bias_of(shape: Shape) -> Vec<f32> {
    values(3, shape.h * (shape.t + 7))
}

/// `y`, log-sum-exp and `dqkv` of buffers that held no numbers before.
fn run(
    device: &Device,
    shape: Shape,
    qkv: &[f32],
    dy: &[f32],
    key_bias: Option<&[f32]>,
    mask: Option<Mask>,
) -> [Vec<f32>; 3] {
    // Room for longer sequences than these, as in a decoder whose memory is reused.
    let mut scratch = Scratch::new(device, shape.t + 10);
    scratch.tiles.as_mut_slice().fill(f32::NAN);
    let mut y = vec![f32::NAN; dy.len()];
    let mut lse = vec![f32::NAN; shape.b * shape.h * shape.t];
    let mut dqkv = vec![f32::NAN; qkv.len()];
    let key_bias = key_bias.map(View::from);
    forward(shape, y.as_mut_slice().into(), lse.as_mut_slice().into(), qkv.into(), key_bias, mask, &mut scratch);
    scratch.tiles.as_mut_slice().fill(f32::NAN);
    let (y_view, lse_view) = (y.as_slice().into(), lse.as_slice().into());
    backward(shape, dqkv.as_mut_slice().into(), dy.into(), qkv.into(), y_view, lse_view, key_bias, mask, &mut scratch);
    [y, lse, dqkv]
}

/// The channels of queries (0), keys (1) or values (2) in `qkv`.
fn channels(which: usize, shape: Shape) -> Range<usize> {
    let ends = [0, shape.h, shape.h + shape.kv_heads, shape.h + 2 * shape.kv_heads].map(|heads| heads * shape.d);
    ends[which]..ends[which + 1]
}

/// The parts of `qkv` or its gradient that belong to queries, keys or values.
fn part<T: Copy>(qkv: &[T], which: usize, shape: Shape) -> Vec<T> {
    qkv.chunks(shape.qkv_width()).flat_map(|token| token[channels(which, shape)].iter().copied()).collect()
}

/// What the newest tokens of the sequences in `qkv` attend to, from a cache whose unused elements are no numbers.
fn run_cached(shape: Shape, qkv: &[f32], key_bias: Option<&[f32]>) -> Vec<f32> {
    let (width, capacity) = (shape.qkv_width(), shape.t + 3);
    let cache_width = width - shape.y_width();
    let (mut cache, mut newest) = (vec![f32::NAN; shape.b * capacity * cache_width], Vec::new());
    for (sequence, cache) in qkv.chunks(shape.t * width).zip(cache.chunks_mut(capacity * cache_width)) {
        for (token, cached) in sequence.chunks(width).zip(cache.chunks_mut(cache_width)) {
            cached.copy_from_slice(&token[shape.y_width()..]);
        }
        cache[..shape.seen_by(shape.t - 1).start * cache_width].fill(f32::NAN);
        newest.extend_from_slice(&sequence[(shape.t - 1) * width..]);
    }
    let mut y = vec![f32::NAN; shape.b * shape.y_width()];
    let (newest, cache) = (newest.as_slice().into(), cache.as_slice().into());
    forward_cached(shape, capacity, y.as_mut_slice().into(), newest, cache, key_bias.map(View::from));
    y
}

/// Small shapes of every kind.
fn definitions() -> [Shape; 6] {
    let grouped = Shape { kv_heads: 2, scale: 0.7, ..shape(2, 5, 4, 3) };
    [
        shape(2, 4, 2, 3),
        grouped,
        Shape { kv_heads: 1, window: Some(1), ..grouped },
        Shape { window: Some(3), ..grouped },
        Shape { window: Some(9), ..grouped },
        Shape { causal: false, ..grouped },
    ]
}

#[test]
fn reference_gradients_are_finite_differences_with_and_without_bias_and_dropout() {
    for shape in definitions() {
        let (qkv, dy, key_bias) = (wide(&qkv_of(shape)), wide(&dy_of(shape)), wide(&key_bias_of(shape)));
        for (key_bias, mask) in [(None, None), (None, Some(mask())), (Some(&key_bias[..]), Some(mask()))] {
            let dqkv = reference::backward(shape, &dy, &qkv, key_bias, keep(mask));
            let loss = |qkv: &[f64]| dot(&reference::forward(shape, qkv, key_bias, keep(mask)), &dy);
            let what = format!("dqkv of {shape:?}, bias {}, {mask:?}", key_bias.is_some());
            assert_gradient(&dqkv, &qkv, loss, what);
        }
    }
}

#[test]
fn reference_is_candles_attention_with_and_without_bias_and_dropout() {
    for shape in definitions() {
        let Shape { b, t, h, kv_heads, d, scale, causal, window } = shape;
        let (qkv, dy, bias) = (wide(&qkv_of(shape)), wide(&dy_of(shape)), wide(&key_bias_of(shape)));
        let sees = |i: usize, j: usize| !causal || (j <= i && window.is_none_or(|window| i - j < window));
        let seen: Vec<f64> = (0..t * t).map(|i| if sees(i / t, i % t) { 0.0 } else { f64::NEG_INFINITY }).collect();
        for (key_bias, mask) in [(None, None), (None, Some(mask())), (Some(&bias[..]), Some(mask()))] {
            let factors: Vec<f64> = (0..b * h * t * t).map(keep(mask)).collect();
            let leaf = Autograd::leaf(&qkv, &[b, t, h + 2 * kv_heads, d]);
            let attend = || -> candle_core::Result<Tensor> {
                let heads = |first, count| leaf.narrow(2, first, count)?.transpose(1, 2)?.contiguous();
                let shared = |first| {
                    let part_bhtd = heads(first, kv_heads)?.unsqueeze(2)?;
                    part_bhtd.broadcast_as((b, kv_heads, h / kv_heads, t, d))?.contiguous()?.reshape((b, h, t, d))
                };
                let (q_bhtd, k_bhtd, v_bhtd) = (heads(0, h)?, shared(h)?, shared(h + kv_heads)?);
                let mut scores = (q_bhtd.matmul(&k_bhtd.t()?)? * f64::from(scale))?;
                if let Some(bias) = key_bias {
                    let bias = Autograd::constant(bias, &[h, 1, t + 7]).narrow(2, 0, t)?;
                    scores = scores.broadcast_add(&bias)?;
                }
                let weights = scores.broadcast_add(&Autograd::constant(&seen, &[t, t]))?.exp()?;
                let probabilities = weights.broadcast_div(&weights.sum_keepdim(3)?)?;
                let kept = (probabilities * Autograd::constant(&factors, &[b, h, t, t]))?;
                kept.matmul(&v_bhtd)?.transpose(1, 2)?.contiguous()
            };
            let y = attend().unwrap();
            let what = format!("{shape:?}, bias {}, dropout {}", key_bias.is_some(), mask.is_some());
            let actual = reference::forward(shape, &qkv, key_bias, keep(mask));
            assert_close(&actual, &Autograd::elements(&y), 1e-13, format!("y of {what}"));
            let expected = Autograd::gradient(&Autograd::backward(&y, &dy), &leaf);
            let actual = reference::backward(shape, &dy, &qkv, key_bias, keep(mask));
            assert_close(&actual, &expected, 1e-13, format!("dqkv of {what}"));
        }
    }
}

#[test]
fn fast_code_gives_the_definition_over_odd_shapes_and_overwrites() {
    on_threads(2, |device| {
        for shape in shapes() {
            let (qkv, dy, bias) = (qkv_of(shape), dy_of(shape), key_bias_of(shape));
            for (key_bias, mask) in [(None, None), (Some(&bias[..]), None), (None, Some(mask()))] {
                let [y, lse, dqkv] = run(device, shape, &qkv, &dy, key_bias, mask);
                let what = format!("{shape:?}, bias {}, dropout {}", key_bias.is_some(), mask.is_some());
                let wide_bias = key_bias.map(wide);
                let expected = reference::forward(shape, &wide(&qkv), wide_bias.as_deref(), keep(mask));
                assert_close(&y, &expected, TOLERANCE, format!("y of {what}"));
                assert!(lse.iter().all(|lse| lse.is_finite()));
                let expected = reference::backward(shape, &wide(&dy), &wide(&qkv), wide_bias.as_deref(), keep(mask));
                for (which, name) in ["dq", "dk", "dv"].iter().enumerate() {
                    let (actual, expected) = (part(&dqkv, which, shape), part(&expected, which, shape));
                    // A row of one key has no gradient of its query and key but rounding.
                    if (shape.t == 1 || shape.window == Some(1)) && which < 2 {
                        assert!(actual.iter().all(|x| x.abs() < 1e-5), "{name} of {what}");
                        continue;
                    }
                    assert_close(&actual, &expected, TOLERANCE, format!("{name} of {what}"));
                }
            }
        }
    });
}

#[test]
fn a_token_against_the_cache_gets_the_last_row_of_forward() {
    on_threads(2, |device| {
        for shape in shapes() {
            let (qkv, dy, bias) = (qkv_of(shape), dy_of(shape), key_bias_of(shape));
            for key_bias in [None, Some(&bias[..])] {
                let [y, ..] = run(device, shape, &qkv, &dy, key_bias, None);
                let sequences = y.chunks(shape.t * shape.y_width());
                let expected: Vec<f32> =
                    sequences.flat_map(|y| y[(shape.t - 1) * shape.y_width()..].iter().copied()).collect();
                let actual = run_cached(shape, &qkv, key_bias);
                assert_close(&actual, &expected, TOLERANCE, format!("{shape:?}, bias {}", key_bias.is_some()));
            }
        }
    });
}

#[test]
fn later_tokens_change_nothing_before_them() {
    on_threads(1, |device| {
        let shape = shape(2, 130, 2, 16);
        for shape in [shape, Shape { kv_heads: 1, ..shape }, Shape { window: Some(70), ..shape }] {
            let (qkv, dy) = (qkv_of(shape), dy_of(shape));
            let [expected, ..] = run(device, shape, &qkv, &dy, None, None);
            for first_changed in [1, 63, 64, 65, 129] {
                let mut changed = qkv.clone();
                for sequence in changed.chunks_mut(130 * shape.qkv_width()) {
                    sequence[first_changed * shape.qkv_width()..].fill(9.0);
                }
                let [y, ..] = run(device, shape, &changed, &dy, None, None);
                let (sequence, first_changed) = (130 * shape.y_width(), first_changed * shape.y_width());
                for (y, expected) in y.chunks(sequence).zip(expected.chunks(sequence)) {
                    assert_eq!(y[..first_changed], expected[..first_changed]);
                    assert_ne!(y[first_changed..], expected[first_changed..]);
                }
            }
        }
    });
}

#[test]
fn tokens_before_the_window_change_nothing_and_are_not_read_by_later_tiles() {
    on_threads(1, |device| {
        for window in [1, 5, 64, 70] {
            let shape = Shape { window: Some(window), kv_heads: 1, ..shape(2, 200, 2, 16) };
            let (qkv, dy, width) = (qkv_of(shape), dy_of(shape), shape.y_width());
            let [expected, ..] = run(device, shape, &qkv, &dy, None, None);
            let with_first_token = |value: f32| {
                let mut changed = qkv.clone();
                for sequence in changed.chunks_mut(200 * shape.qkv_width()) {
                    sequence[..shape.qkv_width()].fill(value);
                }
                run(device, shape, &changed, &dy, None, None)[0].clone()
            };
            let (changed, poisoned) = (with_first_token(9.0), with_first_token(f32::NAN));
            let (first_same, first_clean) = (window, window.next_multiple_of(TILE));
            for sequence in (0..2).map(|row| row * 200 * width..(row + 1) * 200 * width) {
                let expected = &expected[sequence.clone()];
                assert_eq!(changed[sequence.clone()][first_same * width..], expected[first_same * width..]);
                assert_ne!(changed[sequence.clone()][..first_same * width], expected[..first_same * width]);
                // Tiles that begin where the first token is out of sight.
                assert_eq!(poisoned[sequence][first_clean * width..], expected[first_clean * width..]);
            }
        }
    });
}

#[test]
fn a_window_of_the_whole_sequence_is_none() {
    on_threads(1, |device| {
        let shape = Shape { kv_heads: 2, ..shape(2, 130, 4, 16) };
        let (qkv, dy) = (qkv_of(shape), dy_of(shape));
        let expected = run(device, shape, &qkv, &dy, None, None);
        for window in [130, 131, usize::MAX].map(Some) {
            assert_eq!(run(device, Shape { window, ..shape }, &qkv, &dy, None, None), expected);
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
        for (row, tokens) in qkv.chunks_mut(shape.qkv_width()).enumerate() {
            for head in 0..2 {
                tokens[head * 4] = if row % 2 == 0 { 128.0 } else { -128.0 };
                tokens[shape.y_width() + head * 4] = 80.0;
            }
        }
        let [y, _, dqkv] = run(device, shape, &qkv, &dy, None, None);
        let expected = reference::forward(shape, &wide(&qkv), None, keep(None));
        assert_close(&y, &expected, 1e-3, "y");
        let expected = reference::backward(shape, &wide(&dy), &wide(&qkv), None, keep(None));
        assert_close(&dqkv, &expected, 1e-3, "dqkv");
    });
}

#[test]
fn enormous_scores_and_biases_give_numbers() {
    on_threads(2, |device| {
        for shape in [70, 200].into_iter().flat_map(general_shapes) {
            let qkv: Vec<f32> = qkv_of(shape).into_iter().map(|x| 1e5 * x).collect();
            let (dy, bias) = (dy_of(shape), key_bias_of(shape));
            for (factor, expected_scores) in [(0.0, "scores"), (1e4, "scores and biases"), (-1e30, "biases")] {
                let bias: Vec<f32> = bias.iter().map(|x| factor * x).collect();
                let results = run(device, shape, &qkv, &dy, Some(&bias), Some(mask()));
                let cached = run_cached(shape, &qkv, Some(&bias));
                let mut all = results.iter().flatten().chain(&cached);
                assert!(all.all(|x| x.is_finite()), "{shape:?}, enormous {expected_scores}");
            }
        }
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
        let [y, _, dqkv] = run(device, shape, &qkv, &dy, None, None);
        assert_eq!(y, vec![qkv[2]; 66]);
        assert!(part(&dqkv, 0, shape).iter().chain(&part(&dqkv, 1, shape)).all(|x| x.abs() < 1e-2), "{dqkv:?}");
        let dv = part(&dqkv, 2, shape);
        assert_close(&dv[..1], &[wide(&dy).iter().sum::<f64>()], 1e-5, "dv of key 0");
        assert!(dv[1..].iter().all(|&x| x == 0.0));
    });
}

#[test]
fn not_a_number_reaches_every_later_token_of_its_head_and_no_other_sequence() {
    on_threads(1, |device| {
        let shape = shape(2, 70, 2, 3);
        for channel in 0..3 {
            let (mut qkv, dy) = (qkv_of(shape), dy_of(shape));
            // A key of token 5 in head 1 of sequence 0 is not a number.
            qkv[5 * shape.qkv_width() + channels(1, shape).start + 3 + channel] = f32::NAN;
            let [y, _, dqkv] = run(device, shape, &qkv, &dy, None, None);
            for (token, y) in y.chunks(shape.y_width()).enumerate() {
                assert!(y[..3].iter().all(|x| x.is_finite()), "head 0 of token {token}");
                assert_eq!(y[3..].iter().all(|x| x.is_nan()), (5..70).contains(&token), "head 1 of token {token}");
            }
            assert!(dqkv[70 * shape.qkv_width()..].iter().all(|x| x.is_finite()));
            assert!(part(&dqkv, 2, shape)[3..6].iter().all(|x| x.is_nan()));
        }
    });
}

#[test]
fn results_have_the_same_bits_on_any_number_of_threads() {
    let grouped = Shape { kv_heads: 2, ..shape(2, 200, 6, 32) };
    let cases = [
        (shape(2, 130, 3, 16), None),
        (shape(1, 200, 5, 64), Some(mask())),
        (grouped, Some(mask())),
        (Shape { window: Some(70), ..grouped }, None),
        (Shape { causal: false, ..grouped }, None),
    ];
    for (shape, mask) in cases {
        let (qkv, dy, bias) = (qkv_of(shape), dy_of(shape), key_bias_of(shape));
        assert_bits_do_not_depend_on_threads(|device| run(device, shape, &qkv, &dy, Some(&bias), mask).concat());
        assert_bits_do_not_depend_on_threads(|_| run_cached(shape, &qkv, Some(&bias)));
    }
}
