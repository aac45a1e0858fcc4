//! The hash of a model folder, as the subnet's validators compute it.
//!
//! SHA-256 over the concatenated base64 texts of each file's SHA-256, in base64. File names are not hashed, only the
//! order they give: the files of a folder sorted by code points, then its sub-folders likewise. Links to files are
//! followed, links to folders are not (Python's `os.walk`). Files are read through one fixed buffer each, several at a
//! time, so a 3 GB file costs as little memory as an empty one.

use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rayon::prelude::*;
use sha1::Sha1;
use sha2::digest::Update;
use sha2::{Digest, Sha256};

use super::Sha256Sum;
use crate::regular_file;

const BUFFER_BYTES: usize = 1 << 20;
/// Deeper folders than this are no model; the bound keeps a hostile tree from exhausting the stack.
const MAX_DEPTH: usize = 256;

/// The hash of everything below a folder, in base64. A folder that does not exist has the hash of an empty one, as in
/// the reference; callers that need it to exist check that themselves.
pub fn directory_hash(dir: &Path) -> Result<String> {
    files_hash(&files_in_hash_order(dir)?)
}

/// The [`directory_hash`] of a folder that holds just these files, given in the order of their names.
pub fn files_hash(paths: &[PathBuf]) -> Result<String> {
    files_hash_by(paths, file_hash)
}

/// The [`files_hash`] of files whose sums are known, in the order of their names.
pub(super) fn sums_hash(sums: &[Sha256Sum]) -> String {
    let hashes: String = sums.iter().map(|sum| STANDARD.encode(sum)).collect();
    STANDARD.encode(Sha256::digest(hashes))
}

/// [`files_hash`] with the hash of each file taken from elsewhere.
pub(super) fn files_hash_by(paths: &[PathBuf], hash: impl Fn(&Path) -> Result<String> + Sync) -> Result<String> {
    let hashes = paths.par_iter().map(|path| hash(path)).collect::<Result<Vec<String>>>()?;
    Ok(STANDARD.encode(Sha256::digest(hashes.concat())))
}

/// Sum of the sizes of all files that [`directory_hash`] reads.
pub fn directory_bytes(dir: &Path) -> Result<u64> {
    files_in_hash_order(dir)?.iter().try_fold(0_u64, |sum, path| {
        let bytes = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        Ok(sum.saturating_add(bytes))
    })
}

/// The hash of two texts one after the other, in base64: a directory hash bound to a hotkey.
pub fn text_pair_hash(first: &str, second: &str) -> String {
    STANDARD.encode(Sha256::new().chain_update(first).chain_update(second).finalize())
}

/// The SHA-256 of one file, in base64.
pub fn file_hash(path: &Path) -> Result<String> {
    let mut digest = Sha256::new();
    read_through(path, &mut digest)?;
    Ok(STANDARD.encode(digest.finalize()))
}

/// A digest that becomes the name that git gives a content of so many bytes, once it has taken that.
pub(crate) fn git_blob_digest(bytes: u64) -> Sha1 {
    Sha1::new_with_prefix(format!("blob {bytes}\0"))
}

/// The name that git gives a file's content.
pub(super) fn git_blob(path: &Path) -> Result<[u8; 20]> {
    let bytes = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    let mut digest = git_blob_digest(bytes);
    read_through(path, &mut digest)?;
    Ok(digest.finalize().into())
}

fn read_through(path: &Path, digest: &mut impl Update) -> Result<()> {
    let context = || format!("cannot read {}", path.display());
    let mut file = regular_file::open(path).with_context(context)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => digest.update(&buffer[..len]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(context),
        }
    }
}

/// Replaces every link to a file below `dir` by the file it points to, as the reference does with a downloaded
/// snapshot, and returns how many there were. The file is moved: a second link to it fails.
pub fn realize_symlinks(dir: &Path) -> Result<usize> {
    let mut num_realized = 0;
    for path in files_in_hash_order(dir)? {
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink()) {
            let target = fs::canonicalize(&path).with_context(|| format!("cannot follow {}", path.display()))?;
            fs::rename(&target, &path).with_context(|| format!("cannot move {} to its link", target.display()))?;
            num_realized += 1;
        }
    }
    Ok(num_realized)
}

/// All files below a folder in the order in which they are hashed.
pub(super) fn files_in_hash_order(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    collect(dir, 0, &mut files)?;
    Ok(files)
}

fn collect(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    if depth > MAX_DEPTH {
        bail!("{} lies more than {MAX_DEPTH} folders deep", dir.display());
    }
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if depth == 0 && error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", dir.display())),
    };
    let mut here = Vec::new();
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        let kind = entry.file_type().with_context(|| format!("cannot look at {}", entry.path().display()))?;
        if kind.is_dir() {
            folders.push(entry.path());
        } else if !(kind.is_symlink() && entry.path().is_dir()) {
            here.push(entry.path());
        }
    }
    here.sort_by_cached_key(|path| code_points(path.file_name().unwrap_or_default()));
    folders.sort_by_cached_key(|path| code_points(path.file_name().unwrap_or_default()));
    files.append(&mut here);
    folders.iter().try_for_each(|folder| collect(folder, depth + 1, files))
}

/// A file name as Python sorts it: by code points, a byte that is not UTF-8 standing for the lone surrogate
/// U+DC00 + byte (`surrogateescape`).
fn code_points(name: &OsStr) -> Vec<u32> {
    let mut points = Vec::with_capacity(name.len());
    for chunk in name.as_bytes().utf8_chunks() {
        points.extend(chunk.valid().chars().map(u32::from));
        points.extend(chunk.invalid().iter().map(|&byte| 0xDC00 + u32::from(byte)));
    }
    points
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::ffi::OsStringExt;

    use serde_json::Value;

    use super::*;
    use crate::golden;

    fn build(root: &Path, tree: &[Value]) {
        for entry in tree {
            let name = match entry["path"].as_str() {
                Some(path) => path.into(),
                None => std::ffi::OsString::from_vec(STANDARD.decode(entry["path_b64"].as_str().unwrap()).unwrap()),
            };
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match entry["type"].as_str().unwrap() {
                "dir" => fs::create_dir_all(&path).unwrap(),
                "file" => fs::write(&path, STANDARD.decode(entry["content_b64"].as_str().unwrap()).unwrap()).unwrap(),
                "symlink" => std::os::unix::fs::symlink(entry["target"].as_str().unwrap(), &path).unwrap(),
                other => panic!("unknown kind of entry {other}"),
            }
        }
    }

    #[test]
    fn golden_directory_hashes_equal_the_reference() {
        for case in golden::cases("hash", "cases") {
            let name = case["name"].as_str().unwrap();
            let root = tempfile::tempdir().unwrap();
            build(root.path(), case["tree"].as_array().unwrap());
            let dir = root.path().join(case["hash_dir"].as_str().unwrap());
            let result = if case["realize_symlinks"] == true {
                realize_symlinks(&dir).map(|num| {
                    assert_eq!(num as u64, case["realized"].as_u64().unwrap_or(num as u64), "{name}");
                })
            } else {
                Ok(())
            }
            .and_then(|()| directory_hash(&dir));
            match case["expected_hash"].as_str() {
                Some(expected) => {
                    assert_eq!(result.unwrap(), expected, "{name}");
                    let files = files_in_hash_order(&dir).unwrap();
                    let expected_files = case["file_hashes"].as_array().unwrap();
                    assert_eq!(files.len(), expected_files.len(), "{name}");
                    for (file, expected) in files.iter().zip(expected_files) {
                        assert_eq!(file_hash(file).unwrap(), expected.as_str().unwrap(), "{name}");
                    }
                }
                None => assert!(result.is_err() && case["exception"].is_string(), "{name} must fail"),
            }
        }
    }

    #[test]
    fn golden_text_pair_hashes_equal_the_reference() {
        for case in golden::cases("hash", "head_get_hash_of_two_strings") {
            let hash = text_pair_hash(case["a"].as_str().unwrap(), case["b"].as_str().unwrap());
            assert_eq!(hash, case["hash"].as_str().unwrap());
        }
    }

    #[test]
    fn a_device_in_the_folder_is_refused_instead_of_read_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("model.safetensors")).unwrap();
        let error = directory_hash(dir.path()).unwrap_err();
        assert!(format!("{error:#}").contains("not a regular file"), "{error:#}");
    }
}
