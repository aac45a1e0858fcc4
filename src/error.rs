//! What kind of failure an error is: it decides the exit code, and nothing else.
//!
//! Code below the commands uses `anyhow` with context. Where the *kind* matters (the user can mend his input; the
//! network would not answer; the answer is no) the error's source is a [`Failure`], found again by [`exit_code`]
//! however much context was wrapped around it.

use thiserror::Error;

/// A failure of a kind that has an exit code of its own.
#[derive(Debug, Error)]
pub enum Failure {
    /// The user's input (recipe, model folder, flag, data) is wrong: exit code 2.
    #[error("{0}")]
    Input(String),
    /// A network, hub or chain would not answer: exit code 3.
    #[error("{0}")]
    Unreachable(String),
    /// The command worked and its answer is no: exit code 4.
    #[error("{0}")]
    No(String),
    /// Stopped by Ctrl-C or SIGTERM after saving what there was to save: exit code 130.
    #[error("{0}")]
    Interrupted(String),
}

/// Wraps a sentence that tells the user what is wrong with his input, where, and what to do.
pub fn input(sentence: impl Into<String>) -> anyhow::Error {
    Failure::Input(sentence.into()).into()
}

/// The first [`Failure`] in an error's chain.
pub fn failure(error: &anyhow::Error) -> Option<&Failure> {
    error.chain().find_map(|cause| match cause.downcast_ref::<std::io::Error>() {
        // An `io::Error` made of a failure shows it as itself, but not as its source.
        Some(error) => error.get_ref()?.downcast_ref::<Failure>(),
        None => cause.downcast_ref::<Failure>(),
    })
}

/// The process exit code of an error: that of the first [`Failure`] in its chain, 1 without any.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match failure(error) {
        Some(Failure::Input(_)) => 2,
        Some(Failure::Unreachable(_)) => 3,
        Some(Failure::No(_)) => 4,
        Some(Failure::Interrupted(_)) => 130,
        None => 1,
    }
}
