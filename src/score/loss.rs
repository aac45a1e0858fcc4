//! The losses of a model on batches, as the reference's `compute_losses` finds them.
//!
//! A batch is one row of tokens; its loss is the mean cross-entropy of each token after the first, in f32. A batch that
//! the model cannot read (a token outside its vocabulary, more tokens than positions, no token at all) has an infinite
//! loss, and the next one goes on; a row of one token has nothing to predict, and PyTorch's mean of nothing is not a
//! number.

use anyhow::Result;

use crate::interrupt;
use crate::model::Scorer;
use crate::model::arch::{Arch, Unused};
use crate::model::{QUERY_KEY_NORMS, Rows};

/// The loss of each list of tokens.
pub fn losses(model: &mut dyn Scorer, arch: &Arch, batches: &[Vec<u32>]) -> Result<Option<Vec<f32>>> {
    let mut losses = Vec::with_capacity(batches.len());
    // Size of the reference's causal mask.
    let mut mask = arch.context;
    for tokens in batches {
        if interrupt::requested() {
            return Ok(None);
        }
        if arch.mask_doubles && tokens.len() > mask && unreadable(arch, tokens).is_none() {
            mask = mask.saturating_mul(2);
            if tokens.len() > mask {
                losses.push(f32::INFINITY);
                continue;
            }
        }
        losses.push(match (unreadable(arch, tokens), tokens.as_slice()) {
            (None, _) => model.row_losses(Rows::new(tokens, 1, tokens.len()))?[0],
            (Some(_), &[id]) if (id as usize) < arch.vocab_size && arch.unused != Unused::QueryKeyNorms => f32::NAN,
            (Some(_), _) => f32::INFINITY,
        });
    }
    Ok(Some(losses))
}

/// Why a batch has no finite loss, in words.
pub fn unreadable(arch: &Arch, tokens: &[u32]) -> Option<String> {
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= arch.vocab_size) {
        return Some(format!("token {id} lies outside the model's vocabulary of {}", arch.vocab_size));
    }
    if arch.unused == Unused::QueryKeyNorms {
        return Some(QUERY_KEY_NORMS.to_owned());
    }
    match tokens.len() {
        0 => Some("there is no token".to_owned()),
        1 => Some("a single token leaves nothing to predict".to_owned()),
        len => {
            let longest = arch.max_row_len().filter(|longest| len > *longest);
            longest.map(|longest| format!("{len} tokens are more than the model's {longest} positions"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::arch::Reference;
    use crate::model::config::{Sizes, new_arch};
    use crate::model::family::Family;
    use crate::model::init;
    use crate::model::layout::Layout;
    use crate::model::scorer::Scoring;
    use crate::recipe::Backend;

    #[test]
    fn a_batch_that_cannot_be_read_is_infinite_and_the_next_one_is_scored() {
        let arch = Arch::gpt2(10, 4, 8, 1, 2);
        let layout = Layout::of(&arch);
        let mut params = vec![0.0; layout.len()];
        init::scratch(&arch, &layout, 1, &mut params);
        let batches = [vec![1, 2, 3], vec![1, 10], vec![1, 2, 3, 4, 5], vec![], vec![7], vec![1, 2, 3], vec![11]];
        for backend in [Backend::Native, Backend::Candle] {
            let mut model = Scoring::on_cpu(backend).scorer(&arch, &params).unwrap();
            let losses = losses(model.as_mut(), &arch, &batches).unwrap().unwrap();
            assert!((losses[0] - 10f32.ln()).abs() < 0.1);
            assert_eq!(losses[1..4], [f32::INFINITY; 3]);
            assert!(losses[4].is_nan());
            assert_eq!(losses[5], losses[0]);
            assert_eq!(losses[6], f32::INFINITY);
        }
    }

    /// The mask doubles once a row, so that a row of more than twice its size fails, and the next one of that length may not.
    #[test]
    fn a_llamas_row_beyond_twice_its_context_is_infinite_until_the_mask_has_grown() {
        let sizes = Sizes { vocab_size: 10, context: 4, width: 8, layers: 1, heads: 2, kv_heads: None, mlp_width: 8 };
        let arch = new_arch(Family::Llama, sizes, &serde_json::Map::new()).unwrap();
        let layout = Layout::of(&arch);
        let mut params = vec![0.0; layout.len()];
        init::scratch(&arch, &layout, 1, &mut params);
        let finite = |reference: Reference, lens: &[usize]| {
            let arch = arch.seen_by(reference);
            let batches: Vec<Vec<u32>> = lens.iter().map(|&len| (0..len as u32).map(|i| i % 10).collect()).collect();
            let mut model = Scoring::on_cpu(Backend::Native).scorer(&arch, &params).unwrap();
            let losses = losses(model.as_mut(), &arch, &batches).unwrap().unwrap();
            losses.into_iter().map(f32::is_finite).collect::<Vec<_>>()
        };
        assert_eq!(finite(Reference::default(), &[4, 9, 9, 17, 16]), [true, false, true, true, true]);
        assert_eq!(finite(Reference::default(), &[8, 16, 33, 33]), [true, true, false, true]);
        assert_eq!(finite(Reference::None, &[33, 9]), [true, true]);
        assert_eq!(arch.longest_scored_row(), Some(8));
    }
}
