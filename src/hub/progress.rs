//! How far the transfers with a hub are, and why nothing moves, for whoever shows it: a hub has no terminal.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What it is, in messages: "uploading me/model".
    pub what: &'a str,
    /// Bytes that have come or gone so far. They become fewer where a file has to be sent again.
    pub done_bytes: u64,
    /// Bytes of all files together.
    pub total_bytes: u64,
}

/// What a hub tells while it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// How far a transfer is.
    Progress(Progress<'a>),
    /// This transfer has ended, well or not.
    Ended(&'a str),
    /// Why nothing moves for a while, in a sentence.
    Waits(&'a str),
    /// What goes on all the same, in a sentence.
    Warns(&'a str),
}

/// Is told how far transfers are, from any thread and as often as once for each block: it returns soon.
///
/// The default one is nobody.
#[derive(Clone, Default)]
pub struct Observer(Option<Arc<Observe>>);

type Observe = dyn Fn(Told<'_>) + Send + Sync;

impl Observer {
    /// One that calls a function.
    pub fn new(observe: impl Fn(Told<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(observe)))
    }

    /// Tells it.
    pub fn tell(&self, told: Told<'_>) {
        if let Some(observe) = &self.0 {
            observe(told);
        }
    }

    /// A transfer that begins: "uploading me/model".
    pub(super) fn transfer(&self, what: String) -> Transfer {
        Transfer(Teller(Arc::new(Shared { observer: self.clone(), what, has_ended: Mutex::new(false) })))
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Observer" } else { "Observer (nobody)" })
    }
}

/// A transfer until it is dropped, which the observer is told, and after which nothing more is told of it.
pub(super) struct Transfer(Teller);

/// Tells how far a transfer is.
#[derive(Clone)]
pub(super) struct Teller(Arc<Shared>);

struct Shared {
    observer: Observer,
    what: String,
    has_ended: Mutex<bool>,
}

impl Transfer {
    /// Who tells how far it is.
    pub(super) fn teller(&self) -> &Teller {
        &self.0
    }
}

impl Teller {
    /// Tells how many bytes have come or gone, of how many; nothing once the transfer has ended.
    pub(super) fn tell(&self, done_bytes: u64, total_bytes: u64) {
        let Shared { observer, what, has_ended } = &*self.0;
        let has_ended = has_ended.lock().unwrap_or_else(PoisonError::into_inner);
        if !*has_ended {
            observer.tell(Told::Progress(Progress { what, done_bytes, total_bytes }));
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let Shared { observer, what, has_ended } = &*self.0.0;
        *has_ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        observer.tell(Told::Ended(what));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn nothing_is_told_of_a_transfer_after_its_end() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let observer = Observer::new(move |told| heard.lock().unwrap().push(format!("{told:?}")));
        let transfer = observer.transfer("uploading me/model".to_owned());
        let teller = transfer.teller().clone();
        teller.tell(1, 3);
        drop(transfer);
        teller.tell(2, 3);
        let progress = "Progress(Progress { what: \"uploading me/model\", done_bytes: 1, total_bytes: 3 })";
        assert_eq!(*told.lock().unwrap(), [progress, "Ended(\"uploading me/model\")"]);
    }
}
