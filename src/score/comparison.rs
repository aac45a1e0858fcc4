//! Models beside each other: mean loss, wins and weight of each, as a validator would find them in one step.

use super::duel::{Contender, tallies};
use super::weights::softmax;
use crate::figures::count;
use crate::metrics::table::table;
use crate::rules::Rules;

/// A model to be compared.
#[derive(Clone, Debug)]
pub struct Compared<'a> {
    /// Its miner's place; `None` for a model that is not published.
    pub uid: Option<u16>,
    /// What it is called.
    pub name: String,
    /// Block of its commitment, or the one it would get.
    pub block: u64,
    /// Its loss on each batch; infinite where it cannot read one.
    pub losses: &'a [f64],
}

/// How one model fared.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// Mean loss over all batches.
    pub loss: f64,
    /// Its standard error; not a number for fewer than two batches.
    pub standard_error: f64,
    /// Batches won, over all rivals.
    pub wins: u64,
    /// Won part of all its matches.
    pub win_rate: f64,
    /// Its part of the weight, before any moving average.
    pub weight: f32,
}

/// Compares models that were scored on the same batches, in their order.
pub fn standings(models: &[Compared<'_>], rules: &Rules) -> Vec<Standing> {
    let num_batches = models.iter().map(|model| model.losses.len()).min().unwrap_or(0);
    let contenders: Vec<_> =
        models.iter().map(|model| Contender { block: Some(model.block), losses: model.losses }).collect();
    let tallies = tallies(&contenders, num_batches, rules.epsilon);
    let rates: Vec<f64> = tallies.iter().map(|tally| tally.win_rate).collect();
    let weights = softmax(&rates, rules.validator.temperature);
    let standing = |((model, tally), weight): ((&Compared<'_>, crate::score::duel::Tally), f32)| {
        let (loss, standard_error) = mean_and_error(model.losses);
        Standing { loss, standard_error, wins: tally.wins, win_rate: tally.win_rate, weight }
    };
    models.iter().zip(tallies).zip(weights).map(standing).collect()
}

/// The comparison as a table.
pub fn text(models: &[Compared<'_>], standings: &[Standing]) -> String {
    let row = |(model, standing): (&Compared<'_>, &Standing)| {
        vec![
            model.uid.map_or_else(|| "-".to_owned(), |uid| uid.to_string()),
            model.name.clone(),
            model.uid.map_or_else(|| "next".to_owned(), |_| count(model.block)),
            format!("{:.4}", standing.loss),
            if standing.standard_error.is_finite() { format!("{:.4}", standing.standard_error) } else { String::new() },
            format!("{:.3}", standing.win_rate),
            count(standing.wins),
            format!("{:.4}", standing.weight),
        ]
    };
    let rows: Vec<Vec<String>> = std::iter::zip(models, standings).map(row).collect();
    table(&[" uid", "model", " block", " loss", " ±", " win rate", " wins", " weight"], &rows)
}

/// Mean and standard error of losses; the error is not a number for fewer than two.
pub fn mean_and_error(losses: &[f64]) -> (f64, f64) {
    let n = losses.len() as f64;
    let mean = losses.iter().sum::<f64>() / n;
    let variance = losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_standard_error_are_those_worked_out_by_hand() {
        let (mean, error) = mean_and_error(&[1.0, 2.0, 3.0, 6.0]);
        // Squared deviations 4, 1, 0, 9: variance 14/3, error sqrt(14/12).
        assert!((mean - 3.0).abs() < 1e-15 && (error - (14.0_f64 / 12.0).sqrt()).abs() < 1e-15);
        assert!(mean_and_error(&[1.0]).1.is_nan());
        assert_eq!(mean_and_error(&[1.0, f64::INFINITY]).0, f64::INFINITY);
    }

    #[test]
    fn the_later_model_must_be_better_by_more_than_epsilon() {
        let (early, near, far) = ([4.0, 4.0], [3.99, 3.99], [3.9, 3.99]);
        let compared = |uid, block, losses| Compared { uid, name: "a/b".to_owned(), block, losses };
        let models = [compared(Some(3), 5, &early[..]), compared(None, 9, &near), compared(None, 9, &far)];
        let standings = standings(&models, &Rules::default());
        // 0.5 % of 4 is 0.02: only 3.9 is better by more. The two later ones stand at the same block.
        assert_eq!(standings.iter().map(|standing| standing.wins).collect::<Vec<_>>(), [3, 0, 2]);
        assert_eq!(standings.iter().map(|standing| standing.win_rate).collect::<Vec<_>>(), [0.75, 0.0, 0.5]);
        let text = text(&models, &standings);
        assert!(text.contains("  3  a/b        5  4.0000  0.0000     0.750     3"), "{text}");
        assert!(text.contains("  -  a/b     next  3.9900  0.0000     0.000     0"), "{text}");
    }
}
