//! The record of a decision: what it was, and every number it rests on, as JSON and in plain words.
//!
//! The record holds no time and nothing random. Numbers that JSON does not know are the strings "inf", "-inf" and "nan".
//! Texts that strangers chose (their keys, repositories, commits) stay out of the words, or lose their control
//! characters first.

use std::iter;

use serde::{Serialize, Serializer};

use super::{Inputs, Model, bound, warnings};
use crate::chain::Hotkey;
use crate::figures::count;
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

/// A decision and its reasons.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// The answer.
    pub verdict: Verdict,
    /// Whether no further step can be needed.
    pub settled: bool,
    /// Why, as a sentence.
    pub reason: String,
    /// What publishing had to bring.
    pub rule: GateRule,
    /// The block at which the chain was read.
    pub block: u64,
    /// The uid with the highest incentive.
    pub leader: Option<u16>,
    /// Steps with a batch.
    pub num_steps: usize,
    /// Batches of all steps.
    pub num_batches: usize,
    /// The how many-th candidate since the last publish.
    pub num_tested: u64,
    /// The certainty of the lower bounds: the confidence of the recipe, less what other candidates may spend.
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
    /// What the gain exceeds with the decision's confidence.
    #[serde(serialize_with = "number")]
    pub lower_bound: f64,
    /// What the lower bound must exceed.
    pub min_gain: f64,
    /// Whether nobody competes in either case, so that the gain is certain.
    pub without_rivals: bool,
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
    /// What that part exceeds with the decision's confidence.
    pub lower_bound: f64,
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
    bound::mean(&losses.concat())
}

/// The record of what was found. The verdict is that of the best prospect: one that opens before one that does not,
/// then the highest gain, then the lowest uid.
pub(super) fn decision(
    inputs: &Inputs<'_>,
    tail: f64,
    prospects: Vec<Prospect>,
    objection: Option<String>,
) -> Decision {
    let mut models: Vec<Standing> = inputs.models.iter().map(Standing::of).collect();
    models.sort_by_key(|model| model.uid);
    let warnings = warnings::of(inputs, best(&prospects));
    let losses = &inputs.candidate.losses;
    let (verdict, reason) = match (best(&prospects), objection) {
        (Some(best), None) if best.opens => {
            (Verdict::Publish { hotkey: best.hotkey.clone() }, reason(inputs.options.rule, best))
        }
        (_, Some(objection)) => (Verdict::Stay, objection),
        (Some(best), None) => (Verdict::Stay, reason(inputs.options.rule, best)),
        (None, None) => (Verdict::Stay, "There is no registered hotkey to publish under.".to_owned()),
    };
    Decision {
        settled: false,
        verdict,
        reason,
        rule: inputs.options.rule,
        block: inputs.block,
        leader: inputs.leader,
        num_steps: losses.iter().filter(|batches| !batches.is_empty()).count(),
        num_batches: losses.iter().map(Vec::len).sum(),
        num_tested: inputs.num_tested.max(1),
        confidence: 1.0 - tail,
        candidate_hash: inputs.candidate.hash.clone(),
        candidate_loss: mean_loss(losses),
        prospects,
        models,
        warnings,
    }
}

fn best(prospects: &[Prospect]) -> Option<&Prospect> {
    // Of equals `max_by` takes the last: the lowest uid from behind.
    prospects.iter().rev().max_by(|one, other| (one.opens.cmp(&other.opens)).then(one.gain.total_cmp(&other.gain)))
}

/// Why a prospect opens, or does not.
fn reason(rule: GateRule, prospect: &Prospect) -> String {
    let Prospect { min_gain, opens, .. } = prospect;
    match (rule, &prospect.duel) {
        (GateRule::Pay, _) => {
            let needed = match prospect.place_at_risk {
                true => "nothing, which suffices because the place can be lost before it is paid".to_owned(),
                false => format!("`gate.min_gain`, {min_gain:.4}"),
            };
            match (opens, prospect.gains.len()) {
                (true, _) => format!("The lower bound of the gain exceeds {needed}."),
                (false, 1) if !prospect.without_rivals => {
                    "One step alone gives no certainty: score at least two.".to_owned()
                }
                (false, _) if prospect.place_at_risk => "It is not certain that anything is gained.".to_owned(),
                (false, _) => format!("The gain does not certainly exceed {needed}."),
            }
        }
        (GateRule::BeatsLeader, None) => "No model is deployed that the candidate would have to beat.".to_owned(),
        (GateRule::BeatsLeader, Some(Duel { uid, wins, lower_bound })) => format!(
            "The candidate wins {:.1} % of the batches against the model of uid {uid}, certainly more than {:.1} %; it \
             must be certain of half.",
            100.0 * wins,
            100.0 * lower_bound
        ),
    }
}

impl Decision {
    /// The prospect that decided: the one to publish under, or the one that came nearest to it.
    pub fn best(&self) -> Option<&Prospect> {
        best(&self.prospects)
    }

    /// The decision and its reasons in plain words.
    pub fn paragraph(&self) -> String {
        let verdict = match &self.verdict {
            Verdict::Publish { hotkey } => format!("Publish under `{hotkey}`."),
            Verdict::Stay => "Stay.".to_owned(),
        };
        let pay = self.best().filter(|_| self.num_steps > 0).map(|best| self.pay(best));
        let losses = (self.num_steps > 0).then(|| self.losses());
        let sentences = iter::once(verdict).chain(iter::once(self.reason.clone())).chain(pay).chain(losses);
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
        if best.gains.iter().all(|gain| *gain == 0.0) {
            return format!(
                "Over {} {steps} ({} batches) {rivals}, publishing under `{hotkey}` (uid {uid}) changes nothing in any of \
                 them: our share of the miners' incentive stays {stay:.4}{nth}.",
                self.num_steps,
                count(self.num_batches as u64),
            );
        }
        format!(
            "Over {} {steps} ({} batches) {rivals}, publishing under `{hotkey}` (uid {uid}) changes our share of the \
             miners' incentive from {stay:.4} to {publish:.4}: δ is {gain:+.4}, and by Student's t more than \
             {lower_bound:+.4} with {:.*} % confidence{nth}.",
            self.num_steps,
            count(self.num_batches as u64),
            self.num_digits_of_confidence(),
            100.0 * self.confidence,
        )
    }

    /// Decimals that a confidence in per cent needs so that it is not rounded to 100.
    fn num_digits_of_confidence(&self) -> usize {
        let leading_zeros = -(100.0 * (1.0 - self.confidence)).log10();
        leading_zeros.clamp(0.0, 12.0).ceil() as usize + 2
    }

    fn losses(&self) -> String {
        let standing = |uid: u16| self.models.iter().find(|model| model.uid == uid);
        let own = self.best().and_then(|best| standing(best.uid));
        let own = own.map(|own| format!(", of our deployed one {:.4}", own.loss));
        let leader = self.leader.and_then(standing);
        let leader = leader.map(|leader| format!(", of the leader's (uid {}) {:.4}", leader.uid, leader.loss));
        let (own, leader) = (own.unwrap_or_default(), leader.unwrap_or_default());
        format!("The mean loss of the candidate is {:.4}{own}{leader}.", self.candidate_loss)
    }
}
