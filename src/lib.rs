//! assay: train a language model from a recipe, judge it as subnet 9's validators would, publish it when that pays.
//!
//! The way of the data: recipe → rules → data (pages → documents → tokens → rows) → train step → checkpoint.

pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod data;
pub mod dist;
pub mod error;
pub mod figures;
#[cfg(test)]
pub(crate) mod golden;
pub mod hub;
pub mod interrupt;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod optim;
pub mod recipe;
mod regular_file;
pub mod rules;
pub mod score;
pub mod train;
