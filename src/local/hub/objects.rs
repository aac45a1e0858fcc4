//! Large files that were uploaded and wait for their commit: `HUB/.lfs/SHA256`.
//!
//! Whoever may upload one gets an address that is signed, for its content and for a while; clients send no token there. A
//! file is there once all of it is, on the disk, with the content that its name says. A day later it goes, and not with its
//! commit, which has a link to it: to another client the hub may have said that it is there.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use hmac::{Hmac, Mac};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::sync::mpsc::Receiver;

use crate::chain::wallet::fill_with_chance;
use crate::checkpoint::free_bytes;
use crate::error::input;
use crate::hex;

/// Name of the folder in the hub; no namespace begins with a dot.
const DIR: &str = ".lfs";
/// How long a file waits for its commit.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// How a file is called of which not all is there.
const TEMPORARY: &str = ".tmp-";
/// Nobody adds to it any more if nobody has for so long.
const ABANDONED: Duration = Duration::from_secs(600);
/// How long an address is good.
const GRANT: Duration = Duration::from_secs(6 * 3600);
/// What a disk must have left beside what is uploaded.
const RESERVE_BYTES: u64 = 64 << 20;

/// The files that wait.
pub(super) struct Objects {
    dir: PathBuf,
    secret: [u8; 32],
}

/// Leave to upload a file.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Grant {
    /// Size in bytes.
    pub(super) size: u64,
    /// Unix time in seconds when it ends.
    until: u64,
    /// Over content, size and time, in hexadecimal.
    signature: String,
}

impl Grant {
    /// As the query of an address.
    pub(super) fn query(&self) -> String {
        let Self { size, until, signature } = self;
        format!("size={size}&until={until}&signature={signature}")
    }
}

impl Objects {
    /// The files that wait in a hub.
    pub(super) fn of(hub: &Path) -> Result<Self> {
        let mut secret = [0; 32];
        fill_with_chance(&mut secret)?;
        let objects = Self { dir: hub.join(DIR), secret };
        objects.remove_old();
        Ok(objects)
    }

    /// Where a file waits; `None` if it does not.
    pub(super) fn find(&self, sha256: &str, size: u64) -> Option<PathBuf> {
        let path = self.path(sha256);
        let metadata = fs::symlink_metadata(&path).ok()?;
        (is_folder(&self.dir) && metadata.is_file() && metadata.len() == size).then_some(path)
    }

    /// Whether the disk has room for a file.
    pub(super) fn has_room(&self, size: u64) -> Result<bool> {
        let dir = self.dir.parent().unwrap_or(&self.dir);
        Ok(free_bytes(dir)? >= size.saturating_add(RESERVE_BYTES))
    }

    /// Leave to upload a file for a while.
    pub(super) fn grant(&self, sha256: &str, size: u64) -> Grant {
        let until = unix_seconds() + GRANT.as_secs();
        let signature = hex::digits(self.mac(sha256, size, until).finalize().into_bytes());
        Grant { size, until, signature }
    }

    /// Whether leave was given to upload this file, and still is.
    pub(super) fn is_granted(&self, sha256: &str, grant: &Grant) -> bool {
        let Some(signature) = hex::read(&grant.signature) else { return false };
        is_sha256(sha256)
            && unix_seconds() < grant.until
            && self.mac(sha256, grant.size, grant.until).verify_slice(&signature).is_ok()
    }

    fn mac(&self, sha256: &str, size: u64, until: u64) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(&self.secret).expect("a key of any length will do");
        mac.update(format!("{sha256} {size} {until}").as_bytes());
        mac
    }

    /// Takes a file, part by part, until no more come. Unless they are the file, nothing of them stays.
    pub(super) fn receive(&self, sha256: &str, size: u64, mut parts: Receiver<Bytes>) -> Result<()> {
        let file = self.temporary()?;
        let mut digest = Sha256::new();
        let mut bytes = 0;
        while let Some(part) = parts.blocking_recv() {
            bytes += part.len() as u64;
            if bytes > size {
                break;
            }
            digest.update(&part);
            file.as_file().write_all(&part).with_context(|| format!("cannot write {}", file.path().display()))?;
        }
        if bytes != size {
            return Err(input(format!("{bytes} bytes or more came instead of {size}.")));
        }
        if hex::digits(digest.finalize()) != sha256 {
            return Err(input(format!("The content is another one than that of the SHA-256 {sha256}.")));
        }
        self.keep(sha256, file)
    }

    /// Takes a file that `fetch` writes to a path; false if it says that there is none, or another one.
    pub(super) fn fetch(&self, sha256: &str, size: u64, fetch: impl FnOnce(&Path) -> Result<bool>) -> Result<bool> {
        let file = self.temporary()?;
        if !fetch(file.path())? {
            return Ok(false);
        }
        let mut digest = Sha256::new();
        let bytes = std::io::copy(&mut File::open(file.path())?, &mut digest)?;
        if bytes != size || hex::digits(digest.finalize()) != sha256 {
            return Ok(false);
        }
        self.keep(sha256, file)?;
        Ok(true)
    }

    fn temporary(&self) -> Result<NamedTempFile> {
        match fs::create_dir(&self.dir) {
            Err(_) if is_folder(&self.dir) => {}
            made => made.with_context(|| format!("cannot create {}", self.dir.display()))?,
        }
        if !is_folder(&self.dir) {
            bail!("{} is no folder", self.dir.display());
        }
        self.remove_old();
        let file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.dir);
        file.with_context(|| format!("cannot write in {}", self.dir.display()))
    }

    /// Gives a file its name once it is on the disk.
    fn keep(&self, sha256: &str, file: NamedTempFile) -> Result<()> {
        let path = self.path(sha256);
        let context = || format!("cannot write {}", path.display());
        // By its path: whoever filled it may have put another file in its place.
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let content = fs::OpenOptions::new().read(true).custom_flags(flags).open(file.path()).with_context(context)?;
        content.sync_all().with_context(context)?;
        file.persist(&path).map_err(|error| error.error).with_context(context)?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).with_context(context)
    }

    fn path(&self, sha256: &str) -> PathBuf {
        debug_assert!(is_sha256(sha256));
        self.dir.join(sha256)
    }

    /// Removes what has waited too long, and what a server that was killed has left.
    fn remove_old(&self) {
        if !is_folder(&self.dir) {
            return;
        }
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let written = entry.metadata().and_then(|metadata| metadata.modified());
            let age = written.ok().and_then(|written| SystemTime::now().duration_since(written).ok());
            let is_temporary = entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes());
            if age.is_some_and(|age| age > if is_temporary { ABANDONED } else { PATIENCE }) {
                fs::remove_file(entry.path()).ok();
            }
        }
    }
}

/// Whether a text is a SHA-256 in small hexadecimal digits.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
