//! What training takes of a GPU's memory, and which options would make it fit.

use super::layout;
use super::memory::ActivationBytes;
use crate::model::arch::Arch;
use crate::recipe::Recompute;

/// The first change of options with which training fits into `available` bytes, as a sentence.
pub(crate) fn what_would_fit(
    arch: &Arch,
    rows: usize,
    row_len: usize,
    recompute: Recompute,
    available: u128,
) -> String {
    // CUDA itself, cuBLASLt's workspace and fragments of free memory.
    const RESERVE: u128 = 1 << 30;
    let fits =
        |rows, recompute| memory_estimate(arch, rows, row_len, recompute).total().saturating_add(RESERVE) <= available;
    let choices = [(Recompute::Mlp, "mlp"), (Recompute::Block, "block")];
    let saving = choices.into_iter().skip_while(|&(choice, _)| recompute != Recompute::None && choice != recompute);
    if let Some((_, name)) = saving.filter(|&(choice, _)| choice != recompute).find(|&(choice, _)| fits(rows, choice)) {
        return format!("train.recompute: {name} would fit.");
    }
    let halves = std::iter::successors(Some(rows / 2), |rows| Some(rows / 2)).take_while(|&rows| rows > 0);
    for rows in halves {
        if fits(rows, recompute) {
            return format!("train.micro_batch: {rows} would fit.");
        }
        if fits(rows, Recompute::Block) {
            return format!("train.micro_batch: {rows} with train.recompute: block would fit.");
        }
    }
    "No micro-batch of this model fits on this card.".to_owned()
}

/// What training takes of a GPU's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// f32 masters and the rounded copy that products read.
    pub weights: u128,
    /// Gradients.
    pub gradients: u128,
    /// AdamW's moments.
    pub moments: u128,
    /// What forward saves for backward and both work in, for one micro batch.
    pub activations: u128,
    /// One chunk of logits.
    pub logits: u128,
}

impl GpuMemory {
    /// Everything together.
    pub fn total(&self) -> u128 {
        let parts = [self.weights, self.gradients, self.moments, self.activations, self.logits];
        parts.into_iter().fold(0, u128::saturating_add)
    }
}

/// What training on rows of a length takes of a GPU's memory, as the engine takes it; CUDA's own memory not counted.
pub fn memory_estimate(arch: &Arch, rows: usize, row_len: usize, recompute: Recompute) -> GpuMemory {
    let ActivationBytes { saved, backward, logits } = ActivationBytes::of(arch, rows, row_len, recompute);
    let len = layout::device_len_of(arch);
    GpuMemory {
        weights: len.saturating_mul(6),
        gradients: len.saturating_mul(4),
        moments: len.saturating_mul(8),
        activations: saved.saturating_add(backward),
        logits,
    }
}
