//! A model's numbers in Hugging Face's files, and in our flat buffer.
//!
//! `names` alone knows Hugging Face's tensor names and layouts; `read` finds and checks the files of a folder and
//! streams them into the buffer; `write` streams the buffer into a file that `transformers` loads, the same bytes
//! `save_pretrained` would write; `stream` moves blocks between file and memory and hashes them on the way.
//! No step holds a second copy of a model: blocks of 8 MiB, whatever the model's size. Plain reads rather than a
//! memory map: a file that shrinks under a map kills the process, and the hash comes out of the same pass.

#[cfg(target_endian = "big")]
compile_error!("weights are stored little-endian and are moved as they lie in memory");

mod names;
mod read;
mod stream;
mod write;

use std::path::Path;

use anyhow::Result;

use super::arch::Arch;
use super::config::ModelConfig;
use super::layout::Layout;

pub use read::{INDEX_FILE, ModelFiles};
pub(crate) use read::{is_plain_name, shard_names};
pub use stream::{FileSum, HashedReader, HashedWriter};
pub(crate) use write::header_bytes;
pub use write::{save, save_bytes};

/// File name of the weights of a model that is not split into shards.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// A model read from a folder.
#[derive(Debug)]
pub struct LoadedModel {
    /// Its configuration.
    pub config: ModelConfig,
    /// Where its parameters lie.
    pub layout: Layout,
    /// Its parameters.
    pub params: Vec<f32>,
    /// What a user may want to know: tensors that were ignored.
    pub notes: Vec<String>,
}

/// Reads a model folder. Memory is only taken once names, shapes and file sizes are found to be right.
pub fn load(dir: &Path) -> Result<LoadedModel> {
    let config = ModelConfig::read(dir)?;
    let layout = Layout::of(&config.arch);
    let files = ModelFiles::open(dir, &config.arch, &layout)?;
    let mut params = vec![0.0; layout.len()];
    files.read_into(&layout, &mut params)?;
    Ok(LoadedModel { config, layout, params, notes: files.notes })
}

/// Reads the weights of a folder whose architecture is known into a buffer of that layout, and returns notes.
pub fn read_into(dir: &Path, arch: &Arch, layout: &Layout, params: &mut [f32]) -> Result<Vec<String>> {
    let files = ModelFiles::open(dir, arch, layout)?;
    files.read_into(layout, params)?;
    Ok(files.notes)
}

/// How Hugging Face names and arranges what one of our parameters holds, for tests.
#[cfg(test)]
pub(crate) struct StoredRows {
    pub(crate) name: String,
    /// Index into [`Layout::params`].
    pub(crate) param: usize,
    /// Our rows in its order.
    pub(crate) rows: Vec<std::ops::Range<usize>>,
    pub(crate) is_transposed: bool,
}

/// The tensors that hold a model.
#[cfg(test)]
pub(crate) fn stored_rows(arch: &Arch, layout: &Layout) -> Vec<StoredRows> {
    let stored = names::stored(arch, layout).into_iter();
    stored
        .map(|names::Stored { name, param, rows, transposed, .. }| StoredRows {
            name,
            param,
            rows,
            is_transposed: transposed,
        })
        .collect()
}

#[cfg(test)]
mod tests;
