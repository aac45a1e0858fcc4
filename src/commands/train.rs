//! `assay train`: a recipe becomes a model. Everything that can be checked is checked before anything is written.

use std::path::Path;

use anyhow::Result;

use super::machine;
use crate::cli::TrainArgs;
use crate::contest;
use crate::data::held_out::HeldOut;
use crate::data::loader::{Loader, LoaderShape};
use crate::data::{self};
use crate::dist::{Single, World};
use crate::error::{Failure, input};
use crate::figures::{bytes, count};
use crate::interrupt;
use crate::metrics::printer::Printer;
use crate::model::config::{self, ModelConfig};
use crate::model::layout::Layout;
use crate::model::weights::ModelFiles;
use crate::network;
use crate::placement::Placement;
use crate::recipe::{Estimate, Examined, Init, Recipe, Resolved, Source};
use crate::train::{self, Start, first_model, run_folder};

/// Runs the command.
pub fn run(args: &TrainArgs, printer: &Printer) -> Result<()> {
    let start = match (args.resume, args.fresh) {
        (true, _) => Start::Resume,
        (_, true) => Start::Fresh,
        _ => Start::Continue,
    };
    let mut overrides = args.set.clone();
    overrides.extend(args.device.map(|device| format!("train.device={device}")));
    let source = Source::read(&args.recipe, &overrides)?;
    let resolved = resolve(&source, source.recipe()?, start)?;
    for warning in &resolved.warnings {
        printer.warn(&source.located(warning));
    }
    super::set_threads(Some(resolved.threads))?;
    for shortage in machine::shortages(&resolved) {
        printer.warn(&shortage);
    }
    // From here on Ctrl-C is an orderly end; commands that have nothing to save are ended by it at once.
    interrupt::install()?;
    if args.dry_run {
        return printer.result(&dry_run(&resolved, start, printer)?);
    }
    let estimate = Estimate::of(&resolved);
    printer.note(&format!(
        "{}: {} parameters, {} steps of {} tokens, {} threads, into {}",
        resolved.recipe.name,
        count(estimate.num_parameters),
        count(resolved.recipe.train.steps as u128),
        count(resolved.recipe.train.tokens_per_step as u128),
        resolved.threads,
        resolved.run_dir.display()
    ));
    let summary = train::run(&resolved, start, &Single, printer)?;
    printer.result(&summary.text)?;
    summary.failure.map_or(Ok(()), Err)
}

/// The recipe with all defaults; a run that goes on keeps its number of threads unless the user names another.
fn resolve(source: &Source, recipe: Recipe, start: Start) -> Result<Resolved> {
    let resolved = valid(source, recipe.clone())?;
    if recipe.train.threads.is_some() || start == Start::Fresh {
        return Ok(resolved);
    }
    match run_folder::stored_recipe(&resolved.run_dir)? {
        None => Ok(resolved),
        Some(stored) => {
            let mut recipe = recipe;
            recipe.train.threads = stored.train.threads;
            valid(source, recipe)
        }
    }
}

fn valid(source: &Source, recipe: Recipe) -> Result<Resolved> {
    let Examined { resolved, violations } = recipe.examine();
    if violations.is_empty() { Ok(resolved) } else { Err(source.refusal(&violations)) }
}

/// Whether the run's folder, or the nearest folder above it that is there, may be written.
fn check_writable(run_dir: &Path) -> Result<()> {
    let existing = super::existing_folder(run_dir);
    rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).map_err(|error| {
        input(format!("checkpoint.dir: {} cannot be written ({error}): name another folder", existing.display()))
    })
}

/// All that a run would meet, up to its first batch, without writing anything.
fn dry_run(resolved: &Resolved, start: Start, printer: &Printer) -> Result<String> {
    let recipe = &resolved.recipe;
    let placement = Placement::for_training(resolved, printer)?;
    resolved.micro_steps(World::SINGLE.size)?;
    let found = run_folder::examine(&resolved.run_dir, recipe, start)?;
    check_writable(&resolved.run_dir)?;
    let mut lines = found.warnings;
    let dir = resolved.run_dir.display();
    lines.push(match found.goes_on {
        true => format!("Would go on with the run in {dir}."),
        false if start == Start::Fresh && resolved.run_dir.try_exists()? => {
            format!("Would move {dir} aside and start anew.")
        }
        false => format!("Would start a run in {dir}."),
    });
    let is_published = matches!(recipe.init, Init::Leader | Init::Uid(_) | Init::Repo(_));
    if is_published && network::needs_making(&recipe.chain) {
        lines.push("First weights from the embedded network, which would be made first.".to_owned());
    } else if recipe.init != Init::Scratch {
        let dir = first_model::folder(&recipe.init, resolved, printer)?;
        let config = ModelConfig::read(&dir)?;
        if config.arch != resolved.arch {
            return Err(config::mismatch(&config.arch, &resolved.arch, &dir));
        }
        ModelFiles::open(&dir, &resolved.arch, &Layout::of(&resolved.arch))?;
        lines.push(format!("First weights from {}.", dir.display()));
    }
    let sequence_length = resolved.rules.criteria.sequence_length;
    let known = run_folder::known_data(&resolved.run_dir, start)?;
    let data = data::open_again(recipe, sequence_length, known.as_ref(), printer)?;
    let held_out = HeldOut::read(&data, recipe.eval.rows, sequence_length)?;
    train::warn_of_cut_text(&held_out, printer);
    lines.push(format!(
        "Data: {} held-out rows of {sequence_length} tokens, unigram cross-entropy {:.4} nats per token.",
        held_out.rows.len(),
        held_out.unigram_cross_entropy
    ));
    let shape = LoaderShape { row_len: resolved.row_len, rows_per_batch: recipe.train.micro_batch };
    let mut loader = Loader::new(data.training, data.reading, shape, World::SINGLE, data::Cursor::default())?;
    let batch = loader.next_batch()?.ok_or_else(|| Failure::Interrupted("interrupted: nothing was written".into()))?;
    lines.push(format!("First batch: {} rows of {} tokens.", batch.num_rows, batch.row_len));
    if recipe.score.every > 0 {
        lines.extend(contest::preview(resolved, printer)?);
    }
    let estimate = Estimate::of(resolved);
    let memory = match (&placement, machine::gpu_memory(resolved)) {
        (Placement::Gpu(card), Some(memory)) => format!("{} of the memory of {}", bytes(memory.total()), card.name()),
        _ => format!("{} of memory", bytes(estimate.memory.total())),
    };
    lines.push(format!("Needs {memory} and {} of disk.", bytes(estimate.disk.total())));
    lines.push("All is well; nothing was written.".to_owned());
    Ok(lines.join("\n"))
}
