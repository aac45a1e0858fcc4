//! Reference values for tests, from `tests/golden`: every file of a format that is found there is tested.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A file or folder below `tests/golden`.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name)
}

/// The JSON files of a folder whose top level has `key`, in the order of their names, each with its path.
pub(crate) fn files(folder: &str, key: &str) -> Vec<(PathBuf, Value)> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(path(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let files = paths.into_iter().map(|path| {
        let value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        (path, value)
    });
    let found: Vec<_> = files.filter(|(_, file)| file.get(key).is_some()).collect();
    assert!(!found.is_empty(), "no golden file with `{key}` in {folder}");
    found
}

/// All cases that the files of a folder list under `key`.
pub(crate) fn cases(folder: &str, key: &str) -> Vec<Value> {
    let lists = files(folder, key).into_iter().map(|(_, mut file)| file[key].take());
    let cases: Vec<Value> = lists.flat_map(|list| serde_json::from_value::<Vec<Value>>(list).unwrap()).collect();
    assert!(!cases.is_empty(), "no case of `{key}` in {folder}");
    cases
}
