//! Memory of the device: a [`Buffer`] owns one allocation, [`View`] and [`ViewMut`] are borrowed windows of it.

use std::marker::PhantomData;
use std::ops::Range;

use super::Gpu;
use super::driver::{Address, Arg, NO_POINTER};

/// An allocation on the device.
pub struct Buffer<T> {
    gpu: Gpu,
    address: Address,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Buffer<T> {
    /// What was allocated at an address, or nothing at 0; it gives the memory back.
    pub(super) fn new(gpu: &Gpu, address: Address, len: usize) -> Self {
        Self { gpu: gpu.clone(), address, len, element: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The whole buffer as a window.
    pub fn view(&self) -> View<'_, T> {
        View { address: self.address, len: self.len, element: PhantomData }
    }

    /// The whole buffer as a mutable window.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        ViewMut { address: self.address, len: self.len, element: PhantomData }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.address != 0 {
            self.gpu.driver.free(self.address, self.len * size_of::<T>());
        }
    }
}

/// A borrowed window of a device buffer.
pub struct View<'a, T> {
    address: Address,
    len: usize,
    element: PhantomData<&'a T>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<T> View<'_, T> {
    /// A part of the window.
    pub fn window(self, range: Range<usize>) -> Self {
        let (address, len) = part::<T>(self.address, self.len, range);
        Self { address, len, element: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it begins.
    pub fn address(&self) -> Address {
        self.address
    }

    /// As an argument of a kernel that reads it.
    pub fn arg(&self) -> Arg {
        Arg::Pointer { address: self.address, moved: (self.len * size_of::<T>()) as u64 }
    }
}

/// A borrowed mutable window of a device buffer.
pub struct ViewMut<'a, T> {
    address: Address,
    len: usize,
    element: PhantomData<&'a mut T>,
}

impl<'a, T> ViewMut<'a, T> {
    /// A part of the window.
    pub fn window(self, range: Range<usize>) -> Self {
        let (address, len) = part::<T>(self.address, self.len, range);
        Self { address, len, element: PhantomData }
    }

    /// The first `len` elements, and the rest.
    pub fn split_at(self, len: usize) -> (Self, Self) {
        let (first, first_len) = part::<T>(self.address, self.len, 0..len);
        let (rest, rest_len) = part::<T>(self.address, self.len, len..self.len);
        let window = |address, len| Self { address, len, element: PhantomData };
        (window(first, first_len), window(rest, rest_len))
    }

    /// The same window for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, T> {
        ViewMut { address: self.address, len: self.len, element: PhantomData }
    }

    /// The same bytes as elements of another format.
    pub fn cast<U>(self) -> ViewMut<'a, U> {
        let bytes = self.len * size_of::<T>();
        ViewMut { address: self.address, len: bytes / size_of::<U>(), element: PhantomData }
    }

    /// The same window, read only.
    pub fn as_view(&self) -> View<'_, T> {
        View { address: self.address, len: self.len, element: PhantomData }
    }

    /// The same window, read only, for its whole time.
    pub fn into_view(self) -> View<'a, T> {
        View { address: self.address, len: self.len, element: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it begins.
    pub fn address(&self) -> Address {
        self.address
    }

    /// As an argument of a kernel that overwrites it.
    pub fn arg(&self) -> Arg {
        self.as_view().arg()
    }

    /// As an argument of a kernel that reads and writes it.
    pub fn arg_in_place(&self) -> Arg {
        self.arg().moving(2 * self.len * size_of::<T>())
    }
}

fn part<T>(address: Address, len: usize, range: Range<usize>) -> (Address, usize) {
    assert!(range.start <= range.end && range.end <= len, "window {range:?} of {len} elements");
    (address + (range.start * size_of::<T>()) as u64, range.end - range.start)
}

/// An optional window as a kernel's argument.
pub fn optional<T>(window: Option<View<T>>) -> Arg {
    window.map_or(NO_POINTER, |window| window.arg())
}

/// An optional mutable window as a kernel's argument.
pub fn optional_mut<T>(window: Option<ViewMut<T>>) -> Arg {
    window.map_or(NO_POINTER, |window| window.arg())
}
