//! Hugging Face's `config.json` as an [`Arch`], and back: the files; the keys are `families.rs`'s matter.
//!
//! Keys that mean nothing here are kept, so that a model which was read and is saved again still carries them. The file
//! comes from strangers: its size and every number in it are bounded before anything is allocated by them.

mod families;
mod keys;
mod recipe;
mod write;

use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::arch::Arch;
use super::family::Family;
use super::json::{shortest_double, to_python_text};
use crate::error::input;
use crate::regular_file;
use keys::Refusal;
pub use recipe::{Sizes, mismatch, new_arch};

/// File name of the configuration.
pub const CONFIG_FILE: &str = "config.json";
/// File name of the settings of text generation.
pub const GENERATION_FILE: &str = "generation_config.json";

/// The version of transformers whose files and defaults these are.
const TRANSFORMERS_VERSION: &str = "4.38.0";
const MAX_FILE_BYTES: u64 = 16 << 20;
/// More parameters than any model the subnet ever allowed, few enough that no arithmetic on sizes overflows.
const MAX_PARAMETERS: u128 = 1_000_000_000_000;

/// The configuration of a model: what it is, and the JSON it came from or goes to.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The architecture it describes.
    pub arch: Arch,
    json: Map<String, Value>,
    generation: Option<Map<String, Value>>,
}

impl ModelConfig {
    /// Reads `config.json` and, where there is one, `generation_config.json` of a model folder.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        let Some(json) = read_object(&path)? else {
            return Err(input(format!("{} does not exist: {} is no model folder.", path.display(), dir.display())));
        };
        let mut config = Self::from_json(json).map_err(|sentence| input(format!("{}: {sentence}", path.display())))?;
        config.generation = read_object(&dir.join(GENERATION_FILE))?;
        Ok(config)
    }

    /// The configuration that a JSON object describes; the error is a sentence.
    pub fn from_json(json: Map<String, Value>) -> Result<Self, String> {
        let arch = arch_of(&json).map_err(|refusal| match refusal {
            Refusal::NotImplemented(sentence) | Refusal::Invalid(sentence) => sentence,
        })?;
        Ok(Self { arch, json, generation: None })
    }

    /// The configuration of a new model.
    pub fn new(arch: Arch, dropout: f32) -> Self {
        // The tokenizer's end of text where the vocabulary has it, else the last id there is.
        let end_of_text = json!(arch.vocab_size.saturating_sub(1).min(50_256));
        let mut json = write::keys_of(&arch);
        json.insert("bos_token_id".to_owned(), end_of_text.clone());
        json.insert("eos_token_id".to_owned(), end_of_text);
        for (key, _) in write::forced_ids(arch.family) {
            // The family's own are words of GPT-2's vocabulary.
            json.insert((*key).to_owned(), Value::Null);
        }
        let mut config = Self { json, arch, generation: None };
        config.set_dropout(dropout);
        config
    }

    /// Adds keys of config.json that the architecture does not decide, or repeats.
    pub fn add_keys(&mut self, own: &Map<String, Value>) {
        self.json.extend(own.clone());
    }

    /// Class name in transformers, such as `GPT2LMHeadModel`.
    pub fn class(&self) -> &'static str {
        self.arch.family.class()
    }

    /// Sets the dropout on embeddings, attention probabilities and residual branches, as far as the family has it.
    pub fn set_dropout(&mut self, dropout: f32) {
        for key in write::dropout_keys(self.arch.family) {
            self.json.insert((*key).to_owned(), json!(shortest_double(dropout)));
        }
    }

    /// `config.json` as `save_pretrained` writes it for a model in f32.
    pub fn config_text(&self) -> String {
        let mut json = write::keys_of(&self.arch);
        // A file may use a general name for what the family has another one for; both would contradict one another later.
        json.retain(|key, _| self.json.contains_key(key) || !is_said_otherwise(key, &self.json));
        json.extend(self.json.clone());
        json.insert("architectures".to_owned(), json!([self.class()]));
        json.insert("torch_dtype".to_owned(), json!("float32"));
        json.insert("transformers_version".to_owned(), json!(TRANSFORMERS_VERSION));
        json.sort_keys();
        to_python_text(&Value::Object(json))
    }

    /// `generation_config.json`: that of the folder the model was read from, or what `save_pretrained` derives from
    /// the configuration.
    pub fn generation_text(&self) -> String {
        to_python_text(&Value::Object(self.generation()))
    }

    /// The keys that steer generation where no file of their own does: those of `config.json`, with the family's ids where
    /// it has none.
    pub fn generation_keys(&self) -> Map<String, Value> {
        let mut json = self.json.clone();
        json.extend(self.special_ids());
        json
    }

    /// Ids that begin, end, or pad a text, or stand where they must.
    fn special_ids(&self) -> impl Iterator<Item = (String, Value)> {
        let keys = ["bos_token_id", "eos_token_id", "pad_token_id"];
        let special = std::iter::zip(keys, write::special_ids(self.arch.family));
        let forced = write::forced_ids(self.arch.family).iter().map(|(key, id)| (*key, Some(*id)));
        special.chain(forced).map(|(key, default)| {
            let id = self.json.get(key).cloned().unwrap_or_else(|| json!(default));
            (key.to_owned(), id)
        })
    }

    /// The same as an object.
    fn generation(&self) -> Map<String, Value> {
        self.generation.clone().unwrap_or_else(|| {
            let mut json = Map::from_iter([("_from_model_config".to_owned(), json!(true))]);
            json.extend(self.special_ids().filter(|(_, id)| !id.is_null()));
            json.insert("transformers_version".to_owned(), json!(TRANSFORMERS_VERSION));
            json.sort_keys();
            json
        })
    }
}

/// Whether a file says by a general name what `key` says.
fn is_said_otherwise(key: &str, json: &Map<String, Value>) -> bool {
    let general = match key {
        "n_embd" | "d_model" => "hidden_size",
        "n_layer" => "num_hidden_layers",
        "n_head" => "num_attention_heads",
        "n_positions" => "max_position_embeddings",
        _ => return false,
    };
    json.contains_key(general)
}

/// Class name of the model in a folder, also where this program does not implement it. `None` where it cannot be told.
pub fn class_in(dir: &Path) -> Option<&'static str> {
    let json = read_object(&dir.join(CONFIG_FILE)).ok()??;
    family_of(&json).ok().map(Family::class)
}

/// Why the model in a folder cannot be read by this program although transformers may well load it.
pub fn not_implemented_in(dir: &Path) -> Option<String> {
    let json = read_object(&dir.join(CONFIG_FILE)).ok()??;
    match arch_of(&json) {
        Err(Refusal::NotImplemented(sentence)) => Some(sentence),
        _ => None,
    }
}

fn arch_of(json: &Map<String, Value>) -> Result<Arch, Refusal> {
    let arch = families::arch_of(family_of(json).map_err(Refusal::Invalid)?, json)?;
    let num_parameters = arch.num_parameters();
    if num_parameters > MAX_PARAMETERS {
        let sentence =
            format!("the sizes make a model of {num_parameters} parameters, which is no model of this subnet.");
        return Err(Refusal::Invalid(sentence));
    }
    Ok(arch)
}

/// The family by `model_type`; it does not depend on the key `architectures`.
fn family_of(json: &Map<String, Value>) -> Result<Family, String> {
    let model_type = match json.get("model_type") {
        Some(Value::String(model_type)) => model_type,
        Some(other) => return Err(format!("model_type is {other}; it must be a text such as \"gpt2\".")),
        None => return Err("model_type is missing; without it the kind of model cannot be told.".to_owned()),
    };
    Family::of(model_type).ok_or_else(|| {
        let claimed = json.get("architectures").map_or_else(String::new, |names| format!(" (architectures {names})"));
        format!(
            "model_type {model_type:?}{claimed} is unknown to the subnet; models with code of their own are refused."
        )
    })
}

/// Reads a file that must hold a JSON object; `None` if there is no such file.
pub(crate) fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let context = || format!("cannot read {}", path.display());
    let file = match regular_file::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.with_context(context)?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).with_context(context)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(input(format!("{} is larger than {} MiB.", path.display(), MAX_FILE_BYTES >> 20)));
    }
    match serde_json::from_slice(&bytes) {
        Ok(object) => Ok(Some(object)),
        Err(error) => Err(input(format!("{} is not a JSON object: {error}.", path.display()))),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
