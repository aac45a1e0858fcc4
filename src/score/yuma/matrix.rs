//! Vectors and sparse matrices of [`Fixed`] numbers: a row by uid of the validator, in it (uid of the miner, number).

use super::fixed::Fixed;

type Row = Vec<(u16, Fixed)>;

/// A row for each uid.
pub(super) type Rows = Vec<Row>;

/// Divides by the sum, so that the new sum is 1; what has the sum 0 stays.
pub(super) fn normalize(vector: &mut [Fixed]) {
    let sum: Fixed = vector.iter().copied().sum();
    divide(vector, sum);
}

/// Divides by a number; 0 changes nothing.
pub(super) fn divide(vector: &mut [Fixed], by: Fixed) {
    if by != Fixed::ZERO {
        vector.iter_mut().for_each(|value| *value = *value / by);
    }
}

/// By miner: the sum over validators of what the row says times what the validator counts.
pub(super) fn weighted_column_sums(rows: &Rows, by_row: &[Fixed], num_columns: usize) -> Vec<Fixed> {
    let mut sums = vec![Fixed::ZERO; num_columns];
    for (row, &factor) in std::iter::zip(rows, by_row) {
        for &(column, value) in row {
            let sum = &mut sums[usize::from(column)];
            *sum = *sum + factor * value;
        }
    }
    sums
}

/// By validator: the sum over miners of what the row says times what the miner counts.
pub(super) fn weighted_row_sums(rows: &Rows, by_column: &[Fixed]) -> Vec<Fixed> {
    let sum = |row: &Row| row.iter().map(|&(column, value)| by_column[usize::from(column)] * value).sum();
    rows.iter().map(sum).collect()
}

/// Divides each column by its sum; columns with the sum 0 stay.
pub(super) fn normalize_columns(rows: &mut Rows, num_columns: usize) {
    divide_columns(rows, num_columns, |sum, value| sum + value);
}

/// Divides each column by its largest number.
pub(super) fn upscale_columns(rows: &mut Rows, num_columns: usize) {
    divide_columns(rows, num_columns, Fixed::max);
}

fn divide_columns(rows: &mut Rows, num_columns: usize, fold: impl Fn(Fixed, Fixed) -> Fixed) {
    let mut divisors = vec![Fixed::ZERO; num_columns];
    for &(column, value) in rows.iter().flatten() {
        let divisor = &mut divisors[usize::from(column)];
        *divisor = fold(*divisor, value);
    }
    for (column, value) in rows.iter_mut().flatten() {
        let divisor = divisors[usize::from(*column)];
        if divisor != Fixed::ZERO {
            *value = *value / divisor;
        }
    }
}

/// Mixes new numbers into old ones, of which `stays` stays; what comes to 0 is left out.
pub(super) fn moving_average(old: &Rows, new: &Rows, stays: Fixed, num_columns: usize) -> Rows {
    let comes = Fixed::ONE - stays;
    let mut mixed = vec![Fixed::ZERO; num_columns];
    let mix = |(old, new): (&Row, &Row)| {
        mixed.fill(Fixed::ZERO);
        for (row, part) in [(new, comes), (old, stays)] {
            for &(column, value) in row {
                let sum = &mut mixed[usize::from(column)];
                *sum = *sum + part * value;
            }
        }
        let columns = (0..=u16::MAX).zip(mixed.iter().copied());
        columns.filter(|(_, value)| *value > Fixed::ZERO).collect()
    };
    std::iter::zip(old, new).map(mix).collect()
}

/// By column, the number that validators with `majority` of the stake reach: a validator with stake whose row does not
/// name the column says 0 there.
pub(super) fn weighted_medians(rows: &Rows, stake: &[Fixed], majority: Fixed, num_columns: usize) -> Vec<Fixed> {
    let mut stake: Vec<Fixed> = stake.iter().map(|&stake| stake.max(Fixed::ZERO)).collect();
    normalize(&mut stake);
    let total: Fixed = stake.iter().copied().sum();
    // Those that say less than the median hold at most so much.
    let minority = total - majority;

    // All numbers, column after column.
    let with_stake = || std::iter::zip(rows, &stake).filter(|(_, stake)| **stake > Fixed::ZERO);
    let mut starts = vec![0; num_columns + 1];
    for &(column, _) in with_stake().flat_map(|(row, _)| row) {
        starts[usize::from(column) + 1] += 1;
    }
    for column in 0..num_columns {
        starts[column + 1] += starts[column];
    }
    let mut entries = vec![(Fixed::ZERO, Fixed::ZERO); starts[num_columns]];
    let mut next = starts.clone();
    for (row, &stake) in with_stake() {
        for &(column, value) in row {
            let place = &mut next[usize::from(column)];
            entries[*place] = (value, stake);
            *place += 1;
        }
    }
    let median = |column: usize| {
        let entries = &mut entries[starts[column]..starts[column + 1]];
        entries.sort_unstable();
        let mut reached = total - entries.iter().map(|(_, stake)| *stake).sum();
        if reached > Fixed::ZERO && minority < reached {
            return Fixed::ZERO;
        }
        for &(value, stake) in entries.iter() {
            reached = reached + stake;
            if minority < reached {
                return value;
            }
        }
        entries.last().map_or(Fixed::ZERO, |(value, _)| *value)
    };
    (0..num_columns).map(median).collect()
}
