//! Pages drawn at random and cut into rows as a validator does: from the held-out documents ([`Pages`]), or, as validators
//! do, from the whole data set ([`rows::pages`](super::rows::pages)).
//!
//! A page is a run of consecutive documents from anywhere: it may begin at every document, pages may overlap, and the
//! same one may come twice. The documents of all pages of a step, each cut to the rules' length and ended by an
//! end-of-text, are joined and cut into rows; what is shorter than a row is left over. Of much held-out text only the
//! beginning is used, tokenized once.

use std::ops::ControlFlow;

use anyhow::{Context, Result};

use super::Opened;
use super::order::SplitMix64;
use crate::error::input;

/// Held-out documents that pages are drawn from: a hundred pages and tens of megabytes at most.
const MAX_DOCUMENTS: usize = 10_000;

/// Where the pages of a validator's steps come from.
pub trait PageSource: Send + Sync {
    /// Pages' worth of documents: how many pages there are that share nothing.
    fn num_distinct(&self) -> u64;

    /// Draws the pages of several steps, one for each seed: the same ones for the same seed. Each has one row at least.
    ///
    /// # Errors
    /// Pages that come from afar do not.
    fn draws(&self, num_pages: usize, seeds: &[u64]) -> Result<Vec<Draw>>;

    /// Draws the pages of one step.
    fn draw(&self, num_pages: usize, seed: u64) -> Result<Draw> {
        self.draws(num_pages, &[seed])?.pop().context("a seed has drawn no pages")
    }
}

/// Held-out documents to draw pages from, as tokens.
pub struct Pages {
    tokens: Vec<u32>,
    /// Where each document ends in `tokens`.
    ends: Vec<usize>,
    page_documents: usize,
    row_len: usize,
}

/// The pages of one step and the rows they were cut into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draw {
    /// The first document of each page.
    pub offsets: Vec<usize>,
    /// Rows of equal length.
    pub rows: Vec<Vec<u32>>,
    /// For each row the page in which it begins, as an index into `offsets`.
    pub row_pages: Vec<usize>,
}

impl Draw {
    /// Cuts the tokens of pages into rows; `None` if they have none.
    pub(super) fn of<P: AsRef<[u32]>>(offsets: Vec<usize>, pages: &[P], row_len: usize) -> Option<Self> {
        let mut joined = Vec::new();
        let mut page_ends = Vec::with_capacity(pages.len());
        for page in pages {
            joined.extend_from_slice(page.as_ref());
            page_ends.push(joined.len());
        }
        let rows: Vec<Vec<u32>> = joined.chunks_exact(row_len).map(<[u32]>::to_vec).collect();
        let page_at = |row| page_ends.partition_point(|&end| end <= row * row_len);
        let row_pages = (0..rows.len()).map(page_at).collect();
        (!rows.is_empty()).then_some(Self { offsets, rows, row_pages })
    }
}

impl Pages {
    /// Reads the held-out documents. Rows will have `row_len` tokens, the length at which documents are cut as well.
    pub fn read(data: &Opened, page_documents: usize, row_len: usize) -> Result<Self> {
        let (mut tokens, mut ends) = (Vec::new(), Vec::new());
        data.held_out.each_document(&data.reading, Some(row_len), |document| {
            tokens.extend_from_slice(document.tokens);
            ends.push(tokens.len());
            if ends.len() == MAX_DOCUMENTS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if tokens.len() < row_len {
            return Err(input(format!(
                "the held-out documents have {} tokens together, fewer than one row of {row_len}: scoring needs more text",
                tokens.len()
            )));
        }
        Ok(Self { tokens, ends, page_documents, row_len })
    }

    /// Pages without a whole row among them are drawn anew, so that there is always one.
    fn draw_by(&self, num_pages: usize, seed: u64) -> Draw {
        let mut random = SplitMix64::new(seed);
        let num_offsets = self.ends.len().saturating_sub(self.page_documents) as u64 + 1;
        let page = |&first: &usize| {
            let last = (first + self.page_documents).min(self.ends.len()) - 1;
            let start = first.checked_sub(1).map_or(0, |before| self.ends[before]);
            &self.tokens[start..self.ends[last]]
        };
        // All documents together have a row; but a single page may have too few tokens, and then so may its redraws.
        for _ in 0..100 {
            let offsets: Vec<usize> = (0..num_pages).map(|_| (random.next() % num_offsets) as usize).collect();
            let pages: Vec<&[u32]> = offsets.iter().map(page).collect();
            if let Some(draw) = Draw::of(offsets, &pages, self.row_len) {
                return draw;
            }
        }
        Draw { offsets: vec![0], rows: vec![self.tokens[..self.row_len].to_vec()], row_pages: vec![0] }
    }
}

impl PageSource for Pages {
    fn num_distinct(&self) -> u64 {
        (self.ends.len() / self.page_documents) as u64
    }

    fn draws(&self, num_pages: usize, seeds: &[u64]) -> Result<Vec<Draw>> {
        Ok(seeds.iter().map(|&seed| self.draw_by(num_pages, seed)).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::packing::Packing;
    use super::super::stream::tests::Fixed;
    use super::*;

    /// Tokens "0", "1", … are 15, 16, …; each document is one of them and its end.
    fn data(texts: &[&str]) -> Opened {
        let source = |texts: &[&str]| Fixed(texts.iter().map(|text| vec![text.to_string()]).collect(), false);
        let packing = Packing { max_document_tokens: Some(1024), shuffle_seed: Some(1), interleave: 1 };
        Opened::plain(source(&["x"]), source(texts), packing).unwrap()
    }

    #[test]
    fn pages_of_a_step_are_joined_and_cut_and_the_tail_is_dropped() {
        let pages = Pages::read(&data(&["0", "1", "2", "3", "4"]), 3, 4).unwrap();
        let draw = pages.draw_by(2, 7);
        let joined: Vec<u32> = draw
            .offsets
            .iter()
            .flat_map(|&first| (first..first + 3).flat_map(|document| [15 + document as u32, 50_256]))
            .collect();
        assert_eq!(draw.rows, [joined[..4].to_vec(), joined[4..8].to_vec(), joined[8..12].to_vec()]);
        // A page has 6 tokens: rows begin at the tokens 0, 4 and 8.
        assert_eq!(draw.row_pages, [0, 0, 1]);
        assert_eq!(pages.draw_by(4, 7).row_pages, [0, 0, 1, 2, 2, 3]);
        assert_eq!(pages.draw_by(1, 3).rows.len(), 1);
    }

    #[test]
    fn a_page_may_begin_at_every_document_that_leaves_room_for_it() {
        let pages = Pages::read(&data(&["0", "1", "2", "3", "4"]), 3, 2).unwrap();
        let mut seen: Vec<usize> = (0..200).map(|seed| pages.draw_by(1, seed).offsets[0]).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [0, 1, 2]);
        assert_eq!(pages.draw_by(4, 9), pages.draw_by(4, 9));
        assert_ne!(pages.draw_by(4, 9).offsets, pages.draw_by(4, 10).offsets);
    }

    #[test]
    fn documents_are_cut_and_a_page_larger_than_the_text_takes_all_of_it() {
        let pages = Pages::read(&data(&["0 0 0 0 0", "1"]), 100, 2).unwrap();
        let draw = pages.draw_by(1, 1);
        assert_eq!((draw.offsets, draw.rows.len()), (vec![0], 2));
        assert!(Pages::read(&data(&["0"]), 100, 3).err().unwrap().to_string().contains("fewer than one row of 3"));
    }
}
