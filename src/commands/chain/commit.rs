//! `assay chain commit`: one text to the chain, checked before and read back after.

use anyhow::{Context, Result, bail};

use super::commitments::{json, shown};
use super::json_text;
use super::target::Target;
use crate::chain::{Chain, Commitment};
use crate::cli::chain::{ChainPlaceArgs, SignerArgs};
use crate::error::{Failure, input};
use crate::figures::count;
use crate::hub::model_id::{MAX_COMMITMENT_BYTES, ModelId, split_repo_id};
use crate::interrupt;
use crate::metrics::printer::Printer;
use crate::publish::journal::Hold;
use crate::publish::{registration, sleep_until_allowed, wait_for_rate_limit};

/// What is to be committed.
pub(super) struct Request<'a> {
    /// The text.
    pub(super) text: &'a str,
    /// Whether it may be one that names no model.
    pub(super) any_text: bool,
    /// Whether the rate limit is waited for.
    pub(super) wait: bool,
}

pub(super) fn run(request: &Request<'_>, signer: &SignerArgs, args: &ChainPlaceArgs, printer: &Printer) -> Result<()> {
    check(request).map_err(input)?;
    interrupt::install()?;
    let (chain, hotkey) = Target::of(args, printer)?.open_as(signer)?;
    let commitment = commit(request, chain.as_ref(), &hotkey, printer)?;
    printer.result(&match args.json {
        true => json_text(&json(&hotkey, &commitment)),
        false => format!("Committed as {hotkey} at block {}: {}", count(commitment.block), shown(&commitment)),
    })
}

fn commit(request: &Request<'_>, chain: &dyn Chain, hotkey: &str, printer: &Printer) -> Result<Commitment> {
    let text = request.text;
    let snapshot = chain.snapshot()?;
    registration(chain, hotkey, &snapshot)?;
    // A run that publishes under the hotkey meanwhile would replace this, or be replaced by it.
    let _hold = Hold::take(chain, hotkey)?;
    if request.wait {
        // An earlier call that was interrupted may have sent it: its own commitment is not waited out.
        if let Some(standing) = snapshot.commitments.get(hotkey).filter(|standing| standing.bytes == text.as_bytes()) {
            return Ok(standing.clone());
        }
        sleep_until_allowed(chain, hotkey, printer)?;
    } else if let Some(wait) = wait_for_rate_limit(chain, hotkey)? {
        return Err(Failure::No(format!("{} --wait waits for it.", wait.sentence(chain, hotkey))).into());
    }
    let block = chain.commit(hotkey, text.as_bytes())?;
    let found = chain.commitment(hotkey);
    match found.with_context(|| format!("`{text}` was committed as {hotkey} at block {block}, but not read back"))? {
        Some(commitment) if commitment.bytes == text.as_bytes() => Ok(commitment),
        found => bail!(
            "`{text}` was committed as {hotkey} at block {block}, but {} holds {} for it",
            chain.describe(),
            found.map_or_else(|| "nothing".to_owned(), |commitment| format!("`{}`", shown(&commitment)))
        ),
    }
}

/// Refuses what the chain would not take, and what names no model unless that is wanted. The error is a sentence.
fn check(request: &Request<'_>) -> Result<(), String> {
    let text = request.text;
    if text.len() > MAX_COMMITMENT_BYTES {
        return Err(format!(
            "the text has {} bytes, and the chain takes {MAX_COMMITMENT_BYTES}: give the repository a shorter name",
            text.len()
        ));
    }
    if request.any_text { Ok(()) } else { check_model(text) }
}

fn check_model(text: &str) -> Result<(), String> {
    let remedy = "--any-text commits it all the same";
    let id: ModelId = text.parse().map_err(|error| format!("{error}; {remedy}"))?;
    if id.to_string() != text {
        return Err(format!("`{text}` has more than the four parts namespace:name:commit:hash; {remedy}"));
    }
    let parts = [
        ("namespace", Some(&id.namespace)),
        ("name", Some(&id.name)),
        ("commit", id.commit.as_ref()),
        ("hash", id.hash.as_ref()),
    ];
    if let Some((part, _)) = parts.iter().find(|(_, value)| value.is_none_or(|value| value.is_empty())) {
        return Err(format!(
            "`{text}` lacks the {part} of namespace:name:commit:hash, without which no validator finds the model; {remedy}"
        ));
    }
    split_repo_id(&id.repo_id()).map_err(|sentence| format!("{sentence} {remedy}."))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::chain::ledger::{Ledger, Settings};
    use crate::commands::chain::tests::Stopped;
    use crate::error::exit_code;

    const MODEL: &str = "me:model:0123:abc=";

    fn request(text: &str) -> Request<'_> {
        Request { text, any_text: false, wait: false }
    }

    #[test]
    fn only_a_whole_models_name_is_committed_unless_any_text_is_wanted() {
        let refused = |text: &str, sentence: &str| {
            let found = check(&request(text)).unwrap_err();
            assert!(found.contains(sentence), "{found}");
            assert_eq!(check(&Request { any_text: true, ..request(text) }), Ok(()));
        };
        assert_eq!(check(&request(MODEL)), Ok(()));
        refused("me:model", "is no model id");
        refused("me:model:0123:abc=:5", "more than the four parts");
        refused("me:model:None:abc=", "lacks the commit");
        refused("me:model:0123:", "lacks the hash");
        refused(":model:0123:abc=", "lacks the namespace");
        refused("me:mod/el:0123:abc=", "is not of the form");
        refused(&format!("me:{}:0123:abc=", "x".repeat(39)), "has 42 characters");
        assert_eq!(check(&request(&format!("me:{}:0123:abc=", "x".repeat(38)))), Ok(()));
        // Bytes, not characters.
        let texts = [64, 65].map(|count| "\u{e4}".repeat(count));
        let [fits, long] = texts.each_ref().map(|text| check(&Request { any_text: true, ..request(text) }));
        assert_eq!(fits, Ok(()));
        assert!(long.unwrap_err().contains("130 bytes"));
    }

    #[test]
    fn the_rate_limit_is_waited_for_only_if_that_is_asked() {
        let (dir, now) = (tempfile::tempdir().unwrap(), Arc::new(AtomicU64::new(0)));
        // Blocks of a millisecond, 100 from one commitment to the next.
        let (path, clock) = (dir.path().join("ledger.sqlite"), Arc::new(Stopped(now.clone())));
        let ledger = Ledger::create_with_clock(&path, &Settings::new(1_000, 0, 1), clock, |_| Ok(())).unwrap();
        let printer = Printer::with_streams(std::io::sink(), std::io::sink(), true);
        let commit = |request: &Request<'_>| commit(request, &ledger, "miner", &printer);
        assert_eq!(exit_code(&commit(&request(MODEL)).unwrap_err()), 2);
        ledger.register("miner").unwrap();
        assert_eq!(commit(&request(MODEL)).unwrap().block, 1_000);
        now.store(99, Ordering::SeqCst);
        let refused = commit(&request(MODEL)).unwrap_err();
        assert_eq!(exit_code(&refused), 4);
        assert!(refused.to_string().contains("the next commitment of miner at block 1,100"), "{refused}");
        let second = thread::scope(|scope| {
            let waiting = scope.spawn(|| commit(&Request { wait: true, ..request("me:model:4567:def=") }));
            thread::sleep(Duration::from_millis(30));
            assert!(!waiting.is_finished());
            now.store(100, Ordering::SeqCst);
            waiting.join().unwrap().unwrap()
        });
        assert_eq!((second.block, second.bytes.as_slice()), (1_100, b"me:model:4567:def=".as_slice()));
        assert_eq!(ledger.commitments_of("miner").unwrap().len(), 2);
    }
}
