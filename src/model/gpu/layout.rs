//! Where each parameter lies on the device: as in [`Layout`], but each begins at a multiple of [`DECAY_GROUP`] elements, and what
//! has a row for each token has rows up to a multiple of [`VOCABULARY_MULTIPLE`]. The elements between are zero and stay
//! zero: their gradients are.
//!
//! Parameters whose gradients every pass adds to (vectors, and embeddings as inputs) come first, so that these are zeroed
//! together; those whose gradients a matrix product can overwrite follow.

use std::ops::Range;

use anyhow::Result;
use bytemuck::Pod;

use crate::gpu::adamw::DECAY_GROUP;
use crate::gpu::cross_entropy::VOCABULARY_MULTIPLE;
use crate::gpu::{Buffer, Gpu, View, ViewMut};
use crate::model::arch::Arch;
use crate::model::layout::{Layout, Param};
use crate::model::parts::Parts;

/// The device's order of a model's parameters.
pub(crate) struct DeviceLayout {
    /// In the host's order.
    params: Vec<Placed>,
    /// Elements whose gradients every pass adds to, at the beginning.
    num_added_to: usize,
    len: usize,
}

/// One parameter.
struct Placed {
    /// Its place in the host's flat buffer.
    host: Range<usize>,
    /// Its place on the device, padding rows included.
    device: Range<usize>,
}

impl DeviceLayout {
    pub(crate) fn of(layout: &Layout) -> Self {
        let is_tied = layout.get("head.weight").is_none();
        let is_overwritten = |param: &Param| match param.name.as_str() {
            "embed.token" => is_tied, // by the head's product, before the embedding adds to it
            "embed.position" => false,
            _ => param.is_matrix() && param.is_used(),
        };
        let padded = |param: &Param| device_len(param).next_multiple_of(DECAY_GROUP);
        let num_added_to = layout.params().iter().filter(|param| !is_overwritten(param)).map(padded).sum();
        let (mut added_to, mut overwritten) = (0, num_added_to);
        let place = |param: &Param| {
            let next = if is_overwritten(param) { &mut overwritten } else { &mut added_to };
            let start = *next;
            *next += padded(param);
            Placed { host: param.range.clone(), device: start..start + device_len(param) }
        };
        let params = layout.params().iter().map(place).collect();
        Self { params, num_added_to, len: overwritten }
    }

    /// Elements of a flat buffer on the device.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Elements of the gradients to zero before a step's first pass, which overwrites the others.
    pub(crate) fn added_to(&self) -> Range<usize> {
        0..self.num_added_to
    }

    /// Windows of a flat buffer.
    pub(super) fn parts<'a, T>(&self, arch: &Arch, flat: View<'a, T>) -> Parts<View<'a, T>> {
        let mut params = self.params.iter();
        Parts::build(arch, &mut |_, _| flat.window(params.next().expect("built by the same function").device.clone()))
    }

    /// Disjoint mutable windows of a flat buffer.
    pub(super) fn parts_mut<'a, T>(&self, arch: &Arch, flat: ViewMut<'a, T>) -> Parts<ViewMut<'a, T>> {
        let mut params = self.params.iter();
        let (added_to, overwritten) = flat.split_at(self.num_added_to);
        let mut rests = [Some((added_to, 0)), Some((overwritten, self.num_added_to))];
        Parts::build(arch, &mut |_, _| {
            let device = &params.next().expect("built by the same function").device;
            let rest = &mut rests[usize::from(device.start >= self.num_added_to)];
            let (flat, start) = rest.take().expect("put back below");
            let (_, flat) = flat.split_at(device.start - start);
            let (window, tail) = flat.split_at(device.len());
            *rest = Some((tail, device.end));
            window
        })
    }

    /// The host's flat buffer on the device.
    pub(crate) fn upload<T: Pod>(&self, gpu: &Gpu, to: &mut Buffer<T>, from: &[T]) {
        for Placed { host, device } in &self.params {
            gpu.upload(to.view_mut().window(device.start..device.start + host.len()), &from[host.clone()]);
        }
    }

    /// The device's flat buffer on the host.
    pub(crate) fn download<T: Pod>(&self, gpu: &Gpu, to: &mut [T], from: &Buffer<T>) -> Result<()> {
        for Placed { host, device } in &self.params {
            let window = from.view().window(device.start..device.start + host.len());
            gpu.download(&mut to[host.clone()], window)?;
        }
        Ok(())
    }

    /// Whether weight decay applies, for each [`DECAY_GROUP`] elements; `decayed` are ranges of the host's flat buffer that
    /// hold whole parameters.
    pub(crate) fn decays(&self, decayed: &[Range<usize>]) -> Vec<u8> {
        let mut decays = vec![0; self.len / DECAY_GROUP];
        for Placed { host, device } in &self.params {
            let is_decayed = decayed.iter().any(|range| range.contains(&host.start));
            decays[device.start / DECAY_GROUP..device.end.div_ceil(DECAY_GROUP)].fill(u8::from(is_decayed));
        }
        decays
    }
}

/// Elements of a parameter on the device.
fn device_len(param: &Param) -> usize {
    let len: usize = param.range.len();
    match param.name.as_str() {
        "embed.token" | "head.weight" | "head.bias" => {
            let v = param.shape[0];
            len / v * v.next_multiple_of(VOCABULARY_MULTIPLE)
        }
        _ => len,
    }
}

/// Elements of a flat buffer on the device, without a layout; saturating.
pub(super) fn device_len_of(arch: &Arch) -> u128 {
    let mut total = 0_u128;
    Parts::<()>::build(arch, &mut |name, shape| {
        let rows = shape[0] as u128;
        let rows = match name {
            "embed.token" | "head.weight" | "head.bias" => rows.next_multiple_of(VOCABULARY_MULTIPLE as u128),
            _ => rows,
        };
        let len = shape[1..].iter().fold(rows, |len, &size| len.saturating_mul(size as u128));
        total = total
            .saturating_add(len.saturating_add(DECAY_GROUP as u128 - 1) / DECAY_GROUP as u128 * DECAY_GROUP as u128);
    });
    total
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gpu::testing;
    use crate::model::arch::Unused;
    use crate::ops::testing::values;
    use crate::optim::adamw::decayed_ranges;

    #[test]
    fn what_was_uploaded_is_downloaded_and_padding_is_zero() {
        let arch = Arch { tied_head: false, head_bias: true, ..Arch::gpt2(300, 7, 24, 2, 2) };
        let layout = Layout::of(&arch);
        let device = DeviceLayout::of(&layout);
        assert_eq!(device.len() as u128, device_len_of(&arch));
        let params = values(1, layout.len());
        for gpu in testing::gpus().into_iter().flatten() {
            let mut buffer = gpu.zeros::<f32>(device.len()).unwrap();
            device.upload(&gpu, &mut buffer, &params);
            let mut back = vec![f32::NAN; layout.len()];
            device.download(&gpu, &mut back, &buffer).unwrap();
            assert_eq!(back, params);
            let parts = device.parts(&arch, buffer.view());
            let head = gpu.to_vec(parts.head.unwrap()).unwrap();
            assert_eq!(head.len(), 384 * 24);
            assert_eq!(head[..300 * 24], params[layout.get("head.weight").unwrap().range.clone()]);
            assert!(head[300 * 24..].iter().all(|&x| x == 0.0));
            assert!(parts.blocks.iter().all(|block| block.down.weight.address() % 256 == 0));
            let [head, gain] = [parts.head.unwrap().address(), parts.norm.unwrap().gain.address()];
            let mutable = device.parts_mut(&arch, buffer.view_mut());
            assert_eq!([mutable.head.unwrap().address(), mutable.norm.unwrap().gain.address()], [head, gain]);
        }
    }

    #[test]
    fn gradients_that_no_product_overwrites_lie_together() {
        let tied = Arch { unused: Unused::CrossAttention, ..Arch::gpt2(300, 7, 24, 2, 2) };
        for arch in [Arch { tied_head: false, head_bias: true, ..tied.clone() }, tied] {
            let layout = Layout::of(&arch);
            let device = DeviceLayout::of(&layout);
            let overwritten = ["head.weight", "qkv.weight", "attention.out.weight", "up.weight", "down.weight"];
            let mut ends = [0, device.added_to().end];
            for (param, placed) in layout.params().iter().zip(&device.params) {
                let is_overwritten = overwritten.iter().any(|end| param.name.ends_with(end))
                    || arch.tied_head && param.name == "embed.token";
                // Neither overlaps with what came before it, nor leaves more than the alignment asks for.
                let end = &mut ends[usize::from(is_overwritten)];
                assert_eq!(placed.device.start, end.next_multiple_of(DECAY_GROUP), "{}", param.name);
                *end = placed.device.end;
            }
            assert_eq!(ends.map(|end| end.next_multiple_of(DECAY_GROUP)), [device.added_to().end, device.len()]);
        }
    }

    #[test]
    fn matrices_decay_and_vectors_do_not() {
        let arch = Arch::gpt2(300, 7, 24, 1, 2);
        let layout = Layout::of(&arch);
        let device = DeviceLayout::of(&layout);
        let decays = device.decays(&decayed_ranges(&layout));
        for (param, placed) in layout.params().iter().zip(&device.params) {
            let groups = &decays[placed.device.start / DECAY_GROUP..placed.device.end.div_ceil(DECAY_GROUP)];
            assert!(groups.iter().all(|&decays| (decays == 1) == param.is_matrix()), "{}", param.name);
        }
    }
}
