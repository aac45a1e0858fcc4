//! Fetches models that the next pass of updates will want while the present step is scored. Nothing depends on it: that
//! pass asks the hub again, and finds the files here already.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Seams;
use crate::chain::Hotkey;
use crate::field::fetch_for;
use crate::hub::model_id::ModelMetadata;
use crate::interrupt;
use crate::rules::Rules;

/// Whose commitments to which models could not be fetched, or were not taken.
pub(super) type Failed = Mutex<HashSet<(Hotkey, ModelMetadata)>>;

/// Fetches up to `room` models that are committed and not known, in the order of the miners' turns, until `stop` is set.
///
/// What failed once, here or in a pass, is left to the passes: else it would be fetched in full during every step.
pub(super) fn warm(
    seams: &Seams<'_>,
    rules: &Rules,
    tracker: &BTreeMap<Hotkey, ModelMetadata>,
    failed: &Failed,
    uids: &[u16],
    room: usize,
    stop: &AtomicBool,
) {
    // Whatever fails here fails again where it is told.
    let Ok(snapshot) = seams.chain.snapshot() else { return };
    let mut num_fetched = 0;
    for uid in uids {
        if num_fetched == room || stop.load(Ordering::Relaxed) || interrupt::requested() {
            return;
        }
        let Some(neuron) = snapshot.neurons.iter().find(|neuron| neuron.uid == *uid) else { continue };
        let Some(metadata) = snapshot.metadata(&neuron.hotkey) else { continue };
        if tracker.get(&neuron.hotkey) == Some(&metadata) {
            continue;
        }
        let wanted = (neuron.hotkey.clone(), metadata);
        if failed.lock().unwrap_or_else(PoisonError::into_inner).contains(&wanted) {
            continue;
        }
        match fetch_for(seams.hub, seams.cache, rules, &wanted.1, &wanted.0) {
            Ok(Ok(_)) => num_fetched += 1,
            _ => drop(failed.lock().unwrap_or_else(PoisonError::into_inner).insert(wanted)),
        }
    }
}
