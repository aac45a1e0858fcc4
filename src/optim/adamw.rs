//! AdamW (Loshchilov and Hutter, 2019) over flat buffers, as `torch.optim.AdamW` computes it.
//!
//! Parameters, gradients and both moments have one layout and are walked once, in parallel, in fixed segments; the
//! gradient is multiplied by the clipping factor on the way. Every element is independent of the others, so the result
//! does not depend on threads. What depends on the step alone is computed in f64. Which elements decay is decided once,
//! by ranges; [`decayed_ranges`] gives those of a model: its matrices. Norm and clipping are `clip.rs`'s; whether the
//! gradient is fit to be used is for the caller to know before.

use std::ops::Range;

use crate::model::layout::{Layout, Param};
use crate::recipe::Optimizer;

/// Largest number of elements that one task updates.
const SEGMENT_LEN: usize = 1 << 16;

/// The elements to which weight decay applies: all matrices, embeddings too; not gains and biases.
pub fn decayed_ranges(layout: &Layout) -> Vec<Range<usize>> {
    layout.params().iter().filter(|param| param.decays()).map(|Param { range, .. }| range.clone()).collect()
}

/// The optimizer; the moments are the caller's.
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    segments: Vec<Segment>,
}

/// Consecutive elements that all decay or all do not.
struct Segment {
    range: Range<usize>,
    decays: bool,
}

/// The buffers, or the same window of each.
struct Buffers<'a> {
    params: &'a mut [f32],
    gradients: &'a [f32],
    means: &'a mut [f32],
    squares: &'a mut [f32],
}

impl AdamW {
    /// An optimizer of `len` elements; `decayed` are ascending, disjoint ranges of them.
    ///
    /// # Panics
    /// If the ranges overlap, are out of order or leave the buffer.
    pub fn new(options: &Optimizer, len: usize, decayed: &[Range<usize>]) -> Self {
        let mut segments = Vec::new();
        let mut end = 0;
        let mut push = |range: Range<usize>, decays| {
            assert!(range.start <= range.end && range.end <= len, "decayed ranges must ascend within the buffer");
            let starts = range.clone().step_by(SEGMENT_LEN);
            segments.extend(starts.map(|start| Segment { range: start..range.end.min(start + SEGMENT_LEN), decays }));
        };
        for range in decayed {
            push(end..range.start, false);
            push(range.clone(), true);
            end = range.end;
        }
        push(end..len, false);
        let &Optimizer { beta1, beta2, eps, weight_decay, .. } = options;
        Self { beta1, beta2, eps, weight_decay, segments }
    }

    /// One step, `step` counted from 0, with `gradient_scale * gradients`; `means` and `squares` are the moments, zero
    /// before the first step.
    ///
    /// # Panics
    /// If a buffer has another length than this optimizer was made for.
    #[allow(clippy::too_many_arguments)]
    pub fn step(
        &self,
        step: u64,
        learning_rate: f64,
        gradient_scale: f64,
        params: &mut [f32],
        gradients: &[f32],
        means: &mut [f32],
        squares: &mut [f32],
    ) {
        let len = self.segments.last().map_or(0, |segment| segment.range.end);
        for buffer_len in [params.len(), gradients.len(), means.len(), squares.len()] {
            assert_eq!(buffer_len, len, "every buffer must have the length the optimizer was made for");
        }
        let decayed = self.factors(step, learning_rate, gradient_scale);
        let other = Factors { keep: 1.0, ..decayed };
        update_segments(&self.segments, &decayed, &other, Buffers { params, gradients, means, squares });
    }
}

impl AdamW {
    /// What a step multiplies with, `step` counted from 0; where nothing decays `keep` is 1 instead.
    pub fn factors(&self, step: u64, learning_rate: f64, gradient_scale: f64) -> Factors {
        let correction = |beta: f64| 1.0 - beta.powf((step + 1) as f64);
        Factors {
            gradient_scale: gradient_scale as f32,
            keep: (1.0 - learning_rate * self.weight_decay) as f32,
            beta1: self.beta1 as f32,
            one_minus_beta1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            step_size: (learning_rate / correction(self.beta1)) as f32,
            inverse_root_correction2: (1.0 / correction(self.beta2).sqrt()) as f32,
            eps: self.eps as f32,
        }
    }
}

/// Halves the work until one segment is left: rayon's own splitting without a list of windows in memory.
fn update_segments(segments: &[Segment], decayed: &Factors, other: &Factors, buffers: Buffers) {
    match segments {
        [] => {}
        [segment] => {
            let factors = if segment.decays { decayed } else { other };
            pulp::Arch::new().dispatch(Update { factors, buffers });
        }
        _ => {
            let (left, right) = segments.split_at(segments.len() / 2);
            let middle = right[0].range.start - left[0].range.start;
            let (params, right_params) = buffers.params.split_at_mut(middle);
            let (gradients, right_gradients) = buffers.gradients.split_at(middle);
            let (means, right_means) = buffers.means.split_at_mut(middle);
            let (squares, right_squares) = buffers.squares.split_at_mut(middle);
            let right_buffers = Buffers {
                params: right_params,
                gradients: right_gradients,
                means: right_means,
                squares: right_squares,
            };
            rayon::join(
                || update_segments(left, decayed, other, Buffers { params, gradients, means, squares }),
                || update_segments(right, decayed, other, right_buffers),
            );
        }
    }
}

/// What one step multiplies with, the same for all elements that decay.
#[derive(Clone, Copy, Debug)]
pub struct Factors {
    /// On the gradient.
    pub gradient_scale: f32,
    /// On the parameter: one minus learning rate times weight decay.
    pub keep: f32,
    /// On the first moment.
    pub beta1: f32,
    /// On the gradient that joins it.
    pub one_minus_beta1: f32,
    /// On the second moment.
    pub beta2: f32,
    /// On the squared gradient that joins it.
    pub one_minus_beta2: f32,
    /// Learning rate over the first moment's bias correction.
    pub step_size: f32,
    /// One over the root of the second moment's bias correction.
    pub inverse_root_correction2: f32,
    /// Added to the divisor.
    pub eps: f32,
}

/// The update of one segment. Not a closure: only a method can be forced inline, and what is not inlined into
/// `dispatch` is compiled without wide vectors.
struct Update<'a> {
    factors: &'a Factors,
    buffers: Buffers<'a>,
}

impl pulp::NullaryFnOnce for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { factors, buffers: Buffers { params, gradients, means, squares } } = self;
        for (((param, gradient), mean), square) in params.iter_mut().zip(gradients).zip(means).zip(squares) {
            let gradient = factors.gradient_scale * gradient;
            *mean = factors.beta1 * *mean + factors.one_minus_beta1 * gradient;
            *square = factors.beta2 * *square + factors.one_minus_beta2 * (gradient * gradient);
            let divisor = square.sqrt() * factors.inverse_root_correction2 + factors.eps;
            *param = *param * factors.keep - factors.step_size * *mean / divisor;
        }
    }
}

/// The definition, formula by formula: `step` from 0, the gradient already scaled.
#[cfg(test)]
#[allow(clippy::too_many_arguments)]
fn reference<T: crate::ops::real::Real>(
    options: &Optimizer,
    step: u64,
    learning_rate: f64,
    decays: impl Fn(usize) -> bool,
    params: &mut [T],
    gradients: &[T],
    means: &mut [T],
    squares: &mut [T],
) {
    let t = (step + 1) as i32;
    let (beta1, beta2) = (T::from_f64(options.beta1), T::from_f64(options.beta2));
    let learning_rate_of = |decay: f64| T::from_f64(1.0 - learning_rate * decay);
    let correction1 = T::from_f64(1.0 - options.beta1.powi(t));
    let correction2 = T::from_f64(1.0 - options.beta2.powi(t));
    for i in 0..params.len() {
        let g = gradients[i];
        means[i] = beta1 * means[i] + (T::ONE - beta1) * g;
        squares[i] = beta2 * squares[i] + (T::ONE - beta2) * g * g;
        let mean = means[i] / correction1;
        let square = squares[i] / correction2;
        params[i] *= learning_rate_of(if decays(i) { options.weight_decay } else { 0.0 });
        params[i] -= T::from_f64(learning_rate) * mean / (square.sqrt() + T::from_f64(options.eps));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ops::random;

    fn random_values(key: u64, len: usize, scale: f32) -> Vec<f32> {
        let mut values = vec![0.0; len];
        random::fill_normal(key, scale, &mut values);
        values
    }

    /// Five steps with gradients from 1e-12 to 1e6, segment borders inside and outside decayed ranges.
    #[test]
    fn updates_are_those_of_the_reference() {
        let len = 2 * SEGMENT_LEN + 1_234;
        let decayed = [3..17, 17..SEGMENT_LEN + 99, SEGMENT_LEN + 120..len - 1];
        let decays = |i: usize| decayed.iter().any(|range| range.contains(&i));
        let options = Optimizer { weight_decay: 0.3, ..Optimizer::default() };
        let adamw = AdamW::new(&options, len, &decayed);
        let start = random_values(1, len, 1.0);
        let (mut params, mut means, mut squares) = (start.clone(), vec![0.0; len], vec![0.0; len]);
        let mut exact: Vec<f64> = start.iter().map(|&value| value.into()).collect();
        let (mut exact_means, mut exact_squares) = (vec![0.0f64; len], vec![0.0f64; len]);
        let mut moved = 0.0f64;
        for step in 0..5 {
            let mut gradients = random_values(2 + step, len, 1.0);
            gradients.iter_mut().enumerate().for_each(|(i, g)| *g *= 10f32.powi((i % 19) as i32 - 12));
            let scaled: Vec<f64> = gradients.iter().map(|&gradient| f64::from(gradient) * 0.37).collect();
            let rate = 0.01 / (step + 1) as f64;
            adamw.step(step, rate, 0.37, &mut params, &gradients, &mut means, &mut squares);
            reference(&options, step, rate, decays, &mut exact, &scaled, &mut exact_means, &mut exact_squares);
            moved += rate;
        }
        for i in 0..len {
            let error = (f64::from(params[i]) - exact[i]).abs();
            // The weight is rounded ten times, by half a unit of 2^-23 each; so is what it moved by.
            assert!(error <= 6e-7 * exact[i].abs().max(0.1) + 2e-6 * moved, "{i}: {} {}", params[i], exact[i]);
            let gradient_size = 10f64.powi((i % 19) as i32 - 12);
            assert!((f64::from(means[i]) - exact_means[i]).abs() <= 1e-6 * gradient_size, "{i}");
            assert!((f64::from(squares[i]) - exact_squares[i]).abs() <= 1e-6 * exact_squares[i] + 1e-44, "{i}");
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let len = 5 * SEGMENT_LEN + 7;
        let adamw = AdamW::new(&Optimizer::default(), len, &[9..3 * SEGMENT_LEN, 4 * SEGMENT_LEN..len]);
        let gradients = random_values(1, len, 0.1);
        let run = |num_threads| {
            let (mut params, mut means, mut squares) = (random_values(2, len, 1.0), vec![0.0; len], vec![0.0; len]);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
            pool.install(|| adamw.step(0, 1e-3, 1.0, &mut params, &gradients, &mut means, &mut squares));
            params
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn a_first_step_moves_by_the_learning_rate_whatever_the_gradient() {
        let options = Optimizer { weight_decay: 0.5, ..Optimizer::default() };
        let adamw = AdamW::new(&options, 3, &[0..1, 2..3]);
        let (mut params, mut means, mut squares) = ([1.0, 1.0, 2.0], [0.0; 3], [0.0; 3]);
        adamw.step(0, 0.1, 1.0, &mut params, &[100.0, -0.01, 0.0], &mut means, &mut squares);
        // Decay and step; step alone; decay alone.
        let expected = [1.0 - 0.05 - 0.1, 1.0 + 0.1, 2.0 * (1.0 - 0.05)];
        assert!(params.iter().zip(expected).all(|(param, expected)| (param - expected).abs() < 1e-6), "{params:?}");
    }
}
