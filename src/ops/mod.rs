//! The operations of the decoder as forward/backward pairs over borrowed windows of our own buffers.
//!
//! Shape suffixes, in the order of memory (row-major): b batch rows, t time (tokens in a row), c channels (width of the
//! residual stream), h heads, d head size, m hidden width of the MLP, v vocabulary, n = b·t. `x_nc` is a matrix of `b·t`
//! rows and `c` columns.
//!
//! Each file opens with its contract: shapes, what is saved for backward, what is accumulated into. Gradients of
//! parameters are added to (`+=`), gradients of activations are overwritten (`=`). Each holds a plain-loop `reference`
//! module, generic over f32 and f64, which is the definition; the fast code is checked against it, it is checked by
//! finite differences and against candle's autograd.
//!
//! A [`Device`] decides where an operation runs, never what it computes. Work is cut into pieces of fixed size, so that
//! results do not depend on the number of threads.

// The only place, with its reasons at each block, where windows of one buffer are handed to several threads.
#![allow(unsafe_code)]

pub mod activation;
pub mod attention;
pub mod buffer;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
#[cfg(target_arch = "x86_64")]
mod gemm;
pub mod linear;
pub mod math;
pub mod matmul;
pub mod norm;
pub mod random;
pub mod real;
pub mod rotary;
mod strided;
#[cfg(test)]
pub(crate) mod testing;

pub use buffer::{Buffer, View, ViewMut};

/// Where operations run.
#[derive(Clone, Debug)]
pub enum Device {
    /// This machine's cores, through the rayon pool in which the operation is called.
    Cpu {
        /// Number of pieces into which matrix products are cut: the number of threads.
        threads: usize,
    },
}

impl Device {
    /// The CPU with as many threads as the current rayon pool has.
    pub fn cpu() -> Self {
        Self::Cpu { threads: rayon::current_num_threads() }
    }
}

/// Rows of a row-major matrix that one task takes: enough elements to outweigh the task, whatever the thread count.
pub(crate) fn rows_per_task(row_len: usize) -> usize {
    (16_384 / row_len.max(1)).max(1)
}
