//! `assay compare`: published models and own ones on the same fresh pages, judged by the validators' arithmetic.
//!
//! Pages are drawn as a validator draws those of a step; with `--until-certain` one after another, each cut on its own, until
//! every verdict that is of interest stands. Models are then scored on as many new pages as they have seen, so that none is
//! read more than some ten times, and those about which nothing is open any more are left out.

mod entry;
mod report;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;

use super::Place;
use crate::chain::Snapshot;
use crate::checkpoint::LATEST;
use crate::cli::CompareArgs;
use crate::contest::fresh_seed;
use crate::data::pages::{Draw, PageSource};
use crate::data::parquet::SELECTED_ROWS;
use crate::data::rows;
use crate::error::{Failure, input};
use crate::field::{self, Competitor};
use crate::gate::roster::candidate_block;
use crate::interrupt;
use crate::metrics::printer::Printer;
use crate::model::config::{CONFIG_FILE, ModelConfig};
use crate::model::scorer::Scoring;
use crate::network::Network;
use crate::ops::random;
use crate::recipe::Resolved;
use crate::rules::Rules;
use crate::score::cache::LossCache;
use crate::score::pages;
use crate::score::verdicts::{self, Pair};
use crate::train::{Start, run_folder};
use crate::whole_file;
use entry::{Entry, Miner, Model, Progress};
use report::Report;

/// Most pages of a comparison until certain, unless it is told.
const MAX_PAGES: usize = 300;

/// Runs the command.
pub fn run(args: &CompareArgs, printer: &Printer) -> Result<()> {
    super::set_threads(args.scoring.threads)?;
    let place = Place::of(&args.network)?;
    let rules = place.rules();
    let scoring = place.scoring(&args.scoring, &rules, printer)?;
    let own: Vec<PathBuf> = args.models.iter().map(|dir| own_model(dir)).collect::<Result<_>>()?;
    // Folders alone need no network, and none must be there.
    let network = (args.top != Some(0)).then(|| Network::open(&place.hub, &place.chain, printer)).transpose()?;
    let snapshot = network.as_ref().map(|network| network.chain.snapshot()).transpose()?;
    let mut entries = match (&network, &snapshot) {
        (Some(network), Some(snapshot)) => published(args, &place, network, snapshot)?,
        _ => Vec::new(),
    };
    let block = snapshot.as_ref().map_or(rules.block, |snapshot| candidate_block(snapshot, 0));
    entries.extend(own.into_iter().map(|dir| Entry::new(Model::Folder(dir), block, true)));
    if entries.is_empty() {
        let Some(network) = network else { return Err(input("--top 0 compares folders only: name some")) };
        return Err(Failure::No(format!("{} holds no model to compare", network.chain.describe())).into());
    }
    // From here on an end that was asked for keeps the losses that are known by then.
    interrupt::install()?;

    let pages = pages::of_validator(place.resolved.as_ref(), &rules, printer)?;
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let pages_per_step = place.pages_per_step(&rules);
    let alone = LossCache::beside(&place.hub.cache);
    let cache = network.as_ref().map_or(&alone, |network| &network.losses);
    let mut comparison = Comparison {
        progress: Progress::new(printer),
        network: network.as_ref(),
        rules: &rules,
        scoring,
        cache,
        entries,
        draw: Draw { offsets: Vec::new(), rows: Vec::new(), row_pages: Vec::new() },
    };
    let started = Instant::now();
    // Rows of a page, before some are left out.
    let rows_per_page = |draw: &Draw| draw.rows.len() as f64 / draw.offsets.len().max(1) as f64;
    let (verdicts, rows_per_page) = match args.until_certain {
        None => {
            let num_pages = args.pages.unwrap_or(pages_per_step);
            let mut draw = pages.draw(num_pages, seed)?;
            let rows_per_page = rows_per_page(&draw);
            draw.rows.truncate(args.batches.unwrap_or(usize::MAX));
            draw.row_pages.truncate(draw.rows.len());
            comparison.draw = draw;
            comparison.score(&[])?;
            (None, rows_per_page)
        }
        Some(level) => {
            let pairs = comparison.until_certain(pages.as_ref(), seed, level, args.pages.unwrap_or(MAX_PAGES))?;
            (Some(report::Verdicts { level, pairs }), rows_per_page(&comparison.draw))
        }
    };
    let took = started.elapsed().as_secs_f64();
    let Comparison { entries, draw, progress, .. } = comparison;
    if let Some(path) = &args.write_tokens {
        whole_file::write(path, &serde_json::to_vec(&draw.rows)?)?;
    }
    let report = Report {
        entries,
        open_to_training: place.resolved.as_ref().and_then(|resolved| open_to_training(resolved, &draw.offsets)),
        draw,
        verdicts,
        pages_per_step,
        rows_per_step: rows_per_page * pages_per_step as f64,
        block: snapshot.as_ref().map(|snapshot| snapshot.block),
        rules: &rules,
        seed,
        predicted: progress.predicted,
        took,
    };
    printer.result(&if args.json { report.json().to_string() } else { report.text(args.matrix) })
}

/// How many rows of some pages of the viewer the recipe's training may have read, as far as its run's records tell; `None` if
/// it trains on another text.
fn open_to_training(resolved: &Resolved, offsets: &[usize]) -> Option<u64> {
    let rule = pages::set_aside(resolved)?;
    let record = run_folder::known_data(&resolved.run_dir, Start::Continue).ok().flatten();
    let read: Option<Vec<[u64; 2]>> =
        record.and_then(|record| serde_json::from_value(record.get(SELECTED_ROWS)?.clone()).ok());
    Some(rows::pages::open_to_training(offsets, rule, read.as_deref()))
}

/// The folder of an own model: the one that is named, or the newest of a run's. A mistyped folder is the user's mistake; a
/// published model that cannot be read is a result.
fn own_model(dir: &Path) -> Result<PathBuf> {
    let latest = dir.join(LATEST);
    let dir = if !dir.join(CONFIG_FILE).exists() && latest.exists() { latest } else { dir.to_owned() };
    ModelConfig::read(&dir)?;
    Ok(dir)
}

/// The published models that were asked for, by ascending uid.
fn published(args: &CompareArgs, place: &Place, network: &Network, snapshot: &Snapshot) -> Result<Vec<Entry>> {
    let own: &[_] = if place.resolved.is_some() { &network.hotkeys } else { &[] };
    let miner = |neuron: &crate::chain::Neuron| {
        let metadata = snapshot.metadata(&neuron.hotkey)?;
        Some(Miner { uid: neuron.uid, hotkey: neuron.hotkey.clone(), incentive: neuron.incentive, metadata })
    };
    let mut miners: Vec<Miner> = snapshot.neurons.iter().filter_map(miner).collect();
    if !args.uids.is_empty() {
        if let Some(uid) = args.uids.iter().find(|&&uid| !miners.iter().any(|miner| miner.uid == uid)) {
            return Err(input(format!("--uids {uid}: {} has no model under that uid", network.chain.describe())));
        }
        miners.retain(|miner| args.uids.contains(&miner.uid));
    }
    miners.sort_by_key(|miner| (std::cmp::Reverse(miner.incentive), miner.uid));
    let top = args.top.unwrap_or(usize::MAX);
    let mut entries: Vec<Entry> = (miners.into_iter().enumerate())
        .map(|(rank, miner)| (rank, own.contains(&miner.hotkey), miner))
        .filter(|(rank, is_own, _)| *rank < top || *is_own)
        .map(|(_, is_own, miner)| {
            let block = miner.metadata.block.get();
            Entry::new(Model::Wanted(miner), block, is_own)
        })
        .collect();
    entries.sort_by_key(Entry::uid);
    network.cache.use_only(entries.iter().filter_map(Entry::id));
    Ok(entries)
}

/// What is under way.
struct Comparison<'a> {
    /// `None`: folders only.
    network: Option<&'a Network>,
    rules: &'a Rules,
    scoring: Scoring,
    cache: &'a LossCache,
    entries: Vec<Entry>,
    draw: Draw,
    progress: Progress<'a>,
}

impl Comparison<'_> {
    /// Scores every model that is not `left_out` on the rows that it has not seen; the next one is downloaded meanwhile.
    fn score(&mut self, left_out: &[bool]) -> Result<()> {
        let Self { network, rules, scoring, cache, entries, draw, progress } = self;
        let wanted = |entry: &Entry| if let Model::Wanted(miner) = &entry.model { Some(miner.clone()) } else { None };
        let wanted: Vec<(usize, Option<Miner>)> = (entries.iter().enumerate())
            .filter(|(index, _)| left_out.get(*index) != Some(&true))
            .map(|(index, entry)| (index, wanted(entry)))
            .collect();
        let bring = |(_, miner): &(usize, Option<Miner>)| -> Result<Option<Competitor>> {
            let (Some(network), Some(miner)) = (*network, miner) else { return Ok(None) };
            Competitor::bring(network, rules, miner.uid, &miner.hotkey, &miner.metadata).map(Some)
        };
        progress.begin(wanted.len(), draw);
        let flow = field::ahead(&wanted, bring, |&(index, _), competitor| {
            if let Some(competitor) = competitor {
                entries[index].arrive(competitor);
            }
            let known_costs = progress.costs(entries, draw);
            let entry = &mut entries[index];
            let num_unseen = draw.rows.len() - entry.losses.len();
            let mut watch = progress.watch(index, &known_costs, num_unseen);
            let is_finished = entry.score(scoring, cache, &draw.rows, &mut watch)?;
            drop(watch);
            if let Some(trouble) = cache.trouble() {
                progress.printer.warn(&trouble);
            }
            if !is_finished {
                return Ok(ControlFlow::Break(()));
            }
            progress.scored(entry);
            Ok(ControlFlow::Continue(()))
        })?;
        match flow {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Failure::Interrupted(
                "interrupted while scoring; the losses that were computed are kept for the next time".to_owned(),
            )
            .into()),
        }
    }

    /// Draws pages until each verdict stands, `max_pages` at most.
    fn until_certain(&mut self, pages: &dyn PageSource, seed: u64, level: f64, max_pages: usize) -> Result<Vec<Pair>> {
        let mut pairs: Option<Vec<Pair>> = None;
        loop {
            let num_drawn = self.draw.offsets.len();
            let num_new = verdicts::pages_to_draw(num_drawn, max_pages);
            let open =
                pairs.as_ref().map(|pairs| pairs.iter().filter(|pair| pair.verdict.is_none()).collect::<Vec<_>>());
            if num_new == 0 || open.as_ref().is_some_and(Vec::is_empty) {
                return Ok(pairs.unwrap_or_default());
            }
            let left_out: Vec<bool> = match &open {
                None => Vec::new(),
                Some(open) => {
                    self.progress.printer.note(&format!("{num_drawn} pages: {} verdicts are open", open.len()));
                    let is_open = |index| open.iter().any(|pair| pair.model == index || pair.rival == index);
                    (0..self.entries.len()).map(|index| !is_open(index)).collect()
                }
            };
            let mut page_starts = Vec::with_capacity(num_new);
            let new = num_drawn..num_drawn + num_new;
            let seeds: Vec<u64> = new.clone().map(|page| random::derive(seed, page as u64)).collect();
            for (page, Draw { offsets, rows, .. }) in std::iter::zip(new, pages.draws(1, &seeds)?) {
                page_starts.push(self.draw.rows.len());
                self.draw.offsets.extend(offsets);
                self.draw.row_pages.extend(std::iter::repeat_n(page, rows.len()));
                self.draw.rows.extend(rows);
            }
            self.score(&left_out)?;
            let page_ends = page_starts.iter().skip(1).copied().chain([self.draw.rows.len()]);
            let pairs = pairs.get_or_insert_with(|| self.pairs_of_interest());
            for (start, end) in std::iter::zip(page_starts.iter().copied(), page_ends) {
                for pair in pairs.iter_mut().filter(|pair| pair.verdict.is_none()) {
                    let [model, rival] = [pair.model, pair.rival].map(|index| &self.entries[index]);
                    let [model, rival] = [model, rival].map(|entry| (entry.block, &entry.losses[start..end]));
                    pair.observe(model, rival, self.rules.epsilon, level);
                }
            }
        }
    }

    /// The pairs of which something may be found out: one model at least has losses, and something is known of both.
    fn pairs_of_interest(&self) -> Vec<Pair> {
        let is_own: Vec<bool> = self.entries.iter().map(|entry| entry.is_own).collect();
        let mut pairs = verdicts::pairs(&is_own);
        pairs.retain(|pair| {
            let [model, rival] = [pair.model, pair.rival].map(|index| &self.entries[index]);
            model.is_known() && rival.is_known() && (model.fault.is_none() || rival.fault.is_none())
        });
        pairs
    }
}
