//! New hotkeys, in files as Bittensor's own tools of today write them.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use zeroize::Zeroizing;

use super::key::{Keypair, Phrase};
use super::password::{self, Surroundings};
use super::{content, hotkey_path, nacl, public_path};
use crate::chain::Hotkey;
use crate::error::input;

/// A hotkey that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its address.
    pub address: Hotkey,
    /// Its file.
    pub path: PathBuf,
}

/// Makes a hotkey in a wallet's folder (`WALLETS/NAME`), which is made if need be. Encrypted, its password is that of the
/// variable, or is asked for. The user's error if there is a hotkey of the name already.
pub fn hotkey(wallet: &Path, name: &str, encrypt: bool) -> Result<Created> {
    let path = hotkey_path(wallet, name)?;
    check_free(&path)?;
    let password = encrypt.then(|| password::for_new(&path, &Surroundings)).transpose()?;
    hotkey_with(&path, password.as_deref().map(String::as_str), nacl::COST)
}

/// Makes a hotkey's file, and the one beside it that holds only its address.
pub(super) fn hotkey_with(path: &Path, password: Option<&str>, cost: nacl::Cost) -> Result<Created> {
    check_free(path)?;
    let phrase = Phrase::new()?;
    let seed = phrase.seed();
    let keypair = Keypair::from_seed(&seed);
    let plain = content::of_key(&phrase, &seed, &keypair);
    let sealed = match password {
        Some(password) => Zeroizing::new(nacl::seal(plain.as_bytes(), password, cost)?),
        None => Zeroizing::new(plain.as_bytes().to_vec()),
    };
    let folder = path.parent().with_context(|| format!("{} names no file", path.display()))?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| input(format!("the folder {} cannot be made: {error}", folder.display())))?;
    // The key last: a crash between the two leaves an address that nobody was told, not a key of unknown address.
    write_new(&public_path(path), content::of_public(&keypair).as_bytes())?;
    if let Err(error) = sync(folder).and_then(|()| write_new(path, &sealed)) {
        // Of a key that never was.
        let _ = std::fs::remove_file(public_path(path));
        return Err(error);
    }
    let address = keypair.address();
    sync(folder).with_context(|| {
        format!(
            "{} is written, the key of {address}, but not surely on the disk: see that it is there before the hotkey is used",
            path.display()
        )
    })?;
    Ok(Created { address, path: path.to_owned() })
}

/// Refuses a name that is taken, by a hotkey or by the address of one whose key may be elsewhere.
fn check_free(path: &Path) -> Result<()> {
    match [path.to_owned(), public_path(path)].into_iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(taken) => Err(there_already(&taken)),
        None => Ok(()),
    }
}

fn there_already(path: &Path) -> anyhow::Error {
    input(format!("{} is there already: a key is never overwritten; give the new hotkey another name", path.display()))
}

/// Writes a file that only its owner can read, at any time; all of it or nothing, and over nothing.
fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().with_context(|| format!("{} names no file", path.display()))?;
    let context = || format!("cannot write {}", path.display());
    let mut file = tempfile::Builder::new()
        .prefix(".tmp-")
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(folder)
        .with_context(context)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).with_context(context)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Err(there_already(path)),
        Err(error) => Err(anyhow::Error::from(error.error).context(context())),
    }
}

/// Sees to it that a folder has its new files after a crash as well.
fn sync(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("the folder {} cannot be synced to the disk", folder.display()))
}
