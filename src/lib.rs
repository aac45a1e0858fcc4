//! assay: train a language model from a recipe, judge it as subnet 9's validators would, publish it when that pays.
//!
//! The way of the data: recipe → rules → data (pages → documents → tokens → rows) → train step → checkpoint.

pub mod chain;
pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod contest;
pub mod data;
mod disk;
pub mod dist;
pub mod error;
pub mod field;
pub mod figures;
pub mod gate;
#[cfg(test)]
pub(crate) mod golden;
pub mod gpu;
mod hex;
pub mod hub;
pub mod interrupt;
pub mod local;
mod lock;
mod memo;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod network;
pub mod ops;
pub mod optim;
pub mod placement;
pub mod publish;
pub mod recipe;
mod regular_file;
pub mod rules;
pub mod score;
pub mod train;
pub mod validator;
mod whole_file;
