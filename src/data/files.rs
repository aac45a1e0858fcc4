//! The user's own text files as a source: files, folders and globs; a file is a shard.
//!
//! Held-out documents are either files of their own (`data.held_out`), which training leaves out even if its own paths
//! name them too, or pages of the training files: page `p` of file `f` (both from 0) is held out when `f + p` is a
//! multiple of `data.held_out_every`. The rule needs no count of what lies before, so it holds in the middle of a
//! terabyte; it begins with the very first page, so that it holds something in little text; and with text files of one
//! document each it takes every n-th file. A page has 100 documents, or a tenth of all if there are fewer than 1,000.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::PAGE_DOCUMENTS;
use super::source::{Documents, Source};
use super::text_file::{ENDINGS, TextFile};
use crate::error::input;

/// Text files, all their documents or those of some pages.
pub struct Files {
    files: Arc<[TextFile]>,
    text_key: Arc<str>,
    part: Part,
}

#[derive(Clone, Copy)]
enum Part {
    All,
    Training(Pages),
    HeldOut(Pages),
}

/// Which pages are held out.
#[derive(Clone, Copy)]
struct Pages {
    documents: u64,
    every: u64,
    first_file: u64,
}

impl Pages {
    fn hold_out(&self, file: u64, document: u64) -> bool {
        (file.saturating_sub(self.first_file) + document / self.documents).is_multiple_of(self.every)
    }
}

impl Part {
    fn holds(self, file: u64, document: u64) -> bool {
        match self {
            Part::All => true,
            Part::Training(pages) => !pages.hold_out(file, document),
            Part::HeldOut(pages) => pages.hold_out(file, document),
        }
    }
}

impl Files {
    /// The files that `paths` name: files themselves, folders with all that lies below, globs. `key` is the recipe's
    /// key, for messages. Sorted inside each path, each file once.
    pub fn open(paths: &[PathBuf], key: &str, text_key: &str) -> Result<Self> {
        if paths.is_empty() {
            return Err(input(format!("{key} is empty; name files, folders or globs of {ENDINGS}")));
        }
        let (mut files, mut seen) = (Vec::new(), HashSet::new());
        for path in paths {
            let mut found = Vec::new();
            expand(path, key, &mut found)?;
            found.sort_unstable_by(|a, b| a.path().cmp(b.path()));
            for file in found {
                if seen.insert(identity(file.path())?) {
                    files.push(file);
                }
            }
        }
        Ok(Self { files: files.into(), text_key: text_key.into(), part: Part::All })
    }

    /// These files but for those of `held_out`.
    pub fn without(self, held_out: &Self) -> Result<Self> {
        let theirs = held_out.files.iter().map(|file| identity(file.path())).collect::<Result<HashSet<_>>>()?;
        let mut files = Vec::with_capacity(self.files.len());
        for file in self.files.iter() {
            if !theirs.contains(&identity(file.path())?) {
                files.push(file.clone());
            }
        }
        if files.is_empty() {
            return Err(input("data.held_out names every file of data.paths, so that none is left to train on"));
        }
        Ok(Self { files: files.into(), ..self })
    }

    /// The pages to train on and those held out.
    pub fn split(self, every: usize) -> Result<(Self, Self)> {
        if every < 2 {
            return Err(input(format!(
                "data.held_out_every is {every}; it must be at least 2, or no text is left to train on"
            )));
        }
        let full = 10 * PAGE_DOCUMENTS as u64;
        let (mut first_file, mut num_documents) = (None, 0);
        for (index, file) in self.files.iter().enumerate() {
            num_documents += file.count_documents(full - num_documents)?;
            if num_documents > 0 {
                first_file.get_or_insert(index as u64);
            }
            if num_documents == full {
                break;
            }
        }
        let first_file = match first_file {
            None => return Err(input(format!("no document in {}", self.names()))),
            Some(_) if num_documents == 1 => {
                return Err(input(format!(
                    "a single document in {}: none can be held out for the held-out loss; name other files by \
                     data.held_out, or cut the text into documents (a .txt file is one, a line of .jsonl is one)",
                    self.names()
                )));
            }
            Some(first_file) => first_file,
        };
        let pages = Pages { documents: (num_documents / 10).max(1), every: every as u64, first_file };
        let part = |part| Self { files: self.files.clone(), text_key: self.text_key.clone(), part };
        Ok((part(Part::Training(pages)), part(Part::HeldOut(pages))))
    }

    fn names(&self) -> String {
        let first = self.files[0].path().display();
        match self.files.len() {
            1 => format!("{first}"),
            len => format!("{first} and {} more files", len - 1),
        }
    }
}

impl Source for Files {
    fn name(&self) -> String {
        match &self.files[..] {
            [] => "no file".to_owned(),
            [file] => file.path().display().to_string(),
            [first, others @ ..] => format!("{} and {} other files", first.path().display(), others.len()),
        }
    }

    fn num_shards(&self) -> u64 {
        self.files.len() as u64
    }

    fn documents(&self, shard: u64, from: u64, _: Option<u64>) -> Result<Documents> {
        let part = self.part;
        self.files[shard as usize].documents(&self.text_key, move |document| part.holds(shard, document), from)
    }
}

/// One name for each file, however it is reached.
fn identity(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))
}

fn expand(path: &Path, key: &str, found: &mut Vec<TextFile>) -> Result<()> {
    let shown = path.display();
    let start = found.len();
    let name = path.to_string_lossy();
    if path.is_dir() {
        walk(path, found)?;
        if found.len() == start {
            return Err(input(format!("{key}: no file in the folder {shown} ends in {ENDINGS}")));
        }
    } else if path.exists() {
        let file = TextFile::by_name(path)
            .ok_or_else(|| input(format!("{key}: {shown} has none of the known endings: {ENDINGS}")))?;
        found.push(file);
    } else if name.contains(['*', '?', '[']) {
        let matches =
            glob::glob(&name).map_err(|error| input(format!("{key}: {shown} is not a valid glob: {error}")))?;
        for entry in matches {
            let entry = entry.with_context(|| format!("cannot search {shown}"))?;
            if entry.is_dir() {
                walk(&entry, found)?;
            } else {
                found.extend(TextFile::by_name(&entry));
            }
        }
        if found.len() == start {
            return Err(input(format!("{key}: no file that matches {shown} ends in {ENDINGS}")));
        }
    } else {
        return Err(input(format!("{key}: {shown} does not exist")));
    }
    Ok(())
}

/// All text files below a folder. Links to folders are not followed: they may lead back.
fn walk(folder: &Path, found: &mut Vec<TextFile>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read the folder {}", folder.display()))? {
        let entry = entry.with_context(|| format!("cannot read the folder {}", folder.display()))?;
        let path = entry.path();
        if entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?.is_dir() {
            walk(&path, found)?;
        } else if path.is_file() {
            found.extend(TextFile::by_name(&path));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;

    use tempfile::TempDir;

    use super::*;
    use crate::error::exit_code;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    fn folder(files: &[(&str, &[u8])]) -> TempDir {
        let folder = TempDir::new().unwrap();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        folder
    }

    fn jsonl(range: std::ops::Range<usize>) -> Vec<u8> {
        range
            .map(|number| format!("{{\"id\": {number}, \"text\": \"document {number}\"}}\n"))
            .collect::<String>()
            .into()
    }

    fn open(folder: &TempDir, paths: &[&str]) -> Result<Files> {
        let paths: Vec<PathBuf> = paths.iter().map(|path| folder.path().join(path)).collect();
        Files::open(&paths, "data.paths", "text")
    }

    fn try_read(source: &Files) -> Result<Vec<String>> {
        let mut texts = Vec::new();
        for shard in 0..source.num_shards() {
            for text in source.documents(shard, 0, None)? {
                texts.push(text?);
            }
        }
        Ok(texts)
    }

    fn read(source: &Files) -> Vec<String> {
        try_read(source).unwrap()
    }

    fn refusal<T>(result: Result<T>) -> String {
        let error = result.err().expect("must be refused");
        assert_eq!(exit_code(&error), 2, "{error:#}");
        format!("{error:#}")
    }

    #[test]
    fn every_format_gives_the_same_documents() {
        let lines = jsonl(0..3);
        let mut two_members = gzip(&lines[..20]);
        two_members.extend(gzip(&lines[20..]));
        let mut two_frames = zstd(&lines[..20]);
        two_frames.extend(zstd(&lines[20..]));
        let folder = folder(&[
            ("a.jsonl", &lines),
            ("b.jsonl.gz", &two_members),
            ("c.jsonl.zst", &two_frames),
            ("d.txt", b"\xef\xbb\xbfone\r\ntwo\n"),
            ("e.TXT.gz", &gzip("drei ½".as_bytes())),
            ("f.txt.zst", &zstd(b"")),
            ("g.md", b"not text data"),
        ]);
        let three = ["document 0", "document 1", "document 2"];
        let expected = [&three[..], &three, &three, &["one\r\ntwo\n", "drei ½", ""]].concat();
        assert_eq!(read(&open(&folder, &["."]).unwrap()), expected);
        assert_eq!(read(&open(&folder, &["*"]).unwrap()), expected);
    }

    #[test]
    fn reading_may_begin_at_any_document() {
        let lines = jsonl(0..7);
        let folder = folder(&[("a.jsonl", &lines), ("b.jsonl.gz", &gzip(&lines)), ("c.txt", b"x")]);
        let source = open(&folder, &["a.jsonl", "b.jsonl.gz", "c.txt"]).unwrap();
        for (shard, len) in [(0, 7), (1, 7), (2, 1)] {
            let all: Vec<String> = source.documents(shard, 0, None).unwrap().map(|text| text.unwrap()).collect();
            assert_eq!(all.len(), len);
            for from in 0..=len + 1 {
                let rest: Vec<String> =
                    source.documents(shard, from as u64, None).unwrap().map(|text| text.unwrap()).collect();
                assert_eq!(rest, all[from.min(len)..]);
            }
        }
    }

    #[test]
    fn blank_lines_a_byte_order_mark_and_a_missing_last_newline_do_no_harm() {
        let folder = folder(&[("a.jsonl", b"\xef\xbb\xbf{\"text\":\"a\"}\r\n\n  \r\n{\"text\":\"b\"}")]);
        assert_eq!(read(&open(&folder, &["a.jsonl"]).unwrap()), ["a", "b"]);
    }

    #[test]
    fn folders_are_searched_recursively_in_order_and_no_file_counts_twice() {
        let folder = folder(&[("z/1.txt", b"z1"), ("a/b/2.txt", b"ab2"), ("a/1.txt", b"a1"), ("1.txt", b"1")]);
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/loop")).unwrap();
        assert_eq!(read(&open(&folder, &["."]).unwrap()), ["1", "a1", "ab2", "z1"]);
        assert_eq!(read(&open(&folder, &["z", ".", "a/1.txt"]).unwrap()), ["z1", "1", "a1", "ab2"]);
        assert_eq!(read(&open(&folder, &["*/1.txt"]).unwrap()), ["a1", "z1"]);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_file_and_line() {
        let folder = folder(&[
            ("utf8.jsonl", b"{\"text\":\"a\"}\n{\"text\":\"\xff\"}\n"),
            ("utf8.txt", b"ab\ncd\n\xe9t\xe9"),
            ("null.jsonl", b"{\"text\":\"a\"}\n\n{\"text\":null}\n"),
            ("key.jsonl", b"{\"content\":\"a\"}\n"),
            ("torn.jsonl.gz", &gzip(&jsonl(0..1000))[..900]),
            ("torn.jsonl.zst", &zstd(&jsonl(0..100_000))[..900]),
            ("no.txt.gz", b"plain"),
            ("c.csv", b"a,b"),
            ("empty/readme.md", b"x"),
        ]);
        let message = |path: &str| {
            let message = refusal(open(&folder, &[path]).and_then(|source| try_read(&source)));
            message.replace(folder.path().to_str().unwrap(), "DIR")
        };
        assert_eq!(
            message("utf8.jsonl"),
            "DIR/utf8.jsonl, line 2: byte 22 of the text is not UTF-8; convert the file, for instance with iconv"
        );
        assert_eq!(
            message("utf8.txt"),
            "DIR/utf8.txt, line 3: byte 6 of the text is not UTF-8; convert the file, for instance with iconv"
        );
        assert_eq!(
            message("null.jsonl"),
            "DIR/null.jsonl, line 3: column 12: invalid type: null, expected a string as the text"
        );
        assert_eq!(
            message("key.jsonl"),
            "DIR/key.jsonl, line 1: no key \"text\"; name the key of the text by data.text_key"
        );
        assert!(message("torn.jsonl.gz").starts_with("DIR/torn.jsonl.gz: damaged or not gzip ("));
        assert!(message("torn.jsonl.zst").starts_with("DIR/torn.jsonl.zst: damaged or not zstd ("));
        assert!(message("no.txt.gz").starts_with("DIR/no.txt.gz: damaged or not gzip ("));
        assert_eq!(message("gone.txt"), "data.paths: DIR/gone.txt does not exist");
        assert_eq!(
            message("c.csv"),
            "data.paths: DIR/c.csv has none of the known endings: .jsonl or .txt, each also as .gz or .zst"
        );
        assert_eq!(
            message("empty"),
            "data.paths: no file in the folder DIR/empty ends in .jsonl or .txt, each also as .gz or .zst"
        );
        assert_eq!(
            message("no*.jsonl"),
            "data.paths: no file that matches DIR/no*.jsonl ends in .jsonl or .txt, each also as .gz or .zst"
        );
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let endless = zstd(&vec![b'x'; (64 << 20) + 2]);
        let folder = folder(&[("a.jsonl.zst", &endless), ("a.txt.zst", &endless)]);
        let message = |path: &str| refusal(open(&folder, &[path]).and_then(|source| try_read(&source)));
        assert!(
            message("a.jsonl.zst").ends_with("line 1: longer than 64 MiB; a .jsonl file has one document per line")
        );
        assert!(message("a.txt.zst").contains("longer than 64 MiB, and a .txt file is one document"));
    }

    /// Numbers of the documents held out, after checking that both parts together are all documents.
    fn held_out_numbers(folder: &TempDir, every: usize) -> Vec<usize> {
        let all = open(folder, &["."]).unwrap();
        let mut together = read(&all);
        let (training, held_out) = all.split(every).unwrap();
        let (training, held_out) = (read(&training), read(&held_out));
        let numbers = held_out.iter().map(|text| text.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        let mut both = [training, held_out].concat();
        both.sort_unstable();
        together.sort_unstable();
        assert_eq!(both, together);
        numbers
    }

    #[test]
    fn every_nth_page_is_held_out_and_a_tenth_of_little_text() {
        let big =
            folder(&[("a.jsonl", &jsonl(0..2350)), ("b.jsonl", &jsonl(2350..2650)), ("c.jsonl", &jsonl(2650..2800))]);
        let pages = |starts: &[usize]| starts.iter().flat_map(|&start| start..start + 100).collect::<Vec<_>>();
        assert_eq!(held_out_numbers(&big, 100), pages(&[0]));
        assert_eq!(held_out_numbers(&big, 10), pages(&[0, 1000, 2000]));
        assert_eq!(
            held_out_numbers(&big, 3),
            [pages(&[0, 300, 600, 900, 1200, 1500, 1800, 2100, 2550,]), (2750..2800).collect()].concat()
        );

        assert_eq!(held_out_numbers(&folder(&[("a.jsonl", &jsonl(0..500))]), 100), (0..50).collect::<Vec<_>>());
        assert_eq!(held_out_numbers(&folder(&[("a.jsonl", &jsonl(0..2))]), 100), [0]);
        let empty_first = folder(&[("a.jsonl", b""), ("b.jsonl", &jsonl(0..30))]);
        assert_eq!(held_out_numbers(&empty_first, 100), [0, 1, 2]);
        let texts: Vec<(String, String)> = (0..5).map(|n| (format!("{n}.txt"), format!("document {n}"))).collect();
        let texts: Vec<(&str, &[u8])> = texts.iter().map(|(name, text)| (name.as_str(), text.as_bytes())).collect();
        assert_eq!(held_out_numbers(&folder(&texts), 2), [0, 2, 4]);
    }

    #[test]
    fn what_cannot_be_split_is_refused() {
        let folder = folder(&[("empty.jsonl", b"\n\n"), ("one.txt", b"one text"), ("two.jsonl", &jsonl(0..2))]);
        let message = |path: &str, every| refusal(open(&folder, &[path]).unwrap().split(every));
        assert!(message("empty.jsonl", 100).starts_with("no document in "));
        assert!(message("one.txt", 100).contains("a single document in "));
        assert!(message("two.jsonl", 1).starts_with("data.held_out_every is 1; it must be at least 2"));
    }

    #[test]
    fn files_held_out_are_not_trained_on() {
        let folder = folder(&[("a.txt", b"a"), ("b.txt", b"b"), ("held/c.txt", b"c")]);
        let held_out = open(&folder, &["held/../b.txt", "held"]).unwrap();
        assert_eq!(read(&open(&folder, &["."]).unwrap().without(&held_out).unwrap()), ["a"]);
        assert!(refusal(open(&folder, &["b.txt"]).unwrap().without(&held_out)).contains("every file of data.paths"));
    }
}
