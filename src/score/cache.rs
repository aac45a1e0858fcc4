//! Losses that were computed once: by model and batch, on disk, shared by all commands.

/// The losses that are known.
#[derive(Debug, Default)]
pub struct LossCache {}

impl LossCache {
    /// One that knows nothing and keeps nothing.
    pub fn none() -> Self {
        Self {}
    }
}
