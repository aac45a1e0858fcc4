//! The assembly of the native decoder against a forward pass in f64 made of the operations' references.
//!
//! Nothing here knows a backward pass: gradients are held to central differences of that f64 loss, in random directions
//! through whole tensors (so that every element counts) and at single elements. Beside candle's graph, which shares
//! nothing with the operations, this is the second and independent proof; and here are the decoder's own promises:
//! the same bits on any number of threads and after any earlier pass.

#![allow(clippy::unwrap_used)]

use crate::model::arch::{Activation, Arch, NormKind, Pairing, Position, Residual, RopeScaling, Rotary};
use crate::model::decoder::Decoder;
use crate::model::layout::Layout;
use crate::model::{DropoutSeed, LossAndGradients, Rows};
use crate::ops::cross_entropy::NO_TARGET;
use crate::ops::embedding::Embedding;
use crate::ops::random::{self, Mask};
use crate::ops::testing::{assert_bits_do_not_depend_on_threads, dot, numbers_below, on_threads, values, wide};
use crate::ops::{Device, activation, attention, cross_entropy, embedding, linear, norm, rotary};

/// A tiny architecture, with an MLP that is not four times the width.
fn tiny() -> Arch {
    Arch { mlp_width: 21, ..Arch::gpt2(29, 9, 12, 2, 3) }
}

/// Rotary, gated, grouped, without biases, heads that do not make up the width.
fn llama_like() -> Arch {
    Arch {
        heads: 4,
        kv_heads: 2,
        head_size: 6,
        gated: true,
        activation: Activation::Silu,
        norm: NormKind::Rms,
        position: Position::Rotary(Rotary {
            size: 4,
            pairing: Pairing::Interleaved,
            base: 50.0,
            scaling: RopeScaling::Linear(2.0),
            bounded: false,
        }),
        qkv_bias: false,
        out_bias: false,
        mlp_bias: false,
        tied_head: false,
        ..tiny()
    }
}

/// Architectures and dropout that together go every way through the decoder.
fn cases() -> Vec<(Arch, Option<DropoutSeed>)> {
    let dropout = Some(DropoutSeed { rate: 0.2, seed: 77 });
    vec![
        (tiny(), None),
        (tiny(), dropout),
        (Arch { activation: Activation::GeluErf, tied_head: false, ..tiny() }, None),
        (Arch { activation: Activation::Relu, scale_by_layer: true, mlp_width: 5, ..tiny() }, None),
        (
            Arch { scale_by_head_size: false, norm_eps: 0.1, ..Arch { mlp_width: 21, ..Arch::gpt2(29, 9, 12, 1, 1) } },
            None,
        ),
        (Arch { scale_by_layer: true, tied_head: false, mlp_width: 21, ..Arch::gpt2(29, 9, 12, 3, 12) }, dropout),
        (Arch { layers: 0, ..tiny() }, dropout),
        (llama_like(), None),
        (Arch { head_bias: true, norm: NormKind::RmsOnePlus, embedding_scale: 3.0, ..llama_like() }, dropout),
        (Arch { residual: Residual::Parallel, position: Position::Alibi { in_bf16: false }, ..tiny() }, dropout),
        (Arch { residual: Residual::ParallelOneNorm, qkv_bias: false, out_bias: false, ..tiny() }, dropout),
        (Arch { residual: Residual::PostNorm, embedding_norm: true, ..tiny() }, dropout),
        (Arch { residual: Residual::PostNorm, position: Position::Learned { offset: 2 }, ..tiny() }, None),
        (Arch { causal: false, activation: Activation::Silu, ..tiny() }, None),
        (Arch { window: Some(3), activation: Activation::Relu2, ..tiny() }, dropout),
    ]
}

/// Parameters far from initialisation: gains around 1, the others up to a half.
fn params_of(layout: &Layout) -> Vec<f32> {
    let mut params: Vec<f32> = values(1, layout.len()).into_iter().map(|x| 0.5 * x).collect();
    for param in layout.params().iter().filter(|param| param.name.ends_with("gain")) {
        params[param.range.clone()].iter_mut().for_each(|gain| *gain += 1.0);
    }
    params
}

/// Mean loss of each row in f64.
fn reference_losses(
    arch: &Arch,
    layout: &Layout,
    params: &[f64],
    tokens: &[u32],
    row_len: usize,
    dropout: Option<DropoutSeed>,
) -> Vec<f64> {
    let find = |name: &str| layout.get(name).map(|param| &params[param.range.clone()]);
    let of = |name: &str| find(name).unwrap();
    let keep = |site, index: usize| {
        dropout.map_or(1.0, |dropout| Mask::new(dropout.seed, site, dropout.rate).scale_at(index as u64, 0).into())
    };
    let dropped = |x: Vec<f64>, site| -> Vec<f64> { x.iter().enumerate().map(|(i, x)| x * keep(site, i)).collect() };
    let add = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
    let norm = |x: &[f64], name: &str| {
        let (gain, bias) = (of(&format!("{name}.gain")), find(&format!("{name}.bias")));
        norm::reference::forward(arch.norm, x, gain, bias, f64::from(arch.norm_eps))
    };
    let linear = |x: &[f64], name: &str| {
        let weight = layout.get(&format!("{name}.weight")).unwrap();
        let none = vec![0.0; weight.shape[0]];
        linear::reference::forward(x, &params[weight.range.clone()], find(&format!("{name}.bias")).unwrap_or(&none))
    };
    let attention = |x: &[f64], block: usize| {
        let mut qkv = linear(x, &format!("blocks.{block}.attention.qkv"));
        if let Position::Rotary(Rotary { size, pairing, .. }) = arch.position {
            let (frequencies, divisor) = arch.rotary_frequencies(row_len).unwrap();
            let angle = |t: usize| frequencies.iter().map(move |f| f64::from(t as f32 / divisor * f));
            let angles: Vec<f64> = (0..row_len).flat_map(angle).collect();
            let (cos, sin): (Vec<_>, Vec<_>) = angles.into_iter().map(|angle| (angle.cos(), angle.sin())).unzip();
            let (heads, d, width) = (arch.heads + arch.kv_heads, arch.head_size, arch.qkv_width());
            let shape = rotary::Shape { heads, d, row_len: width, size, t: row_len, first_position: 0, pairing };
            qkv = rotary::reference::forward(shape, &qkv, &cos, &sin);
        }
        let shape = attention::Shape {
            b: tokens.len() / row_len,
            t: row_len,
            h: arch.heads,
            kv_heads: arch.kv_heads,
            d: arch.head_size,
            scale: arch.attention_scale(block),
            causal: arch.causal,
            window: arch.window,
        };
        let key_bias = arch.key_bias(row_len).map(|bias| wide(&bias));
        let site = random::attention_site(block);
        let mixed = attention::reference::forward(shape, &qkv, key_bias.as_deref(), |i| keep(site, i));
        let branch = linear(&mixed, &format!("blocks.{block}.attention.out"));
        dropped(branch, random::attention_branch_site(block))
    };
    let mlp = |x: &[f64], block: usize| {
        let hidden = linear(x, &format!("blocks.{block}.mlp.up"));
        let hidden = match arch.gated {
            true => activation::reference::gated_forward(arch.activation, &hidden, arch.mlp_width),
            false => activation::reference::forward(arch.activation, &hidden, &[0.0]),
        };
        dropped(linear(&hidden, &format!("blocks.{block}.mlp.down")), random::mlp_branch_site(block))
    };

    let shape = Embedding {
        t: row_len,
        c: arch.width,
        scale: arch.embedding_scale,
        first_position: if let Position::Learned { offset } = arch.position { offset } else { 0 },
        frozen_id: None,
    };
    let mut x = embedding::reference::forward(shape, tokens, of("embed.token"), find("embed.position"));
    if arch.embedding_norm {
        x = norm(&x, "embed.norm");
    }
    let mut x = dropped(x, random::EMBEDDING_SITE);
    for block in 0..arch.layers {
        let [norm1, norm2] = [1, 2].map(|i| format!("blocks.{block}.norm{i}"));
        x = match arch.residual {
            Residual::Serial => {
                let middle = add(&x, &attention(&norm(&x, &norm1), block));
                add(&middle, &mlp(&norm(&middle, &norm2), block))
            }
            Residual::Parallel => add(&add(&x, &attention(&norm(&x, &norm1), block)), &mlp(&norm(&x, &norm2), block)),
            Residual::ParallelOneNorm => {
                add(&add(&x, &attention(&norm(&x, &norm1), block)), &mlp(&norm(&x, &norm1), block))
            }
            Residual::PostNorm => {
                let middle = norm(&add(&x, &attention(&x, block)), &norm1);
                norm(&add(&middle, &mlp(&middle, block)), &norm2)
            }
        };
    }
    if arch.final_norm() {
        x = norm(&x, "norm");
    }
    let head = of(if arch.tied_head { "embed.token" } else { "head.weight" });
    let targets: Vec<u32> =
        tokens.chunks(row_len).flat_map(|row| row[1..].iter().copied().chain([NO_TARGET])).collect();
    let bias = find("head.bias");
    let (losses, ..) = cross_entropy::reference::forward_backward(&x, head, bias, &targets, arch.width, 1.0);
    losses.chunks(row_len).map(|row| row.iter().sum::<f64>() / (row_len - 1) as f64).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn losses_and_gradients_are_those_of_the_references_in_double_precision() {
    const STEP: f64 = 1e-6;
    on_threads(2, |device| {
        for (arch, dropout) in cases() {
            let layout = Layout::of(&arch);
            let params = params_of(&layout);
            let (num_rows, row_len) = (3, 7);
            let tokens = numbers_below(arch.vocab_size, 2, num_rows * row_len);
            let loss = |params: &[f64]| mean(&reference_losses(&arch, &layout, params, &tokens, row_len, dropout));
            let mut decoder = Decoder::new(device.clone(), &arch);
            let mut gradients = vec![0.0; layout.len()];
            let actual = decoder
                .loss_and_gradients(&params, &mut gradients, Rows::new(&tokens, num_rows, row_len), 1.0, dropout)
                .unwrap();
            let exact = wide(&params);
            let expected = loss(&exact);
            assert!((f64::from(actual) - expected).abs() <= 1e-6 * expected, "{actual} {expected} of {arch:?}");

            for param in layout.params() {
                let gradient = wide(&gradients[param.range.clone()]);
                let size = dot(&gradient, &gradient).sqrt();
                assert!(size > 1e-4, "the gradient of {} vanishes", param.name);
                let check = |direction: &[f64], what: &str| {
                    let at = |step: f64| {
                        let mut moved = exact.clone();
                        moved[param.range.clone()].iter_mut().zip(direction).for_each(|(x, d)| *x += step * d);
                        loss(&moved)
                    };
                    let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
                    let error = (dot(&gradient, direction) - slope).abs() / size;
                    // What single precision leaves, along directions that are longer than 1: 1.7e-5 at most where it was
                    // tried, and more or less than 1e-5 by the machine's vector instructions.
                    assert!(error <= 3e-5, "{} along {what}: {error:e} of {arch:?}, {dropout:?}", param.name);
                };
                for seed in 0..3 {
                    let signs: Vec<f64> = values(seed, gradient.len()).iter().map(|x| f64::from(x.signum())).collect();
                    check(&signs, "random signs");
                }
                for element in numbers_below(gradient.len(), 3, 3) {
                    let mut direction = vec![0.0; gradient.len()];
                    direction[element as usize] = 1.0;
                    check(&direction, &format!("element {element}"));
                }
            }

            let row_losses = decoder.row_losses(&params, Rows::new(&tokens, num_rows, row_len)).unwrap();
            let expected = reference_losses(&arch, &layout, &exact, &tokens, row_len, None);
            for (actual, expected) in row_losses.iter().zip(&expected) {
                assert!((f64::from(*actual) - expected).abs() <= 1e-6 * expected, "{actual} {expected} of {arch:?}");
            }
        }
    });
}

/// Loss, gradients, row losses and logits as one list.
fn run_all(
    decoder: &mut Decoder,
    layout: &Layout,
    tokens: &[u32],
    row_len: usize,
    dropout: Option<DropoutSeed>,
) -> Vec<f32> {
    let (params, num_rows) = (params_of(layout), tokens.len() / row_len);
    let mut gradients = vec![0.0; layout.len()];
    let loss = decoder
        .loss_and_gradients(&params, &mut gradients, Rows::new(tokens, num_rows, row_len), 0.5, dropout)
        .unwrap();
    let row_losses = decoder.row_losses(&params, Rows::new(tokens, num_rows, row_len)).unwrap();
    let logits = decoder.logits(&params, Rows::new(tokens, num_rows, row_len)).unwrap();
    [vec![loss], gradients, row_losses, logits].concat()
}

#[test]
fn results_have_the_same_bits_on_any_number_of_threads() {
    let arch = Arch { mlp_width: 200, ..Arch::gpt2(700, 100, 96, 2, 4) };
    let layout = Layout::of(&arch);
    let tokens = numbers_below(arch.vocab_size, 2, 6 * 99);
    for dropout in [None, Some(DropoutSeed { rate: 0.1, seed: 3 })] {
        assert_bits_do_not_depend_on_threads(|device| {
            run_all(&mut Decoder::new(device.clone(), &arch), &layout, &tokens, 99, dropout)
        });
    }
}

#[test]
fn what_earlier_passes_left_in_memory_changes_nothing() {
    let arch = tiny();
    let layout = Layout::of(&arch);
    let params = params_of(&layout);
    let poison = vec![f32::NAN; layout.len()];
    let dropout = Some(DropoutSeed { rate: 0.2, seed: 1 });
    for (num_rows, row_len) in [(1, 2), (2, 9), (3, 5), (7, 3)] {
        let tokens = numbers_below(arch.vocab_size, 4, num_rows * row_len);
        for dropout in [None, dropout] {
            let fresh = run_all(&mut Decoder::new(Device::cpu(), &arch), &layout, &tokens, row_len, dropout);
            // Scored, trained and poisoned before, in smaller and in larger passes.
            let mut used = Decoder::new(Device::cpu(), &arch);
            used.row_losses(&params, Rows::new(&[1, 2], 1, 2)).unwrap();
            for (num_rows, row_len) in [(2, 3), (4, 6), (3, 9)] {
                let tokens = numbers_below(arch.vocab_size, 5, num_rows * row_len);
                let mut gradients = poison.clone();
                used.loss_and_gradients(&poison, &mut gradients, Rows::new(&tokens, num_rows, row_len), 1.0, dropout)
                    .unwrap();
            }
            let again = run_all(&mut used, &layout, &tokens, row_len, dropout);
            assert!(fresh.iter().all(|x| x.is_finite()));
            assert!(fresh.iter().map(|x| x.to_bits()).eq(again.iter().map(|x| x.to_bits())), "{num_rows} x {row_len}");
        }
    }
}

#[test]
fn not_a_number_in_any_parameter_that_is_used_makes_the_loss_not_a_number() {
    for activation in [Activation::GeluTanh, Activation::GeluErf, Activation::Relu] {
        let arch = Arch { activation, tied_head: false, ..tiny() };
        let layout = Layout::of(&arch);
        let tokens = [0, 5, 1, 0, 7, 2];
        let mut decoder = Decoder::new(Device::cpu(), &arch);
        for param in layout.params() {
            let mut params = params_of(&layout);
            params[param.range.start] = f32::NAN;
            let mut gradients = vec![0.0; layout.len()];
            let loss =
                decoder.loss_and_gradients(&params, &mut gradients, Rows::new(&tokens, 2, 3), 1.0, None).unwrap();
            assert!(loss.is_nan(), "{}: {loss} with {activation:?}", param.name);
        }
    }
}
