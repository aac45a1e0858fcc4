//! A model folder as `save_pretrained(safe_serialization=True)` writes it: `config.json`, `generation_config.json` and
//! one `model.safetensors` in f32, its tensors sorted by name, a tied head left out, with the metadata `format: pt`
//! without which transformers refuses to read it.

use std::path::Path;

use anyhow::Result;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::WEIGHTS_FILE;
use super::names::{self, Stored};
use super::stream::{BLOCK_ELEMENTS, FileSum, HashedWriter};
use crate::model::arch::Arch;
use crate::model::config::{CONFIG_FILE, GENERATION_FILE, ModelConfig};
use crate::model::layout::Layout;

/// Columns handled together when transposing: 16 floats are one cache line.
const STRIP: usize = 16;

/// Writes a model into an existing folder and returns the names, sizes and hashes of its files, all of them on disk.
pub fn save(dir: &Path, config: &ModelConfig, layout: &Layout, params: &[f32]) -> Result<Vec<(&'static str, FileSum)>> {
    assert_eq!(params.len(), layout.len(), "the buffer must hold the parameters of the layout");
    let text = |name: &'static str, text: String| {
        let mut writer = HashedWriter::create(&dir.join(name))?;
        writer.write_bytes(text.as_bytes())?;
        anyhow::Ok((name, writer.finish()?))
    };
    Ok(vec![
        text(CONFIG_FILE, config.config_text())?,
        text(GENERATION_FILE, config.generation_text())?,
        (WEIGHTS_FILE, write_weights(&dir.join(WEIGHTS_FILE), &config.arch, layout, params)?),
    ])
}

/// Bytes that [`save`] needs on disk, to within a few KiB.
pub fn save_bytes(arch: &Arch, layout: &Layout) -> u64 {
    4 * layout.len() as u64 + header(&sorted(arch, layout)).len() as u64 + 4096
}

fn write_weights(path: &Path, arch: &Arch, layout: &Layout, params: &[f32]) -> Result<FileSum> {
    let tensors = sorted(arch, layout);
    let mut writer = HashedWriter::create(path)?;
    writer.write_bytes(&header(&tensors))?;
    for tensor in &tensors {
        let param = &layout.params()[tensor.param];
        let values = &params[param.range.clone()];
        if tensor.transposed {
            let [num_inputs, num_outputs] = tensor.shape[..] else { unreachable!("only matrices are transposed") };
            let rows_per_block = (BLOCK_ELEMENTS / num_outputs).clamp(1, num_inputs);
            for first in (0..num_inputs).step_by(rows_per_block) {
                let num_rows = rows_per_block.min(num_inputs - first);
                writer.write_filled(num_rows * num_outputs, |block| gather(block, values, first, num_inputs))?;
            }
        } else {
            let row_len: usize = param.shape[1..].iter().product();
            for rows in &tensor.rows {
                writer.write_floats(&values[rows.start * row_len..rows.end * row_len])?;
            }
        }
    }
    writer.finish()
}

/// Fills rows `first..` of the (in, out) matrix from the (out, in) matrix.
fn gather(block: &mut [f32], values: &[f32], first: usize, num_inputs: usize) {
    let num_outputs = values.len() / num_inputs;
    block.par_chunks_mut(STRIP * num_outputs).enumerate().for_each(|(strip, rows)| {
        let column = first + strip * STRIP;
        let num_rows = rows.len() / num_outputs;
        for (output, source) in values.chunks_exact(num_inputs).enumerate() {
            for (row, value) in source[column..column + num_rows].iter().enumerate() {
                rows[row * num_outputs + output] = *value;
            }
        }
    });
}

fn sorted(arch: &Arch, layout: &Layout) -> Vec<Stored> {
    let mut tensors = names::stored(arch, layout);
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}

fn header(tensors: &[Stored]) -> Vec<u8> {
    let mut json = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0_u64;
    for tensor in tensors {
        let start = end;
        end += 4 * tensor.shape.iter().product::<usize>() as u64;
        json.insert(tensor.name.clone(), json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end]}));
    }
    header_bytes(json)
}

/// A safetensors header: its length, its text, and blanks so that the data starts at a multiple of 8.
pub(crate) fn header_bytes(json: Map<String, Value>) -> Vec<u8> {
    let mut text = Value::Object(json).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}
