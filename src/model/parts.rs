//! The flat buffer of parameters (or of their gradients) as named windows.

use super::arch::Arch;
use super::layout::Layout;
use crate::ops::{View, ViewMut};

/// One block's parameters; `P` is a [`View`] or a [`ViewMut`].
pub(crate) struct BlockParts<P> {
    pub(crate) norm1_gain: P,
    pub(crate) norm1_bias: P,
    pub(crate) qkv_weight: P,
    pub(crate) qkv_bias: P,
    pub(crate) out_weight: P,
    pub(crate) out_bias: P,
    pub(crate) norm2_gain: P,
    pub(crate) norm2_bias: P,
    pub(crate) up_weight: P,
    pub(crate) up_bias: P,
    pub(crate) down_weight: P,
    pub(crate) down_bias: P,
}

/// All parameters of a model.
pub(crate) struct Parts<P> {
    pub(crate) token: P,
    pub(crate) position: P,
    pub(crate) blocks: Vec<BlockParts<P>>,
    pub(crate) norm_gain: P,
    pub(crate) norm_bias: P,
    /// `None` if the head shares the token embedding.
    pub(crate) head: Option<P>,
}

impl<P> Parts<P> {
    /// Takes windows in the order of [`Layout::of`].
    fn take(arch: &Arch, mut next: impl FnMut() -> P) -> Self {
        Self {
            token: next(),
            position: next(),
            blocks: (0..arch.layers)
                .map(|_| BlockParts {
                    norm1_gain: next(),
                    norm1_bias: next(),
                    qkv_weight: next(),
                    qkv_bias: next(),
                    out_weight: next(),
                    out_bias: next(),
                    norm2_gain: next(),
                    norm2_bias: next(),
                    up_weight: next(),
                    up_bias: next(),
                    down_weight: next(),
                    down_bias: next(),
                })
                .collect(),
            norm_gain: next(),
            norm_bias: next(),
            head: (!arch.tied_head).then(next),
        }
    }
}

impl<'a> Parts<View<'a, f32>> {
    /// Windows of a flat buffer.
    pub(crate) fn of(arch: &Arch, layout: &Layout, flat: View<'a, f32>) -> Self {
        let mut params = layout.params().iter();
        Self::take(arch, || {
            let param = params.next().expect("Layout::of lists what Parts::take takes");
            flat.window(param.range.clone())
        })
    }
}

impl<'a> Parts<ViewMut<'a, f32>> {
    /// Disjoint mutable windows of a flat buffer.
    pub(crate) fn of_mut(arch: &Arch, layout: &Layout, flat: ViewMut<'a, f32>) -> Self {
        let mut params = layout.params().iter();
        let mut rest = Some(flat);
        Self::take(arch, || {
            let param = params.next().expect("Layout::of lists what Parts::take takes");
            let (window, tail) = rest.take().expect("put back below").split_at(param.range.len());
            rest = Some(tail);
            window
        })
    }
}
