//! Every family learns: fifty steps of AdamW on the embedded text lower the loss of each.

#![allow(clippy::unwrap_used)]

use serde_json::Map;

use super::config::{Sizes, new_arch};
use super::family::Family;
use super::layout::Layout;
use super::{Rows, backend, init};
use crate::data;
use crate::data::held_out::HeldOut;
use crate::optim::adamw::{self, AdamW};
use crate::recipe::{Backend, Optimizer};

#[test]
fn fifty_steps_on_the_sample_text_lower_the_loss_of_every_family() {
    const ROW_LEN: usize = 64;
    let text = data::open_sample(ROW_LEN).unwrap();
    let rows = HeldOut::read(&text, 40, ROW_LEN).unwrap().rows;
    let batches: Vec<Vec<u32>> = rows.chunks_exact(4).map(<[_]>::concat).collect();
    for family in Family::ALL {
        let sizes = Sizes {
            vocab_size: 50_257,
            context: ROW_LEN,
            width: 32,
            layers: 2,
            heads: 4,
            kv_heads: None,
            mlp_width: family.mlp_width(32),
        };
        let arch = new_arch(family, sizes, &Map::new()).unwrap();
        let layout = Layout::of(&arch);
        let mut params = vec![0.0; layout.len()];
        init::scratch(&arch, &layout, 1, &mut params);
        let optimizer = AdamW::new(&Optimizer::default(), layout.len(), &adamw::decayed_ranges(&layout));
        let [mut means, mut squares] = [(); 2].map(|()| vec![0.0; layout.len()]);
        let mut model = backend(Backend::Native, &arch);
        let mut losses = Vec::new();
        for step in 0..50 {
            let tokens = &batches[step % batches.len()];
            let mut gradients = vec![0.0; layout.len()];
            let rows = Rows::new(tokens, 4, ROW_LEN);
            losses.push(model.loss_and_gradients(&params, &mut gradients, rows, 1.0, None).unwrap());
            optimizer.step(step as u64, 3e-3, 1.0, &mut params, &gradients, &mut means, &mut squares);
        }
        // The same ten batches every time: from that of chance, ln 50,257 = 10.8, to well below.
        let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
        let (first, last) = (mean(&losses[..10]), mean(&losses[40..]));
        assert!(first > 7.0 && last < first - 1.0, "{family:?}: {losses:?}");
        // Of BART's unused parameters none has moved.
        let mut untouched = vec![0.0; layout.len()];
        init::scratch(&arch, &layout, 1, &mut untouched);
        for param in layout.params().iter().filter(|param| !param.is_used()) {
            assert!(params[param.range.clone()] == untouched[param.range.clone()], "{family:?}: {}", param.name);
        }
    }
}
