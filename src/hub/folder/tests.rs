//! The folder hub against kills after every single operation, rivals, full disks, and names and links of strangers.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::thread;

use tempfile::TempDir;

use super::*;
use crate::error::exit_code;
use crate::lock;

const REPO: &str = "miner/model";

/// A folder in memory where there is one: these tests wait for the disk often.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn hub() -> (TempDir, FolderHub) {
    let dir = scratch();
    let hub = FolderHub::create(&dir.path().join("hub")).unwrap();
    (dir, hub)
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = scratch();
    files.iter().for_each(|(name, content)| fs::write(dir.path().join(name), content).unwrap());
    dir
}

/// The names of the files that [`model`] makes.
const NAMES: [&str; 2] = ["model.safetensors", "config.json"];

/// Two files; the second is larger than a buffer and differs between seeds in its last byte only.
fn model(seed: u8) -> TempDir {
    let mut weights = vec![7; BUFFER_BYTES + 3];
    *weights.last_mut().unwrap() = seed;
    folder(&[("config.json", b"{}"), ("model.safetensors", &weights), ("README.md", b"not uploaded")])
}

fn upload(hub: &FolderHub, seed: u8) -> Result<String> {
    hub.upload(&Upload::new(REPO, model(seed).path(), &NAMES, "a model"))
}

/// Names in a repository's folder that are neither commits nor its record.
fn leftovers(hub: &FolderHub) -> BTreeSet<String> {
    let entries = fs::read_dir(hub.dir.join(REPO)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let commits = hub.commits(REPO).unwrap();
    names.filter(|name| ![LINE_FILE, LOCK_FILE].contains(&name.as_str()) && !commits.contains(name)).collect()
}

fn downloaded(hub: &FolderHub, commit: &str, name: &str) -> Vec<u8> {
    let into = scratch();
    hub.download(REPO, commit, &[&RemoteFile::new(name, 0)], into.path()).unwrap();
    fs::read(into.path().join(name)).unwrap()
}

#[test]
fn what_was_uploaded_comes_back_byte_by_byte_and_cannot_be_written_to() {
    let (_dir, hub) = hub();
    assert_eq!(hub.newest_commit(REPO).unwrap(), None);
    let first = upload(&hub, 1).unwrap();
    let second = upload(&hub, 2).unwrap();
    assert!(names::is_commit(&first) && names::is_commit(&second));
    assert_eq!(hub.commits(REPO).unwrap(), [second.clone(), first.clone()]);
    assert_eq!(hub.newest_commit(REPO).unwrap(), Some(second.clone()));
    let expected = NAMES.map(|name| {
        let content = fs::read(model(1).path().join(name)).unwrap();
        let sum = Some(Checksum::Sha256(Sha256::digest(&content).into()));
        RemoteFile { path: name.to_owned(), bytes: content.len() as u64, sum }
    });
    let expected: Vec<_> = expected.into_iter().rev().collect();
    assert_eq!(hub.files(REPO, &first).unwrap(), expected);
    for (seed, commit) in [(1, &first), (2, &second)] {
        let original = fs::read(model(seed).path().join("model.safetensors")).unwrap();
        assert!(downloaded(&hub, commit, "model.safetensors") == original);
        let mode = fs::metadata(hub.dir.join(REPO).join(commit).join("config.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o444);
    }
    assert_eq!(leftovers(&hub), BTreeSet::new());
}

#[test]
fn the_name_of_a_commit_follows_from_parent_files_and_message_alone() {
    let (_dir, first) = hub();
    let (_dir_2, second) = hub();
    let commit = upload(&first, 1).unwrap();
    assert_eq!(upload(&second, 1).unwrap(), commit);
    assert_eq!(upload(&second, 2).unwrap(), upload(&first, 2).unwrap());
    // Back to the first content: the same files under another parent are another commit.
    assert_ne!(upload(&second, 1).unwrap(), commit);
    let (_dir_3, third) = hub();
    assert_ne!(third.upload(&Upload::new(REPO, model(1).path(), &NAMES, "another message")).unwrap(), commit);
    assert_ne!(third.upload(&Upload::new("miner/other", model(1).path(), &NAMES[..1], "a model")).unwrap(), commit);
}

#[test]
fn uploading_what_the_newest_commit_holds_makes_nothing() {
    let (_dir, hub) = hub();
    let commit = upload(&hub, 1).unwrap();
    hub.disk.set_full(true);
    assert_eq!(upload(&hub, 1).unwrap(), commit);
    assert_eq!(
        hub.upload(&Upload::new(REPO, model(1).path(), &["config.json", "model.safetensors"], "else")).unwrap(),
        commit
    );
    hub.disk.set_full(false);
    assert_eq!(hub.commits(REPO).unwrap(), [commit.as_str()]);
    let fewer = hub.upload(&Upload::new(REPO, model(1).path(), &["config.json"], "a model")).unwrap();
    assert_eq!(hub.commits(REPO).unwrap(), [fewer, commit]);
}

#[test]
fn an_upload_killed_anywhere_and_repeated_makes_exactly_one_commit() {
    let (_dir, peer) = hub();
    let expected = [upload(&peer, 1).unwrap(), upload(&peer, 2).unwrap()];
    for num_before in [0, 1] {
        let mut num_operations = 0;
        loop {
            let (_dir, mut hub) = hub();
            for seed in 1..=num_before {
                upload(&hub, seed).unwrap();
            }
            hub.disk.kill_after(num_operations);
            let finished = upload(&hub, num_before + 1).is_ok();
            hub.disk = Disk::default();
            // A commit that can be seen is whole, also before the upload is repeated.
            let before = hub.commits(REPO).unwrap();
            assert!(before.len() >= num_before as usize);
            if let Some(newest) = before.first() {
                assert_eq!(hub.files(REPO, newest).unwrap().len(), 2);
                let original = fs::read(model(before.len() as u8).path().join("model.safetensors")).unwrap();
                assert!(downloaded(&hub, newest, "model.safetensors") == original);
            }
            let commit = upload(&hub, num_before + 1).unwrap();
            let line: Vec<String> = expected[..=num_before as usize].iter().rev().cloned().collect();
            assert_eq!((hub.commits(REPO).unwrap(), &commit), (line, &expected[num_before as usize]));
            assert_eq!(leftovers(&hub), BTreeSet::new());
            if finished {
                break;
            }
            num_operations += 1;
        }
        assert!(num_operations >= 8, "{num_operations}");
    }
}

#[test]
fn another_upload_after_a_killed_one_removes_what_it_left() {
    for num_operations in 0..16 {
        let (_dir, mut hub) = hub();
        let first = upload(&hub, 1).unwrap();
        hub.disk.kill_after(num_operations);
        let finished = upload(&hub, 2).is_ok();
        hub.disk = Disk::default();
        let third = upload(&hub, 3).unwrap();
        let commits = hub.commits(REPO).unwrap();
        assert_eq!((commits.first(), commits.last()), (Some(&third), Some(&first)));
        assert!(commits.len() == 2 || commits.len() == 3);
        assert!(!finished || commits.len() == 3);
        assert_eq!(leftovers(&hub), BTreeSet::new());
    }
}

#[test]
fn a_full_disk_is_told_of_and_leaves_the_hub_as_before() {
    let (_dir, hub) = hub();
    let commit = upload(&hub, 1).unwrap();
    hub.disk.set_full(true);
    let error = format!("{:#}", upload(&hub, 2).unwrap_err());
    assert!(error.contains("No space left in the hub folder") && error.contains("Free some space"), "{error}");
    assert_eq!((hub.commits(REPO).unwrap(), leftovers(&hub)), (vec![commit], BTreeSet::new()));
    hub.disk.set_full(false);
    upload(&hub, 2).unwrap();
    assert_eq!(hub.commits(REPO).unwrap().len(), 2);
}

#[test]
fn two_uploaders_of_different_models_make_one_line_and_of_the_same_model_one_commit() {
    for _ in 0..10 {
        let (_dir, hub) = hub();
        let seeds = [1, 2, 2, 1, 1];
        thread::scope(|scope| {
            for seed in seeds {
                let own = FolderHub::open(&hub.dir).unwrap();
                scope.spawn(move || upload(&own, seed).unwrap());
            }
        });
        let commits = hub.commits(REPO).unwrap();
        // Between two commits of one content lies one of the other.
        assert!((2..=5).contains(&commits.len()), "{commits:?}");
        let last_bytes: Vec<u8> =
            commits.iter().map(|commit| *downloaded(&hub, commit, "model.safetensors").last().unwrap()).collect();
        assert!(last_bytes.windows(2).all(|pair| pair[0] != pair[1]), "{last_bytes:?}");
        assert_eq!(leftovers(&hub), BTreeSet::new());
    }
}

#[test]
fn an_upload_that_waits_too_long_for_another_is_unreachable() {
    let (_dir, mut hub) = hub();
    let commit = upload(&hub, 1).unwrap();
    hub.patience = Duration::from_millis(30);
    let held = lock::wait(&hub.dir.join(REPO).join(LOCK_FILE), Duration::ZERO).unwrap().unwrap();
    let error = upload(&hub, 2).unwrap_err();
    assert_eq!(exit_code(&error), 3);
    assert!(error.to_string().contains("Another process is uploading to miner/model"), "{error}");
    assert_eq!(hub.commits(REPO).unwrap(), [commit]);
    drop(held);
    upload(&hub, 2).unwrap();
}

#[test]
fn names_of_strangers_lead_nowhere() {
    let (dir, hub) = hub();
    let commit = upload(&hub, 1).unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    fs::create_dir_all(dir.path().join("miner/model").join(&commit)).unwrap();
    for repo_id in ["..", "../miner/model", "miner/..", "miner/model/..", "/etc", "miner/.lock", "", "miner"] {
        assert_eq!(exit_code(&hub.newest_commit(repo_id).unwrap_err()), 2, "{repo_id}");
        assert_eq!(exit_code(&hub.files(repo_id, &commit).unwrap_err()), 2, "{repo_id}");
        assert_eq!(exit_code(&hub.check_writable(repo_id).unwrap_err()), 2, "{repo_id}");
        assert_eq!(
            exit_code(&hub.upload(&Upload::new(repo_id, model(1).path(), &NAMES, "")).unwrap_err()),
            2,
            "{repo_id}"
        );
    }
    for bad in ["..", "main", "", ".lock", &commit[..39], &commit.to_uppercase()] {
        assert_eq!(exit_code(&hub.files(REPO, bad).unwrap_err()), 2, "{bad}");
    }
    let into = scratch();
    for path in ["../../../../secret", "../commits.jsonl", "/etc/passwd", "", ".", "..", "sub/file", "absent", "a\0b"] {
        let error = hub.download(REPO, &commit, &[&RemoteFile::new(path, 0)], into.path()).unwrap_err();
        assert_eq!(exit_code(&error), 4, "{path}: {error:#}");
        assert!(error.to_string().contains("holds no file"), "{error}");
    }
    assert_eq!(fs::read_dir(into.path()).unwrap().count(), 0);
    for name in ["../hub/miner", "", "..", "absent", "sub/file"] {
        assert_eq!(exit_code(&hub.upload(&Upload::new(REPO, model(2).path(), &[name], "")).unwrap_err()), 2, "{name}");
    }
    assert_eq!(exit_code(&hub.upload(&Upload::new(REPO, model(2).path(), &[], "")).unwrap_err()), 2);
    assert_eq!(hub.commits(REPO).unwrap(), [commit]);
}

#[test]
fn what_is_not_there_is_said_so() {
    let (dir, hub) = hub();
    let absent = "0".repeat(40);
    upload(&hub, 1).unwrap();
    for (repo_id, expected) in [("miner/absent", "no repository miner/absent"), (REPO, "has no commit 0000")] {
        let error = hub.files(repo_id, &absent).unwrap_err();
        assert!(exit_code(&error) == 4 && error.to_string().contains(expected), "{error}");
        assert_eq!(
            exit_code(&hub.download(repo_id, &absent, &[&RemoteFile::new("config.json", 0)], dir.path()).unwrap_err()),
            4
        );
    }
    let error = FolderHub::open(&dir.path().join("absent")).unwrap_err();
    assert!(
        exit_code(&error) == 2 && error.to_string().contains("`assay local init --local DIR` makes one"),
        "{error}"
    );
}

#[test]
fn links_planted_in_the_hub_are_not_followed() {
    let (dir, hub) = hub();
    let commit = upload(&hub, 1).unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let commit_dir = hub.dir.join(REPO).join(&commit);

    symlink(outside.join("secret"), commit_dir.join("linked")).unwrap();
    assert!(hub.files(REPO, &commit).unwrap().iter().all(|file| file.path != "linked"));
    assert_eq!(exit_code(&hub.download(REPO, &commit, &[&RemoteFile::new("linked", 0)], dir.path()).unwrap_err()), 4);
    fs::remove_file(commit_dir.join("linked")).unwrap();

    // A whole commit, repository or namespace that lies elsewhere is none.
    fs::rename(hub.dir.join("miner"), outside.join("miner")).unwrap();
    symlink(outside.join("miner"), hub.dir.join("miner")).unwrap();
    fs::create_dir(hub.dir.join("other")).unwrap();
    symlink(outside.join("miner/model"), hub.dir.join("other/model")).unwrap();
    for repo_id in [REPO, "other/model"] {
        assert_eq!(hub.newest_commit(repo_id).unwrap(), None);
        assert_eq!(exit_code(&hub.files(repo_id, &commit).unwrap_err()), 4);
        let error = hub.upload(&Upload::new(repo_id, model(2).path(), &NAMES, "")).unwrap_err();
        assert!(exit_code(&error) == 2 && error.to_string().contains("is no folder; move it away"), "{error}");
    }
    fs::remove_file(hub.dir.join("miner")).unwrap();
    fs::rename(outside.join("miner"), hub.dir.join("miner")).unwrap();
    fs::rename(&commit_dir, outside.join(&commit)).unwrap();
    symlink(outside.join(&commit), &commit_dir).unwrap();
    assert_eq!(hub.newest_commit(REPO).unwrap(), None);
    // The link is in the way of the same commit: it is replaced, what it points to stays.
    assert_eq!(upload(&hub, 1).unwrap(), commit);
    assert!(is_folder(&commit_dir) && outside.join(&commit).join("config.json").is_file());

    // Nor are they in the folder that is downloaded into.
    let into = scratch();
    symlink(outside.join("secret"), into.path().join("config.json")).unwrap();
    assert!(hub.download(REPO, &commit, &[&RemoteFile::new("config.json", 0)], into.path()).is_err());
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");

    for name in [LOCK_FILE, LINE_FILE] {
        let path = hub.dir.join(REPO).join(name);
        fs::remove_file(&path).unwrap();
        symlink(outside.join("secret"), &path).unwrap();
        assert_eq!(exit_code(&upload(&hub, 2).unwrap_err()), 2, "{name}");
        fs::remove_file(&path).unwrap();
    }
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
}

#[test]
fn a_damaged_line_is_an_error_and_a_lost_one_costs_no_commit() {
    let (_dir, hub) = hub();
    let first = upload(&hub, 1).unwrap();
    let second = upload(&hub, 2).unwrap();
    let line = hub.dir.join(REPO).join(LINE_FILE);
    let text = fs::read_to_string(&line).unwrap();
    let hostile = format!("{text}{{\"commit\":\"../../..\",\"message\":\"\"}}\n");
    for damaged in [hostile, text[..text.len() - 5].to_owned(), format!("\n{text}")] {
        fs::write(&line, damaged).unwrap();
        let error = hub.commits(REPO).unwrap_err().to_string();
        assert!(error.contains("commits.jsonl is damaged at line"), "{error}");
        assert!(upload(&hub, 3).is_err());
    }
    fs::remove_file(&line).unwrap();
    assert_eq!(hub.commits(REPO).unwrap(), Vec::<String>::new());
    assert_eq!(upload(&hub, 1).unwrap(), first);
    assert_eq!(upload(&hub, 2).unwrap(), second);
    assert_eq!((hub.commits(REPO).unwrap(), leftovers(&hub)), (vec![second, first], BTreeSet::new()));
}

#[test]
fn a_hub_that_cannot_be_written_is_refused_before_anything_is_made() {
    let (_dir, hub) = hub();
    hub.check_writable(REPO).unwrap();
    assert_eq!(fs::read_dir(&hub.dir).unwrap().count(), 0, "asking makes nothing");
    fs::write(hub.dir.join("miner"), "a file where the namespace should be").unwrap();
    fs::create_dir(hub.dir.join("other")).unwrap();
    fs::write(hub.dir.join("other/model"), "a file where the repository should be").unwrap();
    for repo_id in [REPO, "other/model"] {
        for error in [hub.check_writable(repo_id), upload(&hub, 1).map(drop)].map(Result::unwrap_err) {
            assert!(exit_code(&error) == 2 && error.to_string().contains("cannot be written"), "{error}");
        }
    }
    fs::create_dir_all(hub.dir.join("third/model").join(LOCK_FILE)).unwrap();
    let error = hub.check_writable("third/model").unwrap_err();
    assert!(exit_code(&error) == 2 && error.to_string().contains(".lock is no regular file"), "{error}");
    // Root may write everywhere, others may not: the answer is what the system would do.
    fs::set_permissions(&hub.dir, Permissions::from_mode(0o555)).unwrap();
    let can_write = fs::create_dir(hub.dir.join("probe")).is_ok();
    assert_eq!(hub.check_writable("fourth/model").is_ok(), can_write);
    fs::set_permissions(&hub.dir, Permissions::from_mode(0o755)).unwrap();
}

/// The change that adds a large file, takes away one, and leaves the model as it is.
fn change(hub: &FolderHub, parent: Option<&str>, from: &Path) -> Result<Changed> {
    let sum = FileSum { bytes: 5, sha256: hex::write(Sha256::digest(b"large"))[2..].to_owned() };
    let add = [
        ("large.bin".to_owned(), Addition::File(from.to_owned(), sum)),
        ("notes.txt".to_owned(), Addition::Bytes("notes".into())),
    ];
    let (add, delete) = (BTreeMap::from(add), ["config.json".to_owned()]);
    hub.change(&Change { repo_id: REPO, parent, add: &add, delete: &delete, message: "a change" })
}

#[test]
fn a_change_killed_anywhere_and_repeated_makes_exactly_one_commit() {
    let scratch = folder(&[("large", b"large")]);
    let from = scratch.path().join("large");
    let (_dir, peer) = hub();
    let parent = upload(&peer, 1).unwrap();
    let Changed::Made(expected) = change(&peer, Some(&parent), &from).unwrap() else { panic!("nothing was made") };
    let mut num_operations = 0;
    loop {
        let (_dir, mut hub) = hub();
        upload(&hub, 1).unwrap();
        hub.disk.kill_after(num_operations);
        let finished = change(&hub, Some(&parent), &from).is_ok();
        hub.disk = Disk::default();
        if hub.commits(REPO).unwrap().len() == 1 {
            assert_eq!(change(&hub, Some(&parent), &from).unwrap(), Changed::Made(expected.clone()));
        }
        // Whoever could not know that it was done is told so.
        assert_eq!(change(&hub, Some(&parent), &from).unwrap(), Changed::Stale);
        assert_eq!(hub.commits(REPO).unwrap(), [expected.clone(), parent.clone()]);
        assert_eq!(leftovers(&hub), BTreeSet::new());
        assert_eq!(fs::read(&from).unwrap(), b"large");
        if finished {
            break;
        }
        num_operations += 1;
    }
    assert!(num_operations >= 8, "{num_operations}");
}

#[test]
fn a_change_links_what_stays_and_writes_down_the_sums_of_all() {
    use std::os::unix::fs::MetadataExt;
    let scratch = folder(&[("large", b"large")]);
    let (_dir, hub) = hub();
    let parent = upload(&hub, 1).unwrap();
    let Changed::Made(commit) = change(&hub, None, &scratch.path().join("large")).unwrap() else { panic!("not made") };
    let inode = |commit: &str| fs::metadata(hub.dir.join(REPO).join(commit).join("model.safetensors")).unwrap().ino();
    assert_eq!(inode(&parent), inode(&commit));
    for file in hub.files(REPO, &commit).unwrap() {
        let content = downloaded(&hub, &commit, &file.path);
        assert_eq!(file.sum, Some(Checksum::Sha256(Sha256::digest(content).into())), "{}", file.path);
        let mode = fs::metadata(hub.dir.join(REPO).join(&commit).join(&file.path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o444);
    }
    let names: Vec<_> = hub.files(REPO, &commit).unwrap().into_iter().map(|file| file.path).collect();
    assert_eq!(names, ["large.bin", "model.safetensors", "notes.txt"]);
    let absent = Change { repo_id: REPO, parent: None, add: &BTreeMap::new(), delete: &["x".to_owned()], message: "" };
    assert_eq!(hub.change(&absent).unwrap(), Changed::Missing("x".to_owned()));
    assert_eq!(exit_code(&hub.change(&Change { repo_id: "miner/other", ..absent }).unwrap_err()), 4);
    let outside = BTreeMap::from([("../x".to_owned(), Addition::Bytes("x".into()))]);
    let outside = Change { repo_id: REPO, parent: None, add: &outside, delete: &[], message: "" };
    assert_eq!(exit_code(&hub.change(&outside).unwrap_err()), 2);
    assert_eq!((hub.newest_commit(REPO).unwrap(), leftovers(&hub)), (Some(commit), BTreeSet::new()));
}

#[test]
fn a_private_repository_is_never_seen_by_others_wherever_its_making_is_killed() {
    let model = model(1);
    for num_operations in 0..20 {
        let (_dir, mut hub) = hub();
        let upload = |hub: &FolderHub| {
            hub.upload(&Upload { private: true, ..Upload::new(REPO, model.path(), &NAMES, "a model") })
        };
        hub.disk.kill_after(num_operations);
        let _ = upload(&hub);
        hub.disk = Disk::default();
        let is_seen =
            |hub: &FolderHub| hub.newest_commit(REPO).unwrap().is_some() && hub.is_private(REPO).unwrap() != Some(true);
        assert!(!is_seen(&hub), "{num_operations}");
        upload(&hub).unwrap();
        assert!(!is_seen(&hub), "{num_operations}");
        assert!(!hub.create_repository(REPO, false, &[("a", b"a")]).unwrap(), "it was made twice");
        assert_eq!(hub.is_private(REPO).unwrap(), Some(true));
    }
}

#[test]
fn a_repository_is_created_once_with_its_first_files() {
    let (_dir, hub) = hub();
    assert!(hub.create_repository(REPO, false, &[(".gitattributes", b"x")]).unwrap());
    let first = hub.commits(REPO).unwrap();
    assert!(!hub.create_repository(REPO, true, &[(".gitattributes", b"y")]).unwrap());
    assert_eq!((hub.commits(REPO).unwrap(), hub.is_private(REPO).unwrap()), (first.clone(), Some(false)));
    // What hubs put into each repository is no part of a model.
    let commit = upload(&hub, 1).unwrap();
    assert_eq!(hub.commits(REPO).unwrap(), [commit, first[0].clone()]);
}

/// Somebody who wanted it private was killed before its first commit.
#[test]
fn a_public_repository_is_seen_whatever_an_earlier_attempt_has_left() {
    let model = model(1);
    let makers: [&dyn Fn(&FolderHub); 2] =
        [&|hub| drop(hub.upload(&Upload::new(REPO, model.path(), &NAMES, "a model")).unwrap()), &|hub| {
            assert!(hub.create_repository(REPO, false, &[("config.json", b"{}")]).unwrap())
        }];
    for make in makers {
        let (_dir, hub) = hub();
        fs::create_dir_all(hub.dir.join(REPO)).unwrap();
        fs::write(hub.dir.join(REPO).join(PRIVATE_FILE), "").unwrap();
        make(&hub);
        assert_eq!(hub.is_private(REPO).unwrap(), Some(false));
    }
}
