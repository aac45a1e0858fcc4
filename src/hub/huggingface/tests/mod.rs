//! A client against servers that fail it in every way.

#![allow(clippy::unwrap_used)]

mod by_xet;
mod cached;
mod downloads;
mod faults;
mod listings;
mod memory_hub;
mod requests;
mod served;
pub(crate) mod server;
mod setbacks;
mod writing;

use std::time::Duration;

use server::Server;

use super::*;

const SECRET: &str = "hf_AbCdEfGhIjKlMnOpQrStUvWx";
const REPO: &str = "miner/model";

fn commit() -> String {
    "0123456789".repeat(4)
}

/// Patience enough for a loopback.
fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(2),
        answer: Duration::from_millis(400),
        stall: Duration::from_millis(300),
        tries: 4,
        first_pause: Duration::from_millis(4),
        longest_pause: Duration::from_secs(2),
    }
}

fn options(server: &Server) -> Options {
    Options {
        endpoint: server.endpoint(),
        token: Some(Token::new(SECRET, "the test").unwrap()),
        max_bytes_per_second: None,
        hashes: FileHashes::default(),
        patience: patience(),
        observer: Observer::default(),
    }
}

/// A client with a token.
fn client(server: &Server) -> HuggingFace {
    HuggingFace::new(options(server)).unwrap()
}

/// Bytes without a pattern, the same for a seed.
fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}
