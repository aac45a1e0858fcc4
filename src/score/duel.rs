//! Who wins a batch, and how often: the reference's `iswin` and `compute_wins`.

/// Whether a model wins a batch against a rival. The one that was committed at the smaller block has its loss lowered
/// by the part `epsilon` first (a negative loss is made worse by that, as in the reference); then strictly less wins.
/// `None` is a model without metadata: later than all others.
///
/// Comparisons with NaN are false, and infinity stays infinity: nobody wins then.
pub fn is_win(loss: f64, rival_loss: f64, block: Option<u64>, rival_block: Option<u64>, epsilon: f64) -> bool {
    let (block, rival_block) = (block.unwrap_or(u64::MAX), rival_block.unwrap_or(u64::MAX));
    let favoured = 1.0 - epsilon;
    let loss = if block < rival_block { loss * favoured } else { loss };
    let rival_loss = if rival_block < block { rival_loss * favoured } else { rival_loss };
    loss < rival_loss
}

/// A model among others.
#[derive(Clone, Copy, Debug)]
pub struct Contender<'a> {
    /// Block of its commitment; `None`: none known.
    pub block: Option<u64>,
    /// Its loss on each batch; infinite where it could not read one.
    pub losses: &'a [f64],
}

/// How a model fared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Batches won, over all rivals.
    pub wins: u64,
    /// Won part of all its matches; 0 without any, so that a lone model has 0.
    pub win_rate: f64,
}

/// Lets every model meet every other on each of the first `num_batches` batches.
///
/// # Panics
///
/// If a model has fewer losses than that.
pub fn tallies(contenders: &[Contender<'_>], num_batches: usize, epsilon: f64) -> Vec<Tally> {
    let matches = contenders.len().saturating_sub(1) * num_batches;
    let tally = |(index, own): (usize, &Contender<'_>)| {
        let rivals = contenders.iter().enumerate().filter(|(other, _)| *other != index);
        let wins: usize = rivals
            .map(|(_, rival)| {
                let pairs = std::iter::zip(&own.losses[..num_batches], &rival.losses[..num_batches]);
                pairs.filter(|(own_loss, loss)| is_win(**own_loss, **loss, own.block, rival.block, epsilon)).count()
            })
            .sum();
        let win_rate = if matches == 0 { 0.0 } else { wins as f64 / matches as f64 };
        Tally { wins: wins as u64, win_rate }
    };
    contenders.iter().enumerate().map(tally).collect()
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::Value;

    use super::*;
    use crate::golden;

    /// A number of the golden files, where infinities and what is no number are texts.
    pub(in crate::score) fn number(value: &Value) -> f64 {
        value.as_f64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
    }

    /// A block; infinite without metadata.
    fn block(value: &Value) -> Option<u64> {
        assert!(value.is_u64() || value == "inf", "{value}");
        value.as_u64()
    }

    #[test]
    fn golden_duels() {
        let (path, file) = golden::files("validation/iswin.json", "cases").remove(0);
        assert_eq!(file["timestamp_epsilon"], 0.005, "{}", path.display());
        for case in file["cases"].as_array().unwrap() {
            let (own, rival) = (number(&case["loss_i"]), number(&case["loss_j"]));
            let won = is_win(own, rival, block(&case["block_i"]), block(&case["block_j"]), 0.005);
            assert_eq!(Some(won), case["expected"].as_bool(), "{case}");
        }
    }

    #[test]
    fn golden_tallies() {
        for case in golden::cases("validation/compute_wins.json", "cases") {
            let keys: Vec<String> = case["uids"].as_array().unwrap().iter().map(Value::to_string).collect();
            let losses: Vec<Vec<f64>> =
                keys.iter().map(|key| case["losses"][key].as_array().unwrap().iter().map(number).collect()).collect();
            let num_batches = case["n_batches"].as_u64().unwrap() as usize;
            if case["expected"].get("exception").is_some() {
                // Too few losses: `Judge::finish` refuses them before they come here.
                assert!(losses.iter().any(|losses| losses.len() < num_batches), "{case}");
                continue;
            }
            let contenders: Vec<_> = std::iter::zip(&keys, &losses)
                .map(|(key, losses)| Contender { block: block(&case["blocks"][key]), losses })
                .collect();
            let tallies = tallies(&contenders, num_batches, 0.005);
            for key in &keys {
                // The reference counts by uid: one that stands in the list twice has the wins of both places.
                let own = std::iter::zip(&keys, &tallies).filter(|(other, _)| *other == key).map(|(_, tally)| tally);
                let (wins, rate) = own.fold((0, 0.0), |(wins, rate), tally| (wins + tally.wins, rate + tally.win_rate));
                assert_eq!(Some(wins), case["expected"]["wins"][key].as_u64(), "{case}");
                assert_eq!(rate, number(&case["expected"]["win_rate"][key]), "{case}");
            }
        }
    }
}
