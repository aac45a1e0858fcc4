//! The decision to publish or to stay: publish when that pays more than staying, and that is certain enough.
//!
//! A pure function of what was read and measured: [`decide`] does no I/O, draws nothing and asks for no time, so the
//! same inputs give the same record, byte for byte. The caller reads the chain at one finalized block, scores every model of
//! the [`roster`] and the candidate on the same steps, asks again with more of them ([`look::next_look`]) until the decision
//! is settled, and reads the roster again right before it commits.
//!
//! For each own hotkey, the weights that a validator would give are computed twice over the same steps: as things stand,
//! and with the candidate in that hotkey's place at its later block (`world.rs`). Three questions follow.
//! - *Validators*: the mean difference of our share is the gain δ, in shares of the subnet's miner incentive. The moving
//!   average of weights leaves it as it is, and the lag until new weights are adopted is the same either way. What of it is
//!   certain however often one asks is the affair of `look.rs`. Candidates share the probability of error
//!   α = 1 − `gate.confidence`: the k-th since the last publish may spend α/(k (k + 1)), in equal parts under each hotkey.
//! - *The chain*: what Yuma Consensus makes of validators that each met pages of their own (`consensus.rs`).
//! - *The picture*: whether what we foretell for the best miners is what the chain pays them.
//!
//! The rule `beats-leader` reads "when it wins" literally instead: the candidate must win more than half of the batches
//! against the leader's model. Without a leader whose model can be read, it must do so against every model that is
//! deployed and can be read; without any, nothing stands in its way.

mod consensus;
pub mod look;
#[cfg(test)]
mod look_tests;
#[cfg(test)]
mod network_tests;
mod record;
pub mod roster;
#[cfg(test)]
mod simulations;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod warnings;
mod words;
mod world;

use std::iter;

use crate::chain::{Hotkey, Snapshot};
use crate::hub::hash::text_pair_hash;
use crate::recipe::{self, GateRule};
use crate::rules::Rules;
use crate::score::certainty::Betting;
use crate::score::duel;
use consensus::Consensus;
pub use consensus::{Backtest, Backtested, ChainGain, Network, ValidatorRecord};
use look::Look;
pub use record::{Bound, Decision, Duel, Prospect, Standing, Verdict};
use roster::Entry;
use world::{Competitor, World};

/// Steps from which on a picture that does not match the network is believed not to.
const STEPS_FOR_BACKTEST: usize = 30;

/// Everything a decision rests on. The order of models and hotkeys does not matter.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// The rules that validators judge by.
    pub rules: &'a Rules,
    /// What publishing must bring.
    pub options: &'a recipe::Gate,
    /// The chain, at one finalized block.
    pub snapshot: &'a Snapshot,
    /// The roster's models, scored.
    pub models: Vec<Model>,
    /// The places the candidate could take.
    pub own: Vec<OwnHotkey>,
    /// The model that might be published.
    pub candidate: Candidate,
    /// The how many-th candidate since the last publish this is, from 1.
    pub num_tested: u64,
    /// Steps that can be scored for one decision.
    pub max_steps: usize,
    /// Why validators would not take the candidate, as a sentence, if they would not.
    pub unfit: Option<String>,
}

impl Inputs<'_> {
    /// The uid with the highest incentive.
    fn leader(&self) -> Option<u16> {
        self.snapshot.leader().map(|neuron| neuron.uid)
    }

    /// Steps that have a batch.
    fn num_steps(&self) -> usize {
        self.candidate.losses.iter().filter(|batches| !batches.is_empty()).count()
    }

    /// The block before which an own hotkey does not publish again; `None` if that is over, or it has committed nothing.
    fn cooldown_until(&self, own: &OwnHotkey) -> Option<u64> {
        let committed = self.snapshot.commitments.get(&own.hotkey)?.block;
        Some(committed.saturating_add(self.options.cooldown_blocks)).filter(|&block| own.candidate_block < block)
    }
}

/// A published model and how it scored.
#[derive(Clone, Debug)]
pub struct Model {
    /// Whose it is, and which.
    pub entry: Entry,
    /// Its losses, per step and batch, on the candidate's batches; or why validators cannot read it, in words.
    pub losses: Result<Vec<Vec<f64>>, String>,
}

/// A model that is not published yet.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Directory hash, in base64.
    pub hash: String,
    /// Its losses, per step and batch.
    pub losses: Vec<Vec<f64>>,
}

/// An own place on the subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnHotkey {
    /// The key.
    pub hotkey: Hotkey,
    /// Its place.
    pub uid: u16,
    /// The block that a model committed now would stand at: [`roster::candidate_block`].
    pub candidate_block: u64,
    /// From this block on another registration may take the place.
    pub immune_until: u64,
}

impl OwnHotkey {
    /// The place of a hotkey that may commit again at `next_commit_block`; `None` if it is not registered.
    pub fn of(snapshot: &Snapshot, hotkey: &str, next_commit_block: u64) -> Option<Self> {
        let neuron = snapshot.neuron(hotkey)?;
        Some(Self {
            hotkey: neuron.hotkey.clone(),
            uid: neuron.uid,
            candidate_block: roster::candidate_block(snapshot, next_commit_block),
            immune_until: neuron.registered_at.saturating_add(snapshot.immunity_period),
        })
    }
}

/// Whether to publish, under which hotkey, and why. May be asked again with more steps.
///
/// # Panics
///
/// If a model that can be read has fewer steps or batches than the candidate.
pub fn decide(inputs: &Inputs<'_>) -> Decision {
    let stay = World::stay(inputs);
    let consensus = Consensus::of(inputs, &stay);
    let backtest = consensus.as_ref().and_then(|consensus| consensus.backtest(inputs.options.tolerance));
    let opponents = match inputs.options.rule {
        GateRule::Pay => Vec::new(),
        GateRule::BeatsLeader => opponents(inputs, &stay.competitors),
    };
    let num_places = inputs.own.iter().filter(|own| inputs.cooldown_until(own).is_none()).count();
    let alpha = alpha(inputs.options, inputs.num_tested, num_places);
    let mut prospects: Vec<Prospect> =
        inputs.own.iter().map(|own| prospect(inputs, own, &stay, consensus.as_ref(), &opponents, alpha)).collect();
    prospects.sort_by_key(|prospect| prospect.uid);
    let objection = objection(inputs);
    let picture_holds = backtest.as_ref().is_none_or(|backtest| backtest.holds);
    for prospect in &mut prospects {
        let wins = match (inputs.options.rule, &prospect.duel) {
            (GateRule::Pay, _) => picture_holds && prospect.pays(),
            (GateRule::BeatsLeader, Some(duel)) => duel.is_certain,
            (GateRule::BeatsLeader, None) => opponents.is_empty(),
        };
        prospect.opens = objection.is_none() && prospect.cooldown_until.is_none() && wins;
    }
    let is_over = |prospect: &Prospect| {
        prospect.opens || prospect.without_rivals || prospect.hopeless || prospect.cooldown_until.is_some()
    };
    let is_pay = inputs.options.rule == GateRule::Pay;
    let settled = objection.is_some()
        || prospects.iter().any(|prospect| prospect.opens)
        || prospects.iter().all(is_over)
        || is_pay && !picture_holds && inputs.num_steps() >= STEPS_FOR_BACKTEST
        || is_pay && !inputs.options.exact && look::least_steps(alpha, inputs.options) > inputs.max_steps
        || inputs.candidate.losses.len() >= inputs.max_steps;
    record::decision(inputs, record::Findings { alpha, prospects, objection, consensus, backtest, settled })
}

/// The probability of error that the `num_tested`-th candidate since the last publish may spend under each of some hotkeys.
pub fn alpha(options: &recipe::Gate, num_tested: u64, num_places: usize) -> f64 {
    let num_tested = num_tested.max(1) as f64;
    (1.0 - options.confidence) / (num_tested * (num_tested + 1.0)) / num_places.max(1) as f64
}

/// What publishing under an own hotkey would bring.
fn prospect(
    inputs: &Inputs<'_>,
    own: &OwnHotkey,
    stay: &World<'_>,
    consensus: Option<&Consensus<'_>>,
    opponents: &[(Competitor<'_>, &[Vec<f64>])],
    alpha: f64,
) -> Prospect {
    let publish = World::publish(inputs, own);
    let (own_stay, own_publish) = (stay.own_shares(), publish.own_shares());
    let gains: Vec<f64> = iter::zip(&own_publish, &own_stay).map(|(publish, stay)| publish - stay).collect();
    // Whoever is alone gets everything whatever his losses: the gain is 0 or 1 without a doubt.
    let without_rivals = publish.competitors.len() == 1 && stay.competitors.len() <= 1;
    let adoption_block =
        (own.candidate_block).saturating_add(inputs.rules.blocks_per_epoch).saturating_add(inputs.snapshot.tempo);
    let deployed = inputs.models.iter().any(|model| model.entry.uid == own.uid);
    let place_at_risk = !deployed && own.immune_until < adoption_block;
    // A place that is lost before it earns is worth nothing, so that any pay is a gain.
    let min_gain = if place_at_risk { 0.0 } else { inputs.options.min_gain };
    let look = match gains.first() {
        Some(&gain) if without_rivals => Look { lower_bound: Some(gain), hopeless: gain <= min_gain },
        _ => Look::at(&gains, min_gain, alpha, inputs.options.exact),
    };
    let (duel, is_lost) = weakest_duel(inputs, own, opponents, alpha).unzip();
    let hopeless = match inputs.options.rule {
        GateRule::Pay => look.hopeless,
        GateRule::BeatsLeader => is_lost.unwrap_or(false),
    };
    Prospect {
        hotkey: own.hotkey.clone(),
        uid: own.uid,
        deployed,
        num_models: publish.competitors.len(),
        candidate_block: own.candidate_block,
        adoption_block,
        immune_until: own.immune_until,
        cooldown_until: inputs.cooldown_until(own),
        place_at_risk,
        stay: mean(&own_stay),
        publish: mean(&own_publish),
        gain: mean(&gains),
        lower_bound: look.lower_bound,
        hopeless,
        min_gain,
        without_rivals,
        chain_gain: consensus.map(|consensus| consensus.gain(&publish)),
        duel,
        gains,
        opens: false,
    }
}

/// The arithmetic mean; not a number without samples.
fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

/// What forbids publishing whatever it pays, as a sentence.
fn objection(inputs: &Inputs<'_>) -> Option<String> {
    let Candidate { hash, losses } = &inputs.candidate;
    // Later validators also take a hash that is bound to the hotkey, so that nobody can claim a stranger's upload.
    let is_copy = |committed: Option<&String>, hotkey: &str| {
        committed.is_some_and(|committed| committed == hash || *committed == text_pair_hash(hash, hotkey))
    };
    // Whoever has committed it, evaluated or not; an own one before a stranger's, then the lowest uid.
    let is_own = |hotkey: &str| {
        inputs.own.iter().any(|own| own.hotkey == hotkey)
            || inputs.models.iter().any(|model| model.entry.is_own && model.entry.hotkey == hotkey)
    };
    let copies = inputs.snapshot.neurons.iter().filter(|neuron| {
        let metadata = inputs.snapshot.metadata(&neuron.hotkey);
        is_copy(metadata.as_ref().and_then(|metadata| metadata.id.hash.as_ref()), &neuron.hotkey)
    });
    let copy = copies.min_by_key(|neuron| (!is_own(&neuron.hotkey), neuron.uid));
    if let Some(unfit) = &inputs.unfit {
        return Some(unfit.clone());
    }
    if losses.iter().all(Vec::is_empty) {
        return Some("Nothing was scored, so nothing is known about the candidate.".to_owned());
    }
    if !losses.iter().flatten().any(|loss| loss.is_finite()) {
        return Some("The candidate has no finite loss on any batch: it would win nothing.".to_owned());
    }
    match copy {
        Some(own) if is_own(&own.hotkey) => Some(format!(
            "The candidate is already deployed under `{}` (uid {}), byte for byte: publishing it again would only give \
             the earlier block away.",
            own.hotkey, own.uid
        )),
        Some(copy) if !inputs.options.allow_copies => Some(format!(
            "The candidate is byte for byte the model of uid {}, and `gate.allow_copies` is off.",
            copy.uid
        )),
        _ => None,
    }
}

/// Whom the candidate must beat under the rule `beats-leader`.
fn opponents<'a>(inputs: &Inputs<'_>, stay: &[Competitor<'a>]) -> Vec<(Competitor<'a>, &'a [Vec<f64>])> {
    let readable = stay.iter().filter_map(|model| Some((*model, model.losses?)));
    let leader = readable.clone().find(|(model, _)| Some(model.uid) == inputs.leader());
    leader.map_or_else(|| readable.collect(), |leader| vec![leader])
}

/// The duel of which least is certain (who must beat all opponents must win this one), and whether any is as good as lost.
/// `None` without a step or opponent.
fn weakest_duel(
    inputs: &Inputs<'_>,
    own: &OwnHotkey,
    opponents: &[(Competitor<'_>, &[Vec<f64>])],
    alpha: f64,
) -> Option<(Duel, bool)> {
    let mut is_lost = false;
    let mut duels = Vec::with_capacity(opponents.len());
    for (opponent, losses) in opponents {
        let steps = iter::zip(&inputs.candidate.losses, *losses).filter(|(batches, _)| !batches.is_empty());
        let won = |(batches, rival): (&Vec<f64>, &Vec<f64>)| {
            let contenders = [
                duel::Contender { block: Some(own.candidate_block), losses: batches },
                duel::Contender { block: Some(opponent.block), losses: rival },
            ];
            duel::tallies(&contenders, batches.len(), inputs.rules.epsilon)[0].win_rate
        };
        let wins: Vec<f64> = steps.map(won).collect();
        let (mut winning, mut losing) = (Betting::default(), Betting::default());
        for &won in &wins {
            winning.observe(won);
            losing.observe(1.0 - won);
        }
        is_lost |= losing.is_certain(alpha);
        if !wins.is_empty() {
            duels.push(Duel {
                uid: opponent.uid,
                wins: mean(&wins),
                wealth: winning.most_wealth(),
                needed_wealth: 1.0 / alpha,
                is_certain: winning.is_certain(alpha),
            });
        }
    }
    let weakest = duels.into_iter().min_by(|one, other| one.wealth.total_cmp(&other.wealth))?;
    Some((weakest, is_lost))
}
