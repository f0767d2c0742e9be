//! A GPU as ops see it: slabs of memory from a pool, and kernels to launch.

use super::compiler::{self, Compiler};
use super::driver::{self, Cuda, Driver, MAX_ARGS};
use super::emulated::Emulated;
use super::error::GpuError;
use super::library::{self, Choices};
use super::sources;
use super::versions::{architecture, is_new_enough};
use ground::seeds::{FNV, fnv};
use std::cell::UnsafeCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// Bytes of memory.
    pub memory: usize,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Highest clock of the multiprocessors.
    pub clock_khz: u32,
    /// The newest CUDA version that the driver knows, major and minor.
    pub driver: (i32, i32),
}

/// How a GPU calculates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Math {
    /// f32 throughout, in the processor's order: its bits.
    #[default]
    Exact,
    /// Factors of products rounded to bf16, sums in f32, on tensor cores. Not the processor's bits, but a token's result
    /// depends on its context and the weights alone, as everywhere.
    Fast,
}

impl DeviceInfo {
    /// Whether the kernels can run on it, as this driver and the compiler are, if that is there.
    pub fn check(&self) -> Result<(), GpuError> {
        match Compiler::get() {
            Ok(compiler) => architecture(self, compiler.info()).map(|_| ()),
            Err(_) => is_new_enough(self),
        }
    }
}

/// A GPU with its queue of work and its pool of memory, and how it is to calculate; a handle, cheap to clone.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
    math: Math,
}

struct Inner {
    driver: Box<dyn Driver>,
    /// Free memory by size in bytes.
    free: Mutex<BTreeMap<usize, Vec<u64>>>,
    /// Bytes taken from the driver.
    held: AtomicUsize,
    /// The kinds of each kernel's parameters.
    signatures: HashMap<&'static str, Vec<Kind>>,
    /// Which products NVIDIA's library computes.
    choices: Choices,
}

/// Memory of a GPU, which returns to the pool when dropped. Contents are unspecified until written.
pub(crate) struct Slab {
    ptr: u64,
    bytes: usize,
    class: usize,
    gpu: Gpu,
}

/// A place in a slab.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ptr(u64);

impl Ptr {
    /// No place: a buffer that a kernel does without.
    pub(crate) const NULL: Ptr = Ptr(0);

    /// The place so many bytes behind.
    pub(crate) fn further(self, bytes: usize) -> Ptr {
        Ptr(self.0 + bytes as u64)
    }
    /// Its address on the device.
    pub(super) fn address(self) -> u64 {
        self.0
    }
}

/// Memory that goes back to the driver when dropped, not to the pool: for what is large, and needed once.
pub(super) struct Scratch {
    ptr: u64,
    gpu: Gpu,
}

impl Scratch {
    /// Where it begins.
    pub(super) fn start(&self) -> Ptr {
        Ptr(self.ptr)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Where waiting fails, so will whatever is done next, with a message.
        let _ = self.gpu.inner.driver.synchronize();
        self.gpu.inner.driver.free(self.ptr);
    }
}

impl Slab {
    /// The place of value `offset` (of two bytes each).
    pub(crate) fn half(&self, offset: usize) -> Ptr {
        assert!(2 * offset <= self.bytes, "value {offset} of a slab of {} bytes", self.bytes);
        Ptr(self.ptr + 2 * offset as u64)
    }
    /// The place of a byte.
    pub(crate) fn byte(&self, offset: usize) -> Ptr {
        assert!(offset <= self.bytes, "byte {offset} of a slab of {} bytes", self.bytes);
        Ptr(self.ptr + offset as u64)
    }
    /// The place of value `offset` (of four bytes each).
    pub(crate) fn at(&self, offset: usize) -> Ptr {
        assert!(4 * offset <= self.bytes, "value {offset} of a slab of {} bytes", self.bytes);
        Ptr(self.ptr + 4 * offset as u64)
    }
    /// Its GPU.
    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }
}

/// A factor of products as a GPU's mode reads it: f32, or rounded to bf16.
pub(crate) enum Operand<'a> {
    Exact(&'a Slab),
    Rounded(&'a Slab),
    /// Rounded for the occasion.
    Made(Slab),
}

impl Operand<'_> {
    /// The place of value `offset`.
    pub(crate) fn at(&self, offset: usize) -> Ptr {
        match self {
            Operand::Exact(slab) => slab.at(offset),
            Operand::Rounded(slab) => slab.half(offset),
            Operand::Made(slab) => slab.half(offset),
        }
    }
}

impl Slab {
    /// `len` values of this slab as a factor.
    pub(crate) fn operand(&self, len: usize) -> Operand<'_> {
        match self.gpu.math {
            Math::Exact => Operand::Exact(self),
            Math::Fast => Operand::Made(self.rounded(len)),
        }
    }
    /// A copy of `len` values, rounded to bf16.
    pub(crate) fn rounded(&self, len: usize) -> Slab {
        self.converted("fast_gemm_round", len, len.div_ceil(2))
    }
    /// The `len` values of bf16 that this slab holds, as f32.
    pub(crate) fn unrounded(&self, len: usize) -> Slab {
        self.converted("fast_elementwise_unround", len, len)
    }
    fn converted(&self, kernel: &'static str, len: usize, words: usize) -> Slab {
        let to = self.gpu.alloc(words);
        let grid = [len.div_ceil(2048).clamp(1, 1 << 16), 1, 1];
        self.gpu.launch(kernel, grid, 256, args![self, &to, len as i64]);
        to
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let inner = &self.gpu.inner;
        if inner.driver.pools() {
            inner.free.lock().expect(UNPOISONED).entry(self.class).or_default().push(self.ptr);
        } else {
            inner.held.fetch_sub(self.class, Relaxed);
            inner.driver.free(self.ptr);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let free = std::mem::take(&mut *self.free.lock().expect(UNPOISONED));
        free.into_values().flatten().for_each(|ptr| self.driver.free(ptr));
    }
}

const UNPOISONED: &str = "nothing panics under this lock";

/// What a kernel's parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Pointer,
    Int,
    Float,
    Long,
}

/// A kernel's argument: its value in the low bytes, as the kernel reads it. A slab that is one stays until the launch.
pub(crate) struct Arg<'a> {
    bits: UnsafeCell<u64>,
    kind: Kind,
    slab: PhantomData<&'a Slab>,
}

impl Arg<'_> {
    fn new(bits: u64, kind: Kind) -> Self {
        Arg { bits: UnsafeCell::new(bits), kind, slab: PhantomData }
    }
    /// Where the value lies.
    pub(super) fn place(&self) -> *mut c_void {
        self.bits.get().cast()
    }
}

impl<'a> From<&'a Slab> for Arg<'a> {
    fn from(slab: &'a Slab) -> Arg<'a> {
        Arg::new(slab.ptr, Kind::Pointer)
    }
}
impl From<Ptr> for Arg<'_> {
    fn from(ptr: Ptr) -> Self {
        Arg::new(ptr.0, Kind::Pointer)
    }
}
impl From<usize> for Arg<'_> {
    fn from(n: usize) -> Self {
        Arg::new(i32::try_from(n).expect("sizes of kernels fit 31 bits") as u64, Kind::Int)
    }
}
impl From<bool> for Arg<'_> {
    fn from(b: bool) -> Self {
        Arg::new(u64::from(b), Kind::Int)
    }
}
impl From<f32> for Arg<'_> {
    fn from(x: f32) -> Self {
        Arg::new(u64::from(x.to_bits()), Kind::Float)
    }
}
impl From<i64> for Arg<'_> {
    fn from(n: i64) -> Self {
        Arg::new(n as u64, Kind::Long)
    }
}

/// A kernel's arguments, of whatever types.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::cuda::Arg::from($arg)),*] };
}
pub(crate) use args;

/// Ends the op that cannot go on: there is no result to return, and the reason is the user's to read.
pub(crate) fn give_up(error: GpuError) -> ! {
    std::panic::panic_any(error)
}

/// Blocks of a grid in its second and in its third direction, at most.
pub(super) const MOST_BLOCKS: usize = (1 << 16) - 1;

/// Rounds up to one of eight sizes per power of two, at least 256 bytes.
fn size_class(bytes: usize) -> usize {
    let bytes = bytes.max(256);
    bytes.next_multiple_of((bytes.next_power_of_two() / 16).max(256))
}

impl Gpu {
    /// The GPU of a number, ready for use in exact mode. `announce` is called if the kernels have to be compiled first,
    /// which takes some seconds once.
    pub fn open(ordinal: usize, announce: impl FnOnce()) -> Result<Gpu, GpuError> {
        Ok(Gpu::with(Box::new(Cuda::open(ordinal, announce)?)))
    }

    /// The same GPU, calculating in another way.
    pub fn with_math(&self, math: Math) -> Gpu {
        Gpu { inner: self.inner.clone(), math }
    }

    /// How it calculates.
    pub fn math(&self) -> Math {
        self.math
    }

    /// The GPUs that are there.
    pub fn list() -> Result<Vec<DeviceInfo>, GpuError> {
        driver::devices()
    }

    /// The version of the kernels' compiler, if it is there.
    pub fn compiler() -> Result<String, GpuError> {
        Ok(Compiler::get()?.version())
    }

    /// The version of NVIDIA's library of products, or why it is not used.
    pub fn library() -> Result<String, &'static str> {
        library::version()
    }

    /// Compiles every kernel for an architecture such as "sm_90"; gives each file's name and the compiler's report.
    pub fn compile_all(arch: &str) -> Result<Vec<(&'static str, String)>, GpuError> {
        let compiler = Compiler::get()?;
        let files: Vec<usize> = (0..sources::FILES.len()).collect();
        compiler::each(&files, |i| Ok((sources::FILES[i].0, compiler.compile(i, arch)?.log)))
    }

    /// A hash of all that the kernels of an architecture are compiled from, the compiler's version included.
    pub fn hash_of_sources(arch: &str) -> Result<u64, GpuError> {
        let compiler = Compiler::get()?;
        let files = (0..sources::FILES.len()).map(|i| compiler::hash(compiler, i, arch).to_le_bytes());
        Ok(files.fold(FNV, |hash, file| fnv(hash, &file)))
    }

    /// The kernels run by a library that the tests have compiled for this processor.
    pub fn emulated(library: &Path) -> Result<Gpu, GpuError> {
        Ok(Gpu::with(Box::new(Emulated::open(library)?)))
    }

    /// All kernels as one C++ file for [`Gpu::emulated`].
    pub fn emulator_source() -> String {
        let checks = include_str!("emulator_checks.h");
        let emulator = include_str!("emulator.h").replace("#include \"emulator_checks.h\"", checks);
        let before = [&emulator, sources::PRELUDE, sources::TENSOR_CORES];
        let mut text = before.join("\n");
        for (stem, file) in sources::FILES {
            text.push_str(&format!("#line 1 \"{stem}.cu\"\n{file}\n"));
        }
        text.push_str(
            "extern \"C\" const char* emulate_kernel(const char* wanted, unsigned x, unsigned y, unsigned z, unsigned threads, \
             unsigned shared, void** args) {\n    Dim3 grid{x, y, z};\n    checks::begin_launch(shared);\n",
        );
        for (_, file) in sources::FILES {
            for (name, _) in signatures(file) {
                text.push_str(&format!("    EMULATED({name})\n"));
            }
        }
        text.push_str("    return \"the emulator does not have it\";\n}\n");
        text
    }

    fn with(driver: Box<dyn Driver>) -> Gpu {
        let signatures = sources::FILES.iter().flat_map(|(_, text)| signatures(text)).collect();
        let (free, held, choices) = (Mutex::default(), AtomicUsize::new(0), Choices::default());
        let inner = Inner { driver, free, held, signatures, choices };
        Gpu { inner: Arc::new(inner), math: Math::Exact }
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        self.inner.driver.info()
    }
    /// Bytes that this process holds there.
    pub fn held(&self) -> usize {
        self.inner.held.load(Relaxed)
    }
    /// Waits for all work.
    pub fn synchronize(&self) {
        self.inner.driver.synchronize().unwrap_or_else(|e| give_up(e));
    }

    /// Begins to measure how long each kernel takes, which slows all of them a little.
    pub fn profile(&self) {
        self.inner.driver.profile();
    }
    /// What was measured since: each kernel's name, launches and milliseconds, the longest first.
    pub fn profiled(&self) -> Vec<(&'static str, usize, f64)> {
        self.inner.driver.profiled()
    }

    /// Memory for `len` values of four bytes.
    pub(crate) fn alloc(&self, len: usize) -> Slab {
        let bytes = 4 * len;
        let class = if self.inner.driver.pools() { size_class(bytes) } else { bytes.max(1) };
        let reused = {
            let mut free = self.inner.free.lock().expect(UNPOISONED);
            let fits = free.range_mut(class..=2 * class).find(|(_, list)| !list.is_empty());
            fits.map(|(class, list)| (*class, list.pop().expect("not empty")))
        };
        let (class, ptr) = reused.unwrap_or_else(|| (class, self.fresh(class)));
        Slab { ptr, bytes, class, gpu: self.clone() }
    }

    /// Does what may find no memory left; then, once more when the driver has got back what lies idle in the pool.
    fn with_idle_memory<T>(&self, act: impl Fn(&dyn Driver) -> Result<T, GpuError>) -> Result<T, GpuError> {
        let inner = &self.inner;
        act(&*inner.driver).or_else(|error| {
            if error != GpuError::NoMemory {
                return Err(error);
            }
            inner.driver.synchronize()?;
            let idle = std::mem::take(&mut *inner.free.lock().expect(UNPOISONED));
            for (class, list) in idle {
                inner.held.fetch_sub(class * list.len(), Relaxed);
                list.into_iter().for_each(|ptr| inner.driver.free(ptr));
            }
            act(&*inner.driver)
        })
    }

    /// Memory from the driver.
    fn fresh(&self, bytes: usize) -> u64 {
        let ptr = self.with_idle_memory(|driver| driver.alloc(bytes));
        self.inner.held.fetch_add(bytes, Relaxed);
        ptr.unwrap_or_else(|error| {
            if error != GpuError::NoMemory {
                give_up(error)
            }
            let mib = |bytes: usize| bytes.div_ceil(1 << 20);
            let (held, total) = (mib(self.held() - bytes), mib(self.info().memory));
            give_up(GpuError::OutOfMemory { wanted: mib(bytes), held, total })
        })
    }

    /// Memory to be given back soon, if there is enough.
    pub(super) fn scratch(&self, bytes: usize) -> Option<Scratch> {
        let ptr = self.with_idle_memory(|driver| driver.alloc(bytes)).ok()?;
        Some(Scratch { ptr, gpu: self.clone() })
    }
    /// What does the work.
    pub(super) fn driver(&self) -> &dyn Driver {
        &*self.inner.driver
    }
    /// Which products NVIDIA's library computes.
    pub(super) fn choices(&self) -> &Choices {
        &self.inner.choices
    }

    /// A slab with the given values.
    pub(crate) fn upload(&self, values: &[f32]) -> Slab {
        self.upload_bytes(values.len(), bytes_of(values))
    }
    /// A slab with the given numbers, which kernels read as int.
    pub(crate) fn upload_ints(&self, values: &[u32]) -> Slab {
        self.upload_bytes(values.len(), bytes_of(values))
    }
    fn upload_bytes(&self, len: usize, bytes: &[u8]) -> Slab {
        let slab = self.alloc(len);
        self.inner.driver.upload(bytes, slab.ptr).unwrap_or_else(|e| give_up(e));
        slab
    }
    /// A slab of `bytes` with the given parts, each from its place on.
    pub(crate) fn upload_parts<'a>(
        &self,
        bytes: usize,
        parts: impl Iterator<Item = (usize, &'a [u8])>,
    ) -> Slab {
        let slab = self.alloc(bytes.div_ceil(4));
        for (at, part) in parts {
            let to = slab.byte(at);
            assert!(
                at + part.len() <= slab.bytes,
                "{} bytes at {at} of a slab of {}",
                part.len(),
                slab.bytes
            );
            self.inner.driver.upload(part, to.0).unwrap_or_else(|e| give_up(e));
        }
        slab
    }
    /// The slab's first values; waits for all earlier work.
    pub(crate) fn download<T: Plain>(&self, slab: &Slab, to: &mut [T]) {
        assert!(size_of_val(to) <= slab.bytes, "{} bytes from a slab of {}", size_of_val(to), slab.bytes);
        // SAFETY: any bytes are a valid value of a plain type; the length is the slice's own.
        let bytes = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u8>(), size_of_val(to)) };
        self.inner.driver.download(slab.ptr, bytes).unwrap_or_else(|e| give_up(e));
    }
    /// Copies `len` values of four bytes.
    pub(crate) fn copy(&self, from: Ptr, to: Ptr, len: usize) {
        if len > 0 {
            self.inner.driver.copy(from.0, to.0, 4 * len).unwrap_or_else(|e| give_up(e));
        }
    }
    /// Sets a slab to zeros.
    pub(crate) fn clear(&self, slab: &Slab) {
        if slab.bytes > 0 {
            self.inner.driver.clear(slab.ptr, slab.bytes).unwrap_or_else(|e| give_up(e));
        }
    }

    /// Starts a kernel over `grid` blocks of `threads` threads; nothing happens where the grid is empty.
    pub(crate) fn launch(&self, kernel: &'static str, grid: [usize; 3], threads: usize, args: &[Arg]) {
        self.launch_shared(kernel, grid, threads, 0, args);
    }

    /// The same with `shared` bytes of dynamic shared memory.
    pub(crate) fn launch_shared(
        &self,
        kernel: &'static str,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        args: &[Arg],
    ) {
        let wanted =
            self.inner.signatures.get(kernel).unwrap_or_else(|| panic!("no kernel is named {kernel}"));
        let given = args.iter().map(|a| a.kind);
        assert!(args.len() <= MAX_ARGS, "{kernel}: {} arguments", args.len());
        assert!(
            given.clone().eq(wanted.iter().copied()),
            "{kernel} takes {wanted:?}, given {:?}",
            given.collect::<Vec<_>>()
        );
        if grid.contains(&0) {
            return;
        }
        assert!(grid[1..].iter().all(|&n| n <= MOST_BLOCKS), "{kernel}: a grid of {grid:?}");
        let grid = grid.map(|n| u32::try_from(n).expect("grids fit 32 bits"));
        let started =
            self.with_idle_memory(|driver| driver.launch(kernel, grid, threads as u32, shared as u32, args));
        started.unwrap_or_else(|e| give_up(e));
    }
}

/// Types of which any bytes are a value.
pub(crate) trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for f64 {}
impl Plain for u32 {}

fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: plain values have no padding; the length is the slice's own.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The kernels of a file with their parameters' kinds, read off their declarations.
fn signatures(text: &'static str) -> Vec<(&'static str, Vec<Kind>)> {
    let defines: HashMap<&str, &str> = text
        .split("\n#define ")
        .skip(1)
        .filter_map(|at| at.split_once(char::is_whitespace))
        .map(|(name, rest)| (name, &rest[..define_length(rest)]))
        .collect();
    let declared = text.split("\nKERNEL").skip(1).map(|at| {
        let at = at.strip_prefix("_BOUNDED").unwrap_or(at);
        let (head, rest) = at.trim_start_matches('(').split_once(')').expect("KERNEL(name)(parameters)");
        let name = head.split(',').next().expect("a name").trim();
        let list = rest.trim_start().strip_prefix('(').and_then(|r| r.split_once(')')).expect("parameters").0;
        let mut kinds = Vec::new();
        parameters(list, &defines, &mut kinds);
        (name, kinds)
    });
    declared.collect()
}

/// The length of a macro's text: up to the first line end that is not continued.
fn define_length(text: &str) -> usize {
    let ends = text.match_indices('\n').map(|(at, _)| at);
    ends.into_iter().find(|&at| !text[..at].ends_with('\\')).unwrap_or(text.len())
}

fn parameters(list: &str, defines: &HashMap<&str, &str>, kinds: &mut Vec<Kind>) {
    for p in list.split(',').map(|p| p.trim_matches(|c: char| c.is_whitespace() || c == '\\')) {
        if let Some(text) = defines.get(p) {
            parameters(text, defines, kinds);
            continue;
        }
        kinds.push(match p {
            "" => continue,
            p if p.contains('*') => Kind::Pointer,
            p if p.contains("long long") => Kind::Long,
            p if p.contains("float") => Kind::Float,
            _ => Kind::Int,
        });
    }
}
