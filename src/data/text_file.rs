//! One text file as documents: lines of JSON with a text key, or one plain text; as it is, gzip or zstd.
//!
//! Files are the user's and may be anything, so a document is bounded before it is held, each message names file, line
//! and what to do, and nothing but UTF-8 passes. Lines are read as a stream: a file may be larger than memory. To start
//! at a later document the lines before it are read and counted, not parsed (a compressed file is decompressed up to it).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Error, Result};

use super::json_line::text_of_line;
use super::source::Documents;
use crate::error::input;

/// Longest document (or line of JSON) that is read: far above any web page, far below memory.
const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

const BUFFER_BYTES: usize = 1 << 18;

/// The endings that are understood, for messages.
pub(super) const ENDINGS: &str = ".jsonl or .txt, each also as .gz or .zst";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Jsonl,
    Txt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A text file and what its name says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TextFile {
    path: PathBuf,
    format: Format,
    compression: Compression,
}

impl TextFile {
    /// A file by its name's ending; `None` if that is none of [`ENDINGS`].
    pub(super) fn by_name(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
        let (name, compression) = if let Some(name) = name.strip_suffix(".gz") {
            (name, Compression::Gzip)
        } else if let Some(name) = name.strip_suffix(".zst") {
            (name, Compression::Zstd)
        } else {
            (name.as_str(), Compression::None)
        };
        let format = if name.ends_with(".jsonl") {
            Format::Jsonl
        } else if name.ends_with(".txt") {
            Format::Txt
        } else {
            return None;
        };
        Some(Self { path: path.to_owned(), format, compression })
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The documents whose number (from 0) `keep` accepts, the first `skip` of them left out.
    pub(super) fn documents(
        &self,
        text_key: &Arc<str>,
        keep: impl Fn(u64) -> bool + Send + 'static,
        skip: u64,
    ) -> Result<Documents> {
        match self.format {
            // One look at the name answers for most files of a large folder of texts.
            Format::Txt if skip > 0 || !keep(0) => Ok(Box::new(std::iter::empty())),
            Format::Txt => {
                let file = self.clone();
                Ok(Box::new(std::iter::once_with(move || file.whole_text())))
            }
            Format::Jsonl => {
                let mut lines = self.lines()?;
                let (text_key, mut number, mut to_skip) = (text_key.clone(), 0, skip);
                Ok(Box::new(std::iter::from_fn(move || {
                    loop {
                        match lines.next() {
                            Ok(true) => {}
                            Ok(false) => return None,
                            Err(error) => return Some(Err(error)),
                        }
                        number += 1;
                        if !keep(number - 1) {
                            continue;
                        }
                        if to_skip == 0 {
                            return Some(lines.text(&text_key));
                        }
                        to_skip -= 1;
                    }
                })))
            }
        }
    }

    /// Number of documents, counted no further than `limit`.
    pub(super) fn count_documents(&self, limit: u64) -> Result<u64> {
        if self.format == Format::Txt {
            return Ok(1.min(limit));
        }
        let (mut lines, mut count) = (self.lines()?, 0);
        while count < limit && lines.next()? {
            count += 1;
        }
        Ok(count)
    }

    fn whole_text(&self) -> Result<String> {
        let mut bytes = Vec::new();
        let mut reader = self.open()?.take(MAX_DOCUMENT_BYTES + 1);
        reader.read_to_end(&mut bytes).map_err(|error| self.unreadable(error))?;
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(input(format!(
                "{}: longer than {} MiB, and a .txt file is one document; cut it into documents, one per line of a .jsonl file",
                self.path.display(),
                MAX_DOCUMENT_BYTES >> 20
            )));
        }
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let line = 1 + error.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() as u64;
                return Err(not_utf8(&self.path, line, at as u64));
            }
        };
        Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
    }

    fn lines(&self) -> Result<Lines> {
        Ok(Lines { file: self.clone(), reader: self.open()?, line: Vec::new(), number: 0, start: 0 })
    }

    fn open(&self) -> Result<Box<dyn BufRead + Send>> {
        let file = File::open(&self.path).with_context(|| format!("cannot open {}", self.path.display()))?;
        Ok(match self.compression {
            Compression::None => Box::new(BufReader::with_capacity(BUFFER_BYTES, file)),
            Compression::Gzip => Box::new(BufReader::with_capacity(
                BUFFER_BYTES,
                flate2::bufread::MultiGzDecoder::new(BufReader::new(file)),
            )),
            Compression::Zstd => {
                let decoder =
                    zstd::Decoder::new(file).with_context(|| format!("cannot read {}", self.path.display()))?;
                Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder))
            }
        })
    }

    fn unreadable(&self, error: io::Error) -> Error {
        let path = self.path.display();
        match self.compression {
            Compression::None => Error::new(error).context(format!("cannot read {path}")),
            Compression::Gzip => input(format!("{path}: damaged or not gzip ({error}); fetch or pack it again")),
            Compression::Zstd => input(format!("{path}: damaged or not zstd ({error}); fetch or pack it again")),
        }
    }
}

fn not_utf8(path: &Path, line: u64, byte: u64) -> Error {
    let path = path.display();
    input(format!(
        "{path}, line {line}: byte {byte} of the text is not UTF-8; convert the file, for instance with iconv"
    ))
}

/// The lines of a file that are not blank, one at a time.
struct Lines {
    file: TextFile,
    reader: Box<dyn BufRead + Send>,
    line: Vec<u8>,
    /// Number of the current line, from 1.
    number: u64,
    /// Bytes of the text before the current line.
    start: u64,
}

impl Lines {
    /// Goes to the next line that is not blank; whether there is one.
    fn next(&mut self) -> Result<bool> {
        loop {
            self.start += self.line.len() as u64;
            self.line.clear();
            let mut limited = (&mut self.reader).take(MAX_DOCUMENT_BYTES + 1);
            let read = limited.read_until(b'\n', &mut self.line).map_err(|error| self.file.unreadable(error))?;
            if read == 0 {
                return Ok(false);
            }
            self.number += 1;
            if read as u64 > MAX_DOCUMENT_BYTES {
                let (path, number, limit) = (self.file.path.display(), self.number, MAX_DOCUMENT_BYTES >> 20);
                return Err(input(format!(
                    "{path}, line {number}: longer than {limit} MiB; a .jsonl file has one document per line"
                )));
            }
            if !self.content().trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    /// The line without a byte order mark.
    fn content(&self) -> &[u8] {
        let mark: &[u8] = if self.number == 1 { b"\xef\xbb\xbf" } else { b"" };
        self.line.strip_prefix(mark).unwrap_or(&self.line)
    }

    /// The text of the current line.
    fn text(&self, text_key: &str) -> Result<String> {
        let line = str::from_utf8(self.content()).map_err(|error| {
            let mark = self.line.len() - self.content().len();
            not_utf8(&self.file.path, self.number, self.start + (mark + error.valid_up_to()) as u64)
        })?;
        text_of_line(line, text_key)
            .map_err(|reason| input(format!("{}, line {}: {reason}", self.file.path.display(), self.number)))
    }
}
