//! The product of packed panels on x86-64, after the scheme of GotoBLAS and BLIS.
//!
//! Of the two operands the one with fewer lines is packed as a whole, once, for all tasks. The other is cut into strips;
//! a task packs its strip and multiplies it with everything of the first. A panel of A stays in the first-level cache
//! while it meets a group of panels of B, which stays in the second-level cache. Each element of C is summed in the order
//! of the depth within blocks that depend on the depth only, so that neither the strips nor the threads change a bit.
//!
//! [`kernel`] holds what differs between instruction sets, [`pack`] the copying into panels.

mod kernel;
mod pack;
#[cfg(test)]
mod tests;

use std::ops::Range;

use rayon::prelude::*;

pub(super) use kernel::Kernels;
use kernel::Tile;
use pack::{Operand, Room};

use super::strided::Strided;

/// Most of the depth that a panel holds: a panel of A of this depth takes two thirds of a first-level cache of 32 KiB.
const DEPTH: usize = 384;
/// Columns of B that a group holds: with [`DEPTH`], 288 KiB of the second-level cache.
const GROUP_COLS: usize = 192;
/// Rows of A in a strip.
const STRIP_ROWS: usize = 192;
/// Floats of the shared operand that are packed at a time, unless a single block of the depth needs more: 4 MiB.
const SHARED_FLOATS: usize = 1 << 20;
/// Products below this number of multiplications are not worth waking other threads for.
const SERIAL_MULTIPLICATIONS: usize = 1 << 18;

/// C, of which each task writes its own rows or columns.
#[derive(Clone, Copy)]
struct Destination {
    data: *mut f32,
    row_stride: usize,
}

// SAFETY: tasks write disjoint parts.
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

/// Room for panels that tasks share.
#[derive(Clone, Copy)]
struct Packed(*mut f32);

// SAFETY: written in disjoint parts, then read only.
unsafe impl Send for Packed {}
// SAFETY: as above.
unsafe impl Sync for Packed {}

impl Packed {
    /// Float `offset`; a method, so that closures capture the whole and not the bare pointer.
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// Panels of one operand next to each other, over one block of the depth.
struct Panels {
    /// Which of the operand's.
    range: Range<usize>,
    data: *const f32,
    /// From one to the next.
    len: usize,
}

/// Whether the packed product is the faster one.
///
/// It packs both operands, which does not pay where few columns use each element of A, and B could be read as it lies,
/// nor where the depth is small, so that C is most of the memory.
pub(super) fn pays([m, n, k]: [usize; 3], a: Strided, b: Strided) -> bool {
    let can_pack = |x: Strided| x.row_stride == 1 || x.col_stride == 1;
    let few_cols = if a.col_stride == 1 { 256 } else { 64 };
    m * n > 0 && k >= 16 && can_pack(a) && can_pack(b) && !(b.col_stride == 1 && n <= few_cols)
}

/// `c (m, n) = beta c + alpha a (m, k) b (k, n)`.
///
/// # Safety
/// As for `gemm_strided`; besides, the processor has the instructions of `kernels`, no size is 0, and each
/// operand has a stride of 1.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn multiply(
    kernels: &Kernels,
    [m, n, k]: [usize; 3],
    alpha: f32,
    a: Strided,
    b: Strided,
    beta: f32,
    c: *mut f32,
    c_row_stride: usize,
    threads: usize,
) {
    let a =
        Operand { data: a.data, line_stride: a.row_stride, depth_stride: a.col_stride, lines: m, width: kernels.rows };
    let b =
        Operand { data: b.data, line_stride: b.col_stride, depth_stride: b.row_stride, lines: n, width: kernels.cols };
    let product = Product { kernels, a, b, alpha, c: Destination { data: c, row_stride: c_row_stride } };
    let threads = if m * n * k < SERIAL_MULTIPLICATIONS { 1 } else { threads };
    let a_is_shared = m <= n;
    let (shared, own, strip) =
        if a_is_shared { (a, b, GROUP_COLS / kernels.cols) } else { (b, a, STRIP_ROWS.div_ceil(kernels.rows)) };

    // As many strips as give every thread the same, and none of them a rest that the others wait for.
    let num_strips = own.panels().div_ceil(strip).next_multiple_of(threads).min(own.panels());

    let num_blocks = k.div_ceil(DEPTH);
    let depth = k.div_ceil(num_blocks).next_multiple_of(kernels.lanes);
    let block_len = shared.panels() * shared.panel_len(depth);
    let blocks_at_once = (SHARED_FLOATS / block_len).clamp(1, num_blocks);
    let range_of = |block: usize| (block * depth).min(k)..((block + 1) * depth).min(k);
    let mut room = Room::shared(block_len * blocks_at_once);
    let packed = Packed(room.as_mut_ptr());
    for first in (0..num_blocks).step_by(blocks_at_once) {
        let blocks = first..(first + blocks_at_once).min(num_blocks);
        let pieces = shared.panels().div_ceil(PANELS_PER_PIECE);
        for_each(threads, blocks.len() * pieces, |i| {
            let (block, piece) = (i / pieces, i % pieces);
            let panels = piece * PANELS_PER_PIECE..((piece + 1) * PANELS_PER_PIECE).min(shared.panels());
            let range = range_of(blocks.start + block);
            let to = packed.at(block * block_len + panels.start * shared.panel_len(range.len()));
            // SAFETY: passed on to the caller; each piece has its own place in the room.
            unsafe { shared.pack(kernels, panels, range, to) };
        });
        for_each(threads, num_strips, |i| {
            let panels = i * own.panels() / num_strips..(i + 1) * own.panels() / num_strips;
            let mut room = Room::own(panels.len() * own.panel_len(depth));
            for block in blocks.clone() {
                let range = range_of(block);
                let depth = range.len();
                // SAFETY: passed on to the caller; each strip writes its own part of C.
                unsafe {
                    own.pack(kernels, panels.clone(), range, room.as_mut_ptr());
                    let own = Panels { range: panels.clone(), data: room.as_mut_ptr(), len: own.panel_len(depth) };
                    let shared = Panels {
                        range: 0..shared.panels(),
                        data: packed.at((block - blocks.start) * block_len),
                        len: shared.panel_len(depth),
                    };
                    let (a, b) = if a_is_shared { (shared, own) } else { (own, shared) };
                    product.add_block(&a, &b, depth, if block == 0 { beta } else { 1.0 });
                }
            }
        });
    }
}

/// Panels of the shared operand that a task packs.
const PANELS_PER_PIECE: usize = 4;

fn for_each(threads: usize, count: usize, work: impl Fn(usize) + Sync + Send) {
    if threads > 1 && count > 1 {
        (0..count).into_par_iter().with_max_len(1).for_each(work);
    } else {
        (0..count).for_each(work);
    }
}

struct Product<'a> {
    kernels: &'a Kernels,
    a: Operand,
    b: Operand,
    alpha: f32,
    c: Destination,
}

impl Product<'_> {
    /// `c = beta c + alpha a b` over one block of the depth, where these panels of A and B meet.
    ///
    /// # Safety
    /// As for [`multiply`]; the panels are packed.
    unsafe fn add_block(&self, a: &Panels, b: &Panels, depth: usize, beta: f32) {
        let Self { kernels, alpha, c, .. } = *self;
        for group in b.range.clone().step_by(GROUP_COLS / kernels.cols) {
            for i in a.range.clone() {
                let row = i * kernels.rows;
                let rows = kernels.rows.min(self.a.lines - row);
                for j in group..(group + GROUP_COLS / kernels.cols).min(b.range.end) {
                    let col = j * kernels.cols;
                    // SAFETY: the tile lies within C, the panels within their room.
                    unsafe {
                        let tile = Tile {
                            a: a.data.add((i - a.range.start) * a.len),
                            b: b.data.add((j - b.range.start) * b.len),
                            depth,
                            alpha,
                            beta,
                            c: c.data.add(row * c.row_stride + col),
                            c_row_stride: c.row_stride,
                            cols: kernels.cols.min(self.b.lines - col),
                        };
                        kernels.tiles[rows - 1](&tile);
                    }
                }
            }
        }
    }
}
