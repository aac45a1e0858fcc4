//! `assay compare`: published models and own ones on the same fresh pages, judged by the validators' arithmetic.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};

use super::Place;
use crate::chain::Snapshot;
use crate::cli::CompareArgs;
use crate::contest::fresh_seed;
use crate::data::pages::{Draw, Pages};
use crate::data::{self, PAGE_DOCUMENTS};
use crate::error::{Failure, input};
use crate::field::{self, Competitor};
use crate::figures::{count, duration};
use crate::gate::roster::candidate_block;
use crate::hub::fetch::Unreadable;
use crate::metrics::jsonl;
use crate::metrics::printer::Printer;
use crate::model::config::ModelConfig;
use crate::model::scorer::Scoring;
use crate::network::Network;
use crate::placement::Placement;
use crate::rules::Rules;
use crate::score::comparison::{self, Compared};

/// One model of the comparison.
struct Entry {
    competitor: Option<Competitor>,
    /// Its folder here, or why it has no loss.
    folder: Result<PathBuf, Unreadable>,
    /// Block that decides who was earlier.
    block: u64,
    losses: Vec<f64>,
}

/// Runs the command.
pub fn run(args: &CompareArgs, printer: &Printer) -> Result<()> {
    super::set_threads(args.threads)?;
    let place = Place::of(&args.network)?;
    let rules = place.resolved.as_ref().map_or_else(Rules::default, |resolved| resolved.rules.clone());
    let sequence_length = rules.criteria.sequence_length;
    let device = args.device.or(place.resolved.as_ref().map(|resolved| resolved.recipe.train.device));
    let backend = args.backend.into();
    let placement = Placement::open(device.unwrap_or_default(), backend, printer)?;
    let scoring = Scoring { placement, backend, dtype: rules.criteria.dtype };
    for dir in &args.models {
        // A mistyped folder is the user's mistake; a published model that cannot be read is a result.
        ModelConfig::read(dir)?;
    }
    let network = Network::open(&place.hub, &place.chain)?;
    let snapshot = network.chain.snapshot()?;
    let mut entries = published(args, &network, &rules, &snapshot)?;
    entries.extend(args.models.iter().map(|dir| Entry {
        competitor: None,
        folder: Ok(dir.clone()),
        block: candidate_block(&snapshot, 0),
        losses: Vec::new(),
    }));
    if entries.is_empty() {
        return Err(Failure::No(format!("{} holds no model to compare", network.chain.describe())).into());
    }

    let (text, page_documents) = match &place.resolved {
        Some(resolved) => (data::open(&resolved.recipe, sequence_length)?, resolved.recipe.score.page_documents),
        None => (data::open_sample(sequence_length)?, PAGE_DOCUMENTS),
    };
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let num_pages = args.pages.unwrap_or(rules.validator.pages_per_step);
    let mut draw = Pages::read(&text, page_documents, sequence_length)?.draw(num_pages, seed);
    draw.rows.truncate(args.batches.unwrap_or(usize::MAX));

    let started = Instant::now();
    let predicted = score_all(&mut entries, &scoring, &draw.rows, printer)?;
    let report = Report { entries, draw, snapshot, rules, seed, predicted, took: started.elapsed().as_secs_f64() };
    printer.result(&if args.json { report.json().to_string() } else { report.text() })
}

/// The published models that were asked for.
fn published(args: &CompareArgs, network: &Network, rules: &Rules, snapshot: &Snapshot) -> Result<Vec<Entry>> {
    let mut neurons: Vec<_> =
        snapshot.neurons.iter().filter(|neuron| snapshot.metadata(&neuron.hotkey).is_some()).collect();
    if !args.uids.is_empty() {
        if let Some(uid) = args.uids.iter().find(|&&uid| !neurons.iter().any(|neuron| neuron.uid == uid)) {
            return Err(input(format!("--uids {uid}: {} has no model under that uid", network.chain.describe())));
        }
        neurons.retain(|neuron| args.uids.contains(&neuron.uid));
    }
    if let Some(top) = args.top {
        neurons.sort_by_key(|neuron| (std::cmp::Reverse(neuron.incentive), neuron.uid));
        neurons.truncate(top);
        neurons.sort_by_key(|neuron| neuron.uid);
    }
    let bring = |neuron: &crate::chain::Neuron| -> Result<Option<Entry>> {
        let Some(metadata) = snapshot.metadata(&neuron.hotkey) else { return Ok(None) };
        let competitor = Competitor::bring(network, rules, neuron.uid, &neuron.hotkey, &metadata)?;
        let folder = competitor.model.clone();
        let block = metadata.block.get();
        Ok(Some(Entry { competitor: Some(competitor), folder, block, losses: Vec::new() }))
    };
    neurons.into_iter().filter_map(|neuron| bring(neuron).transpose()).collect()
}

/// Scores every model, the costliest first: its first row tells how long all will take. Returns the predicted seconds.
fn score_all(entries: &mut [Entry], scoring: &Scoring, rows: &[Vec<u32>], printer: &Printer) -> Result<f64> {
    let row_len = rows.first().map_or(0, Vec::len);
    let cost = |entry: &Entry| {
        let config = entry.folder.as_ref().ok().and_then(|dir| ModelConfig::read(dir).ok());
        config.map_or(0.0, |config| field::scoring_cost(&config.arch, rows.len(), row_len))
    };
    let costs: Vec<f64> = entries.iter().map(cost).collect();
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by(|&a, &b| costs[b].total_cmp(&costs[a]));
    let mut predicted = 0.0;
    for (place, &index) in order.iter().enumerate() {
        let entry = &mut entries[index];
        let result = match &entry.folder {
            Err(reason) => Err(reason.clone()),
            Ok(dir) => {
                if place == 0 {
                    let first_row = rows.get(..1).unwrap_or_default();
                    field::losses_of_folder(dir, scoring, first_row).ok(); // Warms up; what is wrong is told below.
                    let started = Instant::now();
                    field::losses_of_folder(dir, scoring, first_row).ok();
                    let pace = started.elapsed().as_secs_f64() * rows.len() as f64 / costs[index].max(1.0);
                    predicted = pace * costs.iter().sum::<f64>();
                    printer.note(&format!(
                        "{} models on {} rows of {row_len} tokens: about {}.",
                        order.len(),
                        count(rows.len() as u128),
                        duration(predicted)
                    ));
                }
                match field::losses_of_folder(dir, scoring, rows) {
                    Ok(Some(losses)) => Ok(losses),
                    Ok(None) => return Err(Failure::Interrupted("interrupted while scoring".to_owned()).into()),
                    Err(error) if entry.competitor.is_none() => return Err(error),
                    Err(error) => Err(Unreadable::Refused(format!("{error:#}"))),
                }
            }
        };
        printer.note(&format!("{} of {}: {}", place + 1, order.len(), entry.name()));
        match result {
            Ok(losses) => entry.losses = losses,
            Err(reason) => {
                entry.losses = vec![f64::INFINITY; rows.len()];
                entry.folder = Err(reason);
            }
        }
    }
    Ok(predicted)
}

struct Report {
    entries: Vec<Entry>,
    draw: Draw,
    snapshot: Snapshot,
    rules: Rules,
    seed: u64,
    predicted: f64,
    took: f64,
}

impl Report {
    /// The models that are compared: not those of which nothing is known.
    fn compared(&self) -> Vec<(&Entry, Compared<'_>)> {
        let known = self.entries.iter().filter(|entry| !matches!(entry.folder, Err(Unreadable::NotImplemented(_))));
        known.map(|entry| (entry, entry.compared())).collect()
    }

    fn text(&self) -> String {
        let compared: Vec<_> = self.compared().into_iter().map(|(_, compared)| compared).collect();
        let mut text = comparison::text(&compared, &comparison::standings(&compared, &self.rules));
        for entry in &self.entries {
            let what = match entry.folder {
                Ok(_) => continue,
                Err(Unreadable::Refused(_)) => "",
                Err(Unreadable::NotImplemented(_)) => "left out, for nothing is known of its loss: ",
            };
            let reason = entry.folder.as_ref().err().map(ToString::to_string).unwrap_or_default();
            write!(text, "\n{}: {what}{reason}", entry.name()).expect("writing to a text does not fail");
        }
        let (pages, rows) = (self.draw.offsets.len(), self.draw.rows.len());
        let took = duration(self.took);
        write!(
            text,
            "\n{} rows of {} fresh pages (--seed {} draws them again), at block {}; {took}.",
            count(rows as u128),
            count(pages as u128),
            self.seed,
            count(self.snapshot.block)
        )
        .expect("writing to a text does not fail");
        text
    }

    fn json(&self) -> Value {
        let (entries, compared): (Vec<_>, Vec<_>) = self.compared().into_iter().unzip();
        let standings = comparison::standings(&compared, &self.rules);
        let known = std::iter::zip(entries, standings).map(|(entry, standing)| {
            let mut model = entry.json();
            model["average_loss"] = jsonl::number(standing.loss);
            model["standard_error"] = jsonl::number(standing.standard_error);
            model["win_rate"] = json!(standing.win_rate);
            model["wins"] = json!(standing.wins);
            model["weight"] = json!(standing.weight);
            model
        });
        let unknown = self.entries.iter().filter(|entry| matches!(entry.folder, Err(Unreadable::NotImplemented(_))));
        let models = known.chain(unknown.map(Entry::json));
        json!({
            "block": self.snapshot.block,
            "seed": self.seed,
            "pages": self.draw.offsets,
            "batches": self.draw.rows.len(),
            "predicted_seconds": self.predicted,
            "seconds": self.took,
            "models": models.collect::<Vec<_>>(),
        })
    }
}

impl Entry {
    fn name(&self) -> String {
        match (&self.competitor, &self.folder) {
            (Some(competitor), _) => competitor.metadata.id.repo_id(),
            (None, Ok(dir)) => dir.display().to_string(),
            (None, Err(_)) => "own".to_owned(),
        }
    }
    fn compared(&self) -> Compared<'_> {
        let uid = self.competitor.as_ref().map(|competitor| competitor.uid);
        Compared { uid, name: self.name(), block: self.block, losses: &self.losses }
    }

    /// Who it is; how it fared is added.
    fn json(&self) -> Value {
        let miner = self.competitor.as_ref();
        let id = miner.map(|competitor| &competitor.metadata.id);
        let reason = self.folder.as_ref().err().map(ToString::to_string);
        let is_refused = matches!(self.folder, Err(Unreadable::Refused(_)));
        json!({
            "uid": miner.map(|competitor| competitor.uid),
            "hotkey": miner.map(|competitor| &competitor.hotkey),
            "repo": id.map(|id| id.repo_id()),
            "commit": id.and_then(|id| id.commit.as_ref()),
            "hash": id.and_then(|id| id.hash.as_ref()),
            "folder": if miner.is_none() { self.folder.as_ref().ok() } else { None },
            "block": miner.map(|_| self.block),
            "refused": reason.as_ref().filter(|_| is_refused),
            "not_implemented": reason.as_ref().filter(|_| !is_refused),
        })
    }
}
