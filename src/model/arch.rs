//! The architecture of a decoder as a handful of choices, free of Hugging Face's key names (`model/config.rs` maps those).

pub use crate::ops::activation::Activation;

/// A decoder-only transformer of the GPT-2 family: learned positions, pre-norm LayerNorm blocks with biases.
#[derive(Clone, Debug, PartialEq)]
pub struct Arch {
    /// Number of token ids, 50,257 for GPT-2's tokenizer.
    pub vocab_size: usize,
    /// Number of learned positions: the longest sequence the model can read.
    pub context: usize,
    /// Width of the residual stream (`n_embd`); a multiple of `heads`.
    pub width: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of the MLP's hidden layer (`n_inner`, usually 4 times the width).
    pub mlp_width: usize,
    /// The MLP's pointwise function.
    pub activation: Activation,
    /// Added to the variance inside every LayerNorm.
    pub norm_eps: f32,
    /// Whether attention scores are divided by the square root of the head size.
    pub scale_by_head_size: bool,
    /// Whether attention scores of block `i` (from 0) are divided by `i + 1` as well.
    pub scale_by_layer: bool,
    /// Whether the head shares the token embedding's matrix.
    pub tied_head: bool,
}

impl Arch {
    /// GPT-2 with the given sizes and everything else as OpenAI trained it.
    pub fn gpt2(vocab_size: usize, context: usize, width: usize, layers: usize, heads: usize) -> Self {
        Self {
            vocab_size,
            context,
            width,
            layers,
            heads,
            mlp_width: 4 * width,
            activation: Activation::GeluTanh,
            norm_eps: 1e-5,
            scale_by_head_size: true,
            scale_by_layer: false,
            tied_head: true,
        }
    }

    /// The error of a model folder whose model is not of the `wanted` architecture: each choice in which they differ.
    pub fn mismatch(&self, wanted: &Self, dir: &std::path::Path) -> anyhow::Error {
        let described = |arch: &Self| {
            let Self { vocab_size, context, width, layers, heads, mlp_width, activation, norm_eps, .. } = arch;
            let [by_head, by_layer, tied] = [arch.scale_by_head_size, arch.scale_by_layer, arch.tied_head];
            vec![
                ("vocabulary", vocab_size.to_string()),
                ("model.context", context.to_string()),
                ("model.width", width.to_string()),
                ("model.layers", layers.to_string()),
                ("model.heads", heads.to_string()),
                ("model.mlp_width", mlp_width.to_string()),
                ("activation", format!("{activation:?}")),
                ("layer_norm_epsilon", norm_eps.to_string()),
                ("scale_attn_weights", by_head.to_string()),
                ("scale_attn_by_inverse_layer_idx", by_layer.to_string()),
                ("tie_word_embeddings", tied.to_string()),
            ]
        };
        let (here, there) = (described(wanted), described(self));
        let pairs = here.iter().zip(&there).filter(|(here, there)| here != there);
        let lines: Vec<String> =
            pairs.map(|((name, here), (_, there))| format!("  {name}: {there} there, {here} in the recipe")).collect();
        crate::error::input(format!(
            "init.dir: {} holds a model of another shape than the recipe's:\n{}\nMake the recipe the same, or start from \
             another model.",
            dir.display(),
            lines.join("\n")
        ))
    }

    /// Width of one attention head.
    pub fn head_size(&self) -> usize {
        self.width / self.heads
    }

    /// The factor on the attention scores of one block.
    pub fn attention_scale(&self, layer: usize) -> f32 {
        let mut scale = 1.0;
        if self.scale_by_head_size {
            scale /= (self.head_size() as f32).sqrt();
        }
        if self.scale_by_layer {
            scale /= (layer + 1) as f32;
        }
        scale
    }
}
