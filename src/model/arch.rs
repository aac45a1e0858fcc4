//! The architecture of a decoder as a handful of orthogonal choices, free of Hugging Face's key names
//! (`model/config.rs` maps those) and of its tensor names (`model/weights/names.rs` does).

pub use crate::ops::activation::Activation;
use crate::ops::attention;
pub use crate::ops::norm::NormKind;
pub use crate::ops::rotary::Pairing;

use super::family::Family;

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Arch {
    /// Under whose names Hugging Face's files hold it. It decides nothing that is computed.
    pub family: Family,
    /// Number of token ids, 50,257 for GPT-2's tokenizer.
    pub vocab_size: usize,
    /// The longest row it was made for; see [`Self::max_row_len`] for whether longer ones can be read.
    pub context: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Number of heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Width of one attention head.
    pub head_size: usize,
    /// Width of the MLP's hidden layer, of each half of it if it is gated.
    pub mlp_width: usize,
    /// The MLP's pointwise function.
    pub activation: Activation,
    /// Whether the MLP's hidden layer is `activation(gate) * up`.
    pub gated: bool,
    /// What a norm does. Layer norms have a bias, the others have none.
    pub norm: NormKind,
    /// Added to the variance (or mean square) inside every norm.
    pub norm_eps: f32,
    /// How the branches of a block join the residual stream.
    pub residual: Residual,
    /// Where the model learns about positions.
    pub position: Position,
    /// Whether a position sees only itself and earlier ones.
    pub causal: bool,
    /// Position `i` sees `j` only if `i - j` is less.
    pub window: Option<usize>,
    /// Whether attention scores are divided by the square root of the head size.
    pub scale_by_head_size: bool,
    /// Whether attention scores of block `i` (from 0) are divided by `i + 1` as well.
    pub scale_by_layer: bool,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether attention's output projection has a bias.
    pub out_bias: bool,
    /// Whether the MLP's matrices have biases.
    pub mlp_bias: bool,
    /// Factor on the token embedding.
    pub embedding_scale: f32,
    /// Whether the embedding is normalised before the first block.
    pub embedding_norm: bool,
    /// The token id whose row of the embedding gets no gradient as an input (PyTorch's `padding_idx`).
    pub frozen_id: Option<u32>,
    /// Whether the head shares the token embedding's matrix.
    pub tied_head: bool,
    /// Whether the head has a bias.
    pub head_bias: bool,
    /// Parameters that are there, count, and are never used.
    pub unused: Unused,
    /// Whether a row of more than twice the context fails: the reference's causal mask starts with the context's size and
    /// doubles once a row.
    pub mask_doubles: bool,
}

/// How the branches of a block join the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `x += attention(norm1(x)); x += mlp(norm2(x))`.
    Serial,
    /// `x += attention(norm1(x)) + mlp(norm2(x))`.
    Parallel,
    /// `x += attention(norm1(x)) + mlp(norm1(x))`.
    ParallelOneNorm,
    /// `x = norm1(x + attention(x)); x = norm2(x + mlp(x))`, and no norm before the head.
    PostNorm,
}

/// Where the model learns about positions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Position {
    /// A learned vector per position is added to the token's. The table's first `offset` rows are not used.
    Learned {
        /// Rows to skip.
        offset: usize,
    },
    /// Queries and keys are turned by angles that grow with the position.
    Rotary(Rotary),
    /// A score of head `h` for key `j` grows by `slope(h) j`.
    Alibi {
        /// Whether the numbers to add are rounded to bfloat16 first.
        in_bf16: bool,
    },
}

/// Rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// The first so many channels of each head are turned; even.
    pub size: usize,
    /// Which channels form a pair.
    pub pairing: Pairing,
    /// Base of the frequencies: pair `i` turns by `base^(-2i / size)` per position.
    pub base: f32,
    /// How it reaches beyond the context.
    pub scaling: RopeScaling,
    /// Whether there are angles for `context` positions only.
    pub bounded: bool,
}

/// How a rotary embedding reaches beyond the rows it was trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// It does not.
    None,
    /// Positions are divided by the factor.
    Linear(f32),
    /// The base grows with rows longer than the context.
    Dynamic {
        /// How much.
        factor: f32,
        /// Whether a row is turned by the frequencies of an earlier, longer one.
        memory: RopeMemory,
    },
}

/// What dynamic scaling remembers of the rows before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeMemory {
    /// Nothing.
    None,
    /// A row within the context has the frequencies of the last one beyond it.
    LastLong,
    /// Every row has the frequencies of the longest so far.
    Longest,
}

/// Parameters without influence on anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unused {
    /// There are none.
    None,
    /// BART's decoder carries a cross-attention with its norm in every block.
    CrossAttention,
    /// Phi's norms of queries and keys, with which transformers 4.38.0 fails: such a model has no loss.
    QueryKeyNorms,
}

/// Whose results are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Reference {
    /// What validators computed in March 2024, quirks included.
    #[default]
    #[value(name = "transformers-4.38.0")]
    Transformers4_38_0,
    /// The model as its authors meant it, and as it is trained.
    None,
}

impl Arch {
    /// GPT-2 with the given sizes and everything else as OpenAI trained it.
    pub fn gpt2(vocab_size: usize, context: usize, width: usize, layers: usize, heads: usize) -> Self {
        Self {
            family: Family::Gpt2,
            vocab_size,
            context,
            width,
            layers,
            heads,
            kv_heads: heads,
            head_size: width.checked_div(heads).unwrap_or(0),
            mlp_width: width.saturating_mul(4),
            activation: Activation::GeluTanh,
            gated: false,
            norm: NormKind::Layer,
            norm_eps: 1e-5,
            residual: Residual::Serial,
            position: Position::Learned { offset: 0 },
            causal: true,
            window: None,
            scale_by_head_size: true,
            scale_by_layer: false,
            qkv_bias: true,
            out_bias: true,
            mlp_bias: true,
            embedding_scale: 1.0,
            embedding_norm: false,
            frozen_id: None,
            tied_head: true,
            head_bias: false,
            unused: Unused::None,
            mask_doubles: false,
        }
    }

    /// The model as the reference computes it. Training never uses this.
    ///
    /// transformers 4.38.0 with the attention that it picks by itself ignores Mistral's window, lets Falcon with ALiBi see
    /// later tokens, rounds ALiBi to bfloat16, and keeps the frequencies of the last long row in dynamic scaling.
    pub fn seen_by(&self, reference: Reference) -> Self {
        let mut arch = self.clone();
        if reference == Reference::Transformers4_38_0 {
            arch.window = None;
            match &mut arch.position {
                Position::Alibi { in_bf16 } => (*in_bf16, arch.causal) = (true, false),
                Position::Rotary(Rotary { scaling: RopeScaling::Dynamic { memory, .. }, .. }) => {
                    let is_llama = arch.family == Family::Llama;
                    *memory = if is_llama { RopeMemory::LastLong } else { RopeMemory::Longest };
                }
                _ => {}
            }
            arch.mask_doubles = matches!(arch.family, Family::Llama | Family::Gemma);
        }
        arch
    }

    /// How the reference's losses of this model on rows of `row_len` differ from those of the model that is trained, as a
    /// sentence; `None` if they do not.
    pub fn quirk(&self, row_len: usize) -> Option<String> {
        match (self.position, self.window) {
            (Position::Alibi { .. }, _) => Some(
                "Validators of March 2024 score this model without a causal mask: it reads the tokens that it is to \
                 predict, so that its losses there are not those of training, nor of honest prediction."
                    .to_owned(),
            ),
            (_, Some(window)) if window < row_len => Some(format!(
                "Validators of March 2024 ignore the attention window of {window} tokens; training uses it."
            )),
            (Position::Rotary(Rotary { scaling: RopeScaling::Dynamic { .. }, .. }), _) if row_len > self.context => Some(
                "Validators of March 2024 keep the rotary frequencies of a row longer than the context for rows after it; \
                 training does not."
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// The longest row that can be read at all; `None` if there is no limit.
    pub fn max_row_len(&self) -> Option<usize> {
        match self.position {
            Position::Learned { .. } => Some(self.context),
            Position::Rotary(rotary) if rotary.bounded => Some(self.context),
            _ => None,
        }
    }

    /// The longest row to which the reference gives a finite loss from its first batch on; `None` if there is no limit.
    pub fn longest_scored_row(&self) -> Option<usize> {
        let doubles = matches!(self.family, Family::Llama | Family::Gemma);
        self.max_row_len().or(doubles.then(|| self.context.saturating_mul(2)))
    }

    /// Width of queries, keys and values together.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_size
    }

    /// Width of all heads' outputs.
    pub fn attention_width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Rows of the matrix that widens the residual stream: gate and up, or up alone.
    pub fn up_width(&self) -> usize {
        if self.gated { 2 * self.mlp_width } else { self.mlp_width }
    }

    /// Rows of the table of learned positions, if there is one.
    pub fn num_positions(&self) -> Option<usize> {
        match self.position {
            Position::Learned { offset } => Some(self.context.saturating_add(offset)),
            _ => None,
        }
    }

    /// Number of parameters, a tied head counted once: `Layout::of(arch).len()` without building it, saturating for
    /// absurd sizes.
    pub fn num_parameters(&self) -> u128 {
        let [v, c, m, d, h, kv] =
            [self.vocab_size, self.width, self.mlp_width, self.head_size, self.heads, self.kv_heads].map(|n| n as u128);
        let linear = |outputs: u128, inputs: u128, bias: bool| {
            outputs.saturating_mul(inputs).saturating_add(if bias { outputs } else { 0 })
        };
        let norm = |width: u128| if self.norm_bias() { width.saturating_mul(2) } else { width };
        let sum = |parts: &[u128]| parts.iter().fold(0_u128, |sum, &part| sum.saturating_add(part));
        let up = if self.gated { m.saturating_mul(2) } else { m };
        let block = sum(&[
            linear(h.saturating_add(kv.saturating_mul(2)).saturating_mul(d), c, self.qkv_bias),
            linear(c, h.saturating_mul(d), self.out_bias),
            linear(up, c, self.mlp_bias),
            linear(c, m, self.mlp_bias),
            norm(c),
            if self.residual == Residual::ParallelOneNorm { 0 } else { norm(c) },
            match self.unused {
                Unused::None => 0,
                Unused::CrossAttention => sum(&[linear(c, c, true).saturating_mul(4), norm(c)]),
                Unused::QueryKeyNorms => norm(d).saturating_mul(2),
            },
        ]);
        sum(&[
            v.saturating_mul(c).saturating_mul(if self.tied_head { 1 } else { 2 }),
            (self.num_positions().unwrap_or(0) as u128).saturating_mul(c),
            if self.embedding_norm { norm(c) } else { 0 },
            block.saturating_mul(self.layers as u128),
            if self.final_norm() { norm(c) } else { 0 },
            if self.head_bias { v } else { 0 },
        ])
    }

    /// Whether norms have a bias.
    pub fn norm_bias(&self) -> bool {
        self.norm == NormKind::Layer
    }

    /// Whether a norm stands before the head.
    pub fn final_norm(&self) -> bool {
        self.residual != Residual::PostNorm
    }

    /// The attention of one block over rows of a length.
    pub fn attention_shape(&self, rows: usize, row_len: usize, layer: usize) -> attention::Shape {
        attention::Shape {
            b: rows,
            t: row_len,
            h: self.heads,
            kv_heads: self.kv_heads,
            d: self.head_size,
            scale: self.attention_scale(layer),
            causal: self.causal,
            window: self.window,
        }
    }

    /// The factor on the attention scores of one block.
    pub fn attention_scale(&self, layer: usize) -> f32 {
        let mut scale = 1.0;
        if self.scale_by_head_size {
            scale /= (self.head_size as f32).sqrt();
        }
        if self.scale_by_layer {
            scale /= (layer + 1) as f32;
        }
        scale
    }

    /// What ALiBi adds to the scaled scores of head `h` for key `j` (h, t); `None` without ALiBi.
    pub fn key_bias(&self, t: usize) -> Option<Vec<f32>> {
        let Position::Alibi { in_bf16 } = self.position else { return None };
        let round = |x: f32| if in_bf16 { to_bf16(x) } else { x };
        let scale = self.attention_scale(0);
        let biases = alibi_slopes(self.heads).into_iter().flat_map(|slope| {
            let slope = round(slope);
            (0..t).map(move |j| scale * round(slope * round(j as f32)))
        });
        Some(biases.collect())
    }

    /// The row length that rotary frequencies are for, when one row comes after another; 0 before the first.
    pub fn rotary_len(&self, row_len: usize, previous: usize) -> usize {
        match self.position {
            Position::Rotary(Rotary { scaling: RopeScaling::Dynamic { memory, .. }, .. }) => match memory {
                RopeMemory::LastLong if row_len <= self.context => previous.max(row_len),
                RopeMemory::Longest => previous.max(row_len),
                _ => row_len,
            },
            _ => row_len,
        }
    }

    /// Angle per position of each pair for a row of `t` tokens, and what positions are divided by; `None` without
    /// rotary embedding.
    pub fn rotary_frequencies(&self, t: usize) -> Option<(Vec<f32>, f32)> {
        let Position::Rotary(Rotary { size, base, scaling, .. }) = self.position else { return None };
        let (base, divisor) = match scaling {
            RopeScaling::Dynamic { factor, .. } if t > self.context => {
                let (factor, size) = (f64::from(factor), size as f64);
                let grown = factor * t as f64 / self.context as f64 - (factor - 1.0);
                ((f64::from(base) * grown.powf(size / (size - 2.0))) as f32, 1.0)
            }
            RopeScaling::Linear(factor) => (base, factor),
            _ => (base, 1.0),
        };
        let frequency = |i: usize| 1.0 / base.powf((2 * i) as f32 / size as f32);
        Some(((0..size / 2).map(frequency).collect(), divisor))
    }
}

/// The slopes of ALiBi: powers of `2^(-8 / n)` for `n` heads where `n` is a power of two; otherwise those of the power
/// below, and for the remaining heads every second one of the power above.
fn alibi_slopes(heads: usize) -> Vec<f32> {
    let below = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    let slope = |n: usize, power: usize| {
        let base = (2.0_f64).powf(-(2.0_f64).powf(-((n as f64).log2() - 3.0))) as f32;
        base.powf(power as f32)
    };
    let first = (1..=below).map(|power| slope(below, power));
    let rest = (0..heads - below).map(|i| slope(2 * below, 2 * i + 1));
    first.chain(rest).collect()
}

/// The nearest bfloat16, ties to even.
fn to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}
