//! Whole-program tests: what a user types, what he gets to see, and what lies on his disk afterwards. One crate, so that
//! it is linked once.

#![allow(clippy::unwrap_used)]

mod answers;
mod chain;
mod compare;
mod damage;
mod data;
mod devnet;
mod emission;
mod full_disk;
mod hub;
mod input;
mod kill;
mod publish;
mod resume;
#[path = "../util/mod.rs"]
mod util;
mod validate;
mod wallet;
