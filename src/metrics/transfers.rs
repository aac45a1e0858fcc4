//! How far up- and downloads are: a bar for each on a terminal; elsewhere a line now and then, so that a log of the night shows
//! that something moves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::printer::Printer;
use crate::figures::bytes;
use crate::hub::progress::{Observer, Progress};

/// How long a transfer goes on without a line, where there is no terminal.
const QUIET: Duration = Duration::from_secs(60);

/// A transfer that is shown.
struct Shown {
    /// None without a terminal.
    bar: Option<ProgressBar>,
    /// When it last was told.
    told: Instant,
}

/// Shows transfers until they are whole.
pub fn observer(printer: &Printer) -> Observer {
    let printer = printer.clone();
    let all: Arc<Mutex<HashMap<String, Shown>>> = Arc::default();
    Observer::new(move |progress| {
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        show(&printer, &mut all, progress);
    })
}

fn show(printer: &Printer, all: &mut HashMap<String, Shown>, progress: Progress<'_>) {
    let Progress { what, done_bytes, total_bytes } = progress;
    if done_bytes >= total_bytes {
        if let Some(Shown { bar: Some(bar), .. }) = all.remove(what) {
            bar.finish_and_clear();
        }
        return;
    }
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
    fn a_long_transfer_is_told_now_and_then_and_forgotten_when_it_is_whole() {
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
        show(&printer, &mut all, at(3 << 30));
        assert!(all.is_empty());
    }
}
