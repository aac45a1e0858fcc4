//! Where models live, and how they are named and identified: the directory hash that miners commit to the chain
//! ([`hash`]) and the model id that carries it ([`model_id`]).
//!
//! Both reproduce the reference's Python exactly, down to the order of file names that are not UTF-8: a hash that
//! differs in one bit is a model that no validator evaluates.

pub mod hash;
pub mod model_id;
