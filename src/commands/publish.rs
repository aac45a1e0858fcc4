//! `assay publish`: one model folder to the hub and the chain, by hand.

use anyhow::{Result, ensure};
use serde_json::json;

use super::Place;
use crate::cli::PublishArgs;
use crate::contest::{Contest, fresh_seed};
use crate::data;
use crate::error::{Failure, input};
use crate::field;
use crate::gate::Verdict;
use crate::interrupt;
use crate::metrics::printer::Printer;
use crate::network::Network;
use crate::publish::journal::Hold;
use crate::publish::{self, Order, Published};
use crate::rules::Rules;

/// Runs the command.
pub fn run(args: &PublishArgs, printer: &Printer) -> Result<()> {
    super::set_threads(args.threads)?;
    let place = Place::of(&args.network)?;
    ensure!(
        args.model.is_dir(),
        input(format!("{} is not a folder: name the folder that holds config.json", args.model.display()))
    );
    let rules = place.resolved.as_ref().map_or_else(Rules::default, |resolved| resolved.rules.clone());
    let hotkey = match (&args.hotkey, place.chain.hotkeys.as_slice()) {
        (Some(hotkey), _) => hotkey.clone(),
        (None, [hotkey]) => hotkey.clone(),
        (None, hotkeys) => {
            return Err(input(format!("there are several hotkeys ({}): choose one by --hotkey", hotkeys.join(", "))));
        }
    };
    let repo_id = args.repo.as_ref().or(place.hub.repo.as_ref()).ok_or_else(|| {
        input("no repository to publish to: name one by --repo namespace/name, or by hub.repo of a recipe")
    })?;
    let network = Network::open(&place.hub, &place.chain)?;
    let order = Order { model_dir: &args.model, repo_id, hotkey: &hotkey, criteria: &rules.criteria };
    if args.dry_run {
        return printer.result(&publish::rehearse(&network, &order)?);
    }
    // From here on an end in between is made good by the same command.
    interrupt::install()?;
    let hold = Hold::take(network.chain.as_ref(), &hotkey)?;
    if args.gate {
        let resolved = place.resolved.as_ref().ok_or_else(|| input("--gate needs --recipe"))?;
        ask_gate(args, resolved, printer)?;
    }
    if args.wait {
        publish::sleep_until_allowed(network.chain.as_ref(), &hotkey, printer)?;
    }
    let published = publish::publish(&network, &order, &hold, &|_| Ok(()), printer)?;
    if args.json {
        return printer.result(&json(&published, &hotkey).to_string());
    }
    printer.result(&published.sentence(&hotkey))
}

/// Refuses, with exit code 4, what the gate would not publish.
fn ask_gate(args: &PublishArgs, resolved: &crate::recipe::Resolved, printer: &Printer) -> Result<()> {
    let sequence_length = resolved.rules.criteria.sequence_length;
    let data = data::open(&resolved.recipe, sequence_length)?;
    let contest = Contest::open(resolved, &data, printer)?;
    let mut score = |rows: &[Vec<u32>]| field::losses_of_folder(&args.model, resolved.recipe.model.backend, rows);
    let Some(judged) = contest.judge(&args.model, fresh_seed(), 1, &mut score)? else {
        return Err(Failure::Interrupted("interrupted while scoring; nothing was sent".to_owned()).into());
    };
    printer.note(&judged.table());
    printer.note(&judged.decision.paragraph());
    match judged.decision.verdict {
        Verdict::Publish { .. } => Ok(()),
        Verdict::Stay => Err(Failure::No("the gate is closed: nothing was published".to_owned()).into()),
    }
}

fn json(published: &Published, hotkey: &str) -> serde_json::Value {
    let id = &published.metadata.id;
    json!({
        "repo": id.repo_id(),
        "commit": id.commit,
        "hash": id.hash,
        "hotkey": hotkey,
        "block": published.metadata.block.get(),
        "commitment": id.to_string(),
        "before": published.before,
    })
}
