//! Which files are large ones, which git keeps elsewhere (LFS) and knows by a pointer; and how git names its objects.

use std::io::{self, Read};

use sha1::Digest;

use crate::hex;
use crate::hub::hash::git_blob_digest;

/// Endings of the names of files that are large whatever their size.
const LARGE: [&str; 22] = [
    "7z",
    "arrow",
    "bin",
    "ckpt",
    "ftz",
    "gz",
    "h5",
    "joblib",
    "model",
    "msgpack",
    "npy",
    "npz",
    "onnx",
    "parquet",
    "pb",
    "pickle",
    "pkl",
    "pt",
    "pth",
    "safetensors",
    "tar",
    "zip",
];
/// A file of more bytes is large whatever its name.
const MAX_REGULAR_BYTES: u64 = 10 << 20;

/// Whether a file is kept as a large one.
pub(super) fn is_large(name: &str, bytes: u64) -> bool {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    bytes > 0 && (bytes > MAX_REGULAR_BYTES || ending.is_some_and(|ending| LARGE.contains(&ending)))
}

/// The file of a new repository that tells git so.
pub(super) fn text() -> String {
    LARGE.iter().map(|ending| format!("*.{ending} filter=lfs diff=lfs merge=lfs -text\n")).collect()
}

/// What git keeps in the place of a large file.
pub(super) fn pointer(sha256: &str, bytes: u64) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {bytes}\n")
}

/// The name of a file's object in git, in hexadecimal.
pub(super) fn blob_id(content: &mut impl Read, bytes: u64) -> io::Result<String> {
    let mut digest = git_blob_digest(bytes);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match content.read(&mut buffer) {
            Ok(0) => return Ok(hex::digits(digest.finalize())),
            Ok(len) => digest.update(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn large_files_are_told_by_name_or_size_and_empty_ones_are_none() {
        assert!(is_large("model.safetensors", 1) && is_large("pytorch_model.bin", 1) && is_large("a.b.pt", 9));
        assert!(!is_large("config.json", 10 << 20) && is_large("config.json", (10 << 20) + 1));
        assert!(!is_large("safetensors", 1) && !is_large("model.safetensors.index.json", 1));
        assert!(!is_large("model.safetensors", 0));
        assert!(text().contains("*.safetensors filter=lfs diff=lfs merge=lfs -text\n"));
    }

    /// As `git hash-object` names them.
    #[test]
    fn objects_have_the_names_that_git_gives_them() {
        let id = |content: &str| blob_id(&mut content.as_bytes(), content.len() as u64).unwrap();
        assert_eq!(id(""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(id("hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
