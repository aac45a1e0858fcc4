//! Token and position embedding: `x (b, t, c) = token (v, c)[id] + position (context, c)[t]`.
//!
//! Saved: the token ids. Backward: `dtoken[id] += dx`, `dposition[t] += Σ over b of dx`, in an order that depends on
//! neither the number of threads nor their timing: a task owns a band of ids and walks all tokens in order.

use rayon::prelude::*;

use super::{View, ViewMut, math, rows_per_task};

/// `x = token[id] + position[t]`; `ids` holds whole rows of `t` tokens, each id below `v`.
pub fn forward(
    x_btc: ViewMut<f32>,
    ids_bt: View<u32>,
    token_vc: View<f32>,
    position_tc: View<f32>,
    t: usize,
    c: usize,
) {
    let (token, position) = (token_vc.cpu(), position_tc.cpu());
    let rows = rows_per_task(c);
    let tasks = x_btc.cpu().par_chunks_mut(rows * c).zip(ids_bt.cpu().par_chunks(rows)).enumerate();
    tasks.for_each(|(task, (x, ids))| {
        for (i, (x, &id)) in x.chunks_exact_mut(c).zip(ids).enumerate() {
            let time = (task * rows + i) % t;
            let token = &token[id as usize * c..][..c];
            let position = &position[time * c..][..c];
            for ((x, &token), &position) in x.iter_mut().zip(token).zip(position) {
                *x = token + position;
            }
        }
    });
}

/// `dtoken[id] += dx`, `dposition[t] += dx`.
pub fn backward(
    dtoken_vc: ViewMut<f32>,
    dposition_tc: ViewMut<f32>,
    dx_btc: View<f32>,
    ids_bt: View<u32>,
    t: usize,
    c: usize,
) {
    const BAND: usize = 1024;
    let (dx, ids) = (dx_btc.cpu(), ids_bt.cpu());
    dtoken_vc.cpu().par_chunks_mut(BAND * c).enumerate().for_each(|(band, dtoken)| {
        for (dx, &id) in dx.chunks_exact(c).zip(ids) {
            if id as usize / BAND == band {
                add(&mut dtoken[id as usize % BAND * c..][..c], dx);
            }
        }
    });
    dposition_tc.cpu()[..t * c].par_chunks_mut(c).enumerate().for_each(|(time, dposition)| {
        for dx in dx.chunks_exact(t * c) {
            add(dposition, &dx[time * c..][..c]);
        }
    });
}

fn add(sum: &mut [f32], x: &[f32]) {
    math::vectorized(
        #[inline(always)]
        || {
            for (sum, &x) in sum.iter_mut().zip(x) {
                *sum += x;
            }
        },
    );
}

/// The definition, in plain loops.
pub mod reference {
    use crate::ops::real::Real;

    /// `x`.
    pub fn forward<T: Real>(ids_bt: &[u32], token_vc: &[T], position_tc: &[T], t: usize, c: usize) -> Vec<T> {
        let mut x = Vec::new();
        for (i, &id) in ids_bt.iter().enumerate() {
            for j in 0..c {
                x.push(token_vc[id as usize * c + j] + position_tc[i % t * c + j]);
            }
        }
        x
    }

    /// `dtoken` and `dposition` grow by the gradient.
    pub fn backward<T: Real>(
        dtoken_vc: &mut [T],
        dposition_tc: &mut [T],
        dx: &[T],
        ids_bt: &[u32],
        t: usize,
        c: usize,
    ) {
        for (i, &id) in ids_bt.iter().enumerate() {
            for j in 0..c {
                dtoken_vc[id as usize * c + j] += dx[i * c + j];
                dposition_tc[i % t * c + j] += dx[i * c + j];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ops::testing::{
        Autograd, GRADIENT_TOLERANCE, assert_bits_do_not_depend_on_threads, assert_close, assert_gradient, dot,
        numbers_below, on_threads, sum, values, wide,
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
        ids: Vec<u32>,
        token: Vec<f32>,
        position: Vec<f32>,
        dx: Vec<f32>,
    }

    fn case([b, t, context, c, v]: [usize; 5]) -> Case {
        let mut ids = numbers_below(v, 1, b * t);
        // The first and the last id are always there.
        ids[0] = 0;
        ids[b * t - 1] = v as u32 - 1;
        Case { ids, token: values(2, v * c), position: values(3, context * c), dx: values(4, b * t * c) }
    }

    fn run_forward(Case { ids, token, position, dx }: &Case, t: usize, c: usize) -> Vec<f32> {
        let mut x = vec![f32::NAN; dx.len()];
        let (token, position) = (token.as_slice().into(), position.as_slice().into());
        forward(x.as_mut_slice().into(), ids.as_slice().into(), token, position, t, c);
        x
    }

    fn run_backward(Case { ids, dx, .. }: &Case, t: usize, c: usize, [dtoken, dposition]: &mut [Vec<f32>; 2]) {
        let (dtoken, dposition) = (dtoken.as_mut_slice().into(), dposition.as_mut_slice().into());
        backward(dtoken, dposition, dx.as_slice().into(), ids.as_slice().into(), t, c);
    }

    #[test]
    fn reference_gradients_are_finite_differences_and_candles() {
        let [b, t, context, c, v] = [3, 4, 5, 3, 6];
        let Case { ids, token, position, dx } = case([b, t, context, c, v]);
        let [token, position, dx] = [token, position, dx].map(|values| wide(&values));
        let (mut dtoken, mut dposition) = (vec![0.0; v * c], vec![0.0; context * c]);
        reference::backward(&mut dtoken, &mut dposition, &dx, &ids, t, c);
        let loss = |token: &[f64], position: &[f64]| dot(&reference::forward(&ids, token, position, t, c), &dx);
        assert_gradient(&dtoken, &token, |token| loss(token, &position), "dtoken");
        assert_gradient(&dposition, &position, |position| loss(&token, position), "dposition");

        let (tokens, positions) = (Autograd::leaf(&token, &[v, c]), Autograd::leaf(&position, &[context, c]));
        let index = candle_core::Tensor::new(ids.as_slice(), &candle_core::Device::Cpu).unwrap();
        let x = tokens.index_select(&index, 0).unwrap().reshape((b, t, c)).unwrap();
        let x = x.broadcast_add(&positions.narrow(0, 0, t).unwrap()).unwrap();
        assert_eq!(reference::forward(&ids, &token, &position, t, c), Autograd::elements(&x));
        let gradients = Autograd::backward(&x, &dx);
        assert_close(&dtoken, &Autograd::gradient(&gradients, &tokens), 1e-15, "dtoken of candle");
        assert_close(&dposition, &Autograd::gradient(&gradients, &positions), 1e-15, "dposition of candle");
    }

    #[test]
    fn forward_overwrites_and_backward_adds_the_definition_over_odd_shapes() {
        on_threads(2, |_| {
            for shape in SHAPES {
                let [_, t, context, c, v] = shape;
                let case = case(shape);
                assert_eq!(run_forward(&case, t, c), reference::forward(&case.ids, &case.token, &case.position, t, c));
                let old = [values(5, v * c), values(6, context * c)];
                let mut gradients = old.clone();
                run_backward(&case, t, c, &mut gradients);
                let mut expected = [wide(&old[0]), wide(&old[1])];
                let [dtoken, dposition] = &mut expected;
                reference::backward(dtoken, dposition, &wide(&case.dx), &case.ids, t, c);
                for (actual, expected) in gradients.iter().zip(&expected) {
                    assert_close(actual, expected, GRADIENT_TOLERANCE, format!("{shape:?}"));
                }
                assert_eq!(gradients[1][t * c..], old[1][t * c..], "positions that no row reaches");
                assert_ne!(sum(&gradients[0], &vec![0.0; v * c]), wide(&old[0]));
            }
        });
    }

    #[test]
    fn results_have_the_same_bits_on_any_number_of_threads() {
        for shape in [[3, 65, 70, 16, 2500], [4, 513, 600, 64, 1025]] {
            let [_, t, context, c, v] = shape;
            let case = case(shape);
            assert_bits_do_not_depend_on_threads(|_| {
                let mut gradients = [vec![0.0; v * c], vec![0.0; context * c]];
                run_backward(&case, t, c, &mut gradients);
                [run_forward(&case, t, c), gradients.concat()].concat()
            });
        }
    }
}
