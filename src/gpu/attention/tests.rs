//! Proof of the attention kernels: by the reference in f64 on the same inputs, and by two GPUs giving the same bits.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::gpu::{Buffer, testing};
use crate::ops::attention::reference;
use crate::ops::testing::{assert_close, values, wide};

/// Of `y` and the gradient of values in bf16: at most 2.5e-3 was seen, of which rounding the result alone costs 1.7e-3.
const VALUE_TOLERANCE: f64 = 4.5e-3;
/// Of the gradients of queries and keys, made from a rounded `y` and rounded gradients of scores: 3.2e-3 was seen, and
/// 4.1e-3 for two tokens.
const SCORE_TOLERANCE: f64 = 7e-3;
/// Of everything in f32: at most 6e-7 was seen.
const F32_TOLERANCE: f64 = 1.2e-6;

/// Elements before and behind each tensor in memory, which nothing may change.
const MARGIN: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Case {
    shape: Shape,
    has_bias: bool,
    /// Elements by which tensors are off their alignment.
    shift: usize,
}

fn case(b: usize, t: usize, h: usize, kv_heads: usize, d: usize) -> Case {
    let shape = Shape { b, t, h, kv_heads, d, scale: 1.0 / (d as f32).sqrt(), causal: true, window: None };
    Case { shape, has_bias: false, shift: 0 }
}

impl Case {
    fn window(mut self, window: usize) -> Self {
        self.shape.window = Some(window);
        self
    }

    fn not_causal(mut self) -> Self {
        self.shape.causal = false;
        self
    }

    fn bias(mut self) -> Self {
        self.has_bias = true;
        self
    }

    fn shifted(mut self, shift: usize) -> Self {
        self.shift = shift;
        self
    }

    fn qkv(&self) -> Vec<f32> {
        values(1, self.shape.b * self.shape.t * self.shape.qkv_width()).into_iter().map(|x| 2.0 * x).collect()
    }

    fn dy(&self) -> Vec<f32> {
        values(2, self.shape.b * self.shape.t * self.shape.y_width())
    }

    /// Biases of more keys than there are.
    fn key_bias(&self) -> Option<Vec<f32>> {
        self.has_bias.then(|| values(3, self.shape.h * (self.shape.t + 3)))
    }
}

/// Lengths around the sizes of tiles, every kind of mask, groups of heads, heads that fill a tile or not. With a window
/// of 66 the last query that sees a key of a tile is the first of another tile, and the first key in turn the last; with
/// one of 31 the last query of a warp sees all keys of a tile but one, as the queries of a tile of 63 keys do.
fn cases() -> Vec<Case> {
    vec![
        case(2, 1, 2, 1, 64),
        case(1, 1, 1, 1, 128).not_causal(),
        case(2, 2, 4, 2, 12).bias(),
        case(3, 17, 3, 1, 16),
        case(1, 17, 2, 2, 80).bias(),
        case(1, 63, 2, 1, 64).bias(),
        case(1, 63, 1, 1, 64).not_causal(),
        case(2, 64, 2, 2, 64),
        case(1, 65, 2, 1, 128),
        case(1, 65, 4, 2, 12).window(5),
        case(1, 96, 1, 1, 64).window(31),
        case(1, 127, 2, 1, 64).window(1),
        case(1, 128, 1, 1, 128).window(64),
        case(1, 128, 4, 2, 64),
        case(2, 200, 2, 1, 128),
        case(1, 129, 2, 1, 80).not_causal(),
        case(1, 129, 2, 1, 64).not_causal().bias(),
        case(1, 130, 2, 1, 16).window(200),
        case(1, 200, 3, 1, 64).shifted(1),
        case(1, 200, 1, 1, 128).shifted(4).bias(),
        case(1, 200, 2, 2, 16).window(33).bias(),
        case(1, 200, 2, 1, 64).not_causal(),
        case(1, 300, 2, 1, 64).window(66),
        case(1, 300, 1, 1, 128).window(66),
        case(1, 333, 1, 1, 64),
    ]
}

/// A tensor on the device between margins.
struct Tensor<T> {
    buffer: Buffer<T>,
    start: usize,
    len: usize,
}

impl<T: Element> Tensor<T> {
    fn new(gpu: &Gpu, elements: &[f32], shift: usize) -> Self {
        let start = MARGIN + shift;
        let mut padded = vec![T::from_f32(-7.0); start + elements.len() + MARGIN];
        padded[start..][..elements.len()].iter_mut().zip(elements).for_each(|(to, &x)| *to = T::from_f32(x));
        Self { buffer: gpu.buffer_of(&padded).unwrap(), start, len: elements.len() }
    }

    fn view(&self) -> View<'_, T> {
        self.buffer.view().window(self.start..self.start + self.len)
    }

    fn view_mut(&mut self) -> ViewMut<'_, T> {
        self.buffer.view_mut().window(self.start..self.start + self.len)
    }

    /// Its elements; fails if a margin was written to.
    fn read(&self, gpu: &Gpu) -> Vec<f32> {
        let all: Vec<f32> = gpu.to_vec(self.buffer.view()).unwrap().into_iter().map(T::to_f32).collect();
        let margins = all[..self.start].iter().chain(&all[self.start + self.len..]);
        assert!(margins.into_iter().all(|&x| x == -7.0), "written outside a tensor");
        all[self.start..][..self.len].to_vec()
    }
}

/// `y` and the log-sum-exp, and with `dy` also `dqkv`, of memory that held no numbers before.
fn run<T: Element>(gpu: &Gpu, case: Case, qkv: &[f32], dy: Option<&[f32]>) -> [Vec<f32>; 3] {
    let Case { shape, shift, .. } = case;
    let nothing = |len| vec![f32::NAN; len];
    let (len, rows) = (shape.b * shape.t * shape.y_width(), shape.b * shape.t * shape.h);
    let bias = case.key_bias().map(|bias| Tensor::<f32>::new(gpu, &bias, shift));
    let bias = bias.as_ref().map(Tensor::view);
    let qkv = Tensor::<T>::new(gpu, qkv, shift);
    let (mut y, mut lse) =
        (Tensor::<T>::new(gpu, &nothing(len), shift), Tensor::<f32>::new(gpu, &nothing(rows), shift));
    forward(gpu, shape, y.view_mut(), lse.view_mut(), qkv.view(), bias);
    let (y_elements, lse_elements) = (y.read(gpu), lse.read(gpu));
    let Some(dy) = dy else { return [y_elements, lse_elements, Vec::new()] };
    let bf16_of = |elements: &[f32]| Tensor::<bf16>::new(gpu, elements, shift);
    let (qkv, y, dy) = (bf16_of(&qkv.read(gpu)), bf16_of(&y_elements), bf16_of(dy));
    let (mut dqkv, mut delta) = (bf16_of(&nothing(qkv.len)), Tensor::<f32>::new(gpu, &nothing(rows), shift));
    let (into, scratch) = (dqkv.view_mut(), delta.view_mut());
    backward(gpu, shape, into, scratch, dy.view(), qkv.view(), y.view(), lse.view(), bias);
    delta.read(gpu);
    [y_elements, lse_elements, dqkv.read(gpu)]
}

/// The same from both GPUs, which must agree in every bit. `None` where there are none.
fn run_on_both<T: Element>(case: Case, qkv: &[f32], dy: Option<&[f32]>) -> Option<[Vec<f32>; 3]> {
    let bits = |results: &[Vec<f32>; 3]| results.each_ref().map(|x| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    let [ascending, descending] = testing::gpus()?.map(|gpu| run::<T>(&gpu, case, qkv, dy));
    assert!(bits(&ascending) == bits(&descending), "the second GPU, or the second run, changes {case:?}");
    Some(ascending)
}

fn rounded(elements: Vec<f32>) -> Vec<f32> {
    elements.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect()
}

/// Natural logarithms of the sums of the exponentials of the scores, in double precision.
fn log_sum_exps(case: Case, qkv: &[f32]) -> Vec<f64> {
    let Shape { b, t, h, kv_heads, d, scale, causal, window } = case.shape;
    let (bias, width) = (case.key_bias(), case.shape.qkv_width());
    let sees = |i: usize, j: usize| !causal || (j <= i && window.is_none_or(|window| i - j < window));
    let score = |row: usize, head: usize, i: usize, j: usize| {
        let query = &qkv[(row * t + i) * width + head * d..][..d];
        let key = &qkv[(row * t + j) * width + (h + head / (h / kv_heads)) * d..][..d];
        let product: f64 = query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
        f64::from(scale) * product + bias.as_ref().map_or(0.0, |bias| f64::from(bias[head * (t + 3) + j]))
    };
    let rows = (0..b * h * t).map(|index| (index / (h * t), index / t % h, index % t));
    rows.map(|(row, head, i)| {
        let scores: Vec<f64> = (0..t).filter(|&j| sees(i, j)).map(|j| score(row, head, i, j)).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        largest + scores.iter().map(|score| (score - largest).exp()).sum::<f64>().ln()
    })
    .collect()
}

/// The queries, keys or values of `dqkv`.
fn part<T: Copy>(dqkv: &[T], which: usize, shape: Shape) -> Vec<T> {
    let ends = [0, shape.h, shape.h + shape.kv_heads, shape.h + 2 * shape.kv_heads].map(|heads| heads * shape.d);
    let tokens = dqkv.chunks(shape.qkv_width());
    tokens.flat_map(|token| token[ends[which]..ends[which + 1]].iter().copied()).collect()
}

/// Holds what the kernels make of a case to the definition.
fn assert_bf16(case: Case) {
    let (shape, qkv, dy) = (case.shape, rounded(case.qkv()), rounded(case.dy()));
    let Some([y, lse, dqkv]) = run_on_both::<bf16>(case, &qkv, Some(&dy)) else { return };
    let bias = case.key_bias().map(|bias| wide(&bias));
    let expected = reference::forward(shape, &wide(&qkv), bias.as_deref(), |_| 1.0);
    assert_close(&y, &expected, VALUE_TOLERANCE, format!("y of {case:?}"));
    assert_close(&lse, &log_sum_exps(case, &qkv), F32_TOLERANCE, format!("log-sum-exp of {case:?}"));
    let expected = reference::backward(shape, &wide(&dy), &wide(&qkv), bias.as_deref(), |_| 1.0);
    let tolerances = [("dq", SCORE_TOLERANCE), ("dk", SCORE_TOLERANCE), ("dv", VALUE_TOLERANCE)];
    for (which, (name, tolerance)) in tolerances.into_iter().enumerate() {
        let (actual, expected) = (part(&dqkv, which, shape), part(&expected, which, shape));
        // A row of one key has no gradient of its query and key but rounding.
        if (shape.t == 1 || shape.window == Some(1)) && which < 2 {
            assert!(actual.iter().all(|x| x.abs() < 3e-2), "{name} of {case:?}");
        } else {
            assert_close(&actual, &expected, tolerance, format!("{name} of {case:?}"));
        }
    }
}

#[test]
fn bf16_is_the_definition_in_heads_of_up_to_64() {
    cases().into_iter().filter(|case| case.shape.d <= 64).for_each(assert_bf16);
}

#[test]
fn bf16_is_the_definition_in_heads_of_up_to_128() {
    cases().into_iter().filter(|case| case.shape.d > 64).for_each(assert_bf16);
}

#[test]
fn f32_is_the_definition() {
    let large = [case(1, 65, 2, 1, 256), case(1, 40, 2, 2, 160).bias(), case(1, 70, 1, 1, 256).window(9).shifted(1)];
    for case in cases().into_iter().chain(large) {
        let qkv = case.qkv();
        let Some([y, lse, _]) = run_on_both::<f32>(case, &qkv, None) else { return };
        let bias = case.key_bias().map(|bias| wide(&bias));
        let expected = reference::forward(case.shape, &wide(&qkv), bias.as_deref(), |_| 1.0);
        assert_close(&y, &expected, F32_TOLERANCE, format!("y of {case:?}"));
        assert_close(&lse, &log_sum_exps(case, &qkv), F32_TOLERANCE, format!("log-sum-exp of {case:?}"));
    }
}

fn assert_later_tokens_change_nothing<T: Element>(case: Case) {
    let Shape { t, .. } = case.shape;
    let (qkv, width, y_width) = (rounded(case.qkv()), case.shape.qkv_width(), case.shape.y_width());
    let Some([expected, ..]) = run_on_both::<T>(case, &qkv, None) else { return };
    for first_changed in [1, 64, t - 1] {
        let mut changed = qkv.clone();
        changed[first_changed * width..].fill(9.0);
        let Some([y, ..]) = run_on_both::<T>(case, &changed, None) else { return };
        assert_eq!(y[..first_changed * y_width], expected[..first_changed * y_width]);
        assert_ne!(y[first_changed * y_width..], expected[first_changed * y_width..]);
    }
}

#[test]
fn later_tokens_change_no_bit_before_them() {
    for case in [case(1, 130, 2, 1, 16), case(1, 70, 1, 1, 80)] {
        assert_later_tokens_change_nothing::<bf16>(case);
        assert_later_tokens_change_nothing::<f32>(case);
    }
}

#[test]
fn enormous_scores_and_biases_give_numbers() {
    for case in [case(1, 70, 2, 1, 16), case(1, 70, 2, 1, 16).bias(), case(1, 70, 1, 1, 80).window(5).bias()] {
        let qkv: Vec<f32> = case.qkv().into_iter().map(|x| 1e5 * x).collect();
        let bf16 = run_on_both::<bf16>(case, &qkv, Some(&case.dy()));
        let f32 = run_on_both::<f32>(case, &qkv, None);
        for results in [bf16, f32].into_iter().flatten() {
            assert!(results.iter().flatten().all(|x| x.is_finite()), "{case:?}");
        }
    }
}

/// Scores of thousands: where they are subtracted from each other before they are multiplied, and beside it.
#[test]
fn large_scores_are_as_exact() {
    for case in [case(1, 130, 2, 1, 64), case(1, 130, 1, 1, 16).bias(), case(1, 130, 1, 1, 80).window(40)] {
        let (shape, dy) = (case.shape, rounded(case.dy()));
        let qkv = rounded(case.qkv().into_iter().map(|x| 16.0 * x).collect());
        let Some([y, lse, dqkv]) = run_on_both::<bf16>(case, &qkv, Some(&dy)) else { return };
        let bias = case.key_bias().map(|bias| wide(&bias));
        let expected = reference::forward(shape, &wide(&qkv), bias.as_deref(), |_| 1.0);
        assert_close(&y, &expected, VALUE_TOLERANCE, format!("y of {case:?}"));
        assert_close(&lse, &log_sum_exps(case, &qkv), F32_TOLERANCE, format!("log-sum-exp of {case:?}"));
        // Backward's probabilities, too. What they leave of queries and keys is the difference of nearly equal numbers, of
        // which one is rounded.
        let expected = reference::backward(shape, &wide(&dy), &wide(&qkv), bias.as_deref(), |_| 1.0);
        assert_close(&part(&dqkv, 2, shape), &part(&expected, 2, shape), VALUE_TOLERANCE, format!("dv of {case:?}"));
    }
}

#[test]
fn not_a_number_reaches_every_later_token_of_its_head_and_no_other_sequence() {
    let case = case(2, 70, 2, 2, 16);
    let (y_width, mut qkv) = (case.shape.y_width(), case.qkv());
    // A key of token 5 in head 1 of sequence 0 is not a number.
    qkv[5 * case.shape.qkv_width() + y_width + 16 + 3] = f32::NAN;
    let Some([y, _, dqkv]) = run_on_both::<bf16>(case, &qkv, Some(&case.dy())) else { return };
    for y in [Some(y), run_on_both::<f32>(case, &qkv, None).map(|[y, ..]| y)].into_iter().flatten() {
        for (token, y) in y.chunks(y_width).enumerate() {
            assert!(y[..16].iter().all(|x| x.is_finite()), "head 0 of token {token}");
            assert_eq!(y[16..].iter().all(|x| x.is_nan()), (5..70).contains(&token), "head 1 of token {token}");
        }
    }
    assert!(dqkv[70 * case.shape.qkv_width()..].iter().all(|x| x.is_finite()));
    assert!(part(&dqkv, 0, case.shape)[69 * y_width..70 * y_width][16..].iter().all(|x| x.is_nan()));
}

#[test]
fn floating_point_operations_are_those_of_the_pairs_in_sight() {
    let causal = case(3, 100, 4, 2, 64);
    let rows = 4 * 3 * 4 * 64; // of 2 d for each of two products, b, h
    assert_eq!(forward_flops(causal.not_causal().shape), rows * 100 * 100);
    assert_eq!(forward_flops(causal.shape), rows * 100 * 100 / 2);
    assert_eq!(forward_flops(causal.window(100).shape), rows * 100 * 100 / 2);
    assert_eq!(forward_flops(causal.window(10).shape), rows * (10 * 10 / 2 + 90 * 10));
    assert_eq!(backward_flops(causal.shape), rows * 100 * 100 / 2 / 2 * 5);
}

#[test]
#[should_panic(expected = "head size of an attention")]
fn larger_heads_are_refused() {
    let Some([gpu, _]) = testing::gpus() else { panic!("head size of an attention: not tested") };
    run::<bf16>(&gpu, case(1, 1, 1, 1, 136), &[0.0; 3 * 136], None);
}
