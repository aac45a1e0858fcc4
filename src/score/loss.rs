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

/// The loss of each list of tokens; `None` if an orderly end was asked for.
pub fn losses<T: AsRef<[u32]>>(model: &mut dyn Scorer, arch: &Arch, batches: &[T]) -> Result<Option<Vec<f32>>> {
    let mut losses = Vec::with_capacity(batches.len());
    let is_finished = each(model, arch, batches, &mut |loss| losses.push(loss))?;
    Ok(is_finished.then_some(losses))
}

/// Hands over the loss of each list of tokens in their order, as soon as it is known. Whether it came to the end: not if an
/// orderly end was asked for.
///
/// Consecutive rows of one length are computed together where the model has a use for that; on the CPU a row's loss has the
/// same bits alone and in company.
pub fn each<T: AsRef<[u32]>>(
    model: &mut dyn Scorer,
    arch: &Arch,
    batches: &[T],
    found: &mut dyn FnMut(f32),
) -> Result<bool> {
    // Size of the reference's causal mask.
    let mut mask = arch.context;
    let losses: Vec<Option<f32>> =
        batches.iter().map(|tokens| without_computing(arch, tokens.as_ref(), &mut mask)).collect();
    let mut next = 0;
    while next < batches.len() {
        if interrupt::requested() {
            return Ok(false);
        }
        if let Some(loss) = losses[next] {
            found(loss);
            next += 1;
            continue;
        }
        let row_len = batches[next].as_ref().len();
        let most = model.rows_at_once(row_len).max(1);
        let belongs = |i: &usize| losses[*i].is_none() && batches[*i].as_ref().len() == row_len;
        let end = (next..batches.len()).take(most).take_while(belongs).last().map_or(next + 1, |last| last + 1);
        let tokens: Vec<u32> = batches[next..end].iter().flat_map(|tokens| tokens.as_ref()).copied().collect();
        model.row_losses(Rows::new(&tokens, end - next, row_len))?.into_iter().for_each(&mut *found);
        next = end;
    }
    Ok(true)
}

/// The loss of a batch that needs no model. `mask` is the size of the reference's causal mask, which grows.
fn without_computing(arch: &Arch, tokens: &[u32], mask: &mut usize) -> Option<f32> {
    let is_readable = unreadable(arch, tokens).is_none();
    if arch.mask_doubles && tokens.len() > *mask && is_readable {
        *mask = mask.saturating_mul(2);
        if tokens.len() > *mask {
            return Some(f32::INFINITY);
        }
    }
    match tokens {
        _ if is_readable => None,
        &[id] if (id as usize) < arch.vocab_size && arch.unused != Unused::QueryKeyNorms => Some(f32::NAN),
        _ => Some(f32::INFINITY),
    }
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

    /// What a model is asked for, and in what company.
    struct Recording<'a> {
        model: Box<dyn Scorer + 'a>,
        at_once: usize,
        calls: Vec<(usize, usize)>,
    }

    impl Scorer for Recording<'_> {
        fn row_losses(&mut self, rows: Rows) -> Result<Vec<f32>> {
            self.calls.push((rows.num_rows, rows.row_len));
            self.model.row_losses(rows)
        }

        fn logits(&mut self, rows: Rows) -> Result<Vec<f32>> {
            self.model.logits(rows)
        }

        fn rows_at_once(&self, _row_len: usize) -> usize {
            self.at_once
        }
    }

    /// The sizes are such that products are cut differently for one row and for three.
    #[test]
    fn on_the_cpu_a_rows_loss_has_the_same_bits_alone_and_in_company() {
        for family in [Family::Gpt2, Family::Llama, Family::Bart] {
            let sizes =
                Sizes { vocab_size: 311, context: 96, width: 64, layers: 2, heads: 4, kv_heads: None, mlp_width: 96 };
            let arch = new_arch(family, sizes, &serde_json::Map::new()).unwrap().seen_by(Reference::default());
            let layout = Layout::of(&arch);
            let mut params = vec![0.0; layout.len()];
            init::scratch(&arch, &layout, 1, &mut params);
            let row = |number: u32, len: u32| (0..len).map(|i| (i * i * 7 + number * 131 + i % 5) % 311).collect();
            let mut rows: Vec<Vec<u32>> = (0..7).map(|number| row(number, 96)).collect();
            rows.insert(3, vec![5]); // Has a loss without being computed.
            rows.extend([row(8, 40), row(9, 40), row(10, 96)]);
            let score = |at_once| {
                let model = Scoring::on_cpu(Backend::Native).scorer(&arch, &params).unwrap();
                let mut model = Recording { model, at_once, calls: Vec::new() };
                let bits: Vec<u32> =
                    losses(&mut model, &arch, &rows).unwrap().unwrap().iter().map(|loss| loss.to_bits()).collect();
                (bits, model.calls)
            };
            let (alone, calls) = score(1);
            assert_eq!(calls, [[(1, 96); 7].as_slice(), &[(1, 40); 2], &[(1, 96)]].concat());
            let (together, calls) = score(3);
            assert_eq!(calls, [(3, 96), (3, 96), (1, 96), (2, 40), (1, 96)]);
            assert_eq!(alone, together, "{family:?}");
            assert!(f32::from_bits(alone[0]) != f32::from_bits(alone[1]), "{family:?}");
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
