//! A [`Driver`] for tests: the kernels of `kernels/*.cu`, compiled by this machine's C++ compiler against
//! `kernels/emulator.h`, in ordinary memory; matrix products by the CPU's.
//!
//! The library is compiled once per content of `kernels/` (and flags) and kept in `emulated-kernels` beside the test
//! executable, with which it can be carried to a machine that has no compiler. `ASSAY_EMULATOR_FLAGS` adds compiler
//! flags, such as `-fsanitize=address`. Where there is no C++ compiler the tests that need it say so and do nothing,
//! except in continuous integration (`CI` is set), where they fail.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::{Result, bail, ensure};
use half::bf16;
use sha2::{Digest, Sha256};

use super::{Address, Arg, Driver, Dtype, Gpu, Grid, Operand, Product};
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

/// The library, or why there is none.
fn library() -> &'static Result<libloading::Library, String> {
    static LIBRARY: OnceLock<Result<libloading::Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = compile()?;
        // SAFETY: our own library, whose initialisers do nothing.
        unsafe { libloading::Library::new(&path) }.map_err(|error| format!("{}: {error}", path.display()))
    })
}

/// Compiles what is not compiled yet; returns the library's path.
fn compile() -> Result<PathBuf, String> {
    let kernels = repository().join("kernels");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&kernels).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| ["cu", "cuh", "h"].iter().any(|&e| extension == e)));
    files.sort();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let extra = std::env::var("ASSAY_EMULATOR_FLAGS").unwrap_or_default();
    let flags = format!("-std=c++17 -O2 -g -fPIC -shared -DEMULATED -Wall -Wno-unknown-pragmas {extra}");
    let mut hash = Sha256::new();
    hash.update(&compiler);
    hash.update(&flags);
    files.iter().for_each(|file| hash.update(std::fs::read(file).unwrap()));
    let name: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let built = std::env::current_exe().unwrap().parent().unwrap().join("emulated-kernels").join(name);
    let library = built.join("libkernels.so");
    if library.is_file() {
        return Ok(library);
    }
    std::fs::create_dir_all(&built).unwrap();
    let sources: Vec<&PathBuf> = files.iter().filter(|file| file.extension().unwrap() == "cu").collect();
    let unique = format!("{}", std::process::id());
    let objects: Vec<PathBuf> = sources
        .iter()
        .map(|source| built.join(source.file_stem().unwrap()).with_extension(format!("{unique}.o")))
        .collect();
    // One compiler at a time per core would be overkill for a dozen small files: all at once.
    let compilers: Vec<_> = sources
        .iter()
        .zip(&objects)
        .map(|(source, object)| {
            let mut command = Command::new(&compiler);
            command.args(flags.split_whitespace().filter(|&flag| flag != "-shared"));
            command.args(["-x", "c++", "-c"]).arg(source).arg("-o").arg(object);
            command.stderr(std::process::Stdio::piped()).spawn()
        })
        .collect();
    for (compiling, source) in compilers.into_iter().zip(&sources) {
        let compiling = compiling.map_err(|error| format!("no C++ compiler: {compiler}: {error}"))?;
        let output = compiling.wait_with_output().unwrap();
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} does not compile:\n{messages}", source.display());
        assert!(messages.is_empty(), "{} compiles with warnings:\n{messages}", source.display());
    }
    let linked = library.with_extension(unique);
    let output = Command::new(&compiler)
        .args(flags.split_whitespace())
        .args(&objects)
        .arg("-o")
        .arg(&linked)
        .output()
        .map_err(|error| format!("no C++ compiler: {compiler}: {error}"))?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(linked, &library).unwrap();
    objects.iter().for_each(|object| std::fs::remove_file(object).unwrap());
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
}

impl Emulator {
    fn new(library: &'static libloading::Library) -> Self {
        Self { library, descending: false, allocations: Mutex::default(), first_error: Mutex::default() }
    }

    /// Keeps the first error, as CUDA does.
    fn note(&self, result: Result<()>) {
        if let Err(error) = result {
            self.first_error.lock().unwrap().get_or_insert(format!("{error:#}"));
        }
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
                Arg::Pointer(_) => 'p',
                Arg::I32(_) => 'i',
                Arg::U32(_) => 'u',
                Arg::U64(_) => 'l',
                Arg::F32(_) => 'f',
            })
            .collect();
        ensure!(letters == signature, "{kernel} takes {signature} and was given {letters}");
        ensure!(grid.threads > 0 && grid.threads <= 1024 && grid.threads.is_multiple_of(32), "{kernel}: {grid:?}");
        ensure!(grid.blocks[1] <= 65_535 && grid.blocks[2] <= 65_535, "{kernel}: {grid:?}");
        ensure!(grid.shared_bytes <= 227 * 1024, "{kernel}: {grid:?}");
        let mut words: Vec<u64> = args
            .iter()
            .map(|arg| match *arg {
                Arg::Pointer(address) => address,
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
        Ok(())
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
        let taken: usize = self.allocations.lock().unwrap().values().map(std::alloc::Layout::size).sum();
        Ok([(1 << 36) - taken, 1 << 36])
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        let layout = std::alloc::Layout::from_size_align(bytes, ALIGNMENT)?;
        // SAFETY: the size is not zero.
        let address = unsafe { std::alloc::alloc_zeroed(layout) } as Address;
        ensure!(address != 0, "no memory");
        self.allocations.lock().unwrap().insert(address, layout);
        Ok(address)
    }

    fn free(&self, address: Address, bytes: usize) {
        let layout = self.allocations.lock().unwrap().remove(&address).unwrap();
        assert_eq!(layout.size(), bytes);
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

    fn multiply(&self, Product { sizes, a, b, beta, c, bias }: Product) {
        let [m, n, k] = sizes;
        assert_eq!(a.dtype, b.dtype);
        let order = |operand: Operand| if operand.transposed { matmul::Order::T } else { matmul::Order::N };
        let [x, y] = [(a, m * k), (b, k * n)].map(|(operand, len)| read((operand.address, operand.dtype), len));
        let mut product = if beta == 0.0 { vec![0.0; m * n] } else { read(c, m * n) };
        if let Some(bias) = bias {
            let bias = read((bias, a.dtype), n);
            product.chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(&bias).for_each(|(x, bias)| *x += bias));
        }
        let beta = if beta == 0.0 && bias.is_none() { 0.0 } else { 1.0 };
        let device = ops::Device::cpu();
        let (x, y) = ((x.as_slice().into(), order(a)), (y.as_slice().into(), order(b)));
        matmul::matmul(&device, sizes, 1.0, x, y, beta, product.as_mut_slice().into());
        let (address, dtype) = c;
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
}
