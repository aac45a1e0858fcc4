//! Fetches models that the next pass of updates will want while the present step is scored. Nothing depends on it: that
//! pass asks the hub again, and finds the files here already.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Seams;
use crate::chain::Hotkey;
use crate::hub::fetch::fetch_of;
use crate::hub::model_id::ModelMetadata;
use crate::interrupt;
use crate::rules::Rules;

/// Fetches up to `room` models that are committed and not known, in the order of the miners' turns, until `stop` is set.
pub(super) fn warm(
    seams: &Seams<'_>,
    rules: &Rules,
    tracker: &BTreeMap<Hotkey, ModelMetadata>,
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
        let criteria = rules.criteria_for(metadata.block.get());
        let bound_to = rules.validator.bound_hash.then_some(neuron.hotkey.as_str());
        if let Ok(Ok(_)) = fetch_of(seams.hub, seams.cache, &metadata, &criteria, bound_to) {
            num_fetched += 1;
        }
    }
}
