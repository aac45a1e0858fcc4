//! Packing: operands are copied into panels, in which the kernels find what they need next to each other.
//!
//! A panel holds a few rows of A (or columns of B) over a range of the depth: for each place in the depth, its `width`
//! elements side by side. Both operands are packed by the same code: `lines` are rows of A or columns of B.
//! Whether the memory runs along the lines or across them, cache lines are read once and whole.

use std::cell::RefCell;
use std::ops::Range;

use super::kernel::{Kernels, Strip};

/// An operand by what is packed: its lines and the depth.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    /// Element (0, 0).
    pub(super) data: *const f32,
    /// From one line to the next.
    pub(super) line_stride: usize,
    /// From one place of the depth to the next.
    pub(super) depth_stride: usize,
    /// Number of lines.
    pub(super) lines: usize,
    /// Lines in a panel.
    pub(super) width: usize,
}

// SAFETY: the operand is only read, which the caller of the product allows.
unsafe impl Send for Operand {}
// SAFETY: as above.
unsafe impl Sync for Operand {}

impl Operand {
    /// Number of panels.
    pub(super) fn panels(&self) -> usize {
        self.lines.div_ceil(self.width)
    }

    /// Floats of a panel's place: room for the last transposed vector, which may be longer than the panel is wide.
    pub(super) fn panel_len(&self, depth: usize) -> usize {
        (self.width * depth + FLOATS_PER_LINE).next_multiple_of(FLOATS_PER_LINE)
    }

    /// Packs `panels`, over `depth`, one after the other into `packed`.
    ///
    /// # Safety
    /// The operand is readable, and `packed` has room for the panels and is written by this thread alone.
    pub(super) unsafe fn pack(&self, kernels: &Kernels, panels: Range<usize>, depth: Range<usize>, packed: *mut f32) {
        let panel_len = self.panel_len(depth.len());
        // SAFETY: passed on to the caller; places within the operand and the panels' room.
        unsafe {
            let source = self.data.add(panels.start * self.width * self.line_stride + depth.start * self.depth_stride);
            let lines = (panels.end * self.width).min(self.lines) - panels.start * self.width;
            if self.depth_stride == 1 {
                for (first, i) in (0..lines).step_by(self.width).zip(0..) {
                    let lines = self.width.min(lines - first);
                    let source = source.add(first * self.line_stride);
                    self.pack_along(kernels, source, lines, depth.len(), packed.add(i * panel_len));
                }
            } else {
                debug_assert_eq!(self.line_stride, 1);
                let copy = if self.width == kernels.rows { kernels.copy_a } else { kernels.copy_b };
                copy(&Strip {
                    source,
                    stride: self.depth_stride,
                    depth: depth.len(),
                    lines,
                    readable: self.lines - panels.start * self.width,
                    packed,
                    panel_len,
                });
            }
        }
    }

    /// Packs a panel of which the memory runs along the depth: transposes it, block after block.
    ///
    /// # Safety
    /// As for [`Self::pack`].
    unsafe fn pack_along(&self, kernels: &Kernels, source: *const f32, lines: usize, depth: usize, packed: *mut f32) {
        let lanes = kernels.lanes;
        let whole = depth - depth % lanes;
        // SAFETY: passed on to the caller. A vector that is longer than the panel is wide ends in the next place of the
        // depth, which is written later, or in the room left after the panel.
        unsafe {
            for l in (0..whole).step_by(lanes) {
                for first in (0..self.width).step_by(lanes) {
                    let rows = lines.saturating_sub(first).min(lanes);
                    let source = source.wrapping_add(first * self.line_stride + l);
                    let packed = packed.add(l * self.width + first);
                    (kernels.transpose)(source, self.line_stride, rows, packed, self.width);
                }
            }
            for l in whole..depth {
                for i in 0..self.width {
                    let x = if i < lines { *source.add(i * self.line_stride + l) } else { 0.0 };
                    *packed.add(l * self.width + i) = x;
                }
            }
        }
    }
}

/// Floats in a cache line.
const FLOATS_PER_LINE: usize = 16;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [f32; FLOATS_PER_LINE]);

/// Memory for panels, taken from the thread and given back, so that it is allocated once.
///
/// It is taken away while in use: a thread that waits for others may meanwhile be given another product to do.
pub(super) struct Room {
    lines: Vec<Line>,
    home: &'static std::thread::LocalKey<RefCell<Vec<Line>>>,
}

thread_local! {
    static SHARED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    static OWN: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

impl Room {
    /// For at least `floats` of the operand that all tasks share.
    pub(super) fn shared(floats: usize) -> Self {
        Self::take(&SHARED, floats)
    }

    /// For at least `floats` of the operand of which each task packs its strip.
    pub(super) fn own(floats: usize) -> Self {
        Self::take(&OWN, floats)
    }

    fn take(home: &'static std::thread::LocalKey<RefCell<Vec<Line>>>, floats: usize) -> Self {
        let mut lines = home.take();
        let needed = floats.div_ceil(FLOATS_PER_LINE);
        if lines.len() < needed {
            lines = vec![Line([0.0; FLOATS_PER_LINE]); needed];
        }
        Self { lines, home }
    }

    /// Its first float, aligned to a cache line.
    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.lines.as_mut_ptr().cast()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.home.set(std::mem::take(&mut self.lines));
    }
}
