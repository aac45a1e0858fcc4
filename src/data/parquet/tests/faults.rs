//! Whatever goes wrong on the way from a hub, the same documents come, or an error that says what does not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::remote::{hub, range, serve, shards};
use super::*;
use crate::error::exit_code;
use crate::hub::huggingface::tests::server::{Reply, Request};
use crate::interrupt::{Stop, StopOnDrop};

/// What can go wrong with an answer.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Cut,
    CutSoon,
    TooMany,
    ServerError,
    Slow,
    Garbage,
    FlippedBit,
    OtherEtag,
    OtherSize,
    OtherRange,
    Short,
    Long,
    LongWithoutLength,
    Whole,
    WebPage,
    NotThere,
    NotSatisfiable,
}

const FAULTS: [Fault; 17] = [
    Fault::Cut,
    Fault::CutSoon,
    Fault::TooMany,
    Fault::ServerError,
    Fault::Slow,
    Fault::Garbage,
    Fault::FlippedBit,
    Fault::OtherEtag,
    Fault::OtherSize,
    Fault::OtherRange,
    Fault::Short,
    Fault::Long,
    Fault::LongWithoutLength,
    Fault::Whole,
    Fault::WebPage,
    Fault::NotThere,
    Fault::NotSatisfiable,
];

impl Fault {
    fn on(self, request: &Request, right: Reply) -> Reply {
        let (first, last) = range(request);
        let len = last + 1 - first;
        let answer = |body: Vec<u8>| {
            let reply = Reply::new(206, body).header("etag", "\"right\"");
            reply.header("content-range", right.header_value("content-range").unwrap())
        };
        let mut body = right.body().to_vec();
        match self {
            Self::Cut => right.cut(len / 2),
            Self::CutSoon => right.cut(1),
            Self::TooMany => Reply::new(429, "").header("retry-after", "0"),
            Self::ServerError => Reply::new(500, "{\"error\":\"not now\"}"),
            Self::Slow => right.drip(Duration::from_millis(1)),
            Self::Garbage => answer((0..len).map(|number| (number * 7) as u8).collect()),
            Self::FlippedBit => {
                // In the text, which has a checksum.
                body[len / 2] ^= 1;
                answer(body)
            }
            Self::OtherEtag => {
                let reply = Reply::new(206, vec![b'x'; len]).header("etag", "\"other\"");
                reply.header("content-range", right.header_value("content-range").unwrap())
            }
            Self::OtherSize => {
                let reply = Reply::new(206, body).header("etag", "\"right\"");
                reply.header("content-range", format!("bytes {first}-{last}/99999999"))
            }
            Self::OtherRange => {
                let reply = Reply::new(206, body).header("etag", "\"right\"");
                reply.header("content-range", format!("bytes {}-{}/99999999", first + 1, last + 1))
            }
            Self::Short => answer(body[..len / 2].to_vec()),
            Self::Long => answer([body, vec![0; 9]].concat()),
            Self::LongWithoutLength => answer([body, vec![0; 9]].concat()).length(None),
            Self::Whole => Reply::new(200, body).header("etag", "\"right\""),
            Self::WebPage => Reply::new(200, "<html>").header("content-type", "text/html"),
            Self::NotThere => Reply::new(404, "not a hub's words"),
            Self::NotSatisfiable => Reply::new(416, ""),
        }
    }
}

/// Each fault in every second answer to a request for text.
#[test]
fn no_fault_changes_the_documents() {
    let (shards, rows) = shards();
    let (folder, num_faults) = (TempDir::new().unwrap(), Arc::new(AtomicUsize::new(0)));
    let expected = texts(&rows, |row| !SetAside::new(3).holds(row));
    for fault in FAULTS {
        num_faults.store(0, Ordering::SeqCst);
        let counter = Arc::clone(&num_faults);
        let server = serve(&shards, move |request, right| match counter.fetch_add(1, Ordering::SeqCst) {
            // The footers are known but to the first.
            number if number >= 3 && number % 2 == 1 => fault.on(request, right),
            _ => right,
        });
        let (training, _) =
            open(hub(&server), options(&folder, 3)).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        num_faults.store(3, Ordering::SeqCst);
        assert!(read(&training) == expected, "{fault:?}");
        assert!(num_faults.load(Ordering::SeqCst) >= 3 + 12, "{fault:?}");
    }
}

/// Each fault in the first answer to a request for a footer.
#[test]
fn footers_are_read_again_too() {
    let (shards, _) = shards();
    // A footer has no checksum, and a whole file that is no more than was asked for is right.
    for fault in FAULTS.into_iter().filter(|fault| !matches!(fault, Fault::FlippedBit | Fault::Whole)) {
        let folder = TempDir::new().unwrap();
        let counter = AtomicUsize::new(0);
        let server = serve(&shards, move |request, right| match counter.fetch_add(1, Ordering::SeqCst) {
            0 => fault.on(request, right),
            _ => right,
        });
        let (training, _) =
            open(hub(&server), options(&folder, 3)).unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_eq!(training.num_shards(), 6, "{fault:?}");
        assert!(server.requests().len() > 6, "{fault:?}");
    }
}

#[test]
fn what_stays_wrong_is_an_error_that_names_it() {
    let (shards, _) = shards();
    let folder = TempDir::new().unwrap();
    for fault in FAULTS.into_iter().filter(|fault| !matches!(fault, Fault::Cut | Fault::Slow)) {
        let counter = AtomicUsize::new(0);
        let server = serve(&shards, move |request, right| {
            // Text, and not a footer, which is at the end of its file.
            let last = range(request).1;
            let is_text = !right.header_value("content-range").unwrap().ends_with(&format!("-{last}/{}", last + 1));
            match is_text && counter.fetch_add(1, Ordering::SeqCst) > 0 {
                true => fault.on(request, right),
                false => right,
            }
        });
        let (training, _) = open(hub(&server), options(&folder, 3)).unwrap();
        drop(training.documents(0, 0, None));
        let before = server.requests().len();
        let error = training.documents(1, 0, None).err().unwrap_or_else(|| panic!("{fault:?}"));
        // What comes, and is not what was written, is no outage, which training would wait out.
        let is_damage = matches!(fault, Fault::Garbage | Fault::FlippedBit | Fault::OtherEtag);
        assert_eq!(exit_code(&error), if is_damage { 2 } else { 3 }, "{fault:?}: {error}");
        assert_eq!(error.to_string().contains("Leave that file out by data.shards"), is_damage, "{fault:?}: {error}");
        assert!(error.to_string().starts_with("row group 2 of data/part 0.parquet of lab/web "), "{fault:?}: {error}");
        let num_tries = server.requests().len() - before;
        assert!((4..=16).contains(&num_tries), "{fault:?}: {num_tries}");
    }
}

#[test]
fn a_fault_of_one_etag_does_not_make_the_right_one_wrong() {
    let (shards, rows) = shards();
    let folder = TempDir::new().unwrap();
    drop(open(hub(&serve(&shards, |_, reply| reply)), options(&folder, 3)).unwrap());
    // The very first answer has the other ETag, and right bytes.
    let server = serve(&shards, |request, right| {
        let content_range = right.header_value("content-range").unwrap();
        match request.index {
            3 => Reply::new(206, right.body()).header("content-range", content_range).header("etag", "\"other\""),
            _ => right,
        }
    });
    let (training, _) = open(hub(&server), options(&folder, 3)).unwrap();
    assert_eq!(read(&training), texts(&rows, |row| !SetAside::new(3).holds(row)));
}

/// The server has another copy of the file, from after its first answers on.
#[test]
fn etags_that_changed_for_good_are_taken_when_it_is_tried_again() {
    let (shards, rows) = shards();
    let folder = TempDir::new().unwrap();
    let server = serve(&shards, |request, right| {
        let content_range = right.header_value("content-range").unwrap();
        let etag = if request.index < 12 { "\"right\"" } else { "\"other\"" };
        Reply::new(206, right.body()).header("content-range", content_range).header("etag", etag)
    });
    let (training, _) = open(hub(&server), options(&folder, 3)).unwrap();
    // Of the first file, whose footer was one.
    (0..6).for_each(|_| drop(training.documents(0, 0, None).unwrap()));
    let error = training.documents(0, 0, None).err().unwrap();
    assert!(exit_code(&error) == 3 && error.to_string().contains("its ETag has changed"), "{error}");
    assert_eq!(
        training.documents(0, 0, None).unwrap().map(Result::unwrap).collect::<Vec<_>>(),
        texts(&rows[..1_400], |row| row >= 1_000)
    );
}

#[test]
fn pages_of_a_kind_that_is_not_read_are_told_soon() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.parquet");
    write(&path, &rows(7, 2_000), 1_000, codecs()[0]);
    let whole = std::fs::read(&path).unwrap();
    // The encodings of values and, twice, of levels, in the header of the second row group's page.
    let encodings = [0x15, 0, 0x15, 6, 0x15, 6, 0, 0];
    let at = whole.windows(encodings.len()).rposition(|window| window == encodings).unwrap();
    for (place, encoding, reason) in [
        (1, 18, "a page has an encoding of number 9, which is none for text that assay reads"),
        (3, 8, "a page has levels of an encoding of number 4, which assay does not read"),
    ] {
        let mut other = whole.clone();
        other[at + place] = encoding;
        let server = serve(&Arc::new([("a.parquet".to_owned(), other)].into()), |_, right| right);
        let (training, _) = open(hub(&server), options(&TempDir::new().unwrap(), 2)).unwrap();
        let before = server.requests().len();
        let error = training.documents(0, 0, None).err().unwrap();
        let expected = format!("row group 1 of a.parquet of lab/web cannot be read: {reason}. Leave that file out");
        assert!(exit_code(&error) == 2 && error.to_string().starts_with(&expected), "{error}");
        assert_eq!(server.requests().len() - before, 2);
    }
}

#[test]
fn an_orderly_end_is_soon() {
    let (shards, _) = shards();
    let folder = TempDir::new().unwrap();
    let is_slow = Arc::new(AtomicUsize::new(0));
    let slow = Arc::clone(&is_slow);
    let server = serve(&shards, move |_, right| match slow.load(Ordering::SeqCst) {
        0 => right,
        _ => right.drip(Duration::from_millis(20)),
    });
    let (training, _) = open(hub(&server), options(&folder, 3)).unwrap();
    is_slow.store(1, Ordering::SeqCst);
    let stop = Stop::default();
    let to_stop = stop.clone();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        drop(StopOnDrop(to_stop));
    });
    stop.watch();
    let start = Instant::now();
    let error = training.documents(0, 0, None).err().unwrap();
    assert!(exit_code(&error) == 130 && start.elapsed() < Duration::from_secs(1), "{error}");
    // As well while footers are read.
    let error = open(hub(&server), options(&TempDir::new().unwrap(), 3)).err().unwrap();
    assert!(exit_code(&error) == 130 && start.elapsed() < Duration::from_secs(2), "{error}");
    Stop::default().watch();
}
