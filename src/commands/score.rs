//! `assay score`: the losses of a model folder as a validator would compute them, on given tokens or on the held-out
//! pages of the embedded text.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cli::ScoreArgs;
use crate::data::held_out::HeldOut;
use crate::data::token_lists::read_token_lists;
use crate::data::{self};
use crate::error::{Failure, input};
use crate::field;
use crate::metrics::jsonl;
use crate::metrics::printer::Printer;
use crate::model::arch::Reference;
use crate::model::scorer::Scoring;
use crate::model::weights::{self, LoadedModel};
use crate::placement::Placement;
use crate::rules::Rules;
use crate::score::continuation::{Continuations, Untellable};
use crate::score::{loss, output};
use crate::whole_file;

/// Runs the command.
pub fn run(args: &ScoreArgs, printer: &Printer) -> Result<()> {
    super::set_threads(args.threads)?;
    let backend = args.backend.into();
    let placement = Placement::open(args.device, backend, printer)?;
    if !args.model.is_dir() {
        return Err(input(format!("{} is not a folder: name the folder that holds config.json", args.model.display())));
    }
    // The lists first: reading them is cheap, and a mistake in them should not cost the loading of a model.
    let lists = args.tokens.as_deref().map(read_token_lists).transpose()?;
    let loaded = weights::load(&args.model)?;
    for note in &loaded.notes {
        printer.note(note);
    }
    let arch = &loaded.config.arch.seen_by(args.reference);
    let rules = Rules::default();
    let (rows, held_out) = match lists {
        Some(lists) => (lists, None),
        None => {
            let length = rules.criteria.sequence_length;
            let is_short = arch.max_row_len().is_some_and(|longest| longest < length);
            if arch.vocab_size < rules.criteria.tokenizer.vocab_size() || is_short {
                return Err(input(format!(
                    "{} has a vocabulary of {} and {} positions; rows of the embedded text have {length} tokens below {}: \
                     give --tokens FILE with rows that this model can read",
                    args.model.display(),
                    arch.vocab_size,
                    arch.context,
                    rules.criteria.tokenizer.vocab_size()
                )));
            }
            let opened = data::open_sample(length).context("the embedded text could not be opened")?;
            let held_out = HeldOut::read(&opened, args.rows as usize, length)?;
            (held_out.rows.clone(), Some(held_out))
        }
    };
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    if args.reference == Reference::default()
        && let Some(quirk) = loaded.config.arch.quirk(longest)
    {
        printer.note(&format!("{quirk} (--reference none scores it as it is trained.)"));
    }
    if let Some(path) = &args.write_tokens {
        whole_file::write(path, &serde_json::to_vec(&rows)?)?;
    }
    let scoring = Scoring { placement, backend, dtype: rules.criteria.dtype };
    field::check_memory(arch, &scoring, &rows)?;
    let mut losses = loss::losses(scoring.scorer(arch, &loaded.params)?.as_mut(), arch, &rows)?
        .ok_or_else(|| Failure::Interrupted("interrupted while scoring: nothing was written".to_owned()))?;
    let outputs = args.outputs.then(|| continuations(args, &loaded, &rows)).transpose()?;
    if let Some(fault) = outputs.as_ref().and_then(|outputs| outputs.fault.as_ref()) {
        losses.fill(f32::INFINITY);
        printer.note(&format!(
            "The continuations of the first two rows {fault}, so that validators from 21 March 2024 on count every loss as \
             infinite."
        ));
    }
    for (row, tokens) in rows.iter().enumerate() {
        if let Some(reason) = loss::unreadable(arch, tokens) {
            printer.note(&format!("list {row}: {reason}"));
        }
    }
    for (row, _) in losses.iter().zip(&rows).enumerate().filter(|(_, (loss, tokens))| loss.is_nan() && tokens.len() > 1)
    {
        printer
            .note(&format!("list {row}: the loss is not a number: some weight is none, or the activations overflow"));
    }
    if args.json {
        let losses: Vec<Value> = losses.iter().map(|&loss| jsonl::number(f64::from(loss))).collect();
        let mut answer = json!({ "losses": losses });
        if let Some(Continuations { tokens, fault }) = outputs {
            answer["outputs"] = json!(tokens);
            answer["reasonable_output"] = json!(fault.is_none());
        }
        return printer.result(&answer.to_string());
    }
    printer.result(&text(&losses, held_out.as_ref()))
}

/// The model's continuations of the first two rows. An error where it cannot be told what validators would find.
fn continuations(args: &ScoreArgs, loaded: &LoadedModel, rows: &[Vec<u32>]) -> Result<Continuations> {
    Continuations::of(&args.model, loaded, rows, output::MARCH_2024, [1, 2]).map_err(|untellable| match untellable {
        Untellable::Settings(error) | Untellable::Memory(error) => error,
        _ => input(format!("--outputs: {untellable}")),
    })
}

fn text(losses: &[f32], held_out: Option<&HeldOut>) -> String {
    let mean = losses.iter().copied().map(f64::from).sum::<f64>() / losses.len() as f64;
    match held_out {
        None => {
            let mut lines: Vec<String> =
                losses.iter().enumerate().map(|(row, loss)| format!("{row:>6}  {loss:.6}")).collect();
            lines.push(format!("  mean  {mean:.6} nats per token over {} rows", losses.len()));
            lines.join("\n")
        }
        Some(held_out) => format!(
            "{mean:.4} nats per token over {} rows of {} tokens from the embedded text's held-out pages\n\
             {:.4} is their unigram cross-entropy by the token counts of the other pages, {:.4} by their own: a model that\n\
             is below uses context",
            losses.len(),
            held_out.rows[0].len(),
            held_out.unigram_cross_entropy,
            held_out.unigram_entropy
        ),
    }
}
