//! `assay bench`: how fast this machine trains or scores a model of a given shape, on random weights and tokens, and how fast
//! it reads text (`bench/data.rs`).
//!
//! A training step is what a run does: forward, backward, norm, clipping, AdamW. The first step, which takes the memory,
//! is not counted; figures are medians over the others. On a GPU training also tells what it took of the card's memory
//! beside what `assay check` would have said, as `gpu_mib` and `gpu_estimate_mib`.

mod data;
mod parquet;
mod speed;
mod tokenize;
mod tokens;
mod web_text;

use std::time::Instant;

use anyhow::Result;
use serde_json::{Map, json};

use crate::cli::bench::{BenchArgs, BenchCommand, BenchModelArgs};
use crate::error::input;
use crate::figures::bytes;
use crate::metrics::printer::Printer;
use crate::model::arch::Arch;
use crate::model::config::{self, Sizes};
use crate::model::layout::Layout;
use crate::model::scorer::Scoring;
use crate::model::{Rows, gpu, init};
use crate::ops::random;
use crate::optim::clip;
use crate::placement::Placement;
use crate::recipe::{Activations, Recompute};
use crate::train::engine::{self, Options};
use crate::train::meter;
use crate::train::state::Weights;

const MIB: f64 = 1_048_576.0;

/// What is done with the model.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Train,
    Score,
}

/// Runs the command.
pub fn run(args: &BenchArgs, printer: &Printer) -> Result<()> {
    match &args.what {
        BenchCommand::Train(args) => run_model(Work::Train, args, printer),
        BenchCommand::Score(args) => run_model(Work::Score, args, printer),
        BenchCommand::Data(args) => data::run(args, printer),
    }
}

fn run_model(work: Work, args: &BenchModelArgs, printer: &Printer) -> Result<()> {
    super::set_threads(args.threads)?;
    if !args.width.is_multiple_of(args.heads) {
        let (width, heads) = (args.width, args.heads);
        return Err(input(format!("--width {width} is not a multiple of --heads {heads}: give one that is")));
    }
    if work == Work::Train && args.seq < 2 {
        return Err(input("--seq 1 leaves nothing to predict: give at least 2"));
    }
    let sizes = Sizes {
        vocab_size: args.vocab,
        context: args.seq,
        width: args.width,
        layers: args.layers,
        heads: args.heads,
        kv_heads: None,
        mlp_width: args.family.mlp_width(args.width),
    };
    let arch = config::new_arch(args.family, sizes, &Map::new()).map_err(input)?;
    let placement = Placement::open(args.device, args.backend.into(), printer)?;
    let (needed, free) = memory_needed_and_free(work, args, &arch, &placement)?;
    if let Some(free) = free.filter(|free| needed > *free) {
        return Err(input(format!(
            "this shape needs {} of memory and {} are free: give smaller --layers, --width or --batch",
            bytes(needed),
            bytes(free)
        )));
    }
    let Measured { mut seconds, gpu_bytes } = measure(work, args, &arch, &placement)?;
    seconds.sort_by(f64::total_cmp);
    let step_s = seconds[seconds.len() / 2];
    let tokens_per_s = (args.batch * args.seq) as f64 / step_s;
    let flops_per_token = match work {
        Work::Train => meter::train_flops_per_token(&arch, args.seq),
        Work::Score => meter::score_flops_per_token(&arch, args.seq),
    };
    let gflops = tokens_per_s * flops_per_token / 1e9;
    let peak_mib = meter::peak_memory_mib();
    if args.json {
        let mut report = json!({
            "tokens_per_s": tokens_per_s, "step_s": step_s, "gflops": gflops, "peak_mib": peak_mib,
        });
        if let Some(taken) = gpu_bytes {
            report["gpu_mib"] = json!(taken as f64 / MIB);
            report["gpu_estimate_mib"] = json!(needed as f64 / MIB);
        }
        return printer.result(&report.to_string());
    }
    let peak = peak_mib.map_or("n/a".to_owned(), |mib| format!("{mib:.0} MiB"));
    let on_gpu = gpu_bytes.map_or(String::new(), |taken| {
        format!("\nmemory of the GPU: {}, estimated {}", bytes(taken as u128), bytes(needed))
    });
    printer.result(&format!(
        "{tokens_per_s:.0} tokens/s, {step_s:.4} s a step, {gflops:.1} GFLOP/s, peak memory {peak}\n\
         ({} parameters, median of {} steps on {}){on_gpu}",
        Layout::of(&arch).len(),
        args.steps,
        placement.name()
    ))
}

/// Bytes that the shape takes where it is computed, and those that are free there, if that is known.
fn memory_needed_and_free(
    work: Work,
    args: &BenchModelArgs,
    arch: &Arch,
    placement: &Placement,
) -> Result<(u128, Option<u128>)> {
    Ok(match placement {
        Placement::Cpu => (memory_needed(work, args, arch), crate::memory::free()),
        Placement::Gpu(card) => {
            let memory = gpu::memory_estimate(arch, args.batch, args.seq, Recompute::None);
            let needed = match work {
                Work::Train => memory.total(),
                Work::Score => memory.weights,
            };
            (needed, Some(card.memory()?[0] as u128))
        }
    })
}

/// Bytes on the CPU; scoring has neither gradients nor moments, and keeps one block's activations.
fn memory_needed(work: Work, args: &BenchModelArgs, arch: &Arch) -> u128 {
    let params = arch.num_parameters().saturating_mul(4);
    let threads = rayon::current_num_threads();
    let activations = |arch: &Arch| {
        Activations::of(arch, args.backend.into(), args.batch, args.seq, threads, Recompute::None).total()
    };
    match work {
        Work::Train => params.saturating_mul(4).saturating_add(activations(arch)),
        Work::Score => params.saturating_add(activations(&Arch { layers: 1, ..arch.clone() })),
    }
}

/// What the steps took.
struct Measured {
    /// Seconds of each counted step.
    seconds: Vec<f64>,
    /// Bytes of the GPU's memory that training holds after its last step, which is what it holds at any time after the
    /// first.
    gpu_bytes: Option<usize>,
}

/// Free memory of the GPU, if there is one.
fn free_on_gpu(placement: &Placement) -> Result<Option<usize>> {
    Ok(match placement {
        Placement::Cpu => None,
        Placement::Gpu(card) => Some(card.memory()?[0]),
    })
}

fn measure(work: Work, args: &BenchModelArgs, arch: &Arch, placement: &Placement) -> Result<Measured> {
    let (layout, backend) = (Layout::of(arch), args.backend.into());
    let mut weights = Weights::zeros(&layout);
    init::scratch(arch, &layout, 1, weights.params.as_mut_slice());
    let tokens: Vec<u32> =
        (0..(args.batch * args.seq) as u64).map(|i| random::bits(2, i, 0) % arch.vocab_size as u32).collect();
    let rows = Rows::new(&tokens, args.batch, args.seq);
    let mut seconds = Vec::new();
    let mut gpu_bytes = None;
    match work {
        Work::Train => {
            let options = Options { backend, gelu_epilogue: args.gelu_epilogue, ..Options::usual(&layout) };
            let (learning_rate, clip_norm) = (options.optimizer.learning_rate, options.optimizer.clip_norm);
            let free = free_on_gpu(placement)?;
            let mut engine = engine::open(placement, arch, &options, weights)?;
            for step in 0..=args.steps {
                let started = Instant::now();
                engine.zero_gradients();
                engine.accumulate(rows, 1.0, None, None)?;
                let scale = clip::clip_factor(engine.gradient_norm()?, clip_norm);
                engine.update(step as u64, learning_rate, scale)?;
                seconds.push(started.elapsed().as_secs_f64());
            }
            gpu_bytes = free.zip(free_on_gpu(placement)?).map(|(before, after)| before.saturating_sub(after));
        }
        Work::Score => {
            let scoring = Scoring { placement: placement.clone(), backend, dtype: args.dtype };
            let mut scorer = scoring.scorer(arch, weights.params.as_slice())?;
            for _ in 0..=args.steps {
                let started = Instant::now();
                scorer.row_losses(rows)?;
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
    }
    seconds.remove(0);
    Ok(Measured { seconds, gpu_bytes })
}
