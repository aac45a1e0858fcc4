//! Token and position embedding: `x (b, t, c) = scale token (v, c)[id] + position (context, c)[first_position + time]`;
//! the positions are optional.
//!
//! Saved: the token ids. Backward: `dtoken[id] += scale dx`, `dposition[first_position + time] += Σ over b of dx`, in
//! an order that depends on neither the number of threads nor their timing: a task owns a band of ids and walks all
//! tokens in order. A frozen id gets no gradient here, though it may get one from a head that shares the matrix.

use rayon::prelude::*;

use super::{View, ViewMut, math, rows_per_task};

/// How ids become vectors: `x = scale token[id] + position[first_position + time]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Embedding {
    /// Tokens in a row.
    pub t: usize,
    /// Channels.
    pub c: usize,
    /// Factor of the token's vector, not of the position's.
    pub scale: f32,
    /// The position of a row's first token.
    pub first_position: usize,
    /// The id whose row gets no gradient (PyTorch's `padding_idx`).
    pub frozen_id: Option<u32>,
}

/// `x = scale token[id] + position[first_position + time]`; `ids` holds whole rows of `t` tokens, each id below `v`.
pub fn forward(
    shape: Embedding,
    x_btc: ViewMut<f32>,
    ids_bt: View<u32>,
    token_vc: View<f32>,
    position_tc: Option<View<f32>>,
) {
    let Embedding { t, c, scale, first_position, .. } = shape;
    let (token, position) = (token_vc.cpu(), position_tc.map(View::cpu));
    let rows = rows_per_task(c);
    let tasks = x_btc.cpu().par_chunks_mut(rows * c).zip(ids_bt.cpu().par_chunks(rows)).enumerate();
    tasks.for_each(|(task, (x, ids))| {
        math::vectorized(
            #[inline(always)]
            || {
                for (i, (x, &id)) in x.chunks_exact_mut(c).zip(ids).enumerate() {
                    let token = &token[id as usize * c..][..c];
                    match position {
                        None => {
                            for (x, &token) in x.iter_mut().zip(token) {
                                *x = scale * token;
                            }
                        }
                        Some(position) => {
                            let time = (task * rows + i) % t;
                            let position = &position[(first_position + time) * c..][..c];
                            for ((x, &token), &position) in x.iter_mut().zip(token).zip(position) {
                                *x = scale * token + position;
                            }
                        }
                    }
                }
            },
        );
    });
}

/// `dtoken[id] += scale dx` unless the id is frozen, `dposition[first_position + time] += dx`.
pub fn backward(
    shape: Embedding,
    dtoken_vc: ViewMut<f32>,
    dposition_tc: Option<ViewMut<f32>>,
    dx_btc: View<f32>,
    ids_bt: View<u32>,
) {
    const BAND: usize = 1024;
    let Embedding { t, c, scale, first_position, frozen_id } = shape;
    let (dx, ids) = (dx_btc.cpu(), ids_bt.cpu());
    dtoken_vc.cpu().par_chunks_mut(BAND * c).enumerate().for_each(|(band, dtoken)| {
        for (dx, &id) in dx.chunks_exact(c).zip(ids) {
            if id as usize / BAND == band && Some(id) != frozen_id {
                add(&mut dtoken[id as usize % BAND * c..][..c], scale, dx);
            }
        }
    });
    let Some(dposition_tc) = dposition_tc else { return };
    dposition_tc.cpu()[first_position * c..][..t * c].par_chunks_mut(c).enumerate().for_each(|(time, dposition)| {
        for dx in dx.chunks_exact(t * c) {
            add(dposition, 1.0, &dx[time * c..][..c]);
        }
    });
}

/// `sum += scale x`.
fn add(sum: &mut [f32], scale: f32, x: &[f32]) {
    math::vectorized(
        #[inline(always)]
        || {
            for (sum, &x) in sum.iter_mut().zip(x) {
                *sum += scale * x;
            }
        },
    );
}

/// The definition, in plain loops.
pub mod reference {
    use super::Embedding;
    use crate::ops::real::Real;

    /// `x`.
    pub fn forward<T: Real>(shape: Embedding, ids_bt: &[u32], token_vc: &[T], position_tc: Option<&[T]>) -> Vec<T> {
        let Embedding { t, c, scale, first_position, .. } = shape;
        let mut x = Vec::new();
        for (i, &id) in ids_bt.iter().enumerate() {
            for j in 0..c {
                let token = T::from_f32(scale) * token_vc[id as usize * c + j];
                let position = position_tc.map_or(T::ZERO, |position| position[(first_position + i % t) * c + j]);
                x.push(token + position);
            }
        }
        x
    }

    /// `dtoken` and `dposition` grow by the gradient.
    pub fn backward<T: Real>(
        shape: Embedding,
        dtoken_vc: &mut [T],
        mut dposition_tc: Option<&mut [T]>,
        dx: &[T],
        ids_bt: &[u32],
    ) {
        let Embedding { t, c, scale, first_position, frozen_id } = shape;
        for (i, &id) in ids_bt.iter().enumerate() {
            for j in 0..c {
                if Some(id) != frozen_id {
                    dtoken_vc[id as usize * c + j] += T::from_f32(scale) * dx[i * c + j];
                }
                if let Some(dposition) = &mut dposition_tc {
                    dposition[(first_position + i % t) * c + j] += dx[i * c + j];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ops::testing::{
        Autograd, GRADIENT_TOLERANCE, VALUE_TOLERANCE, assert_bits_do_not_depend_on_threads, assert_close,
        assert_gradient, dot, numbers_below, on_threads, values, wide,
    };

    /// Batch rows, tokens in a row, context, channels, vocabulary: one of everything, several tasks of rows with a rest,
    /// several bands of ids, a row shorter than the context.
    const SHAPES: [[usize; 5]; 8] = [
        [1, 1, 1, 1, 1],
        [1, 3, 3, 1, 2],
        [2, 1, 5, 17, 3],
        [3, 15, 16, 15, 17],
        [5, 63, 64, 65, 129],
        [2, 200, 200, 129, 1024],
        [3, 65, 70, 16, 2500],
        [4, 513, 600, 64, 1025],
    ];

    struct Case {
        shape: Embedding,
        ids: Vec<u32>,
        token: Vec<f32>,
        position: Option<Vec<f32>>,
        dx: Vec<f32>,
    }

    /// GPT-2's way; with positions that start anywhere, a scale and a frozen id; the same without positions.
    fn cases([b, t, context, c, v]: [usize; 5]) -> [Case; 3] {
        let mut ids = numbers_below(v, 1, b * t);
        // The first and the last id are always there.
        ids[0] = 0;
        ids[b * t - 1] = v as u32 - 1;
        let plain = Embedding { t, c, scale: 1.0, first_position: 0, frozen_id: None };
        let scaled = Embedding { scale: 1.7, first_position: context - t, frozen_id: Some(v as u32 - 1), ..plain };
        [(plain, true), (scaled, true), (scaled, false)].map(|(shape, with_position)| Case {
            shape,
            ids: ids.clone(),
            token: values(2, v * c),
            position: with_position.then(|| values(3, context * c)),
            dx: values(4, b * t * c),
        })
    }

    fn run_forward(case: &Case) -> Vec<f32> {
        let mut x = vec![f32::NAN; case.dx.len()];
        let (ids, token) = (case.ids.as_slice().into(), case.token.as_slice().into());
        forward(case.shape, x.as_mut_slice().into(), ids, token, case.position.as_deref().map(View::from));
        x
    }

    /// Adds to `[dtoken, dposition]`, to the last if there are positions.
    fn run_backward(case: &Case, [dtoken, dposition]: &mut [Vec<f32>; 2]) {
        let dposition = case.position.as_ref().map(|_| dposition.as_mut_slice().into());
        let (dx, ids) = (case.dx.as_slice().into(), case.ids.as_slice().into());
        backward(case.shape, dtoken.as_mut_slice().into(), dposition, dx, ids);
    }

    #[test]
    fn reference_gradients_are_finite_differences_and_candles() {
        let [b, t, context, c, v] = [3, 4, 6, 3, 6];
        for Case { shape, ids, token, position, dx } in cases([b, t, context, c, v]) {
            let (token, dx) = (wide(&token), wide(&dx));
            let with_position = position.is_some();
            let position = position.map_or_else(|| vec![0.0; context * c], |position| wide(&position));
            let forward = |token: &[f64], position: &[f64]| {
                reference::forward(shape, &ids, token, with_position.then_some(position))
            };
            // What is frozen has a derivative all the same.
            let (mut dtoken, mut dposition) = (vec![0.0; v * c], vec![0.0; context * c]);
            let thawed = Embedding { frozen_id: None, ..shape };
            reference::backward(thawed, &mut dtoken, with_position.then_some(&mut dposition), &dx, &ids);
            let loss = |token: &[f64], position: &[f64]| dot(&forward(token, position), &dx);
            assert_gradient(&dtoken, &token, |token| loss(token, &position), "dtoken");
            assert_gradient(&dposition, &position, |position| loss(&token, position), "dposition");

            let (tokens, positions) = (Autograd::leaf(&token, &[v, c]), Autograd::leaf(&position, &[context, c]));
            let index = candle_core::Tensor::new(ids.as_slice(), &candle_core::Device::Cpu).unwrap();
            let x = tokens.index_select(&index, 0).unwrap().reshape((b, t, c)).unwrap();
            let reached = positions.narrow(0, shape.first_position, t).unwrap();
            let x = (x * f64::from(shape.scale)).unwrap().broadcast_add(&reached).unwrap();
            assert_eq!(forward(&token, &position), Autograd::elements(&x));
            let gradients = Autograd::backward(&x, &dx);
            assert_close(&dtoken, &Autograd::gradient(&gradients, &tokens), 1e-15, "dtoken of candle");
            if with_position {
                assert_close(&dposition, &Autograd::gradient(&gradients, &positions), 1e-15, "dposition of candle");
            }

            let mut frozen = vec![0.0; v * c];
            reference::backward(shape, &mut frozen, None, &dx, &ids);
            if let Some(id) = shape.frozen_id {
                dtoken[id as usize * c..][..c].fill(0.0);
            }
            assert_eq!(frozen, dtoken, "but for the frozen row");
        }
    }

    #[test]
    fn forward_overwrites_and_backward_adds_the_definition_over_odd_shapes() {
        on_threads(2, |_| {
            for (case, sizes) in SHAPES.iter().flat_map(|&sizes| cases(sizes).map(|case| (case, sizes))) {
                let [_, t, context, c, v] = sizes;
                let Case { shape, ids, token, position, dx } = &case;
                let x = run_forward(&case);
                assert_eq!(x, reference::forward(*shape, ids, token, position.as_deref()), "{shape:?}");
                let exact = position.as_deref().map(wide);
                let exact = reference::forward(*shape, ids, &wide(token), exact.as_deref());
                assert_close(&x, &exact, VALUE_TOLERANCE, format!("{shape:?}"));
                let old = [values(5, v * c), values(6, context * c)];
                let mut gradients = old.clone();
                run_backward(&case, &mut gradients);
                let mut expected = [wide(&old[0]), wide(&old[1])];
                let [dtoken, dposition] = &mut expected;
                let dposition = position.is_some().then_some(dposition.as_mut_slice());
                reference::backward(*shape, dtoken, dposition, &wide(dx), ids);
                for (actual, expected) in gradients.iter().zip(&expected) {
                    assert_close(actual, expected, GRADIENT_TOLERANCE, format!("{shape:?}"));
                }
                let reached = shape.first_position * c..(shape.first_position + t) * c;
                for outside in [0..reached.start, reached.end..context * c] {
                    assert_eq!(gradients[1][outside.clone()], old[1][outside], "positions that no row reaches");
                }
                match shape.frozen_id {
                    None => assert_ne!(gradients[0], old[0]),
                    Some(id) => {
                        let row = id as usize * c..(id as usize + 1) * c;
                        assert_eq!(gradients[0][row.clone()], old[0][row], "the frozen row");
                    }
                }
            }
        });
    }

    #[test]
    fn not_a_number_stays_in_the_rows_that_use_it() {
        let sizes = [2, 5, 7, 17, 9];
        let [_, _, _, c, v] = sizes;
        for mut case in cases(sizes) {
            case.token[c + 3] = f32::NAN;
            case.ids[4] = 1;
            let x = run_forward(&case);
            for (x, &id) in x.chunks(c).zip(&case.ids) {
                assert!(x.iter().enumerate().all(|(j, x)| x.is_nan() == (id == 1 && j == 3)), "{:?}", case.shape);
            }
            case.dx[4 * c + 3] = f32::NAN;
            let mut gradients = [vec![0.0; v * c], vec![0.0; 7 * c]];
            run_backward(&case, &mut gradients);
            let poisoned =
                |values: &[f32]| -> Vec<usize> { (0..values.len()).filter(|&i| values[i].is_nan()).collect() };
            assert_eq!(poisoned(&gradients[0]), [c + 3]);
            let position = case.position.as_ref().map(|_| (case.shape.first_position + 4) * c + 3);
            assert_eq!(poisoned(&gradients[1]), Vec::from_iter(position));
        }
    }

    #[test]
    fn results_have_the_same_bits_on_any_number_of_threads() {
        for sizes in [[3, 65, 70, 16, 2500], [4, 513, 600, 64, 1025]] {
            let [_, _, context, c, v] = sizes;
            for case in cases(sizes) {
                assert_bits_do_not_depend_on_threads(|_| {
                    let mut gradients = [vec![0.0; v * c], vec![0.0; context * c]];
                    run_backward(&case, &mut gradients);
                    [run_forward(&case), gradients.concat()].concat()
                });
            }
        }
    }
}
