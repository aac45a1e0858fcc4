//! Tests that every backend must pass, as functions over [`LossAndGradients`].
//!
//! [`check_backend`]: the reference's losses, logits and gradients of all models in `tests/golden/models`, and
//! refusals. [`check_equal`]: one backend against another on random small models.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::Scorer;
use super::arch::{
    Activation, Arch, NormKind, Pairing, Position, Reference, Residual, RopeMemory, RopeScaling, Rotary, Unused,
};
use super::family::Family;
use super::layout::Layout;
use super::scorer::CpuScorer;
use super::weights::{self, StoredRows};
use super::{DropoutSeed, LossAndGradients, Rows};
use crate::golden;
use crate::ops::random;
use crate::score::loss;

const ACTIVATIONS: [Activation; 5] =
    [Activation::GeluTanh, Activation::GeluErf, Activation::Relu, Activation::Relu2, Activation::Silu];

/// Losses in f32 against f32 with another order of summation.
const LOSS_TOLERANCE: f64 = 5e-6;
const LOGIT_TOLERANCE: f64 = 2e-5;
const GRADIENT_TOLERANCE: f64 = 1e-4;
/// Of the global norm: some gradients are mathematically zero, such as those of the keys' biases.
const VANISHING: f64 = 1e-6;

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

fn norm(values: impl IntoIterator<Item = f32>) -> f64 {
    values.into_iter().map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

/// A model in `tests/golden/models` and what the reference computed.
pub(crate) struct GoldenModel {
    pub(crate) name: String,
    pub(crate) model: weights::LoadedModel,
    pub(crate) expected: Value,
    tensors: HashMap<String, Tensor>,
    pub(crate) batches: Vec<Vec<u32>>,
}

/// All of them.
pub(crate) fn golden_models() -> Vec<GoldenModel> {
    let folders = std::fs::read_dir(golden::path("models")).unwrap().map(|entry| entry.unwrap().path());
    let read = |folder: std::path::PathBuf| {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let model = weights::load(&folder).unwrap();
        let expected = read_json(folder.join("expected.json"));
        assert_eq!(model.layout.len() as u64, expected["param_count"].as_u64().unwrap(), "{name}");
        let file = folder.join("expected.safetensors");
        let tensors =
            if file.exists() { candle_core::safetensors::load(file, &Device::Cpu).unwrap() } else { HashMap::new() };
        let batches = serde_json::from_value(expected["batches"].clone()).unwrap();
        GoldenModel { name, model, expected, tensors, batches }
    };
    let models: Vec<_> = folders.filter(|path| path.is_dir()).map(read).collect();
    assert!(!models.is_empty(), "no golden models");
    models
}

/// Losses, logits, gradients and refusals of every golden model, as the reference computed them and, where that is stored
/// too, without its quirks.
pub(crate) fn check_backend(make: impl Fn(&Arch) -> Box<dyn LossAndGradients>) {
    check_scorer(
        |_| [LOSS_TOLERANCE, LOGIT_TOLERANCE],
        |arch, params| Box::new(CpuScorer { model: make(arch), params }),
    );
    let mut num_with_gradients = 0;
    for GoldenModel { name, model, expected, tensors, batches } in golden_models() {
        if let Some(grad) = expected.get("grad") {
            num_with_gradients += 1;
            let seen = model.config.arch.seen_by(Reference::Transformers4_38_0);
            let backend = &mut *make(&seen);
            check_gradients(backend, &seen, &model.layout, &model.params, &batches[..2], grad, &tensors, &name);
        }
    }
    assert!(num_with_gradients > 0, "no golden gradients");
    check_refusals(make);
}

/// Losses and logits of every golden model, with and without the reference's quirks; `tolerances` are of a loss and of a
/// logit, by the model's name.
pub(crate) fn check_scorer(
    tolerances: impl Fn(&str) -> [f64; 2],
    make: impl for<'a> Fn(&Arch, &'a [f32]) -> Box<dyn Scorer + 'a>,
) {
    let mut num_without_quirks = 0;
    for GoldenModel { name, model, expected, tensors, batches } in golden_models() {
        let [loss_tolerance, logit_tolerance] = tolerances(&name);
        let check = |arch: &Arch, losses: &Value, logits: Option<&Tensor>, name: &str| {
            check_losses(&mut *make(arch, &model.params), arch, &batches, losses, loss_tolerance, name);
            if let Some(logits) = logits {
                let scorer = &mut *make(arch, &model.params);
                check_logits(scorer, arch, &batches[0], &expected, logits, logit_tolerance, name);
            }
        };
        let seen = model.config.arch.seen_by(Reference::Transformers4_38_0);
        check(&seen, &expected["losses_reference"], tensors.get("logits"), &name);
        let eager = &expected["losses_if_eager_attention"];
        // Gemma's eager attention fails in the reference.
        if eager.as_array().is_some_and(|losses| losses.iter().any(Value::is_number)) {
            num_without_quirks += 1;
            let mut arch = model.config.arch.seen_by(Reference::None);
            if let Position::Rotary(Rotary { scaling: RopeScaling::Dynamic { memory, .. }, .. }) = &mut arch.position {
                // A quirk of the embedding, which the reference has with any attention.
                *memory = RopeMemory::LastLong;
            }
            check(&arch, eager, tensors.get("logits_if_eager"), &format!("{name} without quirks"));
        }
    }
    assert!(num_without_quirks > 0, "no golden losses without quirks");
}

fn check_losses(
    scorer: &mut dyn Scorer,
    arch: &Arch,
    batches: &[Vec<u32>],
    expected: &Value,
    tolerance: f64,
    name: &str,
) {
    let losses = loss::losses(scorer, arch, batches).unwrap().unwrap();
    assert_eq!(losses.len(), expected.as_array().unwrap().len());
    for (i, (loss, expected)) in losses.into_iter().zip(expected.as_array().unwrap()).enumerate() {
        let (loss, expected) = (f64::from(loss), number(expected));
        let is_close = loss == expected || (loss - expected).abs() <= tolerance;
        assert!(is_close, "{name}, batch {i}: {loss} instead of {expected}");
    }
}

fn check_logits(
    scorer: &mut dyn Scorer,
    arch: &Arch,
    tokens: &[u32],
    expected: &Value,
    expected_logits: &Tensor,
    tolerance: f64,
    name: &str,
) {
    let positions: Vec<usize> = serde_json::from_value(expected["logit_positions"].clone()).unwrap();
    let logits = scorer.logits(Rows::new(tokens, 1, tokens.len())).unwrap();
    let expected_logits: Vec<Vec<f32>> = expected_logits.to_vec2().unwrap();
    assert_eq!(positions.len(), expected_logits.len());
    for (position, row) in positions.iter().zip(expected_logits) {
        let computed = &logits[position * arch.vocab_size..][..arch.vocab_size];
        let difference = computed.iter().zip(row).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        assert!(difference <= tolerance, "{name}: logits at {position} are off by {difference}");
    }
}

#[allow(clippy::too_many_arguments)]
fn check_gradients(
    backend: &mut dyn LossAndGradients,
    arch: &Arch,
    layout: &Layout,
    params: &[f32],
    batches: &[Vec<u32>],
    expected: &Value,
    tensors: &HashMap<String, Tensor>,
    folder: &str,
) {
    let mut gradients = vec![0.0; layout.len()];
    let (tokens, row_len) = (batches.concat(), batches[0].len());
    let loss = backend.loss_and_gradients(params, &mut gradients, Rows::new(&tokens, 2, row_len), 1.0, None).unwrap();
    assert!((f64::from(loss) - number(&expected["loss"])).abs() <= LOSS_TOLERANCE);
    let global = number(&expected["global_norm"]);
    let close = |name: &str, computed: f64, expected: f64| {
        let tolerance = (GRADIENT_TOLERANCE * expected).max(VANISHING * global);
        assert!((computed - expected).abs() <= tolerance, "{folder}, {name}: {computed} instead of {expected}");
    };
    close("global norm", norm(gradients.iter().copied()), global);
    let norms = expected["norm_per_parameter"].as_object().unwrap();
    let stored = weights::stored_rows(arch, layout);
    assert_eq!(norms.len(), stored.len(), "{folder}");
    let mut num_tensors = 0;
    for StoredRows { name, param, rows, is_transposed } in stored {
        let param = &layout.params()[param];
        let row_len: usize = param.shape[1..].iter().product();
        let all = &gradients[param.range.clone()];
        let gradient: Vec<f32> =
            rows.iter().flat_map(|rows| all[rows.start * row_len..rows.end * row_len].iter().copied()).collect();
        match &norms[&name] {
            Value::Null => assert!(gradient.iter().all(|x| *x == 0.0), "{folder}: {name} has no gradient"),
            expected => close(&name, norm(gradient.iter().copied()), number(expected)),
        }
        if let Some(tensor) = tensors.get(&format!("grad.{name}")) {
            num_tensors += 1;
            let tensor = if is_transposed { tensor.t().unwrap() } else { tensor.clone() };
            let expected: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            let difference = norm(gradient.iter().zip(&expected).map(|(a, b)| a - b));
            let tolerance = (GRADIENT_TOLERANCE * norm(expected.iter().copied())).max(VANISHING * global);
            assert!(difference <= tolerance, "{folder}, {name}: off by {difference}");
        }
    }
    let num_expected = tensors.keys().filter(|name| name.starts_with("grad.")).count();
    assert_eq!(num_tensors, num_expected, "{folder}: golden gradients that belong to no parameter");
}

/// Two backends on random small models: losses, row losses, logits and every gradient, with and without dropout.
pub(crate) fn check_equal(
    make_a: impl Fn(&Arch) -> Box<dyn LossAndGradients>,
    make_b: impl Fn(&Arch) -> Box<dyn LossAndGradients>,
) {
    for case in 0..64 {
        let pick = |what: u64, choices: &[usize]| choices[random::bits(what, case, 0) as usize % choices.len()];
        let kv_heads = pick(1, &[1, 2, 3]);
        let heads = kv_heads * pick(16, &[1, 1, 2, 3]);
        let context = pick(2, &[2, 5, 17, 33, 70]);
        let head_size = pick(4, &[2, 4, 8, 16]);
        let rotary = Rotary {
            size: pick(17, &[2, head_size]),
            pairing: [Pairing::Halves, Pairing::Interleaved][pick(18, &[0, 1])],
            base: 100.0,
            scaling: [RopeScaling::None, RopeScaling::Linear(2.5)][pick(19, &[0, 0, 1])],
            bounded: false,
        };
        let positions = [Position::Learned { offset: 0 }, Position::Learned { offset: 2 }, Position::Rotary(rotary)];
        let norm = [NormKind::Layer, NormKind::Rms, NormKind::RmsOnePlus][pick(20, &[0, 1, 2])];
        let residuals = [Residual::Serial, Residual::Parallel, Residual::ParallelOneNorm, Residual::PostNorm];
        let flag = |what: u64| pick(what, &[0, 1]) == 1;
        let vocab_size = pick(3, &[1, 7, 50, 131, 600]);
        let arch = Arch {
            // Gemma's heads may be of any size.
            family: Family::Gemma,
            vocab_size,
            context,
            width: heads * head_size + pick(21, &[0, 0, 3]),
            layers: pick(5, &[0, 1, 2, 3]),
            heads,
            kv_heads,
            head_size,
            mlp_width: pick(6, &[1, 9, 32, 65]),
            activation: ACTIVATIONS[pick(7, &[0, 1, 2, 3, 4])],
            gated: flag(22),
            norm,
            norm_eps: [1e-5, 1e-2][pick(8, &[0, 1])],
            residual: residuals[pick(23, &[0, 1, 2, 3])],
            position: match pick(24, &[0, 1, 2, 2, 3]) {
                3 => Position::Alibi { in_bf16: flag(25) },
                learned_or_rotary => positions[learned_or_rotary],
            },
            causal: pick(26, &[0, 1, 1, 1]) == 1,
            window: None,
            scale_by_head_size: flag(9),
            scale_by_layer: flag(10),
            qkv_bias: flag(27),
            out_bias: flag(28),
            mlp_bias: flag(29),
            embedding_scale: [1.0, 3.5][pick(30, &[0, 1])],
            embedding_norm: flag(31),
            frozen_id: flag(32).then_some(vocab_size as u32 / 2),
            tied_head: flag(11),
            head_bias: flag(33),
            unused: Unused::None,
            mask_doubles: false,
        };
        let arch = Arch {
            window: (arch.causal && flag(34)).then_some(pick(35, &[1, 3, 20])),
            mlp_bias: arch.mlp_bias && !arch.gated,
            ..arch
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

/// The Euclidean distance over the length of the second; vectors that vanish up to rounding are equal.
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
