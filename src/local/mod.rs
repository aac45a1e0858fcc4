//! The embedded network: a hub and a ledger on this machine, with a validator and a rival to begin with.
//!
//! The rival ([`unigram`]) is committed long before anything else, so that whoever wants to earn here must beat it by more
//! than the validators' advantage for the earlier model, and it earns everything until then. The ledger appears last and
//! as a whole: an init that was killed half-way is simply repeated.

pub mod dataset;
mod file_answer;
mod http;
pub mod hub;
mod loopback;
mod refusal;
pub mod rpc;
pub mod unigram;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::chain::account::check_hotkey;
use crate::chain::ledger::{Ledger, Settings};
use crate::chain::{Chain, FULL_SHARE, Hotkey};
use crate::clock::{Clock, SystemClock};
use crate::data::Opened;
use crate::error::input;
use crate::figures::count;
use crate::hub::hash::directory_hash;
use crate::hub::model_id::ModelId;
use crate::hub::{Hub, Upload};
use crate::lock;
use crate::rules::DEFAULT_BLOCK;

/// Hotkey of the validator.
const VALIDATOR: &str = "validator";
/// Hotkey of the rival, and the name of its repository.
const RIVAL: &str = "unigram";
/// Namespace of the rival's repository.
const NAMESPACE: &str = "local";
/// Blocks that the ledger is old when it is made.
const AGE: u64 = 1_000;
/// Blocks from the first one to the rival's commitment.
const RIVAL_AFTER: u64 = 10;
/// The validator's stake, in the chain's smallest unit.
const STAKE: u64 = 1_000_000_000_000;

/// How long another process that makes the same network is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How an embedded network is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Milliseconds from one block to the next.
    pub block_ms: u64,
}

impl Default for Options {
    /// Blocks of 12 seconds, as on Bittensor.
    fn default() -> Self {
        Self { block_ms: 12_000 }
    }
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Report {
    ledger: PathBuf,
    hub: String,
    /// The own hotkeys with their uids; `None`: the ledger was there, and was left as it is.
    made: Option<(u64, Vec<(Hotkey, u16)>)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ledger = self.ledger.display();
        let Some((block, hotkeys)) = &self.made else {
            return write!(f, "The embedded network is there already, with its ledger {ledger}; nothing was changed.");
        };
        let hotkeys: Vec<String> = hotkeys.iter().map(|(hotkey, uid)| format!("{hotkey} (uid {uid})")).collect();
        write!(
            f,
            "Made an embedded network: the ledger {ledger}, at block {}, and {}. The rival {NAMESPACE}/{RIVAL} (uid 1), \
             which knows only how often each word occurs, earns everything so far. Registered: {}.",
            count(*block),
            self.hub,
            hotkeys.join(", ")
        )
    }
}

/// Makes the ledger with a validator, the rival, and the own hotkeys, and uploads the rival to the hub. A ledger that is
/// there is left alone. Nothing is made where a hotkey has a name that it cannot have.
pub fn init(hub: &dyn Hub, ledger_path: &Path, hotkeys: &[Hotkey], data: &Opened, options: &Options) -> Result<Report> {
    for hotkey in hotkeys {
        check_hotkey(hotkey)?;
        if [VALIDATOR, RIVAL].contains(&hotkey.as_str()) {
            return Err(input(format!(
                "the hotkey `{hotkey}` belongs to the embedded network itself: give your own another name"
            )));
        }
    }
    let folder = ledger_path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let report = |made| Report { ledger: ledger_path.to_owned(), hub: hub.describe(), made };
    let mut lock_path = ledger_path.as_os_str().to_owned();
    lock_path.push(".init-lock");
    // Two at once: the second one finds it made.
    let Some(_lock) = lock::wait(Path::new(&lock_path), PATIENCE)? else {
        bail!("another process has been making {} for {} s", ledger_path.display(), PATIENCE.as_secs())
    };
    if ledger_path.exists() {
        Ledger::open(ledger_path)?; // or what is there is none
        return Ok(report(None));
    }

    let rival = tempfile::tempdir().context("no temporary folder can be made")?;
    let names = unigram::write(rival.path(), data)?;
    let commit =
        hub.upload(&Upload::new(&format!("{NAMESPACE}/{RIVAL}"), rival.path(), &names, "The unigram model"))?;
    let id = ModelId {
        namespace: NAMESPACE.to_owned(),
        name: RIVAL.to_owned(),
        commit: Some(commit),
        hash: Some(directory_hash(rival.path())?),
    };

    let first_ms = SystemClock.unix_ms().saturating_sub(AGE.saturating_mul(options.block_ms));
    let settings = Settings::new(DEFAULT_BLOCK, first_ms, options.block_ms);
    let mut own = Vec::new();
    let ledger = Ledger::create_filled(ledger_path, &settings, |ledger| {
        // From the start: weights count only if they are younger than the registration of the place they are given to.
        let validator = ledger.register_at(VALIDATOR, DEFAULT_BLOCK)?;
        let unigram = ledger.register_at(RIVAL, DEFAULT_BLOCK)?;
        ledger.set_stake(validator, STAKE)?;
        ledger.set_permit(validator, true)?;
        ledger.commit_at(RIVAL, id.to_string().as_bytes(), DEFAULT_BLOCK + RIVAL_AFTER)?;
        ledger.put_weights(validator, &[(unigram, FULL_SHARE)])?;
        ledger.set_incentives(&[(unigram, FULL_SHARE)])?;
        for hotkey in hotkeys {
            own.push((hotkey.clone(), ledger.register(hotkey)?));
        }
        Ok(())
    })?;
    let block = ledger.block()?;
    Ok(report(Some((block, own))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::thread;

    use super::*;
    use crate::data;
    use crate::error::exit_code;
    use crate::hub::folder::FolderHub;

    #[test]
    fn a_made_network_holds_a_rival_that_was_committed_long_before_and_earns_all() {
        let dir = tempfile::tempdir().unwrap();
        let (hub, path) = (FolderHub::create(&dir.path().join("hub")).unwrap(), dir.path().join("net/ledger.sqlite"));
        let data = data::open_sample(1024).unwrap();
        let hotkeys = ["a".to_owned(), "b".to_owned()];
        let make = || init(&hub, &path, &hotkeys, &data, &Options::default()).unwrap();
        assert!(make().to_string().contains("a (uid 2), b (uid 3)"));

        let snapshot = Ledger::open(&path).unwrap().snapshot().unwrap();
        assert!((DEFAULT_BLOCK + AGE..DEFAULT_BLOCK + AGE + 10).contains(&snapshot.block), "{}", snapshot.block);
        assert_eq!(snapshot.leader().map(|leader| leader.uid), Some(1));
        assert_eq!(snapshot.weights[&0], [(1, FULL_SHARE)]);
        let metadata = snapshot.metadata(RIVAL).unwrap();
        assert_eq!(metadata.block.get(), DEFAULT_BLOCK + RIVAL_AFTER);
        let copy = tempfile::tempdir().unwrap();
        let commit = metadata.id.commit.clone().unwrap();
        let files = hub.files("local/unigram", &commit).unwrap();
        hub.download("local/unigram", &commit, &files.iter().collect::<Vec<_>>(), copy.path()).unwrap();
        assert_eq!(Some(directory_hash(copy.path()).unwrap()), metadata.id.hash);

        let before = fs::read(&path).unwrap();
        assert!(make().to_string().contains("nothing was changed"));
        assert_eq!(fs::read(&path).unwrap(), before);
        // Without the ledger, as after a kill before its end, it is made anew around the same upload.
        fs::remove_file(&path).unwrap();
        make();
        assert_eq!(hub.commits("local/unigram").unwrap(), [commit]);
    }

    #[test]
    fn of_two_at_once_one_makes_the_network_and_the_other_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let (hub, path) = (FolderHub::create(&dir.path().join("hub")).unwrap(), dir.path().join("ledger.sqlite"));
        let data = data::open_sample(1024).unwrap();
        let make = || init(&hub, &path, &["a".to_owned()], &data, &Options::default()).unwrap();
        let reports = thread::scope(|scope| [scope.spawn(make), scope.spawn(make)].map(|made| made.join().unwrap()));
        let num_made = reports.iter().filter(|report| report.made.is_some()).count();
        assert_eq!(num_made, 1);
        assert_eq!(Ledger::open(&path).unwrap().snapshot().unwrap().neurons.len(), 3);
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let (hub, net) = (FolderHub::create(&dir.path().join("hub")).unwrap(), dir.path().join("net"));
        let data = data::open_sample(1024).unwrap();
        let refused = |hotkey: &str, path: &Path, sentence: &str| {
            let error = init(&hub, path, &[hotkey.to_owned()], &data, &Options::default()).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().contains(sentence), "{error}");
        };
        refused(VALIDATOR, &net.join("ledger.sqlite"), "`validator` belongs to the embedded network itself");
        refused(RIVAL, &net.join("ledger.sqlite"), "`unigram` belongs to the embedded network itself");
        refused("a b", &net.join("ledger.sqlite"), "`a b` is no name of a hotkey");
        assert!(!net.exists());
        let other = dir.path().join("notes.txt");
        fs::write(&other, "mine: ".repeat(100)).unwrap();
        refused("a", &other, "is no ledger");
        assert_eq!(fs::read_to_string(&other).unwrap(), "mine: ".repeat(100));
        assert_eq!(hub.newest_commit("local/unigram").unwrap(), None);
    }
}
