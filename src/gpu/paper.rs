//! A [`Driver`] that computes nothing: it says yes to everything and keeps count of the memory, so that what a pass does and
//! takes can be told of any model on any machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::Result;

use super::{Address, Arg, Driver, Gpu, Grid, Product};

/// More memory than any card has.
const MEMORY_BYTES: usize = 1 << 46;
/// Alignment of allocations, as CUDA gives it.
const ALIGNMENT: u64 = 256;

/// A GPU on paper. What is downloaded from it is zero, and nothing takes any time.
pub fn open(name: &str) -> Gpu {
    let (taken, next) = (AtomicUsize::new(0), AtomicU64::new(ALIGNMENT));
    Gpu::new(Arc::new(Paper { name: name.to_owned(), taken, next }))
}

struct Paper {
    name: String,
    /// Bytes that are allocated.
    taken: AtomicUsize,
    /// Where the next allocation will be.
    next: AtomicU64,
}

impl Driver for Paper {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn memory(&self) -> Result<[usize; 2]> {
        Ok([MEMORY_BYTES - self.taken.load(Ordering::Relaxed), MEMORY_BYTES])
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        Ok(self.next.fetch_add((bytes as u64).next_multiple_of(ALIGNMENT), Ordering::Relaxed))
    }

    fn free(&self, _address: Address, bytes: usize) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn download(&self, bytes: &mut [u8], _from: Address) -> Result<()> {
        bytes.fill(0);
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn seconds_between(&self, _first: usize, _last: usize) -> Result<f64> {
        Ok(0.0)
    }

    fn mark(&self) -> usize {
        0
    }

    fn upload(&self, _to: Address, _bytes: &[u8]) {}
    fn upload_ahead(&self, _to: Address, _bytes: &[u8]) {}
    fn copy(&self, _to: Address, _from: Address, _bytes: usize) {}
    fn zero(&self, _at: Address, _bytes: usize) {}
    fn launch(&self, _kernel: &str, _grid: Grid, _args: &[Arg]) {}
    fn multiply(&self, _product: Product) {}
    fn forget_marks(&self) {}
}
