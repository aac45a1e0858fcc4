//! How far up- and downloads are: a bar for each on a terminal; elsewhere a line now and then, so that a log of the night shows
//! that something moves, or why nothing does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::printer::Printer;
use crate::figures::bytes;
use crate::hub::progress::{Observer, Progress, Told};

/// How long a transfer goes on without a line, where there is no terminal.
const QUIET: Duration = Duration::from_secs(60);

/// A transfer that is shown.
struct Shown {
    /// None without a terminal.
    bar: Option<ProgressBar>,
    /// When it last was told.
    told: Instant,
}

/// Shows transfers until they end.
pub fn observer(printer: &Printer) -> Observer {
    let printer = printer.clone();
    let all: Arc<Mutex<HashMap<String, Shown>>> = Arc::default();
    Observer::new(move |told| {
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        hear(&printer, &mut all, told);
    })
}

fn hear(printer: &Printer, all: &mut HashMap<String, Shown>, told: Told<'_>) {
    match told {
        Told::Progress(progress) if progress.done_bytes < progress.total_bytes => show(printer, all, progress),
        Told::Progress(Progress { what, .. }) | Told::Ended(what) => {
            if let Some(Shown { bar: Some(bar), .. }) = all.remove(what) {
                bar.finish_and_clear();
            }
        }
        Told::Waits(why) => printer.note(why),
        Told::Warns(why) => printer.warn(why),
    }
}

fn show(printer: &Printer, all: &mut HashMap<String, Shown>, progress: Progress<'_>) {
    let Progress { what, done_bytes, total_bytes } = progress;
    if !all.contains_key(what) {
        let bar = printer.bar(total_bytes).inspect(|bar| {
            let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
            let style = ProgressStyle::with_template(template).expect("the template is well formed");
            bar.set_style(style.progress_chars("=> "));
            bar.set_message(what.to_owned());
        });
        all.insert(what.to_owned(), Shown { bar, told: Instant::now() });
    }
    let Some(shown) = all.get_mut(what) else { return };
    match &shown.bar {
        Some(bar) => {
            bar.set_length(total_bytes);
            bar.set_position(done_bytes);
        }
        None if shown.told.elapsed() >= QUIET => {
            shown.told = Instant::now();
            printer.note(&format!("{what}: {} of {}", bytes(done_bytes), bytes(total_bytes)));
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::printer::tests::captured;
    use super::*;

    #[test]
    fn a_long_transfer_is_told_now_and_then() {
        let (printer, _, told) = captured(false);
        let mut all = HashMap::new();
        let at = |done_bytes| Progress { what: "uploading me/model", done_bytes, total_bytes: 3 << 30 };
        show(&printer, &mut all, at(1 << 30));
        assert_eq!(told.text(), "");
        if let Some(shown) = all.get_mut("uploading me/model") {
            shown.told -= QUIET;
        }
        show(&printer, &mut all, at(2 << 30));
        show(&printer, &mut all, at(2 << 30));
        assert_eq!(told.text(), format!("uploading me/model: {} of {}\n", bytes(2_u64 << 30), bytes(3_u64 << 30)));
    }

    #[test]
    fn a_transfer_is_forgotten_when_it_ends_and_pauses_are_told() {
        let (printer, _, told) = captured(false);
        let mut all = HashMap::new();
        let what = "downloading me/model";
        let at = |done_bytes| Told::Progress(Progress { what, done_bytes, total_bytes: 3 });
        for end in [at(3), Told::Ended(what)] {
            hear(&printer, &mut all, at(1));
            assert_eq!(all.len(), 1);
            hear(&printer, &mut all, end);
            assert!(all.is_empty(), "{end:?}");
        }
        hear(&printer, &mut all, Told::Waits("the hub asks to wait 300 s"));
        assert_eq!(told.text(), "the hub asks to wait 300 s\n");
    }
}
