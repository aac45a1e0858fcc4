//! A decision in plain words: its reason as a sentence, and the paragraph that names the numbers.
//!
//! Texts that strangers chose (their keys, repositories, commits) stay out of the words, or lose their control
//! characters first.

use super::consensus::{Backtest, ChainGain, Network};
use super::record::{Bound, Decision, Duel, Prospect, Verdict};
use crate::figures::count;
use crate::recipe::GateRule;

/// Why a prospect opens, or does not.
pub(super) fn reason(decision: &Decision, prospect: &Prospect) -> String {
    if let Some(block) = prospect.cooldown_until {
        return format!(
            "Under `{}` nothing is published again before block {}, by `gate.cooldown_blocks`.",
            prospect.hotkey,
            count(block)
        );
    }
    match (decision.rule, &prospect.duel) {
        (GateRule::Pay, _) => reason_by_pay(decision, prospect),
        (GateRule::BeatsLeader, None) => "No model is deployed that the candidate would have to beat.".to_owned(),
        (GateRule::BeatsLeader, Some(Duel { uid, wins, wealth, needed_wealth, .. })) => format!(
            "The candidate wins {:.1} % of the batches against the model of uid {uid}; a bet on more than half has made at \
             most {wealth:.1} of 1, and is certain at {needed_wealth:.1}.",
            100.0 * wins,
        ),
    }
}

fn reason_by_pay(decision: &Decision, prospect: &Prospect) -> String {
    if let Some(backtest) = decision.backtest.as_ref().filter(|backtest| !backtest.holds) {
        return format!(
            "Our picture does not match the network: what it foretells for the best miners is off by up to {:.4}, and \
             `gate.tolerance` is {:.4}.",
            backtest.difference, backtest.tolerance
        );
    }
    let Prospect { min_gain, place_at_risk, chain_gain, .. } = prospect;
    let needed = match place_at_risk {
        true => "nothing, which suffices because the place can be lost before it is paid".to_owned(),
        false => format!("`gate.min_gain`, {min_gain:.4}"),
    };
    let (steps, least, most) = (decision.num_steps, decision.least_steps, decision.max_steps);
    match (chain_gain, prospect.is_certain()) {
        _ if prospect.opens => format!("The lower bound of the gain exceeds {needed}."),
        (_, false) if prospect.hopeless && *place_at_risk => "As good as certainly nothing is gained.".to_owned(),
        (_, false) if prospect.hopeless => format!("The gain as good as certainly does not exceed {needed}."),
        (_, false) if most < least => format!(
            "Nothing can be certain enough: that takes {least} steps, and `gate.max_pages` allows {most}. Raise it, or \
             lower `gate.confidence`."
        ),
        (_, false) if steps < least => format!("Too few steps to be certain: {steps} of at least {least}."),
        (_, false) if *place_at_risk => "It is not certain that anything is gained.".to_owned(),
        (_, false) => format!("The gain does not certainly exceed {needed}."),
        (Some(gain), true) if gain.median < *min_gain || gain.median <= 0.0 => format!(
            "By the chain's consensus publishing would bring {:+.4}, which does not exceed {needed}, although it would with \
             each validator alone.",
            gain.median
        ),
        (_, true) => "By the chain's consensus a loss is not unlikely enough.".to_owned(),
    }
}

impl Decision {
    /// The decision and its reasons in plain words.
    pub fn paragraph(&self) -> String {
        let verdict = match &self.verdict {
            Verdict::Publish { hotkey } => format!("Publish under `{hotkey}`."),
            Verdict::Stay => "Stay.".to_owned(),
        };
        let best = self.best().filter(|_| self.num_steps > 0);
        let sentences = [verdict, self.reason.clone()].into_iter();
        let sentences = sentences.chain(best.map(|best| self.pay(best)));
        let sentences = sentences.chain(best.and_then(|best| self.by_consensus(best.chain_gain?)));
        let sentences = sentences.chain(self.backtest.as_ref().map(backtest)).chain(best.map(|best| self.losses(best)));
        sentences.chain(self.warnings.iter().cloned()).collect::<Vec<_>>().join(" ")
    }

    fn pay(&self, best: &Prospect) -> String {
        let Prospect { hotkey, uid, stay, publish, gain, lower_bound, .. } = best;
        let steps = if self.num_steps == 1 { "step" } else { "steps" };
        let rivals = match best.num_models {
            1 => "with no other model".to_owned(),
            others => format!("among {others} models"),
        };
        let nth = match self.num_tested {
            1 => String::new(),
            nth => format!(", as candidate number {nth} since the last publish"),
        };
        let steps = format!("Over {} {steps} ({} batches) {rivals}", self.num_steps, count(self.num_batches as u64));
        if best.gains.iter().all(|gain| *gain == 0.0) {
            return format!(
                "{steps}, publishing under `{hotkey}` (uid {uid}) changes nothing in any of them: our share of the miners' \
                 incentive stays {stay:.4}{nth}."
            );
        }
        let bound = match self.bound {
            _ if best.without_rivals => "without a doubt",
            Bound::Asymptotic => "by an asymptotic bound",
            Bound::Exact => "by an exact bound",
        };
        let certain = match lower_bound {
            _ if best.without_rivals => bound.to_owned(),
            None => "of which too few steps say how much is certain".to_owned(),
            Some(lower_bound) => format!(
                "and {bound} more than {lower_bound:+.4} with {:.*} % confidence, α = {:.2e}",
                self.num_digits_of_confidence(),
                100.0 * self.confidence,
                self.alpha,
            ),
        };
        format!(
            "{steps}, publishing under `{hotkey}` (uid {uid}) changes our share of the miners' incentive from {stay:.4} to \
             {publish:.4}: δ is {gain:+.4}, {certain}{nth}."
        )
    }

    /// Decimals that a confidence in per cent needs so that it is not rounded to 100.
    fn num_digits_of_confidence(&self) -> usize {
        let leading_zeros = -(100.0 * (1.0 - self.confidence)).log10();
        leading_zeros.clamp(0.0, 12.0).ceil() as usize + 2
    }

    fn by_consensus(&self, gain: ChainGain) -> Option<String> {
        let Network { validators, num_replicates, .. } = self.network.as_ref()?;
        let validators = match validators.len() {
            1 => "the active validator".to_owned(),
            number => format!("the {number} active validators"),
        };
        Some(format!(
            "By the consensus of {validators}, drawn {num_replicates} times, it is {:+.4} on the median and {:+.4} at the \
             5th percentile.",
            gain.median, gain.fifth_percentile
        ))
    }

    fn losses(&self, best: &Prospect) -> String {
        let standing = |uid: u16| self.models.iter().find(|model| model.uid == uid);
        let own = standing(best.uid).map(|own| format!(", of our deployed one {:.4}", own.loss));
        let leader = self.leader.and_then(standing);
        let leader = leader.map(|leader| format!(", of the leader's (uid {}) {:.4}", leader.uid, leader.loss));
        let (own, leader) = (own.unwrap_or_default(), leader.unwrap_or_default());
        format!("The mean loss of the candidate is {:.4}{own}{leader}.", self.candidate_loss)
    }
}

fn backtest(backtest: &Backtest) -> String {
    let miners = backtest.miners.iter();
    let miners = miners.map(|miner| format!("uid {} {:.4} for {:.4}", miner.uid, miner.foretold, miner.on_chain));
    format!(
        "Of the shares that the chain pays the best miners, staying foretells {}.",
        miners.collect::<Vec<_>>().join(", ")
    )
}
