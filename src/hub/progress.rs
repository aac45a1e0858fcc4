//! How far the transfers with a hub are, for whoever shows it: a hub has no terminal.

use std::fmt;
use std::sync::Arc;

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

/// Is told how far transfers are, from any thread and as often as once for each block: it returns soon.
///
/// The default one is nobody.
#[derive(Clone, Default)]
pub struct Observer(Option<Arc<Observe>>);

type Observe = dyn Fn(Progress<'_>) + Send + Sync;

impl Observer {
    /// One that calls a function.
    pub fn new(observe: impl Fn(Progress<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(observe)))
    }

    /// Tells it.
    pub fn tell(&self, progress: Progress<'_>) {
        if let Some(observe) = &self.0 {
            observe(progress);
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Observer" } else { "Observer (nobody)" })
    }
}
