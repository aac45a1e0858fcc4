//! `assay bench`: how fast this machine trains or scores a GPT-2 of a given shape, on random weights and tokens.
//!
//! A training step is what a run does: forward, backward, norm, clipping, AdamW. The first step, which takes the memory,
//! is not counted; figures are medians over the others.

use std::time::Instant;

use anyhow::Result;
use serde_json::{Map, json};

use crate::cli::{BenchArgs, BenchKind};
use crate::error::input;
use crate::figures::bytes;
use crate::metrics::printer::Printer;
use crate::model::arch::Arch;
use crate::model::config::{self, Sizes};
use crate::model::layout::Layout;
use crate::model::{self, Rows, init};
use crate::ops::{Buffer, random};
use crate::optim::{adamw, adamw::AdamW, clip};
use crate::recipe::{Activations, Optimizer, Recompute};
use crate::train::meter;

/// Runs the command.
pub fn run(args: &BenchArgs, printer: &Printer) -> Result<()> {
    super::set_threads(args.threads)?;
    if !args.width.is_multiple_of(args.heads) {
        let (width, heads) = (args.width, args.heads);
        return Err(input(format!("--width {width} is not a multiple of --heads {heads}: give one that is")));
    }
    if args.what == BenchKind::Train && args.seq < 2 {
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
    let needed = memory_needed(args, &arch);
    if let Some(free) = super::check::free_memory().filter(|free| needed > *free) {
        return Err(input(format!(
            "this shape needs {} of memory and {} are free: give smaller --layers, --width or --batch",
            bytes(needed),
            bytes(free)
        )));
    }
    let mut seconds = measure(args, &arch)?;
    seconds.sort_by(f64::total_cmp);
    let step_s = seconds[seconds.len() / 2];
    let tokens_per_s = (args.batch * args.seq) as f64 / step_s;
    let flops_per_token = match args.what {
        BenchKind::Train => meter::train_flops_per_token(&arch, args.seq),
        BenchKind::Score => meter::score_flops_per_token(&arch, args.seq),
    };
    let gflops = tokens_per_s * flops_per_token / 1e9;
    let peak_mib = meter::peak_memory_mib();
    if args.json {
        let report = json!({
            "tokens_per_s": tokens_per_s, "step_s": step_s, "gflops": gflops, "peak_mib": peak_mib,
        });
        return printer.result(&report.to_string());
    }
    let peak = peak_mib.map_or("n/a".to_owned(), |mib| format!("{mib:.0} MiB"));
    printer.result(&format!(
        "{tokens_per_s:.0} tokens/s, {step_s:.4} s a step, {gflops:.1} GFLOP/s, peak memory {peak}\n\
         ({} parameters, median of {} steps)",
        Layout::of(&arch).len(),
        args.steps
    ))
}

/// Bytes; scoring has neither gradients nor moments, and keeps one block's activations.
fn memory_needed(args: &BenchArgs, arch: &Arch) -> u128 {
    let params = arch.num_parameters().saturating_mul(4);
    let threads = rayon::current_num_threads();
    let activations = |arch: &Arch| {
        Activations::of(arch, args.backend.into(), args.batch, args.seq, threads, Recompute::None).total()
    };
    match args.what {
        BenchKind::Train => params.saturating_mul(4).saturating_add(activations(arch)),
        BenchKind::Score => params.saturating_add(activations(&Arch { layers: 1, ..arch.clone() })),
    }
}

/// Seconds of each counted step.
fn measure(args: &BenchArgs, arch: &Arch) -> Result<Vec<f64>> {
    let layout = Layout::of(arch);
    let mut model = model::backend(args.backend.into(), arch);
    let mut params = Buffer::zeros(layout.len());
    init::scratch(arch, &layout, 1, params.as_mut_slice());
    let tokens: Vec<u32> =
        (0..(args.batch * args.seq) as u64).map(|i| random::bits(2, i, 0) % arch.vocab_size as u32).collect();
    let mut seconds = Vec::new();
    match args.what {
        BenchKind::Train => {
            let options = Optimizer::default();
            let optimizer = AdamW::new(&options, layout.len(), &adamw::decayed_ranges(&layout));
            let [mut gradients, mut means, mut squares] = [(); 3].map(|()| Buffer::<f32>::zeros(layout.len()));
            for step in 0..=args.steps {
                let started = Instant::now();
                gradients.as_mut_slice().fill(0.0);
                let (weights, sums) = (params.as_slice(), gradients.as_mut_slice());
                model.loss_and_gradients(weights, sums, Rows::new(&tokens, args.batch, args.seq), 1.0, None)?;
                let scale = clip::clip_factor(clip::global_norm(gradients.as_slice()), options.clip_norm);
                optimizer.step(
                    step as u64,
                    options.learning_rate,
                    scale,
                    params.as_mut_slice(),
                    gradients.as_slice(),
                    means.as_mut_slice(),
                    squares.as_mut_slice(),
                );
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
        BenchKind::Score => {
            for _ in 0..=args.steps {
                let started = Instant::now();
                model.row_losses(params.as_slice(), Rows::new(&tokens, args.batch, args.seq))?;
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
    }
    seconds.remove(0);
    Ok(seconds)
}
