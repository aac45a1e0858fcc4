//! Reference values for tests, from `tests/golden`: every file of a format that is found there is tested.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The repository's root: where it was when the tests were compiled, or, for tests that were carried to another machine,
/// where `CARGO_MANIFEST_DIR` says.
pub(crate) fn repository() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).into(), PathBuf::from)
}

/// A file or folder below `tests/golden`.
pub(crate) fn path(name: &str) -> PathBuf {
    repository().join("tests/golden").join(name)
}

/// The JSON files of a folder whose top level has `key`, in the order of their names, each with its path; or the one file
/// of that name.
pub(crate) fn files(name: &str, key: &str) -> Vec<(PathBuf, Value)> {
    let place = path(name);
    let mut paths: Vec<PathBuf> = match place.is_file() {
        true => vec![place],
        false => std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()).collect(),
    };
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let files = paths.into_iter().map(|path| {
        let value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        (path, value)
    });
    let found: Vec<_> = files.filter(|(_, file)| file.get(key).is_some()).collect();
    assert!(!found.is_empty(), "no golden file with `{key}` in {name}");
    found
}

/// All cases that the files of a folder, or one file, list under `key`.
pub(crate) fn cases(name: &str, key: &str) -> Vec<Value> {
    let lists = files(name, key).into_iter().map(|(_, mut file)| file[key].take());
    let cases: Vec<Value> = lists.flat_map(|list| serde_json::from_value::<Vec<Value>>(list).unwrap()).collect();
    assert!(!cases.is_empty(), "no case of `{key}` in {name}");
    cases
}
