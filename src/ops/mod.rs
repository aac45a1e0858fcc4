//! Operations of the native backend, each with a plain reference, and what their references and masks share.

pub mod random;
pub mod real;
