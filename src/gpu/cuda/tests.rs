//! What can be said of it on any machine, and, where there is a GPU, that it does what the emulator does.

#![allow(clippy::unwrap_used)]

use half::bf16;

use super::*;
use crate::error::exit_code;
use crate::gpu::{Dtype, Element, Epilogue, EpilogueKind, Operand, View, emulator, linear};
use crate::ops::testing::values;

#[test]
fn a_gpu_that_is_not_there_is_an_input_error_that_says_what_to_do() {
    let error = open(9999).err().unwrap();
    assert_eq!(exit_code(&error), 2);
    let sentence = format!("{error:#}");
    let remedies = ["NVIDIA driver", "LD_LIBRARY_PATH", "nvidia-smi", "There is no GPU 9999: this machine has"];
    assert!(remedies.iter().any(|remedy| sentence.contains(remedy)), "{sentence}");
    assert_eq!(count().is_ok_and(|count| count > 0), sentence.contains("9999"));
}

#[test]
fn out_of_memory_says_how_much_there_is() {
    let error = OutOfMemory { asked: 3 << 30, free: 512 << 20, total: 80 << 30 };
    let sentence = "the GPU is out of memory: 3.00 GiB was asked for, 512.0 MiB of 80.00 GiB is free";
    assert_eq!(anyhow!(error).to_string(), sentence);
}

/// The first GPU; `None`, and a word about it, where there is none.
fn card() -> Option<Gpu> {
    match count() {
        Ok(1..) => Some(open(0).unwrap()),
        none => {
            let reason = none.map_or_else(|error| error.to_string(), |_| "there is no GPU".to_owned());
            #[allow(clippy::print_stderr)]
            {
                eprintln!("not tested: {reason}");
            }
            None
        }
    }
}

#[test]
fn on_a_card_bytes_arrive_whatever_their_number() {
    let Some(gpu) = card() else { return };
    for len in [1, 1000, (8 << 20) / 4, (8 << 20) / 4 + 1, 10_000_001] {
        let sent = values(1, len);
        let mut buffer = gpu.zeros::<f32>(len).unwrap();
        assert!(gpu.to_vec(buffer.view()).unwrap().iter().all(|&x| x == 0.0));
        for ahead in [false, true] {
            gpu.zero(buffer.view_mut());
            gpu.synchronize().unwrap();
            if ahead {
                gpu.upload_ahead(buffer.view_mut(), &sent)
            } else {
                gpu.upload(buffer.view_mut(), &sent)
            }
            assert_eq!(gpu.to_vec(buffer.view()).unwrap(), sent);
        }
        let mut copied = gpu.zeros::<f32>(len).unwrap();
        gpu.copy(copied.view_mut(), buffer.view());
        assert_eq!(gpu.to_vec(copied.view()).unwrap(), sent);
    }
    // Fresh memory, which is zeroed beside the upload unless the upload waits for that.
    for round in 0..20 {
        let sent = values(round, 1000);
        let mut buffer = gpu.zeros::<f32>(50_000_000).unwrap();
        gpu.upload_ahead(buffer.view_mut().window(49_000_000..49_001_000), &sent);
        assert_eq!(gpu.to_vec(buffer.view().window(49_000_000..49_001_000)).unwrap(), sent);
    }
}

#[test]
fn on_a_card_the_first_error_is_told_once() {
    let Some(gpu) = card() else { return };
    gpu.launch("no_such_kernel", Grid::new(1, 32), &[]);
    gpu.launch("cast_f32_to_bf16", Grid::new(1, 32), &[Arg::I32(1)]);
    assert_eq!(gpu.synchronize().unwrap_err().to_string(), "there is no kernel no_such_kernel");
    gpu.synchronize().unwrap();
    let [free, total] = gpu.memory().unwrap();
    assert!(free <= total);
    let error = gpu.zeros::<u8>(total + 1).err().unwrap();
    assert_eq!(error.downcast_ref::<OutOfMemory>().unwrap().asked, total + 1);
    gpu.synchronize().unwrap();
}

/// A product's result; operands begin `offset` elements behind an allocation's start.
fn product<I: Element, O: Element>(
    gpu: &Gpu,
    [m, n, k]: [usize; 3],
    transposed: [bool; 2],
    beta: f32,
    with_bias: bool,
    offset: usize,
) -> Vec<f32> {
    let input = |seed, len| values(seed, offset + len).into_iter().map(I::from_f32).collect::<Vec<_>>();
    let [a, b, bias] = [input(1, m * k), input(2, k * n), input(3, n)].map(|x| gpu.buffer_of(&x).unwrap());
    let c: Vec<O> = values(4, offset + m * n).into_iter().map(O::from_f32).collect();
    let mut c = gpu.buffer_of(&c).unwrap();
    let operand = |address, transposed| Operand { address, dtype: I::DTYPE, transposed };
    gpu.multiply(Product {
        sizes: [m, n, k],
        a: operand(a.view().window(offset..offset + m * k).address(), transposed[0]),
        b: operand(b.view().window(offset..offset + k * n).address(), transposed[1]),
        beta,
        c: (c.view_mut().window(offset..offset + m * n).address(), O::DTYPE),
        bias: with_bias.then(|| bias.view().window(offset..offset + n).address()),
        epilogue: None,
    });
    gpu.to_vec(c.view()).unwrap().into_iter().map(Element::to_f32).collect()
}

fn compare<I: Element, O: Element>(card: &Gpu, emulated: &Gpu) {
    for sizes in [[64, 128, 32], [1, 8, 64], [33, 17, 65], [256, 771, 768]] {
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            for (beta, with_bias, offset) in
                [(0.0, false, 0), (1.0, false, 0), (0.0, true, 0), (1.0, true, 0), (1.0, true, 1)]
            {
                let [x, y] =
                    [card, emulated].map(|gpu| product::<I, O>(gpu, sizes, transposed, beta, with_bias, offset));
                // Sums of k products in another order; TF32 would be off by a thousandth.
                let rounding = if O::DTYPE == Dtype::Bf16 { 1.0 / 128.0 } else { 0.0 };
                for (x, y) in x.iter().zip(&y) {
                    let tolerance = 2e-5 * (sizes[2] as f32).sqrt() + rounding * y.abs();
                    assert!(
                        (x - y).abs() <= tolerance,
                        "{x} for {y}: {sizes:?} {transposed:?} {beta} {with_bias} {offset}"
                    );
                }
            }
        }
    }
}

#[test]
fn on_a_card_products_are_those_of_the_emulator() {
    let (Some(card), Some([emulated, _])) = (card(), emulator::gpus()) else { return };
    compare::<f32, f32>(&card, &emulated);
    compare::<bf16, f32>(&card, &emulated);
    compare::<bf16, bf16>(&card, &emulated);
}

#[test]
fn on_a_card_every_algorithm_gives_the_product_and_takes_a_time() {
    let Some(gpu) = card() else { return };
    let [m, n, k] = [256, 512, 384];
    let input = |seed, len| {
        let numbers: Vec<bf16> = values(seed, len).into_iter().map(bf16::from_f32).collect();
        gpu.buffer_of(&numbers).unwrap()
    };
    let [a, b, bias] = [(1, m * k), (2, k * n), (3, n)].map(|(seed, len)| input(seed, len));
    let mut c = gpu.zeros::<bf16>(m * n).unwrap();
    let operand = |view: View<bf16>| Operand { address: view.address(), dtype: Dtype::Bf16, transposed: false };
    let product = Product {
        sizes: [m, n, k],
        a: operand(a.view()),
        b: operand(b.view()),
        beta: 0.0,
        c: (c.view_mut().address(), Dtype::Bf16),
        bias: Some(bias.view().address()),
        epilogue: None,
    };
    let mut first: Option<Vec<bf16>> = None;
    let mut rank = 0;
    while gpu.choose_algorithm(&product, rank).unwrap() {
        gpu.zero(c.view_mut());
        let seconds = gpu.time(3, |gpu| gpu.multiply(product)).unwrap();
        assert!(seconds > 0.0 && seconds < 1.0, "{seconds} s by algorithm {rank}");
        let result = gpu.to_vec(c.view()).unwrap();
        let first = first.get_or_insert_with(|| result.clone());
        for (x, y) in result.iter().zip(first) {
            // Sums in another order, which may fall on the other side of a rounding.
            let (x, y) = (x.to_f32(), y.to_f32());
            assert!((x - y).abs() <= 1e-3 + y.abs() / 128.0, "{x} by algorithm {rank}, {y} by the first");
        }
        rank += 1;
    }
    assert!(rank > 0);
    // An error is told by what is timed behind it, and no more afterwards.
    gpu.launch("no_such_kernel", Grid::new(1, 32), &[]);
    assert!(gpu.time(1, |gpu| gpu.multiply(product)).is_err());
    assert!(gpu.time(1, |gpu| gpu.multiply(product)).is_ok());
}

/// A layer with its function in passing, and the gradient through another one: argument, value, gradient, as f32.
fn fused(gpu: &Gpu, [n, o, i]: [usize; 3]) -> Vec<f32> {
    let input = |seed, len| {
        let numbers: Vec<bf16> = values(seed, len).into_iter().map(bf16::from_f32).collect();
        gpu.buffer_of(&numbers).unwrap()
    };
    let [x, weight, bias] = [(1, n * i), (2, o * i), (3, o)].map(|(seed, len)| input(seed, len));
    let [dy, next_weight, next_argument] = [(4, n * i), (5, i * o), (6, n * o)].map(|(seed, len)| input(seed, len));
    let [mut y, mut argument, mut dargument] = [(); 3].map(|()| gpu.zeros::<bf16>(n * o).unwrap());
    let (into, kept) = (y.view_mut(), argument.view_mut());
    linear::forward_gelu(gpu, [n, o, i], into, kept, x.view(), weight.view(), bias.view());
    // Another argument, so that what was rounded up here and down there is not differentiated.
    linear::backward_gelu(gpu, [n, i, o], dargument.view_mut(), next_argument.view(), dy.view(), next_weight.view());
    let results = [&argument, &y, &dargument].map(|buffer| gpu.to_vec(buffer.view()).unwrap());
    results.concat().into_iter().map(Element::to_f32).collect()
}

#[test]
fn on_a_card_epilogues_are_those_of_the_emulator() {
    let (Some(card), Some([emulated, _])) = (card(), emulator::gpus()) else { return };
    // That cuBLASLt computes them, and not the kernels in its place.
    let buffer = card.zeros::<bf16>(776 * 768).unwrap();
    let operand = |transposed| Operand { address: buffer.view().address(), dtype: Dtype::Bf16, transposed };
    for (kind, transposed) in [(EpilogueKind::Gelu, true), (EpilogueKind::GeluGradient, false)] {
        let product = Product {
            sizes: [256, 776, 768],
            a: operand(false),
            b: operand(transposed),
            beta: 0.0,
            c: (buffer.view().address(), Dtype::Bf16),
            bias: (kind == EpilogueKind::Gelu).then(|| buffer.view().address()),
            epilogue: Some(Epilogue { kind, argument: buffer.view().address() }),
        };
        assert!(card.choose_algorithm(&product, 0).unwrap(), "{kind:?}");
    }
    // Sizes that cuBLASLt takes, and some that it does not.
    for sizes in [[64, 128, 32], [256, 776, 768], [33, 17, 65]] {
        let [x, y] = [&card, &emulated].map(|gpu| fused(gpu, sizes));
        for (x, y) in x.iter().zip(&y) {
            // One rounding less than the emulator's two, and a function that a card may compute to some 11 bits.
            let tolerance = 2e-3 * (sizes[2] as f32).sqrt() + y.abs() / 128.0;
            assert!((x - y).abs() <= tolerance, "{x} for {y}: {sizes:?}");
        }
    }
}
