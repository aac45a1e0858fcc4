//! Where each parameter lies in the flat buffer that holds them all.
//!
//! Weights, gradients and both moments are one flat `f32` buffer each, with the same layout: one optimizer pass, one
//! norm, one reduction. A matrix that maps `i` inputs to `o` outputs is stored as `(o, i)`, row-major, whatever
//! Hugging Face's layout is; `model/weights.rs` converts while reading and writing.

use std::ops::Range;

use super::arch::Arch;
use super::parts::Parts;

/// One parameter: its name (ours), its shape and its place in the flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Our name, such as `blocks.3.attention.qkv.weight`.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Elements of the flat buffer that hold it.
    pub range: Range<usize>,
}

impl Param {
    /// Whether it is a matrix: embeddings too, not gains and biases.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() >= 2
    }

    /// Whether anything depends on it. What is not used has no gradient and is never changed.
    pub fn is_used(&self) -> bool {
        !self.name.contains(".unused.")
    }

    /// Whether weight decay applies: matrices only, and only used ones.
    pub fn decays(&self) -> bool {
        self.is_matrix() && self.is_used()
    }
}

/// All parameters of a model in the order in which they lie in the flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    params: Vec<Param>,
    len: usize,
}

impl Layout {
    /// The layout of an architecture. Names: `embed.token` (v, c), `embed.position` (positions, c), per block
    /// `blocks.I.norm1.{gain,bias}`, `blocks.I.attention.qkv.{weight,bias}` ((h + 2 kv) d, c),
    /// `blocks.I.attention.out.{weight,bias}` (c, h d), `blocks.I.norm2.{gain,bias}`, `blocks.I.mlp.up.{weight,bias}` (m, c;
    /// gate then up, 2m, if gated), `blocks.I.mlp.down.{weight,bias}` (c, m), then `norm.{gain,bias}` and, unless tied,
    /// `head.weight` (v, c) and its bias; each as far as the architecture has it (`Parts::build`).
    pub fn of(arch: &Arch) -> Self {
        let mut layout = Self { params: Vec::new(), len: 0 };
        Parts::build(arch, &mut |name, shape| layout.push(name, shape));
        layout
    }

    fn push(&mut self, name: &str, shape: &[usize]) {
        let len: usize = shape.iter().product();
        let range = self.len..self.len + len;
        self.params.push(Param { name: name.to_owned(), shape: shape.to_vec(), range });
        self.len += len;
    }

    /// Number of parameters, a tied head counted once: what the subnet's limit is about.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no parameter at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The parameters in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The parameter of that name.
    pub fn get(&self, name: &str) -> Option<&Param> {
        self.params.iter().find(|param| param.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts published for GPT-2 small, medium and large.
    #[test]
    fn counts_the_parameters_of_gpt2() {
        for (width, layers, heads, expected) in
            [(768, 12, 12, 124_439_808), (1024, 24, 16, 354_823_168), (1280, 36, 20, 774_030_080)]
        {
            assert_eq!(Layout::of(&Arch::gpt2(50_257, 1024, width, layers, heads)).len(), expected);
        }
    }
}
