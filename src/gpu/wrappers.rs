//! Proof of the wrappers in `kernels/common.cuh`, lane by lane: those of the GPUs that tests use against plain
//! definitions, which are written here from NVIDIA's description and know nothing of the twins; and, where these GPUs
//! are a card, a card's words against the emulator's.
//!
//! Words are the same bit for bit except where this says otherwise: tensor cores add in an order and with a precision
//! of their own, and the power of two is an approximation.

#![allow(clippy::unwrap_used)]

use half::bf16;

use super::{Arg, Gpu, Grid, emulator, testing};
use crate::ops::random;
use crate::ops::testing::values;

const LANES: usize = 32;

/// Whether both are the same float, any NaN being as good as another and both zeros as well.
fn same_float(one: u32, other: u32) -> bool {
    let [one, other] = [one, other].map(f32::from_bits);
    one == other || one.is_nan() && other.is_nan()
}

/// Holds the words that `compute` gives to those that are expected, on the GPUs of the tests; and a card's to the
/// emulator's. Of an element whose bits differ `fits` decides.
fn hold(what: &str, expected: &[u32], compute: impl Fn(&Gpu) -> Vec<u32>, fits: impl Fn(usize, u32, u32) -> bool) {
    let compare = |who: &str, words: &[u32], others: &[u32]| {
        assert_eq!(words.len(), others.len(), "{what}: {who}");
        for (i, (&word, &other)) in words.iter().zip(others).enumerate() {
            let [float, other_float] = [word, other].map(f32::from_bits);
            assert!(
                word == other || fits(i, word, other),
                "{what}: {who}: word {i} is {word:#010x} ({float:e}), not {other:#010x} ({other_float:e})"
            );
        }
    };
    let Some(gpus) = testing::gpus() else { return };
    let [words, again] = gpus.each_ref().map(&compute);
    compare("against the definition", &words, expected);
    assert!(words == again, "{what}: the second order, or run, gives other bits");
    if testing::card().is_some()
        && let Some([twin, _]) = emulator::gpus()
    {
        compare("a card's against the emulator's", &words, &compute(&twin));
    }
}

/// Launches a kernel of `blocks` warps on buffers of words, of which the first is the result.
fn launch(gpu: &Gpu, kernel: &str, blocks: usize, shared_bytes: u32, words: &[&[u32]], rest: &[Arg]) -> Vec<u32> {
    let mut buffers: Vec<_> = words.iter().map(|words| gpu.buffer_of(words).unwrap()).collect();
    let mut args: Vec<Arg> = buffers.iter_mut().map(|buffer| buffer.view_mut().arg()).collect();
    args.extend(rest);
    gpu.launch(kernel, Grid { shared_bytes, ..Grid::new(blocks, LANES as u32) }, &args);
    gpu.to_vec(buffers[0].view()).unwrap()
}

fn bits_of(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|x| x.to_bits()).collect()
}

/// Puts half a word into its place.
fn place(words: &mut [u32], index: usize, upper: bool, half: bf16) {
    words[index] |= u32::from(half.to_bits()) << if upper { 16 } else { 0 };
}

/// Products of 16 x 16 and 16 x 8 matrices as the lanes hold them, and the sums in f64 beside those of magnitudes.
struct Products {
    a: Vec<u32>,
    b: Vec<u32>,
    c: Vec<u32>,
    sums: Vec<f64>,
    magnitudes: Vec<f64>,
}

impl Products {
    fn new(blocks: usize, element: impl Fn(u64, u64) -> f32) -> Self {
        let len = blocks * LANES * 4;
        let mut products = Self {
            a: vec![0; len],
            b: vec![0; len / 2],
            c: vec![0; len],
            sums: vec![0.0; len],
            magnitudes: vec![0.0; len],
        };
        for block in 0..blocks {
            let number = |matrix, row: usize, column: usize| element(matrix, ((block * 16 + row) * 16 + column) as u64);
            let [a, b] = [0, 1].map(|matrix| move |row, column| bf16::from_f32(number(matrix, row, column)));
            for (row, k) in (0..16).flat_map(|row| (0..16).map(move |k| (row, k))) {
                let lane = row % 8 * 4 + k % 8 / 2;
                place(&mut products.a, (block * LANES + lane) * 4 + row / 8 + k / 8 * 2, k % 2 == 1, a(row, k));
                if row < 8 {
                    let lane = row * 4 + k % 8 / 2; // of column `row`
                    place(&mut products.b, (block * LANES + lane) * 2 + k / 8, k % 2 == 1, b(k, row));
                }
            }
            for (row, column) in (0..16).flat_map(|row| (0..8).map(move |column| (row, column))) {
                let place = (block * LANES + row % 8 * 4 + column / 2) * 4 + row / 8 * 2 + column % 2;
                let before = number(2, row, column);
                products.c[place] = before.to_bits();
                let terms = (0..16).map(|k| f64::from(a(row, k).to_f32()) * f64::from(b(k, column).to_f32()));
                let terms: Vec<f64> = terms.chain([before.into()]).collect();
                products.sums[place] = terms.iter().sum();
                products.magnitudes[place] = terms.iter().map(|x| x.abs()).sum();
            }
        }
        products
    }

    fn hold(&self, what: &str, fits: impl Fn(usize, u32, u32) -> bool) {
        let expected: Vec<u32> = self.sums.iter().map(|&sum| (sum as f32).to_bits()).collect();
        let blocks = self.c.len() / (LANES * 4);
        let run = |gpu: &Gpu| launch(gpu, "wrapped_mma", blocks, 0, &[&self.c, &self.a, &self.b], &[]);
        hold(what, &expected, run, fits);
    }
}

#[test]
fn tensor_cores_multiply_fragments_where_the_twin_has_them() {
    // Of whole numbers every sum is exact, in whatever order: each element is in its place, bit for bit.
    let whole = |matrix, i| (random::uniform(matrix, 7, i) * 17.0).floor() - 8.0;
    Products::new(4, whole).hold("mma_bf16 of whole numbers", |_, one, other| same_float(one, other));
    // Of others a card may lose a few of the last bits of the largest term.
    let products = Products::new(8, |matrix, i| 2.0 * random::uniform(matrix, 8, i) - 1.0);
    products.hold("mma_bf16", |i, one, other| {
        let [one, other] = [one, other].map(|word| f64::from(f32::from_bits(word)));
        (one - other).abs() <= products.magnitudes[i] / f64::from(1 << 21)
    });
}

#[test]
fn matrices_are_loaded_as_they_lie_and_transposed() {
    let halves = |row: usize, column: usize| ((row * 8 + column + 1) as u32 * 251) & 0xffff;
    let pair = |low: u32, high: u32| low | high << 16;
    let words: Vec<u32> =
        (0..LANES * 4).map(|i| pair(halves(i / 4, i % 4 * 2), halves(i / 4, i % 4 * 2 + 1))).collect();
    let orders: [fn(usize) -> usize; 3] = [|lane| lane, |lane| (lane * 5 + 3) % LANES, |lane| 31 - lane / 2];
    for order in orders {
        let rows: Vec<u32> = (0..LANES).map(|lane| order(lane) as u32).collect();
        let mut expected = vec![0; 2 * LANES * 4];
        for (lane, matrix) in (0..LANES).flat_map(|lane| (0..4).map(move |matrix| (lane, matrix))) {
            let element = |row: usize, column| halves(order(8 * matrix + row), column);
            let (one, two) = (lane / 4, lane % 4 * 2);
            expected[lane * 4 + matrix] = pair(element(one, two), element(one, two + 1));
            expected[128 + lane * 4 + matrix] = pair(element(two, one), element(two + 1, one));
        }
        let run = |gpu: &Gpu| launch(gpu, "wrapped_loads", 1, 512, &[&[0; 256], &words, &rows], &[]);
        hold("load_matrices", &expected, run, |_, _, _| false);
    }
}

#[test]
fn copies_bring_their_valid_bytes_and_zeros_behind_them() {
    let [words, singles] = [3, 4].map(|seed| bits_of(&values(seed, LANES * 4)));
    for shift in 0..3 {
        let valid: Vec<u32> = (0..LANES as u32).map(|lane| (lane + 7 * shift) % 17).collect();
        let mut expected = Vec::new();
        for (lane, &valid) in valid.iter().enumerate() {
            let mut bytes: Vec<u8> = words[lane * 4..][..4].iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes[valid as usize..].fill(0);
            expected.extend(bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())));
            expected.push(if valid > 0 { singles[lane] } else { 0 });
        }
        let args: [&[u32]; 4] = [&[0; LANES * 5], &words, &singles[..LANES], &valid];
        let run = |gpu: &Gpu| launch(gpu, "wrapped_copies", 1, 640, &args, &[]);
        hold("copy16_async and copy4_async", &expected, run, |_, _, _| false);
    }
}

#[test]
fn lanes_exchange_vote_and_add_in_the_same_order() {
    let mut rows = [values(5, LANES), vec![-0.5; LANES], values(6, LANES), values(7, LANES)];
    rows[2][7] = f32::NAN;
    rows[3][20] = f32::INFINITY;
    for x in rows {
        let lanes: Vec<u32> = (0..LANES as u32).map(|lane| (lane * 11 + 5) % 32).collect();
        let halving = |combine: fn(f32, f32) -> f32| {
            let mut all = x.clone();
            for bits in [16, 8, 4, 2, 1] {
                all = (0..LANES).map(|lane| combine(all[lane], all[lane ^ bits])).collect();
            }
            all
        };
        let larger = |a: f32, b: f32| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) };
        let (sums, maxima) = (halving(|a, b| a + b), halving(larger));
        let votes = (0..LANES).filter(|&lane| x[lane] > 0.0).map(|lane| 1 << lane).sum::<u32>();
        let expected: Vec<u32> = (0..LANES)
            .flat_map(|lane| {
                let others = [1, 2, 4, 8, 16, 31].map(|bits| x[lane ^ bits].to_bits());
                let one = [x[lanes[lane] as usize].to_bits(), votes, votes];
                others.into_iter().chain(one).chain([sums[lane].to_bits(), maxima[lane].to_bits()])
            })
            .collect();
        let args: [&[u32]; 3] = [&[0; LANES * 11], &bits_of(&x), &lanes];
        let run = |gpu: &Gpu| launch(gpu, "wrapped_lanes", 1, 0, &args, &[]);
        hold("shuffles, votes, sums and maxima", &expected, run, |i, one, other| i % 11 >= 9 && same_float(one, other));
    }
}

#[test]
fn numbers_are_rounded_compared_and_raised() {
    let tie = |odd: u32| f32::from_bits(0x3f80_8000 + odd * 0x1_0000);
    let mut x = vec![0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, f32::MAX, f32::MIN];
    x.extend([f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)]); // not numbers with other bits
    x.extend([tie(0), tie(1), -tie(0), -tie(1), f32::from_bits(0x3f80_8001), f32::from_bits(0x3f80_7fff)]);
    // Numbers too small to be normal, and one beside them.
    x.extend([f32::MIN_POSITIVE, 1e-40, -1e-40, f32::from_bits(1), f32::from_bits(0x8000_8000)]);
    x.extend([f32::from_bits(0x7f7f_7fff), f32::from_bits(0x7f7f_8000), 127.5, 128.0, -126.0, -126.5, -140.0, -150.0]);
    x.extend(values(9, LANES * 64 - x.len()).into_iter().map(|x| 40.0 * x));
    let z: Vec<f32> = x.iter().rev().copied().collect();
    let rounded = |x: f32| if x.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(x).to_bits()) };
    let expected: Vec<u32> = x
        .iter()
        .zip(&z)
        .flat_map(|(&x, &z)| {
            let larger = if x.is_nan() || z.is_nan() { f32::NAN } else { x.max(z) };
            let (low, high) = (rounded(x), rounded(z));
            let power = f64::from(x).exp2() as f32;
            [low, low | high << 16, low << 16, high << 16, larger.to_bits(), power.to_bits()]
        })
        .collect();
    let args: [&[u32]; 3] = [&vec![0; x.len() * 6], &bits_of(&x), &bits_of(&z)];
    let run = |gpu: &Gpu| launch(gpu, "wrapped_numbers", 64, 0, &args, &[]);
    hold("from_float, pack_bf16, low_of, high_of, max_of, exp2_fast", &expected, run, |i, one, other| match i % 6 {
        4 => same_float(one, other),
        5 => {
            let [y, power] = [one, other].map(|word| f64::from(f32::from_bits(word)));
            // Two units in the last place; what is too small to be normal may be 0.
            let allowed = 3e-7 * power.abs() + f64::from(f32::MIN_POSITIVE);
            same_float(one, other) || (y - power).abs() <= allowed
        }
        _ => false,
    });
}

#[test]
fn random_bits_are_those_of_the_host() {
    for (key, first) in [(0, 0), (0x0123_4567_89ab_cdef, 12_345), (u64::MAX, (1 << 32) - 7), (42, u64::MAX - 31)] {
        let expected: Vec<u32> = (0..LANES as u32).map(|i| random::bits(key, first, i)).collect();
        let args: [&[u32]; 1] = [&[0; LANES]];
        let run = |gpu: &Gpu| launch(gpu, "wrapped_random", 1, 0, &args, &[Arg::U64(key), Arg::U64(first)]);
        hold("random_bits", &expected, run, |_, _, _| false);
    }
}
