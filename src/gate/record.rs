//! The record of a decision: what it was, and every number it rests on, as JSON; in plain words in `words.rs`.
//!
//! The record holds no time, and what is drawn for it is drawn by a hash of the inputs. Numbers that JSON does not know are
//! the strings "inf", "-inf" and "nan".

use serde::{Serialize, Serializer};

use super::consensus::{Backtest, ChainGain, Consensus, Network};
use super::{Inputs, Model, look, mean, warnings, words};
use crate::chain::Hotkey;
use crate::metrics::jsonl;
use crate::recipe::GateRule;

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum Verdict {
    /// Publish the candidate.
    Publish {
        /// Under this hotkey.
        hotkey: Hotkey,
    },
    /// Leave everything as it is.
    Stay,
}

/// How the gain is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// By how much it has varied: right as far as that tells what is to come.
    Asymptotic,
    /// By a bet, whatever its distribution.
    Exact,
}

/// A decision and its reasons.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// The answer.
    pub verdict: Verdict,
    /// Why, as a sentence.
    pub reason: String,
    /// What publishing had to bring.
    pub rule: GateRule,
    /// The block at which the chain was read.
    pub block: u64,
    /// The uid with the highest incentive.
    pub leader: Option<u16>,
    /// Whether no further step can change the answer, or none may be scored.
    pub settled: bool,
    /// Steps with a batch.
    pub num_steps: usize,
    /// Steps that may be scored for the decision.
    pub max_steps: usize,
    /// Steps without which nothing is certain.
    pub least_steps: usize,
    /// Batches of all steps.
    pub num_batches: usize,
    /// The how many-th candidate since the last publish.
    pub num_tested: u64,
    /// How the gains are bounded.
    pub bound: Bound,
    /// The probability of error of each bound and duel: what the recipe's confidence leaves, shared among the candidates
    /// since the last publish and the own hotkeys.
    pub alpha: f64,
    /// The certainty: the rest to 1.
    pub confidence: f64,
    /// Directory hash of the candidate.
    pub candidate_hash: String,
    /// Its mean loss.
    #[serde(serialize_with = "number")]
    pub candidate_loss: f64,
    /// What publishing would bring under each own hotkey, by ascending uid.
    pub prospects: Vec<Prospect>,
    /// The models it was compared with, by ascending uid.
    pub models: Vec<Standing>,
    /// The validators whose consensus was computed; `None` while none is active: then the gain of one alone decides.
    pub network: Option<Network>,
    /// What is foretold for the best miners against what the chain pays them; `None` if there is nothing to compare.
    pub backtest: Option<Backtest>,
    /// What makes the numbers less sure than they look, as sentences.
    pub warnings: Vec<String>,
}

/// What publishing under one hotkey would bring. Shares are those of the subnet's miner incentive, of all own hotkeys
/// together, as means over the steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prospect {
    /// The hotkey.
    pub hotkey: Hotkey,
    /// Its place.
    pub uid: u16,
    /// Whether it has a model deployed.
    pub deployed: bool,
    /// Models that would compete, with the candidate.
    pub num_models: usize,
    /// The block the candidate would stand at.
    pub candidate_block: u64,
    /// The block from which the chain would pay for it.
    pub adoption_block: u64,
    /// From this block on another registration may take the place.
    pub immune_until: u64,
    /// Before this block nothing is published under it again; `None` if nothing forbids it.
    pub cooldown_until: Option<u64>,
    /// Whether nothing is deployed and the place can be lost before anything is paid.
    pub place_at_risk: bool,
    /// Share when staying.
    #[serde(serialize_with = "number")]
    pub stay: f64,
    /// Share when publishing.
    #[serde(serialize_with = "number")]
    pub publish: f64,
    /// The gain: the latter less the former.
    #[serde(serialize_with = "number")]
    pub gain: f64,
    /// What the gain exceeds with the decision's confidence, however often one looks; `None` with too few steps to say.
    pub lower_bound: Option<f64>,
    /// Whether it is as good as certain that more steps would not help.
    pub hopeless: bool,
    /// What the lower bound must exceed.
    pub min_gain: f64,
    /// Whether nobody competes in either case, so that the gain is certain.
    pub without_rivals: bool,
    /// What the chain would pay more; `None` without an active validator.
    pub chain_gain: Option<ChainGain>,
    /// Rule `beats-leader` only: the duel that decides.
    pub duel: Option<Duel>,
    /// Gain of each step.
    pub gains: Vec<f64>,
    /// Whether the candidate may be published under this hotkey.
    pub opens: bool,
}

/// The candidate against one deployed model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Duel {
    /// The opponent.
    pub uid: u16,
    /// Mean part of a step's batches that the candidate wins.
    pub wins: f64,
    /// The most that a bet on more than half, step by step, ever made of a stake of 1.
    #[serde(serialize_with = "number")]
    pub wealth: f64,
    /// What it must reach.
    #[serde(serialize_with = "number")]
    pub needed_wealth: f64,
    /// Whether it has.
    pub is_certain: bool,
}

impl Prospect {
    /// Whether validators and chain pay enough more.
    pub(super) fn pays(&self) -> bool {
        let chain_pays = self.chain_gain.is_none_or(|gain| match self.place_at_risk {
            true => gain.median > 0.0,
            false => gain.median >= self.min_gain && gain.fifth_percentile > 0.0,
        });
        self.is_certain() && chain_pays
    }

    /// Whether the gain certainly exceeds what it must.
    pub(super) fn is_certain(&self) -> bool {
        self.lower_bound.is_some_and(|bound| bound > self.min_gain)
    }
}

/// A deployed model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// Its miner's place.
    pub uid: u16,
    /// Its miner's key.
    pub hotkey: Hotkey,
    /// The commitment's text.
    pub model: String,
    /// Block of the commitment.
    pub block: u64,
    /// Whether it is ours.
    pub is_own: bool,
    /// Whether validators evaluate it.
    pub evaluated: bool,
    /// Mean loss; infinite if it cannot be read.
    #[serde(serialize_with = "number")]
    pub loss: f64,
    /// Why validators cannot read it.
    pub unreadable: Option<String>,
}

impl Standing {
    fn of(Model { entry, losses }: &Model) -> Self {
        Self {
            uid: entry.uid,
            hotkey: entry.hotkey.clone(),
            model: entry.metadata.id.to_string(),
            block: entry.metadata.block.get(),
            is_own: entry.is_own,
            evaluated: entry.evaluated,
            loss: losses.as_ref().map_or(f64::INFINITY, |losses| mean_loss(losses)),
            unreadable: losses.as_ref().err().cloned(),
        }
    }
}

fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    jsonl::number(*value).serialize(serializer)
}

fn mean_loss(losses: &[Vec<f64>]) -> f64 {
    mean(&losses.concat())
}

/// What a decision has found.
pub(super) struct Findings<'a> {
    pub(super) alpha: f64,
    pub(super) prospects: Vec<Prospect>,
    pub(super) objection: Option<String>,
    pub(super) consensus: Option<Consensus<'a>>,
    pub(super) backtest: Option<Backtest>,
    pub(super) settled: bool,
}

/// The record of what was found. The verdict is that of the best prospect: one that opens before one that does not,
/// then the highest gain, then the lowest uid.
pub(super) fn decision(inputs: &Inputs<'_>, findings: Findings<'_>) -> Decision {
    let Findings { alpha, prospects, objection, consensus, backtest, settled } = findings;
    let mut models: Vec<Standing> = inputs.models.iter().map(Standing::of).collect();
    models.sort_by_key(|model| model.uid);
    let losses = &inputs.candidate.losses;
    let mut decision = Decision {
        verdict: Verdict::Stay,
        reason: String::new(),
        rule: inputs.options.rule,
        block: inputs.snapshot.block,
        leader: inputs.leader(),
        settled,
        num_steps: inputs.num_steps(),
        max_steps: inputs.max_steps,
        least_steps: look::least_steps(alpha, inputs.options),
        num_batches: losses.iter().map(Vec::len).sum(),
        num_tested: inputs.num_tested.max(1),
        bound: if inputs.options.exact { Bound::Exact } else { Bound::Asymptotic },
        alpha,
        confidence: 1.0 - alpha,
        candidate_hash: inputs.candidate.hash.clone(),
        candidate_loss: mean_loss(losses),
        prospects,
        models,
        network: consensus.map(|consensus| consensus.network),
        backtest,
        warnings: Vec::new(),
    };
    decision.warnings = warnings::of(inputs, &decision);
    decision.reason = match (decision.best(), objection) {
        (_, Some(objection)) => objection,
        (Some(best), None) => words::reason(&decision, best),
        (None, None) => "There is no registered hotkey to publish under.".to_owned(),
    };
    if let Some(hotkey) = decision.best().filter(|best| best.opens).map(|best| best.hotkey.clone()) {
        decision.verdict = Verdict::Publish { hotkey };
    }
    decision
}

impl Decision {
    /// The prospect that decided: the one to publish under, or the one that came nearest to it.
    pub fn best(&self) -> Option<&Prospect> {
        let nearest = |one: &&Prospect, other: &&Prospect| {
            (one.opens.cmp(&other.opens))
                .then(other.cooldown_until.is_some().cmp(&one.cooldown_until.is_some()))
                .then(one.gain.total_cmp(&other.gain))
        };
        // Of equals `max_by` takes the last: the lowest uid from behind.
        self.prospects.iter().rev().max_by(nearest)
    }
}
