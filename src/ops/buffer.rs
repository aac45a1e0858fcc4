//! Memory of the hot path: a [`Buffer`] owns one allocation, [`View`] and [`ViewMut`] are borrowed windows of it.
//!
//! candle's tensors do not serve here: its in-place operations have one destination and refuse windows of one storage,
//! and its matrix product cannot accumulate. Buffers are allocated once and live as long as the run; the borrow checker
//! proves that the windows handed to one operation do not overlap.

use std::ops::Range;

use bytemuck::Pod;

/// Bytes of a cache line, at a multiple of which a buffer begins.
const ALIGNMENT: usize = 64;

/// A zeroed, 64-byte aligned allocation of `len` elements.
pub struct Buffer<T> {
    /// A line more than the elements take, of a type that the allocator zeroes by asking the system for fresh memory, which is
    /// taken only where it is touched.
    words: Vec<u128>,
    /// The first word on a line's boundary, which makes it aligned without unsafe code.
    start: usize,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// Allocates `len` zeros.
    pub fn zeros(len: usize) -> Self {
        const WORD: usize = size_of::<u128>();
        let words = vec![0; (len * size_of::<T>()).div_ceil(WORD) + ALIGNMENT / WORD];
        let start = words.as_ptr().align_offset(ALIGNMENT);
        assert!(start < ALIGNMENT / WORD, "the allocator gives memory at multiples of a word");
        Self { words, start, len, element: std::marker::PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All elements, where the buffer lies in this machine's memory.
    pub fn as_slice(&self) -> &[T] {
        &bytemuck::cast_slice(&self.words[self.start..])[..self.len]
    }

    /// All elements, mutable.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.words[self.start..])[..self.len]
    }

    /// The whole buffer as a window.
    pub fn view(&self) -> View<'_, T> {
        View(self.as_slice())
    }

    /// The whole buffer as a mutable window.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        ViewMut(self.as_mut_slice())
    }
}

/// A borrowed window of a buffer.
#[derive(Clone, Copy)]
pub struct View<'a, T>(&'a [T]);

impl<'a, T> View<'a, T> {
    /// A part of the window.
    pub fn window(self, range: Range<usize>) -> Self {
        Self(&self.0[range])
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The elements, for code that runs on the CPU.
    pub(crate) fn cpu(self) -> &'a [T] {
        self.0
    }
}

/// A borrowed mutable window of a buffer.
pub struct ViewMut<'a, T>(&'a mut [T]);

impl<'a, T> ViewMut<'a, T> {
    /// A part of the window.
    pub fn window(self, range: Range<usize>) -> Self {
        Self(&mut self.0[range])
    }

    /// The first `len` elements, and the rest.
    pub fn split_at(self, len: usize) -> (Self, Self) {
        let (first, rest) = self.0.split_at_mut(len);
        (Self(first), Self(rest))
    }

    /// The same window for a shorter time, so that it can be used again afterwards.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut(self.0)
    }

    /// The same window, read only.
    pub fn as_view(&self) -> View<'_, T> {
        View(self.0)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same window, read only, for its whole time.
    pub fn into_view(self) -> View<'a, T> {
        View(self.0)
    }

    /// The elements, for code that runs on the CPU.
    pub(crate) fn cpu(self) -> &'a mut [T] {
        self.0
    }
}

impl<'a, T> From<&'a [T]> for View<'a, T> {
    fn from(slice: &'a [T]) -> Self {
        Self(slice)
    }
}

impl<'a, T> From<&'a mut [T]> for ViewMut<'a, T> {
    fn from(slice: &'a mut [T]) -> Self {
        Self(slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_aligned_and_of_the_length_asked_for() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let buffer = Buffer::<f32>::zeros(len);
            assert_eq!(buffer.as_slice().len(), len);
            assert_eq!(buffer.as_slice().as_ptr() as usize % 64, 0);
            assert!(buffer.as_slice().iter().all(|&x| x == 0.0));
        }
    }
}
