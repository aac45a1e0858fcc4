//! Keys and values of the tokens so far, so that generating one more costs one token.

use super::Pass;
use crate::model::arch::Arch;
use crate::ops::{Buffer, View};

/// The cache of one row.
pub struct Cache {
    /// One per block: (capacity, 2 kv d), keys then values.
    layers: Vec<Buffer<f32>>,
    capacity: usize,
    len: usize,
}

/// One block's part.
pub(super) struct LayerCache<'a> {
    buffer: &'a mut Buffer<f32>,
    pub(super) capacity: usize,
}

impl Cache {
    /// Room for rows of up to `capacity` tokens.
    pub fn new(arch: &Arch, capacity: usize) -> Self {
        let per_token = 2 * arch.kv_heads * arch.head_size;
        let layers = (0..arch.layers).map(|_| Buffer::zeros(capacity * per_token)).collect();
        Self { layers, capacity, len: 0 }
    }

    /// Tokens it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn layer(&mut self, layer: usize) -> LayerCache<'_> {
        LayerCache { buffer: &mut self.layers[layer], capacity: self.capacity }
    }

    pub(super) fn grow(&mut self, num_tokens: usize) {
        self.len += num_tokens;
    }
}

impl LayerCache<'_> {
    /// Keeps the keys and values of a pass over one row.
    pub(super) fn store(&mut self, arch: &Arch, qkv: View<f32>, pass: Pass) {
        let (queries, width) = (arch.attention_width(), arch.qkv_width());
        let kept = width - queries;
        let rows = self.buffer.as_mut_slice()[pass.first_position * kept..].chunks_exact_mut(kept);
        for (row, qkv) in rows.zip(qkv.cpu().chunks_exact(width)) {
            row.copy_from_slice(&qkv[queries..]);
        }
    }

    pub(super) fn view(&self) -> View<'_, f32> {
        self.buffer.view()
    }
}
