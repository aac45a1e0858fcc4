//! Validators at work on a subnet of tiny models.

#![allow(clippy::unwrap_used)]

mod examined;
mod killed;
mod turns;
mod world;
