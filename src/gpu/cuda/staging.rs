//! Uploads through pinned memory.
//!
//! The caller of an upload may reuse its bytes at once, so they must have been read when it returns. What CUDA says of
//! copies from ordinary memory is that they "may" be synchronous, and may wait for the stream: with the copies of a
//! step queued behind its kernels that would stop the host. So bytes are first copied into pinned memory here, which
//! the GPU reads by itself: small uploads cost a `memcpy` and wait for nothing; of large ones (a model's 3 GB) one half
//! of the pinned memory is filled while the GPU reads the other, which leaves the speed of the slower of the two.

use anyhow::Result;
use cudarc::driver::result;

use super::handles::{Event, Pinned, Stream, check};
use crate::gpu::Address;

/// Bytes of each half: far more than it takes to keep the bus busy.
const HALF: usize = 8 << 20;
/// Where uploads begin within a half.
const ALIGNMENT: usize = 256;

/// Pinned memory through which one stream is fed.
pub(super) struct Staging {
    /// Two halves, each with the event that says that everything was read from it.
    halves: [(Pinned, Event); 2],
    /// The half that is being filled, and up to where.
    filling: usize,
    filled: usize,
}

impl Staging {
    pub(super) fn new() -> Result<Self> {
        let half = || -> Result<_> { Ok((Pinned::new(HALF)?, Event::new()?)) };
        Ok(Self { halves: [half()?, half()?], filling: 0, filled: 0 })
    }

    /// Queues a copy to the device; `bytes` have been read when this returns. Always with the same stream.
    pub(super) fn upload(&mut self, stream: &Stream, mut to: Address, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.filled >= HALF {
                self.halves[self.filling].1.record(stream)?;
                self.filling = 1 - self.filling;
                self.filled = 0;
                self.halves[self.filling].1.synchronize()?;
            }
            let (part, rest) = bytes.split_at(bytes.len().min(HALF - self.filled));
            // SAFETY: the place lies within this half; the GPU has read what was there before (the event above), and
            // is given only what is written here.
            let staged = unsafe {
                let place = self.halves[self.filling].0.0.add(self.filled);
                std::ptr::copy_nonoverlapping(part.as_ptr(), place, part.len());
                std::slice::from_raw_parts(place, part.len())
            };
            // SAFETY: `staged` stays as it is until the half's event; `to` is the caller's.
            check(unsafe { result::memcpy_htod_async(to, staged, stream.0) }, "an upload")?;
            self.filled = (self.filled + part.len()).next_multiple_of(ALIGNMENT);
            to += part.len() as u64;
            bytes = rest;
        }
        Ok(())
    }
}
