//! Why there is no good answer, and what is said of it.

use std::time::Duration;

use anyhow::Result;

use super::answer::{Refusal, sleep};
use super::http::Http;
use crate::error::{Failure, input};
use crate::hub::progress::Told;

/// A longer pause is told.
const LONG_PAUSE: Duration = Duration::from_secs(2);

/// Why there is no good answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// There is one, and it is no.
    Refused(Refusal),
    /// There is none, or none that can be understood.
    Lost(String),
    /// There is one of more bytes than this, as none should have.
    TooLong(usize),
    /// The hub does not take our token, whatever is asked.
    BadToken,
    /// An orderly end was asked for.
    Interrupted,
}

impl Http {
    /// Waits before a request is made again; the user is told why where that takes long.
    pub(super) async fn rest(&self, pause: Duration, fault: &Fault) -> Result<(), Fault> {
        let hub = self.endpoint();
        let why = match fault {
            Fault::Refused(Refusal { asked_pause: Some(_), .. }) => format!("{hub} asks to wait"),
            Fault::Refused(refusal) => format!("{hub} says {}", refusal.status),
            Fault::Lost(reason) => format!("{hub} would not answer ({reason})"),
            Fault::TooLong(_) | Fault::BadToken | Fault::Interrupted => format!("{hub} gave no good answer"),
        };
        self.rest_because(pause, &why).await
    }

    /// The same for a reason that is told as it is.
    pub(super) async fn rest_because(&self, pause: Duration, why: &str) -> Result<(), Fault> {
        if pause >= LONG_PAUSE {
            self.observer.tell(Told::Waits(&format!("{why}; trying again in {} s", pause.as_secs())));
        }
        sleep(pause).await
    }

    /// A fault as an error; `what` begins its sentence: "a/b could not be listed".
    pub(super) fn error(&self, fault: Fault, what: &str) -> anyhow::Error {
        let hub = self.endpoint();
        match fault {
            Fault::Interrupted => Failure::Interrupted(format!("{what}: interrupted")).into(),
            Fault::Lost(reason) => Failure::Unreachable(format!("{what}: {hub} would not answer ({reason})")).into(),
            Fault::TooLong(bytes) => {
                Failure::Unreachable(format!("{what}: the answer of {hub} has more than {bytes} bytes")).into()
            }
            Fault::BadToken => {
                let source = self.token().map_or("nowhere", |token| token.source());
                input(format!("{what}: {hub} does not take the token of {source}; put a valid one there, or none"))
            }
            Fault::Refused(refusal) => {
                let Refusal { status, message, is_hubs, asked_pause, .. } = &refusal;
                let mut said = format!("{what}: {hub} says {status}");
                if !message.is_empty() {
                    said = format!("{said}, {message}");
                }
                if let Some(pause) = asked_pause.filter(|pause| *pause > self.patience.longest_pause) {
                    said = format!("{said}; it asks to wait {} s", pause.as_secs());
                }
                match status.as_u16() {
                    408 | 429 | 500..=599 => Failure::Unreachable(said).into(),
                    _ if !is_hubs => Failure::Unreachable(format!("{said}, but not as a hub does")).into(),
                    401 | 403 | 404 | 410 | 451 => Failure::No(said).into(),
                    _ => Failure::Input(said).into(),
                }
            }
        }
    }

    /// The same of a question about a stranger's repository: whatever the hub finds wrong with it is the stranger's doing,
    /// down to a name that it does not allow, or a list without end.
    pub(super) fn reading_error(&self, fault: Fault, what: &str) -> anyhow::Error {
        let is_theirs = match &fault {
            Fault::Refused(refusal) => refusal.is_hubs && refusal.is_final() && refusal.status.is_client_error(),
            Fault::TooLong(_) => true,
            _ => false,
        };
        let error = self.error(fault, what);
        if is_theirs { Failure::No(error.to_string()).into() } else { error }
    }
}
