//! The validator's arithmetic and nothing else: losses ([`loss`]), duels ([`duel`]), weights ([`weights`]), and what a whole
//! step makes of them ([`step`]); the order of its models ([`uid_set`]), and what their text must be like ([`output`],
//! [`continuation`]).

pub mod cache;
pub mod certainty;
pub mod comparison;
pub mod continuation;
pub mod duel;
pub mod loss;
pub mod output;
pub mod step;
pub mod uid_set;
pub mod weights;
pub mod yuma;
