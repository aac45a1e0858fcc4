//! A [`Driver`] for tests: the kernels of `kernels/*.cu`, compiled by this machine's C++ compiler against
//! `kernels/emulator.h`, in ordinary memory; matrix products by the CPU's.
//!
//! Each file is compiled once per content (its own, the headers' and the flags) and kept beside the build, and so is the
//! library made of them, which can be carried along to a machine that has no compiler. `ASSAY_EMULATOR_FLAGS` adds compiler flags, such as `-fsanitize=address`. `ASSAY_KERNELS` is a
//! folder that takes the place of `kernels/`, such as one with a mistake in it (`.ci/mutate-kernels`); what is compiled for
//! it is kept in its own folder `built`. Where there is no C++ compiler the tests that need it say so and do nothing,
//! except in continuous integration (`CI` is set), where they fail.
//!
//! `tests/` in the folder of the kernels holds kernels with mistakes that the emulator must find; the program carries none
//! of them.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use sha2::{Digest, Sha256};

use super::{Address, Arg, Driver, Dtype, Gpu, Grid, Operand, Product, epilogue};
use crate::golden::repository;
use crate::ops::{self, matmul};

/// What `emulator::Launch` is in C++.
#[repr(C)]
struct Launch {
    blocks: [u32; 3],
    threads: u32,
    shared_bytes: u32,
    descending: u32,
}

type Run = unsafe extern "C" fn(*const Launch, *mut *mut c_void, *mut c_char, usize);
type Signature = unsafe extern "C" fn() -> *const c_char;

/// Alignment of allocations, as CUDA gives it.
const ALIGNMENT: usize = 256;

/// Shared memory that every card from compute capability 8.0 on gives a block: 99 KiB on those of 8.6 and 8.9.
const MAX_SHARED_BYTES: u32 = 99 * 1024;

/// Bytes behind each allocation that nothing may write to; as floats they are no numbers, so that reading them shows.
/// AddressSanitizer has its own, and finds reading too.
fn guard_bytes() -> usize {
    if is_sanitized() { 0 } else { 64 }
}

const GUARD: u8 = 0xff;

/// Whether AddressSanitizer is compiled into the kernels.
fn is_sanitized() -> bool {
    static IS_SANITIZED: OnceLock<bool> = OnceLock::new();
    let flags = || std::env::var("ASSAY_EMULATOR_FLAGS").unwrap_or_default();
    *IS_SANITIZED.get_or_init(|| flags().contains("-fsanitize=address"))
}

/// The library, or why there is none.
fn library() -> &'static Result<libloading::Library, String> {
    static LIBRARY: OnceLock<Result<libloading::Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = compile()?;
        // SAFETY: our own library, whose initialisers do nothing.
        unsafe { libloading::Library::new(&path) }.map_err(|error| format!("{}: {error}", path.display()))
    })
}

/// The files in a folder whose names have one of these ends, in order.
fn files(folder: &Path, ends: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| ends.iter().any(|&end| extension == end)));
    files.sort();
    files
}

/// Sixteen digits that stand for some bytes.
fn digits(hash: Sha256) -> String {
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Compiles what is not compiled yet; returns the library's path.
fn compile() -> Result<PathBuf, String> {
    let beside_the_build = std::env::current_exe().unwrap().parent().unwrap().join("emulated-kernels");
    let (kernels, built) = match std::env::var_os("ASSAY_KERNELS") {
        Some(folder) => (PathBuf::from(&folder), PathBuf::from(folder).join("built")),
        None => (repository().join("kernels"), beside_the_build.clone()),
    };
    let mut sources = files(&kernels, &["cu"]);
    sources.extend(files(&kernels.join("tests"), &["cu"]));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let extra = std::env::var("ASSAY_EMULATOR_FLAGS").unwrap_or_default();
    let flags = format!("-std=c++17 -O2 -g -fPIC -DEMULATED -Wall -Wno-unknown-pragmas {extra}");
    let mut common = Sha256::new();
    common.update(&compiler);
    common.update(&flags);
    files(&kernels, &["cuh", "h"]).iter().for_each(|file| common.update(std::fs::read(file).unwrap()));
    let mut all = common.clone();
    let names: Vec<String> = sources
        .iter()
        .map(|source| {
            let text = std::fs::read(source).unwrap();
            all.update(&text);
            format!("{}-{}.o", source.file_stem().unwrap().display(), digits(common.clone().chain_update(text)))
        })
        .collect();
    let library = built.join(format!("libkernels-{}.so", digits(all)));
    if library.is_file() {
        return Ok(library);
    }
    std::fs::create_dir_all(&built).unwrap();
    // Written under a name of its own and moved, because other processes compile the same.
    let unfinished = |path: &Path| path.with_extension(format!("{}.unfinished", std::process::id()));
    let compile = |source: &Path, name: &str| {
        let kept = beside_the_build.join(name);
        if kept.is_file() {
            return Ok(kept);
        }
        let object = built.join(name);
        if object.is_file() {
            return Ok(object);
        }
        let mut command = Command::new(&compiler);
        command.args(flags.split_whitespace()).args(["-x", "c++", "-c"]).arg(source);
        let output = command.arg("-o").arg(unfinished(&object)).output();
        let output = output.map_err(|error| format!("no C++ compiler: {compiler}: {error}"))?;
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} does not compile:\n{messages}", source.display());
        assert!(messages.is_empty(), "{} compiles with warnings:\n{messages}", source.display());
        std::fs::rename(unfinished(&object), &object).unwrap();
        Ok(object)
    };
    // One compiler at a time per core would be overkill for a dozen small files: all at once.
    let objects: Vec<PathBuf> = std::thread::scope(|scope| {
        let compilers: Vec<_> =
            sources.iter().zip(&names).map(|(source, name)| scope.spawn(|| compile(source, name))).collect();
        compilers.into_iter().map(|compiler| compiler.join().unwrap()).collect::<Result<_, String>>()
    })?;
    let output = Command::new(&compiler)
        .args(flags.split_whitespace())
        .arg("-shared")
        .args(&objects)
        .arg("-o")
        .arg(unfinished(&library))
        .output()
        .map_err(|error| format!("no C++ compiler: {compiler}: {error}"))?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(unfinished(&library), &library).unwrap();
    Ok(library)
}

/// Two emulated GPUs that must give the same bits: one runs threads and blocks in ascending, the other in descending
/// order. `None` where there is no C++ compiler.
pub(crate) fn gpus() -> Option<[Gpu; 2]> {
    match library() {
        Ok(library) => Some(
            [false, true]
                .map(|descending| Gpu::new(Arc::new(Emulator { library, descending, ..Emulator::new(library) }))),
        ),
        Err(reason) => {
            assert!(std::env::var_os("CI").is_none(), "{reason}");
            #[allow(clippy::print_stderr)]
            {
                eprintln!("not tested: {reason}");
            }
            None
        }
    }
}

struct Emulator {
    library: &'static libloading::Library,
    descending: bool,
    allocations: Mutex<HashMap<Address, std::alloc::Layout>>,
    first_error: Mutex<Option<String>>,
    marks: Mutex<Vec<Instant>>,
}

impl Emulator {
    fn new(library: &'static libloading::Library) -> Self {
        let (allocations, first_error, marks) = Default::default();
        Self { library, descending: false, allocations, first_error, marks }
    }

    /// Keeps the first error, as CUDA does.
    fn note(&self, result: Result<()>) {
        if let Err(error) = result {
            self.first_error.lock().unwrap().get_or_insert(format!("{error:#}"));
        }
    }

    /// Fails if a guard was written to.
    fn check_guards(&self) -> Result<()> {
        for (&address, layout) in self.allocations.lock().unwrap().iter() {
            // SAFETY: what `allocate` took.
            let memory = unsafe { std::slice::from_raw_parts(address as *const u8, layout.size()) };
            let guard = &memory[layout.size() - guard_bytes()..];
            ensure!(guard.iter().all(|&byte| byte == GUARD), "memory behind a buffer was written to");
        }
        Ok(())
    }

    fn failed(&self) -> bool {
        self.first_error.lock().unwrap().is_some()
    }

    fn try_launch(&self, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()> {
        // SAFETY: the symbols are what `EXPORT` declares.
        let (run, signature) = unsafe {
            let signature = self.library.get::<Signature>(format!("signature_of_{kernel}").as_bytes())?;
            (self.library.get::<Run>(format!("run_{kernel}").as_bytes())?, CStr::from_ptr(signature()).to_str()?)
        };
        let letters: String = args
            .iter()
            .map(|arg| match arg {
                Arg::Pointer { .. } => 'p',
                Arg::I32(_) => 'i',
                Arg::U32(_) => 'u',
                Arg::U64(_) => 'l',
                Arg::F32(_) => 'f',
            })
            .collect();
        ensure!(letters == signature, "{kernel} takes {signature} and was given {letters}");
        ensure!(grid.threads > 0 && grid.threads <= 1024 && grid.threads.is_multiple_of(32), "{kernel}: {grid:?}");
        ensure!(grid.blocks[0] <= i32::MAX as u32, "{kernel}: {grid:?}");
        ensure!(grid.blocks[1] <= 65_535 && grid.blocks[2] <= 65_535, "{kernel}: {grid:?}");
        ensure!(grid.shared_bytes <= MAX_SHARED_BYTES, "{kernel}: {grid:?}");
        let mut words: Vec<u64> = args
            .iter()
            .map(|arg| match *arg {
                Arg::Pointer { address, .. } => address,
                Arg::I32(value) => u64::from(value as u32),
                Arg::U32(value) => value.into(),
                Arg::U64(value) => value,
                Arg::F32(value) => value.to_bits().into(),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        let Grid { blocks, threads, shared_bytes } = grid;
        let launch = Launch { blocks, threads, shared_bytes, descending: self.descending.into() };
        let mut message = [0 as c_char; 512];
        // SAFETY: number and types of the arguments were compared with the kernel's own.
        let message = unsafe {
            run(&launch, pointers.as_mut_ptr(), message.as_mut_ptr(), message.len());
            CStr::from_ptr(message.as_ptr()).to_str()?
        };
        ensure!(message.is_empty(), "{kernel}: {message}");
        self.check_guards().with_context(|| kernel.to_owned())
    }
}

/// Elements at an address, as f32.
fn read((address, dtype): (Address, Dtype), len: usize) -> Vec<f32> {
    // SAFETY: addresses are those of our own allocations, the lengths were checked where windows were cut.
    unsafe {
        match dtype {
            Dtype::F32 => std::slice::from_raw_parts(address as *const f32, len).to_vec(),
            Dtype::Bf16 => std::slice::from_raw_parts(address as *const bf16, len).iter().map(|x| x.to_f32()).collect(),
        }
    }
}

impl Driver for Emulator {
    fn name(&self) -> String {
        "emulated GPU".to_owned()
    }

    fn memory(&self) -> Result<[usize; 2]> {
        let taken: usize = self.allocations.lock().unwrap().values().map(|layout| layout.size() - guard_bytes()).sum();
        Ok([(1 << 36) - taken, 1 << 36])
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        let layout = std::alloc::Layout::from_size_align(bytes + guard_bytes(), ALIGNMENT)?;
        // SAFETY: the size is not zero.
        let address = unsafe { std::alloc::alloc_zeroed(layout) } as Address;
        ensure!(address != 0, "no memory");
        // SAFETY: the guard is the end of what was taken.
        unsafe { std::ptr::write_bytes((address as *mut u8).add(bytes), GUARD, guard_bytes()) };
        self.allocations.lock().unwrap().insert(address, layout);
        Ok(address)
    }

    fn free(&self, address: Address, bytes: usize) {
        let layout = self.allocations.lock().unwrap().remove(&address).unwrap();
        assert_eq!(layout.size(), bytes + guard_bytes());
        // SAFETY: allocated by `allocate` with this layout, and removed from the list.
        unsafe { std::alloc::dealloc(address as *mut u8, layout) }
    }

    fn upload(&self, to: Address, bytes: &[u8]) {
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) }
    }

    fn upload_ahead(&self, to: Address, bytes: &[u8]) {
        self.upload(to, bytes);
    }

    fn download(&self, bytes: &mut [u8], from: Address) -> Result<()> {
        self.synchronize()?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) }
        Ok(())
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) {
        // SAFETY: as in `read`; the borrow checker saw to it that the windows do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) }
    }

    fn zero(&self, at: Address, bytes: usize) {
        // SAFETY: as in `read`.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) }
    }

    fn launch(&self, kernel: &str, grid: Grid, args: &[Arg]) {
        if !self.failed() {
            self.note(self.try_launch(kernel, grid, args));
        }
    }

    fn multiply(&self, product: Product) {
        if let Some(epilogue) = product.epilogue {
            return epilogue::separately(self, product, epilogue);
        }
        let Product { sizes, a, b, beta, c, bias, epilogue: _ } = product;
        let [m, n, k] = sizes;
        assert_eq!(a.dtype, b.dtype);
        let order = |operand: Operand| if operand.transposed { matmul::Order::T } else { matmul::Order::N };
        let [x, y] = [(a, m * k), (b, k * n)].map(|(operand, len)| read((operand.address, operand.dtype), len));
        let mut product = if beta == 0.0 { vec![0.0; m * n] } else { read(c, m * n) };
        // A card adds a bias that is not aligned afterwards, to what is rounded already.
        let bias = bias.map(|bias| (bias % 16 == 0, read((bias, a.dtype), n)));
        if let Some((true, bias)) = &bias {
            product.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias));
        }
        let beta = if beta == 0.0 && !matches!(bias, Some((true, _))) { 0.0 } else { 1.0 };
        let device = ops::Device::cpu();
        let (x, y) = ((x.as_slice().into(), order(a)), (y.as_slice().into(), order(b)));
        matmul::matmul(&device, sizes, 1.0, x, y, beta, product.as_mut_slice().into());
        let (address, dtype) = c;
        if let Some((false, bias)) = bias {
            for (i, x) in product.iter_mut().enumerate() {
                let rounded = if dtype == Dtype::Bf16 { bf16::from_f32(*x).to_f32() } else { *x };
                *x = rounded + bias[i % n];
            }
        }
        // SAFETY: as in `read`.
        unsafe {
            match dtype {
                Dtype::F32 => std::slice::from_raw_parts_mut(address as *mut f32, m * n).copy_from_slice(&product),
                Dtype::Bf16 => std::slice::from_raw_parts_mut(address as *mut bf16, m * n)
                    .iter_mut()
                    .zip(product)
                    .for_each(|(to, x)| *to = bf16::from_f32(x)),
            }
        }
    }

    fn synchronize(&self) -> Result<()> {
        match self.first_error.lock().unwrap().take() {
            Some(error) => bail!("{error}"),
            None => Ok(()),
        }
    }

    fn mark(&self) -> usize {
        let mut marks = self.marks.lock().unwrap();
        marks.push(Instant::now());
        marks.len() - 1
    }

    fn seconds_between(&self, first: usize, last: usize) -> Result<f64> {
        self.synchronize()?;
        let marks = self.marks.lock().unwrap();
        Ok((marks[last] - marks[first]).as_secs_f64())
    }

    fn forget_marks(&self) {
        self.marks.lock().unwrap().clear();
    }
}

#[cfg(test)]
mod tests;
