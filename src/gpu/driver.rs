//! What a GPU must do, and what it is asked in: kernels with their arguments, matrix products, places in its memory.

use anyhow::Result;

use super::Dtype;
use crate::figures;

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
    /// it takes by itself; whether there is one. A driver knows one way unless it says otherwise.
    fn choose_algorithm(&self, _product: &Product, rank: usize) -> Result<bool> {
        Ok(rank == 0)
    }
}

/// The pointer of what a kernel takes and is not given.
pub(super) const NO_POINTER: Arg = Arg::at(0);
