//! Models beside each other: mean loss, wins and weight of each, as a validator would find them in one step.

use super::duel::{Contender, is_win, tallies};
use super::paired::Difference;
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
    let rows: Vec<Vec<String>> =
        std::iter::zip(models, standings).map(|(model, standing)| cells(model, standing)).collect();
    table(&HEADER, &rows)
}

/// The comparison as a table, with each model's difference to the leader, the one that has none.
pub fn text_with_differences(
    models: &[Compared<'_>],
    standings: &[Standing],
    differences: &[Option<Difference>],
) -> String {
    let row = |((model, standing), difference): ((&Compared<'_>, &Standing), &Option<Difference>)| {
        let mut cells = cells(model, standing);
        let text = match difference {
            None => "leader".to_owned(),
            Some(Difference { mean, margin, .. }) if margin.is_finite() => format!("{mean:+.4} ± {margin:.4}"),
            Some(Difference { mean, .. }) => format!("{mean:+.4}"),
        };
        cells.insert(DIFFERENCE_COLUMN, text);
        cells
    };
    let rows: Vec<Vec<String>> = std::iter::zip(models, standings).zip(differences).map(row).collect();
    let mut header = HEADER.to_vec();
    header.insert(DIFFERENCE_COLUMN, " to the leader");
    table(&header, &rows)
}

const HEADER: [&str; 8] = [" uid", "model", " block", " loss", " ±", " win rate", " wins", " weight"];
/// Behind the loss and its standard error.
const DIFFERENCE_COLUMN: usize = 5;

fn cells(model: &Compared<'_>, standing: &Standing) -> Vec<String> {
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
}

/// How many batches each model (row) wins against each other one (column), of those that all have a loss for.
pub fn wins_against(models: &[Compared<'_>], rules: &Rules) -> Vec<Vec<u64>> {
    let num_batches = models.iter().map(|model| model.losses.len()).min().unwrap_or(0);
    let wins = |(row, own): (usize, &Compared<'_>), (column, rival): (usize, &Compared<'_>)| -> u64 {
        let pairs = std::iter::zip(own.losses, rival.losses).take(num_batches);
        let blocks = (Some(own.block), Some(rival.block));
        let won = pairs.filter(|(loss, other)| is_win(**loss, **other, blocks.0, blocks.1, rules.epsilon));
        if row == column { 0 } else { won.count() as u64 }
    };
    let row = |own| models.iter().enumerate().map(|rival| wins(own, rival)).collect();
    models.iter().enumerate().map(row).collect()
}

/// The wins against each rival as a table: those of the model in the row over the one whose number heads the column.
pub fn matrix_text(models: &[Compared<'_>], wins: &[Vec<u64>]) -> String {
    let numbers: Vec<String> = (1..=models.len()).map(|number| format!(" {number}")).collect();
    let header: Vec<&str> = [" ", "wins of"].into_iter().chain(numbers.iter().map(String::as_str)).collect();
    let row = |(index, (model, wins)): (usize, (&Compared<'_>, &Vec<u64>))| {
        let cell = |(column, wins): (usize, &u64)| if column == index { "-".to_owned() } else { count(*wins) };
        let cells = wins.iter().enumerate().map(cell);
        [(index + 1).to_string(), model.name.clone()].into_iter().chain(cells).collect()
    };
    let rows: Vec<Vec<String>> = std::iter::zip(models, wins).enumerate().map(row).collect();
    table(&header, &rows)
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
    #[test]
    fn the_matrix_holds_the_wins_against_each_rival_and_its_rows_add_up_to_the_wins() {
        // The first is earlier: 3 x 0.995 = 2.985 beats 2.99 and not 2.98. Nobody wins where no loss is a number.
        let losses = [vec![3.0, 3.0, f64::NAN], vec![2.99, 2.98, 2.0], vec![2.98, 2.99, f64::INFINITY]];
        let blocks = [5, 9, 9];
        let compared = |index: usize| Compared {
            uid: Some(index as u16),
            name: ["a/a", "b/b", "c/c"][index].to_owned(),
            block: blocks[index],
            losses: &losses[index],
        };
        let models: Vec<_> = (0..3).map(compared).collect();
        let wins = wins_against(&models, &Rules::default());
        assert_eq!(wins, [[0, 1, 1], [1, 0, 2], [1, 1, 0]]);
        let standings = standings(&models, &Rules::default());
        for (wins, standing) in std::iter::zip(&wins, &standings) {
            assert_eq!(wins.iter().sum::<u64>(), standing.wins);
        }
        let text = matrix_text(&models, &wins);
        assert_eq!(text, "   wins of  1  2  3\n1  a/a      -  1  1\n2  b/b      1  -  2\n3  c/c      1  1  -");
    }

    #[test]
    fn the_difference_stands_beside_the_loss_and_the_leader_has_none() {
        let models =
            ["a/a", "b/b"].map(|name| Compared { uid: Some(1), name: name.to_owned(), block: 5, losses: &[4.0, 4.0] });
        let standings = standings(&models, &Rules::default());
        let difference = Difference { mean: -0.5, margin: 0.25, unit: super::super::paired::Unit::Page, num_units: 3 };
        let text = text_with_differences(&models, &standings, &[None, Some(difference)]);
        assert!(text.contains("to the leader") && text.contains("0.0000            leader"), "{text}");
        assert!(text.contains("0.0000  -0.5000 ± 0.2500"), "{text}");
        let unsure = Difference { margin: f64::NAN, ..difference };
        assert!(!text_with_differences(&models, &standings, &[None, Some(unsure)]).contains("-0.5000 ±"));
    }
}
