//! What a device does for us: memory, copies, launches. NVIDIA's driver does it, or the emulator of the tests.

use super::compiler::{self, Compiler};
use super::cublaslt::Library;
use super::error::GpuError;
use super::gpu::{Arg, DeviceInfo};
use super::library;
use super::sources;
use super::versions::{self, architecture};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};
use cudarc::driver::{DriverError, result};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, OnceLock, RwLock};

/// A device and one queue of work on it: calls take effect in their order.
pub(super) trait Driver: Send + Sync {
    /// What it is.
    fn info(&self) -> &DeviceInfo;
    /// Memory, 256-byte aligned.
    fn alloc(&self, bytes: usize) -> Result<u64, GpuError>;
    /// Gives memory back.
    fn free(&self, ptr: u64);
    /// Whether memory that is given back is worth keeping for whoever asks next.
    fn pools(&self) -> bool {
        true
    }
    /// Host to device; `from` may change as soon as this returns.
    fn upload(&self, from: &[u8], to: u64) -> Result<(), GpuError>;
    /// Device to host; waits for all earlier work.
    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), GpuError>;
    /// Device to device.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), GpuError>;
    /// Zeros.
    fn clear(&self, to: u64, bytes: usize) -> Result<(), GpuError>;
    /// Waits for all earlier work.
    fn synchronize(&self) -> Result<(), GpuError>;
    /// Begins to measure how long kernels take.
    fn profile(&self) {}
    /// What was measured: each kernel's launches and milliseconds, and begins anew.
    fn profiled(&self) -> Vec<(&'static str, usize, f64)> {
        Vec::new()
    }
    /// Starts a kernel.
    fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        args: &[Arg],
    ) -> Result<(), GpuError>;
    /// NVIDIA's library of products on this device's queue, if it is there, for use by this thread.
    fn library(&self) -> Option<&Library> {
        None
    }
    /// Does what starts work, which is measured under a name as kernels are.
    fn measured(&self, _name: &'static str, start: &mut dyn FnMut()) {
        start();
    }
    /// Milliseconds that the device needs for what is started, if it can tell.
    fn elapsed(&self, _start: &mut dyn FnMut()) -> Option<f32> {
        None
    }
}

/// One GPU behind NVIDIA's driver.
pub(super) struct Cuda {
    info: DeviceInfo,
    /// Machine code of all kernels, by file.
    cubins: Vec<Vec<u8>>,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Shared memory that a block may ask for.
    shared: i32,
    /// Whether the device reads the host's memory itself.
    reads_host: bool,
    modules: Mutex<HashMap<usize, Module>>,
    functions: RwLock<HashMap<&'static str, Function>>,
    /// Launches between two events each, while they are measured.
    measured: Mutex<Option<Vec<Measured>>>,
    library: OnceLock<Option<Library>>,
}

/// A kernel's name, and the moments before and after it.
type Measured = (&'static str, Event, Event);

#[derive(Clone, Copy)]
struct Event(sys::CUevent);
#[derive(Clone, Copy)]
struct Module(sys::CUmodule);
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: handles of the driver, which may be used from any thread that has made the context its own (`enter`).
unsafe impl Send for Cuda {}
// SAFETY: as above; the driver's functions may be called from several threads at once.
unsafe impl Sync for Cuda {}
// SAFETY: as above.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

thread_local! {
    static ENTERED: Cell<usize> = const { Cell::new(0) };
}

fn failed(call: &'static str) -> impl FnOnce(DriverError) -> GpuError {
    move |e| GpuError::Driver {
        call,
        reason: e
            .error_string()
            .map(|s| s.to_string_lossy().into_owned())
            .unwrap_or_else(|_| format!("{:?}", e.0)),
    }
}

/// The same for what may have no memory left.
fn or_no_memory(call: &'static str) -> impl FnOnce(DriverError) -> GpuError {
    move |e| match e.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => GpuError::NoMemory,
        _ => failed(call)(e),
    }
}

const UNPOISONED: &str = "nothing panics under this lock";

/// The GPUs that the driver sees.
pub(super) fn devices() -> Result<Vec<DeviceInfo>, GpuError> {
    // SAFETY: only looks for the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(GpuError::NoDriver);
    }
    result::init().map_err(|e| GpuError::NoDevice(format!("{:?}", e.0)))?;
    let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))?;
    (0..count).map(info).collect()
}

fn info(ordinal: i32) -> Result<DeviceInfo, GpuError> {
    let device = result::device::get(ordinal).map_err(failed("cuDeviceGet"))?;
    // SAFETY: a device that the driver has just named.
    let attribute =
        |a| unsafe { result::device::get_attribute(device, a) }.map_err(failed("cuDeviceGetAttribute"));
    let mut version = 0;
    // SAFETY: a writable place.
    unsafe { sys::cuDriverGetVersion(&mut version) };
    Ok(DeviceInfo {
        name: result::device::get_name(device).map_err(failed("cuDeviceGetName"))?,
        // SAFETY: as above.
        memory: unsafe { result::device::total_mem(device) }.map_err(failed("cuDeviceTotalMem"))?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
        clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? as u32,
        driver: (version / 1000, version % 1000 / 10),
    })
}

impl Cuda {
    /// Opens the GPU of a number.
    pub(super) fn open(ordinal: usize, announce: impl FnOnce()) -> Result<Cuda, GpuError> {
        let present = devices()?;
        if present.is_empty() {
            return Err(GpuError::NoDevice("it lists none".into()));
        }
        let info = present
            .get(ordinal)
            .cloned()
            .ok_or(GpuError::NoSuchDevice { wanted: ordinal, present: present.len() })?;
        info.check()?;
        let compiler = Compiler::get()?;
        let cubins = compiler::cubins(compiler, &architecture(&info, compiler.info())?, announce)?;
        let device = result::device::get(ordinal as i32).map_err(failed("cuDeviceGet"))?;
        // SAFETY: a device that the driver has named; the context is kept for the life of the process.
        let opened = unsafe {
            let context = result::primary_ctx::retain(device).map_err(failed("cuDevicePrimaryCtxRetain"))?;
            result::ctx::set_current(context).map_err(failed("cuCtxSetCurrent"))?;
            ENTERED.set(context as usize);
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
                .map_err(failed("cuStreamCreate"))?;
            let shared = result::device::get_attribute(
                device,
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )
            .map_err(failed("cuDeviceGetAttribute"))?;
            let reads_host =
                result::device::get_attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS)
                    .map_err(failed("cuDeviceGetAttribute"))?
                    != 0;
            Cuda {
                info,
                reads_host,
                cubins,
                context,
                stream,
                shared,
                modules: Mutex::default(),
                functions: RwLock::default(),
                measured: Mutex::default(),
                library: OnceLock::new(),
            }
        };
        // Whether the driver takes the kernels shows here, where one may still do without a GPU; the others are loaded when they
        // are used.
        let smallest = (0..opened.cubins.len())
            .min_by_key(|&file| opened.cubins[file].len())
            .expect("there are kernels");
        match opened.module(smallest) {
            Ok(_) => Ok(opened),
            Err(GpuError::Driver { reason, .. }) => {
                Err(versions::old_driver(&opened.info, compiler.info(), &reason))
            }
            Err(other) => Err(other),
        }
    }

    /// The machine code of a file of [`sources::FILES`], loaded.
    fn module(&self, file: usize) -> Result<Module, GpuError> {
        let mut modules = self.modules.lock().expect(UNPOISONED);
        if let Some(module) = modules.get(&file) {
            return Ok(*module);
        }
        // SAFETY: machine code made for this very card, which the driver copies.
        let module = unsafe { result::module::load_data(self.cubins[file].as_ptr().cast()) }
            .map_err(or_no_memory("cuModuleLoadData"))?;
        modules.insert(file, Module(module));
        Ok(Module(module))
    }

    /// Makes the context this thread's.
    fn enter(&self) -> Result<(), GpuError> {
        if ENTERED.get() != self.context as usize {
            // SAFETY: the context lives as long as the process.
            unsafe { result::ctx::set_current(self.context) }.map_err(failed("cuCtxSetCurrent"))?;
            ENTERED.set(self.context as usize);
        }
        Ok(())
    }

    /// A moment in the stream, if kernels are measured.
    fn event_if_measured(&self) -> Option<Event> {
        self.measured.lock().expect(UNPOISONED).as_ref()?;
        self.event()
    }

    /// A moment in the stream.
    fn event(&self) -> Option<Event> {
        let event = result::event::create(sys::CUevent_flags_enum::CU_EVENT_DEFAULT).ok()?;
        // SAFETY: an event and a stream of this context.
        unsafe { result::event::record(event, self.stream) }.ok()?;
        Some(Event(event))
    }

    fn function(&self, kernel: &'static str) -> Result<Function, GpuError> {
        if let Some(f) = self.functions.read().expect(UNPOISONED).get(kernel) {
            return Ok(*f);
        }
        let module = self.module(sources::file_of(kernel))?;
        let name = CString::new(kernel).expect("a kernel's name");
        // SAFETY: a loaded module, which is never unloaded.
        let function = unsafe { result::module::get_function(module.0, name) }
            .map_err(or_no_memory("cuModuleGetFunction"))?;
        let mut fixed = 0;
        // SAFETY: a loaded function.
        unsafe {
            use sys::CUfunction_attribute_enum as F;
            sys::cuFuncGetAttribute(&mut fixed, F::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function);
            result::function::set_function_attribute(
                function,
                F::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                self.shared - fixed,
            )
            .map_err(failed("cuFuncSetAttribute"))?;
        }
        self.functions.write().expect(UNPOISONED).insert(kernel, Function(function));
        Ok(Function(function))
    }
}

impl Driver for Cuda {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn alloc(&self, bytes: usize) -> Result<u64, GpuError> {
        self.enter()?;
        // SAFETY: memory of its own.
        unsafe { result::malloc_sync(bytes) }.map_err(or_no_memory("cuMemAlloc"))
    }
    fn free(&self, ptr: u64) {
        // A process that ends has no context any more, and needs none.
        if self.enter().is_ok() {
            // SAFETY: made by `alloc`, and given back once.
            let _ = unsafe { result::free_sync(ptr) };
        }
    }
    fn upload(&self, from: &[u8], to: u64) -> Result<(), GpuError> {
        self.enter()?;
        // SAFETY: `to` has room (caller); `from` is copied before this returns: by the driver, which stages it, or, where the
        // device reads the host's memory itself, because this waits.
        unsafe { result::memcpy_htod_async(to, from, self.stream) }.map_err(failed("cuMemcpyHtoD"))?;
        if self.reads_host { self.synchronize() } else { Ok(()) }
    }
    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), GpuError> {
        self.enter()?;
        // SAFETY: `from` has as many bytes (caller).
        unsafe { result::memcpy_dtoh_async(to, from, self.stream) }.map_err(failed("cuMemcpyDtoH"))?;
        self.synchronize()
    }
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), GpuError> {
        self.enter()?;
        // SAFETY: both have as many bytes (caller).
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(failed("cuMemcpyDtoD"))
    }
    fn clear(&self, to: u64, bytes: usize) -> Result<(), GpuError> {
        self.enter()?;
        // SAFETY: as many bytes are there (caller).
        unsafe { result::memset_d8_async(to, 0, bytes, self.stream) }.map_err(failed("cuMemset"))
    }
    fn synchronize(&self) -> Result<(), GpuError> {
        self.enter()?;
        // SAFETY: our stream.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("cuStreamSynchronize"))
    }
    fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        args: &[Arg],
    ) -> Result<(), GpuError> {
        self.enter()?;
        let function = self.function(kernel)?;
        let mut params = params(args);
        let mut started = Ok(());
        self.measured(kernel, &mut || {
            // SAFETY: arguments as the kernel declares them (checked by `Gpu::launch`); memory is kept by slabs, which
            // are handed out again only to later work of the same stream.
            started = unsafe {
                result::launch_kernel(
                    function.0,
                    (grid[0], grid[1], grid[2]),
                    (threads, 1, 1),
                    shared,
                    self.stream,
                    &mut params[..args.len()],
                )
            };
        });
        started.map_err(or_no_memory(kernel))
    }
    fn library(&self) -> Option<&Library> {
        self.enter().ok()?;
        let open = || {
            library::version().ok()?;
            // SAFETY: the stream is of this thread's context, and neither is ever destroyed.
            unsafe { Library::open(self.stream.cast()) }
        };
        self.library.get_or_init(open).as_ref()
    }
    fn measured(&self, name: &'static str, start: &mut dyn FnMut()) {
        let before = self.event_if_measured();
        start();
        if let (Some(before), Some(after)) = (before, self.event_if_measured())
            && let Some(list) = self.measured.lock().expect(UNPOISONED).as_mut()
        {
            list.push((name, before, after));
        }
    }
    fn elapsed(&self, start: &mut dyn FnMut()) -> Option<f32> {
        self.enter().ok()?;
        let before = self.event()?;
        start();
        let after = self.event()?;
        self.synchronize().ok()?;
        // SAFETY: events of this context, recorded and now past; they are not used again.
        unsafe {
            let ms = result::event::elapsed(before.0, after.0).ok();
            let _ = (result::event::destroy(before.0), result::event::destroy(after.0));
            ms
        }
    }
    fn profile(&self) {
        *self.measured.lock().expect(UNPOISONED) = Some(Vec::new());
    }
    fn profiled(&self) -> Vec<(&'static str, usize, f64)> {
        let list = self.measured.lock().expect(UNPOISONED).replace(Vec::new()).unwrap_or_default();
        let mut sums: HashMap<&'static str, (usize, f64)> = HashMap::new();
        if self.synchronize().is_ok() {
            for (kernel, before, after) in list {
                // SAFETY: events of this context, recorded and now past.
                let ms = unsafe { result::event::elapsed(before.0, after.0) }.unwrap_or(0.0);
                let sum = sums.entry(kernel).or_default();
                *sum = (sum.0 + 1, sum.1 + f64::from(ms));
                // SAFETY: as above; not used again.
                let _ = unsafe { (result::event::destroy(before.0), result::event::destroy(after.0)) };
            }
        }
        let mut sums: Vec<_> = sums.into_iter().map(|(kernel, (n, ms))| (kernel, n, ms)).collect();
        sums.sort_by(|a, b| b.2.total_cmp(&a.2));
        sums
    }
}

/// The most arguments of a kernel.
pub(super) const MAX_ARGS: usize = 24;

/// Pointers to the arguments' values.
pub(super) fn params(args: &[Arg]) -> [*mut c_void; MAX_ARGS] {
    let mut params = [std::ptr::null_mut(); MAX_ARGS];
    for (p, a) in params.iter_mut().zip(args) {
        *p = a.place();
    }
    params
}
