//! Token and position embedding in f32; the twin of `ops/embedding.rs`.
//!
//! Backward adds the rows of each id in the order of the batch, one block for each id: the host sorts the batch's rows by
//! id ([`SortedIds`]), which costs it little and makes the sum's order depend on nothing else.

use super::{Arg, Gpu, Grid, View, ViewMut, optional};
use crate::ops::embedding::Embedding;

/// `x = scale token[id] + position[first_position + time]`.
pub fn forward(
    gpu: &Gpu,
    shape: Embedding,
    x_btc: ViewMut<f32>,
    ids_bt: View<u32>,
    token_vc: View<f32>,
    position_tc: Option<View<f32>>,
) {
    let Embedding { t, c, scale, first_position, .. } = shape;
    let n = ids_bt.len();
    assert_eq!(x_btc.len(), n * c, "sizes of an embedding");
    assert!(position_tc.is_none_or(|table| table.len() >= (first_position + t) * c), "positions of an embedding");
    let (rows, positions) = (n * c * size_of::<f32>(), t * c * size_of::<f32>());
    let position = optional(position_tc).moving(if position_tc.is_some() { positions } else { 0 });
    let mut args = vec![x_btc.arg(), ids_bt.arg(), token_vc.arg().moving(rows), position];
    args.extend([n, t, c, first_position].map(|size| Arg::I32(size as i32)));
    args.push(Arg::F32(scale));
    gpu.launch("embedding_forward", Grid::new((n * c.div_ceil(8)).div_ceil(256), 256), &args);
}

/// The rows of a batch by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SortedIds {
    /// The different ids that get a gradient, in ascending order.
    pub ids: Vec<u32>,
    /// Where each one's rows begin in `order`, and their end.
    pub starts: Vec<u32>,
    /// Rows by id, each id's in the order of the batch.
    pub order: Vec<u32>,
}

impl SortedIds {
    /// The rows of `ids` by id, without those of the frozen one.
    pub fn of(ids: &[u32], frozen_id: Option<u32>) -> Self {
        let mut order: Vec<u32> = (0..ids.len() as u32).filter(|&row| Some(ids[row as usize]) != frozen_id).collect();
        order.sort_by_key(|&row| ids[row as usize]); // stable
        let mut sorted = Self { ids: Vec::new(), starts: Vec::new(), order };
        for (i, &row) in sorted.order.iter().enumerate() {
            let id = ids[row as usize];
            if sorted.ids.last() != Some(&id) {
                sorted.ids.push(id);
                sorted.starts.push(i as u32);
            }
        }
        sorted.starts.push(sorted.order.len() as u32);
        sorted
    }
}

/// [`SortedIds`] on the device: `ids`, `starts` (one more) and `order`.
#[derive(Clone, Copy)]
pub struct SortedViews<'a> {
    /// See [`SortedIds::ids`].
    pub ids: View<'a, u32>,
    /// See [`SortedIds::starts`].
    pub starts: View<'a, u32>,
    /// See [`SortedIds::order`].
    pub order: View<'a, u32>,
}

/// `dtoken[id] += scale dx`, `dposition[first_position + time] += Σ over b of dx`.
pub fn backward(
    gpu: &Gpu,
    shape: Embedding,
    dtoken_vc: ViewMut<f32>,
    dposition_tc: Option<ViewMut<f32>>,
    dx_btc: View<f32>,
    sorted: SortedViews,
) {
    let Embedding { t, c, scale, first_position, .. } = shape;
    let num_ids = sorted.ids.len();
    assert_eq!(sorted.starts.len(), num_ids + 1, "starts of sorted ids");
    let row_bytes = c * size_of::<f32>();
    let dtoken = dtoken_vc.arg().moving(2 * num_ids * row_bytes);
    let windows = [dtoken, dx_btc.arg(), sorted.ids.arg(), sorted.starts.arg(), sorted.order.arg()];
    let sizes = [Arg::I32(num_ids as i32), Arg::I32(c as i32), Arg::F32(scale)];
    let threads = c.div_ceil(8).next_multiple_of(32).min(256) as u32;
    gpu.launch("embedding_backward_token", Grid::new(num_ids, threads), &[windows.as_slice(), &sizes].concat());
    if let Some(dposition) = dposition_tc {
        let b = dx_btc.len() / (t * c);
        let mut args = vec![dposition.arg().moving(2 * t * row_bytes), dx_btc.arg()];
        args.extend([b, t, c, first_position].map(|size| Arg::I32(size as i32)));
        gpu.launch("embedding_backward_position", Grid::new((t * c.div_ceil(8)).div_ceil(256), 256), &args);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gpu::testing::{F32_TOLERANCE, check, on_both};
    use crate::ops::embedding::reference;
    use crate::ops::testing::{assert_close, numbers_below, values, wide};

    #[test]
    fn ids_are_sorted_with_rows_in_order_and_without_the_frozen_one() {
        let sorted = SortedIds::of(&[5, 2, 5, 0, 2, 5], Some(0));
        let expected = SortedIds { ids: vec![2, 5], starts: vec![0, 2, 5], order: vec![1, 4, 0, 2, 5] };
        assert_eq!(sorted, expected);
        assert_eq!(SortedIds::of(&[], None).starts, [0]);
    }

    #[test]
    fn embeddings_are_the_definition() {
        for (b, t, c, v, with_position) in [
            (1, 1, 1, 1, true),
            (2, 5, 9, 4, true),
            (3, 7, 64, 20, false),
            (2, 33, 265, 3, true),
            (1, 4, 2056, 9, true),
        ] {
            for frozen_id in [None, Some(1)] {
                let shape = Embedding { t, c, scale: 1.5, first_position: 2, frozen_id };
                let n = b * t;
                let ids = numbers_below(v, 1, n);
                let (token, position, dx) = (values(2, v * c), values(3, (t + 3) * c), values(4, n * c));
                let (old_dtoken, old_dposition) = (values(5, v * c), values(6, (t + 3) * c));
                let Some([x, dtoken, dposition]) = on_both(|gpu| {
                    let [token, position, dx] = [&token, &position, &dx].map(|values| gpu.buffer_of(values).unwrap());
                    let on_gpu = gpu.buffer_of(&ids).unwrap();
                    let mut x = gpu.zeros(n * c).unwrap();
                    let positions = with_position.then(|| position.view());
                    forward(gpu, shape, x.view_mut(), on_gpu.view(), token.view(), positions);
                    let [mut dtoken, mut dposition] =
                        [&old_dtoken, &old_dposition].map(|values| gpu.buffer_of(values).unwrap());
                    let sorted = SortedIds::of(&ids, frozen_id);
                    let [ids, starts, order] =
                        [&sorted.ids, &sorted.starts, &sorted.order].map(|values| gpu.buffer_of(values).unwrap());
                    let sorted = SortedViews { ids: ids.view(), starts: starts.view(), order: order.view() };
                    let into = with_position.then(|| dposition.view_mut());
                    backward(gpu, shape, dtoken.view_mut(), into, dx.view(), sorted);
                    [check(gpu, x.view()), check(gpu, dtoken.view()), check(gpu, dposition.view())]
                }) else {
                    return;
                };
                let what = format!("{b} x {t} x {c}, {v} ids, frozen: {frozen_id:?}");
                let (wide_token, wide_position) = (wide(&token), wide(&position));
                let positions = with_position.then_some(wide_position.as_slice());
                assert_close(&x, &reference::forward(shape, &ids, &wide_token, positions), F32_TOLERANCE, &what);
                let (mut expected, mut expected_position) = (wide(&old_dtoken), wide(&old_dposition));
                let into = with_position.then_some(expected_position.as_mut_slice());
                reference::backward(shape, &mut expected, into, &wide(&dx), &ids);
                assert_close(&dtoken, &expected, F32_TOLERANCE, format!("dtoken of {what}"));
                assert_close(&dposition, &expected_position, F32_TOLERANCE, format!("dposition of {what}"));
            }
        }
    }
}
