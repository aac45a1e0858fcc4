//! Which rows of a data set are set aside for scoring: a rule over row indices, so that the two ways of reading the same data
//! set hold out the same rows, and nothing has to be remembered.
//!
//! Rows are set aside in stretches of 1,000, ten pages of a validator: of every so many stretches the first. Short ones would
//! cost a whole row group of a shard for each page.

/// Consecutive rows that are set aside together.
pub const STRETCH_ROWS: u64 = 1_000;

/// The rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAside {
    every: u64,
}

impl SetAside {
    /// Of every `every` stretches the first one; at least 2.
    pub fn new(every: u64) -> Self {
        Self { every: every.max(2) }
    }

    /// Of how many stretches one is set aside.
    pub fn every(&self) -> u64 {
        self.every
    }

    /// Whether training never sees a row, counted from 0 over the whole data set.
    pub fn holds(&self, row: u64) -> bool {
        (row / STRETCH_ROWS).is_multiple_of(self.every)
    }

    /// How many rows before `end` are set aside.
    pub fn count_before(&self, end: u64) -> u64 {
        let period = self.every * STRETCH_ROWS;
        (end / period) * STRETCH_ROWS + (end % period).min(STRETCH_ROWS)
    }

    /// The first row of the `index`-th stretch that is set aside.
    pub fn stretch_start(&self, index: u64) -> u64 {
        index * self.every * STRETCH_ROWS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_agrees_with_the_rule() {
        for every in [2, 3, 100] {
            let rule = SetAside::new(every);
            let mut count = 0;
            for row in 0..5_500 {
                assert_eq!(rule.count_before(row), count, "{every}: {row}");
                count += u64::from(rule.holds(row));
            }
            assert!(rule.holds(0) && rule.holds(999) && !rule.holds(1_000));
            assert!((0..3).all(|index| rule.holds(rule.stretch_start(index)) && count > 0));
        }
    }
}
