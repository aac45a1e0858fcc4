//! The driver of NVIDIA cards: this build has none.

use anyhow::Result;

use super::Gpu;
use crate::error::input;

/// How many cards there are.
pub fn count() -> usize {
    0
}

/// Opens a card by its number, from 0.
///
/// # Errors
/// There is no such card, or no driver.
pub fn open(index: usize) -> Result<Gpu> {
    Err(input(format!(
        "assay finds no CUDA driver on this machine, so there is no cuda:{index}: choose the device cpu or auto"
    )))
}
