//! What can go wrong between here and a node, and whether another try may help.

use std::fmt;

use crate::error::input;

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The node answered that it will not, with the code of JSON-RPC.
    Refused {
        /// The code.
        code: i64,
        /// Its words.
        text: String,
    },
    /// The node could not be reached, was silent, or talked nonsense.
    Lost(String),
}

impl Fault {
    /// In words.
    pub(super) fn text(self) -> String {
        match self {
            Self::Refused { code, text } => format!("it answers: {text} ({code})"),
            Self::Lost(text) => text,
        }
    }
}

/// Why an operation failed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Another try, perhaps with another node, may do.
    Node(String),
    /// The node lacks a method: another may have it.
    Lacking(String),
    /// It will not get better by itself.
    Final(anyhow::Error),
}

/// The end of one try.
pub(super) type Attempt<T> = Result<T, Trouble>;

/// The code of JSON-RPC for a method that the node does not have.
pub(super) const METHOD_NOT_FOUND: i64 = -32601;

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused { code: METHOD_NOT_FOUND, text } => {
                Self::Lacking(format!("the node lacks a method that nodes of Bittensor's chain have: {text}"))
            }
            fault => Self::Node(fault.text()),
        }
    }
}

impl Trouble {
    /// The same, where there is no other node to be tried: what the only one lacks it will not get.
    pub(super) fn of_only_node(self) -> Self {
        match self {
            Self::Lacking(text) => Self::Final(input(text)),
            trouble => trouble,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(text) | Self::Lacking(text) => formatter.write_str(text),
            Self::Final(error) => write!(formatter, "{error:#}"),
        }
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Final(error)
    }
}

/// What a node said, fit to be shown: short, on one line, without control characters.
pub(super) fn quoted(text: &str) -> String {
    const MAX_CHARS: usize = 300;
    let mut quoted: String = text.chars().take(MAX_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        quoted.push('…');
    }
    quoted
}
