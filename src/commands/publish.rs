//! `assay publish`: one model folder to the hub and the chain, by hand.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;

use super::Place;
use crate::cli::PublishArgs;
use crate::contest::{Contest, Judging, ScoreCandidate, fresh_seed};
use crate::data;
use crate::data::held_out::HeldOut;
use crate::error::{Failure, input};
use crate::field;
use crate::gate::Verdict;
use crate::interrupt;
use crate::metrics::printer::Printer;
use crate::network::Network;
use crate::placement::Placement;
use crate::publish::journal::Hold;
use crate::publish::request::{self, Request, Terms};
use crate::publish::{self, Order, Published, card, sanity};
use crate::recipe::Resolved;
use crate::rules::Rules;

/// Runs the command.
pub fn run(args: &PublishArgs, printer: &Printer) -> Result<()> {
    super::set_threads(args.threads)?;
    let mut place = Place::of(&args.network)?;
    if let Some(request) = &args.commit {
        return commit(args, &Request::read(request)?, &place, printer);
    }
    let model_dir = args.model.as_deref().ok_or_else(|| input("no model to publish: name its folder"))?;
    ensure!(
        model_dir.is_dir(),
        input(format!("{} is not a folder: name the folder that holds config.json", model_dir.display()))
    );
    let repo_id = args.repo.clone().or_else(|| place.hub.repo.clone()).ok_or_else(|| {
        input("no repository to publish to: name one by --repo namespace/name, or by hub.repo of a recipe")
    })?;
    if args.gate {
        let mut resolved = place.resolved.ok_or_else(|| input("--gate needs --recipe"))?;
        resolved.recipe.hub.repo = Some(repo_id);
        return through_gate(args, model_dir, &resolved, printer);
    }
    let rules = place.rules();
    let recipes_chain = place.chain.clone();
    place.choose_hotkey(args.hotkey.as_ref());
    let mut network = Network::open(&place.hub, &place.chain, printer)?;
    let hotkey = &network.only_hotkey()?.clone();
    network.add_own(&recipes_chain);
    let order = Order {
        model_dir,
        repo_id: &repo_id,
        hotkey,
        criteria: &rules.criteria,
        waits: args.wait,
        visibility: place.visibility(),
        card: Some(&card::text(model_dir, None)),
        hashes: network.losses.hashes(),
    };
    // What is said at once comes before what takes minutes.
    publish::registration(network.chain.as_ref(), hotkey, &network.chain.snapshot()?)?;
    if args.prepare.is_none() && !args.dry_run {
        network.chain.unlock(hotkey)?;
    }
    look_at(&order, &rules, printer)?;
    if args.dry_run {
        return printer.result(&publish::rehearse(&network, &order)?);
    }
    let hold = take_hold(&network, hotkey)?;
    if let Some(path) = &args.prepare {
        return tell_prepared(args, path, &request::prepare(&network, &order, &hold, None, printer)?, printer);
    }
    let published = publish::publish(&network, &order, &hold, &|_| Ok(()), printer)?;
    tell(args, &published, hotkey, printer)
}

/// Commits what was prepared elsewhere.
fn commit(args: &PublishArgs, request: &Request, place: &Place, printer: &Printer) -> Result<()> {
    let network = Network::open(&place.hub, &place.chain, printer)?;
    // Which keys sign is said here, and not where the request comes from.
    ensure!(
        network.hotkeys.contains(&request.hotkey),
        input(format!(
            "the request is for the hotkey {}, which is none of chain.hotkeys ({}): name it there, in a recipe, if it is to sign",
            request.hotkey,
            place.chain.hotkeys().join(", ")
        ))
    );
    printer.note(&format!(
        "To be committed as {} to {}: {}",
        request.hotkey,
        network.chain.describe(),
        request.commitment
    ));
    if request.decided_on.is_none() {
        printer.note("The request was prepared without asking a gate.");
    }
    let hold = take_hold(&network, &request.hotkey)?;
    let terms = Terms {
        criteria: &place.rules().criteria,
        waits: args.wait,
        visibility: place.visibility(),
        repo_id: place.hub.repo.as_deref(),
    };
    let published = request::commit(&network, request, &terms, &hold, printer)?;
    tell(args, &published, &request.hotkey, printer)
}

/// Refuses what validators would not take, and warns of what they might not.
fn look_at(order: &Order<'_>, rules: &Rules, printer: &Printer) -> Result<()> {
    let length = rules.criteria.sequence_length;
    let found = sanity::examine(order, rules, &HeldOut::read(&data::open_sample(length)?, 8, length)?.rows)?;
    found.warnings.iter().for_each(|warning| printer.warn(warning));
    ensure!(found.refusals.is_empty(), input(found.refusals.join(" ")));
    Ok(())
}

/// Publishes under the hotkey that the gate chooses; refuses, with exit code 4, what the gate would not publish.
fn through_gate(args: &PublishArgs, model_dir: &Path, resolved: &Resolved, printer: &Printer) -> Result<()> {
    let recipe = &resolved.recipe;
    let placement = Placement::open(
        args.device.or(recipe.score.device).unwrap_or(recipe.train.device),
        recipe.model.backend,
        printer,
    )?;
    let data = data::open(recipe, resolved.rules.criteria.sequence_length, printer)?;
    let contest = Contest::open(resolved, &placement, &data, printer)?;
    if args.prepare.is_none() && !args.dry_run {
        let network = &contest.network;
        network.hotkeys.iter().try_for_each(|hotkey| network.chain.unlock(hotkey))?;
    }
    let mut score =
        |rows: &[Vec<u32>]| field::losses_of_folder(model_dir, &contest.scoring, &contest.network.losses, rows);
    let seed = fresh_seed();
    // Anew on the same pages, whose losses are known, for as long as the field changes between decision and commitment.
    loop {
        if let Some(done) = judge_and_publish(args, model_dir, &contest, seed, &mut score, printer)? {
            return Ok(done);
        }
        printer.note("The field has changed since the decision, which is made anew.");
    }
}

/// `None`: the field has changed between decision and commitment.
fn judge_and_publish(
    args: &PublishArgs,
    model_dir: &Path,
    contest: &Contest<'_>,
    seed: u64,
    score: ScoreCandidate<'_>,
    printer: &Printer,
) -> Result<Option<()>> {
    let Judging::Judged(judged) = contest.judge(model_dir, seed, 1, None, score)? else {
        return Err(Failure::Interrupted("interrupted while scoring; nothing was sent".to_owned()).into());
    };
    if !judged.pages.is_empty() {
        printer.note(&judged.table());
    }
    printer.note(&judged.decision.paragraph());
    let Verdict::Publish { hotkey } = &judged.decision.verdict else {
        return Err(Failure::No("the gate is closed: nothing was published".to_owned()).into());
    };
    // By its name in the wallet or as the chain spells it.
    let named = |asked: &&String| {
        let place = contest.resolved.recipe.chain.hotkeys().iter().position(|name| name == *asked);
        place.is_some_and(|place| contest.network.hotkeys.get(place) == Some(hotkey))
    };
    if let Some(asked) = args.hotkey.as_ref().filter(|asked| *asked != hotkey && !named(asked)) {
        let sentence = format!("the gate would publish under {hotkey}, not under {asked}: nothing was published");
        return Err(Failure::No(sentence).into());
    }
    if args.dry_run {
        return printer.result(&publish::rehearse(&contest.network, &contest.order(model_dir, hotkey)?)?).map(Some);
    }
    let hold = take_hold(&contest.network, hotkey)?;
    if let Some(path) = &args.prepare {
        return tell_prepared(args, path, &contest.prepare(model_dir, &judged, &hold)?, printer).map(Some);
    }
    let published = contest.publish(model_dir, &judged, &hold, args.wait)?;
    published.map(|published| tell(args, &published, hotkey, printer)).transpose()
}

/// The right to publish. From here on an end in between is made good by the same command.
fn take_hold(network: &Network, hotkey: &str) -> Result<Hold> {
    interrupt::install()?;
    Hold::take(network.chain.as_ref(), hotkey)
}

fn tell_prepared(args: &PublishArgs, path: &Path, request: &Request, printer: &Printer) -> Result<()> {
    request.write(path)?;
    if args.json {
        return printer.result(&serde_json::to_string(request)?);
    }
    let (shown, hotkey) = (path.display(), &request.hotkey);
    printer.result(&format!(
        "Uploaded {}; {shown} holds what {hotkey} is to commit: take it to the machine with its key, and run there: assay \
         publish --commit {shown} --recipe RECIPE",
        request.commitment
    ))
}

fn tell(args: &PublishArgs, published: &Published, hotkey: &str, printer: &Printer) -> Result<()> {
    if args.json {
        return printer.result(&json(published, hotkey).to_string());
    }
    printer.result(&published.sentence(hotkey))
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
