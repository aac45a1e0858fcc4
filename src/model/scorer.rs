//! How models are scored ([`Scoring`]), and a [`Scorer`] on the CPU.

use std::ops::DerefMut;

use anyhow::Result;

use super::arch::Arch;
use super::{LossAndGradients, Rows, Scorer, gpu};
use crate::placement::Placement;
use crate::recipe::Backend;
use crate::rules::ScoreDtype;

/// How models are scored.
#[derive(Clone)]
pub struct Scoring {
    /// Where.
    pub placement: Placement,
    /// By which implementation.
    pub backend: Backend,
    /// In which number format, on a GPU; the CPU computes in f32.
    pub dtype: ScoreDtype,
}

impl Scoring {
    /// Scoring on the CPU.
    pub fn on_cpu(backend: Backend) -> Self {
        Self { placement: Placement::Cpu, backend, dtype: ScoreDtype::F32 }
    }

    /// A model with these weights; where the GPU's kernels cannot score it, on the CPU, lest a rival be left out. They are flat in the order of its [`Layout`](super::layout::Layout).
    pub fn scorer<'a>(&self, arch: &Arch, params: &'a [f32]) -> Result<Box<dyn Scorer + 'a>> {
        match &self.placement {
            Placement::Gpu(card) if gpu::can_score(arch, self.dtype) => gpu::scorer(card, arch, params, self.dtype),
            _ => Ok(Box::new(CpuScorer { model: super::backend(self.backend, arch), params })),
        }
    }

    /// Whether a model is scored on a GPU.
    pub fn is_on_gpu(&self, arch: &Arch) -> bool {
        matches!(self.placement, Placement::Gpu(_)) && gpu::can_score(arch, self.dtype)
    }

    /// What determines the bits of a model's losses besides the model: implementation, number format and device.
    pub fn computation(&self, arch: &Arch) -> String {
        let backend = match self.backend {
            Backend::Native => "native",
            Backend::Candle => "candle",
        };
        match &self.placement {
            Placement::Gpu(card) if gpu::can_score(arch, self.dtype) => {
                format!("{backend} {:?} {}", self.dtype, card.name())
            }
            _ => format!("{backend} F32 cpu"),
        }
    }
}

/// A decoder on the CPU, owned or borrowed, beside the weights that it is handed at every call.
pub(crate) struct CpuScorer<'a, M> {
    pub(crate) model: M,
    pub(crate) params: &'a [f32],
}

impl<M: DerefMut<Target: LossAndGradients> + Send> Scorer for CpuScorer<'_, M> {
    fn row_losses(&mut self, rows: Rows) -> Result<Vec<f32>> {
        self.model.row_losses(self.params, rows)
    }

    fn logits(&mut self, rows: Rows) -> Result<Vec<f32>> {
        self.model.logits(self.params, rows)
    }
}
