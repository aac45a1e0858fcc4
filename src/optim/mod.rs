//! From gradients to new weights: the update ([`adamw`]), the gradient's norm and limit ([`clip`]), the learning rate
//! ([`schedule`]).

pub mod adamw;
pub mod clip;
pub mod schedule;
