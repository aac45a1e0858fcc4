//! The decoder on a GPU, emulated unless a card is named (see `gpu::testing`), against the references of every backend.

#![allow(clippy::unwrap_used)]

use half::bf16;
use serde_json::Value;

use super::estimate::what_would_fit;
use super::*;
use crate::golden;
use crate::gpu::testing;
use crate::model::DropoutSeed;
use crate::model::arch::Reference;
use crate::model::golden_tests::{GoldenModel, check_scorer, golden_models, read_json};
use crate::model::golden_training::{Tolerances, check_adamw, on_cpu};
use crate::model::scorer::Scoring;
use crate::model::weights::{self, StoredRows};
use crate::model::{self, LossAndGradients, decoder as cpu};
use crate::ops::testing::relative_error;
use crate::ops::{Device, random};
use crate::placement::Placement;
use crate::recipe::{Backend, Bf16Rounding, Optimizer};
use crate::train::engine::gpu::GpuEngine;
use crate::train::engine::{Engine, Options};
use crate::train::state::Weights;

/// One of the two GPUs; `None` where there are none.
fn a_gpu() -> Option<Gpu> {
    testing::gpus().map(|[gpu, _]| gpu)
}

/// What bfloat16 costs in PyTorch (`tests/golden/bf16/make.py`).
fn autocast() -> Value {
    read_json(golden::path("bf16/autocast.json"))
}

/// How much more it may cost here than in PyTorch.
const ALLOWED: f64 = 1.25;

#[test]
fn losses_and_logits_in_f32_are_the_references() {
    let Some(gpu) = a_gpu() else { return };
    check_scorer(|_| [5e-6, 2e-5], |arch, params| scorer(&gpu, arch, params, ScoreDtype::F32).unwrap());
}

#[test]
fn losses_and_logits_in_bf16_are_as_near_the_references_as_pytorchs() {
    let Some(gpu) = a_gpu() else { return };
    let autocast = autocast();
    let largest = |what: &str| {
        let models = autocast["models"].as_object().unwrap().values();
        models.map(|errors| errors[what].as_f64().unwrap()).fold(0.0, f64::max)
    };
    // Models that were not measured there are held to its largest.
    let tolerances = |name: &str| {
        ["loss", "logit"].map(|what| {
            let of_model = autocast["models"][name][what].as_f64();
            ALLOWED * of_model.unwrap_or_else(|| largest(what))
        })
    };
    check_scorer(tolerances, |arch, params| scorer(&gpu, arch, params, ScoreDtype::Bf16).unwrap());
}

/// An engine on that GPU.
fn engine(gpu: &Gpu, arch: &Arch, options: &Options, weights: Weights) -> Result<Box<dyn Engine>> {
    Ok(Box::new(GpuEngine::new(gpu, arch, options, weights)?))
}

/// Loss and gradients, in the host's order, of an engine's first pass.
fn loss_and_gradients(gpu: &Gpu, arch: &Arch, recompute: Recompute, params: &[f32], rows: Rows) -> (f64, Vec<f32>) {
    let layout = Layout::of(arch);
    let options = Options { recompute, ..Options::usual(&layout) };
    let mut engine = GpuEngine::new(gpu, arch, &options, Weights::starting_at(params)).unwrap();
    engine.zero_gradients();
    let loss = engine.accumulate(rows, 1.0, None, None).unwrap();
    (loss, engine.host_gradients().unwrap())
}

#[test]
fn gradients_in_bf16_are_as_near_those_in_f32_as_pytorchs() {
    let Some(gpu) = a_gpu() else { return };
    let autocast = autocast();
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let mut num_models = 0;
    for GoldenModel { name, model, batches, .. } in golden_models() {
        let Some(errors) = autocast["models"].get(&name) else { continue };
        num_models += 1;
        let arch = model.config.arch.seen_by(Reference::Transformers4_38_0);
        let (tokens, row_len) = (batches[..2].concat(), batches[0].len());
        let rows = Rows::new(&tokens, 2, row_len);
        let (loss, gradients) = loss_and_gradients(&gpu, &arch, Recompute::None, &model.params, rows);
        let mut reference = vec![0.0; gradients.len()];
        let mut on_cpu = cpu::Decoder::new(Device::cpu(), &arch);
        let expected = on_cpu.loss_and_gradients(&model.params, &mut reference, rows, 1.0, None).unwrap();
        assert!((loss - f64::from(expected)).abs() <= 2e-3, "{name}: loss {loss} instead of {expected}");
        let difference: Vec<f64> = gradients.iter().zip(&reference).map(|(a, b)| f64::from(a - b)).collect();
        let global = length(&mut reference.iter().map(|&x| f64::from(x)));
        let all = length(&mut difference.iter().copied());
        let allowed = ALLOWED * errors["gradient"].as_f64().unwrap();
        assert!(all <= allowed, "{name}: gradients of {global} are off by {all}, PyTorch's by {}", errors["gradient"]);
        // Parameters as they are stored: a part of one of ours may be a tensor, or several of ours one.
        for StoredRows { name: tensor, param, rows, .. } in weights::stored_rows(&arch, &model.layout) {
            let Some(error) = errors["gradient_per_parameter"][&tensor].as_f64() else { continue };
            let param = &model.layout.params()[param];
            let row_len: usize = param.shape[1..].iter().product();
            let mut elements = rows.iter().flat_map(|rows| {
                let start = param.range.start;
                difference[start + rows.start * row_len..start + rows.end * row_len].iter().copied()
            });
            let off = length(&mut elements);
            assert!(
                off <= (ALLOWED * error).max(1e-3 * global),
                "{name}, {tensor}: off by {off}, PyTorch's by {error}"
            );
        }
    }
    assert!(num_models >= 30);
}

#[test]
fn recomputing_changes_no_bit_and_neither_does_the_order_of_threads() {
    let Some([gpu, other]) = testing::gpus() else { return };
    let mut kinds = std::collections::HashSet::new();
    for GoldenModel { name, model, batches, .. } in golden_models() {
        let arch = &model.config.arch;
        // One model of each kind of block.
        if !kinds.insert((std::mem::discriminant(&arch.residual), arch.gated)) {
            continue;
        }
        let (tokens, row_len) = (batches[..2].concat(), batches[0].len());
        let rows = Rows::new(&tokens, 2, row_len);
        let run = |gpu: &Gpu, recompute| loss_and_gradients(gpu, arch, recompute, &model.params, rows);
        let (loss, gradients) = run(&gpu, Recompute::None);
        for (gpu, recompute) in [(&gpu, Recompute::Mlp), (&gpu, Recompute::Block), (&other, Recompute::None)] {
            let (again, gradients_again) = run(gpu, recompute);
            assert!(again == loss && gradients_again == gradients, "{name}, {recompute:?}");
        }
    }
    assert!(kinds.len() >= 4, "a kind of block is missing among the golden models");
}

#[test]
fn thirty_golden_steps_in_bf16_follow_the_trajectory_in_f32_as_pytorchs_do() {
    let Some(gpu) = a_gpu() else { return };
    let errors = &autocast()["training"];
    // Steps amplify what differs, so that one trajectory's errors are a looser yardstick than one gradient's.
    let allowed = |what: &str| 1.5 * errors[what].as_f64().unwrap();
    let tolerances = Tolerances {
        loss: allowed("loss"),
        gradient_norm: allowed("gradient_norm"),
        weight: allowed("weight"),
        weight_norm: allowed("way"),
    };
    check_adamw(tolerances, |arch, options, weights| engine(&gpu, arch, options, weights).unwrap());
}

#[test]
fn a_small_llama_trains_as_on_the_cpu() {
    let Some(gpu) = a_gpu() else { return };
    let golden = golden_models().into_iter().find(|golden| golden.name == "llama").unwrap();
    let arch = golden.model.config.arch;
    let layout = Layout::of(&arch);
    let optimizer = Optimizer { learning_rate: 1e-3, ..Optimizer::default() };
    let options = Options { optimizer, ..Options::usual(&layout) };
    let make = on_cpu(|arch| cpu::Decoder::new(Device::cpu(), arch));
    let mut engines = [
        engine(&gpu, &arch, &options, Weights::starting_at(&golden.model.params)).unwrap(),
        make(&arch, &options, Weights::starting_at(&golden.model.params)),
    ];
    let row_len = 32;
    let (mut first, mut last) = (0.0, 0.0);
    for step in 0..20 {
        let tokens: Vec<u32> =
            (0..2 * row_len as u64).map(|i| (random::uniform(1, step % 4, i) * 320.0) as u32).collect();
        let losses = engines.each_mut().map(|engine| {
            engine.zero_gradients();
            let loss = engine.accumulate(Rows::new(&tokens, 2, row_len), 1.0, None, None).unwrap();
            let norm = engine.gradient_norm().unwrap();
            engine.update(step, 1e-3, 1.0 / norm.max(1.0)).unwrap();
            loss
        });
        assert!((losses[0] - losses[1]).abs() <= 1e-2, "step {step}: {losses:?}");
        first = if step == 0 { losses[0] } else { first };
        last = losses[0];
    }
    assert!(last < first - 0.05, "it learned nothing: {first} to {last}");
    let [on_gpu, on_cpu] = engines.each_mut().map(|engine| engine.weights().unwrap().params.as_slice().to_vec());
    let moved: Vec<f32> = on_cpu.iter().zip(&golden.model.params).map(|(now, before)| now - before).collect();
    let difference: Vec<f32> = on_gpu.iter().zip(&on_cpu).map(|(a, b)| a - b).collect();
    let norm = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    assert!(norm(&difference) <= 0.15 * norm(&moved), "{} of {}", norm(&difference), norm(&moved));
}

#[test]
fn the_estimate_is_what_is_allocated_and_a_step_allocates_nothing_after_the_first() {
    let Some(gpu) = a_gpu() else { return };
    let on_a_card = testing::card().is_some();
    let names = ["gpt2", "llama", "bart", "gptj", "gpt_neox", "phi_gqa"];
    for GoldenModel { name, model, .. } in golden_models().into_iter().filter(|golden| names.contains(&&*golden.name)) {
        let arch = &model.config.arch;
        for (recompute, rows) in [(Recompute::None, 3), (Recompute::Mlp, 2), (Recompute::Block, 1)] {
            let row_len = 9;
            let options = Options { recompute, ..Options::usual(&model.layout) };
            let make = || engine(&gpu, arch, &options, Weights::starting_at(&model.params)).unwrap();
            let tokens = vec![1; rows * row_len];
            let step = |engine: &mut dyn Engine| {
                engine.zero_gradients();
                engine.accumulate(Rows::new(&tokens, rows, row_len), 1.0, None, None).unwrap();
                engine.gradient_norm().unwrap();
                engine.update(0, 1e-3, 1.0).unwrap();
            };
            if on_a_card {
                step(&mut *make()); // a card's driver takes memory for code when that first runs
            }
            gpu.synchronize().unwrap();
            let before = gpu.memory().unwrap()[0];
            let mut engine = make();
            step(&mut *engine);
            let taken = (before - gpu.memory().unwrap()[0]) as f64;
            step(&mut *engine);
            assert_eq!(before - gpu.memory().unwrap()[0], taken as usize, "{name} allocates in its second step");
            let estimate = memory_estimate(arch, rows, row_len, recompute).total() as f64;
            // Beside them are tables of angles, flags of decay and parts of a norm; and a card rounds each of some hundred
            // allocations up, to 512 bytes as far as is known: these models show that nothing is forgotten or kept, and
            // `scripts/gpu-gate` how near the estimate is at real sizes.
            let small = (layout::device_len_of(arch) as usize / 128 + 9 * 16 * 4 * arch.heads + 64) as f64;
            let small = if on_a_card { small + f64::from(1 << 20) } else { small };
            assert!((estimate..=estimate + small).contains(&taken), "{name}, {recompute:?}: {taken}, not {estimate}");
        }
    }
}

#[test]
fn rows_sent_ahead_change_no_bit_even_where_others_come() {
    let Some(gpu) = a_gpu() else { return };
    let arch = Arch::gpt2(40, 8, 16, 2, 2);
    let layout = Layout::of(&arch);
    let mut params = vec![0.0; layout.len()];
    model::init::scratch(&arch, &layout, 1, &mut params);
    let batches: Vec<Vec<u32>> = (0..4).map(|b| (0..16).map(|i| (i * 7 + b * 3) % 40).collect()).collect();
    let run = |sent_ahead: &[usize]| {
        let mut engine = GpuEngine::new(&gpu, &arch, &Options::usual(&layout), Weights::starting_at(&params)).unwrap();
        let losses = [0, 1, 2, 3].map(|i| {
            let next = sent_ahead.get(i).map(|&next| Rows::new(&batches[next], 2, 8));
            engine.accumulate(Rows::new(&batches[i], 2, 8), 1.0, None, next).unwrap()
        });
        (losses, engine.host_gradients().unwrap())
    };
    let expected = run(&[]);
    assert_eq!(run(&[1, 2, 3]), expected);
    assert_eq!(run(&[3, 3, 0, 1]), expected);
}

#[test]
fn scoring_longer_rows_and_making_room_leave_training_as_it_was() {
    let Some(gpu) = a_gpu() else { return };
    let arch = Arch::gpt2(40, 32, 16, 3, 2);
    let layout = Layout::of(&arch);
    let mut first = Weights::zeros(&layout);
    model::init::scratch(&arch, &layout, 1, first.params.as_mut_slice());
    let tokens: Vec<u32> = (0..32).map(|i| i * 7 % 40).collect();
    let mut engine = GpuEngine::new(&gpu, &arch, &Options::usual(&layout), first).unwrap();
    let accumulate = |engine: &mut GpuEngine| {
        engine.zero_gradients();
        (engine.accumulate(Rows::new(&tokens[..16], 2, 8), 1.0, None, None).unwrap(), engine.host_gradients().unwrap())
    };
    let expected = accumulate(&mut engine);
    let free = |gpu: &Gpu| gpu.memory().unwrap()[0];
    let in_training = free(&gpu);
    let long = engine.row_losses(Rows::new(&tokens, 1, 32)).unwrap();
    assert_eq!(free(&gpu), in_training, "a longer row has changed the memory of training");
    assert_eq!(accumulate(&mut engine), expected);
    engine.make_room();
    assert!(free(&gpu) > in_training);
    assert_eq!(engine.row_losses(Rows::new(&tokens, 1, 32)).unwrap(), long);
    assert_eq!(accumulate(&mut engine), expected);
}

#[test]
fn an_engine_that_goes_on_from_saved_weights_computes_the_same_bits() {
    let Some(gpu) = a_gpu() else { return };
    let arch = Arch::gpt2(40, 8, 16, 2, 2);
    let layout = Layout::of(&arch);
    let mut first = Weights::zeros(&layout);
    model::init::scratch(&arch, &layout, 1, first.params.as_mut_slice());
    for bf16_rounding in [Bf16Rounding::Nearest, Bf16Rounding::Stochastic] {
        let options = |updates| Options { bf16_rounding, seed: 3, updates, ..Options::usual(&layout) };
        let copy = |weights: &Weights| {
            let mut copy = Weights::zeros(&layout);
            copy.params.as_mut_slice().copy_from_slice(weights.params.as_slice());
            copy.means.as_mut_slice().copy_from_slice(weights.means.as_slice());
            copy.squares.as_mut_slice().copy_from_slice(weights.squares.as_slice());
            copy
        };
        let step = |engine: &mut GpuEngine, update: u64| {
            let tokens: Vec<u32> = (0..16).map(|i| (i * 7 + update as u32 * 3) % 40).collect();
            engine.zero_gradients();
            let loss = engine.accumulate(Rows::new(&tokens, 2, 8), 1.0, None, None).unwrap();
            engine.update(update, 1e-2, 1.0).unwrap();
            loss
        };
        let mut whole = GpuEngine::new(&gpu, &arch, &options(0), copy(&first)).unwrap();
        let losses: Vec<f64> = (0..4).map(|update| step(&mut whole, update)).collect();
        let mut begun = GpuEngine::new(&gpu, &arch, &options(0), copy(&first)).unwrap();
        (0..2).for_each(|update| assert_eq!(step(&mut begun, update), losses[update as usize]));
        let saved = copy(begun.weights().unwrap());
        let mut resumed = GpuEngine::new(&gpu, &arch, &options(2), saved).unwrap();
        assert_eq!(resumed.rounded().unwrap(), begun.rounded().unwrap());
        (2..4).for_each(|update| assert_eq!(step(&mut resumed, update), losses[update as usize]));
        let params = |engine: &mut GpuEngine| engine.weights().unwrap().params.as_slice().to_vec();
        assert_eq!(params(&mut resumed), params(&mut whole), "{bf16_rounding:?}");
    }
}

#[test]
fn stochastic_rounding_is_drawn_anew_at_each_update() {
    let Some(gpu) = a_gpu() else { return };
    let arch = Arch::gpt2(40, 8, 16, 1, 2);
    let layout = Layout::of(&arch);
    let params = vec![1.001; layout.len()];
    let options = Options { bf16_rounding: Bf16Rounding::Stochastic, ..Options::usual(&layout) };
    let rounded = |update| -> Vec<bf16> {
        let mut engine = GpuEngine::new(&gpu, &arch, &options, Weights::starting_at(&params)).unwrap();
        engine.zero_gradients();
        engine.update(update, 0.0, 1.0).unwrap();
        engine.rounded().unwrap()
    };
    assert_eq!(rounded(0), rounded(0));
    assert_ne!(rounded(0), rounded(1));
}

#[test]
fn dropout_is_refused_and_want_of_memory_names_what_would_fit() {
    let Some(gpu) = a_gpu() else { return };
    let arch = Arch::gpt2(40, 8, 16, 1, 2);
    let layout = Layout::of(&arch);
    let mut engine = engine(&gpu, &arch, &Options::usual(&layout), Weights::zeros(&layout)).unwrap();
    let dropout = Some(DropoutSeed { rate: 0.1, seed: 1 });
    let error = engine.accumulate(Rows::new(&[1, 2], 1, 2), 1.0, dropout, None).unwrap_err();
    assert!(error.to_string().contains("model.dropout"), "{error}");

    // GPT-2 large without its last narrow columns, on cards of 80, 24 and 8 GB.
    let arch = Arch { mlp_width: 5056, ..Arch::gpt2(50_257, 1024, 1280, 36, 20) };
    let advice = |rows, recompute, gib: u128| what_would_fit(&arch, rows, 1024, recompute, gib << 30);
    assert_eq!(advice(64, Recompute::None, 80), "train.recompute: mlp would fit.");
    assert_eq!(advice(64, Recompute::Mlp, 60), "train.recompute: block would fit.");
    assert_eq!(advice(4, Recompute::Block, 8), "No micro-batch of this model fits on this card.");
    assert!(advice(64, Recompute::None, 24).starts_with("train.micro_batch: "));
}

#[test]
fn a_model_whose_heads_are_too_large_for_the_kernels_is_scored_on_the_cpu() {
    let Some(gpu) = a_gpu() else { return };
    let arch = Arch::gpt2(40, 8, 2 * 264, 1, 2);
    assert!(!can_score(&arch, ScoreDtype::F32) && cannot_train(&arch, 0.0).is_some());
    let mut params = vec![0.0; Layout::of(&arch).len()];
    model::init::scratch(&arch, &Layout::of(&arch), 1, &mut params);
    let rows = Rows::new(&[1, 2, 3, 4], 1, 4);
    let place = Placement::Gpu(gpu.clone());
    let scoring = Scoring { placement: place, ..Scoring::on_cpu(Backend::Native) };
    let losses = scoring.scorer(&arch, &params).unwrap().row_losses(rows).unwrap();
    assert_eq!(losses, cpu::Decoder::new(Device::cpu(), &arch).row_losses(&params, rows).unwrap());
    assert!(scorer(&gpu, &arch, &params, ScoreDtype::F32).is_err());
}

#[test]
fn the_same_seam_serves_both_places() {
    let Some(gpu) = a_gpu() else { return };
    let arch = Arch::gpt2(40, 8, 16, 2, 2);
    let layout = Layout::of(&arch);
    let mut params = vec![0.0; layout.len()];
    model::init::scratch(&arch, &layout, 1, &mut params);
    let tokens: Vec<u32> = (0..16).map(|i| i * 7 % 40).collect();
    let losses = |dtype| scorer(&gpu, &arch, &params, dtype).unwrap().row_losses(Rows::new(&tokens, 2, 8)).unwrap();
    let mut on_cpu = cpu::Decoder::new(Device::cpu(), &arch);
    let expected = on_cpu.row_losses(&params, Rows::new(&tokens, 2, 8)).unwrap();
    assert!(relative_error(&losses(ScoreDtype::F32), &expected) <= 1e-6);
    assert!(relative_error(&losses(ScoreDtype::Bf16), &expected) <= 1e-3);
}
