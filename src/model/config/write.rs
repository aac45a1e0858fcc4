//! An [`Arch`], or the sizes of a new model, as Hugging Face's keys.

use serde_json::{Map, Value, json};

use super::Sizes;
use super::families::has_tied_head;
use super::keys::ACTIVATIONS;
use crate::model::arch::{Arch, Position, Residual, RopeScaling, Rotary, Unused};
use crate::model::family::Family;
use crate::model::json::shortest_double;

/// Keys that a recipe's own sizes set.
pub(super) const SIZE_KEYS: [&str; 17] = [
    "vocab_size",
    "n_embed",
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

/// The keys that describe an architecture, as `save_pretrained` writes them.
pub(super) fn keys_of(arch: &Arch) -> Map<String, Value> {
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
