#![allow(clippy::unwrap_used)]

mod memory_hub;
mod writing;
