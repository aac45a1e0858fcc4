//! Bittensor's key files, and the keys in them: `WALLETS/NAME/hotkeys/HOTKEY`.
//!
//! A [`Keyring`] knows the hotkeys of this process and opens their files when they first sign; a [`Signer`] is one that is
//! open. [`keyfile`] reads a file as it lies on the disk, `content` what is in it; `nacl`, `ansible` and `fernet` are the
//! three ways in which Bittensor has encrypted it, `password` finds what opens it, and [`create`] writes new ones.
//!
//! What is secret is never shown: not in errors, not in debug output, not on the terminal. It is overwritten in memory when
//! it is no longer needed, as far as the libraries beneath do so too.

mod ansible;
mod content;
pub mod create;
mod fernet;
mod hex;
mod key;
pub mod keyfile;
mod keyring;
#[cfg(test)]
mod keyring_tests;
mod nacl;
mod password;
#[cfg(test)]
mod tests;

use std::path::{Component, Path, PathBuf};

use anyhow::Result;

pub(crate) use key::fill_with_chance;
pub use key::{Keypair, Signer};
pub use keyring::Keyring;

use crate::error::input;

/// How key files are opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Take a key file that others may read or change, or that is another user's.
    pub allow_readable_by_others: bool,
}

/// Where Bittensor keeps its wallets: `~/.bittensor/wallets`.
pub fn default_dir() -> PathBuf {
    std::env::home_dir().unwrap_or_default().join(".bittensor/wallets")
}

/// The file of a hotkey in a wallet's folder (`WALLETS/NAME`). The user's error if the name leads elsewhere.
pub fn hotkey_path(wallet: &Path, name: &str) -> Result<PathBuf> {
    check_name(name)?;
    if name.ends_with(PUBLIC_SUFFIX) {
        return Err(input(format!(
            "`{}` is no name of a hotkey: files that end so hold only a hotkey's address",
            name.escape_debug()
        )));
    }
    Ok(hotkeys_dir(wallet).join(name))
}

/// Whether a text can be the name of a wallet or hotkey: a single name of a file.
pub fn check_name(name: &str) -> Result<()> {
    let mut parts = Path::new(name).components();
    let is_single = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
    if !is_single || name.starts_with('.') || name.contains(char::is_control) || name.len() > MAX_NAME_BYTES {
        return Err(input(format!(
            "`{}` is no name of a wallet or hotkey: it must be the plain name of a file, without slashes",
            name.chars().take(64).collect::<String>().escape_debug()
        )));
    }
    Ok(())
}

/// What the name of a file ends with that holds only a hotkey's address.
const PUBLIC_SUFFIX: &str = "pub.txt";

/// Leaves room for [`PUBLIC_SUFFIX`] in what file systems take.
const MAX_NAME_BYTES: usize = 200;

/// The folder of a wallet's hotkeys.
fn hotkeys_dir(wallet: &Path) -> PathBuf {
    wallet.join("hotkeys")
}

/// The file beside a hotkey's that holds only its address.
fn public_path(hotkey: &Path) -> PathBuf {
    let mut name = hotkey.file_name().unwrap_or_default().to_owned();
    name.push(PUBLIC_SUFFIX);
    hotkey.with_file_name(name)
}
