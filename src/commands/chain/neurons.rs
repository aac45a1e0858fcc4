//! `assay chain neurons`: who is on the subnet.

use anyhow::Result;
use serde_json::{Value, json};

use super::status::tao;
use super::target::Target;
use super::{currency_name, json_text, share};
use crate::chain::tempo::{per_day, seconds_per_epoch};
use crate::chain::{Neuron, UNITS_PER_TAO};
use crate::cli::chain::ChainPlaceArgs;
use crate::figures::count;
use crate::metrics::printer::Printer;
use crate::metrics::table::table;

pub(super) fn run(args: &ChainPlaceArgs, printer: &Printer) -> Result<()> {
    let chain = Target::of(args, printer)?.open()?;
    let snapshot = chain.snapshot()?;
    if args.json {
        return printer.result(&json_text(&snapshot.neurons.iter().map(json).collect()));
    }
    let pay = format!(" {} a day", currency_name(chain.status()?.currency));
    let header = [" uid", "hotkey", " stake", " incentive", &pay, "permit", " last update", " registered at"];
    let seconds_per_epoch = seconds_per_epoch(snapshot.tempo, chain.seconds_per_block());
    let row = |neuron: &Neuron| {
        let pay = per_day(neuron.emission as f64, seconds_per_epoch) / UNITS_PER_TAO as f64;
        vec![
            neuron.uid.to_string(),
            neuron.hotkey.clone(),
            format!("{:.3}", tao(neuron.stake)),
            format!("{:.5}", share(neuron.incentive)),
            format!("{pay:.3}"),
            if neuron.validator_permit { "yes" } else { "" }.to_owned(),
            if neuron.last_update == 0 { "never".to_owned() } else { count(neuron.last_update) },
            count(neuron.registered_at),
        ]
    };
    let rows: Vec<Vec<String>> = snapshot.neurons.iter().map(row).collect();
    printer.note(&format!("{} hotkeys on {} at block {}.", rows.len(), chain.describe(), count(snapshot.block)));
    printer.result(&table(&header, &rows))
}

fn json(neuron: &Neuron) -> Value {
    json!({
        "uid": neuron.uid,
        "hotkey": neuron.hotkey,
        "stake": neuron.stake,
        "incentive": neuron.incentive,
        "validator_permit": neuron.validator_permit,
        "last_update": neuron.last_update,
        "emission": neuron.emission,
        "registered_at": neuron.registered_at,
    })
}
