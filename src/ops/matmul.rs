//! The matrix product, which is nearly all of the arithmetic: `C = beta C + alpha op(A) op(B)`.
//!
//! Matrices are row-major; `T` means that the memory holds the transpose. On x86-64 with AVX2 or
//! AVX-512 most products are our own (`ops::gemm`), the others are the `gemm` crate's.
//!
//! `beta` 0 never reads C, so that it may hold anything, NaN included.

#[cfg(target_arch = "x86_64")]
use super::gemm;
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

/// A matrix in memory by its strides in elements.
#[derive(Clone, Copy)]
pub(crate) struct Strided {
    /// Element (0, 0).
    pub(crate) data: *const f32,
    /// From one row to the next.
    pub(crate) row_stride: usize,
    /// From one column to the next.
    pub(crate) col_stride: usize,
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
