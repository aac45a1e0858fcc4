//! Tests that every backend must pass, as functions over [`LossAndGradients`].
//!
//! [`check_backend`]: the reference's losses, logits and gradients of the GPT-2 models in `tests/golden/models`, and
//! refusals. [`check_equal`]: one backend against another on random small models.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::arch::{Activation, Arch};
use super::layout::{Layout, Param};
use super::{DropoutSeed, LossAndGradients, Rows};
use crate::golden;
use crate::ops::random;

/// Losses in f32 against f32 with another order of summation.
const LOSS_TOLERANCE: f64 = 5e-6;
const LOGIT_TOLERANCE: f64 = 2e-5;
const GRADIENT_TOLERANCE: f64 = 1e-4;

/// The JSON in a golden file.
pub(crate) fn read_json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(path.as_ref()).unwrap()).unwrap()
}

/// A number of a golden file, which writes infinities as strings.
pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
}

/// Rows of token ids as one flat list, and the length of the rows.
pub(crate) fn flatten_rows(rows: &Value) -> (Vec<u32>, usize) {
    let rows: Vec<Vec<u32>> = serde_json::from_value(rows.clone()).unwrap();
    (rows.concat(), rows[0].len())
}

/// Hugging Face's name of one of our parameters and whether it is stored transposed.
pub(crate) fn full_name(param: &Param) -> (String, bool) {
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
pub(crate) fn read_arch(folder: &Path) -> Arch {
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
pub(crate) fn read_params(path: &Path, layout: &Layout) -> Vec<f32> {
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

fn norm(values: impl IntoIterator<Item = f32>) -> f64 {
    values.into_iter().map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

/// The Euclidean distance of two vectors over the length of the second.
pub(crate) fn relative_distance(a: &[f32], b: &[f32]) -> f64 {
    norm(a.iter().zip(b).map(|(a, b)| a - b)) / norm(b.iter().copied())
}

/// Losses, logits, gradients and refusals of every GPT-2 model in `tests/golden/models`.
pub(crate) fn check_backend(make: impl Fn(&Arch) -> Box<dyn LossAndGradients>) {
    let folders = std::fs::read_dir(golden::path("models")).unwrap().map(|entry| entry.unwrap().path());
    let folders: Vec<_> =
        folders.filter(|folder| folder.file_name().unwrap().to_str().unwrap().starts_with("gpt2")).collect();
    assert!(!folders.is_empty(), "no golden models");
    let mut num_with_gradients = 0;
    for folder in folders {
        let arch = read_arch(&folder);
        let layout = Layout::of(&arch);
        let params = read_params(&folder, &layout);
        let expected = read_json(folder.join("expected.json"));
        assert_eq!(layout.len() as u64, expected["param_count"].as_u64().unwrap());
        let tensors = candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
        let batches: Vec<Vec<u32>> = serde_json::from_value(expected["batches"].clone()).unwrap();
        let mut backend = make(&arch);
        let context = |what: &str| format!("{}: {what}", folder.file_name().unwrap().display());

        for (i, (tokens, loss)) in batches.iter().zip(expected["losses_reference"].as_array().unwrap()).enumerate() {
            let computed = backend.row_losses(&params, Rows::new(tokens, 1, tokens.len()));
            let expected_loss = number(loss);
            if expected_loss.is_infinite() {
                assert!(computed.is_err(), "{}", context("an impossible batch was scored"));
                continue;
            }
            let computed = f64::from(computed.unwrap()[0]);
            assert!((computed - expected_loss).abs() <= LOSS_TOLERANCE, "{} {computed}", context(&format!("loss {i}")));
        }

        let positions: Vec<usize> = serde_json::from_value(expected["logit_positions"].clone()).unwrap();
        let logits = backend.logits(&params, Rows::new(&batches[0], 1, batches[0].len())).unwrap();
        let expected_logits: Vec<Vec<f32>> = tensors["logits"].to_vec2().unwrap();
        assert_eq!(positions.len(), expected_logits.len());
        for (position, row) in positions.iter().zip(expected_logits) {
            let computed = &logits[position * arch.vocab_size..][..arch.vocab_size];
            let difference = computed.iter().zip(row).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
            assert!(difference <= LOGIT_TOLERANCE, "{} {difference}", context("logits"));
        }

        if expected.get("grad").is_some() {
            num_with_gradients += 1;
            check_gradients(&mut *backend, &layout, &params, &batches[..2], &expected["grad"], &tensors);
        }
    }
    assert!(num_with_gradients > 0, "no golden gradients");
    check_refusals(make);
}

fn check_gradients(
    backend: &mut dyn LossAndGradients,
    layout: &Layout,
    params: &[f32],
    batches: &[Vec<u32>],
    expected: &Value,
    tensors: &std::collections::HashMap<String, Tensor>,
) {
    let mut gradients = vec![0.0; layout.len()];
    let (tokens, row_len) = (batches.concat(), batches[0].len());
    let loss = backend.loss_and_gradients(params, &mut gradients, Rows::new(&tokens, 2, row_len), 1.0, None).unwrap();
    assert!((f64::from(loss) - number(&expected["loss"])).abs() <= LOSS_TOLERANCE);
    let close = |name: &str, computed: f64, expected: f64| {
        let difference = (computed / expected - 1.0).abs();
        assert!(difference <= GRADIENT_TOLERANCE, "{name}: {computed} against {expected}");
    };
    close("global norm", norm(gradients.iter().copied()), number(&expected["global_norm"]));
    let norms = expected["norm_per_parameter"].as_object().unwrap();
    assert_eq!(norms.len(), layout.params().len());
    let mut num_tensors = 0;
    for param in layout.params() {
        let (name, transposed) = full_name(param);
        let gradient = &gradients[param.range.clone()];
        close(&name, norm(gradient.iter().copied()), number(&norms[&name]));
        if let Some(tensor) = tensors.get(&format!("grad.{name}")) {
            num_tensors += 1;
            let distance = relative_distance(gradient, &to_our_order(tensor, transposed));
            assert!(distance <= GRADIENT_TOLERANCE, "{name}: {distance}");
        }
    }
    assert_eq!(num_tensors, tensors.len() - 1, "golden gradients that belong to no parameter");
}

/// Two backends on random small models: losses, row losses, logits and every gradient, with and without dropout.
pub(crate) fn check_equal(
    make_a: impl Fn(&Arch) -> Box<dyn LossAndGradients>,
    make_b: impl Fn(&Arch) -> Box<dyn LossAndGradients>,
) {
    for case in 0..24 {
        let pick = |what: u64, choices: &[usize]| choices[random::bits(what, case, 0) as usize % choices.len()];
        let heads = pick(1, &[1, 2, 3, 5]);
        let context = pick(2, &[2, 5, 17, 33, 70]);
        let arch = Arch {
            vocab_size: pick(3, &[1, 7, 50, 131, 600]),
            context,
            width: heads * pick(4, &[1, 4, 7, 16]),
            layers: pick(5, &[0, 1, 2, 3]),
            heads,
            mlp_width: pick(6, &[1, 9, 32, 65]),
            activation: [Activation::GeluTanh, Activation::GeluErf, Activation::Relu][pick(7, &[0, 1, 2])],
            norm_eps: [1e-5, 1e-2][pick(8, &[0, 1])],
            scale_by_head_size: pick(9, &[0, 1]) == 1,
            scale_by_layer: pick(10, &[0, 1]) == 1,
            tied_head: pick(11, &[0, 1]) == 1,
        };
        let (num_rows, row_len) = (pick(12, &[1, 2, 3, 7]), context - pick(13, &[0, 0, 1, 3]).min(context - 2));
        let dropout = (pick(14, &[0, 1]) == 1).then_some(DropoutSeed { rate: 0.25, seed: case });
        let layout = Layout::of(&arch);
        let params: Vec<f32> = (0..layout.len() as u64).map(|i| random::uniform(case, 0, i) - 0.5).collect();
        let token = |i: usize| random::bits(15, case, i as u32) % arch.vocab_size as u32;
        let tokens: Vec<u32> = (0..num_rows * row_len).map(token).collect();

        let run = |backend: &mut dyn LossAndGradients| {
            let mut gradients = vec![0.0; layout.len()];
            let mut accumulate = |scale| {
                backend
                    .loss_and_gradients(&params, &mut gradients, Rows::new(&tokens, num_rows, row_len), scale, dropout)
                    .unwrap()
            };
            // Twice, so that a backend that overwrites instead of adding is found out.
            let loss = accumulate(0.75);
            assert_eq!(accumulate(0.25).to_bits(), loss.to_bits());
            let row_losses = backend.row_losses(&params, Rows::new(&tokens, num_rows, row_len)).unwrap();
            let logits = backend.logits(&params, Rows::new(&tokens, num_rows, row_len)).unwrap();
            (loss, gradients, row_losses, logits)
        };
        let a = run(&mut *make_a(&arch));
        let b = run(&mut *make_b(&arch));
        let report = format!("case {case}: {arch:?}, {num_rows} x {row_len}, {dropout:?}");
        assert!((a.0 - b.0).abs() <= 1e-5 * b.0.abs().max(1e-2), "loss {} {}, {report}", a.0, b.0);
        assert!(distance(&a.2, &b.2) <= 1e-5, "row losses {:?} {:?}, {report}", a.2, b.2);
        assert!(distance(&a.3, &b.3) <= 1e-5, "logits {}, {report}", distance(&a.3, &b.3));
        for param in layout.params() {
            let (a, b) = (&a.1[param.range.clone()], &b.1[param.range.clone()]);
            let difference = distance(a, b);
            // Over two or three channels LayerNorm is nearly a step, and f32 is up to 2e-4 away from f64 whoever computes it.
            let tolerance = if arch.width < 4 { 1e-3 } else { 1e-4 };
            assert!(difference <= tolerance, "gradient of {}: {difference}, {report}", param.name);
        }
    }
}

/// [`relative_distance`], but vectors that vanish up to rounding are equal.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let rounding = 1e-3 * (b.len() as f64).sqrt();
    norm(a.iter().zip(b).map(|(a, b)| a - b)) / norm(b.iter().copied()).max(rounding)
}

/// Input that must be refused, by an error and with the gradients left alone.
fn check_refusals(make: impl Fn(&Arch) -> Box<dyn LossAndGradients>) {
    let arch = Arch::gpt2(7, 4, 6, 1, 2);
    let params = vec![0.1; Layout::of(&arch).len()];
    let mut backend = make(&arch);
    let cases: [(&[u32], usize, usize); 6] =
        [(&[0, 1, 7, 0], 1, 4), (&[0, u32::MAX], 1, 2), (&[0; 5], 1, 5), (&[0; 5], 2, 2), (&[], 0, 4), (&[], 4, 0)];
    for (tokens, num_rows, row_len) in cases {
        let mut gradients = vec![0.5; params.len()];
        let refused =
            backend.loss_and_gradients(&params, &mut gradients, Rows::new(tokens, num_rows, row_len), 1.0, None);
        assert!(refused.is_err() && gradients.iter().all(|&gradient| gradient == 0.5), "{tokens:?}");
        assert!(backend.row_losses(&params, Rows::new(tokens, num_rows, row_len)).is_err(), "{tokens:?}");
        assert!(backend.logits(&params, Rows::new(tokens, num_rows, row_len)).is_err(), "{tokens:?}");
    }
    let mut gradients = vec![0.5; params.len()];
    assert!(backend.loss_and_gradients(&params, &mut gradients, Rows::new(&[1, 2], 2, 1), 1.0, None).is_err());
    assert!(backend.row_losses(&params, Rows::new(&[1, 2], 2, 1)).unwrap().iter().all(|loss| loss.is_nan()));
    assert!(backend.row_losses(&params[1..], Rows::new(&[1, 2], 1, 2)).is_err());
}
