//! Our parameters and Hugging Face's tensors, family by family: names, fused or split matrices, orders of rows.
//!
//! One of our matrices may lie in several tensors (queries, keys and values; gate and up), and a tensor's rows may stand
//! in another order than ours. GPT-2's linear layers are `Conv1D` modules, whose matrices are stored (in, out): such
//! tensors are transposed on their way.

use std::ops::Range;

use crate::model::arch::{Arch, Residual};
use crate::model::family::Family;
use crate::model::layout::{Layout, Param};

/// A tensor as Hugging Face stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// Name with prefix.
    pub(super) name: String,
    /// Shape in the file.
    pub(super) shape: Vec<usize>,
    /// Whether the file holds the transposed matrix.
    pub(super) transposed: bool,
    /// Index into [`Layout::params`].
    pub(super) param: usize,
    /// Which rows of our parameter it holds, in the order of the file.
    pub(super) rows: Vec<Range<usize>>,
}

/// How a family names its tensors.
struct Names {
    /// Before the names of all tensors but the head's.
    prefix: &'static str,
    /// Before the names of a block's tensors, behind the prefix; the block's number and a dot follow.
    block: &'static str,
    /// Parameters outside the blocks: ours, theirs without prefix.
    outside: &'static [(&'static str, &'static str)],
    /// Modules of a block: ours, theirs, which rows of ours.
    inside: &'static [(&'static str, &'static str, Rows)],
    /// The head's module.
    head: &'static str,
    /// Endings of constant tensors that old versions of transformers saved with every block.
    legacy: &'static [&'static str],
}

/// Which rows of one of our matrices a tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    All,
    /// All; the file has the transposed matrix.
    Transposed,
    Query,
    Key,
    Value,
    /// For each head of keys: its query heads, then the key's and the value's rows.
    Grouped,
    Gate,
    Up,
}

const LEGACY_MASKS: &[&str] = &[".attn.bias", ".attn.masked_bias"];
const LEGACY_FREQUENCIES: &[&str] = &[".rotary_emb.inv_freq"];

const GPT2: Names = Names {
    prefix: "transformer.",
    block: "h.",
    outside: &[("embed.token", "wte"), ("embed.position", "wpe"), ("norm", "ln_f")],
    inside: &[
        ("norm1", "ln_1", Rows::All),
        ("attention.qkv", "attn.c_attn", Rows::Transposed),
        ("attention.out", "attn.c_proj", Rows::Transposed),
        ("norm2", "ln_2", Rows::All),
        ("mlp.up", "mlp.c_fc", Rows::Transposed),
        ("mlp.down", "mlp.c_proj", Rows::Transposed),
    ],
    head: "lm_head",
    legacy: LEGACY_MASKS,
};

/// Llama, Mistral and Gemma.
const LLAMA: Names = Names {
    prefix: "model.",
    block: "layers.",
    outside: &[("embed.token", "embed_tokens"), ("norm", "norm")],
    inside: &[
        ("norm1", "input_layernorm", Rows::All),
        ("attention.qkv", "self_attn.q_proj", Rows::Query),
        ("attention.qkv", "self_attn.k_proj", Rows::Key),
        ("attention.qkv", "self_attn.v_proj", Rows::Value),
        ("attention.out", "self_attn.o_proj", Rows::All),
        ("norm2", "post_attention_layernorm", Rows::All),
        ("mlp.up", "mlp.gate_proj", Rows::Gate),
        ("mlp.up", "mlp.up_proj", Rows::Up),
        ("mlp.down", "mlp.down_proj", Rows::All),
    ],
    head: "lm_head",
    legacy: LEGACY_FREQUENCIES,
};

const PHI: Names = Names {
    prefix: "model.",
    block: "layers.",
    outside: &[("embed.token", "embed_tokens"), ("norm", "final_layernorm")],
    inside: &[
        ("norm1", "input_layernorm", Rows::All),
        ("attention.qkv", "self_attn.q_proj", Rows::Query),
        ("attention.qkv", "self_attn.k_proj", Rows::Key),
        ("attention.qkv", "self_attn.v_proj", Rows::Value),
        ("attention.out", "self_attn.dense", Rows::All),
        ("mlp.up", "mlp.fc1", Rows::All),
        ("mlp.down", "mlp.fc2", Rows::All),
        ("unused.query_norm", "self_attn.q_layernorm", Rows::All),
        ("unused.key_norm", "self_attn.k_layernorm", Rows::All),
    ],
    head: "lm_head",
    legacy: LEGACY_FREQUENCIES,
};

const BART: Names = Names {
    prefix: "model.",
    block: "decoder.layers.",
    outside: &[
        ("embed.token", "decoder.embed_tokens"),
        ("embed.position", "decoder.embed_positions"),
        ("embed.norm", "decoder.layernorm_embedding"),
    ],
    inside: &[
        ("attention.qkv", "self_attn.q_proj", Rows::Query),
        ("attention.qkv", "self_attn.k_proj", Rows::Key),
        ("attention.qkv", "self_attn.v_proj", Rows::Value),
        ("attention.out", "self_attn.out_proj", Rows::All),
        ("norm1", "self_attn_layer_norm", Rows::All),
        ("mlp.up", "fc1", Rows::All),
        ("mlp.down", "fc2", Rows::All),
        ("norm2", "final_layer_norm", Rows::All),
        ("unused.key", "encoder_attn.k_proj", Rows::All),
        ("unused.value", "encoder_attn.v_proj", Rows::All),
        ("unused.query", "encoder_attn.q_proj", Rows::All),
        ("unused.out", "encoder_attn.out_proj", Rows::All),
        ("unused.norm", "encoder_attn_layer_norm", Rows::All),
    ],
    head: "lm_head",
    legacy: &[],
};

const FALCON: Names = Names {
    prefix: "transformer.",
    block: "h.",
    outside: &[("embed.token", "word_embeddings"), ("norm", "ln_f")],
    inside: &[
        ("norm1", "input_layernorm", Rows::All),
        ("norm2", "post_attention_layernorm", Rows::All),
        ("attention.qkv", "self_attention.query_key_value", Rows::Grouped),
        ("attention.out", "self_attention.dense", Rows::All),
        ("mlp.up", "mlp.dense_h_to_4h", Rows::All),
        ("mlp.down", "mlp.dense_4h_to_h", Rows::All),
    ],
    head: "lm_head",
    legacy: LEGACY_FREQUENCIES,
};

/// Falcon's new decoder, which has a norm for each of its parallel branches.
const FALCON_TWO_NORMS: Names = Names {
    inside: &[
        ("norm1", "ln_attn", Rows::All),
        ("norm2", "ln_mlp", Rows::All),
        ("attention.qkv", "self_attention.query_key_value", Rows::Grouped),
        ("attention.out", "self_attention.dense", Rows::All),
        ("mlp.up", "mlp.dense_h_to_4h", Rows::All),
        ("mlp.down", "mlp.dense_4h_to_h", Rows::All),
    ],
    ..FALCON
};

const GPT_NEOX: Names = Names {
    prefix: "gpt_neox.",
    block: "layers.",
    outside: &[("embed.token", "embed_in"), ("norm", "final_layer_norm")],
    inside: &[
        ("norm1", "input_layernorm", Rows::All),
        ("norm2", "post_attention_layernorm", Rows::All),
        ("attention.qkv", "attention.query_key_value", Rows::Grouped),
        ("attention.out", "attention.dense", Rows::All),
        ("mlp.up", "mlp.dense_h_to_4h", Rows::All),
        ("mlp.down", "mlp.dense_4h_to_h", Rows::All),
    ],
    head: "embed_out",
    legacy: &[".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"],
};

const GPTJ: Names = Names {
    prefix: "transformer.",
    block: "h.",
    outside: &[("embed.token", "wte"), ("norm", "ln_f")],
    inside: &[
        ("norm1", "ln_1", Rows::All),
        ("attention.qkv", "attn.q_proj", Rows::Query),
        ("attention.qkv", "attn.k_proj", Rows::Key),
        ("attention.qkv", "attn.v_proj", Rows::Value),
        ("attention.out", "attn.out_proj", Rows::All),
        ("mlp.up", "mlp.fc_in", Rows::All),
        ("mlp.down", "mlp.fc_out", Rows::All),
    ],
    head: "lm_head",
    legacy: &[".attn.bias", ".attn.masked_bias", ".attn.embed_positions"],
};

fn names(arch: &Arch) -> &'static Names {
    match arch.family {
        Family::Gpt2 => &GPT2,
        Family::Llama | Family::Mistral | Family::Gemma => &LLAMA,
        Family::Phi => &PHI,
        Family::Bart => &BART,
        Family::Falcon if arch.residual == Residual::Parallel => &FALCON_TWO_NORMS,
        Family::Falcon => &FALCON,
        Family::GptNeox => &GPT_NEOX,
        Family::Gptj => &GPTJ,
    }
}

/// What stands before the names of all tensors but the head's.
pub(super) fn prefix(arch: &Arch) -> &'static str {
    names(arch).prefix
}

/// The head's matrix, which a model with a tied head may hold as well.
pub(super) fn head(arch: &Arch) -> String {
    format!("{}.weight", names(arch).head)
}

/// How Hugging Face stores the parameters of a layout, in the layout's order.
pub(super) fn stored(arch: &Arch, layout: &Layout) -> Vec<Stored> {
    let names = names(arch);
    let mut all = Vec::new();
    for (index, param) in layout.params().iter().enumerate() {
        let before = all.len();
        all.extend(tensors(names, param).into_iter().map(|(name, kind)| {
            let rows = rows(arch, kind, param.shape[0]);
            let mut shape = param.shape.clone();
            shape[0] = rows.iter().map(Range::len).sum();
            // A bias has nothing to transpose.
            let transposed = kind == Rows::Transposed && shape.len() == 2;
            if transposed {
                shape.reverse();
            }
            Stored { name, shape, transposed, param: index, rows }
        }));
        assert!(all.len() > before, "{} has no name in the tables above", param.name);
    }
    all
}

/// The names of the tensors that hold a parameter.
fn tensors(names: &Names, param: &Param) -> Vec<(String, Rows)> {
    let Names { prefix, block, outside, inside, head, .. } = names;
    let (module, kind) = param.name.rsplit_once('.').unwrap_or((&param.name, ""));
    let kind = if kind == "gain" { "weight" } else { kind };
    if module == "head" {
        return vec![(format!("{head}.{kind}"), Rows::All)];
    }
    if let Some((i, module)) = module.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
        let known = inside.iter().filter(|(ours, ..)| *ours == module);
        return known.map(|(_, theirs, rows)| (format!("{prefix}{block}{i}.{theirs}.{kind}"), *rows)).collect();
    }
    // Embeddings have one parameter and no kind.
    let embedding = outside.iter().find(|(ours, _)| *ours == param.name);
    let known = embedding.map(|(_, theirs)| (*theirs, "weight"));
    let known = known.or_else(|| outside.iter().find(|(ours, _)| *ours == module).map(|(_, theirs)| (*theirs, kind)));
    known.map(|(theirs, kind)| (format!("{prefix}{theirs}.{kind}"), Rows::All)).into_iter().collect()
}

/// Our rows in the order of the file.
fn rows(arch: &Arch, kind: Rows, num_rows: usize) -> Vec<Range<usize>> {
    let (d, m) = (arch.head_size, arch.mlp_width);
    let (keys, values) = (arch.heads * d, (arch.heads + arch.kv_heads) * d);
    let only = |rows: Range<usize>| Vec::from([rows]);
    match kind {
        Rows::All | Rows::Transposed => only(0..num_rows),
        Rows::Query => only(0..keys),
        Rows::Key => only(keys..values),
        Rows::Value => only(values..num_rows),
        Rows::Gate => only(0..m),
        Rows::Up => only(m..num_rows),
        Rows::Grouped => {
            let queries = arch.heads / arch.kv_heads * d;
            let group = |i: usize| {
                let (key, value) = (keys + i * d, values + i * d);
                [i * queries..(i + 1) * queries, key..key + d, value..value + d]
            };
            (0..arch.kv_heads).flat_map(group).collect()
        }
    }
}

/// Whether a tensor is one of the constants that old versions of transformers saved with every block.
pub(super) fn is_legacy(arch: &Arch, name: &str) -> bool {
    names(arch).legacy.iter().any(|ending| name.ends_with(ending))
}
