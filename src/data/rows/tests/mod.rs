//! Rows from servers on loopback that do well, or fail in every way.

#![allow(clippy::unwrap_used)]

mod golden;
mod scoring;
mod training;

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::hub::huggingface::tests::patience;
use crate::hub::huggingface::tests::server::{Reply, Request, Server};

/// Time that passes at once, and how much was waited for.
#[derive(Default)]
struct Sleeps(Mutex<Vec<Duration>>);

impl Sleeps {
    fn seconds(&self) -> Vec<u64> {
        self.0.lock().unwrap().iter().map(Duration::as_secs).collect()
    }
}

impl Clock for Sleeps {
    fn unix_ms(&self) -> u64 {
        0
    }

    fn sleep(&self, duration: Duration) {
        self.0.lock().unwrap().push(duration);
    }
}

/// The text of a row: some have more words than others, or none.
fn text(row: u64) -> String {
    (0..row % 7).map(|word| format!(" row{row}word{word}")).collect()
}

/// What is asked for first.
fn offset(request: &Request) -> u64 {
    let (_, query) = request.path.split_once("&offset=").unwrap();
    query.split_once('&').unwrap().0.parse().unwrap()
}

/// A page of a data set of so many rows.
fn page(request: &Request, num_rows: u64) -> Reply {
    let rows: Vec<Value> = (offset(request)..num_rows.min(offset(request) + PAGE_ROWS))
        .map(|row| json!({"row_idx": row, "row": {"content": text(row), "url": "x"}, "truncated_cells": []}))
        .collect();
    Reply::new(200, json!({"rows": rows, "num_rows_total": num_rows}).to_string())
}

/// A server of a whole data set.
fn whole(num_rows: u64) -> Server {
    Server::start(move |request| page(request, num_rows))
}

fn options(server: &Server, cache: &Path, every: u64) -> Options {
    Options {
        endpoint: server.endpoint(),
        dataset: "someone/web".to_owned(),
        column: "content".to_owned(),
        token: None,
        cache: cache.to_owned(),
        set_aside: SetAside::new(every),
        stages: Arc::default(),
        patience: patience(),
        observer: Observer::default(),
    }
}

/// Asks nothing at its opening.
fn reader(server: &Server, cache: &Path, num_rows: u64, clock: Arc<dyn Clock>) -> Reader {
    let Options { endpoint, token, patience, observer, stages, column, .. } = options(server, cache, 2);
    Reader {
        viewer: Viewer::new(&endpoint, REFINEDWEB, token, patience, observer.clone()).unwrap(),
        column,
        num_rows,
        cache: Cache::at(cache, cache::LIMIT_BYTES, observer),
        clock,
        stages,
        told: Mutex::default(),
        largest_page_bytes: AtomicU64::new(PAGE_BYTES),
    }
}
