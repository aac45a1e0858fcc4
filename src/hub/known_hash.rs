//! What the files of a commit hash to, remembered where a commitment says something else of them, so that a model with a
//! wrong hash is not downloaded again every time it is looked at.
//!
//! It is taken only for the same list of files with the same sums: what the hub says of a commit does not change, but a hub
//! may be another one at the same address.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::Checksum;
use super::fetch::Wanted;
use crate::disk::Disk;
use crate::{regular_file, whole_file};

/// Start of the names of these files.
const PREFIX: &str = ".hash-";
/// Two hashes have fewer.
const MAX_BYTES: u64 = 1000;

/// The place of a commit's hash.
pub(super) struct KnownHash<'a> {
    path: PathBuf,
    listing: String,
    disk: &'a Disk,
}

impl<'a> KnownHash<'a> {
    pub(super) fn of(wanted: &Wanted<'_>, repository: &Path, disk: &'a Disk) -> Self {
        let mut digest = Sha256::new();
        for file in &wanted.files {
            digest.update((file.path.len() as u64).to_le_bytes());
            digest.update(&file.path);
            digest.update(file.bytes.to_le_bytes());
            match &file.sum {
                None => digest.update([0]),
                Some(Checksum::Sha256(sum)) => digest.update([&[1], sum.as_slice()].concat()),
                Some(Checksum::GitBlob(sum)) => digest.update([&[2], sum.as_slice()].concat()),
            }
        }
        let path = repository.join(format!("{PREFIX}{}", wanted.commit));
        Self { path, listing: STANDARD.encode(digest.finalize()), disk }
    }

    /// The hash, where it is known.
    pub(super) fn read(&self) -> Option<String> {
        let file = regular_file::open_no_link(&self.path).ok()??;
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
        let mut lines = text.lines();
        (lines.next()? == self.listing).then(|| lines.next())?.map(str::to_owned)
    }

    pub(super) fn write(&self, hash: &str) -> Result<()> {
        let text = format!("{}\n{hash}\n", self.listing);
        self.disk.write(&self.path, || whole_file::write(&self.path, text.as_bytes()))
    }
}
