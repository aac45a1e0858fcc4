//! `assay wallet`: Bittensor's key files. Nothing secret is ever printed.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde_json::json;
use subxt_signer::sr25519::{PublicKey, Signature, verify};

use crate::chain::account;
use crate::chain::wallet::keyfile::{Format, KeyFile};
use crate::chain::wallet::{self, Access, Keyring, create};
use crate::cli::wallet::{WalletArgs, WalletCommand, WalletPlaceArgs};
use crate::error::input;
use crate::hex;
use crate::metrics::printer::Printer;

/// What is signed to see whether a key can; no chain would take it for anything.
const TEST_TEXT: &str = "assay wallet verify";

/// Runs the command.
pub fn run(args: &WalletArgs, printer: &Printer) -> Result<()> {
    match &args.command {
        WalletCommand::NewHotkey { place, encrypt } => new_hotkey(place, *encrypt, printer),
        WalletCommand::Show { place, json } => show(place, *json, printer),
        WalletCommand::Verify { place, allow_readable_key, json } => {
            verify_hotkey(place, *allow_readable_key, *json, printer)
        }
    }
}

fn new_hotkey(place: &WalletPlaceArgs, encrypt: bool, printer: &Printer) -> Result<()> {
    let created = create::hotkey(&wallet_dir(place)?, &place.hotkey, encrypt)?;
    printer.note(&format!(
        "The key is in {}, and nowhere else: keep a copy of this file where nobody else can read it{}. Who has it can \
         publish in the hotkey's name; without it, the hotkey and its place on the subnet are lost.",
        created.path.display(),
        if encrypt { ", and its password" } else { "" }
    ));
    printer.result(&created.address)
}

fn show(place: &WalletPlaceArgs, json: bool, printer: &Printer) -> Result<()> {
    let path = wallet::hotkey_path(&wallet_dir(place)?, &place.hotkey)?;
    let file = KeyFile::read(&path)?;
    let is_plain = file.format() == Format::Plain;
    let address = match is_plain {
        // Whether others may read it is told, not refused: nothing is signed.
        true => Some(Keyring::new(Access { allow_readable_by_others: true }).add_file(&path)?),
        false => file.claimed_address(),
    };
    let is_readable = file.is_readable_by_others();
    if json {
        let shown = json!({
            "address": address,
            "file": path,
            "format": file.format().name(),
            "encrypted": !is_plain,
            "mode": format!("{:03o}", file.mode()),
            "readable_by_others": is_readable,
        });
        return printer.result(&shown.to_string());
    }
    let address = match &address {
        Some(address) if is_plain => address.clone(),
        Some(address) => format!("{address} (by the file beside it)"),
        None => "unknown without the password".to_owned(),
    };
    let format = match file.format() {
        Format::Plain => "not encrypted",
        Format::Nacl => "encrypted, as Bittensor's tools of today do ($NACL)",
        Format::Ansible => "encrypted, as Bittensor's tools of 2024 did (Ansible's vault)",
        Format::Fernet => "encrypted, as Bittensor's first tools did (Fernet)",
    };
    let exposed = match (is_readable, file.is_writable_by_others()) {
        (true, _) => "others may read it",
        (false, true) => "others may change it",
        (false, false) => "",
    };
    let mode = match exposed {
        "" => format!("{:03o}", file.mode()),
        _ => format!("{:03o}: {exposed}; `chmod 600 {}` ends that", file.mode(), path.display()),
    };
    printer.result(&format!("address  {address}\nfile     {}\nformat   {format}\nmode     {mode}", path.display()))
}

fn verify_hotkey(place: &WalletPlaceArgs, allow_readable_key: bool, json: bool, printer: &Printer) -> Result<()> {
    let path = wallet::hotkey_path(&wallet_dir(place)?, &place.hotkey)?;
    let mut keyring = Keyring::new(Access { allow_readable_by_others: allow_readable_key });
    let address = keyring.add_file(&path)?;
    let signature = Signature(keyring.signer(&address)?.sign(TEST_TEXT.as_bytes()));
    let account = account::parse(&address).map_err(input)?;
    if !verify(&signature, TEST_TEXT, &PublicKey(account.0)) {
        bail!("a signature by the key of {} is not valid for its address {address}", path.display());
    }
    if json {
        let signature = hex::write(signature.0);
        let verified = json!({"address": address, "file": path, "text": TEST_TEXT, "signature": signature});
        return printer.result(&verified.to_string());
    }
    printer.result(&format!("{address}: {} opens, and what it signs is valid for this address.", path.display()))
}

fn wallet_dir(place: &WalletPlaceArgs) -> Result<PathBuf> {
    wallet::check_name(&place.wallet)?;
    Ok(place.wallet_dir.clone().unwrap_or_else(wallet::default_dir).join(&place.wallet))
}
