//! assay: train a language model from a recipe, judge it as subnet 9's validators would, publish it when that pays.
//!
//! The way of the data: recipe → rules → data (pages → documents → tokens → rows) → train step → checkpoint.

pub mod checkpoint;
pub mod commands;
pub mod data;
pub mod error;
pub mod hub;
pub mod interrupt;
pub mod model;
pub mod recipe;
