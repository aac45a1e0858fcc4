//! The [`Driver`] of NVIDIA's GPUs.
//!
//! It stands on the CUDA driver (`libcuda`, which comes with the card's driver) and on cuBLASLt. Both are loaded when
//! the first GPU is asked for: this program starts and computes without them. Only functions are called that CUDA 12.0
//! has.
//!
//! Work is queued in one stream, in the order of the calls; a second stream carries the uploads that run beside it.
//! Memory is taken and given back in the first stream's order, from the device's own pool, which keeps what was given
//! back. The kernels are compiled for the card when it is opened; the driver keeps the result on disk for the next
//! time.

mod handles;
mod products;
mod staging;

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::{Address, Arg, Driver, Gpu, Grid, OutOfMemory, Product, bias, epilogue, kernels};
use crate::error::input;
use handles::{Context, Event, Module, Stream, check, sentence};
use products::{Done, Products};
use staging::Staging;

/// The oldest cards with bfloat16 and asynchronous copies.
const OLDEST: [i32; 2] = [8, 0];
/// The oldest version of CUDA that a driver may be for.
const OLDEST_CUDA: i32 = 12_000;
/// Dynamic shared memory that a kernel gets without asking.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

/// Number of GPUs of this machine.
///
/// # Errors
/// CUDA is not there, or does not start; of the kind [`input`].
pub fn count() -> Result<usize> {
    // SAFETY: loads the libraries, whose initialisers are NVIDIA's.
    let [driver, cublaslt] = unsafe { [sys::is_culib_present(), cudarc::cublaslt::sys::is_culib_present()] };
    if !driver {
        return Err(input(
            "No GPU can be used, for libcuda.so.1 is missing: it comes with the NVIDIA driver. Install the driver of \
             this machine's GPU; in a container, start it with access to the GPU.",
        ));
    }
    if !cublaslt {
        return Err(input(
            "No GPU can be used, for libcublasLt.so.12 or .so.13 is missing: it comes with the CUDA toolkit, and with \
             the Python wheel nvidia-cublas. Add the folder that holds it to LD_LIBRARY_PATH.",
        ));
    }
    let mut version = 0;
    // SAFETY: writes an int; needs no initialised driver.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    // Before anything else is called: a function that an older driver lacks would end the program.
    if asked.is_ok() && version < OLDEST_CUDA {
        return Err(input(format!(
            "No GPU can be used, for the NVIDIA driver is for CUDA {}.{}: version 525 or newer (CUDA 12.0) is needed.",
            version / 1000,
            version % 1000 / 10
        )));
    }
    match result::init().and_then(|()| result::device::get_count()) {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Ok(count) => Ok(count as usize),
        Err(error) => {
            Err(input(format!("The NVIDIA driver does not start: {}. See what nvidia-smi says.", sentence(error))))
        }
    }
}

/// Takes a GPU into use, the first of them being 0.
///
/// # Errors
/// CUDA, or this GPU, is not there or too old, which is of the kind [`input`]; or something fails on it.
pub fn open(index: usize) -> Result<Gpu> {
    let count = count()?;
    if count == 0 {
        return Err(input(
            "The NVIDIA driver finds no GPU: see what nvidia-smi says, and whether CUDA_VISIBLE_DEVICES hides it.",
        ));
    }
    if index >= count {
        let range = if count == 1 { "only GPU 0".to_owned() } else { format!("GPUs 0 to {}", count - 1) };
        return Err(input(format!("There is no GPU {index}: this machine has {range}.")));
    }
    Ok(Gpu::new(Arc::new(Cuda::open(index).with_context(|| format!("GPU {index}"))?)))
}

/// A card's name and how many bytes of its memory are free, without taking it into use.
///
/// # Errors
/// As [`open`].
pub fn name_and_free_memory(index: usize) -> Result<(String, usize)> {
    ensure!(index < count()?, "there is no GPU {index}");
    let device = check(result::device::get(index as i32), "finding the GPU")?;
    let name = check(result::device::get_name(device), "asking for the GPU's name")?;
    let context = Context::retain(device)?;
    context.make_current()?;
    let (free, _) = check(result::mem_get_info(), "asking for free memory")?;
    Ok((name, free))
}

/// Whether something of CUDA is there that a GPU may be expected to work with.
pub fn is_expected() -> bool {
    // SAFETY: loads the library, whose initialisers are NVIDIA's.
    unsafe { sys::is_culib_present() }
}

/// A kernel on the card.
struct Function {
    function: sys::CUfunction,
    parameters: &'static str,
    /// Dynamic shared memory that it may be launched with so far.
    shared_bytes: Mutex<u32>,
}

/// A GPU in use. The fields are dropped in this order, the context last.
struct Cuda {
    name: String,
    pool: sys::CUmemoryPool,
    functions: HashMap<&'static str, Function>,
    products: Mutex<Products>,
    uploads: Mutex<Staging>,
    uploads_ahead: Mutex<Staging>,
    /// The last allocation, zeroed.
    allocated: Event,
    /// The last upload beside the queue.
    arrived: Event,
    /// Marks of a profile.
    marks: Mutex<Vec<Event>>,
    compute: Stream,
    copies: Stream,
    first_error: Mutex<Option<String>>,
    _modules: Vec<Module>,
    context: Context,
}

// SAFETY: the driver may be called from any thread that has made the context its own, which every method here does
// first, and what changes lies behind mutexes.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

// SAFETY: a handle of the driver's, which may be used from any thread.
unsafe impl Send for Function {}

/// The lock, even if a thread has panicked with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cuda {
    fn open(index: usize) -> Result<Self> {
        let device = check(result::device::get(index as i32), "finding the GPU")?;
        let name = check(result::device::get_name(device), "asking for the GPU's name")?;
        use sys::CUdevice_attribute_enum as Attribute;
        let capability = [
            Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        ];
        // SAFETY: the device comes from the driver.
        let capability = capability.map(|attribute| unsafe { result::device::get_attribute(device, attribute) });
        let [major, minor] = capability.map(|value| check(value, "asking for the GPU's capability"));
        let capability = [major?, minor?];
        if capability < OLDEST {
            let ([major, minor], [oldest_major, oldest_minor]) = (capability, OLDEST);
            return Err(input(format!(
                "The {name} is too old: it has compute capability {major}.{minor}, and {oldest_major}.{oldest_minor} \
                 (as an A100 has) is the least that will do."
            )));
        }

        let context = Context::retain(device)?;
        context.make_current()?;
        // SAFETY: the device comes from the driver.
        let pool = check(unsafe { result::device::get_default_mem_pool(device) }, "asking for the GPU's memory pool")?;
        // What is given back stays with us: at the default of 0 each wait would return it to the system.
        let mut threshold = u64::MAX;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the attribute is a u64, and is copied.
        let set = unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast()) };
        check(set, "setting up the GPU's memory pool")?;

        let compute = Stream::new()?;
        // Not in rayon's pool: its size is the caller's to choose, and that may still come.
        let loaded: Vec<(Module, Vec<_>)> = std::thread::scope(|scope| {
            let compilers: Vec<_> =
                kernels::MODULES.iter().map(|module| scope.spawn(|| load(&context, module))).collect();
            let join = |compiler: std::thread::ScopedJoinHandle<'_, _>| {
                compiler.join().unwrap_or_else(|_| bail!("compiling the kernels panicked"))
            };
            compilers.into_iter().map(join).collect::<Result<_>>()
        })?;
        let (modules, functions): (Vec<_>, Vec<_>) = loaded.into_iter().unzip();
        // SAFETY: a plain allocation, whose first use is in the same stream.
        let workspace = unsafe { result::malloc_async(compute.0, products::WORKSPACE_BYTES) };
        let workspace = check(workspace, "taking memory for cuBLASLt")?;
        let products = Products::new(workspace).map_err(|error| {
            let version = driver_version();
            anyhow!("cuBLASLt does not start: {error}. Is it newer than the driver, which is for CUDA {version}?")
        })?;
        Ok(Self {
            name,
            pool,
            functions: functions.into_iter().flatten().collect(),
            products: Mutex::new(products),
            uploads: Mutex::new(Staging::new()?),
            uploads_ahead: Mutex::new(Staging::new()?),
            allocated: Event::new()?,
            arrived: Event::new()?,
            marks: Mutex::default(),
            compute,
            copies: Stream::new()?,
            first_error: Mutex::default(),
            _modules: modules,
            context,
        })
    }

    /// Keeps the first error.
    fn note(&self, result: Result<()>) {
        if let Err(error) = result {
            lock(&self.first_error).get_or_insert_with(|| format!("{error:#}"));
        }
    }

    /// Queues something, unless something has failed before.
    fn queue(&self, work: impl FnOnce() -> Result<()>) {
        if lock(&self.first_error).is_none() {
            self.note(self.context.make_current().and_then(|()| work()));
        }
    }

    fn try_allocate(&self, bytes: usize) -> Result<Address> {
        // SAFETY: a plain allocation; `compute` is the stream in whose order all memory is used.
        let mut taken = unsafe { result::malloc_async(self.compute.0, bytes) };
        if matches!(taken, Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY))) {
            // The pool may hold what was given back in pieces of other sizes, or be about to get it.
            self.compute.synchronize()?;
            // SAFETY: the pool is the device's; only what nobody uses is given back.
            check(unsafe { result::mem_pool::trim_to(self.pool, 0) }, "tidying the GPU's memory pool")?;
            // SAFETY: as above.
            taken = unsafe { result::malloc_async(self.compute.0, bytes) };
        }
        let address = match taken {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let [free, total] = self.memory()?;
                bail!(OutOfMemory { asked: bytes, free, total });
            }
            result => check(result, "taking memory of the GPU")?,
        };
        self.try_zero(address, bytes)?;
        self.allocated.record(&self.compute)?;
        Ok(address)
    }

    fn try_zero(&self, at: Address, bytes: usize) -> Result<()> {
        // SAFETY: the caller's window of an allocation.
        check(unsafe { result::memset_d8_async(at, 0, bytes, self.compute.0) }, "setting memory to zero")
    }

    fn try_upload_ahead(&self, to: Address, bytes: &[u8]) -> Result<()> {
        // Memory that was just taken may still wait for its earlier user, or to be zeroed.
        self.copies.wait_for(&self.allocated)?;
        lock(&self.uploads_ahead).upload(&self.copies, to, bytes)?;
        self.arrived.record(&self.copies)?;
        self.compute.wait_for(&self.arrived)
    }

    fn try_launch(&self, kernel: &str, grid: Grid, args: &[Arg]) -> Result<()> {
        let function = self.functions.get(kernel).ok_or_else(|| anyhow!("there is no kernel {kernel}"))?;
        let letter = |arg: &Arg| match arg {
            Arg::Pointer { .. } | Arg::U64(_) => b'l',
            Arg::I32(_) | Arg::U32(_) => b'i',
            Arg::F32(_) => b'f',
        };
        let fitting = args.iter().map(letter).eq(function.parameters.bytes());
        ensure!(fitting, "{kernel} takes {} and was given {args:?}", function.parameters);
        let mut shared_bytes = lock(&function.shared_bytes);
        if grid.shared_bytes > *shared_bytes {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function's module is loaded as long as `self`.
            let set = unsafe {
                result::function::set_function_attribute(function.function, attribute, grid.shared_bytes as i32)
            };
            check(set, format_args!("giving {kernel} {} bytes of shared memory", grid.shared_bytes))?;
            *shared_bytes = grid.shared_bytes;
        }
        // Little-endian, as every machine with such a card is: four bytes stand at the beginning of eight.
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
        let Grid { blocks: [x, y, z], threads, shared_bytes } = grid;
        // SAFETY: number and sizes of the arguments were compared with the kernel's; they are copied before the call
        // returns. That pointers lead where the kernel may go is the launcher's affair.
        let launched = unsafe {
            let (blocks, threads) = ((x, y, z), (threads, 1, 1));
            result::launch_kernel(function.function, blocks, threads, shared_bytes, self.compute.0, &mut pointers)
        };
        check(launched, format_args!("launching {kernel} on {grid:?}"))
    }
}

/// The CUDA version that the driver is for, as people write it.
fn driver_version() -> String {
    let mut version = 0;
    // SAFETY: writes an int.
    match unsafe { sys::cuDriverGetVersion(&mut version) }.result() {
        Ok(()) => format!("{}.{}", version / 1000, version % 1000 / 10),
        Err(error) => sentence(error),
    }
}

/// Compiles a file of kernels for the card.
fn load(context: &Context, module: &kernels::Module) -> Result<(Module, Vec<(&'static str, Function)>)> {
    context.make_current()?;
    let text = CString::new(module.ptx)?;
    let mut log = vec![0_u8; 4096];
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The size is passed in the place of a pointer.
    let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(log.len())];
    let mut loaded = std::ptr::null_mut();
    // SAFETY: the text ends with a zero, and the log is as long as stated.
    let compiled = unsafe {
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        sys::cuModuleLoadDataEx(&mut loaded, text.as_ptr().cast(), 2, options, values).result()
    };
    if let Err(error) = compiled {
        let log = String::from_utf8_lossy(&log).trim_matches(['\0', '\n', ' ']).to_owned();
        bail!(
            "The driver, which is for CUDA {}, could not compile the kernels of {}: {} {log}. A driver of version 525 \
             or newer should.",
            driver_version(),
            module.name,
            sentence(error),
        );
    }
    let loaded = Module(loaded);
    let function = |kernel: &kernels::Kernel| {
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(loaded.0, CString::new(kernel.name)?) };
        let function = check(function, format_args!("looking for the kernel {}", kernel.name))?;
        let shared_bytes = Mutex::new(PLAIN_SHARED_BYTES);
        Ok((kernel.name, Function { function, parameters: kernel.parameters, shared_bytes }))
    };
    let functions = module.kernels.iter().map(function).collect::<Result<_>>()?;
    Ok((loaded, functions))
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // What is dropped next must not be in use any more. There is nobody to tell of an error.
        let _ = self.context.make_current();
        let _ = self.copies.synchronize();
        let _ = self.compute.synchronize();
        // SAFETY: taken in `open`, and nothing uses it any more.
        let _ = unsafe { result::free_async(lock(&self.products).workspace(), self.compute.0) };
    }
}

impl Driver for Cuda {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn memory(&self) -> Result<[usize; 2]> {
        self.context.make_current()?;
        let (free, total) = check(result::mem_get_info(), "asking for free memory")?;
        // What the pool keeps for us is free as well.
        use sys::CUmemPool_attribute::{CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_CURRENT};
        let of_pool = |attribute| -> Result<u64> {
            let mut bytes = 0_u64;
            // SAFETY: the attribute is a u64.
            let got = unsafe { result::mem_pool::get_attribute(self.pool, attribute, (&raw mut bytes).cast()) };
            check(got, "asking for the memory pool's size").map(|()| bytes)
        };
        let kept =
            of_pool(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?.saturating_sub(of_pool(CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?);
        Ok([free + kept as usize, total])
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        self.context.make_current()?;
        self.try_allocate(bytes)
    }

    fn free(&self, address: Address, _bytes: usize) {
        // Also after an error, or the memory would be lost.
        self.note(self.context.make_current().and_then(|()| {
            // SAFETY: the buffer that owned it is gone.
            check(unsafe { result::free_async(address, self.compute.0) }, "giving memory back")
        }));
    }

    fn upload(&self, to: Address, bytes: &[u8]) {
        self.queue(|| lock(&self.uploads).upload(&self.compute, to, bytes));
    }

    fn upload_ahead(&self, to: Address, bytes: &[u8]) {
        self.queue(|| self.try_upload_ahead(to, bytes));
    }

    fn download(&self, bytes: &mut [u8], from: Address) -> Result<()> {
        self.queue(|| {
            // SAFETY: the caller's window of an allocation; `synchronize` waits for the end before `bytes` are used.
            check(
                unsafe { result::memcpy_dtoh_async(bytes, from, self.compute.0) },
                "a download, or what was queued before",
            )
        });
        self.synchronize()
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) {
        self.queue(|| {
            // SAFETY: the caller's windows of allocations.
            check(unsafe { result::memcpy_dtod_async(to, from, bytes, self.compute.0) }, "a copy")
        });
    }

    fn zero(&self, at: Address, bytes: usize) {
        self.queue(|| self.try_zero(at, bytes));
    }

    fn launch(&self, kernel: &str, grid: Grid, args: &[Arg]) {
        self.queue(|| self.try_launch(kernel, grid, args));
    }

    fn multiply(&self, product: Product) {
        let mut done = Done::Everything;
        self.queue(|| {
            ensure!(product.a.dtype == product.b.dtype, "a product of two formats: {product:?}");
            done = lock(&self.products).multiply(&self.compute, &product)?;
            Ok(())
        });
        let [rows, columns, _] = product.sizes;
        match (done, product.bias, product.epilogue) {
            (Done::AllButBias, Some(bias), _) => bias::add(self, product.c, (bias, product.a.dtype), [rows, columns]),
            (Done::Nothing, _, Some(epilogue)) => epilogue::separately(self, product, epilogue),
            _ => {}
        }
    }

    fn synchronize(&self) -> Result<()> {
        let waited = self.context.make_current().and_then(|()| self.compute.synchronize());
        match lock(&self.first_error).take() {
            Some(error) => Err(anyhow!(error)),
            None => waited,
        }
    }

    fn mark(&self) -> usize {
        let mut marks = lock(&self.marks);
        self.queue(|| {
            marks.push(Event::with_time()?);
            marks.last().expect("just pushed").record(&self.compute)
        });
        marks.len().saturating_sub(1)
    }

    fn seconds_between(&self, first: usize, last: usize) -> Result<f64> {
        self.synchronize()?;
        let marks = lock(&self.marks);
        let mark = |i: usize| marks.get(i).ok_or_else(|| anyhow!("there is no mark {i}"));
        mark(first)?.seconds_until(mark(last)?)
    }

    fn forget_marks(&self) {
        self.note(self.context.make_current());
        lock(&self.marks).clear();
    }

    fn choose_algorithm(&self, product: &Product, rank: usize) -> Result<bool> {
        self.context.make_current()?;
        lock(&self.products).choose(product, rank)
    }
}

#[cfg(test)]
mod tests;
