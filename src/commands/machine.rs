//! What this machine has, and what it lacks for a run.

use std::path::Path;

use crate::checkpoint;
use crate::figures::bytes;
use crate::gpu::cuda;
use crate::memory;
use crate::model::gpu::{self, GpuMemory};
use crate::placement::may_be_gpu;
use crate::recipe::{Bf16Rounding, DeviceChoice, Estimate, Memory, Resolved};

/// What a run takes of a GPU's memory; `None` if it is for the CPU.
pub(super) fn gpu_memory(resolved: &Resolved) -> Option<GpuMemory> {
    let (model, train) = (&resolved.recipe.model, &resolved.recipe.train);
    may_be_gpu(resolved.device(), model.backend)
        .then(|| gpu::memory_estimate(&resolved.arch, train.micro_batch, resolved.row_len, train.recompute))
}

/// The most of a GPU's memory that a run takes at a time: where it scores, a rival has the room that training's activations
/// have otherwise.
pub(super) fn gpu_peak(resolved: &Resolved, memory: &GpuMemory) -> u128 {
    let state = memory.weights.saturating_add(memory.gradients).saturating_add(memory.moments);
    let scoring = match resolved.recipe.score.device {
        Some(device) if device != resolved.recipe.train.device => 0,
        _ => Estimate::of(resolved).memory.scoring,
    };
    memory.total().max(state.saturating_add(scoring))
}

/// What this machine lacks for the run: worth a note, no reason to refuse, for the run may be meant for another machine.
pub(super) fn shortages(resolved: &Resolved) -> Vec<String> {
    let estimate = Estimate::of(resolved);
    let mut notes = Vec::new();
    let train = &resolved.recipe.train;
    let on_gpu = gpu_memory(resolved);
    if let DeviceChoice::Cuda(index) = train.device
        && index >= cuda::count().unwrap_or(0)
    {
        notes.push(match cuda::count().unwrap_or(0) {
            0 => format!("train.device is {}; this machine has no GPU that assay can use", train.device),
            num_cards => format!("train.device is {}; this machine has {num_cards} GPUs, from cuda:0", train.device),
        });
    }
    if train.device == DeviceChoice::Auto && on_gpu.is_none() && train.bf16_rounding != Bf16Rounding::default() {
        notes.push("train.bf16_rounding has no effect on this machine, where the CPU computes, in f32".to_owned());
    }
    // The host keeps a copy of what a checkpoint holds.
    let needed = match on_gpu {
        Some(_) => {
            let Memory { weights, moments, scoring, .. } = estimate.memory;
            weights.saturating_add(moments).saturating_add(scoring)
        }
        None => estimate.memory.total(),
    };
    if let Some(free) = memory::free().filter(|free| needed > *free) {
        notes.push(format!("the run needs {} of memory; this machine has {} free", bytes(needed), bytes(free)));
    }
    if let Some(memory) = on_gpu
        && let peak = gpu_peak(resolved, &memory)
        && let Some((name, free)) = free_gpu_memory(train.device).filter(|(_, free)| peak > *free)
    {
        notes.push(format!("the run needs {} of GPU memory; {name} has {} free", bytes(peak), bytes(free)));
    }
    let disk = estimate.disk.total();
    if let Some(free) = free_disk(&resolved.run_dir).filter(|free| disk > *free) {
        let dir = resolved.run_dir.display();
        notes.push(format!("the run needs {} of disk space; {dir} has {} free", bytes(disk), bytes(free)));
    }
    notes
}

/// A card's name and its free memory, if it tells.
fn free_gpu_memory(choice: DeviceChoice) -> Option<(String, u128)> {
    let index = if let DeviceChoice::Cuda(index) = choice { index } else { 0 };
    let (name, free) = cuda::name_and_free_memory(index).ok()?;
    Some((name, free as u128))
}

/// Free space where a folder is or would be made.
pub(crate) fn free_disk(dir: &Path) -> Option<u128> {
    checkpoint::free_bytes(super::existing_folder(dir)).ok().map(u128::from)
}
