#![allow(clippy::unwrap_used)]

use std::fs::File;

use tempfile::TempDir;

use super::*;

const BYTES: usize = 1000;

/// A model of a thousand bytes that was last used so many minutes ago.
fn make(cache: &Cache, repository: &str, name: &str, minutes: u64) -> PathBuf {
    let dir = cache.dir().join(repository).join(name);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("model.safetensors"), [0; BYTES]).unwrap();
    for path in [dir.join("model.safetensors"), dir.clone()] {
        File::open(path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(60 * minutes)).unwrap();
    }
    dir
}

fn world(budget: usize) -> (TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(&dir.path().join("cache")).with_budget(Some(budget as u64));
    (dir, cache)
}

fn commit(digit: char) -> String {
    digit.to_string().repeat(40)
}

#[test]
fn the_longest_unused_go_first_and_only_as_many_as_must() {
    let (_dir, cache) = world(3 * BYTES);
    let young = make(&cache, "a--a", &commit('1'), 4);
    let oldest = make(&cache, "a--a", &commit('2'), 60);
    let older = make(&cache, "b--b", &commit('3'), 50);
    let old = make(&cache, "b--b", &commit('4'), 40);
    let is_there = || [&young, &oldest, &older, &old].map(|dir| dir.exists());
    let nowhere = Path::new("");
    cache.make_room(0, nowhere);
    assert_eq!(is_there(), [true, false, true, true]);
    cache.make_room(0, nowhere);
    assert_eq!(is_there(), [true, false, true, true]);
    cache.make_room(1, nowhere);
    assert_eq!(is_there(), [true, false, false, true]);
    // What anybody may be about to read stays, whatever is needed.
    cache.make_room(1 << 40, nowhere);
    assert_eq!(is_there(), [true, false, false, false]);
}

#[test]
fn what_is_in_use_or_worked_on_stays_and_parts_go_like_models() {
    let (_dir, cache) = world(0);
    let used = make(&cache, "a--a", &commit('1'), 60);
    let part = make(&cache, "a--a", &format!("{PART}{}", commit('2')), 10);
    let worked_on = make(&cache, "b--b", &commit('3'), 50);
    let own = make(&cache, "c--c", &commit('4'), 50);
    let notes = make(&cache, "c--c", "notes", 50);
    let id: ModelId = format!("a:a:{}:hash", commit('1')).parse().unwrap();
    let _locks = ["b--b", "c--c"]
        .map(|repository| lock::wait(&cache.dir().join(repository).join(LOCK_FILE), Duration::ZERO).unwrap().unwrap());
    cache.use_only([&id]);
    // The second lock is the caller's own.
    cache.make_room(0, &cache.dir().join("c--c"));
    assert_eq!([&used, &part, &worked_on, &own, &notes].map(|dir| dir.exists()), [true, false, true, false, true]);
    cache.use_only([]);
    cache.make_room(0, Path::new(""));
    assert!(!used.exists() && worked_on.exists());
}

/// As a process leaves it that was killed between giving a model another name and removing it.
#[test]
fn what_was_left_half_deleted_is_in_nobodys_way() {
    let (_dir, cache) = world(0);
    let left = make(&cache, "a--a", &format!("{TEMPORARY}deleted-0"), 1);
    let model = make(&cache, "a--a", &commit('1'), 60);
    cache.make_room(0, Path::new(""));
    assert!(!model.exists() && !left.exists());
}

#[test]
fn without_a_budget_all_stays() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let model = make(&cache, "a--a", &commit('1'), 60);
    cache.make_room(u64::MAX, Path::new(""));
    assert!(model.exists());
}
