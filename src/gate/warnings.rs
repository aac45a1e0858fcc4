//! What makes a decision's numbers less sure than they look, as sentences.

use super::record::{Decision, Prospect};
use super::{Inputs, Model};
use crate::recipe::GateRule;

/// A model that cannot be read is named with its reason; of many, these.
const MAX_NAMED: usize = 3;

/// The warnings of a decision.
pub(super) fn of(inputs: &Inputs<'_>, decision: &Decision) -> Vec<String> {
    let mut warnings = Vec::new();
    warnings.extend(candidate_unreadable(inputs));
    warnings.extend(decision.best().and_then(gain_without_spread));
    let mut own: Vec<&Model> = inputs.models.iter().filter(|model| model.entry.is_own).collect();
    own.sort_by_key(|model| model.entry.uid);
    warnings.extend(own.into_iter().filter_map(own_unpaid));
    warnings.extend(rivals_unreadable(inputs));
    match inputs.options.rule {
        GateRule::Pay => warnings.extend(network(decision)),
        GateRule::BeatsLeader => warnings.extend(no_leader(inputs)),
    }
    warnings
}

fn candidate_unreadable(inputs: &Inputs<'_>) -> Option<String> {
    let losses = || inputs.candidate.losses.iter().flatten();
    let num_unreadable = losses().filter(|loss| !loss.is_finite()).count();
    (num_unreadable > 0).then(|| {
        let num_batches = losses().count();
        format!("The candidate's loss is not finite on {num_unreadable} of {num_batches} batches, which it cannot win.")
    })
}

fn gain_without_spread(best: &Prospect) -> Option<String> {
    let [first, rest @ ..] = best.gains.as_slice() else { return None };
    let is_bound = best.lower_bound.is_some() && !best.without_rivals && rest.iter().all(|gain| gain == first);
    is_bound.then(|| "Every step gave the same gain, so the lower bound is the gain itself.".to_owned())
}

/// What the consensus of the validators leaves open.
fn network(decision: &Decision) -> Option<String> {
    let Some(network) = &decision.network else {
        return (decision.num_steps > 0).then(|| {
            "No validator is active, so that nothing is known of their consensus: the gain at one of them alone decides."
                .to_owned()
        });
    };
    let frozen = network.validators.iter().filter(|validator| validator.is_frozen);
    let frozen: Vec<String> = frozen.map(|validator| validator.uid.to_string()).collect();
    let validator = if frozen.len() == 1 { "validator" } else { "validators" };
    (!frozen.is_empty()).then(|| {
        format!(
            "The weights of {} active {validator} (uid {}) are far from what we foretell, and are taken to stay as they are.",
            frozen.len(),
            frozen.join(", ")
        )
    })
}

/// An own model that earns nothing.
fn own_unpaid(Model { entry, losses }: &Model) -> Option<String> {
    let name = format!("our model under `{}` (uid {})", entry.hotkey, entry.uid);
    match losses {
        _ if !entry.evaluated => Some(format!("No validator evaluates {name}, so it counts as earning nothing.")),
        Err(reason) => Some(format!(
            "Validators cannot read {name} ({}), so it counts as earning nothing; those that hold a copy still pay it.",
            printable(reason)
        )),
        Ok(_) => None,
    }
}

fn rivals_unreadable(inputs: &Inputs<'_>) -> Option<String> {
    let rivals = inputs.models.iter().filter(|model| !model.entry.is_own);
    let mut unreadable: Vec<(u16, &str)> =
        rivals.filter_map(|model| Some((model.entry.uid, model.losses.as_ref().err()?.as_str()))).collect();
    unreadable.sort_unstable();
    let named = unreadable.iter().take(MAX_NAMED).map(|(uid, reason)| format!("uid {uid}: {}", printable(reason)));
    let named = named.collect::<Vec<_>>().join("; ");
    let more = if unreadable.len() > MAX_NAMED { "; ..." } else { "" };
    let (models, lose) = if unreadable.len() == 1 { ("model", "loses") } else { ("models", "lose") };
    (!unreadable.is_empty())
        .then(|| format!("{} rival {models} that cannot be read {lose} every batch ({named}{more}).", unreadable.len()))
}

fn no_leader(inputs: &Inputs<'_>) -> Option<String> {
    let leads = |model: &&Model| Some(model.entry.uid) == inputs.leader() && model.entry.evaluated;
    match (inputs.leader(), inputs.models.iter().find(leads)) {
        (Some(_), Some(leader)) if leader.losses.is_ok() => None,
        (Some(uid), _) => Some(format!(
            "The leader (uid {uid}) has no model that can be read, so the candidate must beat all others instead."
        )),
        (None, _) => Some("Nobody leads yet, so the candidate must beat every deployed model instead.".to_owned()),
    }
}

/// A text without control characters: it may hold a stranger's words.
fn printable(text: &str) -> String {
    text.trim_end_matches('.').chars().filter(|char| !char.is_control()).collect()
}
