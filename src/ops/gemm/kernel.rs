//! What differs between instruction sets: the product of two packed panels, and the transposition while packing.
//!
//! A tile of C is as tall as a panel of A is wide and two vectors broad. Its sums stay in registers over the depth of
//! the panels: 14 x 2 registers of 16 floats with AVX-512, 6 x 2 of 8 with AVX2, which leaves enough for two vectors of B
//! and a broadcast element of A.

use std::arch::x86_64::*;

/// Registers of B, and so of each row of sums, in a tile.
const VECTORS: usize = 2;

/// A tile to compute: `c (rows, cols) = beta c + alpha a b` over packed panels.
pub(super) struct Tile {
    /// Panel of A: `depth` times the elements of its rows.
    pub(super) a: *const f32,
    /// Panel of B: `depth` times two vectors, which must be aligned to 64 bytes.
    pub(super) b: *const f32,
    /// Products that each element sums.
    pub(super) depth: usize,
    pub(super) alpha: f32,
    /// 0 leaves `c` unread.
    pub(super) beta: f32,
    pub(super) c: *mut f32,
    pub(super) c_row_stride: usize,
    /// Columns of `c` that exist, at most two vectors.
    pub(super) cols: usize,
}

/// Computes a tile of a fixed number of rows.
type ComputeTile = unsafe fn(&Tile);

/// Writes the transpose of some rows of a matrix, one vector long and at most as many as a vector has lanes:
/// source, its row stride, rows, destination, its row stride. Rows that do not exist count as zeros.
type Transpose = unsafe fn(*const f32, usize, usize, *mut f32, usize);

/// A strip of a matrix whose lines lie side by side in memory, to be copied into panels.
pub(super) struct Strip {
    pub(super) source: *const f32,
    /// From one place of the depth to the next.
    pub(super) stride: usize,
    pub(super) depth: usize,
    /// Lines to copy; those that a last panel lacks are zeros.
    pub(super) lines: usize,
    /// Lines that may be read, at least as many.
    pub(super) readable: usize,
    pub(super) packed: *mut f32,
    /// From one panel to the next.
    pub(super) panel_len: usize,
}

/// Copies a strip. Vectors that are longer than a panel is wide end in the next place of the depth, before that is
/// written, or beyond the panel, where there must be room for them.
type CopyStrip = unsafe fn(&Strip);

/// The kernels of an instruction set and the sizes that they are made for.
pub(crate) struct Kernels {
    #[cfg(test)]
    pub(super) name: &'static str,
    /// Floats in a vector.
    pub(super) lanes: usize,
    /// Rows of C in a tile: the width of a panel of A.
    pub(super) rows: usize,
    /// Columns of C in a tile: the width of a panel of B.
    pub(super) cols: usize,
    /// For tiles of 1, 2, … rows.
    pub(super) tiles: &'static [ComputeTile],
    pub(super) transpose: Transpose,
    /// Into panels of A, into panels of B.
    pub(super) copy_a: CopyStrip,
    pub(super) copy_b: CopyStrip,
}

impl Kernels {
    /// Those of the widest vectors that this processor has; none if it lacks AVX2.
    pub(crate) fn of_this_processor() -> Option<&'static Self> {
        if is_x86_feature_detected!("avx512f") {
            Some(&AVX512)
        } else if has_avx2() {
            Some(&AVX2)
        } else {
            None
        }
    }

    /// All that this processor can run.
    #[cfg(test)]
    pub(super) fn supported() -> Vec<&'static Self> {
        let avx512 = is_x86_feature_detected!("avx512f").then_some(&AVX512);
        avx512.into_iter().chain(has_avx2().then_some(&AVX2)).collect()
    }
}

fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// The vector operations of an instruction set; to be called only where the processor has it.
trait Simd {
    type Vector: Copy;
    const LANES: usize;
    unsafe fn splat(x: f32) -> Self::Vector;
    unsafe fn load(source: *const f32) -> Self::Vector;
    unsafe fn store(destination: *mut f32, x: Self::Vector);
    unsafe fn multiply(x: Self::Vector, y: Self::Vector) -> Self::Vector;
    /// `x y + z`, rounded once.
    unsafe fn multiply_add(x: Self::Vector, y: Self::Vector, z: Self::Vector) -> Self::Vector;
}

/// # Safety
/// The processor has `S`; the panels and the tile of `c` that `tile` names are there, `c` for this thread alone.
#[inline(always)]
unsafe fn compute<S: Simd, const PANEL: usize, const ROWS: usize>(tile: &Tile) {
    let &Tile { mut a, mut b, depth, alpha, beta, c, c_row_stride, cols } = tile;
    // SAFETY: see above.
    unsafe {
        for i in 0..ROWS {
            // By the time that the sums are done, their places in C are at hand.
            let row = c.add(i * c_row_stride);
            _mm_prefetch::<_MM_HINT_T1>(row.cast());
            _mm_prefetch::<_MM_HINT_T1>(row.add(cols - 1).cast());
        }
        let mut sums = [[S::splat(0.0); VECTORS]; ROWS];
        for _ in 0..depth {
            let b_vectors = [S::load(b), S::load(b.add(S::LANES))];
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = S::splat(*a.add(i));
                sums[0] = S::multiply_add(x, b_vectors[0], sums[0]);
                sums[1] = S::multiply_add(x, b_vectors[1], sums[1]);
            }
            a = a.add(PANEL);
            b = b.add(VECTORS * S::LANES);
        }
        let (alpha_vector, beta_vector) = (S::splat(alpha), S::splat(beta));
        if cols == VECTORS * S::LANES {
            for (i, sums) in sums.iter().enumerate() {
                for (j, &sum) in sums.iter().enumerate() {
                    let place = c.add(i * c_row_stride + j * S::LANES);
                    let product = S::multiply(alpha_vector, sum);
                    let new = if beta == 0.0 { product } else { S::multiply_add(beta_vector, S::load(place), product) };
                    S::store(place, new);
                }
            }
        } else {
            // As many floats as the largest tile has columns.
            let mut row = [0.0f32; 32];
            for (i, sums) in sums.iter().enumerate() {
                for (j, &sum) in sums.iter().enumerate() {
                    S::store(row.as_mut_ptr().add(j * S::LANES), S::multiply(alpha_vector, sum));
                }
                for (j, &product) in row[..cols].iter().enumerate() {
                    let place = c.add(i * c_row_stride + j);
                    *place = if beta == 0.0 { product } else { beta.mul_add(*place, product) };
                }
            }
        }
    }
}

/// # Safety
/// The processor has `S`; what `strip` names can be read and, by this thread alone, written.
#[inline(always)]
unsafe fn copy<S: Simd, const WIDTH: usize>(strip: &Strip) {
    let &Strip { source, stride, depth, lines, readable, packed, panel_len } = strip;
    // Panels that may be copied by whole vectors.
    let overhang = WIDTH.next_multiple_of(S::LANES) - WIDTH;
    let whole = (lines / WIDTH).min(readable.saturating_sub(overhang) / WIDTH);
    for l in 0..depth {
        let row = source.wrapping_add(l * stride);
        for first in (0..lines).step_by(16) {
            // Rows are too far apart for the processor to foresee the next.
            // SAFETY: prefetching has no effect but on speed, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(ROWS_AHEAD * stride + first).cast()) };
        }
        let packed = packed.wrapping_add(l * WIDTH);
        // SAFETY: see above.
        unsafe {
            for i in 0..whole {
                for v in (0..WIDTH).step_by(S::LANES) {
                    S::store(packed.add(i * panel_len + v), S::load(row.add(i * WIDTH + v)));
                }
            }
            for i in whole..lines.div_ceil(WIDTH) {
                for j in 0..WIDTH {
                    let line = i * WIDTH + j;
                    *packed.add(i * panel_len + j) = if line < lines { *row.add(line) } else { 0.0 };
                }
            }
        }
    }
}

/// How far ahead rows are prefetched for copying.
const ROWS_AHEAD: usize = 8;

/// How far ahead lines are prefetched for transposing.
const FLOATS_AHEAD: usize = 64;

struct Avx512;

impl Simd for Avx512 {
    type Vector = __m512;
    const LANES: usize = 16;
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: of the trait, as below.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(source) }
    }
    #[inline(always)]
    unsafe fn store(destination: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(destination, x) }
    }
    #[inline(always)]
    unsafe fn multiply(x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn multiply_add(x: __m512, y: __m512, z: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(x, y, z) }
    }
}

struct Avx2;

impl Simd for Avx2 {
    type Vector = __m256;
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: of the trait, as below.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(source) }
    }
    #[inline(always)]
    unsafe fn store(destination: *mut f32, x: __m256) {
        unsafe { _mm256_storeu_ps(destination, x) }
    }
    #[inline(always)]
    unsafe fn multiply(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn multiply_add(x: __m256, y: __m256, z: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(x, y, z) }
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn compute_avx512<const ROWS: usize>(tile: &Tile) {
    // SAFETY: passed on to the caller.
    unsafe { compute::<Avx512, 14, ROWS>(tile) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn compute_avx2<const ROWS: usize>(tile: &Tile) {
    // SAFETY: passed on to the caller.
    unsafe { compute::<Avx2, 6, ROWS>(tile) }
}

#[target_feature(enable = "avx512f")]
unsafe fn copy_avx512<const WIDTH: usize>(strip: &Strip) {
    // SAFETY: passed on to the caller.
    unsafe { copy::<Avx512, WIDTH>(strip) }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn copy_avx2<const WIDTH: usize>(strip: &Strip) {
    // SAFETY: passed on to the caller.
    unsafe { copy::<Avx2, WIDTH>(strip) }
}

/// See [`Transpose`].
#[target_feature(enable = "avx512f")]
unsafe fn transpose_avx512(source: *const f32, stride: usize, rows: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: passed on to the caller.
    unsafe {
        let mut x = [_mm512_setzero_ps(); 16];
        for (i, x) in x.iter_mut().enumerate() {
            if i < rows {
                *x = _mm512_loadu_ps(source.add(i * stride));
                _mm_prefetch::<_MM_HINT_T0>(source.wrapping_add(i * stride + FLOATS_AHEAD).cast());
            }
        }
        let mut y = x;
        for i in 0..8 {
            y[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
            y[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
        }
        for i in [0, 4, 8, 12] {
            let y = [y[i], y[i + 1], y[i + 2], y[i + 3]].map(|y| _mm512_castps_pd(y));
            x[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(y[0], y[2]));
            x[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(y[0], y[2]));
            x[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(y[1], y[3]));
            x[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(y[1], y[3]));
        }
        for j in 0..4 {
            let even = _mm512_shuffle_f32x4::<0x88>(x[j], x[j + 4]);
            let odd = _mm512_shuffle_f32x4::<0xdd>(x[j], x[j + 4]);
            let even_below = _mm512_shuffle_f32x4::<0x88>(x[j + 8], x[j + 12]);
            let odd_below = _mm512_shuffle_f32x4::<0xdd>(x[j + 8], x[j + 12]);
            y[j] = _mm512_shuffle_f32x4::<0x88>(even, even_below);
            y[j + 4] = _mm512_shuffle_f32x4::<0x88>(odd, odd_below);
            y[j + 8] = _mm512_shuffle_f32x4::<0xdd>(even, even_below);
            y[j + 12] = _mm512_shuffle_f32x4::<0xdd>(odd, odd_below);
        }
        for (i, y) in y.into_iter().enumerate() {
            _mm512_storeu_ps(to.add(i * to_stride), y);
        }
    }
}

/// See [`Transpose`].
#[target_feature(enable = "avx2,fma")]
unsafe fn transpose_avx2(source: *const f32, stride: usize, rows: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: passed on to the caller.
    unsafe {
        let mut x = [_mm256_setzero_ps(); 8];
        for (i, x) in x.iter_mut().enumerate() {
            if i < rows {
                *x = _mm256_loadu_ps(source.add(i * stride));
                _mm_prefetch::<_MM_HINT_T0>(source.wrapping_add(i * stride + FLOATS_AHEAD).cast());
            }
        }
        let mut y = x;
        for i in 0..4 {
            y[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
            y[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
        }
        for i in [0, 4] {
            let y = [y[i], y[i + 1], y[i + 2], y[i + 3]].map(|y| _mm256_castps_pd(y));
            x[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(y[0], y[2]));
            x[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(y[0], y[2]));
            x[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(y[1], y[3]));
            x[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(y[1], y[3]));
        }
        for j in 0..4 {
            y[j] = _mm256_permute2f128_ps::<0x20>(x[j], x[j + 4]);
            y[j + 4] = _mm256_permute2f128_ps::<0x31>(x[j], x[j + 4]);
        }
        for (i, y) in y.into_iter().enumerate() {
            _mm256_storeu_ps(to.add(i * to_stride), y);
        }
    }
}

/// For processors with AVX-512.
static AVX512: Kernels = Kernels {
    #[cfg(test)]
    name: "AVX-512",
    lanes: 16,
    rows: 14,
    cols: 32,
    tiles: &[
        compute_avx512::<1>,
        compute_avx512::<2>,
        compute_avx512::<3>,
        compute_avx512::<4>,
        compute_avx512::<5>,
        compute_avx512::<6>,
        compute_avx512::<7>,
        compute_avx512::<8>,
        compute_avx512::<9>,
        compute_avx512::<10>,
        compute_avx512::<11>,
        compute_avx512::<12>,
        compute_avx512::<13>,
        compute_avx512::<14>,
    ],
    transpose: transpose_avx512,
    copy_a: copy_avx512::<14>,
    copy_b: copy_avx512::<32>,
};

/// For processors with AVX2 and FMA.
static AVX2: Kernels = Kernels {
    #[cfg(test)]
    name: "AVX2",
    lanes: 8,
    rows: 6,
    cols: 16,
    tiles: &[
        compute_avx2::<1>,
        compute_avx2::<2>,
        compute_avx2::<3>,
        compute_avx2::<4>,
        compute_avx2::<5>,
        compute_avx2::<6>,
    ],
    transpose: transpose_avx2,
    copy_a: copy_avx2::<6>,
    copy_b: copy_avx2::<16>,
};
