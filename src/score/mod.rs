//! The validator's arithmetic and nothing else.

pub mod loss;
