//! How far apart two models are that were scored on the same batches: the mean difference of their losses, and between which
//! bounds it lies.
//!
//! Batches of one page are alike (they are of the same few documents, and one document may span several), so that a hundred
//! of them tell less than a hundred independent ones. The page is therefore the unit: the variance of the mean is that of
//! the pages' sums (the usual estimate for a ratio under cluster sampling), and Student's t has one degree of freedom less
//! than there are pages. A batch belongs to the page in which it begins. With fewer than [`MIN_PAGES`] pages batches are the
//! unit, which is too sure of itself and therefore said.

/// With fewer pages than this, batches count as if they were independent.
pub const MIN_PAGES: usize = 3;

/// What counts as independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Pages.
    Page,
    /// Batches.
    Batch,
}

/// A mean difference of losses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The mean over all batches; negative if the model is better than the one it is compared with.
    pub mean: f64,
    /// Half the width of its 95 % confidence interval; not a number where there is none (a single unit, or a loss that is
    /// not finite).
    pub margin: f64,
    /// What the interval takes for independent.
    pub unit: Unit,
    /// How many of them there are.
    pub num_units: usize,
}

/// How much higher `losses` are than `others` on the same batches, in their mean. `pages` names the page of each batch;
/// batches of a page stand together. Of lists of unequal length the first batches count.
pub fn difference(losses: &[f64], others: &[f64], pages: &[usize]) -> Difference {
    let differences = std::iter::zip(losses, others).map(|(loss, other)| loss - other);
    let pairs: Vec<(f64, usize)> = std::iter::zip(differences, pages.iter().copied()).collect();
    let pages: Vec<&[(f64, usize)]> = pairs.chunk_by(|one, next| one.1 == next.1).collect();
    let (unit, clusters) = match pages.len() >= MIN_PAGES {
        true => (Unit::Page, pages),
        false => (Unit::Batch, pairs.chunks(1).collect()),
    };
    let (num, num_units) = (pairs.len() as f64, clusters.len());
    let mean = pairs.iter().map(|(difference, _)| difference).sum::<f64>() / num;
    let deviations =
        clusters.iter().map(|cluster| cluster.iter().map(|(difference, _)| difference - mean).sum::<f64>());
    let degrees = num_units.saturating_sub(1);
    let variance = num_units as f64 / degrees as f64 * deviations.map(|deviation| deviation * deviation).sum::<f64>()
        / (num * num);
    // One unit has no spread: 1 / 0 times 0 is no number, and neither is the margin.
    Difference { mean, margin: student_t_975(degrees) * variance.sqrt(), unit, num_units }
}

/// The 97.5 % quantile of Student's t, to within 1e-4 of itself; not a number for no degree of freedom.
fn student_t_975(degrees: usize) -> f64 {
    const FEW: [f64; 10] =
        [12.706_205, 4.302_653, 3.182_446, 2.776_445, 2.570_582, 2.446_912, 2.364_624, 2.306_004, 2.262_157, 2.228_139];
    /// Of the normal distribution.
    const Z: f64 = 1.959_963_985;
    if degrees <= FEW.len() {
        return degrees.checked_sub(1).map_or(f64::NAN, |index| FEW[index]);
    }
    // Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    let n = degrees as f64;
    let terms = [
        (Z.powi(3) + Z) / 4.0,
        (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / 96.0,
        (3.0 * Z.powi(7) + 19.0 * Z.powi(5) + 17.0 * Z.powi(3) - 15.0 * Z) / 384.0,
        (79.0 * Z.powi(9) + 776.0 * Z.powi(7) + 1482.0 * Z.powi(5) - 1920.0 * Z.powi(3) - 945.0 * Z) / 92_160.0,
    ];
    Z + terms[0] / n + terms[1] / n.powi(2) + terms[2] / n.powi(3) + terms[3] / n.powi(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        assert!(student_t_975(0).is_nan());
        let table = [(1, 12.7062), (2, 4.3027), (10, 2.2281), (11, 2.2010), (12, 2.1788), (20, 2.0860), (30, 2.0423)];
        for (degrees, expected) in table.into_iter().chain([(60, 2.0003), (120, 1.9799), (1_000_000, 1.95997)]) {
            assert!((student_t_975(degrees) - expected).abs() < 1e-4, "{degrees}: {}", student_t_975(degrees));
        }
    }

    #[test]
    fn the_interval_is_that_of_pages_worked_out_by_hand() {
        // Differences 1, 3 | 2 | 6, 6, 6: mean 24 / 6 = 4; sums of deviations -4, -2, 6.
        let losses = [2.0, 4.0, 3.0, 7.0, 7.0, 7.0];
        let found = difference(&losses, &[1.0; 6], &[0, 0, 1, 2, 2, 2]);
        // Variance 3/2 (16 + 4 + 36) / 36 = 7/3; t with two degrees of freedom.
        assert_eq!((found.mean, found.unit, found.num_units), (4.0, Unit::Page, 3));
        assert!((found.margin - 4.302_653 * (7.0_f64 / 3.0).sqrt()).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn with_two_pages_batches_are_the_unit() {
        // Differences 1, 2, 6: mean 3, squared deviations 4, 1, 9: variance of the mean 14 / 2 / 3.
        let found = difference(&[1.0, 2.0, 6.0], &[0.0; 3], &[4, 4, 5]);
        assert_eq!((found.mean, found.unit, found.num_units), (3.0, Unit::Batch, 3));
        assert!((found.margin - 4.302_653 * (7.0_f64 / 3.0).sqrt()).abs() < 1e-9, "{found:?}");
    }

    #[test]
    fn where_nothing_can_be_said_the_margin_is_no_number() {
        assert!(difference(&[1.0], &[2.0], &[0]).margin.is_nan());
        assert!(difference(&[], &[], &[]).mean.is_nan());
        let infinite = difference(&[1.0, f64::INFINITY, 1.0], &[0.5; 3], &[0, 1, 2]);
        assert!(infinite.mean == f64::INFINITY && infinite.margin.is_nan(), "{infinite:?}");
        let both = difference(&[f64::INFINITY; 3], &[f64::INFINITY; 3], &[0, 1, 2]);
        assert!(both.mean.is_nan() && both.margin.is_nan(), "{both:?}");
        // A model against itself.
        assert_eq!(difference(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0], &[0, 1, 2]).margin, 0.0);
    }
}
