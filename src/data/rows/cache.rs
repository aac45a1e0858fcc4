//! Pages that were read before, as files of one folder that all processes of the machine share.
//!
//! Nothing depends on it: what cannot be read, or does not agree with the sum in its file, is asked for again, and what
//! cannot be written is told once. When the folder has grown beyond its limit, the oldest files go.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::page::Texts;
use crate::hex;
use crate::hub::progress::{Observer, Told};
use crate::regular_file;
use crate::whole_file;

/// Some eight thousand pages of RefinedWeb.
pub(super) const LIMIT_BYTES: u64 = 1_000_000_000;
/// The folder is measured once in so many pages that are written.
const MEASURED_EVERY: u64 = 32;
/// No page is larger, compressed or not.
const MAX_PAGE_BYTES: u64 = 256 << 20;
const SUM_BYTES: usize = 32;
const COMPRESSION_LEVEL: i32 = 3;

/// Texts of pages by a key, which names all that they depend on.
pub(super) struct Cache {
    folder: PathBuf,
    limit_bytes: u64,
    num_written: AtomicU64,
    has_warned: AtomicBool,
    observer: Observer,
}

impl Cache {
    /// The cache in a folder, which is made when the first page is kept.
    pub(super) fn at(folder: &Path, limit_bytes: u64, observer: Observer) -> Self {
        let (num_written, has_warned) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { folder: folder.to_owned(), limit_bytes, num_written, has_warned, observer }
    }

    /// The texts of a page, and the bytes of its file; `None` if they are not known.
    pub(super) fn get(&self, key: &str) -> Option<(Texts, u64)> {
        let mut bytes = Vec::new();
        let file = regular_file::open_no_link(&self.path(key)).ok()??;
        file.take(MAX_PAGE_BYTES).read_to_end(&mut bytes).ok()?;
        let (sum, packed) = bytes.split_at_checked(SUM_BYTES)?;
        if sum != sum_of(key, packed) {
            return None;
        }
        let json = zstd::Decoder::new(packed).ok()?.take(MAX_PAGE_BYTES);
        Some((serde_json::from_reader(std::io::BufReader::new(json)).ok()?, bytes.len() as u64))
    }

    /// Keeps the texts of a page.
    pub(super) fn put(&self, key: &str, texts: &Texts) {
        if let Err(error) = self.try_put(key, texts)
            && !self.has_warned.swap(true, Ordering::Relaxed)
        {
            let sentence = format!("pages of the data set are not kept, and will be asked for again: {error:#}");
            self.observer.tell(Told::Warns(&sentence));
        }
    }

    fn try_put(&self, key: &str, texts: &Texts) -> Result<()> {
        fs::create_dir_all(&self.folder).with_context(|| format!("cannot create {}", self.folder.display()))?;
        let packed = zstd::encode_all(serde_json::to_vec(texts)?.as_slice(), COMPRESSION_LEVEL)?;
        whole_file::write(&self.path(key), &[sum_of(key, &packed).as_slice(), &packed].concat())?;
        if self.num_written.fetch_add(1, Ordering::Relaxed).is_multiple_of(MEASURED_EVERY) {
            self.make_room().with_context(|| format!("cannot make room in {}", self.folder.display()))?;
        }
        Ok(())
    }

    /// Removes the oldest files, whoever left them, until a tenth of the limit is free. Another process may do the same.
    fn make_room(&self) -> Result<()> {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if let Ok(metadata) = entry.metadata()
                && metadata.is_file()
            {
                files.push((metadata.modified()?, metadata.len(), entry.path()));
            }
        }
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        if total <= self.limit_bytes {
            return Ok(());
        }
        files.sort_unstable();
        for (_, bytes, path) in files {
            if total <= self.limit_bytes / 10 * 9 {
                break;
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => total -= bytes,
            }
        }
        Ok(())
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(hex::digits(&Sha256::digest(key)[..16]))
    }
}

/// The sum of a page's bytes under its key: a file that was renamed is no page of its new name.
fn sum_of(key: &str, packed: &[u8]) -> [u8; SUM_BYTES] {
    Sha256::new().chain_update(key).chain_update([0]).chain_update(packed).finalize().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    fn texts(text: &str) -> Texts {
        vec![Some(text.to_owned()), None, Some(String::new())]
    }

    fn kept(cache: &Cache, key: &str) -> Option<Texts> {
        cache.get(key).map(|(texts, _)| texts)
    }

    #[test]
    fn a_page_is_found_under_its_key_by_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let cache = || Cache::at(&dir.path().join("pages"), LIMIT_BYTES, Observer::default());
        assert_eq!(kept(&cache(), "a"), None);
        cache().put("a", &texts("one"));
        cache().put("b", &texts("two"));
        cache().put("a", &texts("three"));
        assert_eq!([kept(&cache(), "a"), kept(&cache(), "b")], [Some(texts("three")), Some(texts("two"))]);
        assert_eq!(kept(&cache(), "c"), None);
    }

    #[test]
    fn a_file_that_is_damaged_at_any_byte_or_renamed_is_no_page() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path(), LIMIT_BYTES, Observer::default());
        cache.put("a", &texts("one"));
        let path = cache.path("a");
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(kept(&cache, "a"), None, "{at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(kept(&cache, "a"), None, "{at}");
        }
        fs::write(cache.path("b"), &whole).unwrap();
        assert_eq!(kept(&cache, "b"), None);
        fs::write(&path, &whole).unwrap();
        assert_eq!(kept(&cache, "a"), Some(texts("one")));
    }

    #[test]
    fn the_oldest_files_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let old = |name: &str, bytes: usize, minutes: u64| {
            let path = dir.path().join(name);
            fs::write(&path, vec![0; bytes]).unwrap();
            let then = SystemTime::now() - Duration::from_secs(60 * minutes);
            fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
        };
        old("oldest", 4_000, 30);
        old("older", 4_000, 20);
        old("young", 4_000, 10);
        let cache = Cache::at(dir.path(), 10_000, Observer::default());
        cache.put("a", &texts("one"));
        let is_there = |name: &str| dir.path().join(name).exists();
        assert_eq!([is_there("oldest"), is_there("older"), is_there("young")], [false, true, true]);
        assert_eq!(kept(&cache, "a"), Some(texts("one")));
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_one_warning() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("file/pages");
        fs::write(dir.path().join("file"), "no folder").unwrap();
        fs::set_permissions(dir.path().join("file"), fs::Permissions::from_mode(0o400)).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let observer = Observer::new(move |told| heard.lock().unwrap().push(format!("{told:?}")));
        let cache = Cache::at(&folder, LIMIT_BYTES, observer);
        cache.put("a", &texts("one"));
        cache.put("b", &texts("two"));
        assert_eq!(kept(&cache, "a"), None);
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 1);
        assert!(
            told[0].starts_with("Warns(\"pages of the data set are not kept, and will be asked for again: "),
            "{told:?}"
        );
    }
}
