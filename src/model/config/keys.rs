//! Reading single keys of a configuration that comes from strangers: sizes within bounds, flags, numbers, names.

use serde_json::{Map, Value};

use Refusal::{Invalid, NotImplemented};

use crate::model::arch::{Activation, RopeMemory, RopeScaling};

pub(super) const MAX_SIZE: u64 = 100_000_000;
pub(super) const MAX_LAYERS: u64 = 1_000;

/// Hugging Face's names of the activations, and ours; of several names the first is written.
pub(super) const ACTIVATIONS: [(&str, Activation); 9] = [
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu", Activation::GeluErf),
    ("gelu_python", Activation::GeluErf),
    ("relu", Activation::Relu),
    ("relu2", Activation::Relu2),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
];

/// Activations that transformers 4.38.0 has and this program has not.
const OTHER_ACTIVATIONS: [&str; 10] =
    ["gelu_10", "gelu_accurate", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu6", "sigmoid", "tanh"];

/// Why a configuration gives no architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// transformers would take it, this program does not.
    NotImplemented(String),
    /// transformers would not take it, or could not compute a loss.
    Invalid(String),
}

/// A configuration's keys, with defaults for those that are not there.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    pub(super) fn of(json: &'a Map<String, Value>) -> Self {
        Self(json)
    }

    pub(super) fn is_null(self, key: &str) -> bool {
        self.0.get(key).is_some_and(Value::is_null)
    }

    pub(super) fn size(self, key: &str, default: usize, max: u64) -> Result<usize, Refusal> {
        match self.0.get(key) {
            None => Ok(default),
            Some(value) => size_of(key, value, max),
        }
    }

    /// A size that has a name of its own and a general one, which wins.
    pub(super) fn either(self, key: &str, general: &str, default: usize, max: u64) -> Result<usize, Refusal> {
        self.size(if self.0.contains_key(general) { general } else { key }, default, max)
    }

    /// Vocabulary, width, blocks and heads by their general names.
    pub(super) fn sizes(self, defaults: [usize; 4]) -> Result<[usize; 4], Refusal> {
        Ok([
            self.size("vocab_size", defaults[0], MAX_SIZE)?,
            self.size("hidden_size", defaults[1], MAX_SIZE)?,
            self.size("num_hidden_layers", defaults[2], MAX_LAYERS)?,
            self.size("num_attention_heads", defaults[3], MAX_SIZE)?,
        ])
    }

    pub(super) fn optional_size(self, key: &str) -> Result<Option<usize>, Refusal> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => size_of(key, value, MAX_SIZE).map(Some),
        }
    }

    /// Heads of keys: all where the file has null.
    pub(super) fn kv_heads(self, key: &str, default: Option<usize>, heads: usize) -> Result<usize, Refusal> {
        if self.0.contains_key(key) {
            return Ok(self.optional_size(key)?.unwrap_or(heads));
        }
        Ok(default.unwrap_or(heads))
    }

    pub(super) fn flag(self, key: &str, default: bool) -> Result<bool, Refusal> {
        match self.0.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            // Python takes these for truth and falsehood.
            Some(Value::Null) => Ok(false),
            Some(Value::Number(number)) if [Some(0), Some(1)].contains(&number.as_u64()) => {
                Ok(number.as_u64() == Some(1))
            }
            Some(other) => Err(Invalid(format!("{key} is {other}; it must be true or false."))),
        }
    }

    pub(super) fn float(self, key: &str, default: f32) -> Result<f32, Refusal> {
        self.double(key, default.into()).map(|float| float as f32)
    }

    pub(super) fn double(self, key: &str, default: f64) -> Result<f64, Refusal> {
        let Some(value) = self.0.get(key) else { return Ok(default) };
        let float = value.as_f64().filter(|float| (*float as f32).is_finite() && *float >= 0.0);
        float.ok_or_else(|| Invalid(format!("{key} is {value}; it must be a number that is not negative.")))
    }

    pub(super) fn activation(self, key: &str, default: Activation) -> Result<Activation, Refusal> {
        let Some(value) = self.0.get(key) else { return Ok(default) };
        let known = ACTIVATIONS.iter().find(|(name, _)| value == name).map(|(_, ours)| *ours);
        known.ok_or_else(|| {
            let names: Vec<_> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
            let names = names.join(", ");
            match OTHER_ACTIVATIONS.iter().any(|name| value == name) {
                true => NotImplemented(format!("{key} {value} is not implemented here; {names} are.")),
                false => {
                    Invalid(format!("{key} {value} is no activation that transformers 4.38.0 knows; {names} are."))
                }
            }
        })
    }

    pub(super) fn window(self) -> Result<Option<usize>, Refusal> {
        match self.0.get("sliding_window") {
            None => Ok(Some(4096)),
            Some(_) => self.optional_size("sliding_window"),
        }
    }

    pub(super) fn rope_scaling(self) -> Result<RopeScaling, Refusal> {
        let scaling = match self.0.get("rope_scaling") {
            None | Some(Value::Null) => return Ok(RopeScaling::None),
            Some(scaling) => scaling,
        };
        let wrong = || {
            Invalid(format!(
                "rope_scaling is {scaling}; transformers 4.38.0 takes {{\"type\": \"linear\" or \"dynamic\", \"factor\": a float \
                 above 1}}."
            ))
        };
        let entries = scaling.as_object().filter(|entries| entries.len() == 2).ok_or_else(wrong)?;
        let factor = entries.get("factor").filter(|factor| factor.is_f64()).and_then(Value::as_f64);
        let factor = factor.map(|factor| factor as f32).filter(|factor| factor.is_finite() && *factor > 1.0);
        match (entries.get("type").and_then(Value::as_str), factor) {
            (Some("linear"), Some(factor)) => Ok(RopeScaling::Linear(factor)),
            (Some("dynamic"), Some(factor)) => Ok(RopeScaling::Dynamic { factor, memory: RopeMemory::None }),
            _ => Err(wrong()),
        }
    }

    /// The padding id, counted from the end of the vocabulary if it is negative.
    pub(super) fn padding(self, default: Option<u32>, vocab_size: usize) -> Result<Option<u32>, Refusal> {
        let value = match self.0.get("pad_token_id") {
            None => return Ok(default.filter(|id| (*id as usize) < vocab_size)),
            Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let id = value.as_i64().map(|id| if id < 0 { id + vocab_size as i64 } else { id });
        let id = id.filter(|id| (0..vocab_size as i64).contains(id));
        id.map(|id| Some(id as u32))
            .ok_or_else(|| Invalid(format!("pad_token_id {value} lies outside the vocabulary of {vocab_size}.")))
    }
}

fn size_of(key: &str, value: &Value, max: u64) -> Result<usize, Refusal> {
    match value.as_u64() {
        Some(size) if (1..=max).contains(&size) => Ok(size as usize),
        _ => Err(Invalid(format!("{key} is {value}; it must be a whole number from 1 to {max}."))),
    }
}
