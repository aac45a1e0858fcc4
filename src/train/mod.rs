//! Training.

pub mod meter;
