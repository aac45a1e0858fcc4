//! Sums over the rows of a matrix: gradients of biases, and the second step of every sum that blocks leave in parts.

use super::{Arg, Element, Gpu, Grid, NO_POINTER, View, ViewMut};

/// Columns of a block.
const COLUMNS: usize = 256;
/// Most slices of rows: so many that a card's multiprocessors end at about the same time where an MLP's columns are some twenty
/// blocks a slice.
const MAX_SLICES: usize = 128;
/// Rows that are worth a slice.
const ROWS_PER_SLICE: usize = 64;

fn num_slices(n: usize) -> usize {
    n.div_ceil(ROWS_PER_SLICE).clamp(1, MAX_SLICES)
}

/// Elements of scratch for a matrix of `n` rows and `o` columns.
pub fn partials_len(n: usize, o: usize) -> usize {
    num_slices(n) * o
}

/// The blocks of a kernel that walks a matrix of `n` rows and `o` columns and may leave the sums of slices of its rows.
pub(super) fn grid(n: usize, o: usize) -> Grid {
    let blocks = [o.div_ceil(COLUMNS) as u32, num_slices(n) as u32, 1];
    Grid { blocks, threads: 256, shared_bytes: 256 * 8 * 4 }
}

/// `sums (o) += Σ rows of x (n, o)`; `partials` has [`partials_len`] elements.
pub fn add<T: Element>(gpu: &Gpu, sums: ViewMut<f32>, x: View<T>, partials: ViewMut<f32>) {
    let o = sums.len();
    let n = x.len() / o;
    assert_eq!(x.len(), n * o, "sizes of a sum of rows");
    let partials = partials.window(0..partials_len(n, o));
    let args = [partials.arg(), x.arg(), Arg::I32(n as i32), Arg::I32(o as i32)];
    gpu.launch(&format!("column_sums_{}", T::SUFFIX), grid(n, o), &args);
    add_partials(gpu, [Some(sums)], partials.as_view(), o);
}

/// `sums (c) += Σ of partials`, (parts, kinds of sums, c), of the kinds that are wanted; there are at most three.
pub fn add_partials<const KINDS: usize>(gpu: &Gpu, sums: [Option<ViewMut<f32>>; KINDS], partials: View<f32>, c: usize) {
    const { assert!(KINDS >= 1 && KINDS <= 3, "kinds of sums that the kernel knows") };
    let num_partials = partials.len() / (KINDS * c);
    assert_eq!(partials.len(), num_partials * KINDS * c, "sizes of a sum of parts");
    assert!(sums.iter().flatten().all(|sums| sums.len() == c), "sizes of a sum of parts");
    let grid = Grid { blocks: [c.div_ceil(32) as u32, KINDS as u32, 1], threads: 256, shared_bytes: 256 * 4 };
    let partials = partials.arg().moving(4 * num_partials * c * sums.iter().flatten().count());
    let mut args = [NO_POINTER; 3];
    args.iter_mut().zip(sums).for_each(|(arg, sums)| *arg = sums.map_or(NO_POINTER, |sums| sums.arg_in_place()));
    let sizes = [num_partials, c].map(|size| Arg::I32(size as i32));
    gpu.launch("sum_partials", grid, &[args[0], args[1], args[2], partials, sizes[0], sizes[1]]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use half::bf16;

    use super::*;
    use crate::gpu::testing::{F32_TOLERANCE, check, on_both, rounded};
    use crate::ops::testing::{assert_close, values};

    fn sums_are_the_definition<T: Element>() {
        for [n, o] in [[1, 1], [3, 9], [64, 8], [65, 257], [300, 31], [8193, 3], [130, 520]] {
            let (x, wide) = rounded::<T>(1, n * o);
            let old = values(2, o);
            let expected: Vec<f64> =
                (0..o).map(|i| f64::from(old[i]) + wide.iter().skip(i).step_by(o).sum::<f64>()).collect();
            let Some([sums]) = on_both(|gpu| {
                let (x, mut sums) = (gpu.buffer_of(&x).unwrap(), gpu.buffer_of(&old).unwrap());
                let mut partials = gpu.zeros(partials_len(n, o)).unwrap();
                add(gpu, sums.view_mut(), x.view(), partials.view_mut());
                [check(gpu, sums.view())]
            }) else {
                return;
            };
            assert_close(&sums, &expected, F32_TOLERANCE, format!("{n} x {o}"));
        }
    }

    #[test]
    fn sums_are_the_definition_in_f32() {
        sums_are_the_definition::<f32>();
    }

    #[test]
    fn sums_are_the_definition_in_bf16() {
        sums_are_the_definition::<bf16>();
    }
}
