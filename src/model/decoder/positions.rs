//! What a decoder knows of positions beside its parameters: angles of a rotary embedding, slopes of ALiBi.

use super::Pass;
use crate::model::arch::{Arch, Position, RopeScaling, Rotary};
use crate::ops::{View, rotary};

/// Tables for rows of up to some length, made when a longer one comes.
#[derive(Default)]
pub(in crate::model) struct Positions {
    /// Positions that the tables have.
    capacity: usize,
    /// Row length whose frequencies the angles have.
    rotary_len: usize,
    table: Option<rotary::Table>,
    /// (heads, capacity).
    key_bias: Option<Vec<f32>>,
}

impl Positions {
    /// Makes sure that the tables serve rows of `row_len`; whether there are new ones. Only with dynamic scaling do they depend
    /// on more than that.
    pub(in crate::model) fn prepare(&mut self, arch: &Arch, row_len: usize) -> bool {
        let rotary_len = arch.rotary_len(row_len, self.rotary_len);
        let scaling = if let Position::Rotary(rotary) = arch.position { rotary.scaling } else { RopeScaling::None };
        let is_dynamic = matches!(scaling, RopeScaling::Dynamic { .. });
        let has_other_frequencies = is_dynamic && rotary_len.max(arch.context) != self.rotary_len.max(arch.context);
        self.rotary_len = rotary_len;
        if self.capacity >= row_len && !has_other_frequencies {
            return false;
        }
        self.capacity = self.capacity.max(row_len);
        self.table = arch
            .rotary_frequencies(rotary_len)
            .map(|(frequencies, divisor)| rotary::Table::new(&frequencies, self.capacity, divisor));
        self.key_bias = arch.key_bias(self.capacity);
        true
    }

    /// How queries and keys are turned, if they are.
    pub(super) fn rotary(&self, arch: &Arch, pass: Pass) -> Option<(rotary::Shape, &rotary::Table)> {
        Some((rotary_shape(arch, pass.row_len, pass.first_position)?, self.table()?))
    }

    /// The angles, if there are any.
    pub(in crate::model) fn table(&self) -> Option<&rotary::Table> {
        self.table.as_ref()
    }

    /// (heads, capacity), if there are biases.
    pub(in crate::model) fn key_bias_slice(&self) -> Option<&[f32]> {
        self.key_bias.as_deref()
    }

    /// What is added to the scores of each head's keys, if anything is.
    pub(super) fn key_bias(&self) -> Option<View<'_, f32>> {
        self.key_bias_slice().map(View::from)
    }
}

/// Where queries and keys lie in `qkv` that are turned, if they are.
pub(in crate::model) fn rotary_shape(arch: &Arch, t: usize, first_position: usize) -> Option<rotary::Shape> {
    let Position::Rotary(Rotary { size, pairing, .. }) = arch.position else { return None };
    let heads = arch.heads + arch.kv_heads;
    Some(rotary::Shape { heads, d: arch.head_size, row_len: arch.qkv_width(), size, t, first_position, pairing })
}
