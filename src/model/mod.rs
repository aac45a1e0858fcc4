//! The language model: what it is ([`arch`]), where its numbers lie ([`layout`]), how it reads and writes Hugging Face
//! checkpoints ([`config`], [`weights`]), how it starts, and its two backends.

pub mod arch;
pub mod config;
mod json;
pub mod layout;
pub mod weights;
