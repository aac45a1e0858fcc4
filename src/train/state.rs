//! What a run is between two steps: the numbers ([`Weights`]) and the place ([`Place`]).
//!
//! Everything that decides how the run goes on is here, and all of it is in the checkpoint: with the same recipe the
//! same bits follow. Random numbers need no state, they are functions of seed, step and index (`ops/random.rs`).

use serde::{Deserialize, Serialize};

use super::guard::Guard;
use crate::data::Cursor;
use crate::model::layout::Layout;
use crate::ops::Buffer;

/// Parameters and both moments, each flat in the model's layout.
pub struct Weights {
    /// f32 masters.
    pub params: Buffer<f32>,
    /// AdamW's running mean of gradients.
    pub means: Buffer<f32>,
    /// AdamW's running mean of squared gradients.
    pub squares: Buffer<f32>,
}

impl Weights {
    /// All zero.
    pub fn zeros(layout: &Layout) -> Self {
        let [params, means, squares] = [(); 3].map(|()| Buffer::zeros(layout.len()));
        Self { params, means, squares }
    }

    /// Before the first step: these parameters, in the model's layout, and moments of zero.
    pub fn starting_at(params: &[f32]) -> Self {
        let [mut own, means, squares] = [(); 3].map(|()| Buffer::zeros(params.len()));
        own.as_mut_slice().copy_from_slice(params);
        Self { params: own, means, squares }
    }
}

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Optimizer steps that are done, skipped ones included.
    pub step: u64,
    /// Steps that changed the weights: what bias correction counts.
    pub updates: u64,
    /// Tokens read over all processes.
    pub tokens: u64,
    /// Where the global stream of rows stands.
    pub cursor: Cursor,
    /// Skipped steps.
    pub guard: Guard,
    /// Seconds spent in steps so far, over all sessions; for people, decides nothing.
    pub seconds: f64,
    /// CPU threads with which it was computed: part of what determines its bits.
    pub threads: usize,
    /// The card on which it was computed, or `cpu`: as well; empty where it was not recorded.
    #[serde(default)]
    pub device: String,
    /// Processes that trained it; the stream and the curve do not depend on it, rounding does.
    pub world_size: usize,
}
