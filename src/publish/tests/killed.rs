//! Killed between any two requests, before each is handled and after, publishing to a hub over HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::Method;

use super::*;
use crate::chain::{Commitment, Hotkey, Status};
use crate::hub::file_hashes::FileHashes;
use crate::hub::huggingface::{HuggingFace, Options, Patience, Token};
use crate::local::hub::{self as server, Fate, HubServer, Moment, Observer};
use crate::publish::repair;

/// Counts what happens, and from a given event on lets nothing happen any more.
#[derive(Default)]
struct Death {
    num_events: AtomicUsize,
    /// The event that is the last.
    at: AtomicUsize,
    has_come: AtomicBool,
}

impl Death {
    /// Whether an event still happens.
    fn spares(&self) -> bool {
        let event = self.num_events.fetch_add(1, Ordering::SeqCst);
        if event >= self.at.load(Ordering::SeqCst) {
            self.has_come.store(true, Ordering::SeqCst);
        }
        !self.has_come.load(Ordering::SeqCst)
    }

    fn check(&self) -> Result<()> {
        if self.has_come.load(Ordering::SeqCst) { bail!("killed") } else { Ok(()) }
    }

    /// From now on everything happens.
    fn revive(&self) {
        self.at.store(usize::MAX, Ordering::SeqCst);
        self.has_come.store(false, Ordering::SeqCst);
    }
}

impl Observer for Arc<Death> {
    fn sees(&self, _moment: Moment, _method: &Method, _path: &str) -> Fate {
        if self.spares() { Fate::GoOn } else { Fate::Cut }
    }
}

/// The ledger, to a process that dies.
struct Mortal(Ledger, Arc<Death>);

impl Chain for Mortal {
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn is_real(&self) -> bool {
        self.0.is_real()
    }
    fn seconds_per_block(&self) -> f64 {
        self.0.seconds_per_block()
    }
    fn journal_dir(&self) -> &Path {
        self.0.journal_dir()
    }
    fn block(&self) -> Result<u64> {
        self.1.check().and_then(|()| self.0.block())
    }
    fn snapshot(&self) -> Result<Snapshot> {
        self.1.check().and_then(|()| self.0.snapshot())
    }
    fn status(&self) -> Result<Status> {
        self.1.check().and_then(|()| self.0.status())
    }
    fn all_commitments(&self) -> Result<std::collections::BTreeMap<Hotkey, Commitment>> {
        self.1.check().and_then(|()| self.0.all_commitments())
    }
    fn unregistered(&self, hotkey: &str) -> anyhow::Error {
        self.0.unregistered(hotkey)
    }
    fn commitment(&self, hotkey: &str) -> Result<Option<Commitment>> {
        self.1.check().and_then(|()| self.0.commitment(hotkey))
    }
    fn next_commit_block(&self, hotkey: &str) -> Result<u64> {
        self.1.check().and_then(|()| self.0.next_commit_block(hotkey))
    }
    fn commit(&self, hotkey: &str, bytes: &[u8]) -> Result<u64> {
        if !self.1.spares() {
            bail!("killed before the commitment");
        }
        let block = self.0.commit(hotkey, bytes)?;
        if !self.1.spares() {
            bail!("killed after the commitment");
        }
        Ok(block)
    }
    fn set_weights(&self, hotkey: &str, weights: &[(u16, u16)], version_key: u64) -> Result<u64> {
        self.0.set_weights(hotkey, weights, version_key)
    }
}

/// A network whose hub is asked over HTTP.
struct Remote {
    fixture: Fixture,
    folder: FolderHub,
    death: Arc<Death>,
    _server: HubServer,
}

impl Remote {
    /// Death comes at an event. `was_there`: the repository is, for all to see.
    fn new(visibility: Visibility, was_there: bool, at: usize) -> Self {
        let mut fixture = Fixture::seen(visibility);
        let dir = fixture.dir.path().join("hub");
        if was_there {
            FolderHub::open(&dir).unwrap().create_repository("me/model", false, &[(ATTRIBUTES_FILE, b"")]).unwrap();
        }
        let death = Arc::new(Death { at: at.into(), ..Death::default() });
        let options = server::Options { observer: Some(Arc::new(Arc::clone(&death))), ..server::Options::default() };
        let server = HubServer::start(Arc::new(FolderHub::open(&dir).unwrap()), 0, options).unwrap();
        let patience = Patience { tries: 2, first_pause: Duration::from_millis(1), ..Patience::default() };
        let hub = HuggingFace::new(Options {
            endpoint: server.endpoint(),
            token: Some(Token::new("hf_of_a_test", "the test").unwrap()),
            max_bytes_per_second: None,
            hashes: FileHashes::default(),
            patience,
            observer: crate::hub::progress::Observer::default(),
        });
        fixture.network.hub = Box::new(hub.unwrap());
        let ledger = Ledger::open(&fixture.dir.path().join("ledger.sqlite")).unwrap();
        fixture.network.chain = Box::new(Mortal(ledger, Arc::clone(&death)));
        Self { fixture, folder: FolderHub::open(&dir).unwrap(), death, _server: server }
    }

    /// How many commits the repository has with files of ours, and what was committed to the chain.
    fn written(&self) -> (usize, Vec<String>) {
        let is_ours = |commit: &String| {
            self.folder.files("me/model", commit).unwrap().iter().any(|file| file.path != ATTRIBUTES_FILE)
        };
        let commits = self.folder.commits("me/model").unwrap();
        let texts = self.fixture.ledger.commitments_of("miner").unwrap();
        let texts = texts.into_iter().map(|commitment| String::from_utf8(commitment.bytes).unwrap()).collect();
        (commits.iter().filter(|commit| is_ours(commit)).count(), texts)
    }
}

#[test]
fn killed_between_any_two_requests_a_model_is_published_exactly_once() {
    let hidden = Visibility::PrivateUntilCommitted;
    for (visibility, was_there) in [(Visibility::Public, false), (hidden, false), (hidden, true)] {
        let unharmed = Remote::new(visibility, was_there, usize::MAX);
        unharmed.fixture.publish("a").unwrap();
        let num_events = unharmed.death.num_events.load(Ordering::SeqCst);
        unharmed.fixture.assert_published_once("unharmed");
        assert!(num_events > 20, "{num_events}");

        for at in 0..num_events {
            let context = format!("{visibility:?}, {was_there}, killed at event {at} of {num_events}");
            let remote = Remote::new(visibility, was_there, at);
            let killed = remote.fixture.publish("a");
            assert!(remote.death.has_come.load(Ordering::SeqCst), "{context}");
            // What comes after the last step that matters fails nothing.
            assert!(killed.is_err() || !remote.written().1.is_empty(), "{context}");
            assert!(remote.written().0 <= 1 && remote.written().1.len() <= 1, "{context}");

            remote.death.revive();
            // What is committed is shown before anything else; then nothing is left to do.
            let network = &remote.fixture.network;
            let pending = repair::pending(network.chain.as_ref()).unwrap();
            repair::show(network.hub.as_ref(), network.chain.as_ref(), &pending, Some(&network.hotkeys), &quiet());
            if !remote.written().1.is_empty() {
                assert_eq!(remote.folder.is_private("me/model").unwrap(), Some(false), "{context}");
            }
            let published = remote.fixture.publish("a").unwrap_or_else(|error| panic!("{context}: {error:#}"));
            assert!(published.metadata.id.survives_its_text());
            assert_eq!(remote.written().0, 1, "{context}");
            remote.fixture.assert_published_once(&context);
        }
    }
}
