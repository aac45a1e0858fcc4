//! Which parameters a model has, in the order of memory, and the flat buffer of them (or of their gradients) as named
//! windows.

use super::arch::{Arch, Residual, Unused};
use super::layout::Layout;
use crate::ops::{View, ViewMut};

/// A norm's parameters.
pub(crate) struct NormParts<P> {
    pub(crate) gain: P,
    pub(crate) bias: Option<P>,
}

/// A linear layer's parameters.
pub(crate) struct LinearParts<P> {
    pub(crate) weight: P,
    pub(crate) bias: Option<P>,
}

/// One block's parameters; `P` is a [`View`] or a [`ViewMut`].
pub(crate) struct BlockParts<P> {
    pub(crate) norm1: NormParts<P>,
    pub(crate) qkv: LinearParts<P>,
    pub(crate) out: LinearParts<P>,
    /// `None` if both branches share the first norm.
    pub(crate) norm2: Option<NormParts<P>>,
    pub(crate) up: LinearParts<P>,
    pub(crate) down: LinearParts<P>,
}

/// All parameters of a model that are used.
pub(crate) struct Parts<P> {
    pub(crate) token: P,
    pub(crate) position: Option<P>,
    pub(crate) embedding_norm: Option<NormParts<P>>,
    pub(crate) blocks: Vec<BlockParts<P>>,
    pub(crate) norm: Option<NormParts<P>>,
    /// `None` if the head shares the token embedding.
    pub(crate) head: Option<P>,
    pub(crate) head_bias: Option<P>,
}

impl<P> Parts<P> {
    /// Calls `add(name, shape)` for every parameter in the order of memory, unused ones (their names hold `.unused.`)
    /// included, and keeps what it returns.
    pub(super) fn build(arch: &Arch, add: &mut impl FnMut(&str, &[usize]) -> P) -> Self {
        let (v, c, m) = (arch.vocab_size, arch.width, arch.mlp_width);
        let norm = |add: &mut dyn FnMut(&str, &[usize]) -> P, name: &str, width: usize| NormParts {
            gain: add(&format!("{name}.gain"), &[width]),
            bias: arch.norm_bias().then(|| add(&format!("{name}.bias"), &[width])),
        };
        let linear =
            |add: &mut dyn FnMut(&str, &[usize]) -> P, name: &str, shape: [usize; 2], bias: bool| LinearParts {
                weight: add(&format!("{name}.weight"), &shape),
                bias: bias.then(|| add(&format!("{name}.bias"), &shape[..1])),
            };
        Self {
            token: add("embed.token", &[v, c]),
            position: arch.num_positions().map(|positions| add("embed.position", &[positions, c])),
            embedding_norm: arch.embedding_norm.then(|| norm(add, "embed.norm", c)),
            blocks: (0..arch.layers)
                .map(|i| {
                    let block = format!("blocks.{i}");
                    let parts = BlockParts {
                        norm1: norm(add, &format!("{block}.norm1"), c),
                        qkv: linear(add, &format!("{block}.attention.qkv"), [arch.qkv_width(), c], arch.qkv_bias),
                        out: linear(add, &format!("{block}.attention.out"), [c, arch.attention_width()], arch.out_bias),
                        norm2: (arch.residual != Residual::ParallelOneNorm)
                            .then(|| norm(add, &format!("{block}.norm2"), c)),
                        up: linear(add, &format!("{block}.mlp.up"), [arch.up_width(), c], arch.mlp_bias),
                        down: linear(add, &format!("{block}.mlp.down"), [c, m], arch.mlp_bias),
                    };
                    match arch.unused {
                        Unused::None => {}
                        Unused::CrossAttention => {
                            for name in ["key", "value", "query", "out"] {
                                linear(add, &format!("{block}.unused.{name}"), [c, c], true);
                            }
                            norm(add, &format!("{block}.unused.norm"), c);
                        }
                        Unused::QueryKeyNorms => {
                            for name in ["query_norm", "key_norm"] {
                                norm(add, &format!("{block}.unused.{name}"), arch.head_size);
                            }
                        }
                    }
                    parts
                })
                .collect(),
            norm: arch.final_norm().then(|| norm(add, "norm", c)),
            head: (!arch.tied_head).then(|| add("head.weight", &[v, c])),
            head_bias: arch.head_bias.then(|| add("head.bias", &[v])),
        }
    }
}

impl<'a> Parts<View<'a, f32>> {
    /// Windows of a flat buffer.
    pub(crate) fn of(arch: &Arch, layout: &Layout, flat: View<'a, f32>) -> Self {
        let mut params = layout.params().iter();
        Self::build(arch, &mut |_, _| {
            let param = params.next().expect("the layout is built by the same function");
            flat.window(param.range.clone())
        })
    }
}

impl<'a> Parts<ViewMut<'a, f32>> {
    /// Disjoint mutable windows of a flat buffer.
    pub(crate) fn of_mut(arch: &Arch, layout: &Layout, flat: ViewMut<'a, f32>) -> Self {
        let mut params = layout.params().iter();
        let mut rest = Some(flat);
        Self::build(arch, &mut |_, _| {
            let param = params.next().expect("the layout is built by the same function");
            let (window, tail) = rest.take().expect("put back below").split_at(param.range.len());
            rest = Some(tail);
            window
        })
    }
}
