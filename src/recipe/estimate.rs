//! What a recipe costs before it has run: parameters, memory, disk, time of a save, tokens and arithmetic.
//!
//! All of it follows from the architecture and a few numbers of the recipe by the formulas below; none of it is
//! measured. Sums are `u128`, saturating, so that an absurd recipe yields an absurd figure and not a panic.

use super::{Backend, Recipe, Recompute, Resolved};
use crate::model::arch::Arch;
use crate::model::decoder::memory::{self, TrainingBytes};
use crate::train::meter;

/// Bytes of an `f32`.
const F32: u128 = 4;

/// Assumed speed of writing, hashing and syncing a checkpoint, in bytes per second.
pub(crate) const SAVE_BYTES_PER_SECOND: f64 = 400e6;

/// Size of the published repository: 4 bytes per parameter, the safetensors header and config.json, rounded up.
pub(super) fn repo_bytes(arch: &Arch) -> u128 {
    // One entry of the header is about 110 bytes of JSON; config.json and generation_config.json stay below 4 KiB.
    let header = (20 * arch.layers as u128 + 5) * 160 + 4096;
    arch.num_parameters().saturating_mul(F32).saturating_add(header)
}

/// Memory while training, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// f32 weights: 4 per parameter.
    pub weights: u128,
    /// f32 gradients: 4 per parameter.
    pub gradients: u128,
    /// AdamW's two moments: 8 per parameter.
    pub moments: u128,
    /// What forward saves for backward and both work in, for one micro batch.
    pub activations: Activations,
    /// A rival as large as the rules allow, and what scoring it takes; 0 if the run scores none.
    pub scoring: u128,
}

impl Memory {
    /// Everything together.
    pub fn total(&self) -> u128 {
        let state = self.weights.saturating_add(self.gradients).saturating_add(self.moments);
        state.saturating_add(self.activations.total()).saturating_add(self.scoring)
    }
}

/// The parts of the activations, in bytes, for one micro batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activations {
    /// Saved by the forward pass of all blocks.
    pub saved: u128,
    /// The backward pass's gradients of activations: those of one block at a time, with the `native` backend.
    pub backward: u128,
    /// Logits: one chunk with the `native` backend.
    pub logits: u128,
}

impl Activations {
    /// Everything together.
    pub fn total(&self) -> u128 {
        self.saved.saturating_add(self.backward).saturating_add(self.logits)
    }

    /// Activations of one micro batch of `rows` × `row_len` tokens in f32 on the CPU.
    ///
    /// `native`: what the decoder allocates, to the byte ([`memory`]); attention probabilities are never stored, and logits
    /// exist for 512 tokens at a time.
    ///
    /// `candle` keeps every intermediate alive until the loss is dropped. Counted roughly: twice the above, four
    /// attention matrices (h · row_len per token), as much again for half of the gradients, and five times the logits.
    pub fn of(
        arch: &Arch,
        backend: Backend,
        rows: usize,
        row_len: usize,
        threads: usize,
        recompute: Recompute,
    ) -> Self {
        match backend {
            Backend::Native => {
                let TrainingBytes { saved, backward, logits } =
                    memory::training_bytes(arch, rows, row_len, threads, recompute);
                Self { saved, backward, logits }
            }
            Backend::Candle => {
                let of = |value: usize| value as u128;
                let native = memory::training_bytes(arch, rows, row_len, threads, Recompute::None);
                let in_bytes = |per_token: u128| per_token.saturating_mul(of(rows)).saturating_mul(4 * of(row_len));
                let attention =
                    of(arch.heads).saturating_mul(of(row_len)).saturating_mul(4).saturating_mul(of(arch.layers));
                let saved = native.saved.saturating_mul(2).saturating_add(in_bytes(attention));
                Self { saved, backward: saved / 2, logits: in_bytes(of(arch.vocab_size).saturating_mul(5)) }
            }
        }
    }
}

/// Disk space, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// model.safetensors: 4 per parameter.
    pub model: u128,
    /// The training state beside it: 8 per parameter.
    pub state: u128,
    /// Most checkpoints that exist at a time: the newest, `best`, those kept for good, and one being written.
    pub num_checkpoints: u128,
}

impl Disk {
    /// One checkpoint.
    pub fn checkpoint(&self) -> u128 {
        self.model.saturating_add(self.state)
    }

    /// Everything the run ever has on disk at once.
    pub fn total(&self) -> u128 {
        self.checkpoint().saturating_mul(self.num_checkpoints)
    }
}

/// What a recipe costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Number of parameters, a tied head counted once.
    pub num_parameters: u128,
    /// Memory while training.
    pub memory: Memory,
    /// Disk space.
    pub disk: Disk,
    /// Seconds to write one checkpoint, at 400 MB/s.
    pub save_seconds: f64,
    /// Tokens of the whole run.
    pub total_tokens: u128,
    /// Tokens of the whole run per parameter; about 20 is where compute is best spent.
    pub tokens_per_parameter: f64,
    /// Arithmetic per trained token: 6 N + 6 L d T (see `train::meter`).
    pub flops_per_token: f64,
    /// Arithmetic of the whole run.
    pub total_flops: f64,
}

impl Estimate {
    /// The costs of a resolved recipe on one device.
    pub fn of(resolved: &Resolved) -> Self {
        let (arch, recipe) = (&resolved.arch, &resolved.recipe);
        let parameters = arch.num_parameters();
        let per_parameter = |size: u128| parameters.saturating_mul(size);
        let memory = Memory {
            weights: per_parameter(F32),
            gradients: per_parameter(F32),
            moments: per_parameter(2 * F32),
            activations: Activations::of(
                arch,
                recipe.model.backend,
                recipe.train.micro_batch,
                resolved.row_len,
                resolved.threads,
                recipe.train.recompute,
            ),
            scoring: scoring_bytes(resolved),
        };
        let disk = Disk {
            model: per_parameter(F32),
            state: per_parameter(2 * F32),
            num_checkpoints: (recipe.checkpoint.keep_last as u128)
                .saturating_add(kept_for_good(recipe))
                .saturating_add(2),
        };
        let total_tokens = (recipe.train.steps as u128).saturating_mul(recipe.train.tokens_per_step as u128);
        let flops_per_token = meter::train_flops_per_token(arch, resolved.row_len);
        Self {
            num_parameters: parameters,
            memory,
            disk,
            save_seconds: disk.checkpoint() as f64 / SAVE_BYTES_PER_SECOND,
            total_tokens,
            tokens_per_parameter: total_tokens as f64 / parameters.max(1) as f64,
            flops_per_token,
            total_flops: flops_per_token * total_tokens as f64,
        }
    }
}

/// What scoring rivals takes: weights in f32 at the rules' limit, and activations as the own model's.
fn scoring_bytes(resolved: &Resolved) -> u128 {
    let criteria = &resolved.rules.criteria;
    match resolved.recipe.score.every {
        0 => 0,
        _ => u128::from(criteria.max_parameters).saturating_mul(F32).saturating_add(memory::scoring_bytes(
            &resolved.arch,
            criteria.sequence_length,
            resolved.threads,
        )),
    }
}

/// Number of checkpoints that `keep_every` keeps: saved steps (multiples of either interval, and the last) divisible by it.
fn kept_for_good(recipe: &Recipe) -> u128 {
    let (steps, keep) = (recipe.train.steps as u128, recipe.checkpoint.keep_every as u128);
    if keep == 0 {
        return 0;
    }
    let saves = [recipe.checkpoint.every as u128, recipe.eval.every as u128];
    let [by_saves, by_evals] = saves.map(|every| if every == 0 { 0 } else { least_common_multiple(keep, every) });
    let multiples = |of: u128| steps.checked_div(of).unwrap_or(0);
    let both = if by_saves == 0 || by_evals == 0 { 0 } else { least_common_multiple(by_saves, by_evals) };
    let regular = multiples(by_saves) + multiples(by_evals) - multiples(both);
    let is_regular = saves.iter().any(|every| *every != 0 && steps.is_multiple_of(*every));
    regular + u128::from(steps.is_multiple_of(keep) && !is_regular)
}

fn least_common_multiple(a: u128, b: u128) -> u128 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x).saturating_mul(b)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::small;
    use super::*;
    use crate::model::layout::Layout;

    #[test]
    fn counts_parameters_as_the_layout_does() {
        for tied_head in [true, false] {
            for (width, layers, heads, mlp_width) in
                [(768, 12, 12, 3072), (1280, 36, 20, 5056), (6, 3, 2, 7), (1, 1, 1, 1)]
            {
                let arch = Arch { mlp_width, tied_head, ..Arch::gpt2(50_257, 1024, width, layers, heads) };
                assert_eq!(arch.num_parameters(), Layout::of(&arch).len() as u128);
            }
        }
        let absurd = Arch { width: usize::MAX, mlp_width: usize::MAX, ..Arch::gpt2(50_257, 1024, 0, usize::MAX, 1) };
        assert_eq!(absurd.num_parameters(), u128::MAX);
    }

    /// By hand for 2 × 64, 2 heads, 1024 positions, 2 × 1024 tokens per micro batch, 100 steps of 4096 tokens.
    #[test]
    fn follows_its_formulas() {
        let estimate = Estimate::of(&small().resolve().unwrap());
        let parameters = (50_257 + 1_024) * 64 + 2 * (12 * 64 * 64 + 13 * 64) + 2 * 64;
        assert_eq!(parameters, 3_382_080);
        assert_eq!(estimate.num_parameters, 3_382_080);
        assert_eq!(estimate.memory.weights + estimate.memory.gradients + estimate.memory.moments, 16 * 3_382_080);
        let block = 8 * 64 + 2 * 256 + 2 + 4;
        let activations = estimate.memory.activations;
        assert_eq!(activations.saved, 4 * 2048 * (2 * block + 2 * 64 + 5));
        assert_eq!(activations.logits, 4 * 512 * 50_257);
        assert_eq!(estimate.disk.checkpoint(), 12 * 3_382_080);
        assert_eq!(estimate.disk.num_checkpoints, 4);
        assert_eq!(estimate.total_tokens, 409_600);
        assert_eq!(estimate.flops_per_token, 6.0 * 3_382_080.0 + 6.0 * 2.0 * 64.0 * 1024.0);
    }

    #[test]
    fn counts_the_checkpoints_that_stay() {
        let mut recipe = small();
        for (steps, every, eval_every, keep_every) in [
            (100, 10, 25, 20),
            (100, 0, 0, 50),
            (100, 0, 0, 30),
            (97, 7, 3, 5),
            (60, 10, 15, 0),
            (1, 0, 0, 1),
            (90, 4, 6, 10),
        ] {
            recipe.train.steps = steps;
            recipe.checkpoint.every = every;
            recipe.eval.every = eval_every;
            recipe.checkpoint.keep_every = keep_every;
            let saved = |step: usize| {
                step == steps
                    || (every > 0 && step.is_multiple_of(every))
                    || (eval_every > 0 && step.is_multiple_of(eval_every))
            };
            let kept =
                (1..=steps).filter(|step| keep_every > 0 && saved(*step) && step.is_multiple_of(keep_every)).count();
            assert_eq!(kept_for_good(&recipe), kept as u128, "{steps} {every} {eval_every} {keep_every}");
        }
    }

    #[test]
    fn absurd_sizes_give_figures_and_no_panic() {
        let mut recipe = small();
        recipe.model.layers = usize::MAX;
        recipe.model.width = usize::MAX;
        recipe.train.micro_batch = usize::MAX;
        recipe.train.steps = usize::MAX;
        recipe.train.tokens_per_step = usize::MAX;
        recipe.checkpoint.keep_every = usize::MAX;
        recipe.checkpoint.every = usize::MAX - 1;
        let examined = recipe.examine();
        assert!(!examined.violations.is_empty());
        assert_eq!(Estimate::of(&examined.resolved).memory.total(), u128::MAX);
    }
}
