//! The native decoder against the reference's values, against candle in f64, and its memory.

#![allow(clippy::unwrap_used)]

use super::memory::{BlockMemory, MlpMemory, TrainingBytes, TrainingMemory, scoring_bytes, training_bytes};
use super::*;
use crate::model::arch::{NormKind, Residual, RopeMemory, Rotary};
use crate::model::candle::CandleDecoder;
use crate::model::candle::tests::DoubleDecoder;
use crate::model::golden_tests::{check_backend, check_equal};
use crate::model::golden_training::{ADAMW_IN_F32, REFERENCE_MINER_IN_F32, check_adamw, check_reference_miner, on_cpu};
use crate::ops::random;

/// Bytes of all buffers, each named, so that a new one cannot be forgotten.
fn bytes_of(memory: &Memory) -> TrainingBytes {
    fn with_stats((buffer, stats): &(Buffer<f32>, NormStats)) -> usize {
        buffer.len() + 2 * stats.len()
    }
    let Memory {
        tokens: _,
        row_len: _,
        ids,
        targets,
        losses,
        embedded,
        residual,
        blocks,
        mlps,
        norm,
        logits,
        scratch,
        training,
    } = memory;
    let mut saved = ids.len() + targets.len() + losses.len() + residual.iter().map(Buffer::len).sum::<usize>();
    saved += embedded.as_ref().map_or(0, with_stats) + norm.as_ref().map_or(0, with_stats);
    for BlockMemory { norm1, norm1_stats, qkv, attention, log_sum_exp, middle, norm2 } in blocks {
        saved += [norm1, qkv, attention, log_sum_exp].map(Buffer::len).iter().sum::<usize>() + 2 * norm1_stats.len();
        saved += middle.as_ref().map_or(0, Buffer::len) + norm2.as_ref().map_or(0, with_stats);
    }
    for MlpMemory { hidden, activated } in mlps {
        saved += hidden.len() + activated.len();
    }
    let mut backward = scratch.len();
    if let Some(TrainingMemory { dx, dbranch, dinput, dside, dqkv, dhidden, dactivated }) = training {
        backward += [dx, dbranch, dinput, dqkv, dhidden].map(Buffer::len).iter().sum::<usize>();
        backward += [dside, dactivated].map(|buffer| buffer.as_ref().map_or(0, Buffer::len)).iter().sum::<usize>();
    }
    let bytes = |numbers: usize| 4 * numbers as u128;
    TrainingBytes { saved: bytes(saved), backward: bytes(backward), logits: bytes(logits.len()) }
}

/// Architectures that together need every buffer.
fn varied() -> Vec<Arch> {
    let small = Arch { mlp_width: 21, ..Arch::gpt2(29, 300, 12, 3, 3) };
    let gated = Arch { gated: true, norm: NormKind::Rms, heads: 4, kv_heads: 2, head_size: 5, ..small.clone() };
    vec![
        Arch { layers: 0, ..small.clone() },
        Arch { residual: Residual::Parallel, ..gated.clone() },
        Arch { residual: Residual::ParallelOneNorm, ..small.clone() },
        Arch { residual: Residual::PostNorm, embedding_norm: true, ..small.clone() },
        Arch { embedding_norm: true, ..gated },
        small,
    ]
}

#[test]
fn training_takes_the_memory_that_is_foretold() {
    for arch in varied() {
        for (rows, row_len, threads) in [(1, 2, 1), (3, 63, 2), (2, 65, 3), (3, 300, 4)] {
            for recompute in [Recompute::None, Recompute::Mlp, Recompute::Block] {
                let memory = Memory::new(&Device::Cpu { threads }, &arch, rows * row_len, row_len, recompute, true);
                assert_eq!(bytes_of(&memory), training_bytes(&arch, rows, row_len, threads, recompute), "{arch:?}");
            }
        }
    }
}

#[test]
fn scoring_takes_the_memory_that_is_foretold() {
    for arch in varied() {
        for (row_len, threads) in [(2, 1), (65, 3), (300, 4)] {
            let memory = Memory::new(&Device::Cpu { threads }, &arch, row_len, row_len, Recompute::None, false);
            let TrainingBytes { saved, backward, logits } = bytes_of(&memory);
            assert_eq!(saved + backward + logits, scoring_bytes(&arch, row_len, threads), "{arch:?}");
        }
    }
}

#[test]
fn memory_grows_to_serve_every_pass_so_far() {
    let mut decoder = Decoder::new(Device::cpu(), &Arch::gpt2(29, 300, 12, 1, 3));
    for (rows, row_len, training, expected) in
        [(1, 90, false, (90, 90, false)), (5, 60, true, (300, 90, true)), (1, 200, false, (300, 200, true))]
    {
        let num_params = decoder.layout.len();
        decoder.prepare(num_params, Rows::new(&vec![0; rows * row_len], rows, row_len), training).unwrap();
        let memory = decoder.memory.as_ref().unwrap();
        assert_eq!((memory.tokens, memory.row_len, memory.training.is_some()), expected);
    }
}

#[test]
fn what_is_computed_again_has_the_same_bits() {
    for arch in varied() {
        let layout = Layout::of(&arch);
        let params: Vec<f32> = (0..layout.len() as u64).map(|i| random::uniform(1, 0, i) - 0.5).collect();
        let tokens: Vec<u32> = (0..3 * 40).map(|i| i * 7 % 29).collect();
        for dropout in [None, Some(DropoutSeed { rate: 0.2, seed: 3 })] {
            let run = |recompute| {
                let mut decoder = Decoder::recomputing(Device::cpu(), &arch, recompute);
                let mut gradients = vec![0.0; layout.len()];
                let rows = Rows::new(&tokens, 3, 40);
                let loss = decoder.loss_and_gradients(&params, &mut gradients, rows, 1.0, dropout).unwrap();
                let row_losses = decoder.row_losses(&params, rows).unwrap();
                [vec![loss], gradients, row_losses].concat().into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let kept = run(Recompute::None);
            assert!(run(Recompute::Mlp) == kept && run(Recompute::Block) == kept, "{arch:?}");
        }
    }
}

/// Rows of other lengths before it leave no trace, but for dynamic frequencies that are meant to stay.
#[test]
fn positions_do_not_depend_on_earlier_rows() {
    let rotary = |scaling| {
        Position::Rotary(Rotary {
            size: 4,
            pairing: crate::model::arch::Pairing::Halves,
            base: 100.0,
            scaling,
            bounded: false,
        })
    };
    use crate::model::arch::RopeScaling::{Dynamic, Linear};
    let dynamic = |memory| rotary(Dynamic { factor: 2.0, memory });
    let (forgets, last, longest) =
        (dynamic(RopeMemory::None), dynamic(RopeMemory::LastLong), dynamic(RopeMemory::Longest));
    let positions = [rotary(Linear(2.0)), forgets, last, longest, Position::Alibi { in_bf16: true }];
    for position in positions {
        let arch = Arch { position, ..Arch::gpt2(29, 10, 12, 2, 3) };
        let layout = Layout::of(&arch);
        let params: Vec<f32> = (0..layout.len() as u64).map(|i| 4.0 * random::uniform(1, 0, i) - 2.0).collect();
        let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 29).collect();
        let loss = |decoder: &mut Decoder, len: usize| {
            decoder.row_losses(&params, Rows::new(&tokens[..len], 1, len)).unwrap()[0]
        };
        let fresh = |len| loss(&mut Decoder::new(Device::cpu(), &arch), len);
        let mut used = Decoder::new(Device::cpu(), &arch);
        for len in [5, 30, 12, 40, 7] {
            let found = loss(&mut used, len);
            let is_sticky = len == 7 && position == last || [7, 12].contains(&len) && position == longest;
            assert_eq!(found != fresh(len), is_sticky, "{position:?}, {len}: {found} {}", fresh(len));
        }
    }
}

fn native(arch: &Arch) -> Box<dyn LossAndGradients> {
    Box::new(Decoder::new(Device::cpu(), arch))
}

#[test]
fn golden_models_hold_in_the_native_backend() {
    check_backend(native);
}

#[test]
fn golden_trainings_hold_in_the_native_backend() {
    let engine = || on_cpu(|arch| Decoder::new(Device::cpu(), arch));
    check_adamw(ADAMW_IN_F32, engine());
    check_reference_miner(REFERENCE_MINER_IN_F32, engine());
}

#[test]
fn native_backend_equals_candle_in_loss_and_every_gradient() {
    check_equal(native, |arch| Box::new(DoubleDecoder(CandleDecoder::new(arch))));
}
