//! Hugging Face's `config.json` as an [`Arch`], and back. This file alone knows Hugging Face's key names.
//!
//! Keys that the file omits have the values of transformers 4.38.0, the version validators load models with. Keys that
//! mean nothing here are kept, so that a model which was read and is saved again still carries them. The file comes
//! from strangers: its size and every number in it are bounded before anything is allocated by them.

use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::arch::{Activation, Arch};
use super::json::{shortest_double, to_python_text};
use crate::error::input;
use crate::regular_file;

/// File name of the configuration.
pub const CONFIG_FILE: &str = "config.json";
/// File name of the settings of text generation.
pub const GENERATION_FILE: &str = "generation_config.json";

/// The version of transformers whose files and defaults these are.
const TRANSFORMERS_VERSION: &str = "4.38.0";
const MAX_FILE_BYTES: u64 = 16 << 20;
const MAX_SIZE: u64 = 100_000_000;
const MAX_LAYERS: u64 = 10_000;
/// More parameters than any model the subnet ever allowed, few enough that no arithmetic on sizes overflows.
const MAX_PARAMETERS: u128 = 1_000_000_000_000;

/// The class that `AutoModelForCausalLM` makes of a `model_type`: what validators compare with their list. It does not
/// depend on the key `architectures`.
const CLASSES: [(&str, &str); 9] = [
    ("gpt2", "GPT2LMHeadModel"),
    ("mistral", "MistralForCausalLM"),
    ("llama", "LlamaForCausalLM"),
    ("bart", "BartForCausalLM"),
    ("falcon", "FalconForCausalLM"),
    ("gpt_neox", "GPTNeoXForCausalLM"),
    ("gptj", "GPTJForCausalLM"),
    ("phi", "PhiForCausalLM"),
    ("gemma", "GemmaForCausalLM"),
];

/// Hugging Face's names of the activations, and ours.
const ACTIVATIONS: [(&str, Activation); 3] =
    [("gelu_new", Activation::GeluTanh), ("gelu", Activation::GeluErf), ("relu", Activation::Relu)];

/// The configuration of a model: what it is, and the JSON it came from or goes to.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The architecture it describes.
    pub arch: Arch,
    /// Class name in transformers, such as `GPT2LMHeadModel`.
    pub class: &'static str,
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
        let class = class_of(&json)?;
        if let Some(sentence) = not_implemented(class, &json) {
            return Err(sentence);
        }
        Ok(Self { arch: gpt2_arch(&json)?, class, json, generation: None })
    }

    /// The configuration of a new model.
    pub fn new(arch: Arch, dropout: f32) -> Self {
        let mut config = Self { json: gpt2_json(&arch), arch, class: "GPT2LMHeadModel", generation: None };
        config.set_dropout(dropout);
        config
    }

    /// Sets the dropout on embeddings, attention probabilities and residual branches.
    pub fn set_dropout(&mut self, dropout: f32) {
        for key in ["attn_pdrop", "embd_pdrop", "resid_pdrop"] {
            self.json.insert(key.to_owned(), json!(shortest_double(dropout)));
        }
    }

    /// `config.json` as `save_pretrained` writes it for a model in f32.
    pub fn config_text(&self) -> String {
        let mut json = gpt2_json(&self.arch);
        json.extend(self.json.clone());
        json.insert("architectures".to_owned(), json!([self.class]));
        json.insert("torch_dtype".to_owned(), json!("float32"));
        json.insert("transformers_version".to_owned(), json!(TRANSFORMERS_VERSION));
        json.sort_keys();
        to_python_text(&Value::Object(json))
    }

    /// `generation_config.json`: that of the folder the model was read from, or what `save_pretrained` derives from
    /// the configuration.
    pub fn generation_text(&self) -> String {
        let json = self.generation.clone().unwrap_or_else(|| {
            let mut json = Map::from_iter([("_from_model_config".to_owned(), json!(true))]);
            for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
                let id = self.json.get(key).cloned().or_else(|| (key != "pad_token_id").then(|| json!(50_256)));
                if let Some(id) = id.filter(|id| !id.is_null()) {
                    json.insert(key.to_owned(), id);
                }
            }
            json.insert("transformers_version".to_owned(), json!(TRANSFORMERS_VERSION));
            json
        });
        to_python_text(&Value::Object(json))
    }
}

/// Class name of the model in a folder, also where this program does not implement it. `None` where it cannot be told.
pub fn class_in(dir: &Path) -> Option<&'static str> {
    let json = read_object(&dir.join(CONFIG_FILE)).ok()??;
    class_of(&json).ok()
}

/// Why the model in a folder cannot be read by this program although transformers may well load it.
pub fn not_implemented_in(dir: &Path) -> Option<String> {
    let json = read_object(&dir.join(CONFIG_FILE)).ok()??;
    not_implemented(class_of(&json).ok()?, &json)
}

/// A sentence about what a configuration asks for that transformers has and this program has not.
fn not_implemented(class: &str, json: &Map<String, Value>) -> Option<String> {
    if class != "GPT2LMHeadModel" {
        return Some(format!("models of class {class} are not implemented here; GPT2LMHeadModel is."));
    }
    let is_set = |key: &&str| {
        json.get(*key).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)) && *value != json!({}))
    };
    if let Some(key) = ["add_cross_attention", "quantization_config", "pruned_heads"].iter().find(|key| is_set(key)) {
        return Some(format!("{key} is set; such models are not implemented here."));
    }
    activation_of(json).err()
}

fn activation_of(json: &Map<String, Value>) -> Result<Activation, String> {
    let Some(value) = json.get("activation_function") else { return Ok(Activation::GeluTanh) };
    ACTIVATIONS
        .iter()
        .find(|(name, _)| value == name)
        .map(|(_, ours)| *ours)
        .ok_or_else(|| format!("activation_function {value} is not implemented here; gelu_new, gelu and relu are."))
}

fn class_of(json: &Map<String, Value>) -> Result<&'static str, String> {
    let model_type = match json.get("model_type") {
        Some(Value::String(model_type)) => model_type,
        Some(other) => return Err(format!("model_type is {other}; it must be a text such as \"gpt2\".")),
        None => return Err("model_type is missing; without it the kind of model cannot be told.".to_owned()),
    };
    CLASSES.iter().find(|(name, _)| name == model_type).map(|&(_, class)| class).ok_or_else(|| {
        let claimed = json.get("architectures").map_or_else(String::new, |names| format!(" (architectures {names})"));
        format!(
            "model_type {model_type:?}{claimed} is unknown to the subnet; models with code of their own are refused."
        )
    })
}

/// The keys of a GPT-2 configuration that transformers always writes, for an architecture.
fn gpt2_json(arch: &Arch) -> Map<String, Value> {
    let activation = ACTIVATIONS.iter().find(|(_, ours)| *ours == arch.activation).map_or("gelu_new", |(name, _)| name);
    // The tokenizer's end of text where the vocabulary has it, else the last id there is.
    let end_of_text = arch.vocab_size.saturating_sub(1).min(50_256);
    let inner = if arch.mlp_width == 4 * arch.width { Value::Null } else { json!(arch.mlp_width) };
    let Value::Object(mut json) = json!({
        "activation_function": activation,
        "attn_pdrop": 0.1,
        "bos_token_id": end_of_text,
        "embd_pdrop": 0.1,
        "eos_token_id": end_of_text,
        "initializer_range": 0.02,
        "layer_norm_epsilon": shortest_double(arch.norm_eps),
        "model_type": "gpt2",
        "n_embd": arch.width,
        "n_head": arch.heads,
        "n_inner": inner,
        "n_layer": arch.layers,
        "n_positions": arch.context,
        "reorder_and_upcast_attn": false,
        "resid_pdrop": 0.1,
        "scale_attn_by_inverse_layer_idx": arch.scale_by_layer,
        "scale_attn_weights": arch.scale_by_head_size,
        "summary_activation": null,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": true,
        "summary_type": "cls_index",
        "summary_use_proj": true,
        "use_cache": true,
        "vocab_size": arch.vocab_size,
    }) else {
        unreachable!("the literal above is an object")
    };
    if !arch.tied_head {
        json.insert("tie_word_embeddings".to_owned(), json!(false));
    }
    json
}

fn gpt2_arch(json: &Map<String, Value>) -> Result<Arch, String> {
    // transformers sets the general names after its own, so where a file has both, the general one counts.
    let size = |key: &str, general: Option<&str>, default: u64, max: u64| {
        let key = general.filter(|general| json.contains_key(*general)).unwrap_or(key);
        match json.get(key) {
            None => Ok(default as usize),
            Some(value) => size_of(key, value, max),
        }
    };
    let flag = |key: &str, default: bool| match json.get(key) {
        None => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(format!("{key} is {other}; it must be true or false.")),
    };
    flag("reorder_and_upcast_attn", false)?; // Changes nothing in f32.
    let width = size("n_embd", Some("hidden_size"), 768, MAX_SIZE)?;
    let norm_eps = match json.get("layer_norm_epsilon") {
        None => 1e-5,
        Some(value) => value
            .as_f64()
            .map(|eps| eps as f32)
            .filter(|eps| eps.is_finite() && *eps >= 0.0)
            .ok_or_else(|| format!("layer_norm_epsilon is {value}; it must be a number that is not negative."))?,
    };
    let arch = Arch {
        vocab_size: size("vocab_size", None, 50_257, MAX_SIZE)?,
        context: size("n_positions", Some("max_position_embeddings"), 1024, MAX_SIZE)?,
        width,
        layers: size("n_layer", Some("num_hidden_layers"), 12, MAX_LAYERS)?,
        heads: size("n_head", Some("num_attention_heads"), 12, MAX_SIZE)?,
        mlp_width: match json.get("n_inner") {
            None | Some(Value::Null) => 4 * width,
            Some(value) => size_of("n_inner", value, MAX_SIZE)?,
        },
        activation: activation_of(json)?,
        norm_eps,
        scale_by_head_size: flag("scale_attn_weights", true)?,
        scale_by_layer: flag("scale_attn_by_inverse_layer_idx", false)?,
        tied_head: flag("tie_word_embeddings", true)?,
    };
    if !arch.width.is_multiple_of(arch.heads) {
        return Err(format!("n_embd {} is not a multiple of n_head {}.", arch.width, arch.heads));
    }
    let num_parameters = num_parameters(&arch);
    if num_parameters > MAX_PARAMETERS {
        return Err(format!(
            "the sizes make a model of {num_parameters} parameters, which is no model of this subnet."
        ));
    }
    Ok(arch)
}

/// The number of parameters of an architecture whose sizes are only known to be below [`MAX_SIZE`].
fn num_parameters(arch: &Arch) -> u128 {
    let [v, p, c, m, l] = [arch.vocab_size, arch.context, arch.width, arch.mlp_width, arch.layers].map(|n| n as u128);
    let embeddings = v * c * if arch.tied_head { 1 } else { 2 } + p * c;
    embeddings + l * (4 * c * c + 2 * c * m + 9 * c + m) + 2 * c
}

fn size_of(key: &str, value: &Value, max: u64) -> Result<usize, String> {
    match value.as_u64() {
        Some(size) if (1..=max).contains(&size) => Ok(size as usize),
        _ => Err(format!("{key} is {value}; it must be a whole number from 1 to {max}.")),
    }
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
