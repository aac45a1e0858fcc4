//! Key files as Bittensor's tools have written them, opened, and what is no such file, refused.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use subxt_signer::sr25519::{PublicKey, Signature, verify};
use tempfile::TempDir;

use super::create::hotkey_with;
use super::keyfile::{Format, KeyFile};
use super::nacl::{self, Cost};
use super::password::tests::Scripted;
use super::{Access, Signer, check_name};
use crate::chain::account;
use crate::error::exit_code;
use crate::golden;

/// What the golden files are of.
pub(super) fn expected() -> Value {
    serde_json::from_slice(&fs::read(golden::path("chain/keyfiles/expected.json")).unwrap()).unwrap()
}

pub(super) fn expected_text(field: &str) -> String {
    expected()[field].as_str().unwrap().to_owned()
}

/// Writes a file that only its owner can read, in folders that are made.
pub(super) fn write(path: &Path, bytes: &[u8]) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_owned()
}

pub(super) fn golden_bytes(name: &str) -> Vec<u8> {
    fs::read(golden::path("chain/keyfiles").join(name)).unwrap()
}

fn open(path: &Path, source: &Scripted) -> anyhow::Result<Signer> {
    let file = KeyFile::read(path)?;
    file.check(&Access::default())?;
    file.open(source)
}

/// A key in a vault with a password of one's own, made as the format has it by what reads it: its stream is its own inverse.
fn vault_of(password: &str, path: &Path) -> PathBuf {
    use aes::Aes256;
    use ctr::Ctr128BE;
    use ctr::cipher::{KeyIvInit, StreamCipher};
    use hmac::{Hmac, Mac};
    use sha2::Sha256;

    let mut content = golden_bytes("hotkey_plain_2024.json");
    let padding = 16 - content.len() % 16;
    content.resize(content.len() + padding, padding as u8);
    let mut keys = [0; 80];
    pbkdf2::pbkdf2::<Hmac<Sha256>>(password.as_bytes(), b"salt", 10_000, &mut keys).unwrap();
    Ctr128BE::<Aes256>::new_from_slices(&keys[..32], &keys[64..]).unwrap().apply_keystream(&mut content);
    let mut checksum = Hmac::<Sha256>::new_from_slice(&keys[32..64]).unwrap();
    checksum.update(&content);
    let digits = |bytes: &[u8]| crate::hex::write(bytes).split_off(2);
    let checksum = checksum.finalize().into_bytes();
    let inner = format!("{}\n{}\n{}", digits(b"salt"), digits(&checksum), digits(&content));
    write(path, format!("$ANSIBLE_VAULT;1.1;AES256\n{}\n", digits(inner.as_bytes())).as_bytes())
}

fn assert_signs(signer: &Signer) {
    let public = PublicKey(account::parse(signer.address()).unwrap().0);
    let signature = Signature(signer.sign(b"bytes"));
    assert!(verify(&signature, b"bytes", &public) && !verify(&signature, b"other", &public));
}

fn assert_golden(name: &str, format: Format) {
    let dir = TempDir::new().unwrap();
    let path = write(&dir.path().join("hotkey"), &golden_bytes(name));
    assert_eq!(KeyFile::read(&path).unwrap().format(), format);
    let password: &'static str = expected_text("password").leak();
    let signer = open(&path, &Scripted::answering(&[password])).unwrap();
    assert_eq!(signer.address(), expected_text("ss58"));
    assert_signs(&signer);
}

#[test]
fn golden_plain_files_of_both_years_open() {
    assert_golden("hotkey_plain_2024.json", Format::Plain);
    assert_golden("hotkey_plain_2026.json", Format::Plain);
}

#[test]
fn golden_secret_box_opens() {
    assert_golden("hotkey_nacl_2024.bin", Format::Nacl);
}

#[test]
fn golden_vault_opens() {
    assert_golden("hotkey_ansible.txt", Format::Ansible);
}

#[test]
fn golden_fernet_token_opens() {
    assert_golden("hotkey_legacy.txt", Format::Fernet);
}

#[test]
fn a_wrong_password_is_asked_for_again_three_times_and_from_a_variable_never() {
    let dir = TempDir::new().unwrap();
    let path = write(&dir.path().join("mine/hotkeys/hotkey"), &golden_bytes("hotkey_ansible.txt"));
    let terminal = Scripted::answering(&["one", "two", "testpass123"]);
    assert_eq!(open(&path, &terminal).unwrap().address(), expected_text("ss58"));
    assert!(terminal.questions.lock().unwrap()[1].starts_with("That is not it."));

    let refused = |source: &Scripted| {
        let error = open(&path, source).unwrap_err();
        assert_eq!(exit_code(&error), 2, "{error:?}");
        error.to_string()
    };
    let terminal = Scripted::answering(&["one", "two", "three", "testpass123"]);
    assert!(refused(&terminal).contains("not opened by any of 3 passwords"));
    assert!(refused(&Scripted::default()).ends_with("put it into the variable BT_COLD_PW_MINE"));
    // The vault's tools took a password with the spaces around it.
    let spaces = vault_of(" spaces ", &dir.path().join("mine/hotkeys/spaces"));
    open(&spaces, &Scripted::answering(&[" spaces "])).unwrap();
    assert!(open(&spaces, &Scripted::answering(&["spaces"; 3])).is_err());
    open(&path, &Scripted::answering(&[" testpass123 "])).unwrap();
    let variable = Scripted::with(&[("BT_COLD_PW_MINE", "my secret")]);
    let error = refused(&variable);
    assert!(error.contains("BT_COLD_PW_MINE does not open") && !error.contains("my secret"), "{error}");
    assert!(variable.questions.lock().unwrap().is_empty());
    open(&path, &Scripted::with(&[("BT_COLD_PW_MINE", "testpass123")])).unwrap();
}

#[test]
fn each_thing_that_is_no_hotkeys_file_is_refused_by_its_own_sentence() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join("mine").join(name);
    let refused = |path: &Path, sentence: &str| {
        let error = open(path, &Scripted::answering(&["testpass123"; 3])).unwrap_err();
        assert_eq!(exit_code(&error), 2, "{error:?}");
        let text = format!("{error:#}");
        assert!(text.contains(sentence) && text.contains(&path.display().to_string()), "{text}");
        assert_shows_no_secret(&text);
    };
    let plain = golden_bytes("hotkey_plain_2026.json");
    refused(&at("hotkeys/none"), "there is no key file");
    fs::create_dir_all(at("hotkeys/folder")).unwrap();
    refused(&at("hotkeys/folder"), "is a folder");
    refused(&write(&at("hotkeys/empty"), b" \n"), "is empty");
    refused(&write(&at("hotkeys/huge"), &[b'{'; 65_537]), "larger than 64 KiB");
    refused(Path::new("/dev/null"), "is not a regular file");
    refused(&write(&at("coldkey"), &plain), "is a coldkey");
    refused(&write(&at("coldkeypub.txt"), &golden_bytes("coldkeypub_2024.txt")), "holds only an address");
    refused(&write(&at("hotkeys/h"), &plain[..plain.len() - 1]), "it is not the JSON of a key");
    refused(&write(&at("hotkeys/h"), b"{}"), "holds only an address");
    let bare = expected_text("mnemonic");
    refused(&write(&at("hotkeys/h"), bare.as_bytes()), "`btcli wallet regen-hotkey`");
    refused(&write(&at("hotkeys/h"), expected_text("secret_seed").as_bytes()), "`btcli wallet regen-hotkey`");
    let other = String::from_utf8(plain.clone()).unwrap().replace("5EFF", "5EFG");
    refused(&write(&at("hotkeys/h"), other.as_bytes()), "its `ss58Address` is not that of its `secretSeed`");
    for name in ["hotkey_nacl_2024.bin", "hotkey_ansible.txt", "hotkey_legacy.txt"] {
        let bytes = golden_bytes(name);
        // A part may look whole, and then does not open.
        for len in [20, 40, bytes.len() / 2 - 1] {
            let path = write(&at("hotkeys/h"), &bytes[..len]);
            if name.contains("nacl") && len > 40 {
                let source = Scripted::with(&[("BT_COLD_PW_MINE", "testpass123")]);
                let error = open(&path, &source).unwrap_err();
                assert!(error.to_string().contains("BT_COLD_PW_MINE does not open"), "{error}");
            } else {
                refused(&path, "is damaged, or not as");
            }
        }
    }
    let vault = String::from_utf8(golden_bytes("hotkey_ansible.txt")).unwrap();
    refused(&write(&at("hotkeys/h"), vault.replace(";1.1;", ";1.2;").as_bytes()), "is damaged, or not as");
    // A digit of the content: the checksum notices.
    let mut vault = vault.into_bytes();
    let last = vault.iter().rposition(u8::is_ascii_digit).unwrap();
    vault[last] ^= 1;
    refused(
        &write(&at("hotkeys/h"), &vault),
        "was not opened by any of 3 passwords: they are others', or the file is damaged",
    );
}

#[test]
fn a_pipe_is_not_waited_for() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let error = KeyFile::read(&path).err().unwrap();
    assert!(error.to_string().contains("is not a regular file"), "{error}");
}

#[test]
fn a_file_that_others_may_read_is_refused_unless_told() {
    let dir = TempDir::new().unwrap();
    let path = write(&dir.path().join("hotkey"), &golden_bytes("hotkey_plain_2024.json"));
    for mode in [0o640, 0o604, 0o644] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let file = KeyFile::read(&path).unwrap();
        assert_eq!(file.mode(), mode);
        let error = file.check(&Access::default()).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        let text = error.to_string();
        assert!(
            text.contains(&format!("chmod 600 {}", path.display())) && text.contains(&format!("{mode:o}")),
            "{text}"
        );
        file.check(&Access { allow_readable_by_others: true }).unwrap();
    }
}

#[test]
fn a_token_opens_with_its_key_alone_and_untouched() {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE;

    use super::fernet::Sealed;
    use super::password::Unopened;

    let token = golden_bytes("hotkey_legacy.txt");
    let mut key: [u8; 32] = URL_SAFE.decode(expected_text("legacy_fernet_key")).unwrap().try_into().unwrap();
    let content = Sealed::parse(&token).unwrap().open_with(&key).unwrap();
    assert!(content.starts_with(b"{") && content.ends_with(b"}"));
    let mut changed = URL_SAFE.decode(&token).unwrap();
    for i in [1, 10, 60, changed.len() - 1] {
        changed[i] ^= 1;
        let sealed = Sealed::parse(URL_SAFE.encode(&changed).as_bytes()).unwrap();
        assert!(matches!(sealed.open_with(&key), Err(Unopened::WrongPassword)), "byte {i}");
        changed[i] ^= 1;
    }
    key[0] ^= 1;
    assert!(matches!(Sealed::parse(&token).unwrap().open_with(&key), Err(Unopened::WrongPassword)));
}

#[test]
fn a_new_hotkey_is_its_owners_alone_and_opens_to_the_address_that_was_told() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("mine/hotkeys/new");
    let created = hotkey_with(&path, None, nacl::COST).unwrap();
    let signer = open(&path, &Scripted::default()).unwrap();
    assert_eq!(signer.address(), created.address);
    assert_signs(&signer);
    let public = dir.path().join("mine/hotkeys/newpub.txt");
    assert_eq!(KeyFile::read(&public).unwrap().claimed_address().unwrap(), created.address);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!([&path, &public].map(|path| mode(path)), [0o600, 0o600]);
    assert_eq!(["mine", "mine/hotkeys"].map(|name| mode(&dir.path().join(name))), [0o700, 0o700]);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2, "something was left behind");

    let before = fs::read(&path).unwrap();
    let again = |path: &Path| {
        let error = hotkey_with(path, None, nacl::COST).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("is there already"), "{error}");
    };
    again(&path);
    fs::remove_file(&public).unwrap();
    again(&path);
    assert_eq!(fs::read(&path).unwrap(), before);
    write(&dir.path().join("mine/hotkeys/otherpub.txt"), b"{}");
    again(&dir.path().join("mine/hotkeys/other"));
    // No two are alike.
    let second = hotkey_with(&dir.path().join("mine/hotkeys/second"), None, nacl::COST).unwrap();
    assert_ne!(second.address, created.address);
}

#[test]
fn a_new_encrypted_hotkey_holds_nothing_to_be_read() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("mine/hotkeys/new");
    let cheap = Cost { memory_kib: 8, passes: 1 };
    let created = hotkey_with(&path, Some("a password"), cheap).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert!(!bytes.windows(6).any(|part| part == b"secret") && !bytes.windows(4).any(|part| part == b"ss58"));
    let content = nacl::Sealed::parse(&bytes).unwrap().open("a password", cheap).unwrap();
    let signer = super::content::Content::parse(&content).unwrap().signer().unwrap().unwrap();
    assert_eq!(signer.address(), created.address);
    assert_eq!(KeyFile::read(&path).unwrap().claimed_address().unwrap(), created.address);
}

#[test]
fn names_stay_in_their_folder() {
    for name in ["default", "my-miner_1", "ä b", "a..b"] {
        check_name(name).unwrap();
    }
    for name in ["", ".", "..", "../x", "a/b", "/a", "a/", ".hidden", "a\0b", "a\nb", &"x".repeat(201)] {
        assert_eq!(exit_code(&check_name(name).unwrap_err()), 2, "{name:?}");
    }
    assert!(super::hotkey_path(Path::new("w"), "minerpub.txt").is_err());
}

#[test]
fn a_signer_shows_its_address_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let path = write(&dir.path().join("hotkey"), &golden_bytes("hotkey_plain_2026.json"));
    let shown = format!("{:?}", open(&path, &Scripted::default()).unwrap());
    assert_eq!(shown, format!("Signer {{ address: \"{}\", .. }}", expected_text("ss58")));
    assert_shows_no_secret(&shown);
}

/// Panics if a text holds a part of the golden secrets.
pub(super) fn assert_shows_no_secret(text: &str) {
    let golden: Value = serde_json::from_slice(&golden_bytes("hotkey_plain_2026.json")).unwrap();
    let secret = |field: &str| golden[field].as_str().unwrap().trim_start_matches("0x").to_owned();
    let seed = secret("secretSeed");
    let private = secret("privateKey");
    for part in [&seed[..12], &seed[52..], &private[..12], "join prison", "giant cheap", "testpass123"] {
        assert!(!text.contains(part), "`{part}` in {text}");
    }
}
