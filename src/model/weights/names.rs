//! Our parameter names and Hugging Face's, family by family. GPT-2's linear layers are `Conv1D` modules, whose matrices
//! are stored (in, out): such tensors are transposed on their way.

use crate::model::layout::Layout;

/// What stands before the names of all tensors but the head's.
pub(super) const PREFIX: &str = "transformer.";
/// The head's matrix, which a model with a tied head may hold as well.
pub(super) const HEAD: &str = "lm_head.weight";

/// Parameters outside the blocks, with their names without prefix.
const OUTSIDE: [(&str, &str); 4] = [
    ("embed.token", "wte.weight"),
    ("embed.position", "wpe.weight"),
    ("norm.gain", "ln_f.weight"),
    ("norm.bias", "ln_f.bias"),
];

/// Parameters of a block, with their names behind `h.N.` and whether they are stored transposed.
const INSIDE: [(&str, &str, bool); 12] = [
    ("norm1.gain", "ln_1.weight", false),
    ("norm1.bias", "ln_1.bias", false),
    ("attention.qkv.weight", "attn.c_attn.weight", true),
    ("attention.qkv.bias", "attn.c_attn.bias", false),
    ("attention.out.weight", "attn.c_proj.weight", true),
    ("attention.out.bias", "attn.c_proj.bias", false),
    ("norm2.gain", "ln_2.weight", false),
    ("norm2.bias", "ln_2.bias", false),
    ("mlp.up.weight", "mlp.c_fc.weight", true),
    ("mlp.up.bias", "mlp.c_fc.bias", false),
    ("mlp.down.weight", "mlp.c_proj.weight", true),
    ("mlp.down.bias", "mlp.c_proj.bias", false),
];

/// A parameter as Hugging Face stores it.
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
}

/// How Hugging Face stores each parameter of a layout, in the layout's order.
pub(super) fn stored(layout: &Layout) -> Vec<Stored> {
    let describe = |(index, param): (usize, &crate::model::layout::Param)| {
        let (name, transposed) = name_of(&param.name);
        let mut shape = param.shape.clone();
        if transposed {
            shape.reverse();
        }
        Stored { name, shape, transposed, param: index }
    };
    layout.params().iter().enumerate().map(describe).collect()
}

fn name_of(ours: &str) -> (String, bool) {
    if ours == "head.weight" {
        return (HEAD.to_owned(), false);
    }
    if let Some((_, name)) = OUTSIDE.iter().find(|(known, _)| *known == ours) {
        return (format!("{PREFIX}{name}"), false);
    }
    ours.strip_prefix("blocks.")
        .and_then(|rest| rest.split_once('.'))
        .and_then(|(block, rest)| {
            let (_, name, transposed) = INSIDE.iter().find(|(known, ..)| *known == rest)?;
            Some((format!("{PREFIX}h.{block}.{name}"), *transposed))
        })
        .expect("every parameter of the layout has a name in the tables above")
}

/// Whether a tensor is one of the constant masks that old versions of transformers saved with every block.
pub(super) fn is_legacy_mask(name: &str) -> bool {
    name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
}
