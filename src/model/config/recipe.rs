//! What a recipe says to make an architecture, and what it would have to say to make that of a model folder.

use std::path::Path;

use serde_json::{Map, Value};

use super::keys::Refusal;
use super::{arch_of, write};
use crate::error::input;
use crate::model::arch::Arch;
use crate::model::family::Family;

/// Sizes of a new model.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Number of token ids.
    pub vocab_size: usize,
    /// The longest row it is made for.
    pub context: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Number of heads of keys and values; `None`: the family's own.
    pub kv_heads: Option<usize>,
    /// Width of the MLP's hidden layer.
    pub mlp_width: usize,
}

/// The architecture of a new model of a family, with `own` keys of config.json beside its sizes; the error is a sentence.
pub fn new_arch(family: Family, sizes: Sizes, own: &Map<String, Value>) -> Result<Arch, String> {
    let mut json = write::with_sizes(family, sizes)?;
    if let Some(key) = own.keys().find(|key| write::SIZE_KEYS.contains(&key.as_str())) {
        return Err(format!("config: {key} is set by another key of the recipe already"));
    }
    json.extend(own.clone());
    arch_of(&json).map_err(|refusal| match refusal {
        Refusal::NotImplemented(sentence) | Refusal::Invalid(sentence) => sentence,
    })
}

/// The `model` section of a recipe that makes an architecture, in one line of YAML; the vocabulary is not the recipe's
/// matter.
pub(super) fn recipe_section(arch: &Arch) -> String {
    let Arch { family, layers, heads, kv_heads, width, mlp_width, context, .. } = arch;
    // Where the recipe says nothing, Falcon has one.
    let usual = if *family == Family::Falcon { 1 } else { *heads };
    let kv_heads = (*kv_heads != usual).then_some(*kv_heads);
    let sizes = Sizes {
        vocab_size: arch.vocab_size,
        context: *context,
        width: *width,
        layers: *layers,
        heads: *heads,
        kv_heads,
        mlp_width: *mlp_width,
    };
    let usual = new_arch(*family, sizes, &Map::new()).map(|usual| write::keys_of(&usual)).unwrap_or_default();
    let own = write::keys_of(arch).into_iter().filter(|(key, value)| {
        usual.get(key) != Some(value) && !write::SIZE_KEYS.contains(&key.as_str()) && key != "model_type"
    });
    let own: Vec<String> = own.map(|(key, value)| format!("{key}: {value}")).collect();
    let kv_heads = kv_heads.map_or_else(String::new, |kv_heads| format!("kv_heads: {kv_heads}, "));
    let config = if own.is_empty() { String::new() } else { format!(", config: {{{}}}", own.join(", ")) };
    format!(
        "model: {{family: {}, layers: {layers}, heads: {heads}, {kv_heads}width: {width}, mlp_width: {mlp_width}, context: \
         {context}{config}}}",
        family.model_type()
    )
}

/// The error of a model folder whose model, of architecture `there`, is not of the `wanted` one: each choice in which they
/// differ, and what the recipe would have to say.
pub fn mismatch(there: &Arch, wanted: &Arch, dir: &Path) -> anyhow::Error {
    let described = |arch: &Arch| {
        vec![
            ("model.family", arch.family.model_type().to_owned()),
            ("vocabulary", arch.vocab_size.to_string()),
            ("model.context", arch.context.to_string()),
            ("model.width", arch.width.to_string()),
            ("model.layers", arch.layers.to_string()),
            ("model.heads", arch.heads.to_string()),
            ("model.kv_heads", arch.kv_heads.to_string()),
            ("head size", arch.head_size.to_string()),
            ("model.mlp_width", arch.mlp_width.to_string()),
            ("activation", format!("{:?}", arch.activation)),
            ("gated MLP", arch.gated.to_string()),
            ("norm", format!("{:?}", arch.norm)),
            ("epsilon of norms", arch.norm_eps.to_string()),
            ("residual", format!("{:?}", arch.residual)),
            ("positions", format!("{:?}", arch.position)),
            ("attention window", format!("{:?}", arch.window)),
            ("scores divided by root of head size", arch.scale_by_head_size.to_string()),
            ("scores divided by layer", arch.scale_by_layer.to_string()),
            (
                "biases of qkv, out, MLP, head",
                format!("{:?}", [arch.qkv_bias, arch.out_bias, arch.mlp_bias, arch.head_bias]),
            ),
            ("embedding scale", arch.embedding_scale.to_string()),
            ("padding id", format!("{:?}", arch.frozen_id)),
            ("tied head", arch.tied_head.to_string()),
            ("unused parameters", format!("{:?}", arch.unused)),
        ]
    };
    let pairs = std::iter::zip(described(wanted), described(there));
    let pairs = pairs.filter(|(here, there)| here != there);
    let lines: Vec<String> =
        pairs.map(|((name, here), (_, there))| format!("  {name}: {there} there, {here} in the recipe")).collect();
    input(format!(
        "init: {} holds a model of another shape than the recipe's:\n{}\nThe recipe for it: {}",
        dir.display(),
        lines.join("\n"),
        recipe_section(there)
    ))
}
