//! The matrix product, which is nearly all of the arithmetic: `C = beta C + alpha op(A) op(B)`.
//!
//! Matrices are row-major; `T` means that the memory holds the transpose. On x86-64 with AVX2 or
//! AVX-512 most products are our own (`ops::gemm`), the others are the `gemm` crate's.
//!
//! `beta` 0 never reads C, so that it may hold anything, NaN included.

#[cfg(target_arch = "x86_64")]
use super::gemm;
use super::strided::Strided;
use super::{Device, View, ViewMut};

/// Whether an operand lies in memory as it enters the product (`N`) or transposed (`T`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As it is.
    N,
    /// Transposed.
    T,
}

/// `c (m, n) = beta c + alpha a (m, k) b (k, n)`; an operand with `Order::T` lies in memory as (k, m) or (n, k).
pub fn matmul(
    device: &Device,
    [m, n, k]: [usize; 3],
    alpha: f32,
    (a, a_order): (View<f32>, Order),
    (b, b_order): (View<f32>, Order),
    beta: f32,
    c: ViewMut<f32>,
) {
    assert_eq!((a.len(), b.len(), c.len()), (m * k, k * n, m * n), "sizes of a matrix product {m} x {n} x {k}");
    let Device::Cpu { threads } = device;
    let strided = |data: *const f32, order, rows: usize, cols: usize| match order {
        Order::N => Strided { data, row_stride: cols, col_stride: 1 },
        Order::T => Strided { data, row_stride: 1, col_stride: rows },
    };
    let a = strided(a.cpu().as_ptr(), a_order, m, k);
    let b = strided(b.cpu().as_ptr(), b_order, k, n);
    // SAFETY: the sizes were compared above, `c` is borrowed mutably and cannot overlap `a` or `b`.
    unsafe { gemm_strided([m, n, k], alpha, a, b, beta, c.cpu().as_mut_ptr(), n, *threads) }
}

/// The product on the CPU with strides; `c` is row-major with `c_row_stride`.
///
/// # Safety
/// Every element that the sizes and strides name must be readable (`a`, `b`) or writable by this thread alone (`c`).
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn gemm_strided(
    [m, n, k]: [usize; 3],
    alpha: f32,
    a: Strided,
    b: Strided,
    beta: f32,
    c: *mut f32,
    c_row_stride: usize,
    threads: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if gemm::pays([m, n, k], a, b)
        && let Some(kernels) = gemm::Kernels::of_this_processor()
    {
        // SAFETY: passed on to the caller.
        return unsafe { gemm::multiply(kernels, [m, n, k], alpha, a, b, beta, c, c_row_stride, threads) };
    }
    let parallelism = if threads > 1 { ::gemm::Parallelism::Rayon(threads) } else { ::gemm::Parallelism::None };
    // The crate calls `alpha` what multiplies the destination and `beta` what multiplies the product.
    // SAFETY: passed on to the caller.
    unsafe {
        ::gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            c_row_stride as isize,
            beta != 0.0,
            a.data,
            a.col_stride as isize,
            a.row_stride as isize,
            b.data,
            b.col_stride as isize,
            b.row_stride as isize,
            beta,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// The definition, in plain loops.
pub mod reference {
    use super::Order;
    use crate::ops::real::Real;

    /// See [`super::matmul`].
    pub fn matmul<T: Real>(
        [m, n, k]: [usize; 3],
        alpha: T,
        (a, a_order): (&[T], Order),
        (b, b_order): (&[T], Order),
        beta: T,
        c: &mut [T],
    ) {
        for i in 0..m {
            for j in 0..n {
                let mut sum = T::ZERO;
                for l in 0..k {
                    let x = if a_order == Order::N { a[i * k + l] } else { a[l * m + i] };
                    let y = if b_order == Order::N { b[l * n + j] } else { b[j * k + l] };
                    sum += x * y;
                }
                let kept = if beta == T::ZERO { T::ZERO } else { beta * c[i * n + j] };
                c[i * n + j] = kept + alpha * sum;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ops::testing::{
        Autograd, VALUE_TOLERANCE, assert_bits_do_not_depend_on_threads, assert_close, on_threads, values, wide,
    };

    const ORDERS: [(Order, Order); 4] =
        [(Order::N, Order::N), (Order::N, Order::T), (Order::T, Order::N), (Order::T, Order::T)];

    /// Sizes around the edges of the kernels, and each of m, n and k at 1 or 2, where the crate takes other ways.
    const SIZES: [[usize; 3]; 22] = [
        [1, 1, 1],
        [1, 1, 65],
        [1, 65, 1],
        [65, 1, 1],
        [1, 63, 129],
        [129, 1, 63],
        [63, 129, 1],
        [17, 15, 2],
        [1, 17, 2],
        [2, 2, 2000],
        [16, 16, 16],
        [16, 16, 1025],
        [15, 17, 16],
        [17, 15, 64],
        [3, 1000, 5],
        [1000, 3, 5],
        [64, 64, 64],
        [63, 65, 64],
        [65, 64, 63],
        [129, 130, 65],
        [33, 257, 600],
        [200, 31, 1100],
    ];

    #[test]
    fn every_order_size_and_factor_gives_the_definition() {
        for threads in [1, 3] {
            on_threads(threads, |device| {
                for (case, [m, n, k]) in SIZES.into_iter().enumerate() {
                    let seed = case as u64;
                    let (a, b, c) = (values(seed, m * k), values(seed + 100, k * n), values(seed + 200, m * n));
                    for (a_order, b_order) in ORDERS {
                        for (alpha, beta) in [(1.0, 0.0), (1.0, 1.0), (0.125, 0.0), (-0.5, 0.75)] {
                            let (x, y) = ((&a[..], a_order), (&b[..], b_order));
                            let mut actual = if beta == 0.0 { vec![f32::NAN; m * n] } else { c.clone() };
                            let (xv, yv) = ((x.0.into(), a_order), (y.0.into(), b_order));
                            matmul(device, [m, n, k], alpha, xv, yv, beta, actual.as_mut_slice().into());
                            let (x, y) = ((&wide(x.0)[..], a_order), (&wide(y.0)[..], b_order));
                            let mut expected = wide(&c);
                            reference::matmul([m, n, k], alpha.into(), x, y, beta.into(), &mut expected);
                            let what = format!("{m} x {n} x {k} {a_order:?}{b_order:?} {alpha} {beta}");
                            assert_close(&actual, &expected, VALUE_TOLERANCE, what);
                        }
                    }
                }
            });
        }
    }

    #[test]
    fn reference_is_candles_product() {
        let [m, n, k] = [5, 7, 3];
        let (a, b) = (wide(&values(1, m * k)), wide(&values(2, k * n)));
        for (a_order, b_order) in ORDERS {
            let mut actual = vec![f64::NAN; m * n];
            reference::matmul([m, n, k], 2.0, (&a, a_order), (&b, b_order), 0.0, &mut actual);
            let tensor = |data: &[f64], order, rows, cols| match order {
                Order::N => Autograd::constant(data, &[rows, cols]),
                Order::T => Autograd::constant(data, &[cols, rows]).t().unwrap(),
            };
            let product = tensor(&a, a_order, m, k).matmul(&tensor(&b, b_order, k, n)).unwrap();
            let expected = Autograd::elements(&(product * 2.0).unwrap());
            assert_close(&actual, &expected, 1e-14, "product");
        }
    }

    #[test]
    fn product_has_the_same_bits_on_any_number_of_threads() {
        // Large enough for the crate to share the work out; the second has several pieces of k.
        for [m, n, k] in [[129, 67, 65], [200, 300, 1500], [513, 1030, 96], [1, 3000, 256]] {
            for (a_order, b_order) in ORDERS {
                let (a, b) = (values(1, m * k), values(2, k * n));
                assert_bits_do_not_depend_on_threads(|device| {
                    let mut c = values(3, m * n);
                    let (a, b) = ((a.as_slice().into(), a_order), (b.as_slice().into(), b_order));
                    matmul(device, [m, n, k], 0.5, a, b, 1.0, c.as_mut_slice().into());
                    c
                });
            }
        }
    }

    #[test]
    fn not_a_number_in_an_operand_reaches_the_product() {
        on_threads(1, |device| {
            for [m, n, k] in SIZES {
                let (mut a, b) = (values(1, m * k), values(2, k * n));
                a[m * k - 1] = f32::NAN;
                let mut c = vec![0.0; m * n];
                let (a, b) = ((a.as_slice().into(), Order::N), (b.as_slice().into(), Order::N));
                matmul(device, [m, n, k], 1.0, a, b, 0.0, c.as_mut_slice().into());
                let (others, last) = c.split_at((m - 1) * n);
                assert!(last.iter().all(|x| x.is_nan()) && others.iter().all(|x| x.is_finite()), "{m} x {n} x {k}");
            }
        });
    }
}
