//! What a run tells: numbers for later ([`Recorder`]: `metrics.jsonl` and TensorBoard), a view of its progress
//! ([`progress`]), and the one place that writes to the terminal ([`printer`]).
//!
//! Records are a by-product. Whatever goes wrong with them (a full disk, a folder that may not be written) costs one
//! warning and never the run.

mod append;
pub mod jsonl;
pub mod printer;
pub mod progress;
pub mod table;
pub mod tensorboard;
pub mod transfers;

use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use printer::Printer;

/// Somewhere a run's numbers go.
pub trait Metrics: Send {
    /// What to call it in a message to the user.
    fn name(&self) -> &'static str;

    /// Takes the values of one step. After an error the next call may succeed, and then nothing is missing.
    fn record(&mut self, step: u64, unix_time: f64, values: &[(&'static str, f64)]) -> io::Result<()>;

    /// Waits until all records are on the disk.
    fn sync(&mut self) -> io::Result<()>;
}

/// Hands each record to every sink, and turns a sink's errors into one warning.
pub struct Recorder {
    sinks: Vec<Sink>,
    printer: Printer,
}

struct Sink {
    metrics: Box<dyn Metrics>,
    warned: bool,
}

impl Recorder {
    /// Opens the records of a run. `resumed_at`: the step of the checkpoint that it goes on from, `None` when it starts
    /// from nothing; what was recorded after it was saved is cut off, the evaluation of that very step included.
    pub fn open(run_dir: &Path, resumed_at: Option<u64>, tensorboard: bool, printer: &Printer) -> Self {
        let mut recorder = Self { sinks: Vec::new(), printer: printer.clone() };
        recorder.add("metrics.jsonl", jsonl::Jsonl::open(run_dir, resumed_at));
        if tensorboard {
            recorder.add("the TensorBoard event file", tensorboard::TensorBoard::open(run_dir, resumed_at));
        }
        recorder
    }

    /// A recorder that records nothing, for ranks other than the first and for tests.
    pub fn none(printer: &Printer) -> Self {
        Self { sinks: Vec::new(), printer: printer.clone() }
    }

    fn add(&mut self, name: &str, opened: io::Result<impl Metrics + 'static>) {
        match opened {
            Ok(metrics) => self.sinks.push(Sink { metrics: Box::new(metrics), warned: false }),
            Err(error) => self.printer.warn(&format!("{name} cannot be opened ({error}): this run goes on without it")),
        }
    }

    /// Records the values of one step.
    pub fn record(&mut self, step: u64, values: &[(&'static str, f64)]) {
        let now = unix_time();
        self.each(|metrics| metrics.record(step, now, values));
    }

    /// Brings all records to the disk: call before a checkpoint, so that its records outlive a power cut as it does.
    pub fn sync(&mut self) {
        self.each(|metrics| metrics.sync());
    }

    fn each(&mut self, mut act: impl FnMut(&mut dyn Metrics) -> io::Result<()>) {
        for Sink { metrics, warned } in &mut self.sinks {
            if let Err(error) = act(metrics.as_mut())
                && !std::mem::replace(warned, true)
            {
                self.printer.warn(&format!(
                    "{} cannot be written ({error}): the run goes on, and its records follow once that is possible",
                    metrics.name()
                ));
            }
        }
    }
}

/// Seconds since 1970.
fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::printer::tests::captured;
    use super::*;

    struct FullDisk;

    impl Metrics for FullDisk {
        fn name(&self) -> &'static str {
            "full"
        }

        fn record(&mut self, _: u64, _: f64, _: &[(&'static str, f64)]) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn sync(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    #[test]
    fn a_sink_that_fails_costs_one_warning_and_the_others_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let (printer, out, err) = captured(false);
        let mut recorder = Recorder::none(&printer);
        recorder.add("full", Ok(FullDisk));
        recorder.add("metrics.jsonl", jsonl::Jsonl::open(dir.path(), None));
        for step in 1..=3 {
            recorder.record(step, &[("loss", step as f64)]);
            recorder.sync();
        }
        let lines = std::fs::read_to_string(dir.path().join(jsonl::FILE_NAME)).unwrap();
        assert_eq!(lines.lines().count(), 3);
        assert_eq!(out.text(), "");
        assert_eq!(err.text().matches("warning: full cannot be written").count(), 1, "{}", err.text());
        assert_eq!(err.text().lines().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_a_warning_for_each_record() {
        let (printer, _, err) = captured(false);
        let mut recorder = Recorder::open(Path::new("/nonexistent/run"), Some(3), true, &printer);
        recorder.record(4, &[("loss", 1.0)]);
        assert_eq!(err.text().matches("warning: ").count(), 2, "{}", err.text());
    }
}
