//! `assay data`: what a recipe's text is like, and its tokens written once.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::cli::data::{DataArgs, DataCommand};
use crate::data::stages::{Stage, Stages};
use crate::data::tokens::prepare::{self, Progress, Wanted};
use crate::data::{self, Corpus};
use crate::error::{Failure, input};
use crate::figures::{bytes, count};
use crate::interrupt;
use crate::metrics::printer::Printer;
use crate::metrics::table::table;
use crate::recipe::{self, Resolved, SourceKind};

/// How often it is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How often it is looked whether all is done.
const GLANCE: Duration = Duration::from_millis(50);
/// Upper ends of the lengths, in tokens, by which documents are counted.
const LENGTHS: [usize; 9] = [16, 64, 128, 256, 512, 1024, 2048, 4096, usize::MAX];
/// Bytes of a token on disk.
const TOKEN_BYTES: u128 = 2;

/// Runs the command.
pub fn run(args: &DataArgs, printer: &Printer) -> Result<()> {
    interrupt::install()?;
    match &args.command {
        DataCommand::Prepare { recipe, set, out, tokens, shard_tokens } => {
            let resolved = recipe::load_resolved(recipe, set)?;
            let train = &resolved.recipe.train;
            let num_tokens = tokens.unwrap_or((train.steps as u64).saturating_mul(train.tokens_per_step as u64));
            let wanted = Wanted { num_tokens, shard_tokens: *shard_tokens };
            printer.result(&prepare(&resolved, out, wanted, printer)?)
        }
        DataCommand::Stat { recipe, set, documents, json } => {
            let resolved = recipe::load_resolved(recipe, set)?;
            let stat = Stat::of(&resolved, *documents, printer)?;
            printer.result(&if *json { stat.json().to_string() } else { stat.text() })
        }
    }
}

fn prepare(resolved: &Resolved, out: &Path, wanted: Wanted, printer: &Printer) -> Result<String> {
    if resolved.recipe.data.source == SourceKind::Tokens {
        return Err(prepare::prepared_already());
    }
    let length = resolved.rules.criteria.sequence_length;
    let known = prepare::known(out);
    let data = data::open_again(
        &resolved.recipe,
        length,
        known.as_ref().and_then(|known| known.text.get(prepare::RECORD)?.as_object()),
        printer,
    )?;
    let there = known.as_ref().map_or(0, |known| known.tokens);
    let needed = u128::from(wanted.num_tokens.saturating_sub(there)) * TOKEN_BYTES;
    if let Some(free) = super::machine::free_disk(out).filter(|free| *free < needed) {
        printer.warn(&format!(
            "{} tokens more take {} of disk, and {} are free: give fewer --tokens, or make room",
            count(wanted.num_tokens.saturating_sub(there)),
            bytes(needed),
            bytes(free)
        ));
    }
    let started = Instant::now();
    let (written, is_done) = (AtomicU64::new(there), AtomicBool::new(false));
    let mut tell = |Progress { tokens, .. }: Progress| written.store(tokens, Ordering::Relaxed);
    let done = thread::scope(|scope| {
        scope.spawn(|| watch(&written, wanted.num_tokens, &data.reading.stages, &is_done, printer));
        let done = prepare::run(&data, text_of(resolved, &data.training), out, wanted, &mut tell);
        is_done.store(true, Ordering::Relaxed);
        done
    })?;
    let dir = out.display();
    Ok(match done.tokens - done.before {
        0 => format!("{dir} holds {} tokens already, as many as are wanted.", count(done.tokens)),
        new => format!(
            "Wrote {} tokens in {:.1} s; {dir} holds {} in {} shards. Recipes read them with `data: {{source: tokens, paths: \
             [{dir}]}}`.",
            count(new),
            started.elapsed().as_secs_f64(),
            count(done.tokens),
            done.shards
        ),
    })
}

/// Tells now and then how many tokens are written, or what is waited for where none are.
fn watch(written: &AtomicU64, wanted: u64, stages: &Stages, is_done: &AtomicBool, printer: &Printer) {
    let (mut told_at, mut told) = (Instant::now(), written.load(Ordering::Relaxed));
    let mut moved_at = told_at;
    while !is_done.load(Ordering::Relaxed) {
        thread::sleep(GLANCE);
        if told_at.elapsed() < TELL_EVERY {
            continue;
        }
        let tokens = written.load(Ordering::Relaxed);
        if tokens == told {
            printer.warn(&stages.stall(moved_at.elapsed()));
        } else {
            let speed = (tokens - told) as f64 / moved_at.elapsed().as_secs_f64();
            printer.note(&format!("{} of {} tokens, {} tokens/s", count(tokens), count(wanted), count(speed as u64)));
            moved_at = Instant::now();
        }
        (told_at, told) = (Instant::now(), tokens);
    }
}

/// What determines the stream of a recipe's text.
fn text_of(resolved: &Resolved, corpus: &Corpus) -> Map<String, Value> {
    let data = &resolved.recipe.data;
    let mut text = Map::from_iter([
        ("source".to_owned(), json!(data.source)),
        ("paths".to_owned(), json!(data.paths)),
        ("held_out".to_owned(), json!(data.held_out)),
        ("held_out_every".to_owned(), json!(data.held_out_every)),
        ("text_key".to_owned(), json!(data.text_key())),
        ("max_document_tokens".to_owned(), json!(data.max_document_tokens)),
        ("interleave".to_owned(), json!(data.interleave)),
        ("seed".to_owned(), json!(resolved.recipe.train.seed)),
    ]);
    if let Some(record) = corpus.record() {
        text.insert(prepare::RECORD.to_owned(), Value::Object(record));
    }
    text
}

/// What the beginning of a text is like.
struct Stat {
    name: String,
    record: Option<Map<String, Value>>,
    documents: u64,
    cut: u64,
    skipped: u64,
    tokens: u64,
    /// `None` where there are only tokens.
    text_bytes: Option<u64>,
    lengths: [u64; LENGTHS.len()],
    /// Name, MB/s of one thread, and MB of each stage that was passed.
    stages: Vec<(&'static str, f64, f64)>,
    /// Token shards, and how many of them have no sum.
    sums: Option<(usize, usize)>,
}

impl Stat {
    fn of(resolved: &Resolved, max_documents: u64, printer: &Printer) -> Result<Self> {
        let opened = data::open(&resolved.recipe, resolved.rules.criteria.sequence_length, printer)?;
        let corpus = &opened.training;
        let sums = match (corpus, &opened.held_out) {
            (Corpus::Tokens(training), Corpus::Tokens(held_out)) => {
                Some(check_sums(training.shards().iter().chain(held_out.shards()))?)
            }
            _ => None,
        };
        let limit = opened.reading.packing.max_document_tokens;
        let (mut documents, mut cut, mut tokens, mut text_bytes) = (0, 0, 0, 0);
        let mut lengths = [0; LENGTHS.len()];
        corpus.each_document(&opened.reading, limit, |document| {
            documents += 1;
            tokens += document.tokens.len() as u64;
            text_bytes += document.text.map_or(0, |text| text.len() as u64);
            cut += u64::from(document.is_cut);
            let length = document.tokens.len() - 1;
            lengths[LENGTHS.iter().position(|end| length <= *end).unwrap_or(LENGTHS.len() - 1)] += 1;
            match documents >= max_documents || interrupt::requested() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        check_interrupt()?;
        if documents == 0 {
            return Err(input(format!("{}: there is no document", corpus.name())));
        }
        let stages = Stage::ALL.into_iter().filter_map(|stage| {
            let done = opened.reading.stages.done(stage);
            let megabytes = done.bytes as f64 / 1e6;
            (done.bytes > 0).then(|| (stage.name(), megabytes / done.busy.as_secs_f64().max(1e-9), megabytes))
        });
        Ok(Self {
            name: corpus.name(),
            record: corpus.record(),
            documents,
            cut,
            skipped: opened.reading.stages.skipped(),
            tokens,
            text_bytes: matches!(corpus, Corpus::Text(_)).then_some(text_bytes),
            lengths,
            stages: stages.collect(),
            sums,
        })
    }

    fn bytes_per_token(&self) -> Option<f64> {
        self.text_bytes.map(|bytes| bytes as f64 / self.tokens as f64)
    }

    fn json(&self) -> Value {
        let stages = self.stages.iter().map(|&(name, speed, megabytes)| {
            (name.to_owned(), json!({"megabytes_per_s": speed, "megabytes": megabytes}))
        });
        let lengths = std::iter::zip(LENGTHS, self.lengths).map(|(end, number)| {
            json!({"up_to": if end == usize::MAX { Value::Null } else { json!(end) }, "documents": number})
        });
        json!({
            "text": self.name,
            "record": self.record,
            "documents": self.documents,
            "cut": self.cut,
            "skipped": self.skipped,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            "bytes_per_token": self.bytes_per_token(),
            "lengths": lengths.collect::<Vec<_>>(),
            "stages": stages.collect::<Map<_, _>>(),
            "shards_checked": self.sums.map(|(shards, unknown)| shards - unknown),
        })
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{}\n{} documents, {} tokens with their ends",
            self.name,
            count(self.documents),
            count(self.tokens)
        );
        if let (Some(text_bytes), Some(bytes_per_token)) = (self.text_bytes, self.bytes_per_token()) {
            text.push_str(&format!(", {} of text, {bytes_per_token:.2} bytes per token", bytes(text_bytes)));
        }
        text.push_str(&format!(
            "\n{} documents are cut to their first tokens, {} rows are no text and were left out\n",
            count(self.cut),
            count(self.skipped)
        ));
        for (key, value) in self.record.iter().flatten() {
            text.push_str(&format!("{key}: {}\n", value.as_str().map_or(value.to_string(), str::to_owned)));
        }
        let most = self.lengths.iter().copied().max().unwrap_or(1).max(1);
        let rows = std::iter::zip(LENGTHS, self.lengths).map(|(end, number)| {
            let up_to = if end == usize::MAX { "more".to_owned() } else { format!("to {}", count(end as u64)) };
            let share = 100.0 * number as f64 / self.documents as f64;
            vec![up_to, count(number), format!("{share:.1} %"), "#".repeat((40 * number / most) as usize)]
        });
        text.push_str(&format!("\n{}", table(&["tokens", "documents", "share", ""], &rows.collect::<Vec<_>>())));
        if !self.stages.is_empty() {
            let rows = self.stages.iter().map(|&(name, speed, megabytes)| {
                vec![name.to_owned(), format!("{speed:.1} MB/s"), format!("{megabytes:.1} MB")]
            });
            let header = ["stage", "of one thread", "passed"];
            text.push_str(&format!("\n{}", table(&header, &rows.collect::<Vec<_>>())));
        }
        if let Some((shards, unknown)) = self.sums {
            text.push_str(&format!("\n{} of {shards} token shards are what was written", shards - unknown));
            if unknown > 0 {
                text.push_str(&format!("; {unknown} tell no sum, as other programs write them"));
            }
            text.push('\n');
        }
        text.trim_end().to_owned()
    }
}

/// Ends the command if the user wants it.
fn check_interrupt() -> Result<()> {
    match interrupt::requested() {
        true => Err(Failure::Interrupted("interrupted: nothing was written".to_owned()).into()),
        false => Ok(()),
    }
}

/// Holds token shards against their sums: how many there are, and how many have none.
fn check_sums<'a>(shards: impl Iterator<Item = &'a data::tokens::Shard>) -> Result<(usize, usize)> {
    let (mut number, mut unknown) = (0, 0);
    for shard in shards {
        check_interrupt()?;
        number += 1;
        match shard.is_intact() {
            Some(true) => {}
            None => unknown += 1,
            Some(false) => {
                let path = shard.path().display();
                return Err(input(format!(
                    "{path} is damaged: its tokens are not those that were written; prepare it again"
                )));
            }
        }
    }
    Ok((number, unknown))
}
