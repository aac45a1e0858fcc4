//! Hashes of files that are known already: a model of 3 GB is not read at every call only to be recognised.
//!
//! A file is taken for the one that was hashed if its place, device, inode, size and both of its times, to the nanosecond,
//! are the same: any write changes the later of the times, which no program can set. A file that was written less than two
//! seconds before it was hashed might have been written again within the clock's grain, and is not remembered (git calls
//! such a file racy), unless who wrote it says what he wrote (`FileHashes::learn`). A disk that changes bytes by itself is
//! noticed only where the file's metadata changes too.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::hash::{file_hash, files_hash_by, files_in_hash_order, git_blob};
use super::{Checksum, RemoteFile, Sha256Sum};
use crate::memo::{Key, Memo};

/// A file that was written so shortly ago may be written again without a trace.
const RACY: Duration = Duration::from_secs(2);
/// File systems stamp by a clock that ticks at least as often, unless they count whole seconds.
const TICK: Duration = Duration::from_millis(20);
/// What begins the key of a hash that was found by reading the file.
const READ: &str = "hash of a file\0";
/// And that of one which was told by who wrote the file.
const TOLD: &str = "hash of a file as it was written\0";
/// Characters of a SHA-256 in base64.
const HASH_LEN: usize = 44;

/// Computes hashes of files and folders as [`super::hash`] does, and remembers those of files.
#[derive(Clone, Debug, Default)]
pub struct FileHashes {
    memo: Arc<Memo>,
}

/// What tells that a file is the one that was hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    path: PathBuf,
    /// Device, inode, size, seconds and nanoseconds of the last write and of the last change.
    numbers: [u64; 7],
}

impl FileHashes {
    /// Hashes that are remembered in a memo.
    pub(crate) fn in_memo(memo: Arc<Memo>) -> Self {
        Self { memo }
    }

    /// As [`super::hash::directory_hash`].
    pub fn directory_hash(&self, dir: &Path) -> Result<String> {
        self.files_hash(&files_in_hash_order(dir)?)
    }

    /// As [`super::hash::files_hash`].
    pub fn files_hash(&self, paths: &[PathBuf]) -> Result<String> {
        files_hash_by(paths, |path| self.file_hash(path))
    }

    /// As [`super::hash::file_hash`].
    pub fn file_hash(&self, path: &Path) -> Result<String> {
        let stamp = Stamp::of(path)?;
        let is_racy = stamp.is_younger_than(RACY, SystemTime::now());
        let key = stamp.key(READ);
        let [told, read] = self.remembered([stamp.key(TOLD), key]);
        if let Some(hash) = told.or(read.filter(|_| !is_racy)) {
            return Ok(hash);
        }
        let hash = file_hash(path)?;
        if !is_racy && Stamp::of(path)? == stamp {
            self.memo.put(&[(key, hash.clone().into_bytes())]);
        }
        Ok(hash)
    }

    /// Whether a file has the size and the content that a hub tells, as far as it does.
    pub(super) fn is_of(&self, path: &Path, told: &RemoteFile) -> bool {
        fs::metadata(path).is_ok_and(|metadata| metadata.len() == told.bytes)
            && match told.sum {
                Some(Checksum::Sha256(sum)) => self.file_hash(path).is_ok_and(|hash| hash == STANDARD.encode(sum)),
                Some(Checksum::GitBlob(sum)) => git_blob(path).is_ok_and(|found| found == sum),
                None => true,
            }
    }

    /// Remembers what a file hashes to that the caller has written himself, under a lock or a name that keeps others away, and
    /// whose bytes are on disk.
    ///
    /// That is sound although the file is young. A hash that was found by reading says nothing of a write that came right
    /// after, in the same tick of the clock; but here nobody writes any more, so that only a write from now on matters, and
    /// the tick of the last one is over by then. Where times have no fractions a tick may be two seconds, and nothing is
    /// remembered.
    pub(super) fn learn(&self, path: &Path, sum: &Sha256Sum) -> Result<()> {
        if !self.memo.is_used() {
            return Ok(());
        }
        if Stamp::of(path)?.is_younger_than(TICK, SystemTime::now()) {
            thread::sleep(TICK);
        }
        let stamp = Stamp::of(path)?;
        // Still young where the disk is another machine's, whose clock is ahead.
        if stamp.has_fractions() && !stamp.is_younger_than(TICK, SystemTime::now()) {
            self.memo.put(&[(stamp.key(TOLD), STANDARD.encode(sum).into_bytes())]);
        }
        Ok(())
    }

    /// Whether a file's hash is known without reading it.
    #[cfg(test)]
    pub(super) fn knows(&self, path: &Path) -> bool {
        Stamp::of(path).is_ok_and(|stamp| self.remembered([stamp.key(TOLD)]) != [None])
    }

    fn remembered<const N: usize>(&self, keys: [Key; N]) -> [Option<String>; N] {
        let mut values = self.memo.get(&keys).into_iter();
        let hash = |value: Vec<u8>| String::from_utf8(value).ok().filter(|hash| hash.len() == HASH_LEN);
        keys.map(|_| values.next()?.and_then(hash))
    }
}

impl Stamp {
    /// The stamp of the file that a path leads to.
    pub fn of(path: &Path) -> Result<Self> {
        let context = || format!("cannot read {}", path.display());
        let metadata = fs::metadata(path).with_context(context)?;
        let numbers = [
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            metadata.mtime() as u64,
            metadata.mtime_nsec() as u64,
            metadata.ctime() as u64,
            metadata.ctime_nsec() as u64,
        ];
        Ok(Self { path: fs::canonicalize(path).with_context(context)?, numbers })
    }

    /// The size of the file.
    pub fn bytes(&self) -> u64 {
        self.numbers[2]
    }

    /// Whether the file was written or changed within `age` before `now`, or later.
    fn is_younger_than(&self, age: Duration, now: SystemTime) -> bool {
        let [_, _, _, written, written_ns, changed, changed_ns] = self.numbers.map(|number| number as i64);
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let limit = since_epoch.saturating_sub(age);
        let limit = (limit.as_secs() as i64, i64::from(limit.subsec_nanos()));
        (written, written_ns).max((changed, changed_ns)) >= limit
    }

    /// Whether its times tell more than whole seconds.
    fn has_fractions(&self) -> bool {
        self.numbers[4] != 0 || self.numbers[6] != 0
    }

    fn key(&self, prefix: &str) -> Key {
        let mut digest = Sha256::new_with_prefix(prefix);
        digest.update(self.path.as_os_str().as_bytes());
        digest.update([0]);
        self.numbers.iter().for_each(|number| digest.update(number.to_le_bytes()));
        digest.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs::{File, FileTimes};
    use std::os::unix::fs::symlink;
    use std::thread::sleep;

    use tempfile::TempDir;

    use super::*;
    use crate::hub::hash::directory_hash;

    /// Puts another hash in the place of the one that a file has: whoever finds it has not read the file.
    fn forge(hashes: &FileHashes, path: &Path) -> String {
        let forged = "F".repeat(HASH_LEN);
        hashes.memo.put(&[(Stamp::of(path).unwrap().key(READ), forged.clone().into_bytes())]);
        forged
    }

    fn world() -> (TempDir, FileHashes, PathBuf) {
        let dir = TempDir::new().unwrap();
        let hashes = FileHashes::in_memo(Arc::new(Memo::at(&dir.path().join("memo.sqlite"))));
        fs::create_dir(dir.path().join("model")).unwrap();
        let path = dir.path().join("model/model.safetensors");
        fs::write(&path, "weights").unwrap();
        (dir, hashes, path)
    }

    #[test]
    fn an_old_file_is_read_once_and_a_changed_one_again() {
        let (dir, hashes, path) = world();
        let expected = file_hash(&path).unwrap();
        sleep(RACY + Duration::from_millis(50));
        assert_eq!(hashes.file_hash(&path).unwrap(), expected);
        assert_eq!(hashes.remembered([Stamp::of(&path).unwrap().key(READ)]), [Some(expected)]);
        let forged = forge(&hashes, &path);
        assert_eq!(hashes.file_hash(&path).unwrap(), forged, "it was read again");
        assert_ne!(
            hashes.directory_hash(&dir.path().join("model")).unwrap(),
            directory_hash(&dir.path().join("model")).unwrap()
        );
        // By its link it is the same file.
        symlink(&path, dir.path().join("link")).unwrap();
        assert_eq!(hashes.file_hash(&dir.path().join("link")).unwrap(), forged);

        // As long as before, and the time of its last write set back: the time of the last change tells.
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "WEIGHTS").unwrap();
        File::options().append(true).open(&path).unwrap().set_times(FileTimes::new().set_modified(written)).unwrap();
        assert_eq!(hashes.file_hash(&path).unwrap(), file_hash(&path).unwrap());
    }

    #[test]
    fn a_file_of_this_moment_is_neither_remembered_nor_looked_up() {
        let (dir, hashes, path) = world();
        let expected = file_hash(&path).unwrap();
        assert_eq!(hashes.file_hash(&path).unwrap(), expected);
        assert_eq!(hashes.remembered([Stamp::of(&path).unwrap().key(READ)]), [None]);
        forge(&hashes, &path);
        assert_eq!(hashes.file_hash(&path).unwrap(), expected);
        assert_eq!(
            hashes.directory_hash(&dir.path().join("model")).unwrap(),
            directory_hash(&dir.path().join("model")).unwrap()
        );
    }

    #[test]
    fn what_a_writer_tells_is_taken_at_once_and_until_the_file_is_written_again() {
        let (_dir, hashes, path) = world();
        let told = [7; 32];
        hashes.learn(&path, &told).unwrap();
        assert_eq!(hashes.file_hash(&path).unwrap(), STANDARD.encode(told), "it was read");
        // As long as before, and as soon as can be.
        fs::write(&path, "WEIGHTS").unwrap();
        assert_eq!(hashes.file_hash(&path).unwrap(), file_hash(&path).unwrap());
        let nobody = FileHashes::default();
        nobody.learn(&path, &told).unwrap();
        assert_eq!(nobody.file_hash(&path).unwrap(), file_hash(&path).unwrap());
        let whole_seconds = Stamp { path: PathBuf::from("/a"), numbers: [1, 2, 3, 90, 0, 90, 0] };
        assert!(!whole_seconds.has_fractions() && Stamp::of(&path).unwrap().has_fractions());
    }

    #[test]
    fn an_age_counts_from_the_later_of_both_times_and_the_future_is_young() {
        let stamp = |written: u64, changed: u64| Stamp {
            path: PathBuf::from("/a"),
            numbers: [1, 2, 3, written, 0, changed, 500_000_000],
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let young = |written, changed| stamp(written, changed).is_younger_than(RACY, now);
        assert!(!young(97, 97) && !young(90, 97));
        assert!(young(98, 90) && young(90, 98) && young(101, 90) && young(90, 5000));
    }
}
