#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;

fn key(number: u32) -> Key {
    Sha256::digest(number.to_le_bytes()).into()
}

fn entries(numbers: std::ops::Range<u32>) -> Vec<(Key, Vec<u8>)> {
    numbers.map(|number| (key(number), number.to_le_bytes().to_vec())).collect()
}

fn known(memo: &Memo, numbers: std::ops::Range<u32>) -> Vec<Option<u32>> {
    let keys: Vec<Key> = numbers.map(key).collect();
    let number = |value: Vec<u8>| u32::from_le_bytes(value.try_into().unwrap());
    memo.get(&keys).into_iter().map(|value| value.map(number)).collect()
}

fn folder() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a/b/losses.sqlite");
    (dir, path)
}

#[test]
fn what_one_process_keeps_another_knows() {
    let (_dir, path) = folder();
    let (one, other) = (Memo::at(&path), Memo::at(&path));
    assert_eq!(known(&one, 0..2), [None, None]);
    one.put(&entries(0..2));
    assert_eq!(known(&other, 0..3), [Some(0), Some(1), None]);
    other.put(&[(key(1), 7_u32.to_le_bytes().to_vec())]);
    assert_eq!(known(&one, 0..3), [Some(0), Some(7), None]);
    drop((one, other));
    assert_eq!(known(&Memo::at(&path), 0..2), [Some(0), Some(7)]);
}

#[test]
fn many_at_once_make_open_and_fill_one_file() {
    let (_dir, path) = folder();
    thread::scope(|scope| {
        for thread in 0..8 {
            let path = &path;
            scope.spawn(move || {
                let memo = Memo::at(path);
                for round in 0..20 {
                    let first = thread * 100 + round * 5;
                    memo.put(&entries(first..first + 5));
                    assert_eq!(known(&memo, first..first + 1), [Some(first)]);
                }
                assert_eq!(memo.trouble(), None);
            });
        }
    });
    let expected: Vec<_> = (0..800).map(Some).collect();
    assert_eq!(known(&Memo::at(&path), 0..800), expected);
}

#[test]
fn a_memo_that_is_none_keeps_nothing_and_is_silent() {
    let memo = Memo::default();
    memo.put(&entries(0..2));
    assert_eq!(known(&memo, 0..2), [None, None]);
    assert_eq!(memo.trouble(), None);
}

/// Fails once, with a sentence that names the file and the reason; afterwards nothing is known and nothing kept.
fn assert_unusable(path: &Path, reason: &str) {
    let memo = Memo { patience: Duration::from_millis(50), ..Memo::at(path) };
    assert_eq!(known(&memo, 0..2), [None, None]);
    memo.put(&entries(0..2));
    assert_eq!(known(&memo, 0..2), [None, None]);
    let trouble = memo.trouble().unwrap();
    assert!(trouble.contains(&path.display().to_string()) && trouble.contains(reason), "{trouble}");
    assert_eq!(memo.trouble(), None);
}

#[test]
fn a_file_that_is_none_of_ours_is_left_alone() {
    let (_dir, path) = folder();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let text = "not a database, and longer than the header of one: ".repeat(40);
    fs::write(&path, &text).unwrap();
    assert_unusable(&path, "not a database");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);

    fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE entries (x)").unwrap();
    assert_unusable(&path, "another program");

    fs::remove_file(&path).unwrap();
    Memo::at(&path).put(&entries(0..1));
    Connection::open(&path).unwrap().pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
    assert_unusable(&path, "version 2");

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_unusable(&path, "not a regular file");
}

#[test]
fn a_damaged_page_or_value_is_trouble_and_never_a_value() {
    let (_dir, path) = folder();
    Memo::at(&path).put(&entries(0..1));
    let damage = "UPDATE entries SET value = CAST(X'01' || substr(value, 2) AS BLOB)";
    assert_eq!(Connection::open(&path).unwrap().execute(damage, []).unwrap(), 1);
    let memo = Memo::at(&path);
    assert_eq!(known(&memo, 0..1), [None]);
    assert!(memo.trouble().unwrap().contains("damaged"));

    fs::remove_file(&path).unwrap();
    Memo::at(&path).put(&entries(0..2000));
    let mut bytes = fs::read(&path).unwrap();
    let len = bytes.len();
    bytes[4096..len].fill(0xA5);
    fs::write(&path, &bytes).unwrap();
    assert_unusable(&path, "malformed");
}

#[test]
fn a_file_that_another_process_holds_is_done_without() {
    let (_dir, path) = folder();
    Memo::at(&path).put(&entries(0..1));
    let mut holder = Connection::open(&path).unwrap();
    let transaction = holder.transaction_with_behavior(TransactionBehavior::Exclusive).unwrap();
    let memo = Memo { patience: Duration::from_millis(50), ..Memo::at(&path) };
    memo.put(&entries(1..2));
    assert!(memo.trouble().unwrap().contains("locked"));
    drop(transaction);
    assert_eq!(known(&Memo::at(&path), 0..2), [Some(0), None]);
}

#[test]
fn a_folder_that_may_only_be_read_is_done_without() {
    let (_dir, path) = folder();
    let parent = path.parent().unwrap();
    fs::create_dir_all(parent).unwrap();
    fs::set_permissions(parent, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(parent.join("probe"), "").is_ok() {
        // The superuser may write everywhere, but not below a file.
        fs::write(parent.join("file"), "").unwrap();
        assert_unusable(&parent.join("file/losses.sqlite"), "cannot be created");
    } else {
        assert_unusable(&path, "unable to open");
    }
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn beyond_its_limit_the_older_half_goes_and_the_file_stops_growing() {
    let (_dir, path) = folder();
    let memo = Memo { limit_bytes: 256 << 10, ..Memo::at(&path) };
    for block in 0..40 {
        memo.put(&entries(block * 500..(block + 1) * 500));
    }
    assert_eq!(memo.trouble(), None);
    let known = known(&memo, 0..20_000);
    let num_known = known.iter().flatten().count();
    assert!((500..5_000).contains(&num_known), "{num_known}");
    assert!(known[20_000 - num_known..].iter().all(Option::is_some), "the newest stay");
    drop(memo);
    let bytes = fs::metadata(&path).unwrap().len();
    assert!(bytes < 2 * (256 << 10), "{bytes}");
}
