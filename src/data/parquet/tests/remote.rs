//! A hub with shards: what is asked of it, and what is kept.

use std::collections::BTreeMap;
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use super::*;
use crate::error::exit_code;
use crate::hub::huggingface::tests::server::{Reply, Request, Server};
use crate::hub::huggingface::{Patience, Token};
use crate::hub::progress::Observer;

pub(super) const DATASET: &str = "lab/web";
pub(super) const SECRET: &str = "hf_AbCdEfGhIjKlMnOpQrStUvWx";

pub(super) fn commit() -> String {
    "0123456789".repeat(4)
}

/// Shards by their paths.
pub(super) type Shards = Arc<BTreeMap<String, Vec<u8>>>;

/// Three shards of 2,000, 1,700 and 900 rows in row groups of 700, and all their rows.
pub(super) fn shards() -> (Shards, Vec<Row>) {
    let folder = TempDir::new().unwrap();
    let rows = rows(6, 4_600);
    let mut shards = BTreeMap::new();
    for (number, range) in [0..2_000, 2_000..3_700, 3_700..4_600].into_iter().enumerate() {
        let path = folder.path().join("a.parquet");
        write(&path, &rows[range], 700, codecs()[3 - number]);
        shards.insert(format!("data/part {number}.parquet"), std::fs::read(&path).unwrap());
    }
    (Arc::new(shards), rows)
}

/// A hub that answers as it should, but for what `change` makes of its answers to requests for files.
pub(super) fn serve(shards: &Shards, change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let shards = Arc::clone(shards);
    Server::start(move |request| {
        let tree = format!("/api/datasets/{DATASET}/tree/{}?recursive=true", commit());
        if request.path == format!("/api/datasets/{DATASET}/revision/refs%2Fmain") {
            return Reply::new(200, format!("{{\"sha\":\"{}\"}}", commit()));
        }
        if let Some(page) = request.path.strip_prefix(&tree) {
            // Two pages, of which the second has the last shard.
            let (start, next) = if page.is_empty() { (0, 2) } else { (2, 9) };
            let mut entries = vec![
                "{\"type\":\"directory\",\"path\":\"data\"}".to_owned(),
                "{\"type\":\"file\",\"path\":\"README.md\",\"size\":9}".to_owned(),
            ];
            entries.truncate(2 - start);
            entries.extend(shards.iter().skip(start).take(next - start).map(|(path, bytes)| {
                let (oid, size) = (&"ab".repeat(32), bytes.len());
                format!(
                    "{{\"type\":\"file\",\"path\":{path:?},\"size\":9,\"lfs\":{{\"oid\":\"{oid}\",\"size\":{size}}}}}"
                )
            }));
            let reply = Reply::new(200, format!("[{}]", entries.join(",")));
            return if start == 0 { reply.header("link", format!("<{tree}&cursor=2>; rel=\"next\"")) } else { reply };
        }
        change(request, file(&shards, request))
    })
}

/// The right answer to a request for a range of a file.
fn file(shards: &Shards, request: &Request) -> Reply {
    let path = request.path.strip_prefix(&format!("/datasets/{DATASET}/resolve/{}/", commit()));
    let path = path.map(|path| path.replace("%20", " "));
    let Some(bytes) = path.and_then(|path| shards.get(&path)) else { return Reply::refusal(404, "EntryNotFound") };
    let (first, last) = range(request);
    Reply::new(206, &bytes[first..=last])
        .header("content-range", format!("bytes {first}-{last}/{}", bytes.len()))
        .header("etag", "\"right\"")
}

/// First and last byte that a request asks for.
pub(super) fn range(request: &Request) -> (usize, usize) {
    let (first, last) = request.header("range").unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    (first.parse().unwrap(), last.parse().unwrap())
}

pub(super) fn hub(server: &Server) -> Place {
    let options = huggingface::Options {
        endpoint: server.endpoint(),
        token: Some(Token::new(SECRET, "the test").unwrap()),
        max_bytes_per_second: None,
        hashes: Default::default(),
        patience: Patience {
            connect: Duration::from_secs(2),
            answer: Duration::from_secs(2),
            stall: Duration::from_millis(300),
            tries: 4,
            first_pause: Duration::from_millis(2),
            longest_pause: Duration::from_secs(2),
        },
        observer: Default::default(),
    };
    Place::Hub { dataset: DATASET.to_owned(), revision: "refs/main".to_owned(), options: Box::new(options) }
}

/// Requests for files so far.
fn file_requests(server: &Server) -> Vec<Request> {
    server.requests().into_iter().filter(|request| request.path.contains("/resolve/")).collect()
}

#[test]
fn a_hub_is_read_as_a_folder_is() {
    let (shards, rows) = shards();
    let server = serve(&shards, |_, reply| reply);
    let folder = TempDir::new().unwrap();
    let (training, held_out) = open(hub(&server), options(&folder, 3)).unwrap();
    let rule = SetAside::new(3);
    assert_eq!(read(&training), texts(&rows, |row| !rule.holds(row)));
    assert_eq!(read(&held_out), texts(&rows, |row| rule.holds(row)));
    // A request for each footer, and one for each row group of each part.
    assert_eq!(file_requests(&server).len() as u64, 3 + training.num_shards() + held_out.num_shards());
    assert!(server.requests().iter().all(|request| request.header("authorization").unwrap().contains(SECRET)));
    let record = training.record().unwrap();
    assert_eq!((record["dataset"].as_str(), record["commit"].as_str()), (Some(DATASET), Some(&*commit())));
    assert_eq!(training.name(), "lab/web (3 shards)");
}

#[test]
fn footers_are_read_once_and_only_up_to_the_last_shard_that_is_read() {
    let (shards, rows) = shards();
    let server = serve(&shards, |_, reply| reply);
    let folder = TempDir::new().unwrap();
    let open_some = |glob: &str| {
        let mut options = options(&folder, 3);
        options.shards = vec![glob.to_owned()];
        let before = file_requests(&server).len();
        let (training, _) = open(hub(&server), options).unwrap();
        (training, file_requests(&server).len() - before)
    };
    assert_eq!(open_some("part 1*").1, 2);
    assert_eq!(open_some("part 0*").1, 0);
    let index = folder.path().join("cache/parquet").join(format!("lab--web-{}.jsonl", commit()));
    let known = std::fs::read_to_string(&index).unwrap();
    let (training, num_requests) = open_some("*");
    assert_eq!(num_requests, 1);
    let expected = texts(&rows, |row| !SetAside::new(3).holds(row));
    assert_eq!(read(&training), expected);
    let record = training.record();

    let whole = std::fs::read_to_string(&index).unwrap();
    assert!(whole.starts_with(&known) && whole.lines().filter(|line| !line.is_empty()).count() == 3, "{whole}");
    // A last line that is torn, digits that are not what they were, and what is no line at all.
    for (damaged, num_unknown) in [
        (whole[..whole.len() - 9].to_owned(), 1),
        (whole.replacen("[700,", "[701,", 1), 1),
        (format!("\0\n{whole}\n{{}}"), 0),
        (whole.replace("\"content\"", "\"contents\""), 3),
        (String::new(), 3),
    ] {
        assert_ne!(damaged, whole);
        std::fs::write(&index, &damaged).unwrap();
        for num_unknown in [num_unknown, 0] {
            let (training, num_requests) = open_some("*");
            assert_eq!((num_requests, training.record()), (num_unknown, record.clone()), "{damaged}");
        }
        assert!(std::fs::read_to_string(&index).unwrap().starts_with(&damaged));
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_done_without() {
    let (shards, rows) = shards();
    let server = serve(&shards, |_, reply| reply);
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("cache"), "no folder").unwrap();
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&warnings);
    let observer = Observer::new(move |told| heard.lock().unwrap().push(format!("{told:?}")));
    let Place::Hub { dataset, revision, options: hub } = hub(&server) else { unreachable!() };
    let place = Place::Hub { dataset, revision, options: Box::new(huggingface::Options { observer, ..*hub }) };
    let (training, _) = open(place, options(&folder, 3)).unwrap();
    assert_eq!(read(&training), texts(&rows, |row| !SetAside::new(3).holds(row)));
    let warnings = warnings.lock().unwrap();
    let expected = "Warns(\"the footers of lab/web are not kept, and will be read again: cannot read ";
    assert!(warnings.len() == 1 && warnings[0].starts_with(expected), "{warnings:?}");
}

#[test]
fn of_several_at_once_one_reads_the_footers() {
    let (shards, _) = shards();
    let server = serve(&shards, |_, reply| reply.delay(Duration::from_millis(30)));
    let folder = TempDir::new().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(open(hub(&server), options(&folder, 3)).unwrap().0.num_shards(), 6));
        }
    });
    assert_eq!(file_requests(&server).len(), 3);
}

#[test]
fn a_footer_larger_than_was_guessed_takes_another_request() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.parquet");
    // A row group for each row: a footer of more than 64 KiB.
    let rows = rows(1, 2_000);
    write(&path, &rows, 1, codecs()[0]);
    let shards = ["a.parquet", "b.parquet"].map(|name| (name.to_owned(), std::fs::read(&path).unwrap()));
    let shards = Arc::new(BTreeMap::from(shards));
    let server = serve(&shards, |_, reply| reply);
    let (training, _) = open(hub(&server), options(&folder, 3)).unwrap();
    assert_eq!(training.num_shards(), 2_000);
    let ranges: Vec<_> = file_requests(&server).iter().map(range).collect();
    assert!((3..=4).contains(&ranges.len()) && ranges[0].1 - ranges[0].0 == (64 << 10) - 1, "{ranges:?}");
    assert_eq!(
        training.documents(5, 0, None).unwrap().map(Result::unwrap).collect::<Vec<_>>(),
        texts(&rows[1_005..1_006], |_| true)
    );
}

#[test]
fn data_sets_that_are_not_there() {
    let (shards, _) = shards();
    let folder = TempDir::new().unwrap();
    let absent = Server::start(|_| Reply::refusal(401, "RepoNotFound"));
    let error = open(hub(&absent), options(&folder, 3)).err().unwrap();
    assert_eq!(exit_code(&error), 2);
    let expected = format!(
        "{} has no data set lab/web with a revision \"refs/main\", or none for us to see; one that is not public needs a token.",
        absent.endpoint()
    );
    // The hub does not know the token either.
    assert!(error.to_string() == expected || error.to_string().contains("does not take the token"), "{error}");

    let empty = serve(&Arc::default(), |_, reply| reply);
    let error = open(hub(&empty), options(&folder, 3)).err().unwrap();
    assert_eq!((exit_code(&error), error.to_string()), (2, "lab/web has no .parquet files".to_owned()));

    let server = serve(&shards, |_, reply| reply);
    for bad in ["web", "../../x", "a/b/c"] {
        let Place::Hub { revision, options: hub, .. } = hub(&server) else { unreachable!() };
        let place = Place::Hub { dataset: bad.to_owned(), revision, options: hub };
        let error = open(place, options(&folder, 3)).err().unwrap();
        assert_eq!(
            (exit_code(&error), error.to_string()),
            (2, format!("{bad:?} is no data set; write it as namespace/name."))
        );
    }
    assert!(server.requests().is_empty());
}

#[test]
fn files_are_read_where_the_hub_sends_and_without_the_token() {
    let (shards, rows) = shards();
    let elsewhere = serve(&shards, |_, reply| reply);
    let to = elsewhere.endpoint();
    let server = serve(&shards, move |request, _| Reply::redirect(format!("{to}{}", request.path)));
    let folder = TempDir::new().unwrap();
    let (training, _) = open(hub(&server), options(&folder, 3)).unwrap();
    assert_eq!(read(&training), texts(&rows, |row| !SetAside::new(3).holds(row)));
    let requests = elsewhere.requests();
    assert!(requests.len() > 3 && requests.iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn several_threads_read_at_once() {
    let (shards, rows) = shards();
    let folder = TempDir::new().unwrap();
    // No answer comes before all have asked.
    let barrier = Arc::new(Barrier::new(6));
    let server = serve(&shards, move |request, reply| {
        if request.index >= 6 {
            barrier.wait();
        }
        reply
    });
    let (training, _) = open(hub(&server), options(&folder, 3)).unwrap();
    assert_eq!((training.num_shards(), server.requests().len()), (6, 6));
    let documents = std::thread::scope(|scope| {
        let shards: Vec<_> = (0..training.num_shards())
            .map(|shard| (shard, &training))
            .map(|(shard, training)| {
                scope.spawn(move || training.documents(shard, 0, None).unwrap().collect::<Vec<_>>())
            })
            .collect();
        shards.into_iter().flat_map(|shard| shard.join().unwrap()).map(Result::unwrap).collect::<Vec<_>>()
    });
    assert_eq!(documents, texts(&rows, |row| !SetAside::new(3).holds(row)));
}
