//! The decoder on a GPU: this build has none. Its engine trains, its scorer scores, and what it needs is known before.

use anyhow::{Result, bail};

use super::arch::Arch;
use super::decoder::memory::{TrainingBytes, training_bytes};
use super::scorer::Scorer;
use crate::gpu::Gpu;
use crate::recipe::Recompute;
use crate::rules::ScoreDtype;
use crate::train::engine::{Engine, Options};
use crate::train::state::Weights;

/// A model on the GPU, to be scored in the number format of the rules.
pub fn scorer(gpu: &Gpu, _arch: &Arch, _params: &[f32], _dtype: ScoreDtype) -> Result<Box<dyn Scorer>> {
    bail!("{} cannot be used: this build has no decoder for GPUs", gpu.name())
}

/// A model on the GPU with its gradients and moments, to be trained.
pub fn engine(gpu: &Gpu, _arch: &Arch, _options: &Options, _weights: Weights) -> Result<Box<dyn Engine>> {
    bail!("{} cannot be used: this build has no decoder for GPUs", gpu.name())
}

/// What training takes of a GPU's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// Masters and what is computed with.
    pub weights: u128,
    /// Gradients.
    pub gradients: u128,
    /// AdamW's moments.
    pub moments: u128,
    /// What forward saves for backward and both work in, for one micro batch.
    pub activations: u128,
    /// Logits.
    pub logits: u128,
}

impl GpuMemory {
    /// Everything together.
    pub fn total(&self) -> u128 {
        let parts = [self.weights, self.gradients, self.moments, self.activations, self.logits];
        parts.into_iter().fold(0, u128::saturating_add)
    }
}

/// What training on rows of a length takes of a GPU's memory. The decoder for GPUs defines it; without one these are the
/// CPU's figures.
pub fn memory_estimate(arch: &Arch, rows: usize, row_len: usize, recompute: Recompute) -> GpuMemory {
    let TrainingBytes { saved, backward, logits } = training_bytes(arch, rows, row_len, 1, recompute);
    let weights = arch.num_parameters().saturating_mul(4);
    GpuMemory {
        weights,
        gradients: weights,
        moments: weights.saturating_mul(2),
        activations: saved.saturating_add(backward),
        logits,
    }
}
