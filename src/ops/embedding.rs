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
