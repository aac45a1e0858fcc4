//! `assay compare`: published models and own ones on the same fresh pages, judged by the validators' arithmetic.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};

use super::Place;
use crate::chain::Snapshot;
use crate::cli::CompareArgs;
use crate::contest::{COLUMNS, fresh_seed};
use crate::data::pages::{Draw, Pages};
use crate::data::{self, PAGE_DOCUMENTS};
use crate::error::{Failure, input};
use crate::field::{self, Competitor, mean_and_error};
use crate::figures::{count, duration};
use crate::gate::roster::candidate_block;
use crate::metrics::printer::Printer;
use crate::metrics::table::table;
use crate::model::config::ModelConfig;
use crate::network::Network;
use crate::recipe::Backend;
use crate::rules::Rules;
use crate::score::duel::{Contender, tallies};
use crate::score::weights::softmax;

/// One model of the comparison.
struct Entry {
    competitor: Option<Competitor>,
    /// Its folder here, or why there is none.
    folder: Result<PathBuf, String>,
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
    let predicted = score_all(&mut entries, args.backend.into(), &draw.rows, printer)?;
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
        let folder = competitor.model.clone().map_err(|unreadable| unreadable.to_string());
        let block = metadata.block.get();
        Ok(Some(Entry { competitor: Some(competitor), folder, block, losses: Vec::new() }))
    };
    neurons.into_iter().filter_map(|neuron| bring(neuron).transpose()).collect()
}

/// Scores every model, the costliest first: its first row tells how long all will take. Returns the predicted seconds.
fn score_all(entries: &mut [Entry], backend: Backend, rows: &[Vec<u32>], printer: &Printer) -> Result<f64> {
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
                    field::losses_of_folder(dir, backend, first_row).ok(); // Warms up; what is wrong is told below.
                    let started = Instant::now();
                    field::losses_of_folder(dir, backend, first_row).ok();
                    let pace = started.elapsed().as_secs_f64() * rows.len() as f64 / costs[index].max(1.0);
                    predicted = pace * costs.iter().sum::<f64>();
                    printer.note(&format!(
                        "{} models on {} rows of {row_len} tokens: about {}.",
                        order.len(),
                        count(rows.len() as u128),
                        duration(predicted)
                    ));
                }
                match field::losses_of_folder(dir, backend, rows) {
                    Ok(Some(losses)) => Ok(losses),
                    Ok(None) => return Err(Failure::Interrupted("interrupted while scoring".to_owned()).into()),
                    Err(error) if entry.competitor.is_none() => return Err(error),
                    Err(error) => Err(format!("{error:#}")),
                }
            }
        };
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
    /// Wins, win rates and weights, as a validator would find them in this one step.
    fn judged(&self) -> Vec<(u64, f64, f32)> {
        let contenders: Vec<_> =
            self.entries.iter().map(|entry| Contender { block: Some(entry.block), losses: &entry.losses }).collect();
        let tallies = tallies(&contenders, self.draw.rows.len(), self.rules.epsilon);
        let rates: Vec<f64> = tallies.iter().map(|tally| tally.win_rate).collect();
        let weights = softmax(&rates, self.rules.validator.temperature);
        std::iter::zip(tallies, weights).map(|(tally, weight)| (tally.wins, tally.win_rate, weight)).collect()
    }

    fn text(&self) -> String {
        let rows: Vec<Vec<String>> = std::iter::zip(&self.entries, self.judged())
            .map(|(entry, (wins, win_rate, weight))| {
                let (mean, error) = mean_and_error(&entry.losses);
                vec![
                    entry.competitor.as_ref().map_or_else(|| "-".to_owned(), |competitor| competitor.uid.to_string()),
                    entry.name(),
                    entry.competitor.as_ref().map_or_else(|| "next".to_owned(), |_| count(entry.block)),
                    format!("{mean:.4}"),
                    if error.is_finite() { format!("{error:.4}") } else { String::new() },
                    format!("{win_rate:.3}"),
                    count(wins),
                    format!("{weight:.4}"),
                ]
            })
            .collect();
        let mut text = table(&COLUMNS, &rows);
        for entry in &self.entries {
            if let Err(reason) = &entry.folder {
                write!(text, "\n{}: {reason}", entry.name()).expect("writing to a text does not fail");
            }
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
        let models = std::iter::zip(&self.entries, self.judged()).map(|(entry, (wins, win_rate, weight))| {
            let (mean, error) = mean_and_error(&entry.losses);
            let miner = entry.competitor.as_ref();
            let id = miner.map(|competitor| &competitor.metadata.id);
            json!({
                "uid": miner.map(|competitor| competitor.uid),
                "hotkey": miner.map(|competitor| &competitor.hotkey),
                "repo": id.map(|id| id.repo_id()),
                "commit": id.and_then(|id| id.commit.as_ref()),
                "hash": id.and_then(|id| id.hash.as_ref()),
                "folder": if miner.is_none() { entry.folder.as_ref().ok() } else { None },
                "block": miner.map(|_| entry.block),
                "average_loss": finite(mean),
                "standard_error": finite(error),
                "win_rate": win_rate,
                "wins": wins,
                "weight": weight,
                "refused": entry.folder.as_ref().err(),
            })
        });
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

/// A number in JSON, which has neither infinities nor what is no number.
fn finite(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { json!(format!("{value}").to_lowercase()) }
}

impl Entry {
    fn name(&self) -> String {
        match (&self.competitor, &self.folder) {
            (Some(competitor), _) => competitor.metadata.id.repo_id(),
            (None, Ok(dir)) => dir.display().to_string(),
            (None, Err(_)) => "own".to_owned(),
        }
    }
}
