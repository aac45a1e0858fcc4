//! Products in every instruction set of this processor against the definition.

#![allow(clippy::unwrap_used)]

use super::{Kernels, SHARED_FLOATS, Strided, multiply};
use rayon::prelude::*;

use crate::ops::matmul::{Order, matmul, reference};
use crate::ops::{Device, View};

const ORDERS: [(Order, Order); 4] =
    [(Order::N, Order::N), (Order::N, Order::T), (Order::T, Order::N), (Order::T, Order::T)];

fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// An operand of (rows, cols) whose lines in memory are `gap` apart, which `order` may transpose; gaps hold NaN.
struct Matrix {
    memory: Vec<f32>,
    dense: Vec<f32>,
    order: Order,
    line: usize,
}

impl Matrix {
    fn new(rows: usize, cols: usize, order: Order, gap: usize, seed: u32) -> Self {
        let (num_lines, line) = if order == Order::N { (rows, cols) } else { (cols, rows) };
        let dense = values(rows * cols, seed);
        // Exactly as long as needed, so that reading past the end would leave the allocation.
        let mut memory = vec![f32::NAN; (num_lines - 1) * (line + gap) + line];
        for (i, values) in dense.chunks(line).enumerate() {
            memory[i * (line + gap)..][..line].copy_from_slice(values);
        }
        Self { memory, dense, order, line: line + gap }
    }

    fn strided(&self) -> Strided {
        let data = self.memory.as_ptr();
        match self.order {
            Order::N => Strided { data, row_stride: self.line, col_stride: 1 },
            Order::T => Strided { data, row_stride: 1, col_stride: self.line },
        }
    }
}

/// The product in memory with gaps, and what C held before.
fn product(
    kernels: &Kernels,
    sizes: [usize; 3],
    orders: (Order, Order),
    scales: (f32, f32),
    threads: usize,
) -> Product {
    let [m, n, k] = sizes;
    let a = Matrix::new(m, k, orders.0, 5, 1);
    let b = Matrix::new(k, n, orders.1, 3, 2);
    let before = if scales.1 == 0.0 { vec![f32::NAN; m * n] } else { values(m * n, 3) };
    let row = n + GAP;
    let mut c = vec![7.0; m * row];
    for (c, before) in c.chunks_mut(row).zip(before.chunks(n)) {
        c[..n].copy_from_slice(before);
    }
    let (alpha, beta) = scales;
    // SAFETY: sizes and strides are those of the matrices.
    unsafe { multiply(kernels, sizes, alpha, a.strided(), b.strided(), beta, c.as_mut_ptr(), row, threads) }
    Product { a: a.dense, b: b.dense, before, c }
}

struct Product {
    a: Vec<f32>,
    b: Vec<f32>,
    before: Vec<f32>,
    c: Vec<f32>,
}

/// Floats between the rows of C.
const GAP: usize = 2;

/// Compares a product with the definition in f64.
fn check(kernels: &Kernels, sizes: [usize; 3], orders: (Order, Order), (alpha, beta): (f32, f32), threads: usize) {
    let [_, n, k] = sizes;
    let Product { a, b, before, c } = product(kernels, sizes, orders, (alpha, beta), threads);
    let double = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let mut expected = double(&before);
    let (a, b) = (double(&a), double(&b));
    reference::matmul(sizes, f64::from(alpha), (&a, orders.0), (&b, orders.1), f64::from(beta), &mut expected);
    // Each sum of k products below 1 is rounded k times, to 2^-24 of what it is then.
    let bound = 1e-6 + 2e-7 * k as f64;
    for (i, (c, expected)) in c.chunks(n + GAP).zip(expected.chunks(n)).enumerate() {
        for (j, (&c, &expected)) in c.iter().zip(expected).enumerate() {
            let name = kernels.name;
            assert!(
                (f64::from(c) - expected).abs() <= bound,
                "{name} {sizes:?} {orders:?} alpha {alpha} beta {beta} at ({i}, {j}): {c}, not {expected}"
            );
        }
        assert_eq!(c[n..], [7.0; GAP], "beyond the columns of row {i}");
    }
}

#[test]
fn products_of_odd_sizes_equal_the_definition_in_every_order_and_instruction_set() {
    let lengths = [1, 2, 13, 14, 15, 16, 17, 29, 31, 32, 33, 63, 65];
    let kernels = Kernels::supported();
    for kernels in kernels {
        for orders in ORDERS {
            for m in lengths {
                for n in lengths {
                    for k in [1, 7, 8, 15, 16, 17, 33, 64] {
                        check(kernels, [m, n, k], orders, (1.0, 0.0), 1);
                    }
                }
            }
        }
    }
}

#[test]
fn products_of_several_strips_and_blocks_equal_the_definition() {
    for kernels in Kernels::supported() {
        for orders in ORDERS {
            for sizes in [[211, 400, 17], [400, 195, 17], [65, 33, 1153], [1, 450, 769], [450, 1, 769], [90, 210, 385]]
            {
                for scales in [(1.0, 1.0), (-0.375, 0.0), (0.375, -2.0)] {
                    check(kernels, sizes, orders, scales, 2);
                }
            }
        }
    }
}

#[test]
fn a_shared_operand_that_is_packed_in_several_rounds_gives_the_same_product() {
    let sizes = [64, 65, 17_000];
    assert!(sizes[0] * sizes[2] > SHARED_FLOATS);
    for kernels in Kernels::supported() {
        check(kernels, sizes, (Order::N, Order::T), (1.0, 1.0), 2);
        check(kernels, sizes, (Order::T, Order::N), (1.0, 0.0), 2);
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for kernels in Kernels::supported() {
        for orders in ORDERS {
            for sizes in [[300, 500, 800], [500, 300, 400]] {
                let on = |threads: usize| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    pool.install(|| product(kernels, sizes, orders, (0.5, 1.0), threads).c)
                };
                let one = on(1);
                assert!(one == on(2) && one == on(3), "{} {sizes:?} {orders:?}", kernels.name);
            }
        }
    }
}

#[test]
fn nan_and_infinity_reach_what_they_enter_and_nothing_else() {
    let [m, n, k] = [45, 70, 50];
    for kernels in Kernels::supported() {
        let (mut a, b) = (values(m * k, 1), values(k * n, 2));
        a[3 * k + 49] = f32::NAN;
        a[44 * k] = f32::INFINITY;
        let mut c = vec![f32::NAN; m * n];
        let strided = |x: &[f32], row_stride| Strided { data: x.as_ptr(), row_stride, col_stride: 1 };
        // SAFETY: sizes and strides are those of the matrices.
        unsafe { multiply(kernels, [m, n, k], 1.0, strided(&a, k), strided(&b, n), 0.0, c.as_mut_ptr(), n, 1) }
        for (i, row) in c.chunks(n).enumerate() {
            match i {
                3 => assert!(row.iter().all(|x| x.is_nan())),
                44 => assert!(row.iter().zip(&b).all(|(&x, &y)| x == f32::INFINITY * y)),
                _ => assert!(row.iter().all(|x| x.is_finite())),
            }
        }
    }
}

#[test]
fn products_inside_of_products_do_not_share_their_room() {
    let (a, b) = (values(64 * 300, 1), values(300 * 400, 2));
    let on = |device: &Device| {
        let mut c = vec![0.0; 64 * 400];
        let (a, b) = ((View::from(&a[..]), Order::N), (View::from(&b[..]), Order::T));
        matmul(device, [64, 400, 300], 1.0, a, b, 0.0, c.as_mut_slice().into());
        c
    };
    let alone = on(&Device::Cpu { threads: 1 });
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let many = pool.install(|| (0..32).into_par_iter().map(|_| on(&Device::cpu())).collect::<Vec<_>>());
    assert!(many.iter().all(|c| *c == alone));
}
