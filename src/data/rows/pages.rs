//! Pages of the data set as validators draw them: a hundred rows from anywhere, not aligned, the same one twice if it falls
//! so. The documents of all pages of a step are joined in order and cut into rows; the tail is left over.

use std::sync::Arc;

use anyhow::Result;

use super::page::Texts;
use super::reader::Reader;
use super::{Options, REFINEDWEB_ROWS};
use crate::clock::{Clock, SystemClock};
use crate::data::order::SplitMix64;
use crate::data::packing::Packing;
use crate::data::pages::{Draw, PageSource};
use crate::data::set_aside::{STRETCH_ROWS, SetAside};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Failure, input};
use crate::hub::huggingface::PAGE_ROWS;
use crate::hub::progress::Observer;
use crate::recipe::{self, SourceKind};

/// The reference's tokenizer cuts documents at this, whatever the length of rows.
const MAX_DOCUMENT_TOKENS: usize = 1_024;

/// Where pages are drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The whole data set, as by validators.
    Anywhere,
    /// Stretches that training leaves out: a model that was trained on the rest has never seen them.
    SetAside,
}

impl Reach {
    /// For a model that a recipe has trained. What was written as tokens may come from the data set, too.
    pub fn of_candidate(data: &recipe::Data) -> Self {
        match data.source {
            SourceKind::Sample | SourceKind::Files => Self::Anywhere,
            SourceKind::RefinedwebRows | SourceKind::RefinedwebParquet | SourceKind::Tokens => Self::SetAside,
        }
    }
}

/// The pages of a data set's viewer.
pub struct ViewerPages {
    reader: Reader,
    tokenizer: Arc<Tokenizer>,
    row_len: usize,
    packing: Packing,
    at_once: usize,
    offsets: Offsets,
}

impl ViewerPages {
    /// Opens those of a recipe whose `score.source` they are.
    pub fn of_recipe(
        data: &recipe::Data,
        tokenizer: Arc<Tokenizer>,
        row_len: usize,
        reach: Reach,
        observer: Observer,
    ) -> Result<Self> {
        Self::open(&Options::of(data, Arc::default(), observer)?, tokenizer, row_len, data.readers, reach)
    }

    /// Opens them. Rows will have `row_len` tokens; so many pages are fetched at once. RefinedWeb at its own address is not
    /// asked yet.
    ///
    /// # Errors
    /// The viewer does not answer, or says that there is no such data set; there is no page to draw.
    pub fn open(
        options: &Options,
        tokenizer: Arc<Tokenizer>,
        row_len: usize,
        at_once: usize,
        reach: Reach,
    ) -> Result<Self> {
        Self::open_at(options, tokenizer, row_len, at_once, reach, Arc::new(SystemClock))
    }

    pub(super) fn open_at(
        options: &Options,
        tokenizer: Arc<Tokenizer>,
        row_len: usize,
        at_once: usize,
        reach: Reach,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let reader = options.reader(clock)?;
        let is_refinedweb = options.is_refinedweb();
        let offsets = match reach {
            Reach::Anywhere => Offsets::anywhere(is_refinedweb, reader.num_rows),
            Reach::SetAside => Offsets::set_aside(options.set_aside, reader.num_rows),
        };
        if offsets.count() == 0 {
            let part = if reach == Reach::SetAside { "that are set aside" } else { "together" };
            return Err(input(format!(
                "{} has {} rows, and no {PAGE_ROWS} {part}: there is no page to score models on",
                options.dataset, reader.num_rows
            )));
        }
        Ok(Self::over(reader, offsets, tokenizer, row_len, at_once))
    }

    pub(super) fn over(
        reader: Reader,
        offsets: Offsets,
        tokenizer: Arc<Tokenizer>,
        row_len: usize,
        at_once: usize,
    ) -> Self {
        // With rows longer than the reference's tokenizer allows, validators used another one, which allows more.
        let max_document_tokens = Some(row_len.max(MAX_DOCUMENT_TOKENS));
        let packing = Packing { max_document_tokens, shuffle_seed: None, interleave: 1 };
        Self { reader, tokenizer, row_len, packing, at_once, offsets }
    }

    /// The tokens of each page: its documents, each cut and ended by an end-of-text.
    pub(super) fn tokens(&self, offsets: &[u64]) -> Result<Vec<Vec<u32>>> {
        self.reader.each(offsets, self.at_once, |offset, texts| self.pack(offset, texts))
    }

    fn pack(&self, offset: u64, texts: Texts) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        for (row, text) in std::iter::zip(offset.., texts) {
            let Some(text) = text else {
                let Reader { viewer, column, .. } = &self.reader;
                return Err(Failure::Unreachable(format!(
                    "row {row} of {} has no text in its column `{column}`, and validators cannot read the page from row \
                     {offset} on either; other pages (another --seed) may do",
                    viewer.dataset()
                ))
                .into());
            };
            self.packing.pack(&self.tokenizer, &text, &mut tokens);
        }
        Ok(tokens)
    }
}

impl PageSource for ViewerPages {
    fn num_distinct(&self) -> u64 {
        match self.offsets {
            Offsets::Anywhere { num_rows, .. } => num_rows / PAGE_ROWS,
            Offsets::SetAside { rule, num_rows } => rule.count_before(num_rows) / PAGE_ROWS,
        }
    }

    fn draws(&self, num_pages: usize, seeds: &[u64]) -> Result<Vec<Draw>> {
        let of_seed = |&seed: &u64| {
            let mut random = SplitMix64::new(seed);
            (0..num_pages).map(|_| self.offsets.at(random.next() % self.offsets.count())).collect::<Vec<_>>()
        };
        let offsets: Vec<u64> = seeds.iter().flat_map(of_seed).collect();
        let tokens = self.tokens(&offsets)?;
        let steps = std::iter::zip(offsets.chunks(num_pages.max(1)), tokens.chunks(num_pages.max(1)));
        let draw = |(offsets, pages): (&[u64], &[Vec<u32>])| {
            let draw = Draw::of(offsets.iter().map(|&offset| offset as usize).collect(), pages, self.row_len);
            draw.ok_or_else(|| {
                let num_tokens: usize = pages.iter().map(Vec::len).sum();
                let Self { reader, row_len, .. } = self;
                Failure::Unreachable(format!(
                    "the pages of {} at {offsets:?} have {num_tokens} tokens together, fewer than one row of {row_len}, \
                     and a validator's step fails with them as well",
                    reader.viewer.dataset()
                ))
                .into()
            })
        };
        steps.map(draw).collect()
    }
}

/// The rows that pages may begin at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Offsets {
    /// `first` and so many after it.
    Anywhere { first: u64, count: u64, num_rows: u64 },
    /// Where a whole page is set aside.
    SetAside { rule: SetAside, num_rows: u64 },
}

impl Offsets {
    /// RefinedWeb's rows are drawn from as the reference does, from 1 to their number; of other data sets, whose end is no
    /// rare event, those that leave room for a page.
    pub(super) fn anywhere(is_refinedweb: bool, num_rows: u64) -> Self {
        match (is_refinedweb, num_rows.checked_sub(PAGE_ROWS)) {
            (true, _) => Self::Anywhere { first: 1, count: REFINEDWEB_ROWS, num_rows },
            (false, None) => Self::Anywhere { first: 0, count: 0, num_rows },
            (false, Some(0)) => Self::Anywhere { first: 0, count: 1, num_rows },
            (false, Some(last)) => Self::Anywhere { first: 1, count: last, num_rows },
        }
    }

    fn set_aside(rule: SetAside, num_rows: u64) -> Self {
        Self::SetAside { rule, num_rows }
    }

    fn count(&self) -> u64 {
        match *self {
            Self::Anywhere { count, .. } => count,
            Self::SetAside { rule, num_rows } => {
                let rows = rule.count_before(num_rows);
                let in_last = (rows % STRETCH_ROWS + 1).saturating_sub(PAGE_ROWS);
                rows / STRETCH_ROWS * (STRETCH_ROWS - PAGE_ROWS + 1) + in_last
            }
        }
    }

    /// The `index`-th of them.
    fn at(&self, index: u64) -> u64 {
        match *self {
            Self::Anywhere { first, .. } => first + index,
            Self::SetAside { rule, .. } => {
                let in_stretch = STRETCH_ROWS - PAGE_ROWS + 1;
                rule.stretch_start(index / in_stretch) + index % in_stretch
            }
        }
    }
}

/// How many rows of some pages training may have read: those outside of the stretches that are set aside, and, where it is
/// known which rows (`[first, end]` of each run of them) its shards hold, inside of these.
pub fn open_to_training(offsets: &[usize], rule: SetAside, read: Option<&[[u64; 2]]>) -> u64 {
    let is_open = |row: &u64| {
        let is_read = |&[first, end]: &[u64; 2]| (first..end).contains(row);
        !rule.holds(*row) && read.is_none_or(|runs| runs.iter().any(is_read))
    };
    let of_page = |&offset: &usize| (offset as u64..offset as u64 + PAGE_ROWS).filter(is_open).count() as u64;
    offsets.iter().map(of_page).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refinedweb_is_drawn_from_as_by_validators_and_others_up_to_their_last_page() {
        let ends = |offsets: Offsets| match offsets.count() {
            0 => None,
            count => Some((offsets.at(0), offsets.at(count - 1))),
        };
        assert_eq!(ends(Offsets::anywhere(true, REFINEDWEB_ROWS)), Some((1, 968_000_015)));
        for (num_rows, expected) in
            [(0, None), (99, None), (100, Some((0, 0))), (101, Some((1, 1))), (5_000, Some((1, 4_900)))]
        {
            assert_eq!(ends(Offsets::anywhere(false, num_rows)), expected, "{num_rows}");
        }
    }

    #[test]
    fn pages_that_are_set_aside_are_just_those_of_which_training_reads_no_row() {
        for (every, num_rows) in [(2, 0), (2, 99), (2, 100), (3, 999), (3, 1_000), (3, 3_050), (3, 3_250), (5, 12_345)]
        {
            let rule = SetAside::new(every);
            let offsets = Offsets::set_aside(rule, num_rows);
            let drawn: Vec<u64> = (0..offsets.count()).map(|index| offsets.at(index)).collect();
            let is_whole = |&first: &u64| (first..first + PAGE_ROWS).all(|row| rule.holds(row));
            let expected: Vec<u64> = (0..(num_rows + 1).saturating_sub(PAGE_ROWS)).filter(is_whole).collect();
            assert_eq!(drawn, expected, "{every}, {num_rows}");
            assert_eq!(open_to_training(&drawn.iter().map(|&row| row as usize).collect::<Vec<_>>(), rule, None), 0);
        }
    }

    #[test]
    fn rows_that_training_may_have_read_are_counted() {
        let rule = SetAside::new(10);
        let offsets = [900, 901, 950, 1_000, 9_950, 10_000];
        assert_eq!(open_to_training(&offsets, rule, None), 1 + 50 + 100 + 50);
        assert_eq!(open_to_training(&offsets, rule, Some(&[[0, 1_010], [9_990, 9_995]])), 1 + 10 + 10 + 5);
    }
}
