//! One file per verb of the command line. Each returns what it found; printing is done in one place elsewhere.

pub mod inspect;
