//! The device layer: memory, launches and matrix products of a GPU, behind one small trait.
//!
//! [`Driver`] is what a GPU must do; the one that does it is in [`cuda`], over the CUDA driver and cuBLASLt, which are loaded
//! at run time. In tests `emulator` takes its place: it runs the same kernels (`kernels/*.cu`), compiled by the machine's
//! C++ compiler, in ordinary memory. Everything above, the launchers of the operations and the decoder, knows only
//! [`Gpu`], so that what the tests hold to the definition is what runs on a card.
//!
//! A launch does not fail where it is made: work is queued, and the first error, like CUDA's own, comes out at the next
//! [`Gpu::download`] or [`Gpu::synchronize`].
//!
//! Device buffers mirror those of `ops/buffer.rs`: a [`Buffer`] owns one allocation, [`View`] and [`ViewMut`] are borrowed
//! windows of it, and the borrow checker proves that a kernel's windows do not overlap.

// Device addresses pass through a C interface; each block says why that is sound.
#![allow(unsafe_code)]

pub mod activation;
pub mod adamw;
pub mod attention;
mod bias;
pub mod cards;
pub mod cast;
pub mod column_sums;
pub mod cross_entropy;
pub mod cuda;
pub mod embedding;
#[cfg(test)]
pub(crate) mod emulator;
mod epilogue;
pub mod gradient_norm;
pub mod kernels;
pub mod linear;
pub mod norm;
pub mod paper;
pub mod profile;
pub mod rotary;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod wrappers;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use bytemuck::{Pod, Zeroable};
use half::bf16;

use crate::figures;
use profile::{Cost, Operation, Profile};

/// A number format that kernels compute in.
pub trait Element: Pod + Send + Sync {
    /// The end of the names of kernels for it.
    const SUFFIX: &'static str;
    /// The same as a value.
    const DTYPE: Dtype;
    /// The nearest number.
    fn from_f32(value: f32) -> Self;
    /// The same number.
    fn to_f32(self) -> f32;
}

/// The number format of an operand of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit floats; products of them are computed in full precision, without TF32.
    F32,
    /// bfloat16, whose products are accumulated in f32.
    Bf16,
}

impl Dtype {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// The end of the names of kernels for it.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::F32 => f32::SUFFIX,
            Self::Bf16 => bf16::SUFFIX,
        }
    }
}

impl Element for f32 {
    const SUFFIX: &'static str = "f32";
    const DTYPE: Dtype = Dtype::F32;
    fn from_f32(value: f32) -> Self {
        value
    }
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    const SUFFIX: &'static str = "bf16";
    const DTYPE: Dtype = Dtype::Bf16;
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

/// The device's memory does not suffice; what to do about it the caller knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the GPU is out of memory: {} was asked for, {} of {} is free",
    figures::bytes(*.asked as u64), figures::bytes(*.free as u64), figures::bytes(*.total as u64)
)]
pub struct OutOfMemory {
    /// Bytes that were asked for.
    pub asked: usize,
    /// Bytes that nobody has.
    pub free: usize,
    /// All of its bytes.
    pub total: usize,
}

/// A place in the device's memory, in bytes; 0 is no place.
pub type Address = u64;

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A pointer; address 0 where the kernel takes an optional one.
    Pointer {
        /// Where it leads.
        address: Address,
        /// Bytes that the kernel must at least read and write there: each element once, or twice if it is changed.
        moved: u64,
    },
    /// `int`.
    I32(i32),
    /// `unsigned int`.
    U32(u32),
    /// `unsigned long long`.
    U64(u64),
    /// `float`.
    F32(f32),
}

impl Arg {
    /// A pointer whose bytes are not counted, or are elsewhere.
    pub const fn at(address: Address) -> Self {
        Self::Pointer { address, moved: 0 }
    }

    /// The same pointer of a kernel that touches another number of bytes than the window has.
    pub fn moving(self, bytes: usize) -> Self {
        match self {
            Self::Pointer { address, .. } => Self::Pointer { address, moved: bytes as u64 },
            other => other,
        }
    }
}

/// How many blocks of how many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in x, y, z.
    pub blocks: [u32; 3],
    /// Threads per block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
}

impl Grid {
    /// A row of blocks without shared memory.
    pub fn new(blocks: usize, threads: u32) -> Self {
        Self { blocks: [blocks as u32, 1, 1], threads, shared_bytes: 0 }
    }
}

/// `c (m, n) = beta c + a (m, k) b (k, n) + bias (n)`, row-major, accumulated in f32; or what an epilogue makes of that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Sizes m, n, k.
    pub sizes: [usize; 3],
    /// First operand; transposed it lies in memory as (k, m).
    pub a: Operand,
    /// Second operand; transposed it lies in memory as (n, k).
    pub b: Operand,
    /// What the destination is multiplied with: 0 (it is not read) or 1.
    pub beta: f32,
    /// The destination.
    pub c: (Address, Dtype),
    /// Added to each row; of the operands' format.
    pub bias: Option<Address>,
    /// What is done with the sum before it is stored; only with `beta` 0.
    pub epilogue: Option<Epilogue>,
}

/// The function between the MLP's matrices, gelu (tanh), in passing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epilogue {
    /// What it computes.
    pub kind: EpilogueKind,
    /// The function's argument (m, n), of the destination's format.
    pub argument: Address,
}

/// What an [`Epilogue`] computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EpilogueKind {
    /// The sum becomes the argument, and `c` the function of it.
    Gelu,
    /// `c` becomes the sum times the function's slope at the argument; without a bias.
    GeluGradient,
}

/// An operand of a [`Product`]; both have the same format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operand {
    /// Where it lies.
    pub address: Address,
    /// In which format.
    pub dtype: Dtype,
    /// Whether memory holds the transpose.
    pub transposed: bool,
}

/// What a GPU does. Calls that return nothing are queued in order; their errors come out of the ones that return a
/// [`Result`] and wait.
pub trait Driver: Send + Sync {
    /// The card's name.
    fn name(&self) -> String;
    /// Free and total memory in bytes.
    fn memory(&self) -> Result<[usize; 2]>;
    /// Takes zeroed memory, 256-byte aligned.
    fn allocate(&self, bytes: usize) -> Result<Address>;
    /// Gives it back after everything queued so far.
    fn free(&self, address: Address, bytes: usize);
    /// Host to device; `bytes` may be reused at once.
    fn upload(&self, to: Address, bytes: &[u8]);
    /// Host to device beside the queue; what is queued later sees it. Nothing that was queued before may still use the
    /// place.
    fn upload_ahead(&self, to: Address, bytes: &[u8]);
    /// Device to host, after everything queued so far.
    fn download(&self, bytes: &mut [u8], from: Address) -> Result<()>;
    /// Device to device.
    fn copy(&self, to: Address, from: Address, bytes: usize);
    /// Sets bytes to zero.
    fn zero(&self, at: Address, bytes: usize);
    /// Queues a kernel.
    fn launch(&self, kernel: &str, grid: Grid, args: &[Arg]);
    /// Queues a matrix product.
    fn multiply(&self, product: Product);
    /// Waits for everything queued.
    fn synchronize(&self) -> Result<()>;
    /// Queues a mark, the time at which everything before it was done; returns its number.
    fn mark(&self) -> usize;
    /// Seconds from one mark to another; waits for both.
    fn seconds_between(&self, first: usize, last: usize) -> Result<f64>;
    /// Gives all marks back.
    fn forget_marks(&self);
    /// From now on computes products of this kind by the algorithm that comes `rank`th in the library's own order, 0 being what
    /// it takes by itself; whether there is one.
    fn choose_algorithm(&self, product: &Product, rank: usize) -> Result<bool>;
}

/// A GPU in use; clones are the same one.
#[derive(Clone)]
pub struct Gpu {
    driver: Arc<dyn Driver>,
    profile: Arc<Profile>,
}

impl Gpu {
    /// The GPU behind a driver.
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Self { driver, profile: Arc::default() }
    }

    /// What is done from now on is written down, with its time.
    pub fn begin_profile(&self) {
        self.profile.begin(&*self.driver);
    }

    /// What was done since [`Gpu::begin_profile`], in order; waits for it.
    ///
    /// # Errors
    /// Whatever went wrong on the device since the last wait.
    pub fn end_profile(&self) -> Result<Vec<Operation>> {
        self.profile.end(&*self.driver)
    }

    /// The median time of `repeats` runs of what is queued, in seconds, after one that is not counted.
    ///
    /// # Errors
    /// Whatever went wrong on the device since the last wait.
    pub fn time(&self, repeats: usize, mut queue: impl FnMut(&Self)) -> Result<f64> {
        queue(self);
        let mut marks = vec![self.driver.mark()];
        for _ in 0..repeats {
            queue(self);
            marks.push(self.driver.mark());
        }
        let between = |pair: &[usize]| self.driver.seconds_between(pair[0], pair[1]);
        let seconds: Result<Vec<f64>> = marks.windows(2).map(between).collect();
        self.driver.forget_marks();
        let mut seconds = seconds?;
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }

    /// See [`Driver::choose_algorithm`].
    ///
    /// # Errors
    /// The library fails at it.
    pub fn choose_algorithm(&self, product: &Product, rank: usize) -> Result<bool> {
        self.driver.choose_algorithm(product, rank)
    }

    /// The card's name.
    pub fn name(&self) -> String {
        self.driver.name()
    }

    /// Free and total memory in bytes.
    pub fn memory(&self) -> Result<[usize; 2]> {
        self.driver.memory()
    }

    /// Takes `len` zeros.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn zeros<T: Pod>(&self, len: usize) -> Result<Buffer<T>> {
        let bytes = len * size_of::<T>();
        let address = if bytes == 0 { 0 } else { self.driver.allocate(bytes)? };
        Ok(Buffer { gpu: self.clone(), address, len, element: PhantomData })
    }

    /// A buffer with these elements.
    pub fn buffer_of<T: Pod>(&self, elements: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.zeros(elements.len())?;
        self.upload(buffer.view_mut(), elements);
        Ok(buffer)
    }

    /// Host to device.
    pub fn upload<T: Pod>(&self, to: ViewMut<T>, elements: &[T]) {
        assert_eq!(to.len(), elements.len(), "elements of an upload");
        if !elements.is_empty() {
            let bytes: &[u8] = bytemuck::cast_slice(elements);
            let operation = || Operation::of("upload", Cost::moving(bytes.len() as u64));
            self.profile.note(&*self.driver, operation, || self.driver.upload(to.address(), bytes));
        }
    }

    /// Host to device beside the queue, so that a batch arrives while the one before it is computed. The destination must
    /// not be in use by anything queued: let two buffers take turns, and be sure that the step that read this one is over,
    /// because something was downloaded since.
    pub fn upload_ahead<T: Pod>(&self, to: ViewMut<T>, elements: &[T]) {
        assert_eq!(to.len(), elements.len(), "elements of an upload");
        if !elements.is_empty() {
            self.driver.upload_ahead(to.address(), bytemuck::cast_slice(elements));
        }
    }

    /// Device to host, after everything queued.
    ///
    /// # Errors
    /// Whatever went wrong on the device since the last one.
    pub fn download<T: Pod>(&self, elements: &mut [T], from: View<T>) -> Result<()> {
        assert_eq!(from.len(), elements.len(), "elements of a download");
        if elements.is_empty() {
            return self.synchronize();
        }
        self.profile.host_waits();
        self.driver.download(bytemuck::cast_slice_mut(elements), from.address())
    }

    /// All elements of a window on the host.
    pub fn to_vec<T: Pod>(&self, from: View<T>) -> Result<Vec<T>> {
        let mut elements = vec![T::zeroed(); from.len()];
        self.download(&mut elements, from)?;
        Ok(elements)
    }

    /// Device to device.
    pub fn copy<T: Pod>(&self, to: ViewMut<T>, from: View<T>) {
        assert_eq!(to.len(), from.len(), "elements of a copy");
        let bytes = from.len() * size_of::<T>();
        if bytes > 0 {
            let operation = || Operation::of("copy", Cost::moving(2 * bytes as u64));
            let copy = || self.driver.copy(to.address(), from.address(), bytes);
            self.profile.note(&*self.driver, operation, copy);
        }
    }

    /// Sets a window to zero.
    pub fn zero<T: Zeroable>(&self, at: ViewMut<T>) {
        let bytes = at.len() * size_of::<T>();
        if bytes > 0 {
            let operation = || Operation::of("zero", Cost::moving(bytes as u64));
            self.profile.note(&*self.driver, operation, || self.driver.zero(at.address(), bytes));
        }
    }

    /// Queues a kernel whose arithmetic does not matter beside the bytes it moves.
    pub fn launch(&self, kernel: &str, grid: Grid, args: &[Arg]) {
        self.launch_arithmetic(kernel, grid, args, (0, Dtype::F32));
    }

    /// Queues a kernel with so many floating-point operations in a format.
    pub fn launch_arithmetic(&self, kernel: &str, grid: Grid, args: &[Arg], (flops, dtype): (u64, Dtype)) {
        if grid.blocks.iter().all(|&blocks| blocks > 0) {
            let moved = |arg: &Arg| if let Arg::Pointer { moved, .. } = *arg { moved } else { 0 };
            let cost = || Cost { flops, dtype, bytes: args.iter().map(moved).sum() };
            let launch = || self.driver.launch(kernel, grid, args);
            self.profile.note(&*self.driver, || Operation::of(kernel, cost()), launch);
        }
    }

    /// Queues a matrix product.
    pub fn multiply(&self, product: Product) {
        if let Some(Epilogue { kind, .. }) = product.epilogue {
            let has_bias = product.bias.is_some();
            assert!(product.beta == 0.0 && !(has_bias && kind == EpilogueKind::GeluGradient), "{product:?}");
        }
        if product.sizes.iter().all(|&size| size > 0) {
            let multiply = || self.driver.multiply(product);
            self.profile.note(&*self.driver, || Operation::of_product(product), multiply);
        }
    }

    /// Waits for everything queued.
    ///
    /// # Errors
    /// Whatever went wrong on the device since the last one.
    pub fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }
}

/// An allocation on the device.
pub struct Buffer<T> {
    gpu: Gpu,
    address: Address,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Buffer<T> {
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

const NO_POINTER: Arg = Arg::at(0);
