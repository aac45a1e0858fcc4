//! TensorBoard event files: `events.out.tfevents.*` in the run folder.
//!
//! The messages and the framing (length, masked CRC-32C, message, masked CRC-32C) are those of the `tensorboard-rs`
//! family; the file is ours. The crate's own `SummaryWriter` writes from a thread that panics, and in the end aborts the
//! process, when the disk is full, and loses what was not flushed when the process ends without dropping it. Here a
//! record is one `write` call whose error the caller sees.
//!
//! Every process writes a file of its own. TensorBoard reads them in the order of their names, and a "session start"
//! at step s tells it to forget whatever earlier files hold from step s on: what a resumed run computes again.

use std::fs::File;
use std::io;
use std::path::Path;

use protobuf::Message;
use tensorboard_proto::event::{Event, SessionLog, SessionLog_SessionStatus};
use tensorboard_rs::record_writer::RecordWriter;
use tensorboard_rs::summary::scalar;

use super::append::AppendFile;
use super::{Metrics, unix_time};

const PREFIX: &str = "events.out.tfevents.";

/// The writer of one event file.
pub struct TensorBoard {
    file: AppendFile,
}

impl TensorBoard {
    /// Starts the event file of a run that goes on after step `resumed_at`, or starts from nothing.
    pub fn open(run_dir: &Path, resumed_at: Option<u64>) -> io::Result<Self> {
        // The time in a name decides the order, so it must lie after that of the files already there, even when a run
        // resumes within the same second or the clock was set back.
        let newest = newest_event_file(run_dir)?;
        let seconds = newest.map_or(0, |seconds| seconds + 1).max(unix_time() as u64);
        let path = run_dir.join(format!("{PREFIX}{seconds:010}.assay"));
        let mut writer = Self { file: AppendFile::new(File::options().create_new(true).append(true).open(path)?) };

        let mut version = Event::new();
        version.set_wall_time(unix_time());
        version.set_file_version("brain.Event:2".to_owned());
        // What a full disk does not take now follows with the first record, whose caller hears of it.
        writer.write(&version).ok();

        if newest.is_some() {
            let mut start = Event::new();
            start.set_wall_time(unix_time());
            start.set_step(resumed_at.map_or(0, |step| step as i64 + 1));
            let mut session = SessionLog::new();
            session.set_status(SessionLog_SessionStatus::START);
            start.set_session_log(session);
            writer.write(&start).ok();
        }
        Ok(writer)
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        let message = event.write_to_bytes().map_err(io::Error::other)?;
        let mut record = Vec::with_capacity(message.len() + 16);
        RecordWriter::new(&mut record).write(&message)?;
        self.file.append(&record)
    }
}

impl Metrics for TensorBoard {
    fn name(&self) -> &'static str {
        "the TensorBoard event file"
    }

    fn record(&mut self, step: u64, unix_time: f64, values: &[(&'static str, f64)]) -> io::Result<()> {
        let mut event = Event::new();
        event.set_wall_time(unix_time);
        event.set_step(step as i64);
        for &(tag, value) in values {
            event.mut_summary().value.push(scalar(tag, value as f32).take_value().remove(0));
        }
        self.write(&event)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
}

/// The largest time in the names of the event files of a folder.
fn newest_event_file(dir: &Path) -> io::Result<Option<u64>> {
    let mut newest = None;
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let seconds = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok());
        newest = newest.max(seconds);
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// CRC-32C bit by bit, masked as TensorFlow's record files want it.
    fn masked_crc32c(bytes: &[u8]) -> u32 {
        let mut crc = !0_u32;
        for &byte in bytes {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            }
        }
        (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
    }

    fn read_events(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).unwrap();
        let mut rest = bytes.as_slice();
        let mut take = |len: usize| rest.split_off(..len);
        let mut events = Vec::new();
        while let Some(length) = take(8) {
            assert_eq!(take(4).unwrap(), masked_crc32c(length).to_le_bytes());
            let message = take(u64::from_le_bytes(length.try_into().unwrap()) as usize).unwrap();
            assert_eq!(take(4).unwrap(), masked_crc32c(message).to_le_bytes());
            events.push(Event::parse_from_bytes(message).unwrap());
        }
        events
    }

    fn event_files(dir: &Path) -> Vec<std::path::PathBuf> {
        let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    #[test]
    fn writes_the_version_first_and_then_every_scalar_of_a_step_in_one_event() {
        let dir = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::open(dir.path(), None).unwrap();
        board.record(7, 1700000000.5, &[("loss", 9.75), ("grad_norm", 0.1)]).unwrap();
        let events = read_events(&event_files(dir.path())[0]);
        assert_eq!(events.len(), 2);
        assert_eq!(events[0].get_file_version(), "brain.Event:2");
        assert_eq!((events[1].get_step(), events[1].get_wall_time()), (7, 1700000000.5));
        let scalars: Vec<_> =
            events[1].get_summary().get_value().iter().map(|v| (v.get_tag(), v.get_simple_value())).collect();
        assert_eq!(scalars, [("loss", 9.75), ("grad_norm", 0.1)]);
    }

    #[test]
    fn a_resumed_run_tells_tensorboard_to_forget_the_steps_it_computes_again() {
        let dir = tempfile::tempdir().unwrap();
        for resumed_at in [None, Some(10), Some(20), None] {
            TensorBoard::open(dir.path(), resumed_at).unwrap();
        }
        // All within one second, and still one file each, in order.
        let starts: Vec<_> = event_files(dir.path())
            .iter()
            .map(|path| read_events(path).get(1).map(|event| (event.get_session_log().get_status(), event.get_step())))
            .collect();
        let start = |step| Some((SessionLog_SessionStatus::START, step));
        assert_eq!(starts, [None, start(11), start(21), start(0)]);
    }
}
