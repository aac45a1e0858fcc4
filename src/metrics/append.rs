//! A file that only grows, one record at a time, and survives a full disk.
//!
//! A record goes to the system in one `write` call, so that a killed process leaves whole records. What the disk would
//! not take stays in memory and is written before the next record: once there is room again nothing is lost and no
//! record is torn. A run must never stop for the sake of its records, so what is kept is bounded; beyond the bound new
//! records are dropped whole.

use std::fs::File;
use std::io::{self, Write};

/// Most bytes kept in memory while the disk takes nothing: some 100,000 records.
const MAX_PENDING_BYTES: usize = 16 << 20;

/// See the module's text.
pub(super) struct AppendFile {
    file: File,
    pending: Vec<u8>,
}

impl AppendFile {
    /// Appends to a file that was opened for appending.
    pub(super) fn new(file: File) -> Self {
        Self { file, pending: Vec::new() }
    }

    /// Writes one record, after those that an earlier error left behind.
    pub(super) fn append(&mut self, record: &[u8]) -> io::Result<()> {
        if self.pending.len() + record.len() <= MAX_PENDING_BYTES {
            self.pending.extend_from_slice(record);
        }
        while !self.pending.is_empty() {
            match self.file.write(&self.pending) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(num_written) => drop(self.pending.drain(..num_written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until all that was written is on the disk.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.append(&[])?;
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn keeps_what_a_full_disk_would_not_take_and_writes_it_once_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records");
        let mut records = AppendFile::new(File::options().append(true).open("/dev/full").unwrap());
        assert_eq!(records.append(b"one\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(records.append(b"two\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
        records.file = File::create(&path).unwrap();
        records.append(b"three\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\nthree\n");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_stays_bounded_while_the_disk_is_full() {
        let mut records = AppendFile::new(File::options().append(true).open("/dev/full").unwrap());
        let record = vec![b'x'; 1 << 20];
        for _ in 0..40 {
            records.append(&record).unwrap_err();
        }
        assert_eq!(records.pending.len(), MAX_PENDING_BYTES);
    }
}
