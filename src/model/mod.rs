//! The language model: what it is ([`arch`]), where its numbers lie ([`layout`]), how it reads and writes Hugging Face
//! checkpoints ([`config`], [`weights`]), how it starts ([`init`]), its two backends behind [`LossAndGradients`], and what is
//! scored ([`scorer`]).

pub mod arch;
pub mod candle;
pub mod config;
pub mod decoder;
pub mod family;
pub mod generate;
pub mod gpu;
pub mod init;
mod json;
pub mod layout;
pub(crate) mod parts;
pub mod scorer;
pub mod weights;

#[cfg(test)]
mod family_tests;
#[cfg(test)]
pub(crate) mod golden_tests;
#[cfg(test)]
pub(crate) mod golden_training;

use anyhow::{Result, ensure};

use crate::ops::Device;
use crate::recipe::{Backend, Recompute};
use arch::{Arch, Unused};

/// The chosen implementation of a decoder.
pub fn backend(choice: Backend, arch: &Arch) -> Box<dyn LossAndGradients> {
    trainer(choice, arch, Recompute::None)
}

/// The chosen implementation of a decoder that trains; candle keeps everything whatever is asked.
pub fn trainer(choice: Backend, arch: &Arch, recompute: Recompute) -> Box<dyn LossAndGradients> {
    match choice {
        Backend::Native => Box::new(decoder::Decoder::recomputing(Device::cpu(), arch, recompute)),
        Backend::Candle => Box::new(candle::CandleDecoder::new(arch)),
    }
}

/// Computes losses and gradients of a decoder on the CPU, with weights that are handed in at every call.
///
/// The target of a position is the next token of its row, so a row has `row_len - 1` targets. `params` and `gradients` are
/// flat, in the order of [`layout::Layout`]. A token id outside the vocabulary and a row longer than the model's context are
/// errors.
pub trait LossAndGradients: Send {
    /// Returns the mean loss over all `num_rows * (row_len - 1)` targets and adds `scale` times its gradient to
    /// `gradients`. Rows of fewer than two tokens are an error.
    fn loss_and_gradients(
        &mut self,
        params: &[f32],
        gradients: &mut [f32],
        rows: Rows,
        scale: f32,
        dropout: Option<DropoutSeed>,
    ) -> Result<f32>;

    /// Mean loss of each row, without dropout; not a number for rows of one token, as in PyTorch.
    fn row_losses(&mut self, params: &[f32], rows: Rows) -> Result<Vec<f32>>;

    /// Logits, without dropout: `num_rows * row_len` rows of `vocab_size` each.
    fn logits(&mut self, params: &[f32], rows: Rows) -> Result<Vec<f32>>;
}

/// A model with its weights. A token id outside the vocabulary and a row longer than the model's context are errors.
pub trait Scorer: Send {
    /// Mean loss of each row, without dropout; not a number for rows of one token, as in PyTorch.
    fn row_losses(&mut self, rows: Rows) -> Result<Vec<f32>>;

    /// Logits, without dropout: `num_rows * row_len` rows of `vocab_size` each.
    fn logits(&mut self, rows: Rows) -> Result<Vec<f32>>;

    /// How many rows of a length are best handed over at once. On the CPU one row keeps all cores busy, and more of them
    /// only take more memory.
    fn rows_at_once(&self, _row_len: usize) -> usize {
        1
    }
}

/// Rows of token ids of one length, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// `num_rows * row_len` ids.
    pub tokens: &'a [u32],
    /// Number of rows.
    pub num_rows: usize,
    /// Tokens per row.
    pub row_len: usize,
}

impl<'a> Rows<'a> {
    /// Rows whose sizes the decoder will check.
    pub fn new(tokens: &'a [u32], num_rows: usize, row_len: usize) -> Self {
        Self { tokens, num_rows, row_len }
    }
}

/// What determines the dropout masks of one forward pass (`ops/random.rs` has the sites).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropoutSeed {
    /// Probability of dropping an element, in `(0, 1)`.
    pub rate: f32,
    /// Seed, with optimizer step, micro-step and rank mixed in.
    pub seed: u64,
}

/// Why a model with norms of queries and keys has no loss.
pub(crate) const QUERY_KEY_NORMS: &str =
    "qk_layernorm is set: transformers 4.38.0 fails on such a model, and it is not implemented here";

/// Refuses tokens that the decoder cannot read; both backends call it first.
pub(crate) fn check_tokens(arch: &Arch, rows: Rows) -> Result<()> {
    let Rows { tokens, num_rows, row_len } = rows;
    ensure!(
        num_rows.checked_mul(row_len) == Some(tokens.len()) && !tokens.is_empty(),
        "{} tokens are not {num_rows} rows of {row_len}",
        tokens.len()
    );
    ensure!(arch.unused != Unused::QueryKeyNorms, "{QUERY_KEY_NORMS}");
    if let Some(longest) = arch.max_row_len() {
        ensure!(row_len <= longest, "a row of {row_len} tokens is longer than the {longest} positions of the model");
    }
    match tokens.iter().position(|&token| token as usize >= arch.vocab_size) {
        Some(i) => anyhow::bail!(
            "token id {} (row {}, position {}) lies outside the vocabulary of {}",
            tokens[i],
            i / row_len,
            i % row_len,
            arch.vocab_size
        ),
        None => Ok(()),
    }
}
