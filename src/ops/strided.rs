//! A matrix by its address and strides, for code that reads windows no slice can describe.

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
