//! Validators at work on a subnet of tiny models.

#![allow(clippy::unwrap_used)]

mod killed;
mod turns;
mod world;
