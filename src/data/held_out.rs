//! The rows that the held-out loss is taken on, and the loss that a model without context would have there.
//!
//! The rows are packed from the held-out documents in their own order, as training rows are, and are the same in every
//! evaluation of every run of a recipe. Of long held-out text only the beginning is read; rows are spread evenly over it.
//!
//! A loss means little without something to compare it with. Here that is the *unigram cross-entropy*: what a model
//! would reach that knows only how often each token occurs. Two of them are given, on exactly the tokens that the
//! held-out loss predicts: one that counted the training text (a model that one could have), and one that counted these
//! tokens themselves, below which no model without context can be: it is the entropy of their frequencies.

use anyhow::Result;

use super::Opened;
use super::unigram::{Unigram, first_tokens};
use crate::error::input;

/// So many times the rows wanted are read for them to be spread over.
const SPREAD: usize = 4;

/// A fixed set of held-out rows.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldOut {
    /// Rows of equal length; fewer than wanted if there is not text enough.
    pub rows: Vec<Vec<u32>>,
    /// Entropy of the rows' own token frequencies in nats per predicted token: no model without context can be below it.
    pub unigram_entropy: f64,
    /// Cross-entropy in nats per predicted token under [`Unigram::of_training`].
    pub unigram_cross_entropy: f64,
    /// Part of the training text, as far as it was read for this, that is cut off its documents; about, by bytes.
    pub cut_off: f64,
}

impl HeldOut {
    /// Reads up to `num_rows` rows of `row_len` tokens.
    pub fn read(data: &Opened, num_rows: usize, row_len: usize) -> Result<Self> {
        let wanted = num_rows.max(1);
        let max_tokens = wanted.saturating_mul(row_len).saturating_mul(SPREAD);
        let (tokens, _) = first_tokens(&data.held_out, data, max_tokens)?;
        let available: Vec<&[u32]> = tokens.chunks_exact(row_len).collect();
        if available.is_empty() {
            return Err(input(format!(
                "the held-out documents have {} tokens together, fewer than one row of {row_len}: the held-out loss needs \
                 more text (name files by data.held_out, or lower data.held_out_every)",
                tokens.len()
            )));
        }
        let num_rows = wanted.min(available.len());
        let rows: Vec<Vec<u32>> =
            (0..num_rows).map(|row| available[row * available.len() / num_rows].to_vec()).collect();
        let targets = Unigram::of(rows.iter().flat_map(|row| &row[1..]));
        // Training text of nothing but ends of documents is refused here, before a run is begun, and not by its first step.
        let (training, cut_off) = Unigram::of_training(data)?;
        Ok(Self {
            rows,
            unigram_entropy: targets.cross_entropy(&targets),
            unigram_cross_entropy: training.cross_entropy(&targets),
            cut_off,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::packing::Packing;
    use super::super::sample::Sample;
    use super::super::stream::tests::Fixed;
    use super::*;
    use crate::error::exit_code;

    fn data(training: &[&str], held_out: &[&str]) -> Opened {
        let source = |texts: &[&str]| Fixed(texts.iter().map(|text| vec![text.to_string()]).collect(), false);
        let packing = Packing { max_document_tokens: Some(1024), shuffle_seed: Some(1), interleave: 1 };
        Opened::plain(source(training), source(held_out), packing).unwrap()
    }

    #[test]
    fn rows_are_spread_evenly_over_the_held_out_text_in_its_order() {
        // Tokens "0", "1", … "8" are 15 to 23; each document is two tokens with its end.
        let data = data(&["x"], &["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
        let firsts = |num_rows| {
            let held_out = HeldOut::read(&data, num_rows, 2).unwrap();
            held_out.rows.iter().map(|row| row[0] - 15).collect::<Vec<_>>()
        };
        assert_eq!(firsts(1), [0]);
        assert_eq!(firsts(2), [0, 4]);
        assert_eq!(firsts(4), [0, 2, 4, 6]);
        assert_eq!(firsts(100), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(
            HeldOut::read(&data, 2, 7).unwrap().rows,
            [[15, 50_256, 16, 50_256, 17, 50_256, 18], [50_256, 19, 50_256, 20, 50_256, 21, 50_256]]
        );
    }

    #[test]
    fn unigram_figures_are_those_worked_out_by_hand() {
        let held_out = HeldOut::read(&data(&["a a", "b"], &["1 a a a"]), 1, 5).unwrap();
        let (one, a, end) = (16, 257, 50_256);
        assert_eq!(held_out.rows, [[one, a, a, a, end]]);
        let own = -(0.75 * 0.75_f64.ln() + 0.25 * 0.25_f64.ln());
        assert!((held_out.unigram_entropy - own).abs() < 1e-12);
        // Training has 5 tokens: "a", " a", end, "b", end.
        let total = 5.0 + 50_257.0_f64;
        let training = -(0.75 * (2.0 / total).ln() + 0.25 * (3.0 / total).ln());
        assert!((held_out.unigram_cross_entropy - training).abs() < 1e-12);
    }

    #[test]
    fn too_little_held_out_text_is_refused() {
        for texts in [&[][..], &["a b"]] {
            let error = HeldOut::read(&data(&["x"], texts), 4, 8).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(format!("{error}").contains("fewer than one row of 8"), "{error}");
        }
    }

    #[test]
    fn the_sample_texts_unigram_figures_stay_what_they_are() {
        let (training, held_out) = Sample::open().unwrap();
        let packing = Packing { max_document_tokens: Some(1024), shuffle_seed: None, interleave: 1 };
        let data = Opened::plain(training, held_out, packing).unwrap();
        let held_out = HeldOut::read(&data, 32, 1024).unwrap();
        assert_eq!(held_out.rows.len(), 32);
        assert!((held_out.unigram_entropy - 6.221_592).abs() < 1e-5, "{}", held_out.unigram_entropy);
        let training = held_out.unigram_cross_entropy;
        assert!((training - 6.641_784).abs() < 1e-5, "{training}");
    }
}
