//! What a step's first pass finds in the gradients has no part in them.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::mem::discriminant;

use crate::gpu::testing;
use crate::model::Rows;
use crate::model::arch::{Arch, Unused};
use crate::model::golden_tests::golden_models;
use crate::model::init;
use crate::model::layout::Layout;
use crate::train::engine::gpu::GpuEngine;
use crate::train::engine::{Engine, Options};
use crate::train::state::Weights;

/// Architectures with tied and untied heads, with and without biases, with parameters that nothing uses, without blocks;
/// one of each kind, with parameters.
fn models() -> Vec<(String, Arch, Vec<f32>)> {
    let mut kinds = HashSet::new();
    let golden = golden_models().into_iter().map(|golden| (golden.name, golden.model.config.arch, golden.model.params));
    let mut models: Vec<_> = golden
        .filter(|(_, arch, _)| arch.unused != Unused::QueryKeyNorms) // no model that can be computed
        .filter(|(_, arch, _)| {
            let heads = (arch.tied_head, arch.head_bias);
            kinds.insert((
                discriminant(&arch.residual),
                discriminant(&arch.unused),
                arch.out_bias,
                arch.mlp_bias,
                heads,
            ))
        })
        .collect();
    assert!(models.iter().any(|(_, arch, _)| arch.head_bias && !arch.tied_head));
    assert!(models.iter().any(|(_, arch, _)| arch.unused == Unused::CrossAttention));
    let without_blocks = Arch::gpt2(40, 16, 16, 0, 2);
    for arch in [Arch { tied_head: false, ..without_blocks.clone() }, without_blocks] {
        let layout = Layout::of(&arch);
        let mut params = vec![0.0; layout.len()];
        init::scratch(&arch, &layout, 1, &mut params);
        models.push((format!("without blocks, tied: {}", arch.tied_head), arch, params));
    }
    models
}

#[test]
fn a_step_gives_the_same_gradients_whatever_stood_there_before() {
    let Some([gpu, _]) = testing::gpus() else { return };
    for (name, arch, params) in models() {
        let micro_batches = [1, 2].map(|seed| -> Vec<u32> { (0..16).map(|i| (i * 7 + seed * 3) % 40).collect() });
        let engine =
            || GpuEngine::new(&gpu, &arch, &Options::usual(&Layout::of(&arch)), Weights::starting_at(&params)).unwrap();
        let accumulate = |engine: &mut GpuEngine| {
            for tokens in &micro_batches {
                engine.accumulate(Rows::new(tokens, 2, 8), 0.5, None, None).unwrap();
            }
            (engine.gradient_norm().unwrap(), engine.host_gradients().unwrap())
        };
        // On memory as it was taken, zeroed, where everything is added.
        let expected = accumulate(&mut engine());
        let mut stale = engine();
        stale.fill_gradients(f32::NAN);
        stale.zero_gradients();
        assert!(accumulate(&mut stale) == expected, "{name}");
        // A step that is given up after its first micro-batch, and one without any.
        stale.zero_gradients();
        stale.accumulate(Rows::new(&micro_batches[1], 2, 8), f32::NAN, None, None).unwrap();
        stale.zero_gradients();
        assert!(accumulate(&mut stale) == expected, "{name}, after a step that was given up");
        stale.fill_gradients(f32::NAN);
        stale.zero_gradients();
        assert_eq!(stale.gradient_norm().unwrap(), 0.0, "{name}, without a micro-batch");
    }
}
