//! `assay chain`: a subnet's chain, for people and scripts.

mod commit;
mod commitments;
mod miner;
mod neurons;
mod set_weights;
mod status;
mod target;
mod weights_file;

use anyhow::Result;
use serde_json::Value;

use crate::chain::{Currency, FULL_SHARE};
use crate::cli::chain::{ChainArgs, ChainCommand};
use crate::metrics::printer::Printer;

/// Runs the command.
pub fn run(args: &ChainArgs, printer: &Printer) -> Result<()> {
    match &args.command {
        ChainCommand::Status { chain } => status::run(chain, printer),
        ChainCommand::Neurons { chain } => neurons::run(chain, printer),
        ChainCommand::Commitments { chain } => commitments::all(chain, printer),
        ChainCommand::Commitment { hotkey, chain } => commitments::one(hotkey, chain, printer),
        ChainCommand::Commit { text, any_text, wait, signer, chain } => {
            commit::run(&commit::Request { text, any_text: *any_text, wait: *wait }, signer, chain, printer)
        }
        ChainCommand::SetWeights { file, version_key, signer, chain } => {
            set_weights::run(file, *version_key, signer, chain, printer)
        }
        ChainCommand::Miner { hotkeys, chain } => miner::run(hotkeys, chain, printer),
    }
}

/// JSON without the control characters that it may hold as they are, which a printer would replace.
fn json_text(value: &Value) -> String {
    let steers = |c: char| ('\u{7f}'..='\u{9f}').contains(&c);
    let escaped = |c: char| if steers(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    let text = value.to_string();
    if text.contains(steers) { text.chars().map(escaped).collect() } else { text }
}

/// Strangers' text on one line.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// Lines of a name and a value.
fn list(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("  {name:<width$}  {value}")).collect();
    lines.join("\n")
}

/// The name of what a subnet pays in.
fn currency_name(currency: Currency) -> &'static str {
    match currency {
        Currency::Tao => "TAO",
        Currency::Alpha { .. } => "alpha",
    }
}

fn share(share: u16) -> f64 {
    f64::from(share) / f64::from(FULL_SHARE)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::clock::Clock;

    /// Milliseconds that a test sets.
    pub(super) struct Stopped(pub(super) Arc<AtomicU64>);

    impl Clock for Stopped {
        fn unix_ms(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }

        fn sleep(&self, _: Duration) {}
    }

    #[test]
    fn json_keeps_what_would_steer_a_terminal_as_escapes() {
        let value = json!(["a\u{9b}2J\u{7f}\u{1b}\n", "\u{e4}"]);
        let text = json_text(&value);
        assert!(!text.contains(char::is_control), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        assert!(text.contains('\u{e4}'));
    }
}
