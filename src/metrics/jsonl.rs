//! `metrics.jsonl`: one JSON object a line, `{"step":12,"time":1710000000.5,"loss":9.75,…}`.
//!
//! Numbers are written with the fewest digits that give back the same f64; NaN and infinities as the strings "nan",
//! "inf" and "-inf". When a run resumes from a checkpoint, what it recorded after saving that is cut off first, so that
//! the file of an interrupted run ends up with the same steps and losses as that of a run that went through.
//!
//! The order that this relies on: a step is recorded (its first line), then saved, then evaluated (further lines of the
//! same step). So what must go is the file's tail, and cutting it needs no second copy and no room on the disk.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Metrics;
use super::append::AppendFile;

/// Name of the file inside the run folder.
pub const FILE_NAME: &str = "metrics.jsonl";

/// The writer of `metrics.jsonl`.
pub struct Jsonl {
    file: AppendFile,
}

impl Jsonl {
    /// Opens the file of a run that goes on after step `resumed_at`, or starts from nothing.
    pub fn open(run_dir: &Path, resumed_at: Option<u64>) -> io::Result<Self> {
        let path = run_dir.join(FILE_NAME);
        let file = File::options().create(true).append(true).read(true).open(&path)?;
        let kept_bytes = resumed_at.map_or(Ok(0), |step| bytes_up_to(step, &file))?;
        if kept_bytes < file.metadata()?.len() {
            file.set_len(kept_bytes)?;
        }
        Ok(Self { file: AppendFile::new(file) })
    }
}

impl Metrics for Jsonl {
    fn name(&self) -> &'static str {
        FILE_NAME
    }

    fn record(&mut self, step: u64, unix_time: f64, values: &[(&'static str, f64)]) -> io::Result<()> {
        let mut object = Map::with_capacity(values.len() + 2);
        object.insert("step".to_owned(), step.into());
        object.insert("time".to_owned(), number(unix_time));
        object.extend(values.iter().map(|&(key, value)| (key.to_owned(), number(value))));
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        self.file.append(line.as_bytes())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
}

/// A float as JSON: JSON itself knows neither NaN nor infinities.
pub fn number(value: f64) -> Value {
    match serde_json::Number::from_f64(value) {
        Some(number) => Value::Number(number),
        None if value.is_nan() => "nan".into(),
        None if value > 0.0 => "inf".into(),
        None => "-inf".into(),
    }
}

/// Number of bytes up to and with the first line of `step`, or before the first line that is later or lacks its end.
pub(crate) fn bytes_up_to(step: u64, file: &File) -> io::Result<u64> {
    #[derive(Deserialize)]
    struct Line {
        step: u64,
    }

    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let mut kept_bytes = 0;
    loop {
        line.clear();
        let num_bytes = reader.read_until(b'\n', &mut line)? as u64;
        if line.last() != Some(&b'\n') {
            return Ok(kept_bytes);
        }
        // A whole line that is none of ours was put there by somebody: it stays.
        let line_step = serde_json::from_slice::<Line>(&line).map(|line| line.step);
        match line_step.map(|line_step| line_step.cmp(&step)) {
            Ok(Ordering::Greater) => return Ok(kept_bytes),
            Ok(Ordering::Equal) => return Ok(kept_bytes + num_bytes),
            Ok(Ordering::Less) | Err(_) => kept_bytes += num_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(dir: &Path) -> String {
        std::fs::read_to_string(dir.join(FILE_NAME)).unwrap()
    }

    #[test]
    fn writes_one_object_a_line_in_the_order_given() {
        let dir = tempfile::tempdir().unwrap();
        let mut jsonl = Jsonl::open(dir.path(), None).unwrap();
        jsonl.record(1, 1700000000.25, &[("loss", 10.5), ("grad_norm", 2.0)]).unwrap();
        jsonl
            .record(2, 1700000001.0, &[("held_out_loss", f64::NAN), ("a", f64::INFINITY), ("b", -f64::INFINITY)])
            .unwrap();
        assert_eq!(
            read(dir.path()),
            "{\"step\":1,\"time\":1700000000.25,\"loss\":10.5,\"grad_norm\":2.0}\n\
             {\"step\":2,\"time\":1700000001.0,\"held_out_loss\":\"nan\",\"a\":\"inf\",\"b\":\"-inf\"}\n"
        );
    }

    #[test]
    fn losses_come_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let mut jsonl = Jsonl::open(dir.path(), None).unwrap();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let losses: Vec<f64> = std::iter::from_fn(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Some(f64::from_bits(state))
        })
        .filter(|loss| loss.is_finite())
        .take(2000)
        .collect();
        for (step, &loss) in losses.iter().enumerate() {
            jsonl.record(step as u64, 0.0, &[("loss", loss)]).unwrap();
        }
        let back: Vec<u64> = read(dir.path())
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap().to_bits())
            .collect();
        assert_eq!(back, losses.iter().map(|loss| loss.to_bits()).collect::<Vec<_>>());
    }

    #[test]
    fn resuming_cuts_what_was_recorded_after_the_checkpoint_and_a_torn_last_line() {
        let before =
            "{\"step\":1,\"loss\":3.0}\n{\"step\":1,\"held_out_loss\":3.5}\nnot ours\n{\"step\":2,\"loss\":2.0}\n";
        for after in [
            "",
            "{\"step\":2,\"held_out_loss\":2.5}\n",
            "{\"step\":2,\"held_out_loss\":2.5}\n{\"step\":3,\"loss\":1.0}\n{\"step\":4,\"loss\":0.5}\n",
            "{\"step\":3,\"loss\":1.0}\n{\"step\":4,\"lo",
            "{\"step\":2,\"held_o",
        ] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(FILE_NAME), format!("{before}{after}")).unwrap();
            let mut jsonl = Jsonl::open(dir.path(), Some(2)).unwrap();
            assert_eq!(read(dir.path()), before);
            jsonl.record(3, 0.0, &[("loss", 1.0)]).unwrap();
            assert_eq!(read(dir.path()), format!("{before}{{\"step\":3,\"time\":0.0,\"loss\":1.0}}\n"));
        }
    }

    #[test]
    fn a_file_that_ends_before_the_checkpoint_loses_only_its_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "{\"step\":1,\"loss\":3.0}\n{\"step\":2,\"lo").unwrap();
        Jsonl::open(dir.path(), Some(5)).unwrap();
        assert_eq!(read(dir.path()), "{\"step\":1,\"loss\":3.0}\n");
    }

    #[test]
    fn starting_from_nothing_empties_the_file_of_an_earlier_attempt() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "{\"step\":0,\"held_out_loss\":10.8}\n{\"step\":1,\"loss\":3.0}\n")
            .unwrap();
        Jsonl::open(dir.path(), None).unwrap();
        assert_eq!(read(dir.path()), "");
    }
}
