//! The language model: what it is ([`arch`]), where its numbers lie ([`layout`]), how it reads and writes Hugging Face
//! checkpoints , how it starts, and its two backends.

pub mod arch;
pub mod layout;
