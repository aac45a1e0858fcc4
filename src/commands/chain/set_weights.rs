//! `assay chain set-weights`: a validator's weights from a file.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::target::Target;
use super::{json_text, share, weights_file};
use crate::cli::chain::{ChainPlaceArgs, SignerArgs};
use crate::error::input;
use crate::figures::count;
use crate::metrics::printer::Printer;
use crate::metrics::table::table;
use crate::score::weights::as_sent;

pub(super) fn run(
    file: &Path,
    version_key: Option<u64>,
    signer: &SignerArgs,
    args: &ChainPlaceArgs,
    printer: &Printer,
) -> Result<()> {
    let weights = weights_file::read(file)?;
    let target = Target::of(args, printer)?;
    let version_key = version_key.unwrap_or(target.rules.validator.weights_version_key);
    let (chain, hotkey) = target.open_as(signer)?;
    let snapshot = chain.snapshot()?;
    if snapshot.neuron(&hotkey).is_none() {
        return Err(chain.unregistered(&hotkey));
    }
    if let Some((uid, _)) = weights.iter().find(|(uid, _)| snapshot.neurons.iter().all(|neuron| neuron.uid != *uid)) {
        return Err(input(format!(
            "{}: no hotkey is registered as uid {uid} on {}; leave it out",
            file.display(),
            chain.describe()
        )));
    }
    let sent = as_sent(weights.iter().copied());
    let num_lost = weights.iter().filter(|(_, weight)| *weight > 0.0).count() - sent.len();
    if num_lost > 0 {
        printer.warn(&format!("weights of {num_lost} uids round to 0 beside the largest, and are not sent"));
    }
    let block = chain.set_weights(&hotkey, &sent, version_key)?;
    if args.json {
        let weights: Map<String, Value> = sent.iter().map(|(uid, weight)| (uid.to_string(), json!(weight))).collect();
        let answer = json!({ "hotkey": hotkey, "block": block, "version_key": version_key, "weights": weights });
        return printer.result(&json_text(&answer));
    }
    let row = |&(uid, weight): &(u16, u16)| vec![uid.to_string(), weight.to_string(), format!("{:.5}", share(weight))];
    let rows: Vec<Vec<String>> = sent.iter().map(row).collect();
    printer.result(&format!(
        "Set weights as {hotkey} at block {}, version {version_key} of the validator's program:\n{}",
        count(block),
        table(&[" uid", " sent", " of the largest"], &rows)
    ))
}
