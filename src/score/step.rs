//! A validator's step: who is evaluated, who wins how often, what weights follow, and who is kept for the next step.
//!
//! [`Judge`] is the reference's state between steps, as far as arithmetic goes: the weights of all uids, the uids that
//! were kept, and those that wait because their model is new. It reads nothing and asks for nothing; the caller brings the
//! losses.

use anyhow::{Result, ensure};

use super::duel::{Contender, Tally, tallies};
use super::uid_set::UidSet;
use super::weights;
use crate::rules::{Keep, Rules, Validator};

/// What a validator remembers from step to step.
#[derive(Clone, Debug)]
pub struct Judge {
    /// The weight of each uid.
    pub weights: Vec<f32>,
    /// Who is evaluated again in the next step.
    pub kept: UidSet,
    /// Who joins them because his model is new.
    pub pending: UidSet,
}

/// A uid's model in one step.
#[derive(Clone, Debug)]
pub struct Entrant {
    /// The uid.
    pub uid: u16,
    /// Block of the commitment; `None`: no metadata.
    pub block: Option<u64>,
    /// Loss on each batch; infinite where there is none.
    pub losses: Vec<f64>,
}

impl Judge {
    /// A validator that has just started, on a subnet of so many uids: all weights are zero.
    pub fn new(num_uids: usize) -> Self {
        Self { weights: vec![0.0; num_uids], kept: UidSet::default(), pending: UidSet::default() }
    }

    /// Begins a step: those who wait join those who were kept, whatever becomes of the step. Returns them in the order of
    /// the step; none at all: there is nothing to evaluate.
    pub fn begin(&mut self) -> Vec<u16> {
        self.kept.update(&std::mem::take(&mut self.pending));
        self.kept.iter().collect()
    }

    /// Ends a step with everybody's losses, in the order that [`Self::begin`] gave. A step without models or without
    /// batches, a uid outside the weights and too few losses are errors, and nothing is changed then, as where the
    /// reference fails.
    pub fn finish(&mut self, entrants: &[Entrant], num_batches: usize, rules: &Rules) -> Result<Vec<Tally>> {
        // The weights of nobody have the sum 0, which would leave no number of anybody's.
        ensure!(!entrants.is_empty(), "a step without models decides nothing");
        ensure!(num_batches > 0, "a step without batches decides nothing");
        for Entrant { uid, losses, .. } in entrants {
            ensure!(usize::from(*uid) < self.weights.len(), "uid {uid} is new since the validator was started");
            ensure!(losses.len() >= num_batches, "uid {uid} has {} losses for {num_batches} batches", losses.len());
        }
        let contenders: Vec<_> =
            entrants.iter().map(|entrant| Contender { block: entrant.block, losses: &entrant.losses }).collect();
        let tallies = tallies(&contenders, num_batches, rules.epsilon);
        let uids: Vec<u16> = entrants.iter().map(|entrant| entrant.uid).collect();
        let rates: Vec<f64> = tallies.iter().map(|tally| tally.win_rate).collect();
        let step_weights = weights::softmax(&rates, rules.validator.temperature);
        weights::mix(&mut self.weights, &uids, &step_weights, rules.alpha);
        let fared = |(Entrant { uid, losses, .. }, &win_rate): (&Entrant, &f64)| Fared {
            weight: self.weights[usize::from(*uid)],
            win_rate,
            is_unreadable: losses.iter().all(|loss| loss.is_infinite()),
        };
        let fared: Vec<Fared> = std::iter::zip(entrants, &rates).map(fared).collect();
        self.kept = kept(&fared, &rules.validator).into_iter().map(|index| entrants[index].uid).collect();
        Ok(tallies)
    }
}

/// How a model fared in a step, as far as it matters for being kept.
#[derive(Clone, Copy, Debug)]
pub struct Fared {
    /// Its weight after the step.
    pub weight: f32,
    /// Its win rate in the step.
    pub win_rate: f64,
    /// Whether all its losses were infinite.
    pub is_unreadable: bool,
}

/// Who is kept for the next step, best first: of equals who came first.
pub fn kept(fared: &[Fared], validator: &Validator) -> Vec<usize> {
    let fared = fared.iter().enumerate();
    let mut ranked: Vec<(usize, f64)> = match validator.keep {
        Keep::WinRate => fared
            .filter(|(_, fared)| fared.weight > 0.0 || !fared.is_unreadable)
            .map(|(index, fared)| (index, fared.win_rate))
            .collect(),
        Keep::WeightThenWinRate { from_weight } => fared
            .map(|(index, fared)| {
                let weight = f64::from(fared.weight);
                (index, if weight >= from_weight { 1.0 + weight } else { fared.win_rate })
            })
            .collect(),
    };
    ranked.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    ranked.into_iter().take(validator.sample_min).map(|(index, _)| index).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::Value;

    use super::super::duel::tests::number;
    use super::super::weights::tests::assert_weight;
    use super::*;
    use crate::golden;
    use crate::rules::VALIDATORS;

    fn uids(value: &Value) -> Vec<u16> {
        serde_json::from_value(value.clone()).unwrap()
    }

    fn entrants(order: &[u16], step: &Value) -> Vec<Entrant> {
        let entrant = |&uid: &u16| {
            let key = uid.to_string();
            // Without metadata nothing is evaluated either.
            let fails = step["fail"].get(&key).is_some() || step["blocks"].get(&key).is_none();
            let num_batches = step["nb"].as_u64().unwrap() as usize;
            let losses = match step["losses"].get(&key).and_then(Value::as_array) {
                Some(losses) if !fails => losses.iter().map(number).collect(),
                _ => vec![f64::INFINITY; num_batches],
            };
            Entrant { uid, block: step["blocks"].get(&key).and_then(Value::as_u64), losses }
        };
        order.iter().map(entrant).collect()
    }

    fn check_scenarios(file: &str, validator: &Validator) {
        for case in golden::cases(file, "cases") {
            let sample_min = case["sample_min"].as_u64().unwrap() as usize;
            let mut rules = Rules::under(validator, 2_500_000);
            rules.validator.sample_min = sample_min;
            let mut judge = Judge::new(case["n_metagraph"].as_u64().unwrap() as usize);
            for (index, step) in case["steps"].as_array().unwrap().iter().enumerate() {
                let context = format!("{file}, {}, step {index}", case["name"]);
                judge.pending = uids(&step["pending"]).into_iter().collect();
                let order = judge.begin();
                let expected = &step["expected"];
                if order.is_empty() {
                    assert!(expected.get("uids_in_order").is_none(), "{context}");
                    continue;
                }
                let num_batches = step["nb"].as_u64().unwrap() as usize;
                let entrants = entrants(&order, step);
                let before = judge.clone();
                let result = judge.finish(&entrants, num_batches, &rules);
                if expected.get("exception").is_some() {
                    assert!(result.is_err(), "{context}");
                    assert_eq!((&judge.weights, &judge.kept), (&before.weights, &before.kept), "{context}");
                    continue;
                }
                let tallies = result.unwrap();
                assert_eq!(order, uids(&expected["uids_in_order"]), "{context}");
                assert_eq!(tallies.len(), order.len(), "{context}");
                for Entrant { uid, block, losses } in &entrants {
                    let key = uid.to_string();
                    assert_eq!(*block, expected["uid_to_block"][&key].as_u64(), "{context}, uid {uid}");
                    let used: Vec<f64> = expected["losses_used"][&key].as_array().unwrap().iter().map(number).collect();
                    let bits = |losses: &[f64]| losses.iter().map(|loss| loss.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(losses), bits(&used), "{context}, uid {uid}");
                }
                for (uid, tally) in std::iter::zip(&order, tallies) {
                    let key = uid.to_string();
                    assert_eq!(Some(tally.wins), expected["wins"][&key].as_u64(), "{context}, uid {uid}");
                    assert_eq!(tally.win_rate, number(&expected["win_rate"][&key]), "{context}, uid {uid}");
                }
                for (uid, weight) in judge.weights.iter().enumerate() {
                    let expected = expected["weights_nonzero"].get(uid.to_string()).map_or(0.0, number);
                    assert_weight(*weight, expected, &context);
                }
                let sorted = |mut uids: Vec<u16>| {
                    uids.sort_unstable();
                    uids
                };
                let kept: Vec<u16> = judge.kept.iter().collect();
                assert_eq!(sorted(kept.clone()), sorted(uids(&expected["uids_to_eval_after_sorted"])), "{context}");
                assert_eq!(kept, uids(&expected["uids_to_eval_after_set_order"]), "{context}");
            }
        }
    }

    #[test]
    fn golden_steps_of_february_2024() {
        check_scenarios("validation/run_step_d2faaec.json", &VALIDATORS[0]);
    }

    #[test]
    fn golden_steps_of_june_2024() {
        check_scenarios("validation/run_step_head.json", &VALIDATORS[3]);
    }

    fn entrant(uid: u16, block: u64, loss: f64) -> Entrant {
        Entrant { uid, block: Some(block), losses: vec![loss] }
    }

    /// At the subnet's temperatures every softmax is above 0, so that the golden values cannot tell.
    #[test]
    fn a_model_without_a_finite_loss_and_without_weight_is_not_kept() {
        let mut rules = Rules::under(&VALIDATORS[0], 2_500_000);
        rules.validator.temperature = 0.001;
        let mut judge = Judge::new(3);
        judge.pending = [0, 1, 2].into_iter().collect();
        judge.begin();
        let losses = [entrant(0, 1, 1.0), entrant(1, 2, f64::INFINITY), entrant(2, 3, f64::NAN)];
        judge.finish(&losses, 1, &rules).unwrap();
        // What is no number is not infinite either.
        assert_eq!(judge.kept.iter().collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn a_failed_step_keeps_the_weights_and_those_who_have_joined() {
        let rules = Rules::under(&VALIDATORS[0], 2_500_000);
        let mut judge = Judge::new(2);
        judge.pending = [1].into_iter().collect();
        judge.begin();
        judge.finish(&[entrant(1, 1, 1.0)], 1, &rules).unwrap();
        judge.pending = [2].into_iter().collect();
        assert_eq!(judge.begin(), [1, 2]);
        assert!(judge.pending.is_empty());
        assert!(judge.finish(&[entrant(1, 1, 1.0), entrant(2, 2, 1.0)], 1, &rules).is_err());
        assert!(judge.finish(&[entrant(1, 1, 1.0)], 2, &rules).is_err());
        assert_eq!(judge.weights, [0.0, 0.5]);
        assert_eq!(judge.begin(), [1, 2]);
    }

    /// Python adds 1 to the weight in 64 bits: in 32 these three would be equal, and the first would stay.
    #[test]
    fn weights_that_differ_by_little_still_rank() {
        let mut rules = Rules::under(&VALIDATORS[3], 3_300_000);
        rules.validator.sample_min = 1;
        let mut judge = Judge::new(3);
        judge.weights = vec![0.1, 0.100_000_03, 0.1];
        judge.pending = [0, 1, 2].into_iter().collect();
        judge.begin();
        judge.finish(&[0, 1, 2].map(|uid| entrant(uid, 1, 1.0)), 1, &rules).unwrap();
        assert_eq!(judge.kept.iter().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_step_of_nobody_does_not_erase_the_weights() {
        let mut judge = Judge::new(2);
        judge.weights = vec![0.5, 0.25];
        assert!(judge.finish(&[], 1, &Rules::default()).is_err());
        assert_eq!(judge.weights, [0.5, 0.25]);
    }

    /// From 18f0056 on a model with the old tokenizer has more losses than there are batches of 4096 tokens.
    #[test]
    fn losses_beyond_the_number_of_batches_do_not_count() {
        let rules = Rules::under(&VALIDATORS[3], 3_300_000);
        let mut judge = Judge::new(2);
        judge.pending = [0, 1].into_iter().collect();
        judge.begin();
        let losses = [(0, vec![1.0, 2.0, 9.0, 9.0]), (1, vec![2.0, 1.0])];
        let entrants = losses.map(|(uid, losses)| Entrant { uid, block: Some(1), losses });
        let tallies = judge.finish(&entrants, 2, &rules).unwrap();
        assert_eq!(tallies, [Tally { wins: 1, win_rate: 0.5 }; 2]);
        assert_eq!(judge.weights, [0.25, 0.25]);
    }
}
