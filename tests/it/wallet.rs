//! Hotkeys made, shown and verified by the real program.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::util::{Dir, Outcome};

fn wallet(dir: &Dir, verb: &str, args: &[&str]) -> Outcome {
    dir.assay(&["wallet", verb, "--wallet-dir", "wallets", "--wallet", "mine", "--hotkey", "miner"]).args(args).run()
}

/// The address that `new-hotkey` tells.
fn address(made: &Outcome) -> String {
    let address = made.stdout.trim();
    assert!(address.len() == 48 && address.starts_with('5'), "{made:?}");
    address.to_owned()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_new_hotkey_is_shown_and_verified_and_its_secret_is_never_printed() {
    let dir = Dir::new();
    let made = wallet(&dir, "new-hotkey", &[]).assert_exit(0).assert_stderr_contains("keep a copy of this file");
    let address = address(&made);
    let file = dir.path("wallets/mine/hotkeys/miner");
    assert_eq!(mode(&file), 0o600);
    let before = fs::read(&file).unwrap();

    let shown = wallet(&dir, "show", &["--json"]).assert_exit(0);
    let answer = shown.json();
    assert_eq!(answer["address"], address.as_str());
    assert_eq!((&answer["format"], &answer["encrypted"]), (&"plain".into(), &false.into()));
    assert_eq!((&answer["mode"], &answer["readable_by_others"]), (&"600".into(), &false.into()));
    let shown_text = wallet(&dir, "show", &[]).assert_exit(0).assert_stdout_contains(&address);
    let verified = wallet(&dir, "verify", &[]).assert_exit(0).assert_stdout_contains("is valid for this address");

    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    wallet(&dir, "verify", &[]).assert_exit(2).assert_stderr_contains("chmod 600 wallets/mine/hotkeys/miner");
    wallet(&dir, "verify", &["--allow-readable-key"]).assert_exit(0);
    wallet(&dir, "show", &[]).assert_exit(0).assert_stdout_contains("644: others may read it");
    let again = wallet(&dir, "new-hotkey", &[]).assert_exit(2).assert_stderr_contains("is there already");
    assert_eq!(fs::read(&file).unwrap(), before);

    let content: Value = serde_json::from_slice(&before).unwrap();
    for outcome in [made, shown, shown_text, verified, again] {
        let printed = outcome.stdout + &outcome.stderr;
        for field in ["secretSeed", "privateKey", "secretPhrase"] {
            let secret = content[field].as_str().unwrap().trim_start_matches("0x");
            assert!(!printed.contains(&secret[..12]), "{field} in {printed}");
        }
    }
}

#[test]
fn an_encrypted_hotkey_takes_its_password_from_the_variable() {
    let dir = Dir::new();
    wallet(&dir, "new-hotkey", &["--encrypt"]).assert_exit(2).assert_stderr_contains("variable BT_COLD_PW_MINE");
    assert!(dir.listing().is_empty(), "{:?}", dir.listing());

    let with_password = |verb: &str, args: &[&str]| {
        let place = ["wallet", verb, "--wallet-dir", "wallets", "--wallet", "mine", "--hotkey", "miner"];
        dir.assay(&place).args(args).under_shell("export BT_COLD_PW_MINE='a good password'").run()
    };
    let address = address(&with_password("new-hotkey", &["--encrypt"]).assert_exit(0));
    assert!(fs::read(dir.path("wallets/mine/hotkeys/miner")).unwrap().starts_with(b"$NACL"));
    let answer = wallet(&dir, "show", &["--json"]).assert_exit(0).json();
    assert_eq!((&answer["address"], &answer["format"]), (&address.as_str().into(), &"nacl".into()));
    wallet(&dir, "verify", &[]).assert_exit(2).assert_stderr_contains("there is no terminal");
    let verified = with_password("verify", &["--json"]).assert_exit(0).json();
    assert_eq!(verified["address"], address.as_str());
}

#[test]
fn names_that_lead_elsewhere_and_hotkeys_that_are_not_there_are_refused() {
    let dir = Dir::new();
    let refused = |args: &[&str], sentence: &str| {
        dir.assay(&["wallet"]).args(args).run().assert_exit(2).assert_stderr_contains(sentence);
    };
    refused(&["new-hotkey", "--wallet-dir", "w", "--hotkey", "../x"], "`../x` is no name of a wallet or hotkey");
    refused(&["new-hotkey", "--wallet-dir", "w", "--wallet", ".."], "`..` is no name of a wallet or hotkey");
    refused(&["show", "--wallet-dir", "w"], "there is no key file w/default/hotkeys/default");
    refused(&["verify", "--wallet-dir", "w"], "assay wallet new-hotkey");
    assert!(dir.listing().is_empty());
}
