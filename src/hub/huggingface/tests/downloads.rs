//! Downloads over connections that end anywhere: the right file comes at last, once, and to its place.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::server::{Reply, Server};
use super::*;
use crate::error::exit_code;
use crate::hub::Checksum;
use crate::hub::huggingface::answer::Refusal;
use crate::hub::huggingface::fault::Fault;
use crate::hub::progress::{Progress, Told};
use crate::interrupt::StopOnDrop;

pub(super) const ETAG: &str = "\"v1\"";

/// A folder for downloads in one of its own, so that what is written beside it is seen.
pub(super) struct Place {
    root: TempDir,
}

impl Place {
    pub(super) fn new() -> Self {
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        fs::create_dir(root.path().join("into")).unwrap();
        Self { root }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("into")
    }

    /// Where the file comes to lie.
    pub(super) fn path(&self) -> PathBuf {
        self.dir().join("model.safetensors")
    }

    /// Whether just these files are there, and nothing beside their folder.
    pub(super) fn holds(&self, names: &[&str]) -> bool {
        names_in(self.root.path()) == ["into"] && names_in(&self.dir()) == names
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

/// A file with the SHA-256 of its content.
pub(super) fn file(content: &[u8]) -> RemoteFile {
    let sum = Some(Checksum::Sha256(Sha256::digest(content).into()));
    RemoteFile { path: "model.safetensors".to_owned(), bytes: content.len() as u64, sum }
}

pub(super) fn download(hub: &HuggingFace, file: &RemoteFile, place: &Place) -> Result<Sha256Sum> {
    Ok(hub.download(REPO, &commit(), &[file], &place.dir())?[0])
}

#[test]
fn a_file_cut_at_random_points_comes_whole_and_once() {
    let mut random_numbers = fastrand::Rng::with_seed(8);
    let (mut num_cuts, mut least_sent, mut most_sent) = (0, u64::MAX, 0);
    for trial in 0..100 {
        let content = random(trial, random_numbers.usize(1..400_000));
        let wanted = file(&content);
        let len = content.len();
        let cuts = Mutex::new(fastrand::Rng::with_seed(trial));
        let server = Server::start(move |request| {
            // Most connections end somewhere on the way, some of them before the first byte.
            let cut = cuts.lock().unwrap().usize(0..len + len / 4);
            Reply::file(request, &content, ETAG).cut(if request.index % 8 == 7 { usize::MAX } else { cut })
        });
        let place = Place::new();
        // In every second trial the process is another one after each cut.
        let tries = if trial % 2 == 0 { 8 } else { 1 };
        let patient = Patience { tries, ..patience() };
        let hub = || HuggingFace::new(Options { patience: patient.clone(), ..options(&server) }).unwrap();
        let mut client = hub();
        let sum = loop {
            match download(&client, &wanted, &place) {
                Ok(sum) => break sum,
                Err(error) => assert!(trial % 2 == 1 && exit_code(&error) == 3, "{trial}: {error:#}"),
            }
            assert!(place.holds(&["model.safetensors"]));
            client = hub();
        };
        assert_eq!(Some(Checksum::Sha256(sum)), wanted.sum);
        let arrived = fs::read(place.path()).unwrap();
        assert_eq!(Some(Checksum::Sha256(Sha256::digest(arrived).into())), wanted.sum, "{trial}");
        assert!(place.holds(&["model.safetensors"]));
        num_cuts += server.requests().len() - 1;
        (least_sent, most_sent) =
            (least_sent.min(server.num_sent() * 100 / len as u64), most_sent.max(server.num_sent() * 100 / len as u64));
    }
    assert!(num_cuts >= 50, "only {num_cuts} cuts");
    assert!(least_sent >= 100 && most_sent <= 105, "{least_sent} to {most_sent} % of a file were sent");
}

#[test]
fn a_connection_that_falls_silent_is_left_for_another_one() {
    let content = random(1, 100_000);
    let wanted = file(&content);
    let server = Server::start(move |request| {
        let reply = Reply::file(request, &content, ETAG);
        if request.index == 0 { reply.cut(50_000).linger(Duration::from_millis(1500)) } else { reply }
    });
    let place = Place::new();
    download(&client(&server), &wanted, &place).unwrap();
    assert_eq!(server.requests().iter().map(super::server::Request::start).collect::<Vec<_>>(), [0, 50_000]);
    assert_eq!(server.requests()[1].header("if-range"), Some(ETAG));
}

#[test]
fn a_server_without_ranges_and_a_file_that_changes_are_begun_anew() {
    let [old, new] = [1, 2].map(|seed| random(seed, 200_000));
    let wanted = file(&new);
    let place = Place::new();
    let content = new.clone();
    let server = Server::start(move |request| {
        let reply = Reply::new(200, content.as_slice());
        if request.index == 0 { reply.cut(150_000) } else { reply }
    });
    download(&client(&server), &wanted, &place).unwrap();
    assert_eq!(server.requests()[1].start(), 150_000);
    assert!(fs::read(place.path()).unwrap() == new);

    let place = Place::new();
    let content = new.clone();
    let server = Server::start(move |request| match request.index {
        0 => Reply::file(request, &old, "\"old\"").cut(150_000),
        _ => Reply::file(request, &content, "\"new\""),
    });
    download(&client(&server), &wanted, &place).unwrap();
    assert!(fs::read(place.path()).unwrap() == new);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_part_of_before_is_gone_on_with_and_a_wrong_one_replaced() {
    let content = random(1, 100_000);
    let wanted = file(&content);
    let served = content.clone();
    let server = Server::start(move |request| Reply::file(request, &served, ETAG));
    let place = Place::new();
    let path = place.path();
    let hub = client(&server);
    for (there, starts) in [
        (content[..70_000].to_vec(), vec![70_000]),
        (content.clone(), vec![]),
        (random(2, 70_000), vec![70_000, 0]),
        (random(2, 100_000), vec![0]),
        (random(2, 100_001), vec![0]),
    ] {
        let before = server.requests().len();
        fs::write(&path, there).unwrap();
        download(&hub, &wanted, &place).unwrap();
        assert!(fs::read(&path).unwrap() == content);
        assert_eq!(server.requests()[before..].iter().map(super::server::Request::start).collect::<Vec<_>>(), starts);
    }
    // Without a sum nobody would see that a part is another file's.
    fs::write(&path, random(2, 70_000)).unwrap();
    download(&hub, &RemoteFile { sum: None, ..wanted }, &place).unwrap();
    assert!(fs::read(&path).unwrap() == content);
}

#[test]
fn small_files_are_held_against_the_name_that_git_gives_them() {
    for content in [random(3, 1000), Vec::new()] {
        let served = content.clone();
        let server = Server::start(move |request| Reply::file(request, &served, ETAG));
        let blob = Sha1::digest([format!("blob {}\0", content.len()).as_bytes(), content.as_slice()].concat());
        let with = |sum: [u8; 20]| RemoteFile { sum: Some(Checksum::GitBlob(sum)), ..file(&content) };
        let place = Place::new();
        let sum = download(&client(&server), &with(blob.into()), &place).unwrap();
        assert_eq!(sum, <Sha256Sum>::from(Sha256::digest(&content)));
        assert_eq!(server.requests().len(), usize::from(!content.is_empty()));
        assert_eq!(exit_code(&download(&client(&server), &with([1; 20]), &place).unwrap_err()), 3);
        assert!(place.holds(&[]));
    }
}

#[test]
fn nothing_is_written_outside_or_through_a_link() {
    let content = random(1, 1000);
    let served = content.clone();
    let server = Server::start(move |request| Reply::file(request, &served, ETAG));
    let hub = client(&server);
    let place = Place::new();
    for path in ["../x", "/tmp/x", "a/b", "..", ".", "", "a\0b", "a\\b", "//x", "into/../../x"] {
        let error = download(&hub, &RemoteFile { path: path.to_owned(), ..file(&content) }, &place).unwrap_err();
        assert!(exit_code(&error) == 4 && error.to_string().contains("no name of a file here"), "{path}: {error}");
    }
    assert!(place.holds(&[]) && server.requests().is_empty());

    let outside = TempDir::new().unwrap();
    let (other, path) = (outside.path().join("other"), place.path());
    fs::write(&other, "theirs").unwrap();
    let links: [&dyn Fn(); 3] =
        [&|| symlink(&other, &path).unwrap(), &|| symlink(outside.path().join("new"), &path).unwrap(), &|| {
            fs::hard_link(&other, &path).or_else(|_| symlink(&other, &path)).unwrap()
        }];
    for link in links {
        link();
        download(&hub, &file(&content), &place).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_file() && fs::read(&path).unwrap() == content);
        assert_eq!(
            (names_in(outside.path()), fs::read(&other).unwrap()),
            (vec!["other".to_owned()], b"theirs".to_vec())
        );
        fs::remove_file(&path).unwrap();
    }
    fs::create_dir(&path).unwrap();
    assert_eq!(exit_code(&download(&hub, &file(&content), &place).unwrap_err()), 1);
}

#[test]
fn whoever_shows_it_hears_how_far_it_is() {
    let content = random(1, 300_000);
    let [first, second] = ["a", "b"].map(|path| RemoteFile { path: path.to_owned(), ..file(&content) });
    let server = Server::start(move |request| {
        let reply = Reply::file(request, &content, ETAG);
        if request.index == 0 { reply.cut(100_000) } else { reply }
    });
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    let observer = Observer::new(move |told| match told {
        Told::Progress(Progress { what, done_bytes, total_bytes }) => {
            assert_eq!((what, total_bytes), ("downloading miner/model", 600_000));
            ear.lock().unwrap().push(done_bytes);
        }
        Told::Ended(what) => {
            assert_eq!(what, "downloading miner/model");
            ear.lock().unwrap().push(u64::MAX);
        }
        Told::Waits(why) | Told::Warns(why) => panic!("{why}"),
    });
    let hub = HuggingFace::new(Options { observer, ..options(&server) }).unwrap();
    hub.download(REPO, &commit(), &[&first, &second], &Place::new().dir()).unwrap();
    let heard = heard.lock().unwrap();
    assert!(heard.is_sorted() && heard.contains(&300_000) && heard.ends_with(&[600_000, u64::MAX]), "{heard:?}");
}

/// Whoever wanted it has gone: the server would take minutes, and then has us wait for minutes.
#[test]
fn a_download_for_nobody_ends_soon() {
    let content = random(1, 300_000);
    let wanted = file(&content);
    let slow = Server::start({
        let content = content.clone();
        move |request| Reply::file(request, &content, ETAG).drip(Duration::from_millis(1))
    });
    let busy = Server::start(|_| Reply::new(429, "").header("retry-after", "300"));
    for server in [slow, busy] {
        let minutes = Duration::from_secs(600);
        let patience = Patience { longest_pause: minutes, stall: minutes, ..patience() };
        let hub = HuggingFace::new(Options { patience, ..options(&server) }).unwrap();
        let end = StopOnDrop::default();
        let (stop, started) = (end.0.clone(), Instant::now());
        thread::scope(|scope| {
            let bringing = scope.spawn(|| {
                stop.watch();
                download(&hub, &wanted, &Place::new()).unwrap_err()
            });
            while server.requests().is_empty() {
                thread::sleep(Duration::from_millis(5));
            }
            thread::sleep(Duration::from_millis(100));
            drop(end);
            assert_eq!(exit_code(&bringing.join().unwrap()), 130);
        });
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }
}

#[test]
fn a_long_pause_is_told_with_its_reason() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&told);
    let observer = Observer::new(move |told| ear.lock().unwrap().push(format!("{told:?}")));
    let server = Server::start(|_| Reply::new(200, ""));
    let hub = HuggingFace::new(Options { observer, ..options(&server) }).unwrap();
    let seconds = Duration::from_secs;
    thread::scope(|scope| {
        scope.spawn(|| {
            // Nobody waits here.
            let end = StopOnDrop::default();
            end.0.clone().watch();
            drop(end);
            let asked = Refusal { asked_pause: Some(seconds(300)), ..Refusal::told(StatusCode::TOO_MANY_REQUESTS, "") };
            let busy = Refusal::told(StatusCode::BAD_GATEWAY, "");
            for (pause, fault) in [
                (300, Fault::Refused(asked)),
                (16, Fault::Refused(busy)),
                (16, Fault::Lost("no answer".to_owned())),
                (1, Fault::Lost("no answer".to_owned())),
            ] {
                assert!(hub.runtime.block_on(hub.http.rest(seconds(pause), &fault)).is_err());
            }
        });
    });
    let at = server.endpoint();
    let expected = [
        format!("Waits(\"{at} asks to wait; trying again in 300 s\")"),
        format!("Waits(\"{at} says 502 Bad Gateway; trying again in 16 s\")"),
        format!("Waits(\"{at} would not answer (no answer); trying again in 16 s\")"),
    ];
    assert_eq!(*told.lock().unwrap(), expected);
}

#[test]
fn all_downloads_together_keep_to_the_rate() {
    let content = random(1, 500_000);
    let wanted = file(&content);
    let server = Server::start(move |request| Reply::file(request, &content, ETAG));
    let hub = HuggingFace::new(Options { max_bytes_per_second: Some(2_000_000), ..options(&server) }).unwrap();
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| download(&hub, &wanted, &Place::new()).unwrap());
        }
    });
    // Two million bytes, less the burst.
    assert!(started.elapsed() >= Duration::from_millis(740), "{:?}", started.elapsed());
}
