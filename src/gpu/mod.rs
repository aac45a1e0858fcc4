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
mod buffer;
pub mod cards;
pub mod cast;
pub mod column_sums;
pub mod cross_entropy;
pub mod cuda;
mod driver;
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

use std::sync::Arc;

use anyhow::Result;
use bytemuck::{Pod, Zeroable};
use half::bf16;

pub use buffer::{Buffer, View, ViewMut, optional, optional_mut};
use driver::NO_POINTER;
pub use driver::{Address, Arg, Driver, Epilogue, EpilogueKind, Grid, Operand, OutOfMemory, Product};
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
        Ok(Buffer::new(self, address, len))
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
