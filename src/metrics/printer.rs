//! The single place that owns the terminal.
//!
//! The answer of a command goes to stdout ([`Printer::result`]: the JSON object, or the text that was asked for), all
//! else to stderr, above the progress bar if there is one. With `--quiet` only answers, warnings and errors remain.
//! Names and reasons come from strangers: what would steer the terminal is replaced.
//! A reader that goes away (`assay inspect … | head -0`) is no error, and nobody is told twice.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};

type Stream = Arc<Mutex<dyn Write + Send>>;

/// Writes for the user. Clones write to the same place.
#[derive(Clone)]
pub struct Printer {
    out: Stream,
    err: Stream,
    bars: MultiProgress,
    quiet: bool,
    color: bool,
}

impl Printer {
    /// The process's own streams. `quiet`: no notes and no progress.
    pub fn new(quiet: bool) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let color = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            bars: MultiProgress::with_draw_target(match quiet || !is_terminal {
                true => ProgressDrawTarget::hidden(),
                false => ProgressDrawTarget::stderr(),
            }),
            color,
            ..Self::with_streams(io::stdout(), io::stderr(), quiet)
        }
    }

    /// Streams of the caller's choice, taken for no terminal: no bar and no color.
    pub fn with_streams(out: impl Write + Send + 'static, err: impl Write + Send + 'static, quiet: bool) -> Self {
        Self {
            out: Arc::new(Mutex::new(out)),
            err: Arc::new(Mutex::new(err)),
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            quiet,
            color: false,
        }
    }

    /// The command's answer, to stdout. That the reader has gone is no error; that stdout cannot be written is one.
    pub fn result(&self, text: &str) -> anyhow::Result<()> {
        match self.write(&self.out, &harmless(text)) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            outcome => outcome.context("standard output could not be written"),
        }
    }

    /// Something worth knowing, to stderr.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.tell(&harmless(text));
        }
    }

    /// Something to act upon although the work goes on, to stderr.
    pub fn warn(&self, text: &str) {
        self.tell(&format!("{} {}", self.painted("warning:", "\x1b[1;33m"), harmless(text)));
    }

    /// Why the command failed, to stderr: what went wrong, and below it each cause.
    pub fn error(&self, error: &anyhow::Error) {
        let mut told = error.to_string();
        let mut text = told.clone();
        for cause in error.chain().skip(1).map(ToString::to_string) {
            if cause != told {
                text.push_str("\n  caused by: ");
                text.push_str(&cause);
            }
            told = cause;
        }
        self.tell(&format!("{} {}", self.painted("error:", "\x1b[1;31m"), harmless(&text)));
    }

    /// Asks a question that yes or no answers. Where nobody can answer, because stdin or stderr is no terminal, the answer
    /// is no.
    pub fn ask(&self, question: &str) -> anyhow::Result<bool> {
        if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
            return Ok(false);
        }
        self.bars.suspend(|| {
            let mut err = self.err.lock().unwrap_or_else(PoisonError::into_inner);
            write!(err, "{question} [y/N] ")?;
            err.flush()?;
            let mut answer = String::new();
            io::stdin().read_line(&mut answer).context("standard input could not be read")?;
            Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
        })
    }

    /// A progress bar at the terminal's last line; `None` where stderr is no terminal or the user wants quiet.
    pub(crate) fn bar(&self, len: u64) -> Option<ProgressBar> {
        (!self.bars.is_hidden()).then(|| self.bars.add(ProgressBar::new(len)))
    }

    /// To stderr. Nothing can be done, and nobody told, if that fails.
    fn tell(&self, text: &str) {
        self.write(&self.err, text).ok();
    }

    fn write(&self, stream: &Stream, text: &str) -> io::Result<()> {
        self.bars.suspend(|| {
            let mut stream = stream.lock().unwrap_or_else(PoisonError::into_inner);
            // One call, so that lines of several processes on one terminal stay whole.
            stream.write_all(format!("{}\n", text.trim_end_matches('\n')).as_bytes())?;
            stream.flush()
        })
    }

    fn painted(&self, word: &str, color: &str) -> String {
        if self.color { format!("{color}{word}\x1b[0m") } else { word.to_owned() }
    }
}

/// A text without control characters, but for the ends of lines and tabulators.
fn harmless(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(steers) { text.replace(steers, "\u{fffd}").into() } else { text.into() }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::error::input;

    /// A stream that keeps what was written, for assertions.
    #[derive(Clone, Default)]
    pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A printer, and what it wrote to stdout and stderr.
    pub(crate) fn captured(quiet: bool) -> (Printer, Captured, Captured) {
        let (out, err) = (Captured::default(), Captured::default());
        (Printer::with_streams(out.clone(), err.clone(), quiet), out, err)
    }

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_the_answer_goes_to_stdout() {
        let (printer, out, err) = captured(false);
        printer.note("a note");
        printer.warn("a warning");
        printer.result("{\"ok\":true}").unwrap();
        assert_eq!(out.text(), "{\"ok\":true}\n");
        assert_eq!(err.text(), "a note\nwarning: a warning\n");
    }

    #[test]
    fn strangers_do_not_steer_the_terminal() {
        let (printer, out, err) = captured(false);
        let text = "a\tb\n\x1b]0;x\x07\u{9b}2J";
        printer.note(text);
        printer.warn(text);
        printer.error(&input(text).context("in \x1b[2J"));
        printer.result(text).unwrap();
        let shown = "a\tb\n\u{fffd}]0;x\u{fffd}\u{fffd}2J\n";
        assert_eq!(out.text(), shown);
        assert_eq!(err.text(), format!("{shown}warning: {shown}error: in \u{fffd}[2J\n  caused by: {shown}"));
        // Its own colors stay.
        let colored = Printer { color: true, ..printer };
        assert!(colored.painted("warning:", "\x1b[1;33m").starts_with('\x1b'));
    }

    #[test]
    fn quiet_drops_notes_and_keeps_warnings_errors_and_answers() {
        let (printer, out, err) = captured(true);
        printer.note("a note");
        printer.warn("a warning");
        printer.error(&input("wrong"));
        printer.result("42").unwrap();
        assert_eq!(out.text(), "42\n");
        assert_eq!(err.text(), "warning: a warning\nerror: wrong\n");
    }

    #[test]
    fn an_error_is_told_with_its_causes_and_none_of_them_twice() {
        let (printer, _, err) = captured(false);
        let error = anyhow::Error::new(io::Error::other("disk on fire")).context("disk on fire").context("cannot save");
        printer.error(&error);
        assert_eq!(err.text(), "error: cannot save\n  caused by: disk on fire\n");
    }

    #[test]
    fn a_reader_that_went_away_is_no_error_and_a_full_disk_is_one() {
        let printer = |kind| Printer::with_streams(Failing(kind), Failing(kind), false);
        let gone = printer(io::ErrorKind::BrokenPipe);
        gone.result("answer").unwrap();
        gone.note("note");
        gone.error(&input("wrong"));
        assert!(printer(io::ErrorKind::StorageFull).result("answer").is_err());
    }
}
