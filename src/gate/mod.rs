//! The decision to publish or to stay: publish when that pays more than staying, and that is certain enough.
//!
//! A pure function of what was read and measured: [`decide`] does no I/O, draws nothing and asks for no time, so the
//! same inputs give the same record, byte for byte. The caller reads the [`roster`] at one finalized block, scores every
//! model of it and the candidate on the same steps, and reads the roster again right before it commits.
//!
//! For each own hotkey, the weights that a validator would give us are computed twice over the same steps: as things
//! stand, and with the candidate in that hotkey's place at its later block (`world.rs`). The mean difference is the gain
//! δ, in shares of the subnet's miner incentive. The moving average of weights leaves it as it is, and the lag until new
//! weights are adopted is the same either way. What of it is certain is `bound.rs`'s affair. Candidates share
//! the probability of error α = 1 − `gate.confidence`: the k-th since the last publish may spend α/(k (k + 1)).
//!
//! The rule `beats-leader` reads "when it wins" literally instead: the candidate must win more than half of the batches
//! against the leader's model. Without a leader whose model can be read, it must do so against every model that is
//! deployed and can be read; without any, nothing stands in its way.

mod bound;
pub mod look;
mod record;
pub mod roster;
#[cfg(test)]
mod simulations;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod warnings;
mod world;

use std::iter;

use crate::chain::{Hotkey, Snapshot};
use crate::hub::hash::text_pair_hash;
use crate::recipe::{self, GateRule};
use crate::rules::Rules;
use crate::score::duel;
pub use record::{Decision, Duel, Prospect, Standing, Verdict};
use roster::Entry;
use world::Competitor;

/// Everything a decision rests on. The order of models and hotkeys does not matter.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// The rules that validators judge by.
    pub rules: &'a Rules,
    /// What publishing must bring.
    pub options: &'a recipe::Gate,
    /// The block at which the chain was read.
    pub block: u64,
    /// Blocks between two epochs of the chain.
    pub tempo: u64,
    /// The uid with the highest incentive.
    pub leader: Option<u16>,
    /// The roster's models, scored.
    pub models: Vec<Model>,
    /// The places the candidate could take.
    pub own: Vec<OwnHotkey>,
    /// The model that might be published.
    pub candidate: Candidate,
    /// The how many-th candidate since the last publish this is, from 1.
    pub num_tested: u64,
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

/// Whether to publish, under which hotkey, and why.
///
/// # Panics
///
/// If a model that can be read has fewer steps or batches than the candidate.
pub fn decide(inputs: &Inputs<'_>) -> Decision {
    let num_batches: Vec<usize> = inputs.candidate.losses.iter().map(Vec::len).collect();
    let num_tested = inputs.num_tested.max(1) as f64;
    let tail = (1.0 - inputs.options.confidence) / (num_tested * (num_tested + 1.0));
    let stay = world::stay(inputs);
    let own_stay = world::own_shares(inputs.rules, &stay, &num_batches);
    let opponents = match inputs.options.rule {
        GateRule::Pay => Vec::new(),
        GateRule::BeatsLeader => opponents(inputs, &stay),
    };
    let mut prospects: Vec<Prospect> = (inputs.own.iter())
        .map(|own| {
            let world = world::publish(inputs, own);
            let own_publish = world::own_shares(inputs.rules, &world, &num_batches);
            let gains: Vec<f64> = iter::zip(&own_publish, &own_stay).map(|(publish, stay)| publish - stay).collect();
            // Whoever is alone gets everything whatever his losses: the gain is 0 or 1 without a doubt.
            let without_rivals = world.len() == 1 && stay.len() <= 1;
            let lower_bound = match gains.first() {
                Some(&gain) if without_rivals => gain,
                _ => bound::lower_bound(&gains, tail, -1.0),
            };
            let adoption_block =
                (own.candidate_block).saturating_add(inputs.rules.blocks_per_epoch).saturating_add(inputs.tempo);
            let deployed = inputs.models.iter().any(|model| model.entry.uid == own.uid);
            let place_at_risk = !deployed && own.immune_until < adoption_block;
            Prospect {
                hotkey: own.hotkey.clone(),
                uid: own.uid,
                deployed,
                num_models: world.len(),
                candidate_block: own.candidate_block,
                adoption_block,
                immune_until: own.immune_until,
                place_at_risk,
                stay: bound::mean(&own_stay),
                publish: bound::mean(&own_publish),
                gain: bound::mean(&gains),
                lower_bound,
                // A place that is lost before it earns is worth nothing, so that any pay is a gain.
                min_gain: if place_at_risk { 0.0 } else { inputs.options.min_gain },
                without_rivals,
                duel: weakest_duel(inputs, own, &opponents, tail),
                gains,
                opens: false,
            }
        })
        .collect();
    prospects.sort_by_key(|prospect| prospect.uid);

    let objection = objection(inputs);
    for prospect in &mut prospects {
        let wins = match (inputs.options.rule, &prospect.duel) {
            (GateRule::Pay, _) => prospect.lower_bound > prospect.min_gain,
            (GateRule::BeatsLeader, Some(duel)) => duel.lower_bound > 0.5,
            (GateRule::BeatsLeader, None) => opponents.is_empty(),
        };
        prospect.opens = objection.is_none() && wins;
    }
    record::decision(inputs, tail, prospects, objection)
}

/// What forbids publishing whatever it pays, as a sentence.
fn objection(inputs: &Inputs<'_>) -> Option<String> {
    let Candidate { hash, losses } = &inputs.candidate;
    let is_copy = |entry: &Entry| {
        let committed = entry.metadata.id.hash.as_ref();
        // Later validators also take a hash that is bound to the hotkey, so that nobody can claim a stranger's upload.
        committed.is_some_and(|committed| committed == hash || *committed == text_pair_hash(hash, &entry.hotkey))
    };
    let copies = inputs.models.iter().map(|model| &model.entry).filter(|entry| is_copy(entry));
    // An own one before a stranger's, then the lowest uid: whatever the order of the models.
    let copy = copies.min_by_key(|entry| (!entry.is_own, entry.uid));
    if losses.iter().all(Vec::is_empty) {
        return Some("Nothing was scored, so nothing is known about the candidate.".to_owned());
    }
    if !losses.iter().flatten().any(|loss| loss.is_finite()) {
        return Some("The candidate has no finite loss on any batch: it would win nothing.".to_owned());
    }
    match copy {
        Some(own) if own.is_own => Some(format!(
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
    let leader = readable.clone().find(|(model, _)| Some(model.uid) == inputs.leader);
    leader.map_or_else(|| readable.collect(), |leader| vec![leader])
}

/// The duel of which least is certain: who must beat all opponents must win this one. `None` without a step or opponent.
fn weakest_duel(
    inputs: &Inputs<'_>,
    own: &OwnHotkey,
    opponents: &[(Competitor<'_>, &[Vec<f64>])],
    tail: f64,
) -> Option<Duel> {
    let duels = opponents.iter().filter_map(|(opponent, losses)| {
        let steps = iter::zip(&inputs.candidate.losses, *losses).filter(|(batches, _)| !batches.is_empty());
        let won = |(batches, rival): (&Vec<f64>, &Vec<f64>)| {
            let contenders = [
                duel::Contender { block: Some(own.candidate_block), losses: batches },
                duel::Contender { block: Some(opponent.block), losses: rival },
            ];
            duel::tallies(&contenders, batches.len(), inputs.rules.epsilon)[0].win_rate
        };
        let wins: Vec<f64> = steps.map(won).collect();
        let lower_bound = bound::lower_bound(&wins, tail, 0.0);
        (!wins.is_empty()).then(|| Duel { uid: opponent.uid, wins: bound::mean(&wins), lower_bound })
    });
    duels.min_by(|one, other| one.lower_bound.total_cmp(&other.lower_bound))
}
