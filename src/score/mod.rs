//! The validator's arithmetic and nothing else: losses ([`loss`]), duels ([`duel`]), weights ([`weights`]), and what a whole
//! step makes of them ([`step`]); the order of its models ([`uid_set`]), what they are scored on ([`pages`]), and what their
//! text must be like ([`output`], [`continuation`]). Beside it what validators do not ask: how far models are apart
//! ([`paired`]), and which is better for certain ([`verdicts`]).

pub mod cache;
pub mod certainty;
pub mod comparison;
pub mod continuation;
pub mod duel;
pub mod loss;
pub mod output;
pub mod pages;
pub mod paired;
pub mod step;
pub mod uid_set;
pub mod verdicts;
pub mod weights;
pub mod what_if;
pub mod yuma;
