//! Whole trainings that the reference recorded, repeated step by step with any engine: loss, gradient norm, learning
//! rate and final weights.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::arch::{Activation, Arch};
use super::golden_tests::{flatten_rows, number, read_json};
use super::layout::{Layout, Param};
use super::{LossAndGradients, Rows};
use crate::golden;
use crate::optim::{clip, schedule};
use crate::recipe::{Optimizer, Schedule};
use crate::train::engine::{CpuEngine, Engine, Options};
use crate::train::state::Weights;

/// How far a training may be off the recorded one.
#[derive(Clone, Copy)]
pub(crate) struct Tolerances {
    /// Of every loss.
    pub(crate) loss: f64,
    /// Of the gradient's norm before clipping, as a part of it.
    pub(crate) gradient_norm: f64,
    /// Of every final weight.
    pub(crate) weight: f64,
    /// Of the norm of every final parameter, as a part of it.
    pub(crate) weight_norm: f64,
}

/// Of [`check_adamw`] in f32.
pub(crate) const ADAMW_IN_F32: Tolerances =
    Tolerances { loss: 5e-6, gradient_norm: 1e-5, weight: 2e-5, weight_norm: 2e-6 };

/// Of [`check_reference_miner`] in f32.
pub(crate) const REFERENCE_MINER_IN_F32: Tolerances = Tolerances { weight: 2e-4, ..ADAMW_IN_F32 };

/// An engine around a decoder on the CPU.
pub(crate) fn on_cpu<M: LossAndGradients + 'static>(
    make: impl Fn(&Arch) -> M,
) -> impl Fn(&Arch, &Options, Weights) -> Box<dyn Engine> {
    move |arch, options, weights| Box::new(CpuEngine::new(Box::new(make(arch)), options, weights))
}

/// Hugging Face's name of one of our parameters and whether it is stored transposed.
fn full_name(param: &Param) -> (String, bool) {
    let parts: Vec<&str> = param.name.split('.').collect();
    let path = match parts[..] {
        ["embed", "token"] => "transformer.wte.weight".to_owned(),
        ["embed", "position"] => "transformer.wpe.weight".to_owned(),
        ["norm", kind] => format!("transformer.ln_f.{kind}"),
        ["head", "weight"] => "lm_head.weight".to_owned(),
        ["blocks", i, "norm1", kind] => format!("transformer.h.{i}.ln_1.{kind}"),
        ["blocks", i, "norm2", kind] => format!("transformer.h.{i}.ln_2.{kind}"),
        ["blocks", i, "attention", "qkv", kind] => format!("transformer.h.{i}.attn.c_attn.{kind}"),
        ["blocks", i, "attention", "out", kind] => format!("transformer.h.{i}.attn.c_proj.{kind}"),
        ["blocks", i, "mlp", "up", kind] => format!("transformer.h.{i}.mlp.c_fc.{kind}"),
        ["blocks", i, "mlp", "down", kind] => format!("transformer.h.{i}.mlp.c_proj.{kind}"),
        _ => panic!("unknown parameter {}", param.name),
    };
    (path.replace(".gain", ".weight"), path.contains(".c_") && path.ends_with(".weight"))
}

/// Writes one parameter as Hugging Face stores it (matrices of blocks (in, out)) into our (out, in) order.
fn to_our_order(tensor: &Tensor, transposed: bool) -> Vec<f32> {
    let tensor = if transposed { tensor.t().unwrap() } else { tensor.clone() };
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The architecture of a GPT-2 `config.json`.
fn read_arch(folder: &Path) -> Arch {
    let config = read_json(folder.join("config.json"));
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let flag = |key: &str, default| config[key].as_bool().unwrap_or(default);
    let mut arch = Arch::gpt2(size("vocab_size"), size("n_positions"), size("n_embd"), size("n_layer"), size("n_head"));
    arch.mlp_width = config["n_inner"].as_u64().map_or(arch.mlp_width, |width| width as usize);
    arch.activation = match config["activation_function"].as_str().unwrap() {
        "gelu_new" => Activation::GeluTanh,
        "gelu" => Activation::GeluErf,
        "relu" => Activation::Relu,
        other => panic!("unknown activation {other}"),
    };
    arch.norm_eps = config["layer_norm_epsilon"].as_f64().unwrap() as f32;
    arch.scale_by_head_size = flag("scale_attn_weights", true);
    arch.scale_by_layer = flag("scale_attn_by_inverse_layer_idx", false);
    arch.tied_head = flag("tie_word_embeddings", true);
    arch
}

/// Parameters from a safetensors file (or a folder of them) with Hugging Face's names, in our order.
fn read_params(path: &Path, layout: &Layout) -> Vec<f32> {
    let mut files = vec![path.to_path_buf()];
    if path.is_dir() {
        files = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.file_name().unwrap().to_str().unwrap().starts_with("model"));
        files.retain(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
    }
    let tensors: Vec<_> = files.iter().flat_map(|f| candle_core::safetensors::load(f, &Device::Cpu).unwrap()).collect();
    // Files saved from the bare model lack the prefix.
    let find = |name: &str| {
        let prefixed = |key: &str| key == name || name.strip_prefix("transformer.") == Some(key);
        tensors.iter().find(|(key, _)| prefixed(key)).map(|(_, tensor)| tensor)
    };
    let tied = layout.get("head.weight").is_none();
    let mut params = vec![f32::NAN; layout.len()];
    for param in layout.params() {
        let (name, transposed) = full_name(param);
        // A head in the file wins over the embedding it is tied to.
        let head = (tied && param.name == "embed.token").then(|| find("lm_head.weight")).flatten();
        let tensor = head.or_else(|| find(&name)).unwrap_or_else(|| panic!("{} lacks {name}", path.display()));
        params[param.range.clone()].copy_from_slice(&to_our_order(tensor, transposed));
    }
    params
}

/// The golden initial weights and what trains them.
struct Training {
    layout: Layout,
    engine: Box<dyn Engine>,
}

impl Training {
    fn new(make: impl Fn(&Arch, &Options, Weights) -> Box<dyn Engine>, optimizer: &Optimizer, decay: Decay) -> Self {
        let folder = golden::path("training/init");
        let arch = read_arch(&folder);
        let layout = Layout::of(&arch);
        let mut options = Options { optimizer: optimizer.clone(), ..Options::usual(&layout) };
        if decay == Decay::Everything {
            options.decayed = std::iter::once(0..layout.len()).collect();
        }
        let engine = make(&arch, &options, Weights::starting_at(&read_params(&folder, &layout)));
        Self { layout, engine }
    }

    fn accumulate(&mut self, rows: &Value, scale: f32) -> f64 {
        let (tokens, row_len) = flatten_rows(rows);
        self.engine.accumulate(Rows::new(&tokens, tokens.len() / row_len, row_len), scale, None, None).unwrap()
    }

    fn params(&mut self) -> Vec<f32> {
        self.engine.weights().unwrap().params.as_slice().to_vec()
    }

    fn assert_weights(&mut self, file: &str, tolerance: f64) {
        let (params, expected) = (self.params(), read_params(&golden::path(file), &self.layout));
        let difference = |i: usize| f64::from((params[i] - expected[i]).abs());
        let largest = (0..expected.len()).map(difference).fold(0.0, f64::max);
        assert!(largest <= tolerance, "{file}: weights differ by {largest}");
    }
}

/// What weight decay is on.
#[derive(PartialEq)]
enum Decay {
    Matrices,
    Everything,
}

/// 30 steps with decay on matrices, clipping, warm-up, cosine and accumulation.
pub(crate) fn check_adamw(tolerances: Tolerances, make: impl Fn(&Arch, &Options, Weights) -> Box<dyn Engine>) {
    for (path, expected) in golden::files("training", "log") {
        // The recorded final weights belong to the file that was recorded with them; of others the norms are known.
        let weights = (path.file_stem().unwrap() == "adamw").then_some("training/final.safetensors");
        check_adamw_file(tolerances, &make, &expected, weights);
    }
}

fn check_adamw_file(
    tolerances: Tolerances,
    make: impl Fn(&Arch, &Options, Weights) -> Box<dyn Engine>,
    expected: &Value,
    final_weights: Option<&str>,
) {
    let recipe = &expected["recipe"];
    let options = Optimizer {
        learning_rate: 1e-3,
        beta1: number(&recipe["betas"][0]),
        beta2: number(&recipe["betas"][1]),
        eps: number(&recipe["eps"]),
        weight_decay: 0.1,
        clip_norm: 1.0,
    };
    let schedule = Schedule { warmup_steps: 5, ..Schedule::default() };
    let mut training = Training::new(make, &options, Decay::Matrices);
    let log = expected["log"].as_array().unwrap();
    let batches = expected["batches"].as_array().unwrap();
    assert_eq!(log.len(), batches.len());
    assert!(!log.is_empty());
    let mut largest = (0.0f64, 0.0f64);
    for (step, (line, micro_batches)) in log.iter().zip(batches).enumerate() {
        let micro_batches = micro_batches.as_array().unwrap();
        let scale = 1.0 / micro_batches.len() as f32;
        let mut loss = 0.0;
        training.engine.zero_gradients();
        for (rows, expected) in micro_batches.iter().zip(line["micro_losses"].as_array().unwrap()) {
            let micro_loss = training.accumulate(rows, scale);
            largest.0 = largest.0.max((micro_loss - number(expected)).abs());
            loss += micro_loss * f64::from(scale);
        }
        largest.0 = largest.0.max((loss - number(&line["loss"])).abs());
        let norm = training.engine.gradient_norm().unwrap();
        largest.1 = largest.1.max((norm / number(&line["grad_norm_before_clip"]) - 1.0).abs());
        let learning_rate = schedule::learning_rate(&schedule, options.learning_rate, step, log.len());
        assert!((learning_rate / number(&line["lr"]) - 1.0).abs() <= 1e-15, "step {step}: {learning_rate}");
        let clipping = clip::clip_factor(norm, options.clip_norm);
        training.engine.update(step as u64, learning_rate, clipping).unwrap();
    }
    assert!(largest.0 <= tolerances.loss, "losses differ by {}", largest.0);
    assert!(largest.1 <= tolerances.gradient_norm, "gradient norms differ by a part of {}", largest.1);
    if let Some(file) = final_weights {
        training.assert_weights(file, tolerances.weight);
    }

    let params = training.params();
    for param in training.layout.params() {
        let (name, _) = full_name(param);
        let weights = &params[param.range.clone()];
        let (norm, expected) = (clip::global_norm(weights), number(&expected["final_weight_norms"][&name]));
        assert!((norm / expected - 1.0).abs() <= tolerances.weight_norm, "{name}: norm {norm}, expected {expected}");
    }
    let micro_batches = batches[0].as_array().unwrap();
    let losses = micro_batches.iter().map(|rows| {
        let (tokens, row_len) = flatten_rows(rows);
        let losses = training.engine.row_losses(Rows::new(&tokens, tokens.len() / row_len, row_len)).unwrap();
        losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64
    });
    let loss = losses.sum::<f64>() / micro_batches.len() as f64;
    let expected = number(&expected["loss_after_training_on_first_step_batches_eval"]);
    assert!((loss - expected).abs() <= tolerances.loss, "final loss {loss}, expected {expected}");
}

/// The reference's own miner: decay on everything, no clipping, left-over micro-batches of an epoch thrown away.
pub(crate) fn check_reference_miner(
    tolerances: Tolerances,
    make: impl Fn(&Arch, &Options, Weights) -> Box<dyn Engine>,
) {
    for (path, expected) in golden::files("training", "micro_losses") {
        let weights = (path.file_stem().unwrap() == "reference_miner").then_some("training/miner_final.safetensors");
        check_reference_miner_file(tolerances, &make, &expected, weights);
    }
}

fn check_reference_miner_file(
    tolerances: Tolerances,
    make: impl Fn(&Arch, &Options, Weights) -> Box<dyn Engine>,
    expected: &Value,
    final_weights: Option<&str>,
) {
    let count = |key: &str| expected[key].as_u64().unwrap() as usize;
    let (batches_per_epoch, accumulation) = (count("batches_per_epoch"), count("accumulation_steps"));
    let learning_rate = number(&expected["lr"]);
    let options = Optimizer { beta2: 0.999, weight_decay: 0.01, ..Optimizer::default() };
    let mut training = Training::new(make, &options, Decay::Everything);
    let batches = expected["batches_in_order"].as_array().unwrap();
    let losses = expected["micro_losses"].as_array().unwrap();
    let epoch_losses = expected["epoch_mean_losses"].as_array().unwrap();
    assert_eq!(batches.len(), batches_per_epoch * count("epochs"));
    assert_eq!((batches.len(), batches.len()), (losses.len(), epoch_losses.len() * batches_per_epoch));
    let mut num_steps = 0;
    let mut sum = 0.0;
    for (i, (rows, expected)) in batches.iter().zip(losses).enumerate() {
        let in_epoch = i % batches_per_epoch;
        if in_epoch == 0 {
            training.engine.zero_gradients();
            sum = 0.0;
        }
        let loss = training.accumulate(rows, 1.0 / accumulation as f32);
        assert!((loss - number(expected)).abs() <= tolerances.loss, "micro-batch {i}: {loss}");
        sum += loss;
        if (in_epoch + 1) % accumulation == 0 {
            training.engine.update(num_steps, learning_rate, 1.0).unwrap();
            training.engine.zero_gradients();
            num_steps += 1;
        }
        if in_epoch + 1 == batches_per_epoch {
            let mean = sum / batches_per_epoch as f64;
            let expected = number(&epoch_losses[i / batches_per_epoch]);
            assert!((mean - expected).abs() <= tolerances.loss, "epoch mean {mean}, expected {expected}");
        }
    }
    assert_eq!(num_steps as usize, epoch_losses.len() * (batches_per_epoch / accumulation));
    if let Some(file) = final_weights {
        training.assert_weights(file, tolerances.weight);
    }
}
