//! `assay check RECIPE`: what a recipe means and costs, and every rule its model would break, before anything is built.
//!
//! Reads the recipe only: data, models and checkpoints need not exist (`train --dry-run` looks at those). The report goes
//! to whoever prints; a recipe with violations gets its report all the same, and a refusal beside it (exit code 2).

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use super::machine;
use crate::cli::CheckArgs;
use crate::figures::{bytes, count, duration, scaled};
use crate::metrics::printer::Printer;
use crate::model::arch::Arch;
use crate::model::gpu::GpuMemory;
use crate::recipe::{Backend, Estimate, Examined, Recompute, Resolved, SAVE_BYTES_PER_SECOND, Source};

/// Arithmetic per second assumed for "how long": what two CPU cores of this decade reach in f32.
const CPU_FLOPS: f64 = 100e9;

/// And half the bf16 peak of one H100.
const GPU_FLOPS: f64 = 400e12;

/// What `assay check` has to say.
#[derive(Debug)]
pub struct Report {
    /// The report, for stdout; ends with a newline.
    pub text: String,
    /// Why the recipe cannot be used, if so.
    pub refusal: Option<anyhow::Error>,
}

/// Runs the command.
pub fn run(args: &CheckArgs, printer: &Printer) -> Result<()> {
    let report = check(args)?;
    printer.result(&report.text)?;
    report.refusal.map_or(Ok(()), Err)
}

/// Examines a recipe; fails only where it cannot be read or typed.
pub fn check(args: &CheckArgs) -> Result<Report> {
    let source = Source::read(&args.recipe, &args.set)?;
    let Examined { resolved, violations } = source.recipe()?.examine();
    let mut text = String::new();
    let write = |text: &mut String, line: &str| writeln!(text, "{line}").expect("a String takes everything");
    write(&mut text, &headline(&args.recipe, &resolved));
    for Line { label, value, why } in lines(&resolved) {
        write(&mut text, &format!("  {label:<12}{value}"));
        for why in why.iter().filter(|_| args.explain) {
            write(&mut text, &format!("  {:<12}  {why}", ""));
        }
    }
    let notes = resolved.warnings.iter().map(|finding| source.located(finding)).chain(machine::shortages(&resolved));
    for note in notes {
        write(&mut text, &format!("  note        {note}"));
    }
    if violations.is_empty() {
        write(&mut text, "Ready: no rule is broken.");
        return Ok(Report { text, refusal: None });
    }
    let broken = match violations.len() {
        1 => "Not usable: 1 thing to mend.".to_owned(),
        several => format!("Not usable: {several} things to mend."),
    };
    write(&mut text, &broken);
    Ok(Report { text, refusal: Some(source.refusal(&violations)) })
}

struct Line {
    label: &'static str,
    value: String,
    why: Vec<String>,
}

fn headline(path: &Path, resolved: &Resolved) -> String {
    let (arch, name) = (&resolved.arch, resolved.recipe.name.escape_debug());
    format!(
        "{}: run `{name}`, {} of {} layers × {} wide, {}, MLP {}, {} positions",
        path.display(),
        arch.family.title(),
        arch.layers,
        arch.width,
        heads(arch),
        arch.mlp_width,
        arch.context
    )
}

fn heads(arch: &Arch) -> String {
    match arch.kv_heads == arch.heads {
        true => format!("{} heads", arch.heads),
        false => format!("{} heads ({} of keys)", arch.heads, arch.kv_heads),
    }
}

fn lines(resolved: &Resolved) -> Vec<Line> {
    let estimate = Estimate::of(resolved);
    let mut lines = model_lines(resolved, &estimate);
    lines.extend(cost_lines(resolved, &estimate));
    lines
}

fn model_lines(resolved: &Resolved, estimate: &Estimate) -> Vec<Line> {
    let (arch, rules, recipe) = (&resolved.arch, &resolved.rules, &resolved.recipe);
    let (criteria, validator) = (&rules.criteria, &rules.validator);
    let own = |is_own: bool, key: &str| match is_own {
        true => format!("set by rules.{key} of this recipe"),
        false => format!("in force from block {}", count(criteria.from_block)),
    };
    let n = estimate.num_parameters;
    let of_layers = |layers: usize| Arch { layers, ..arch.clone() }.num_parameters();
    let (outside, a_layer) = (of_layers(0), of_layers(1).saturating_sub(of_layers(0)));
    let (limit, repo_limit) = (u128::from(criteria.max_parameters), u128::from(criteria.max_repo_bytes));
    let room = match n <= limit {
        true => format!("{} to spare", count(limit - n)),
        false => format!("{} TOO MANY", count(n - limit)),
    };
    let micro_steps = match resolved.micro_steps(1) {
        Ok(micro_steps) => count(micro_steps as u128),
        Err(_) => "?".to_owned(),
    };
    vec![
        Line {
            label: "rules",
            value: format!(
                "block {}: rows of {} tokens, {} tokenizer, {} allowed classes",
                count(rules.block),
                count(criteria.sequence_length as u128),
                criteria.tokenizer.name(),
                criteria.architectures.len()
            ),
            why: vec![
                format!("sequence length {}", own(recipe.rules.sequence_length.is_some(), "sequence_length")),
                format!("classes {}: {}", own(false, ""), criteria.architectures.join(", ")),
                format!(
                    "validator of {} ({}): epsilon {}, temperature {}, {} pages per step, keeps {} models",
                    validator.since,
                    validator.commit,
                    rules.epsilon,
                    validator.temperature,
                    validator.pages_per_step,
                    validator.sample_min
                ),
            ],
        },
        Line {
            label: "parameters",
            value: format!("{} of at most {} ({room})", count(n), count(limit)),
            why: vec![
                format!("limit {}; equal passes", own(recipe.rules.max_parameters.is_some(), "max_parameters")),
                format!(
                    "embeddings, {} and what stands outside the layers {}, of which tokens {} × {}",
                    if arch.tied_head { "head shared with the tokens'," } else { "head" },
                    count(outside),
                    count(arch.vocab_size as u128),
                    arch.width
                ),
                format!("{} layers × {}", arch.layers, count(a_layer)),
            ],
        },
        Line {
            label: "repository",
            value: format!("{} of at most {}", bytes(estimate.disk.model), bytes(repo_limit)),
            why: vec![
                format!("4 bytes × {} parameters, and some KiB of headers", count(n)),
                format!("limit {}; equal passes", own(recipe.rules.max_repo_bytes.is_some(), "max_repo_bytes")),
            ],
        },
        Line {
            label: "step",
            value: format!("{} tokens", count(recipe.train.tokens_per_step as u128)),
            why: vec![
                format!(
                    "{micro_steps} × {} rows × {} tokens on one device; no more on several",
                    recipe.train.micro_batch, resolved.row_len
                ),
                format!("{} threads: part of what determines the run's bits", resolved.threads),
            ],
        },
        Line {
            label: "run",
            value: format!(
                "{} steps, {} tokens, {} per parameter",
                count(recipe.train.steps as u128),
                count(estimate.total_tokens),
                ratio(estimate.tokens_per_parameter)
            ),
            why: vec!["about 20 tokens per parameter is where a given amount of arithmetic trains best".to_owned()],
        },
    ]
}

/// Two or three digits that matter.
fn ratio(value: f64) -> String {
    match value {
        ..0.1 => format!("{value:.3}"),
        0.1..100.0 => format!("{value:.1}"),
        _ => count(value.round() as u128),
    }
}

fn memory_line(resolved: &Resolved, estimate: &Estimate) -> Line {
    match machine::gpu_memory(resolved) {
        Some(memory) => gpu_memory_line(resolved, &memory),
        None => cpu_memory_line(resolved, estimate),
    }
}

fn gpu_memory_line(resolved: &Resolved, memory: &GpuMemory) -> Line {
    let train = &resolved.recipe.train;
    Line {
        label: "memory",
        value: format!(
            "{} on the GPU: weights {}, gradients {}, moments {}, activations {}, logits {}",
            bytes(machine::gpu_peak(resolved, memory)),
            bytes(memory.weights),
            bytes(memory.gradients),
            bytes(memory.moments),
            bytes(memory.activations),
            bytes(memory.logits)
        ),
        why: vec![
            format!(
                "activations: {} rows × {} tokens, with train.recompute: {}",
                train.micro_batch,
                resolved.row_len,
                recompute(train.recompute)
            ),
            "CUDA itself and its libraries come on top: some hundred MiB; the host keeps a copy of weights and moments"
                .to_owned(),
        ]
        .into_iter()
        .chain(scoring_line(Estimate::of(resolved).memory.scoring, "in place of activations and logits, "))
        .collect(),
    }
}

/// What scoring takes, if the run scores.
fn scoring_line(scoring: u128, how: &str) -> Option<String> {
    (scoring > 0)
        .then(|| format!("while scoring, {how}{}: a rival as large as the rules allow, one at a time", bytes(scoring)))
}

fn recompute(choice: Recompute) -> &'static str {
    match choice {
        Recompute::None => "none",
        Recompute::Mlp => "mlp",
        Recompute::Block => "block",
    }
}

fn cpu_memory_line(resolved: &Resolved, estimate: &Estimate) -> Line {
    let recipe = &resolved.recipe;
    let (memory, activations) = (&estimate.memory, &estimate.memory.activations);
    let n = count(estimate.num_parameters);
    let tokens = (recipe.train.micro_batch as u128).saturating_mul(resolved.row_len as u128);
    let numbers_per_token = (activations.saved / 4).checked_div(tokens).unwrap_or(0);
    let saved = match recipe.model.backend {
        Backend::Native => format!(
            "activations: 4 bytes × {} × {} tokens × {} numbers each, with train.recompute: {}",
            recipe.train.micro_batch,
            resolved.row_len,
            count(numbers_per_token),
            recompute(recipe.train.recompute)
        ),
        Backend::Candle => {
            "activations: candle keeps every intermediate, attention and logits too; a rough count".into()
        }
    };
    Line {
        label: "memory",
        value: format!(
            "{}: weights {}, gradients {}, moments {}, activations {}{}",
            bytes(memory.total()),
            bytes(memory.weights),
            bytes(memory.gradients),
            bytes(memory.moments),
            bytes(activations.total()),
            if memory.scoring > 0 { format!(", scoring {}", bytes(memory.scoring)) } else { String::new() }
        ),
        why: vec![
            format!("weights and gradients 4 bytes × {n} each, AdamW's two moments 8 bytes × {n}"),
            saved,
            format!(
                "that is {}; {} more in the backward pass, {} for logits",
                bytes(activations.saved),
                bytes(activations.backward),
                bytes(activations.logits)
            ),
            "the program itself, its tokenizer and text come on top: a few hundred MiB".to_owned(),
        ]
        .into_iter()
        .chain(scoring_line(memory.scoring, ""))
        .collect(),
    }
}

fn cost_lines(resolved: &Resolved, estimate: &Estimate) -> Vec<Line> {
    let (arch, recipe, disk) = (&resolved.arch, &resolved.recipe, &estimate.disk);
    let n = count(estimate.num_parameters);
    vec![
        memory_line(resolved, estimate),
        Line {
            label: "disk",
            value: format!(
                "{} at most: {} checkpoints of {} in {}",
                bytes(disk.total()),
                count(disk.num_checkpoints),
                bytes(disk.checkpoint()),
                resolved.run_dir.display()
            ),
            why: vec![
                format!(
                    "a checkpoint: model {}, 4 bytes × {n}; state {}, 8 bytes × {n}",
                    bytes(disk.model),
                    bytes(disk.state)
                ),
                format!(
                    "the newest {}, `best`, one being written, {} kept for good",
                    recipe.checkpoint.keep_last,
                    count(disk.num_checkpoints.saturating_sub(recipe.checkpoint.keep_last as u128).saturating_sub(2))
                ),
            ],
        },
        Line {
            label: "a save",
            value: format!("about {}", duration(estimate.save_seconds)),
            why: vec![format!(
                "{} at an assumed {} to write, hash and sync",
                bytes(disk.checkpoint()),
                scaled(SAVE_BYTES_PER_SECOND, "B/s")
            )],
        },
        Line {
            label: "arithmetic",
            value: format!(
                "{} per token, {} in all: {} at {}, {} at {}",
                scaled(estimate.flops_per_token, "FLOP"),
                scaled(estimate.total_flops, "FLOP"),
                duration(estimate.total_flops / CPU_FLOPS),
                scaled(CPU_FLOPS, "FLOP/s"),
                duration(estimate.total_flops / GPU_FLOPS),
                scaled(GPU_FLOPS, "FLOP/s"),
            ),
            why: vec![
                format!(
                    "6 × {n} parameters + {} × {} layers × {} wide × {} tokens",
                    crate::train::meter::attention_flops_per_channel(arch),
                    arch.layers,
                    arch.heads.saturating_mul(arch.head_size),
                    resolved.row_len
                ),
                "the two speeds stand for two CPU cores in f32 and half the bf16 peak of one H100".to_owned(),
            ],
        },
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::error::exit_code;
    use crate::recipe::{differences, load_resolved, to_yaml};

    fn recipes() -> Vec<PathBuf> {
        let paths: Vec<_> =
            glob::glob(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/*.yaml")).unwrap().flatten().collect();
        assert!(paths.len() >= 3, "{paths:?}");
        paths
    }

    fn args(recipe: &Path, set: &[&str], explain: bool) -> CheckArgs {
        CheckArgs { recipe: recipe.to_owned(), set: set.iter().map(|typed| (*typed).to_owned()).collect(), explain }
    }

    fn recipe(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes").join(name)
    }

    #[test]
    fn every_shipped_recipe_is_valid_commented_and_named_after_its_file() {
        for path in recipes() {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("# "), "{} must open with a comment", path.display());
            let resolved = load_resolved(&path, &[]).unwrap();
            assert_eq!(Some(resolved.recipe.name.as_str()), path.file_stem().unwrap().to_str());
            assert_eq!(resolved.warnings, [], "{}", path.display());
            let report = check(&args(&path, &[], true)).unwrap();
            assert!(
                report.refusal.is_none() && report.text.ends_with("Ready: no rule is broken.\n"),
                "{}",
                report.text
            );
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), to_yaml(&resolved.recipe)).unwrap();
            assert_eq!(differences(&resolved.recipe, &load_resolved(file.path(), &[]).unwrap().recipe), []);
        }
    }

    #[test]
    fn the_large_recipes_lie_just_below_their_limits() {
        let parameters = |name: &str| load_resolved(&recipe(name), &[]).unwrap().num_parameters;
        assert_eq!(parameters("gpt2-186m.yaml"), 185_805_312);
        assert_eq!(parameters("gpt2-772m.yaml"), 768_129_536);
        assert_eq!(parameters("quickstart.yaml"), 7_357_312);
    }

    #[test]
    fn the_report_states_figures_against_limits() {
        let path = recipe("gpt2-772m.yaml");
        let report = check(&args(&path, &["checkpoint.dir=runs/x"], false)).unwrap();
        for line in [
            "  parameters  768,129,536 of at most 772,000,000 (3,870,464 to spare)\n",
            "  repository  2.86 GiB of at most 5.00 GiB\n",
            "  step        524,288 tokens\n",
            "  run         30,000 steps, 15,728,640,000 tokens, 20.5 per parameter\n",
            "  disk        85.85 GiB at most: 10 checkpoints of 8.58 GiB in runs/x\n",
            "  a save      about 23 s\n",
        ] {
            assert!(report.text.contains(line), "{line}{}", report.text);
        }
        let explained = check(&args(&path, &[], true)).unwrap().text;
        assert!(explained.contains("limit in force from block 2,405,920; equal passes"), "{explained}");
        assert!(explained.contains("36 layers × 19,513,536"), "{explained}");
        assert!(explained.lines().count() > 2 * report.text.lines().count());
    }

    #[test]
    fn a_model_over_the_limit_gets_its_report_and_a_refusal() {
        let report = check(&args(&recipe("gpt2-772m.yaml"), &["model.mlp_width=5120"], false)).unwrap();
        assert!(report.text.contains("774,030,080 of at most 772,000,000 (2,030,080 TOO MANY)"), "{}", report.text);
        assert!(report.text.ends_with("Not usable: 1 thing to mend.\n"), "{}", report.text);
        let refusal = report.refusal.unwrap();
        assert_eq!(exit_code(&refusal), 2);
        assert!(refusal.to_string().contains("model: 774,030,080 parameters are 2,030,080 above"), "{refusal}");
    }

    #[test]
    fn absurd_sizes_still_get_a_report() {
        let absurd = ["model.layers=1e15", "model.width=0", "model.heads=0", "train.micro_batch=0", "train.steps=1e15"];
        let report = check(&args(&recipe("quickstart.yaml"), &absurd, true)).unwrap();
        assert!(report.text.ends_with("Not usable: 4 things to mend.\n"), "{}\n{:?}", report.text, report.refusal);
    }
}
