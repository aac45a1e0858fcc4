//! What a keyring takes for a hotkey, when it asks for a password, and what it refuses to sign for.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use tempfile::TempDir;
use zeroize::Zeroizing;

use super::create::hotkey_with;
use super::password::Source;
use super::tests::{assert_shows_no_secret, expected_text, golden_bytes, write};
use super::{Access, Keyring, nacl};
use crate::error::exit_code;

const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";

/// A terminal at which the golden files' password is given, and how often it was.
#[derive(Clone, Default)]
struct Terminal(Arc<AtomicUsize>);

impl Source for Terminal {
    fn variable(&self, _name: &str) -> Option<std::ffi::OsString> {
        None
    }

    fn variables(&self) -> Vec<String> {
        Vec::new()
    }

    fn ask(&self, _question: &str) -> Result<Option<Zeroizing<String>>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(Some(Zeroizing::new("testpass123".to_owned())))
    }
}

/// A wallet in a folder of its own, and a keyring for it.
struct Setup {
    dir: TempDir,
    keyring: Keyring,
    asked: Arc<AtomicUsize>,
}

impl Setup {
    fn new() -> Self {
        let terminal = Terminal::default();
        let asked = Arc::clone(&terminal.0);
        let keyring = Keyring::with_source(Access::default(), Box::new(terminal));
        Self { dir: TempDir::new().unwrap(), keyring, asked }
    }

    fn wallet(&self) -> PathBuf {
        self.dir.path().join("mine")
    }

    fn write(&self, name: &str, golden: &str) -> PathBuf {
        write(&self.wallet().join("hotkeys").join(name), &golden_bytes(golden))
    }

    fn add(&mut self, name_or_address: &str) -> Result<String> {
        let wallet = self.wallet();
        self.keyring.add(&wallet, name_or_address)
    }

    fn num_asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn refused(error: &anyhow::Error, sentence: &str) {
    assert_eq!(exit_code(error), 2, "{error:?}");
    assert!(error.to_string().contains(sentence), "{error}");
    assert_shows_no_secret(&format!("{error:?}"));
}

#[test]
fn a_plain_file_is_opened_at_once_by_its_name_or_address() {
    let address = expected_text("ss58");
    for name in ["miner", &address] {
        let mut setup = Setup::new();
        setup.write("miner", "hotkey_plain_2026.json");
        hotkey_with(&setup.wallet().join("hotkeys/another"), None, nacl::COST).unwrap();
        assert_eq!(setup.add(name).unwrap(), address);
        // It need not be read again.
        std::fs::remove_file(setup.wallet().join("hotkeys/miner")).unwrap();
        assert_eq!(setup.keyring.signer(&address).unwrap().address(), address);
        assert_eq!(setup.keyring.hotkeys().collect::<Vec<_>>(), [&address]);
        assert_eq!(setup.num_asked(), 0);
    }
}

#[test]
fn by_its_address_a_key_is_found_behind_a_file_that_only_claims_to_be_it() {
    let mut setup = Setup::new();
    let address = expected_text("ss58");
    let claim = format!(r#"{{"ss58Address":"{address}"}}"#);
    write(&setup.wallet().join("hotkeys/a"), claim.as_bytes());
    refused(&setup.add(&address).unwrap_err(), "hotkeys/a holds only an address and no secret");
    setup.write("b", "hotkey_plain_2026.json");
    assert_eq!(setup.add(&address).unwrap(), address);
    assert_eq!(setup.keyring.signer(&address).unwrap().address(), address);
}

#[test]
fn an_encrypted_file_is_opened_when_it_signs_where_a_file_beside_it_tells_the_address() {
    let address = expected_text("ss58");
    for name in ["miner", &address] {
        let mut setup = Setup::new();
        setup.write("miner", "hotkey_ansible.txt");
        let public = format!(r#"{{"ss58Address":"{address}"}}"#);
        write(&setup.wallet().join("hotkeys/minerpub.txt"), public.as_bytes());
        assert_eq!(setup.add(name).unwrap(), address);
        assert_eq!(setup.num_asked(), 0);
        setup.keyring.unlock(&address).unwrap();
        assert_eq!(setup.num_asked(), 1);
        let (first, second) = (setup.keyring.signer(&address).unwrap(), setup.keyring.signer(&address).unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(setup.num_asked(), 1);
    }
}

#[test]
fn an_encrypted_file_alone_is_opened_at_once() {
    let mut setup = Setup::new();
    setup.write("miner", "hotkey_ansible.txt");
    let address = setup.add("miner").unwrap();
    assert_eq!(address, expected_text("ss58"));
    assert_eq!(setup.num_asked(), 1);
    setup.keyring.signer(&address).unwrap();
    // Twice the same hotkey, by a file of another format: nothing is asked for, nothing lost.
    let file = setup.write("copy", "hotkey_plain_2024.json");
    assert_eq!(setup.keyring.add_file(&file).unwrap(), address);
    assert_eq!((setup.num_asked(), setup.keyring.hotkeys().count()), (1, 1));
}

#[test]
fn a_file_beside_that_tells_another_address_is_found_out() {
    let mut setup = Setup::new();
    setup.write("miner", "hotkey_ansible.txt");
    write(&setup.wallet().join("hotkeys/minerpub.txt"), format!(r#"{{"ss58Address":"{ALICE}"}}"#).as_bytes());
    assert_eq!(setup.add("miner").unwrap(), ALICE);
    refused(&setup.keyring.unlock(ALICE).unwrap_err(), "one of the two is another hotkey's");
    assert!(setup.keyring.signer(ALICE).is_err());
}

#[test]
fn an_address_without_a_file_is_watched_until_its_file_comes() {
    let mut setup = Setup::new();
    let address = expected_text("ss58");
    for watched in [ALICE, &address] {
        assert_eq!(setup.add(watched).unwrap(), watched);
        refused(&setup.keyring.signer(watched).unwrap_err(), "assay publish --prepare");
        refused(&setup.keyring.unlock(watched).unwrap_err(), watched);
    }
    let file = setup.write("miner", "hotkey_plain_2024.json");
    setup.keyring.add_file(&file).unwrap();
    assert_eq!(setup.keyring.signer(&address).unwrap().address(), address);
    // Watched once more, it can still sign.
    setup.add(&address).unwrap();
    setup.keyring.signer(&address).unwrap();
    refused(&setup.keyring.signer("nobody").unwrap_err(), "nobody");
}

#[test]
fn a_name_that_is_none_is_refused_with_those_there_are() {
    let mut setup = Setup::new();
    refused(&setup.add("miner").unwrap_err(), "which holds none: copy its file there");
    setup.write("miner", "hotkey_plain_2024.json");
    setup.write("second", "hotkey_plain_2024.json");
    write(&setup.wallet().join("hotkeys/minerpub.txt"), b"{}");
    refused(&setup.add("minor").unwrap_err(), "there is no hotkey `minor`");
    assert!(setup.add("minor").unwrap_err().to_string().ends_with("which holds miner, second"));
    let mistyped = ALICE.replace("QY", "QZ");
    assert!(setup.add(&mistyped).unwrap_err().to_string().contains("is no address"));
    for outside in ["../hotkeys/miner", "/etc/passwd", "..", ""] {
        refused(&setup.add(outside).unwrap_err(), "must be the plain name of a file");
    }
    refused(&setup.add("minerpub.txt").unwrap_err(), "only a hotkey's address");
    refused(&setup.keyring.add_file(Path::new("nowhere/at/all")).unwrap_err(), "there is no key file");
}

#[test]
fn a_key_that_others_may_read_is_refused_by_name_and_by_address_unless_told() {
    use std::os::unix::fs::PermissionsExt;
    let mut setup = Setup::new();
    let file = setup.write("miner", "hotkey_plain_2024.json");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let address = expected_text("ss58");
    for name in ["miner", &address] {
        refused(&setup.add(name).unwrap_err(), "chmod 600");
    }
    let mut keyring = Keyring::new(Access { allow_readable_by_others: true });
    assert_eq!(keyring.add(&setup.wallet(), "miner").unwrap(), address);
    keyring.signer(&address).unwrap();
}
