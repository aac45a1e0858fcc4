//! What CUDA hands out and wants back: the context, streams, events, pinned memory. Each is given back when it is
//! dropped, for which its context must be current and alive; [`super::Cuda`] sees to both.

use std::ffi::c_void;
use std::fmt::Display;

use anyhow::{Result, anyhow};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

/// Adds to an error of CUDA's what was being done.
pub(super) fn check<T>(result: Result<T, DriverError>, doing: impl Display) -> Result<T> {
    result.map_err(|error| anyhow!("CUDA failed at {doing}: {}", sentence(error)))
}

/// CUDA's own words and name of an error.
pub(super) fn sentence(error: DriverError) -> String {
    let words = error.error_string().map_or("no description".into(), |words| words.to_string_lossy());
    format!("{words} ({:?})", error.0)
}

/// The primary context of a device, which cuBLASLt uses too.
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: the driver may be called from any thread with any context.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Makes it where there is none yet.
    pub(super) fn retain(device: sys::CUdevice) -> Result<Self> {
        // SAFETY: the device comes from the driver.
        let context = check(unsafe { result::primary_ctx::retain(device) }, "making a context on the GPU")?;
        Ok(Self { device, context })
    }

    /// Makes it the calling thread's, which every call to the driver needs.
    pub(super) fn make_current(&self) -> Result<()> {
        // SAFETY: it is alive as long as `self`.
        check(unsafe { result::ctx::set_current(self.context) }, "choosing the GPU's context")
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, by `retain`. There is nobody to tell of an error.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// A queue of work that neither waits for the legacy default stream nor is waited for by it.
pub(super) struct Stream(pub(super) sys::CUstream);

impl Stream {
    pub(super) fn new() -> Result<Self> {
        check(result::stream::create(result::stream::StreamKind::NonBlocking), "making a stream").map(Self)
    }

    /// Lets what is queued from now on wait for an event's last record.
    pub(super) fn wait_for(&self, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive.
        check(unsafe { result::stream::wait_event(self.0, event.0, flags) }, "making a stream wait")
    }

    /// Waits on the host for everything queued.
    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: it is alive.
        check(unsafe { result::stream::synchronize(self.0) }, "waiting for the GPU")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: ours alone. There is nobody to tell of an error.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

/// A mark in a stream; before its first record it counts as reached.
pub(super) struct Event(sys::CUevent);

impl Event {
    pub(super) fn new() -> Result<Self> {
        check(result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING), "making an event").map(Self)
    }

    /// One that knows when it was reached.
    pub(super) fn with_time() -> Result<Self> {
        check(result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT), "making an event").map(Self)
    }

    /// Seconds from this mark to another one; both have been reached and know when.
    pub(super) fn seconds_until(&self, later: &Self) -> Result<f64> {
        type ElapsedTime = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
        let mut milliseconds = 0.0;
        // cudarc knows only the second version of this function, which drivers have from CUDA 12.8 on.
        // SAFETY: the library is loaded, its function has had this signature since CUDA 2, and both events are alive.
        let read = unsafe {
            let elapsed_time = sys::culib().get::<ElapsedTime>(b"cuEventElapsedTime\0")?;
            elapsed_time(&mut milliseconds, self.0, later.0).result()
        };
        check(read, "reading a time")?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    /// Sets the mark behind what the stream holds now.
    pub(super) fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        check(unsafe { result::event::record(self.0, stream.0) }, "recording an event")
    }

    /// Waits on the host until the mark is reached.
    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: it is alive.
        check(unsafe { result::event::synchronize(self.0) }, "waiting for an event")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: ours alone. There is nobody to tell of an error.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// Memory of the host that the GPU copies from by itself.
pub(super) struct Pinned(pub(super) *mut u8);

impl Pinned {
    pub(super) fn new(bytes: usize) -> Result<Self> {
        // SAFETY: a plain allocation; nothing is read from it before it is written.
        let memory = check(unsafe { result::malloc_host(bytes, 0) }, "taking pinned memory of the host")?;
        Ok(Self(memory.cast()))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: ours alone, and `Cuda` has waited for the copies. There is nobody to tell of an error.
        let _ = unsafe { result::free_host(self.0.cast::<c_void>()) };
    }
}

/// A file of kernels on the card.
pub(super) struct Module(pub(super) sys::CUmodule);

// SAFETY: as for `Context`.
unsafe impl Send for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: ours alone, and `Cuda` has waited for its kernels. There is nobody to tell of an error.
        let _ = unsafe { result::module::unload(self.0) };
    }
}
