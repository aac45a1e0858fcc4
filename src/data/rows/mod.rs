//! RefinedWeb, or a data set like it, page by page from the viewer that validators read it from.
//!
//! It is what models are scored on (`pages.rs`), exactly as validators do, and what a small run may train on: there a shard
//! is an aligned page of a hundred rows, that of number p the rows 100 p to 100 p + 99. Pages are kept on disk (`cache.rs`).

mod cache;
mod page;
pub mod pages;
mod reader;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::cache_dir;
use super::order::Permutation;
use super::set_aside::{STRETCH_ROWS, SetAside};
use super::source::{Documents, Source};
use super::stages::{Stage, Stages};
use crate::clock::{Clock, SystemClock};
use crate::error::{Failure, input};
use crate::hub::huggingface::{PAGE_ROWS, Patience, Token, VIEWER_ENDPOINT, Viewer};
use crate::hub::progress::Observer;
use crate::recipe;
use cache::Cache;
use reader::{Purpose, Reader};

/// The data set that validators score on.
const REFINEDWEB: &str = "tiiuae/falcon-refinedweb";

/// Its rows. Validators take the number for granted, too.
const REFINEDWEB_ROWS: u64 = 968_000_015;

/// A data set of more rows is none.
const MOST_ROWS: u64 = 1 << 48;

/// About what a page of RefinedWeb has in memory. Other data sets are taken for as large until a larger page has come.
const PAGE_BYTES: u64 = 300_000;

/// Which data set, and how it is read.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the viewer is.
    pub endpoint: String,
    /// The data set, as the hub names it.
    pub dataset: String,
    /// The column of the text.
    pub column: String,
    /// Who we are; `None`: nobody, who sees what is public.
    pub token: Option<Token>,
    /// The folder in which pages are kept.
    pub cache: PathBuf,
    /// Which rows training leaves out.
    pub set_aside: SetAside,
    /// Where what is read is counted.
    pub stages: Arc<Stages>,
    /// How long is waited for an answer, and at most before a request is made again.
    pub patience: Patience,
    /// Who is told why nothing moves.
    pub observer: Observer,
}

impl Options {
    /// What a recipe says, with the token of this machine.
    pub fn of(data: &recipe::Data, stages: Arc<Stages>, observer: Observer) -> Result<Self> {
        Ok(Self {
            endpoint: data.rows_endpoint.clone(),
            dataset: data.dataset.clone(),
            column: data.column().to_owned(),
            token: Token::for_endpoint(Some(&data.rows_endpoint), VIEWER_ENDPOINT)?,
            cache: cache_dir(data),
            set_aside: SetAside::new(data.held_out_every as u64),
            stages,
            patience: Patience::default(),
            observer,
        })
    }

    /// Whether it is known how many rows there are.
    fn is_refinedweb(&self) -> bool {
        self.endpoint.trim_end_matches('/') == VIEWER_ENDPOINT && self.dataset == REFINEDWEB
    }

    /// Asks how many rows there are, where that is not known.
    fn reader(&self, clock: Arc<dyn Clock>) -> Result<Reader> {
        let Self { endpoint, dataset, column, token, patience, observer, .. } = self;
        let mut reader = Reader {
            viewer: Viewer::new(endpoint, dataset, token.clone(), patience.clone(), observer.clone())?,
            column: column.clone(),
            num_rows: REFINEDWEB_ROWS,
            cache: Cache::at(&self.cache.join("pages"), cache::LIMIT_BYTES, observer.clone()),
            clock,
            stages: Arc::clone(&self.stages),
            told: Mutex::default(),
            largest_page_bytes: AtomicU64::new(PAGE_BYTES),
        };
        if !self.is_refinedweb() {
            let untold = || {
                let endpoint = reader.viewer.endpoint();
                Failure::Unreachable(format!("{endpoint} does not tell how many rows {dataset} has (`num_rows_total`)"))
            };
            let told = reader.ask(0, Purpose::Opening)?.num_rows_total;
            reader.num_rows = told.filter(|num_rows| *num_rows <= MOST_ROWS).ok_or_else(untold)?;
        }
        Ok(reader)
    }
}

/// Opens a data set: the rows to train on, and those that are set aside. RefinedWeb at its own address is not asked yet.
///
/// # Errors
/// The viewer does not answer, or says that there is no such data set; there are too few rows for two parts.
pub fn open(options: Options) -> Result<(Rows, Rows)> {
    open_at(options, Arc::new(SystemClock))
}

fn open_at(options: Options, clock: Arc<dyn Clock>) -> Result<(Rows, Rows)> {
    let reader = Arc::new(options.reader(clock)?);
    let part = |is_held_out| Rows { reader: Arc::clone(&reader), set_aside: options.set_aside, is_held_out };
    let (training, held_out) = (part(false), part(true));
    if training.num_shards() == 0 {
        return Err(input(format!(
            "{} has {} rows: of the first {STRETCH_ROWS}, which are set aside, none is left to train on",
            options.dataset, reader.num_rows
        )));
    }
    Ok((training, held_out))
}

/// One part of a data set.
pub struct Rows {
    reader: Arc<Reader>,
    set_aside: SetAside,
    is_held_out: bool,
}

impl Rows {
    /// The page, counted over the whole data set, that is a shard of this part.
    fn page(&self, shard: u64) -> u64 {
        // A stretch is set aside as a whole, the first of each period.
        let in_stretch = STRETCH_ROWS / PAGE_ROWS;
        let period = self.set_aside.stretch_start(1) / PAGE_ROWS;
        match self.is_held_out {
            true => shard / in_stretch * period + shard % in_stretch,
            false => shard / (period - in_stretch) * period + in_stretch + shard % (period - in_stretch),
        }
    }
}

impl Source for Rows {
    fn name(&self) -> String {
        let part = if self.is_held_out { "the rows set aside" } else { "the rows" };
        format!("{part} of {} at {}", self.reader.viewer.dataset(), self.reader.viewer.endpoint())
    }

    fn num_shards(&self) -> u64 {
        let num_pages = self.reader.num_rows.div_ceil(PAGE_ROWS);
        let num_held_out = self.set_aside.count_before(num_pages * PAGE_ROWS) / PAGE_ROWS;
        if self.is_held_out { num_held_out } else { num_pages - num_held_out }
    }

    fn documents(&self, shard: u64, from: u64, seed: Option<u64>) -> Result<Documents> {
        let texts = self.reader.texts(self.page(shard) * PAGE_ROWS, Purpose::Training)?;
        let stages = &self.reader.stages;
        let num_rows = texts.len();
        let mut documents: Vec<String> = texts.into_iter().flatten().collect();
        let bytes = documents.iter().map(|text| text.len() as u64).sum();
        self.reader.largest_page_bytes.fetch_max(bytes, Ordering::Relaxed);
        stages.skip((num_rows - documents.len()) as u64);
        stages.add_bytes(Stage::Decode, bytes);
        stages.add_documents((documents.len() as u64).saturating_sub(from));
        if let Some(seed) = seed {
            let order = Permutation::new(documents.len() as u64, seed, shard);
            let permuted = (0..documents.len() as u64).map(|at| std::mem::take(&mut documents[order.at(at) as usize]));
            documents = permuted.collect();
        }
        Ok(Box::new(documents.into_iter().skip(usize::try_from(from).unwrap_or(usize::MAX)).map(Ok)))
    }

    fn held_bytes(&self, _: u64) -> Option<u64> {
        Some(self.reader.largest_page_bytes.load(Ordering::Relaxed))
    }

    fn record(&self) -> Option<Map<String, Value>> {
        let Reader { viewer, column, num_rows, .. } = &*self.reader;
        let record = json!({
            "source": "refinedweb-rows",
            "dataset": viewer.dataset(),
            "column": column,
            "rows": num_rows,
            "rows_set_aside": self.set_aside.count_before(*num_rows),
            "set_aside_every": self.set_aside.every(),
        });
        record.as_object().cloned()
    }
}
