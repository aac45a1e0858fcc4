//! Hugging Face's keys of each family as an [`Arch`]. This folder alone knows them (`write.rs`: the way back).
//!
//! Keys that a file omits have the values of transformers 4.38.0, the version validators load models with; what it
//! ignores there (such as Gemma's `hidden_activation`) is ignored here.

use serde_json::{Map, Value, json};

use super::keys::Refusal::{self, Invalid, NotImplemented};
use super::keys::{Keys, MAX_LAYERS, MAX_SIZE};
use crate::model::arch::{Activation, Arch, NormKind, Pairing, Position, Residual, RopeScaling, Rotary, Unused};
use crate::model::family::Family;

/// Keys with which transformers leaves the code that is followed here, such as the attention it picks by itself.
const OTHER_CODE: [&str; 3] = ["output_attentions", "_attn_implementation", "_attn_implementation_internal"];

/// The architecture that a configuration of a family describes.
pub(super) fn arch_of(family: Family, json: &Map<String, Value>) -> Result<Arch, Refusal> {
    let keys = Keys::of(json);
    let is_set = |key: &&str| {
        json.get(*key).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)) && *value != json!({}))
    };
    if let Some(key) = ["add_cross_attention", "quantization_config", "pruned_heads"].iter().find(|key| is_set(key)) {
        return Err(NotImplemented(format!("{key} is set; such models are not implemented here.")));
    }
    if let Some(key) = OTHER_CODE.iter().find(|key| is_set(key)) {
        return Err(NotImplemented(format!("{key} is set, with which transformers computes by other code.")));
    }
    if json.get("torchscript") == Some(&Value::Bool(true)) || json.get("return_dict") == Some(&Value::Bool(false)) {
        return Err(Invalid("with torchscript, or without return_dict, validators find no logits.".to_owned()));
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
    if !width.is_multiple_of(*heads) {
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
    if let Position::Rotary(Rotary { size: 2, scaling: RopeScaling::Dynamic { .. }, .. }) = arch.position {
        return Err(Invalid("dynamic rope_scaling of 2 channels divides by 0.".to_owned()));
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
pub(super) fn has_tied_head(family: Family) -> bool {
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
    if keys.is_null("rotary_dim") {
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
    if is_gemma && keys.is_null("num_key_value_heads") {
        return Err(Invalid("num_key_value_heads is null; Gemma wants a number.".to_owned()));
    }
    if family == Family::Llama && keys.size("pretraining_tp", 1, MAX_SIZE)? != 1 {
        return Err(NotImplemented(
            "pretraining_tp is above 1, with which transformers cuts the matrices up.".to_owned(),
        ));
    }
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
    let mut sizes = keys.sizes([65_024, 4544, 32, 71])?;
    sizes[1] = keys.optional_size("n_embed")?.unwrap_or(sizes[1]);
    let base = base(Family::Falcon, keys, sizes, context)?;
    let is_new = keys.flag("new_decoder_architecture", false)?;
    let is_parallel = keys.flag("parallel_attn", true)?;
    let kv_heads = match (is_new, keys.flag("multi_query", true)?) {
        (true, _) => keys.kv_heads("num_kv_heads", None, base.heads)?,
        (false, true) => 1,
        (false, false) => base.heads,
    };
    if !is_new && kv_heads == base.heads && keys.kv_heads("num_kv_heads", None, base.heads)? != base.heads {
        return Err(Invalid("without multi_query, num_kv_heads must be num_attention_heads.".to_owned()));
    }
    let rotary = Rotary {
        size: base.head_size,
        pairing: Pairing::Halves,
        base: keys.float("rope_theta", 10_000.0)?,
        scaling: keys.rope_scaling()?,
        bounded: false,
    };
    let (bias, is_alibi) = (keys.flag("bias", false)?, keys.flag("alibi", false)?);
    if is_alibi && rotary.scaling != RopeScaling::None {
        return Err(Invalid("rope_scaling does not go with alibi.".to_owned()));
    }
    Ok(Arch {
        kv_heads,
        activation: Activation::GeluErf,
        norm_eps: keys.float("layer_norm_epsilon", 1e-5)?,
        residual: match (is_new, is_parallel) {
            (true, _) => Residual::Parallel,
            (false, true) => Residual::ParallelOneNorm,
            (false, false) => Residual::Serial,
        },
        position: match is_alibi {
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
