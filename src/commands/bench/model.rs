//! Training steps and scoring of a model of a given shape.
//!
//! A training step is what a run does: forward, backward, norm, clipping, AdamW. The first step, which takes the memory,
//! is not counted; figures are medians over the others. `mfu` is the model's arithmetic as a part of what the card can do at
//! most in the number format that it computes in; of a card whose peak is not known, and of the CPU, it is null. On a GPU
//! training also tells what it took of the card's memory beside what `assay check` would have said, as `gpu_mib` and
//! `gpu_estimate_mib`; `--profile` lists the operations of one step more, and `--paper` those of a step on a card that need
//! not be there, with the least time that it would take.

use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};

use super::operations;
use crate::cli::bench::BenchModelArgs;
use crate::error::input;
use crate::figures::bytes;
use crate::gpu::cards::{self, Card};
use crate::gpu::profile::Operation;
use crate::gpu::{Dtype, paper};
use crate::metrics::printer::Printer;
use crate::metrics::progress::flops;
use crate::model::arch::Arch;
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
pub(super) enum Work {
    Train,
    Score,
}

/// Measures, or counts on paper.
pub(super) fn run(work: Work, args: &BenchModelArgs, printer: &Printer) -> Result<()> {
    crate::commands::set_threads(args.threads)?;
    if work == Work::Train && args.shape.seq < 2 {
        return Err(input("--seq 1 leaves nothing to predict: give at least 2"));
    }
    let arch = args.shape.arch()?;
    let card = args.paper.as_deref().map(card_named).transpose()?;
    let placement = match card {
        Some(card) => Placement::Gpu(paper::open(card.name)),
        None => Placement::open(args.device, args.backend.into(), printer)?,
    };
    if args.profile && matches!(placement, Placement::Cpu) {
        return Err(input(
            "--profile lists what a GPU does, and the CPU computes here: give --device cuda, or --paper CARD",
        ));
    }
    if work == Work::Score && (args.profile || card.is_some()) && !gpu::can_score(&arch, args.dtype) {
        return Err(input(
            "a GPU's kernels cannot score heads this large, or a model this wide: the CPU would, unprofiled",
        ));
    }
    // Untouched zeros take no memory, but more than there is the system does not promise.
    let promised = crate::memory::free().filter(|_| card.is_some());
    let num_bytes = arch.num_parameters().saturating_mul(size_of::<f32>() as u128);
    if let Some(free) = promised.filter(|free| num_bytes > *free) {
        let (needed, free) = (bytes(num_bytes), bytes(free));
        return Err(input(format!(
            "this model's parameters are {needed} of memory and {free} are free here: give smaller --layers or --width"
        )));
    }
    let (needed, free) = memory_needed_and_free(work, args, &arch, &placement)?;
    if let Some(free) = free.filter(|free| needed > *free) {
        return Err(input(format!(
            "this shape needs {} of memory and {} are free: give smaller --layers, --width or --batch",
            bytes(needed),
            bytes(free)
        )));
    }
    let measured = measure(work, args, &arch, &placement)?;
    let (mut json, mut text) = if card.is_none() {
        let (json, line) = speed(work, args, &arch, &placement, &measured);
        (json, vec![line])
    } else {
        (json!({}), Vec::new())
    };
    if let Some(taken) = measured.gpu_bytes {
        json["gpu_mib"] = json!(taken as f64 / MIB);
        json["gpu_estimate_mib"] = json!(needed as f64 / MIB);
        text.push(format!("memory of the GPU: {}, estimated {}", bytes(taken as u128), bytes(needed)));
    }
    if !measured.operations.is_empty() {
        let card = placement.card();
        let groups = operations::groups(&measured.operations, card);
        if let (Some(card), Some(seconds)) = (card, operations::floor_seconds(&groups)) {
            let (floor, line) = floor(work, args, &arch, card, seconds);
            json["floor"] = floor;
            text.push(line);
        }
        json["operations"] = operations::json(&groups);
        text.push(operations::text(&groups));
    }
    printer.result(&if args.json { json.to_string() } else { text.join("\n") })
}

/// How fast it was, for programs and for people.
fn speed(
    work: Work,
    args: &BenchModelArgs,
    arch: &Arch,
    placement: &Placement,
    measured: &Measured,
) -> (Value, String) {
    let mut seconds = measured.seconds.clone();
    seconds.sort_by(f64::total_cmp);
    let step_s = seconds[seconds.len() / 2];
    let tokens_per_s = args.shape.tokens() as f64 / step_s;
    let gflops = tokens_per_s * flops_per_token(work, arch, args.shape.seq) / 1e9;
    let tflops = gflops / 1000.0;
    let mfu = peak_tflops(work, args, arch, placement).map(|peak| tflops / peak);
    let peak_mib = meter::peak_memory_mib();
    let json = json!({
        "tokens_per_s": tokens_per_s, "step_s": step_s, "gflops": gflops, "tflops": tflops, "mfu": mfu,
        "peak_mib": peak_mib,
    });
    let peak = peak_mib.map_or("n/a".to_owned(), |mib| format!("{mib:.0} MiB"));
    let utilization = match (mfu, placement) {
        (Some(mfu), _) => format!(", {:.1} % MFU", 100.0 * mfu),
        (None, Placement::Gpu(_)) => ", MFU n/a".to_owned(),
        (None, Placement::Cpu) => String::new(),
    };
    let text = format!(
        "{tokens_per_s:.0} tokens/s, {step_s:.4} s a step, {}{utilization}, peak memory {peak}\n\
         ({} parameters, median of {} steps on {})",
        flops(gflops),
        Layout::of(arch).len(),
        args.steps,
        placement.name()
    );
    (json, text)
}

/// What the place can do at most, in 10¹² floating-point operations per second, in the number format that it computes in.
fn peak_tflops(work: Work, args: &BenchModelArgs, arch: &Arch, placement: &Placement) -> Option<f64> {
    match work {
        Work::Train => placement.peak_tflops(Dtype::Bf16),
        // What the kernels cannot score is scored on the CPU.
        Work::Score if !gpu::can_score(arch, args.dtype) => None,
        Work::Score => placement.peak_tflops(args.dtype.into()),
    }
}

/// How fast it could be at most on a card with the operations that it has now, one after the other, each at one of the card's
/// peaks; for programs and for people.
fn floor(work: Work, args: &BenchModelArgs, arch: &Arch, card: &Card, seconds: f64) -> (Value, String) {
    let tokens_per_s = args.shape.tokens() as f64 / seconds;
    let gflops = tokens_per_s * flops_per_token(work, arch, args.shape.seq) / 1e9;
    let json = json!({ "card": card.name, "seconds": seconds, "tokens_per_s": tokens_per_s, "tflops": gflops / 1e3 });
    let text = format!(
        "{} takes {:.2} ms at least for these operations, one after the other: {tokens_per_s:.0} tokens/s, {}, by its peaks of \
         {} TFLOP/s in bf16, {} in f32 and {} GB/s",
        card.name,
        seconds * 1e3,
        flops(gflops),
        card.dense_bf16_tflops,
        card.f32_tflops,
        card.memory_gb_per_s
    );
    (json, text)
}

fn flops_per_token(work: Work, arch: &Arch, row_len: usize) -> f64 {
    match work {
        Work::Train => meter::train_flops_per_token(arch, row_len),
        Work::Score => meter::score_flops_per_token(arch, row_len),
    }
}

/// A card of the table.
fn card_named(name: &str) -> Result<&'static Card> {
    cards::find(name).ok_or_else(|| {
        let names = cards::names().collect::<Vec<_>>().join("`, `");
        input(format!("--paper {name}: the peaks of no such card are known; known are `{names}`"))
    })
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
            let memory = gpu::memory_estimate(arch, args.shape.batch, args.shape.seq, Recompute::None);
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
        Activations::of(arch, args.backend.into(), args.shape.batch, args.shape.seq, threads, Recompute::None).total()
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
    /// Those of one step, where they are wanted.
    operations: Vec<Operation>,
}

/// Free memory of the GPU, if there is one.
fn free_on_gpu(placement: &Placement) -> Result<Option<usize>> {
    Ok(match placement {
        Placement::Cpu => None,
        Placement::Gpu(card) => Some(card.memory()?[0]),
    })
}

/// What a training step does on a GPU; computes nothing.
pub(super) fn training_step_on_paper(arch: &Arch, batch: usize, seq: usize) -> Result<Vec<Operation>> {
    let gpu = paper::open("paper");
    let layout = Layout::of(arch);
    let (tokens, weights) = (random_tokens(arch, batch * seq), Weights::zeros(&layout));
    let placement = Placement::Gpu(gpu.clone());
    let mut step = training(&placement, arch, Options::usual(&layout), weights)?;
    gpu.begin_profile();
    step(Rows::new(&tokens, batch, seq))?;
    gpu.end_profile()
}

fn random_tokens(arch: &Arch, count: usize) -> Vec<u32> {
    (0..count as u64).map(|i| random::bits(2, i, 0) % arch.vocab_size as u32).collect()
}

type Step<'a> = Box<dyn FnMut(Rows) -> Result<()> + 'a>;

/// Takes a training step each time.
fn training<'a>(placement: &Placement, arch: &Arch, options: Options, weights: Weights) -> Result<Step<'a>> {
    let (learning_rate, clip_norm) = (options.optimizer.learning_rate, options.optimizer.clip_norm);
    let mut engine = engine::open(placement, arch, &options, weights)?;
    let mut update = 0;
    Ok(Box::new(move |rows| {
        engine.zero_gradients();
        engine.accumulate(rows, 1.0, None, None)?;
        let scale = clip::clip_factor(engine.gradient_norm()?, clip_norm);
        engine.update(update, learning_rate, scale)?;
        update += 1;
        Ok(())
    }))
}

fn measure(work: Work, args: &BenchModelArgs, arch: &Arch, placement: &Placement) -> Result<Measured> {
    let (layout, backend) = (Layout::of(arch), args.backend.into());
    let mut weights = Weights::zeros(&layout);
    if args.paper.is_none() {
        init::scratch(arch, &layout, 1, weights.params.as_mut_slice());
    }
    let tokens = random_tokens(arch, args.shape.tokens());
    let rows = Rows::new(&tokens, args.shape.batch, args.shape.seq);
    let free = free_on_gpu(placement)?;
    let mut step: Step = match work {
        Work::Train => training(
            placement,
            arch,
            Options { backend, gelu_epilogue: args.gelu_epilogue, ..Options::usual(&layout) },
            weights,
        )?,
        Work::Score => {
            let scoring = Scoring { placement: placement.clone(), backend, dtype: args.dtype };
            let mut scorer = scoring.scorer(arch, weights.params.as_slice())?;
            Box::new(move |rows| scorer.row_losses(rows).map(|_| ()))
        }
    };
    step(rows)?;
    let mut seconds = Vec::new();
    if args.paper.is_none() {
        for _ in 0..args.steps {
            let started = Instant::now();
            step(rows)?;
            seconds.push(started.elapsed().as_secs_f64());
        }
    }
    let taken = free.zip(free_on_gpu(placement)?).map(|(before, after)| before.saturating_sub(after));
    let mut operations = Vec::new();
    if let Placement::Gpu(gpu) = placement
        && (args.profile || args.paper.is_some())
    {
        gpu.begin_profile();
        step(rows)?;
        operations = gpu.end_profile()?;
    }
    Ok(Measured { seconds, gpu_bytes: taken.filter(|_| work == Work::Train), operations })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::gpu::Product;
    use crate::model::gpu::memory_estimate;

    /// The recipe `gpt2-772m`.
    fn largest() -> Arch {
        let mut arch = Arch::gpt2(50_257, 1024, 1280, 36, 20);
        arch.mlp_width = 5056;
        assert_eq!(arch.num_parameters(), 768_129_536);
        arch
    }

    #[test]
    fn a_step_on_paper_has_the_arithmetic_of_the_model() {
        let (arch, batch, seq) = (largest(), 4, 1024);
        let operations = training_step_on_paper(&arch, batch, seq).unwrap();
        let flops: u64 = operations.iter().filter(|operation| operation.product.is_some()).map(|o| o.cost.flops).sum();
        // The matrices of 36 blocks, and the head with its rows of padding, three times forward.
        let in_blocks = 36 * (1280 * 3840 + 1280 * 1280 + 2 * 1280 * 5056);
        assert_eq!(flops, 6 * 4096 * (in_blocks + 50_304 * 1280));
        let adamw = operations.iter().find(|operation| operation.name == "adamw").unwrap();
        // Read: parameter, gradient, two moments, and a byte for 128 of them; written: parameter, its copy, the moments.
        // Padded are the tokens' rows, and each of 36 biases of 5,056 elements to a multiple of 128.
        let len = 768_129_536 + 47 * 1280 + 36 * 64;
        assert_eq!(adamw.cost.bytes, 30 * len + len / 128);
        assert!(operations.iter().all(|operation| operation.seconds == 0.0));
        // Of attention forward has two products and backward, in two kernels, seven, of which causality leaves half.
        let attention = operations.iter().filter(|operation| operation.name.starts_with("attention"));
        assert_eq!(attention.map(|o| o.cost.flops).sum::<u64>(), 36 * 9 * (4 * 1024 * 1024 * 1280));
        // By the alignment an algorithm is chosen, which `bench card` takes for that of an allocation.
        for Product { a, b, c: (c, _), .. } in operations.iter().filter_map(|operation| operation.product) {
            assert!([a.address, b.address, c].iter().all(|address| address % 256 == 0));
        }
    }

    #[test]
    fn the_largest_model_trains_with_32_rows_on_a_card_of_80_gb_and_takes_what_was_estimated() {
        let arch = largest();
        let gpu = paper::open("paper");
        let [before, _] = gpu.memory().unwrap();
        let layout = Layout::of(&arch);
        let tokens = random_tokens(&arch, 32 * 1024);
        let placement = Placement::Gpu(gpu.clone());
        let mut step = training(&placement, &arch, Options::usual(&layout), Weights::zeros(&layout)).unwrap();
        step(Rows::new(&tokens, 32, 1024)).unwrap();
        let taken = (before - gpu.memory().unwrap()[0]) as f64;
        let estimate = memory_estimate(&arch, 32, 1024, Recompute::None).total() as f64;
        assert!((taken / estimate - 1.0).abs() < 1e-3, "{taken} of {estimate}");
        // What an H100 of 80 GB has free, less a GiB for CUDA itself and cuBLASLt's workspace.
        assert!(taken < 78.0 * f64::from(1 << 30), "{taken}");
    }
}
