//! Proof that the emulator finds mistakes: each kernel of `kernels/tests` makes one.

#![allow(clippy::unwrap_used)]

use super::*;

fn grid(threads: u32, shared_bytes: u32) -> Grid {
    Grid { shared_bytes, ..Grid::new(1, threads) }
}

/// What a launch fails with, on both GPUs.
#[track_caller]
fn assert_fault(kernel: &str, grid: Grid, args: &[Arg], sentence: &str) {
    for gpu in gpus().into_iter().flatten() {
        gpu.launch(kernel, grid, args);
        let error = gpu.synchronize().unwrap_err().to_string();
        assert!(error.contains(sentence), "{error}");
        gpu.synchronize().unwrap();
    }
}

#[test]
fn threads_that_part_at_barriers_are_found() {
    let threads = grid(64, 0);
    let sentence = "barrier divergence: 32 of 64 threads wait at a barrier, one of them line 5, and 32 have ended";
    assert_fault("threads_end_before_a_barrier", threads, &[], sentence);
    let sentence = "barrier divergence: 64 of 64 threads wait at barriers in different lines";
    assert_fault("threads_wait_at_two_barriers", threads, &[], sentence);
}

#[test]
fn lanes_that_part_are_found() {
    for gpu in gpus().into_iter().flatten() {
        gpu.launch("lanes_take_two_ways", grid(32, 0), &[]);
        let error = gpu.synchronize().unwrap_err().to_string();
        let found = "lanes of a warp diverged: ";
        assert!(error.contains(found) && error.contains("warp_barrier") && error.contains("shuffle_xor"), "{error}");
    }
    assert_fault("a_lane_is_missing", grid(64, 0), &[], "lanes of a warp never came to votes");
}

#[test]
fn misaligned_accesses_are_found() {
    for gpu in gpus().into_iter().flatten() {
        let mut y = gpu.zeros::<f32>(64).unwrap();
        gpu.launch("sixteen_bytes_are_misaligned", grid(32, 0), &[y.view_mut().arg()]);
        let error = gpu.synchronize().unwrap_err().to_string();
        assert!(error.contains("an access is not aligned to its size"), "{error}");
    }
}

#[test]
fn accesses_beyond_shared_memory_are_found() {
    let sentences = [
        "index 31 of 31 in shared memory",
        "an access leaves the shared memory of the launch",
        "shared memory was written behind its end",
        "an access leaves the shared memory of the launch",
        "index -1 of 32 in shared memory",
    ];
    for (wrong, sentence) in sentences.into_iter().enumerate() {
        // AddressSanitizer has seen the third by then.
        if wrong != 2 || !is_sanitized() {
            assert_fault("shared_memory_is_too_small", grid(32, 128), &[Arg::I32(wrong as i32)], sentence);
        }
    }
}

/// What a kernel of `(y, x, waits)` makes of the numbers from 1 on.
fn after(gpu: &Gpu, kernel: &str, waits: bool) -> Vec<f32> {
    let x: Vec<f32> = (1..=64).map(|i| i as f32).collect();
    let (x, mut y) = (gpu.buffer_of(&x).unwrap(), gpu.zeros::<f32>(64).unwrap());
    gpu.launch(kernel, grid(64, 256), &[y.view_mut().arg(), x.view().arg(), Arg::I32(waits.into())]);
    gpu.to_vec(y.view()).unwrap()
}

#[test]
fn copies_that_were_not_waited_for_have_happened_in_one_of_both_orders_only() {
    for (gpu, are_late) in gpus().into_iter().flatten().zip([true, false]) {
        let y = after(&gpu, "copies_are_waited_for", true);
        assert!(y.iter().zip(1..).all(|(&y, x)| y == x as f32), "{y:?}");
        let y = after(&gpu, "copies_are_waited_for", false);
        assert!(y.iter().zip(1..).all(|(&y, x)| if are_late { y.is_nan() } else { y == x as f32 }), "{y:?}");
    }
}

#[test]
fn a_missing_barrier_shows_in_either_order_of_threads() {
    for gpu in gpus().into_iter().flatten() {
        let y = after(&gpu, "threads_wait_for_each_other", true);
        assert!(y.iter().rev().zip(1..).all(|(&y, x)| y == x as f32), "{y:?}");
        let y = after(&gpu, "threads_wait_for_each_other", false);
        assert_eq!(y.iter().filter(|y| y.is_nan()).count(), 32, "{y:?}");
    }
}

#[test]
fn launches_that_no_card_takes_are_refused() {
    let (kernel, zero) = ("copies_are_waited_for", Arg::at(0));
    let sentence = "copies_are_waited_for takes ppi and was given ppf";
    assert_fault(kernel, grid(32, 128), &[zero, zero, Arg::F32(0.0)], sentence);
    assert_fault(kernel, grid(32, 128), &[zero, zero], "copies_are_waited_for takes ppi and was given pp");
    assert_fault("no_such_kernel", grid(32, 0), &[], "no_such_kernel");
    let args = [zero, zero, Arg::I32(0)];
    let blocks = |blocks| Grid { blocks, threads: 32, shared_bytes: 128 };
    for refused in [
        blocks([1, 65_536, 1]),
        blocks([1, 1, 65_536]),
        blocks([1 << 31, 1, 1]),
        grid(0, 128),
        grid(48, 128),
        grid(1056, 128),
        grid(32, MAX_SHARED_BYTES + 1),
    ] {
        assert_fault(kernel, refused, &args, "copies_are_waited_for: Grid");
    }
}

#[test]
fn elements_behind_a_buffer_are_no_numbers_and_must_stay_so() {
    // AddressSanitizer ends the process.
    for gpu in gpus().into_iter().flatten().filter(|_| !is_sanitized()) {
        let (x, mut y) = (gpu.zeros::<f32>(3).unwrap(), gpu.zeros::<f32>(3).unwrap());
        let y_address = y.view_mut().address();
        let read = |to, index| {
            let args = [Arg::at(to), x.view().arg(), Arg::I32(index), Arg::I32(0)];
            gpu.launch("memory_is_read_at", grid(32, 0), &args);
        };
        read(y_address, 3);
        assert!(gpu.to_vec(y.view()).unwrap()[0].is_nan());
        read(y_address + 12, 0);
        let error = gpu.synchronize().unwrap_err().to_string();
        assert!(error.contains("memory_is_read_at: memory behind a buffer was written to"), "{error}");
    }
}

/// Reads an element or a byte behind the last one of a buffer or of shared memory, which AddressSanitizer ends the process
/// for; `.ci/sanitize-kernels` runs these where it is compiled in, and looks for its report.
fn read_at(index: i32, is_shared: bool) {
    let [gpu, _] = gpus().unwrap();
    let (x, mut y) = (gpu.zeros::<f32>(3).unwrap(), gpu.zeros::<f32>(1).unwrap());
    let args = [y.view_mut().arg(), x.view().arg(), Arg::I32(index), Arg::I32(is_shared.into())];
    gpu.launch("memory_is_read_at", grid(32, 100), &args);
    gpu.synchronize().unwrap();
}

#[test]
#[ignore = "a mistake for AddressSanitizer, see .ci/sanitize-kernels"]
fn sanitizer_allows_the_last_element() {
    read_at(2, false);
    read_at(99, true);
}

#[test]
#[ignore = "a mistake for AddressSanitizer, see .ci/sanitize-kernels"]
fn sanitizer_finds_an_element_behind_a_buffer() {
    read_at(3, false);
}

#[test]
#[ignore = "a mistake for AddressSanitizer, see .ci/sanitize-kernels"]
fn sanitizer_finds_an_element_before_a_buffer() {
    read_at(-1, false);
}

#[test]
#[ignore = "a mistake for AddressSanitizer, see .ci/sanitize-kernels"]
fn sanitizer_finds_a_byte_behind_shared_memory() {
    read_at(100, true);
}
