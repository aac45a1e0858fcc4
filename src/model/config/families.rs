//! Hugging Face's keys of each family as an [`Arch`], and back. This file alone knows them.
//!
//! Keys that a file omits have the values of transformers 4.38.0, the version validators load models with; what it
//! ignores there (such as Gemma's `hidden_activation`) is ignored here.

use serde_json::{Map, Value, json};

use super::Sizes;
use crate::model::arch::{Activation, Arch, NormKind, Pairing, Position, Residual, RopeScaling, Rotary, Unused};
use crate::model::family::Family;
use crate::model::json::shortest_double;

const MAX_SIZE: u64 = 100_000_000;
const MAX_LAYERS: u64 = 10_000;

/// Hugging Face's names of the activations, and ours; of several names the first is written.
const ACTIVATIONS: [(&str, Activation); 9] = [
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

/// Keys that a recipe's own sizes set.
pub(super) const SIZE_KEYS: [&str; 16] = [
    "vocab_size",
    "hidden_size",
    "n_embd",
    "d_model",
    "num_hidden_layers",
    "n_layer",
    "decoder_layers",
    "num_attention_heads",
    "n_head",
    "decoder_attention_heads",
    "num_key_value_heads",
    "num_kv_heads",
    "intermediate_size",
    "n_inner",
    "decoder_ffn_dim",
    "max_position_embeddings",
];

/// Why a configuration gives no architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// transformers would take it, this program does not.
    NotImplemented(String),
    /// transformers would not take it, or could not compute a loss.
    Invalid(String),
}

use Refusal::{Invalid, NotImplemented};

/// The architecture that a configuration of a family describes.
pub(super) fn read(family: Family, json: &Map<String, Value>) -> Result<Arch, Refusal> {
    let keys = Keys(json);
    let is_set = |key: &&str| {
        json.get(*key).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)) && *value != json!({}))
    };
    if let Some(key) = ["add_cross_attention", "quantization_config", "pruned_heads"].iter().find(|key| is_set(key)) {
        return Err(NotImplemented(format!("{key} is set; such models are not implemented here.")));
    }
    let arch = match family {
        Family::Gpt2 => gpt2(keys),
        Family::Gptj => gptj(keys),
        Family::Llama | Family::Mistral | Family::Gemma => llama(family, keys),
        Family::Phi => phi(keys),
        Family::GptNeox => gpt_neox(keys),
        Family::Falcon => falcon(keys),
        Family::Bart => bart(keys),
    }?;
    check(&arch)?;
    Ok(arch)
}

/// What holds for all families. Sizes are bounded here, so that arithmetic on them does not overflow.
fn check(arch: &Arch) -> Result<(), Refusal> {
    let Arch { width, heads, kv_heads, head_size, .. } = arch;
    if arch.family != Family::Gemma && !width.is_multiple_of(*heads) {
        return Err(Invalid(format!("the width {width} is not a multiple of the {heads} heads.")));
    }
    if !heads.is_multiple_of(*kv_heads) {
        return Err(Invalid(format!("{heads} heads are not a multiple of the {kv_heads} heads of keys and values.")));
    }
    if let Position::Rotary(Rotary { size, .. }) = arch.position
        && (size == 0 || !size.is_multiple_of(2) || size > *head_size)
    {
        return Err(Invalid(format!(
            "rotary embedding of {size} channels is not possible in heads of {head_size}: an even number up to that is."
        )));
    }
    Ok(())
}

/// GPT-2 with all that differs for a family still to be set.
fn base(family: Family, keys: Keys<'_>, sizes: [usize; 4], context: usize) -> Result<Arch, Refusal> {
    let [vocab_size, width, layers, heads] = sizes;
    let mut arch = Arch { family, ..Arch::gpt2(vocab_size, context, width, layers, heads) };
    arch.tied_head = keys.flag("tie_word_embeddings", has_tied_head(family))?;
    Ok(arch)
}

/// Whether the head is tied where the file does not say.
fn has_tied_head(family: Family) -> bool {
    matches!(family, Family::Gpt2 | Family::Bart | Family::Falcon | Family::Gemma)
}

fn gpt2(keys: Keys<'_>) -> Result<Arch, Refusal> {
    // transformers sets the general names after its own, so where a file has both, the general one counts.
    let sizes = [
        keys.size("vocab_size", 50_257, MAX_SIZE)?,
        keys.either("n_embd", "hidden_size", 768, MAX_SIZE)?,
        keys.either("n_layer", "num_hidden_layers", 12, MAX_LAYERS)?,
        keys.either("n_head", "num_attention_heads", 12, MAX_SIZE)?,
    ];
    keys.flag("reorder_and_upcast_attn", false)?; // Changes nothing in f32.
    let context = keys.either("n_positions", "max_position_embeddings", 1024, MAX_SIZE)?;
    let base = base(Family::Gpt2, keys, sizes, context)?;
    Ok(Arch {
        mlp_width: keys.optional_size("n_inner")?.unwrap_or(base.mlp_width),
        activation: keys.activation("activation_function", Activation::GeluTanh)?,
        norm_eps: keys.float("layer_norm_epsilon", 1e-5)?,
        scale_by_head_size: keys.flag("scale_attn_weights", true)?,
        scale_by_layer: keys.flag("scale_attn_by_inverse_layer_idx", false)?,
        ..base
    })
}

fn gptj(keys: Keys<'_>) -> Result<Arch, Refusal> {
    let sizes = [
        keys.size("vocab_size", 50_400, MAX_SIZE)?,
        keys.either("n_embd", "hidden_size", 4096, MAX_SIZE)?,
        keys.either("n_layer", "num_hidden_layers", 28, MAX_LAYERS)?,
        keys.either("n_head", "num_attention_heads", 16, MAX_SIZE)?,
    ];
    let context = keys.either("n_positions", "max_position_embeddings", 2048, MAX_SIZE)?;
    let base = base(Family::Gptj, keys, sizes, context)?;
    if keys.0.get("rotary_dim").is_some_and(Value::is_null) {
        return Err(NotImplemented("rotary_dim is null; such models are not implemented here.".to_owned()));
    }
    Ok(Arch {
        mlp_width: keys.optional_size("n_inner")?.unwrap_or(base.mlp_width),
        activation: keys.activation("activation_function", Activation::GeluTanh)?,
        norm_eps: keys.float("layer_norm_epsilon", 1e-5)?,
        residual: Residual::ParallelOneNorm,
        position: Position::Rotary(Rotary {
            size: keys.size("rotary_dim", 64, MAX_SIZE)?,
            pairing: Pairing::Interleaved,
            base: 10_000.0,
            scaling: RopeScaling::None,
            bounded: true,
        }),
        qkv_bias: false,
        out_bias: false,
        head_bias: true,
        ..base
    })
}

/// Llama, Mistral and Gemma.
fn llama(family: Family, keys: Keys<'_>) -> Result<Arch, Refusal> {
    // Vocabulary, width, blocks, heads; heads of keys where the file says nothing, MLP, context.
    let (defaults, kv_heads, mlp_width, context) = match family {
        Family::Mistral => ([32_000, 4096, 32, 32], Some(8), 14_336, 131_072),
        Family::Gemma => ([256_000, 3072, 28, 16], Some(16), 24_576, 8192),
        _ => ([32_000, 4096, 32, 32], None, 11_008, 2048),
    };
    let sizes = keys.sizes(defaults)?;
    let context = keys.size("max_position_embeddings", context, MAX_SIZE)?;
    let base = base(family, keys, sizes, context)?;
    let is_gemma = family == Family::Gemma;
    let head_size = if is_gemma { keys.size("head_dim", 256, MAX_SIZE)? } else { base.head_size };
    // Only Llama and Gemma know this key.
    let attention_bias = family != Family::Mistral && keys.flag("attention_bias", false)?;
    let window = if family == Family::Mistral { keys.window()? } else { None };
    let act = if is_gemma { Activation::GeluErf } else { Activation::Silu };
    Ok(Arch {
        kv_heads: keys.kv_heads("num_key_value_heads", kv_heads, base.heads)?,
        head_size,
        mlp_width: keys.size("intermediate_size", mlp_width, MAX_SIZE)?,
        activation: keys.activation("hidden_act", act)?,
        gated: true,
        norm: if is_gemma { NormKind::RmsOnePlus } else { NormKind::Rms },
        norm_eps: keys.float("rms_norm_eps", 1e-6)?,
        position: Position::Rotary(Rotary {
            size: head_size,
            pairing: Pairing::Halves,
            base: keys.float("rope_theta", 10_000.0)?,
            scaling: if family == Family::Llama { keys.rope_scaling()? } else { RopeScaling::None },
            bounded: false,
        }),
        window,
        qkv_bias: attention_bias,
        out_bias: attention_bias,
        mlp_bias: false,
        embedding_scale: if is_gemma { (base.width as f32).sqrt() } else { 1.0 },
        frozen_id: keys.padding(is_gemma.then_some(0), base.vocab_size)?,
        ..base
    })
}

fn phi(keys: Keys<'_>) -> Result<Arch, Refusal> {
    let context = keys.size("max_position_embeddings", 2048, MAX_SIZE)?;
    let base = base(Family::Phi, keys, keys.sizes([51_200, 2048, 24, 32])?, context)?;
    let part = keys.double("partial_rotary_factor", 0.5)?;
    Ok(Arch {
        kv_heads: keys.kv_heads("num_key_value_heads", None, base.heads)?,
        mlp_width: keys.size("intermediate_size", 8192, MAX_SIZE)?,
        activation: keys.activation("hidden_act", Activation::GeluTanh)?,
        norm_eps: keys.float("layer_norm_eps", 1e-5)?,
        residual: Residual::ParallelOneNorm,
        position: Position::Rotary(Rotary {
            size: (part * base.head_size as f64) as usize,
            pairing: Pairing::Halves,
            base: keys.float("rope_theta", 10_000.0)?,
            scaling: keys.rope_scaling()?,
            bounded: false,
        }),
        frozen_id: keys.padding(None, base.vocab_size)?,
        head_bias: true,
        unused: if keys.flag("qk_layernorm", false)? { Unused::QueryKeyNorms } else { Unused::None },
        ..base
    })
}

fn gpt_neox(keys: Keys<'_>) -> Result<Arch, Refusal> {
    let context = keys.size("max_position_embeddings", 2048, MAX_SIZE)?;
    let base = base(Family::GptNeox, keys, keys.sizes([50_432, 6144, 44, 64])?, context)?;
    let attention_bias = keys.flag("attention_bias", true)?;
    let part = keys.double("rotary_pct", 0.25)?;
    let is_parallel = keys.flag("use_parallel_residual", true)?;
    Ok(Arch {
        mlp_width: keys.size("intermediate_size", 24_576, MAX_SIZE)?,
        activation: keys.activation("hidden_act", Activation::GeluErf)?,
        norm_eps: keys.float("layer_norm_eps", 1e-5)?,
        residual: if is_parallel { Residual::Parallel } else { Residual::Serial },
        position: Position::Rotary(Rotary {
            size: (part * base.head_size as f64) as usize,
            pairing: Pairing::Halves,
            base: keys.float("rotary_emb_base", 10_000.0)?,
            scaling: keys.rope_scaling()?,
            bounded: false,
        }),
        qkv_bias: attention_bias,
        out_bias: attention_bias,
        ..base
    })
}

fn falcon(keys: Keys<'_>) -> Result<Arch, Refusal> {
    let context = keys.size("max_position_embeddings", 2048, MAX_SIZE)?;
    let base = base(Family::Falcon, keys, keys.sizes([65_024, 4544, 32, 71])?, context)?;
    let is_new = keys.flag("new_decoder_architecture", false)?;
    let is_parallel = keys.flag("parallel_attn", true)?;
    let kv_heads = match (is_new, keys.flag("multi_query", true)?) {
        (true, _) => keys.kv_heads("num_kv_heads", None, base.heads)?,
        (false, true) => 1,
        (false, false) => base.heads,
    };
    let rotary = Rotary {
        size: base.head_size,
        pairing: Pairing::Halves,
        base: keys.float("rope_theta", 10_000.0)?,
        scaling: keys.rope_scaling()?,
        bounded: false,
    };
    let bias = keys.flag("bias", false)?;
    Ok(Arch {
        kv_heads,
        activation: Activation::GeluErf,
        norm_eps: keys.float("layer_norm_epsilon", 1e-5)?,
        residual: match (is_new, is_parallel) {
            (true, _) => Residual::Parallel,
            (false, true) => Residual::ParallelOneNorm,
            (false, false) => Residual::Serial,
        },
        position: match keys.flag("alibi", false)? {
            true => Position::Alibi { in_bf16: false },
            false => Position::Rotary(rotary),
        },
        qkv_bias: bias,
        out_bias: bias,
        mlp_bias: bias,
        ..base
    })
}

fn bart(keys: Keys<'_>) -> Result<Arch, Refusal> {
    let sizes = [
        keys.size("vocab_size", 50_265, MAX_SIZE)?,
        keys.either("d_model", "hidden_size", 1024, MAX_SIZE)?,
        keys.size("decoder_layers", 12, MAX_LAYERS)?,
        keys.size("decoder_attention_heads", 16, MAX_SIZE)?,
    ];
    let context = keys.size("max_position_embeddings", 1024, MAX_SIZE)?;
    let base = base(Family::Bart, keys, sizes, context)?;
    let is_scaled = keys.flag("scale_embedding", false)?;
    Ok(Arch {
        mlp_width: keys.size("decoder_ffn_dim", 4096, MAX_SIZE)?,
        activation: keys.activation("activation_function", Activation::GeluErf)?,
        residual: Residual::PostNorm,
        position: Position::Learned { offset: 2 },
        embedding_scale: if is_scaled { (base.width as f32).sqrt() } else { 1.0 },
        embedding_norm: true,
        frozen_id: keys.padding(Some(1), base.vocab_size)?,
        unused: Unused::CrossAttention,
        ..base
    })
}

/// The keys that describe an architecture, as `save_pretrained` writes them.
pub(super) fn write(arch: &Arch) -> Map<String, Value> {
    let activation = ACTIVATIONS.iter().find(|(_, ours)| *ours == arch.activation).map_or("gelu", |(name, _)| name);
    let eps = shortest_double(arch.norm_eps);
    let general = json!({
        "vocab_size": arch.vocab_size,
        "hidden_size": arch.width,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "max_position_embeddings": arch.context,
    });
    let own = match arch.family {
        Family::Gpt2 | Family::Gptj => {
            let inner =
                if arch.mlp_width == arch.width.saturating_mul(4) { Value::Null } else { json!(arch.mlp_width) };
            let own = json!({
                "vocab_size": arch.vocab_size,
                "n_embd": arch.width,
                "n_layer": arch.layers,
                "n_head": arch.heads,
                "n_positions": arch.context,
                "n_inner": inner,
                "activation_function": activation,
                "layer_norm_epsilon": eps,
            });
            let rest = match arch.position {
                Position::Rotary(Rotary { size, .. }) => json!({ "rotary_dim": size }),
                _ => json!({
                    "reorder_and_upcast_attn": false,
                    "scale_attn_by_inverse_layer_idx": arch.scale_by_layer,
                    "scale_attn_weights": arch.scale_by_head_size,
                    "summary_activation": null,
                    "summary_first_dropout": 0.1,
                    "summary_proj_to_labels": true,
                    "summary_type": "cls_index",
                    "summary_use_proj": true,
                }),
            };
            merged([own, rest])
        }
        Family::Llama | Family::Mistral | Family::Gemma => {
            let own = json!({
                "num_key_value_heads": arch.kv_heads,
                "intermediate_size": arch.mlp_width,
                "hidden_act": activation,
                "rms_norm_eps": eps,
                "rope_theta": rope_base(arch),
            });
            let rest = match arch.family {
                Family::Mistral => json!({ "sliding_window": arch.window }),
                Family::Gemma => json!({ "head_dim": arch.head_size, "attention_bias": arch.qkv_bias }),
                _ => json!({
                    "attention_bias": arch.qkv_bias,
                    "pretraining_tp": 1,
                    "rope_scaling": rope_scaling(arch),
                }),
            };
            merged([general, own, rest])
        }
        Family::Phi => merged([
            general,
            json!({
                "num_key_value_heads": arch.kv_heads,
                "intermediate_size": arch.mlp_width,
                "hidden_act": activation,
                "layer_norm_eps": eps,
                "partial_rotary_factor": rotary_part(arch),
                "qk_layernorm": arch.unused == Unused::QueryKeyNorms,
                "rope_theta": rope_base(arch),
                "rope_scaling": rope_scaling(arch),
            }),
        ]),
        Family::GptNeox => merged([
            general,
            json!({
                "attention_bias": arch.qkv_bias,
                "intermediate_size": arch.mlp_width,
                "hidden_act": activation,
                "layer_norm_eps": eps,
                "rotary_emb_base": rope_base(arch),
                "rotary_pct": rotary_part(arch),
                "rope_scaling": rope_scaling(arch),
                "use_parallel_residual": arch.residual == Residual::Parallel,
            }),
        ]),
        Family::Falcon => merged([
            general,
            json!({
                "alibi": matches!(arch.position, Position::Alibi { .. }),
                "bias": arch.qkv_bias,
                "layer_norm_epsilon": eps,
                "multi_query": arch.kv_heads < arch.heads,
                "new_decoder_architecture": arch.residual == Residual::Parallel,
                "num_kv_heads": arch.kv_heads,
                "parallel_attn": arch.residual != Residual::Serial,
                "rope_scaling": rope_scaling(arch),
                "rope_theta": rope_base(arch),
            }),
        ]),
        Family::Bart => merged([json!({
            "vocab_size": arch.vocab_size,
            "d_model": arch.width,
            "decoder_layers": arch.layers,
            "decoder_attention_heads": arch.heads,
            "decoder_ffn_dim": arch.mlp_width,
            "max_position_embeddings": arch.context,
            "activation_function": activation,
            "scale_embedding": arch.embedding_scale != 1.0,
            "is_decoder": true,
            "is_encoder_decoder": false,
        })]),
    };
    let mut json = own;
    json.insert("model_type".to_owned(), json!(arch.family.model_type()));
    json.insert("use_cache".to_owned(), json!(true));
    json.insert(initializer_key(arch.family).to_owned(), json!(0.02));
    if !arch.tied_head || !has_tied_head(arch.family) {
        json.insert("tie_word_embeddings".to_owned(), json!(arch.tied_head));
    }
    // Where the family has an id of its own, having none must be said.
    if arch.frozen_id.is_some() || special_ids(arch.family)[2].is_some() {
        json.insert("pad_token_id".to_owned(), json!(arch.frozen_id));
    }
    json
}

/// The keys of a new model's sizes; what is left is the family's default, but for ids outside the vocabulary.
pub(super) fn with_sizes(family: Family, sizes: Sizes) -> Result<Map<String, Value>, String> {
    let Sizes { vocab_size, context, width, layers, heads, kv_heads, mlp_width } = sizes;
    let head_size = width.checked_div(heads).unwrap_or(0);
    let general = json!({
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
    });
    let gpt = json!({
        "vocab_size": vocab_size,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": context,
        "n_inner": mlp_width,
    });
    let mlp = json!({ "intermediate_size": mlp_width });
    let keys = json!({ "num_key_value_heads": kv_heads.unwrap_or(heads) });
    // The usual part of a head where that is an even number of channels, else all of it.
    let rotary = |key: &str, part: f64| {
        let size = (part * head_size as f64) as usize;
        json!({ key: if size > 0 && size.is_multiple_of(2) { part } else { 1.0 } })
    };
    let has_kv_heads = !matches!(family, Family::Gpt2 | Family::Gptj | Family::GptNeox | Family::Bart);
    if kv_heads.is_some() && !has_kv_heads {
        return Err(format!("kv_heads: {} models have as many heads of keys as of queries", family.model_type()));
    }
    if family == Family::Falcon && mlp_width != width.saturating_mul(4) {
        return Err(format!("mlp_width: falcon's is always 4 times the width, {}", width.saturating_mul(4)));
    }
    let mut json = match family {
        Family::Gpt2 => merged([gpt]),
        Family::Gptj => merged([gpt, json!({ "rotary_dim": head_size.min(64) })]),
        Family::Llama => merged([general, mlp, keys]),
        Family::Phi => merged([general, mlp, keys, rotary("partial_rotary_factor", 0.5)]),
        Family::Mistral => merged([general, mlp, keys, json!({ "sliding_window": null })]),
        Family::Gemma => merged([general, mlp, keys, json!({ "head_dim": head_size })]),
        Family::GptNeox => merged([general, mlp, rotary("rotary_pct", 0.25)]),
        Family::Falcon => {
            // One head of keys is what the old decoder has; any other number needs the new one.
            let is_new = kv_heads.is_some_and(|kv_heads| kv_heads != 1 && kv_heads != heads);
            let own = json!({
                "num_kv_heads": kv_heads.unwrap_or(1),
                "new_decoder_architecture": is_new,
                "multi_query": kv_heads.is_none_or(|kv_heads| kv_heads != heads),
            });
            merged([general, own])
        }
        Family::Bart => merged([json!({
            "vocab_size": vocab_size,
            "d_model": width,
            "decoder_layers": layers,
            "decoder_attention_heads": heads,
            "decoder_ffn_dim": mlp_width,
            "max_position_embeddings": context,
        })]),
    };
    json.insert("model_type".to_owned(), json!(family.model_type()));
    // The families' own padding ids are words of GPT-2's vocabulary.
    json.insert("pad_token_id".to_owned(), Value::Null);
    Ok(json)
}

fn initializer_key(family: Family) -> &'static str {
    if family == Family::Bart { "init_std" } else { "initializer_range" }
}

/// The keys of a family's dropout rates.
pub(super) fn dropout_keys(family: Family) -> &'static [&'static str] {
    match family {
        Family::Gpt2 | Family::Gptj => &["attn_pdrop", "embd_pdrop", "resid_pdrop"],
        Family::Phi => &["attention_dropout", "embd_pdrop", "resid_pdrop"],
        Family::Falcon | Family::GptNeox => &["attention_dropout", "hidden_dropout"],
        Family::Bart => &["attention_dropout", "dropout"],
        Family::Llama | Family::Mistral | Family::Gemma => &["attention_dropout"],
    }
}

/// The ids of beginning, end and padding where the file does not say.
pub(super) fn special_ids(family: Family) -> [Option<u64>; 3] {
    let (begin, end) = match family {
        Family::Gpt2 | Family::Gptj => (50_256, 50_256),
        Family::Llama | Family::Mistral | Family::Phi => (1, 2),
        Family::Bart | Family::GptNeox => (0, 2),
        Family::Falcon => (11, 11),
        Family::Gemma => (2, 1),
    };
    let padding = match family {
        Family::Bart => Some(1),
        Family::Gemma => Some(0),
        _ => None,
    };
    [Some(begin), Some(end), padding]
}

/// Ids that a family puts into generated text by itself, and their keys.
pub(super) fn forced_ids(family: Family) -> &'static [(&'static str, u64)] {
    match family {
        Family::Bart => &[("decoder_start_token_id", 2), ("forced_eos_token_id", 2)],
        _ => &[],
    }
}

fn merged<const N: usize>(parts: [Value; N]) -> Map<String, Value> {
    parts
        .into_iter()
        .filter_map(|part| if let Value::Object(map) = part { Some(map) } else { None })
        .flatten()
        .collect()
}

fn rope_base(arch: &Arch) -> Value {
    match arch.position {
        // NeoX's is a whole number by default.
        Position::Rotary(Rotary { base, .. }) if arch.family == Family::GptNeox && base.fract() == 0.0 => {
            json!(base as u64)
        }
        Position::Rotary(Rotary { base, .. }) => json!(shortest_double(base)),
        _ => json!(10_000.0),
    }
}

fn rotary_part(arch: &Arch) -> Value {
    match arch.position {
        Position::Rotary(Rotary { size, .. }) => json!(size as f64 / arch.head_size as f64),
        _ => Value::Null,
    }
}

fn rope_scaling(arch: &Arch) -> Value {
    let Position::Rotary(Rotary { scaling, .. }) = arch.position else { return Value::Null };
    let (kind, factor) = match scaling {
        RopeScaling::None => return Value::Null,
        RopeScaling::Linear(factor) => ("linear", factor),
        RopeScaling::Dynamic { factor, .. } => ("dynamic", factor),
    };
    json!({ "factor": shortest_double(factor), "type": kind })
}

/// A configuration's keys, with defaults for those that are not there.
#[derive(Clone, Copy)]
struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    fn size(self, key: &str, default: usize, max: u64) -> Result<usize, Refusal> {
        match self.0.get(key) {
            None => Ok(default),
            Some(value) => size_of(key, value, max),
        }
    }

    /// A size that has a name of its own and a general one, which wins.
    fn either(self, key: &str, general: &str, default: usize, max: u64) -> Result<usize, Refusal> {
        self.size(if self.0.contains_key(general) { general } else { key }, default, max)
    }

    /// Vocabulary, width, blocks and heads by their general names.
    fn sizes(self, defaults: [usize; 4]) -> Result<[usize; 4], Refusal> {
        Ok([
            self.size("vocab_size", defaults[0], MAX_SIZE)?,
            self.size("hidden_size", defaults[1], MAX_SIZE)?,
            self.size("num_hidden_layers", defaults[2], MAX_LAYERS)?,
            self.size("num_attention_heads", defaults[3], MAX_SIZE)?,
        ])
    }

    fn optional_size(self, key: &str) -> Result<Option<usize>, Refusal> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => size_of(key, value, MAX_SIZE).map(Some),
        }
    }

    /// Heads of keys: all where the file has null.
    fn kv_heads(self, key: &str, default: Option<usize>, heads: usize) -> Result<usize, Refusal> {
        if self.0.contains_key(key) {
            return Ok(self.optional_size(key)?.unwrap_or(heads));
        }
        Ok(default.unwrap_or(heads))
    }

    fn flag(self, key: &str, default: bool) -> Result<bool, Refusal> {
        match self.0.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(Invalid(format!("{key} is {other}; it must be true or false."))),
        }
    }

    fn float(self, key: &str, default: f32) -> Result<f32, Refusal> {
        self.double(key, default.into()).map(|float| float as f32)
    }

    fn double(self, key: &str, default: f64) -> Result<f64, Refusal> {
        let Some(value) = self.0.get(key) else { return Ok(default) };
        let float = value.as_f64().filter(|float| (*float as f32).is_finite() && *float >= 0.0);
        float.ok_or_else(|| Invalid(format!("{key} is {value}; it must be a number that is not negative.")))
    }

    fn activation(self, key: &str, default: Activation) -> Result<Activation, Refusal> {
        let Some(value) = self.0.get(key) else { return Ok(default) };
        let known = ACTIVATIONS.iter().find(|(name, _)| value == name).map(|(_, ours)| *ours);
        known.ok_or_else(|| {
            let names: Vec<_> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
            NotImplemented(format!("{key} {value} is not implemented here; {} are.", names.join(", ")))
        })
    }

    fn window(self) -> Result<Option<usize>, Refusal> {
        match self.0.get("sliding_window") {
            None => Ok(Some(4096)),
            Some(_) => self.optional_size("sliding_window"),
        }
    }

    fn rope_scaling(self) -> Result<RopeScaling, Refusal> {
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
            (Some("dynamic"), Some(factor)) => Ok(RopeScaling::Dynamic { factor, sticky: false }),
            _ => Err(wrong()),
        }
    }

    /// The padding id, counted from the end of the vocabulary if it is negative.
    fn padding(self, default: Option<u32>, vocab_size: usize) -> Result<Option<u32>, Refusal> {
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
