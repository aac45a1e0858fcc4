//! A model of a comparison, how it is scored, and what the user is told meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use crate::chain::Hotkey;
use crate::data::pages::Draw;
use crate::field::{self, Competitor, Scored};
use crate::figures::{count, duration};
use crate::hub::fetch::{Unreadable, publishable_paths};
use crate::hub::hash::directory_bytes;
use crate::hub::model_id::{ModelId, ModelMetadata};
use crate::metrics::jsonl;
use crate::metrics::printer::Printer;
use crate::model::config::ModelConfig;
use crate::model::scorer::Scoring;
use crate::score::cache::LossCache;
use crate::score::comparison::Compared;

/// A miner with a published model.
#[derive(Clone, Debug)]
pub(super) struct Miner {
    pub(super) uid: u16,
    pub(super) hotkey: Hotkey,
    pub(super) incentive: u16,
    pub(super) metadata: ModelMetadata,
}

/// Where a model is.
pub(super) enum Model {
    /// The user's folder.
    Folder(PathBuf),
    /// On the hub.
    Wanted(Miner),
    /// Brought here, if it could be.
    Here(Miner, Competitor),
}

/// One model of the comparison.
pub(super) struct Entry {
    pub(super) model: Model,
    /// Block that decides who was earlier.
    pub(super) block: u64,
    pub(super) is_own: bool,
    /// Why it has no loss.
    pub(super) fault: Option<Unreadable>,
    pub(super) losses: Vec<f64>,
    /// Losses that were computed, and seconds that took.
    pub(super) num_computed: usize,
    pub(super) seconds: f64,
    /// Bytes of its files.
    pub(super) bytes: Option<u64>,
}

impl Entry {
    pub(super) fn new(model: Model, block: u64, is_own: bool) -> Self {
        let bytes = if let Model::Folder(dir) = &model { bytes_to_publish(dir) } else { None };
        Self { model, block, is_own, fault: None, losses: Vec::new(), num_computed: 0, seconds: 0.0, bytes }
    }

    /// Its model has been brought here, or not.
    pub(super) fn arrive(&mut self, competitor: Competitor) {
        let Model::Wanted(miner) = &self.model else { return };
        self.bytes = competitor.model.as_ref().ok().and_then(|dir| directory_bytes(dir).ok());
        self.model = Model::Here(miner.clone(), competitor);
    }

    /// Scores it on the rows that it has not seen; whether it came to the end.
    pub(super) fn score(
        &mut self,
        scoring: &Scoring,
        cache: &LossCache,
        rows: &[Vec<u32>],
        watch: field::Watch<'_>,
    ) -> Result<bool> {
        let rows = &rows[self.losses.len()..];
        let scored = match &self.model {
            _ if self.fault.is_some() => Some(Ok(without_loss(rows))),
            Model::Folder(dir) => field::score_folder(dir, scoring, cache, rows, watch)?.map(Ok),
            Model::Here(_, competitor) => field::score_competitor(competitor, scoring, cache, rows, watch)?,
            Model::Wanted(_) => unreachable!("a model is brought before it is scored"),
        };
        let Some(scored) = scored else { return Ok(false) };
        let Scored { losses, num_computed, seconds } = scored.unwrap_or_else(|fault| {
            self.fault = Some(fault);
            without_loss(rows)
        });
        self.losses.extend(losses);
        self.num_computed += num_computed;
        self.seconds += seconds;
        Ok(true)
    }

    /// Its folder on this machine, if it has one.
    fn dir(&self) -> Option<&Path> {
        match &self.model {
            Model::Folder(dir) => Some(dir),
            Model::Here(_, competitor) => competitor.model.as_deref().ok(),
            Model::Wanted(_) => None,
        }
    }

    fn miner(&self) -> Option<&Miner> {
        match &self.model {
            Model::Folder(_) => None,
            Model::Wanted(miner) | Model::Here(miner, _) => Some(miner),
        }
    }

    /// What its miner has committed.
    pub(super) fn id(&self) -> Option<&ModelId> {
        self.miner().map(|miner| &miner.metadata.id)
    }

    pub(super) fn uid(&self) -> Option<u16> {
        self.miner().map(|miner| miner.uid)
    }

    /// 0 for a model that is not published.
    pub(super) fn incentive(&self) -> u16 {
        self.miner().map_or(0, |miner| miner.incentive)
    }

    pub(super) fn name(&self) -> String {
        match &self.model {
            Model::Folder(dir) => dir.display().to_string(),
            Model::Wanted(miner) | Model::Here(miner, _) => miner.metadata.id.repo_id(),
        }
    }

    /// Whether anything is known of its losses.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self.fault, Some(Unreadable::NotImplemented(_)))
    }

    /// Losses that were known from before.
    pub(super) fn num_from_cache(&self) -> usize {
        if self.fault.is_some() { 0 } else { self.losses.len() - self.num_computed }
    }

    /// Seconds that so many rows take here; `None` where none was computed.
    pub(super) fn seconds_for(&self, num_rows: f64) -> Option<f64> {
        (self.num_computed > 0).then(|| self.seconds / self.num_computed as f64 * num_rows)
    }

    /// To be compared on the first so many batches.
    pub(super) fn compared(&self, num_batches: usize) -> Compared<'_> {
        Compared { uid: self.uid(), name: self.name(), block: self.block, losses: &self.losses[..num_batches] }
    }

    /// Who it is, and what its scoring cost; how it fared is added.
    pub(super) fn json(&self) -> Value {
        let miner = self.miner();
        let id = self.id();
        let reason = self.fault.as_ref().map(ToString::to_string);
        let is_refused = matches!(self.fault, Some(Unreadable::Refused(_)));
        let losses: Vec<Value> = self.losses.iter().map(|&loss| jsonl::number(loss)).collect();
        json!({
            "uid": self.uid(),
            "hotkey": miner.map(|miner| &miner.hotkey),
            "repo": id.map(|id| id.repo_id()),
            "commit": id.and_then(|id| id.commit.as_ref()),
            "hash": id.and_then(|id| id.hash.as_ref()),
            "folder": if let Model::Folder(dir) = &self.model { Some(dir) } else { None },
            "block": miner.map(|_| self.block),
            "own": self.is_own,
            "incentive": miner.map(|miner| miner.incentive),
            "refused": reason.as_ref().filter(|_| is_refused),
            "not_implemented": reason.as_ref().filter(|_| !is_refused),
            "bytes": self.bytes,
            "scored": self.num_computed,
            "from_cache": self.num_from_cache(),
            "scoring_seconds": self.seconds,
            "losses": if self.is_known() { losses } else { Vec::new() },
        })
    }
}

fn without_loss(rows: &[Vec<u32>]) -> Scored {
    Scored { losses: vec![f64::INFINITY; rows.len()], ..Scored::default() }
}

/// Bytes of the files that would be published; `None` where that cannot be told, which scoring will tell better.
fn bytes_to_publish(dir: &Path) -> Option<u64> {
    let paths = publishable_paths(dir).ok()?;
    paths.iter().map(|path| fs::metadata(path).ok().map(|metadata| metadata.len())).sum()
}

/// What the user is told while models are scored.
pub(super) struct Progress<'a> {
    pub(super) printer: &'a Printer,
    /// Seconds that all was predicted to take, once something was computed.
    pub(super) predicted: Option<f64>,
    num_models: usize,
    num_done: usize,
    row_len: usize,
}

impl<'a> Progress<'a> {
    pub(super) fn new(printer: &'a Printer) -> Self {
        Self { printer, predicted: None, num_models: 0, num_done: 0, row_len: 0 }
    }

    /// So many models are to be scored.
    pub(super) fn begin(&mut self, num_models: usize, draw: &Draw) {
        (self.num_models, self.num_done) = (num_models, 0);
        self.row_len = draw.rows.first().map_or(0, Vec::len);
    }

    /// What scoring each model on the rows that it has not seen would cost; of those that are not here, what the others cost
    /// on average. Not needed any more once a prediction was made.
    pub(super) fn costs(&self, entries: &[Entry], draw: &Draw) -> Vec<f64> {
        if self.predicted.is_some() {
            return Vec::new();
        }
        let cost = |entry: &Entry| {
            let arch = ModelConfig::read(entry.dir()?).ok()?.arch;
            Some(field::scoring_cost(&arch, draw.rows.len() - entry.losses.len(), self.row_len))
        };
        let costs: Vec<Option<f64>> = entries.iter().map(cost).collect();
        let known: Vec<f64> = costs.iter().flatten().copied().collect();
        let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
        costs.into_iter().map(|cost| cost.unwrap_or(mean)).collect()
    }

    /// Predicts from the pace of the first model's second row, its first one having warmed up the machine, how long all will
    /// take, should nothing be known from before.
    pub(super) fn watch(&mut self, index: usize, costs: &[f64], num_unseen: usize) -> impl FnMut(usize, f64) {
        let (share, total) = (costs.get(index).copied().unwrap_or(0.0), costs.iter().sum::<f64>());
        let mut first = 0.0;
        move |num_rows, seconds| {
            if num_rows == 1 {
                first = seconds;
            }
            if num_rows == 2 && self.predicted.is_none() && share > 0.0 {
                let predicted = (seconds - first) * num_unseen as f64 * total / share;
                self.predicted = Some(predicted);
                let (models, row_len) = (self.num_models, self.row_len);
                let (rows, duration) = (count(num_unseen as u64), duration(predicted));
                self.printer.note(&format!("{models} models on {rows} rows of {row_len} tokens: about {duration}."));
            }
        }
    }

    /// A model is done.
    pub(super) fn scored(&mut self, entry: &Entry) {
        self.num_done += 1;
        let how = match (&entry.fault, entry.num_computed) {
            (Some(_), _) => "has no loss".to_owned(),
            (None, 0) => "all losses are known from before".to_owned(),
            (None, num) => format!("{} losses computed in {}", count(num as u64), duration(entry.seconds)),
        };
        self.printer.note(&format!("{} of {}: {}: {how}", self.num_done, self.num_models, entry.name()));
    }
}
