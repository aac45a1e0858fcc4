//! The assembly of the native decoder against a forward pass in f64 made of the operations' references.
//!
//! Nothing here knows a backward pass: gradients are held to central differences of that f64 loss, in random directions
//! through whole tensors (so that every element counts) and at single elements. Beside candle's graph, which shares
//! nothing with the operations, this is the second and independent proof; and here are the decoder's own promises:
//! the same bits on any number of threads and after any earlier pass.

#![allow(clippy::unwrap_used)]

use crate::model::arch::{Activation, Arch};
use crate::model::decoder::Decoder;
use crate::model::layout::Layout;
use crate::model::{DropoutSeed, LossAndGradients, Rows};
use crate::ops::attention::Shape;
use crate::ops::cross_entropy::NO_TARGET;
use crate::ops::random::{self, Mask};
use crate::ops::testing::{assert_bits_do_not_depend_on_threads, dot, numbers_below, on_threads, values, wide};
use crate::ops::{Device, activation, attention, cross_entropy, embedding, linear, norm};

/// A tiny architecture, with an MLP that is not four times the width.
fn tiny() -> Arch {
    Arch { mlp_width: 21, ..Arch::gpt2(29, 9, 12, 2, 3) }
}

/// Architectures and dropout that together go every way through the decoder.
fn cases() -> Vec<(Arch, Option<DropoutSeed>)> {
    let dropout = Some(DropoutSeed { rate: 0.2, seed: 77 });
    vec![
        (tiny(), None),
        (tiny(), dropout),
        (Arch { activation: Activation::GeluErf, tied_head: false, ..tiny() }, None),
        (Arch { activation: Activation::Relu, scale_by_layer: true, mlp_width: 5, ..tiny() }, None),
        (Arch { scale_by_head_size: false, heads: 1, layers: 1, norm_eps: 0.1, ..tiny() }, None),
        (Arch { scale_by_layer: true, layers: 3, heads: 12, tied_head: false, ..tiny() }, dropout),
        (Arch { layers: 0, ..tiny() }, dropout),
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
    let of = |name: &str| &params[layout.get(name).unwrap().range.clone()];
    let keep = |site, index: usize| {
        dropout.map_or(1.0, |dropout| Mask::new(dropout.seed, site, dropout.rate).scale_at(index as u64, 0).into())
    };
    let dropped = |x: Vec<f64>, site| -> Vec<f64> { x.iter().enumerate().map(|(i, x)| x * keep(site, i)).collect() };
    let add = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
    let eps = f64::from(arch.norm_eps);

    let x = embedding::reference::forward(tokens, of("embed.token"), of("embed.position"), row_len, arch.width);
    let mut x = dropped(x, random::EMBEDDING_SITE);
    for block in 0..arch.layers {
        let of = |name: &str| of(&format!("blocks.{block}.{name}"));
        let normal = norm::reference::forward(&x, of("norm1.gain"), of("norm1.bias"), eps);
        let qkv = linear::reference::forward(&normal, of("attention.qkv.weight"), of("attention.qkv.bias"));
        let shape = Shape {
            b: tokens.len() / row_len,
            t: row_len,
            h: arch.heads,
            d: arch.width / arch.heads,
            scale: arch.attention_scale(block),
        };
        let mixed = attention::reference::forward(shape, &qkv, |i| keep(random::attention_site(block), i));
        let branch = linear::reference::forward(&mixed, of("attention.out.weight"), of("attention.out.bias"));
        x = add(&x, &dropped(branch, random::attention_branch_site(block)));
        let normal = norm::reference::forward(&x, of("norm2.gain"), of("norm2.bias"), eps);
        let hidden = linear::reference::forward(&normal, of("mlp.up.weight"), &vec![0.0; arch.mlp_width]);
        let hidden = activation::reference::forward(arch.activation, &hidden, of("mlp.up.bias"));
        let branch = linear::reference::forward(&hidden, of("mlp.down.weight"), of("mlp.down.bias"));
        x = add(&x, &dropped(branch, random::mlp_branch_site(block)));
    }
    let x = norm::reference::forward(&x, of("norm.gain"), of("norm.bias"), eps);
    let head = of(if arch.tied_head { "embed.token" } else { "head.weight" });
    let targets: Vec<u32> =
        tokens.chunks(row_len).flat_map(|row| row[1..].iter().copied().chain([NO_TARGET])).collect();
    let (losses, ..) = cross_entropy::reference::forward_backward(&x, head, &targets, arch.width, 1.0);
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
                    assert!(error <= 1e-5, "{} along {what}: {error:e} of {arch:?}, {dropout:?}", param.name);
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
