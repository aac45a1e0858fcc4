//! `assay validate`: a validator of subnet 9 at work on this machine.

use std::sync::Arc;

use anyhow::Result;

use super::Place;
use crate::cli::ValidateArgs;
use crate::clock::{Clock, SystemClock};
use crate::error::input;
use crate::figures::count;
use crate::hub::fetch::Cache;
use crate::interrupt;
use crate::metrics::printer::Printer;
use crate::network::Network;
use crate::rules::Rules;
use crate::score::cache::LossCache;
use crate::score::pages;
use crate::validator::examiner::ByModel;
use crate::validator::state::{Beginning, Folder};
use crate::validator::{FIRST_CLEANUP_AFTER, Options, Seams, Validator};

/// Runs the command.
pub fn run(args: &ValidateArgs, printer: &Printer) -> Result<()> {
    super::set_threads(args.scoring.threads)?;
    let mut place = Place::of(&args.network)?;
    place.choose_hotkey(args.hotkey.as_ref());
    let rules = rules(args, &place)?;
    let scoring = place.scoring(&args.scoring, &rules, printer)?;
    let network = Network::open(&place.hub, &place.chain, printer)?;
    let sets_weights_as = hotkey(args, &network, printer)?;
    let pages = pages::of_validator(place.resolved.as_ref(), &rules, printer)?;
    let num_pages = args.pages.unwrap_or_else(|| place.pages_per_step(&rules));

    let clock = Arc::new(SystemClock);
    let beginning_block = network.chain.block()?;
    let beginning = Beginning {
        version_key: rules.validator.weights_version_key,
        seed: args.seed,
        network: &format!("{} and {}", network.chain.describe(), network.hub.describe()),
        block: beginning_block,
        next_cleanup: clock.unix_ms().saturating_add(FIRST_CLEANUP_AFTER.as_millis() as u64),
    };
    let (folder, state, note) = Folder::open(&args.dir, beginning)?;
    if let Some(note) = note {
        printer.note(&note);
    }
    // From here on Ctrl-C is an orderly end.
    interrupt::install()?;
    let cache = Cache::new(&Folder::models_dir(&args.dir));
    // A loss that is known from before takes no time, and would let a model pass that is too slow.
    let nothing_known = LossCache::none();
    let losses = if args.time_limit.is_some() { &nothing_known } else { &network.losses };
    let examiner = ByModel::new(pages.as_ref(), &scoring, losses, rules.validator.output, printer);
    let (version, criteria) = (rules.validator.since, &rules.criteria);
    printer.note(&format!(
        "A validator of {version} on {} and {}, with rows of {} tokens, {num_pages} pages a step; its state is in {}{}.",
        network.chain.describe(),
        network.hub.describe(),
        criteria.sequence_length,
        args.dir.display(),
        if state.step > 0 { format!(", after step {}", state.step) } else { String::new() }
    ));
    if let Some(hotkey) = &sets_weights_as {
        let blocks = rules.blocks_per_epoch;
        let first = state.epoch_block.unwrap_or(beginning_block).saturating_add(blocks);
        printer
            .note(&format!("Sets weights as {hotkey} every {blocks} blocks, the next time at block {}.", count(first)));
    }
    let options =
        Options { rules, num_pages, sets_weights_as, seconds_per_model: args.time_limit, json: args.json, warms: true };
    let seams = Seams {
        hub: network.hub.as_ref(),
        chain: network.chain.as_ref(),
        cache: &cache,
        clock: clock.as_ref(),
        examiner: &examiner,
        printer,
    };
    Validator::new(seams, options, folder, state).run(args.steps, &|_| Ok(()))
}

/// The rules of the recipe, or those of March 2024, with the version of the validator's program that was asked for.
fn rules(args: &ValidateArgs, place: &Place) -> Result<Rules> {
    let mut rules = place.rules();
    if let Some(since) = &args.rules {
        let version = Rules::version(since).map_err(|sentence| input(format!("--rules: {sentence}")))?;
        rules.validator = version.clone();
    }
    Ok(rules)
}

/// The hotkey under which weights are set, if they are to be.
fn hotkey(args: &ValidateArgs, network: &Network, printer: &Printer) -> Result<Option<String>> {
    if !args.set_weights {
        return Ok(None);
    }
    let (chain, hotkey) = (network.chain.as_ref(), network.only_hotkey()?);
    let snapshot = chain.snapshot()?;
    let neuron = snapshot.neuron(hotkey).ok_or_else(|| chain.unregistered(hotkey).context("no weights can be set"))?;
    chain.unlock(hotkey)?;
    if !neuron.validator_permit {
        printer.warn(&format!("the hotkey {hotkey} has no validator permit: the weights it sets do not count"));
    }
    Ok(Some(hotkey.clone()))
}
