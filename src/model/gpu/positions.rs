//! What the decoder knows of positions beside its parameters, on the device.

use anyhow::Result;

use crate::gpu::{Buffer, Gpu, View, rotary};
use crate::model::arch::Arch;
use crate::model::decoder::positions;
use crate::ops;

/// Tables for rows of up to some length, uploaded when the host makes new ones.
#[derive(Default)]
pub(super) struct Positions {
    host: positions::Positions,
    table: Option<rotary::Table>,
    key_bias: Option<Buffer<f32>>,
}

impl Positions {
    /// Makes sure that the tables serve rows of `row_len`.
    pub(super) fn prepare(&mut self, gpu: &Gpu, arch: &Arch, row_len: usize) -> Result<()> {
        if self.host.prepare(arch, row_len) {
            let uploaded = self.upload(gpu);
            if uploaded.is_err() {
                // So that the next call makes them anew, and does not take the old ones for these.
                *self = Self::default();
            }
            return uploaded;
        }
        Ok(())
    }

    fn upload(&mut self, gpu: &Gpu) -> Result<()> {
        self.table = self.host.table().map(|table| rotary::Table::new(gpu, table)).transpose()?;
        self.key_bias = self.host.key_bias_slice().map(|bias| gpu.buffer_of(bias)).transpose()?;
        Ok(())
    }

    /// How queries and keys of rows of `t` tokens are turned, if they are.
    pub(super) fn rotary(&self, arch: &Arch, t: usize) -> Option<(ops::rotary::Shape, &rotary::Table)> {
        Some((positions::rotary_shape(arch, t, 0)?, self.table.as_ref()?))
    }

    /// What is added to the scores of each head's keys, if anything is.
    pub(super) fn key_bias(&self) -> Option<View<'_, f32>> {
        self.key_bias.as_ref().map(Buffer::view)
    }
}
