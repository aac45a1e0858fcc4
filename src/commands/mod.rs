//! One file per verb of the command line: each returns what there is to say; only the printer prints.

pub mod check;
