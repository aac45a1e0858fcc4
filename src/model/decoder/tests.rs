//! The native decoder against the reference's values, against candle in f64, and its memory.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::model::candle::CandleDecoder;
use crate::model::candle::tests::DoubleDecoder;
use crate::model::golden_tests::{check_backend, check_equal};
use crate::model::golden_training::{check_adamw, check_reference_miner};

/// Bytes of all buffers, each named, so that a new one cannot be forgotten.
fn bytes_of(memory: &Memory) -> usize {
    let Memory {
        tokens: _,
        row_len: _,
        ids,
        targets,
        losses,
        residual,
        blocks,
        norm,
        norm_stats,
        logits,
        scratch,
        training,
    } = memory;
    let TrainingMemory { dx, dbranch, dinput, dqkv, dhidden } = training.as_ref().unwrap();
    let mut numbers = ids.len() + targets.len() + losses.len() + logits.len() + scratch.len();
    numbers += norm.len() + 2 * norm_stats.len() + residual.iter().map(Buffer::len).sum::<usize>();
    numbers += [dx, dbranch, dinput, dqkv, dhidden].map(Buffer::len).iter().sum::<usize>();
    for block in blocks {
        let BlockMemory {
            norm1,
            norm1_stats,
            qkv,
            attention,
            log_sum_exp,
            middle,
            norm2,
            norm2_stats,
            hidden,
            activated,
        } = block;
        let buffers = [norm1, qkv, attention, log_sum_exp, middle, norm2, hidden, activated];
        numbers += 2 * (norm1_stats.len() + norm2_stats.len());
        numbers += buffers.map(Buffer::len).iter().sum::<usize>();
    }
    4 * numbers
}

#[test]
fn training_takes_the_memory_that_is_foretold() {
    let small = Arch { mlp_width: 21, ..Arch::gpt2(29, 300, 12, 3, 3) };
    for arch in [Arch { layers: 0, ..small.clone() }, small] {
        for (rows, row_len, threads) in [(1, 2, 1), (3, 63, 2), (2, 65, 3), (3, 300, 4)] {
            let memory = Memory::new(&Device::Cpu { threads }, &arch, rows * row_len, row_len, true);
            assert_eq!(bytes_of(&memory) as u64, training_memory_bytes(&arch, rows, row_len, threads));
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

fn native(arch: &Arch) -> Box<dyn LossAndGradients> {
    Box::new(Decoder::new(Device::cpu(), arch))
}

#[test]
fn golden_models_hold_in_the_native_backend() {
    check_backend(native);
}

#[test]
fn golden_trainings_hold_in_the_native_backend() {
    check_adamw(native);
    check_reference_miner(native);
}

#[test]
fn native_backend_equals_candle_in_loss_and_every_gradient() {
    check_equal(native, |arch| Box::new(DoubleDecoder(CandleDecoder::new(arch))));
}
