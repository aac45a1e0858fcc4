//! How far a run is: a bar on a terminal, else a line every so many steps.
//!
//! Both show the same: step, loss, tokens and arithmetic per second, what takes much of the time beside forward and
//! backward, and the time that remains, as `train::meter` measured it in this process (a resumed run does not count steps
//! that it has not computed itself).

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::printer::Printer;
use crate::data::stages::Stage;
use crate::train::meter::Speed;
use crate::train::phases::Phase;

/// The progress of one run. Dropping it removes the bar.
pub struct Progress {
    printer: Printer,
    bar: Option<ProgressBar>,
    total_steps: u64,
    print_every: u64,
}

impl Progress {
    /// Shows a run that has done `steps_done` of `total_steps`. `print_every`: steps from line to line where there is no
    /// terminal; 0: no lines.
    pub fn new(printer: &Printer, steps_done: u64, total_steps: u64, print_every: u64) -> Self {
        let bar = printer.bar(total_steps).inspect(|bar| {
            let style =
                ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}").expect("the template is well formed");
            bar.set_style(style.progress_chars("=> "));
            bar.set_position(steps_done);
        });
        Self { printer: printer.clone(), bar, total_steps, print_every }
    }

    /// Shows the step that was just finished; `slow`: a phase that takes much of the time, and which part of it; `starving`: the
    /// stage of reading that is waited for, if data is.
    pub fn update(
        &self,
        step: u64,
        loss: f64,
        speed: &Speed,
        slow: Option<(Phase, f64)>,
        starving: Option<Stage>,
        remaining: Option<Duration>,
    ) {
        let status = status(loss, speed, slow, starving, remaining);
        if let Some(bar) = &self.bar {
            bar.set_message(status);
            bar.set_position(step);
        } else if self.print_every > 0 && (step.is_multiple_of(self.print_every) || step == self.total_steps) {
            self.printer.note(&format!("step {step}/{}: {status}", self.total_steps));
        }
    }

    /// Shows on the bar what is done between two steps, such as "saving".
    pub fn stage(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn status(
    loss: f64,
    speed: &Speed,
    slow: Option<(Phase, f64)>,
    starving: Option<Stage>,
    remaining: Option<Duration>,
) -> String {
    let mut text = format!("loss {loss:.4}, {}", self::speed(speed));
    if let Some((phase, share)) = slow {
        text.push_str(&format!(", {:.0} % {}", 100.0 * share, phase.name()));
        if let Some(stage) = starving.filter(|_| phase == Phase::Data) {
            text.push_str(&format!(" ({})", stage.name()));
        }
    }
    if let Some(remaining) = remaining {
        text.push_str(&format!(", {} left", duration(remaining)));
    }
    text
}

/// A speed, such as "1,234 tokens/s, 43.2 GFLOP/s"; with its part of the hardware's peak where that is known.
pub fn speed(speed: &Speed) -> String {
    let mfu = speed.mfu.map_or(String::new(), |mfu| format!(", {:.1} % MFU", 100.0 * mfu));
    format!("{} tokens/s, {}{mfu}", rate(speed.tokens_per_s), flops(speed.gflops))
}

/// A rate with three to four digits and thousands separated, such as 8.53, 671, 38,600.
fn rate(per_s: f64) -> String {
    if per_s < 10.0 {
        return format!("{per_s:.2}");
    }
    let digits = format!("{per_s:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) && digit.is_ascii_digit() {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Arithmetic per second, in the unit that suits it.
pub fn flops(gflops: f64) -> String {
    if gflops < 10_000.0 { format!("{gflops:.1} GFLOP/s") } else { format!("{:.1} TFLOP/s", gflops / 1000.0) }
}

/// A duration in its two largest units, such as 12 s, 3 min 05 s, 1 h 02 min, 2 d 03 h.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days} d {:02} h", hours % 24)
    } else if hours > 0 {
        format!("{hours} h {:02} min", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes} min {:02} s", seconds % 60)
    } else {
        format!("{seconds} s")
    }
}

#[cfg(test)]
mod tests {
    use super::super::printer::tests::captured;
    use super::*;

    const SPEED: Speed = Speed { tokens_per_s: 1234.4, gflops: 43.21, mfu: None };

    #[test]
    fn prints_a_line_every_so_many_steps_and_at_the_end_where_there_is_no_terminal() {
        let (printer, out, err) = captured(false);
        let progress = Progress::new(&printer, 10, 25, 10);
        for step in 11..=25 {
            progress.update(step, 5.0 + step as f64 / 100.0, &SPEED, None, None, Some(Duration::from_secs(25 - step)));
        }
        assert_eq!(out.text(), "");
        assert_eq!(
            err.text(),
            "step 20/25: loss 5.2000, 1,234 tokens/s, 43.2 GFLOP/s, 5 s left\n\
             step 25/25: loss 5.2500, 1,234 tokens/s, 43.2 GFLOP/s, 0 s left\n"
        );
    }

    #[test]
    fn what_is_slow_is_named_and_what_starves_training_too() {
        let network = Some(Stage::Network);
        for (slow, starving, expected) in [
            (None, network, ""),
            (Some((Phase::Data, 0.314)), network, ", 31 % waiting for data (network)"),
            (Some((Phase::Data, 0.314)), None, ", 31 % waiting for data"),
            (Some((Phase::Optimizer, 0.05)), network, ", 5 % optimizer"),
        ] {
            let text = status(5.0, &SPEED, slow, starving, Some(Duration::from_secs(9)));
            assert_eq!(text, format!("loss 5.0000, 1,234 tokens/s, 43.2 GFLOP/s{expected}, 9 s left"));
        }
    }

    #[test]
    fn a_known_peak_shows_the_utilization() {
        let known = Speed { tokens_per_s: 96_400.0, gflops: 446_300.0, mfu: Some(0.451_07) };
        let expected = "loss 5.0000, 96,400 tokens/s, 446.3 TFLOP/s, 45.1 % MFU";
        assert_eq!(status(5.0, &known, None, None, None), expected);
    }

    #[test]
    fn prints_nothing_when_quiet_or_told_so() {
        for (quiet, print_every) in [(true, 1), (false, 0)] {
            let (printer, _, err) = captured(quiet);
            Progress::new(&printer, 0, 1, print_every).update(1, 5.0, &SPEED, None, None, None);
            assert_eq!(err.text(), "");
        }
    }

    #[test]
    fn numbers_read_well_at_every_size() {
        let rates = [0.5, 9.99, 671.3, 999.6, 38_600.0, 1_234_567.0].map(rate);
        assert_eq!(rates, ["0.50", "9.99", "671", "1,000", "38,600", "1,234,567"]);
        assert_eq!([43.21, 800_000.0].map(flops), ["43.2 GFLOP/s", "800.0 TFLOP/s"]);
        let durations = [0, 59, 60, 3599, 3600, 86_399, 90_000].map(|s| duration(Duration::from_secs(s)));
        assert_eq!(durations, ["0 s", "59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "23 h 59 min", "1 d 01 h"]);
    }
}
