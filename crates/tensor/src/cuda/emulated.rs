//! The kernels compiled as C++ and run on the processor (`emulator.h`), so that machines without a GPU can test them.

use super::driver::{Driver, MAX_ARGS, params};
use super::error::GpuError;
use super::gpu::{Arg, DeviceInfo};
use libloading::Library;
use std::alloc::Layout;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_uint, c_void};
use std::path::Path;
use std::sync::Mutex;

/// Runs a kernel by name, over a grid of so many threads and bytes of shared memory; says what was wrong, if anything was.
type Emulate = unsafe extern "C" fn(
    *const c_char,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    *const *mut c_void,
) -> *const c_char;
/// Tells that so many bytes of memory are there from an address on, or, if it is none, that they are no more.
type Tell = unsafe extern "C" fn(usize, usize);

/// A library that holds all kernels and `emulate_kernel`, which runs one. Memory of the device is memory of the host.
pub(super) struct Emulated {
    info: DeviceInfo,
    /// One kernel at a time: the emulator has one set of fibers.
    emulate: Mutex<Emulate>,
    /// There if the library checks every access (`emulator_checks.h`).
    tell: Option<Tell>,
    sizes: Mutex<HashMap<u64, usize>>,
    _library: Library,
}

/// The memory that the emulated GPU is to have, for tests of what happens where it is short.
fn mib_from_environment() -> Option<usize> {
    std::env::var("SHOESTRING_EMULATED_MIB").ok()?.parse().ok()
}

const UNPOISONED: &str = "nothing panics under this lock";

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes.max(1), 256).expect("a size that the system has given")
}

impl Emulated {
    pub(super) fn open(library: &Path) -> Result<Emulated, GpuError> {
        let failed = |e: libloading::Error| GpuError::Driver { call: "the emulator", reason: e.to_string() };
        // SAFETY: a library that the caller has made of our kernels and of nothing else.
        let library = unsafe { Library::new(library) }.map_err(failed)?;
        // SAFETY: the signature is the emulator's own.
        let emulate: Emulate = *unsafe { library.get(b"emulate_kernel") }.map_err(failed)?;
        // SAFETY: as above.
        let tell: Option<Tell> = unsafe { library.get(b"emulator_memory") }.ok().map(|symbol| *symbol);
        let info = DeviceInfo {
            name: "emulated GPU".into(),
            memory: mib_from_environment().unwrap_or(4 << 10) << 20,
            capability: (8, 0),
            multiprocessors: 4,
            clock_khz: 0,
            driver: (0, 0),
        };
        Ok(Emulated { info, emulate: Mutex::new(emulate), tell, sizes: Mutex::default(), _library: library })
    }

    fn tell(&self, ptr: u64, bytes: usize) {
        let Some(tell) = self.tell else { return };
        let _running = self.emulate.lock().expect(UNPOISONED);
        // SAFETY: the library only keeps books.
        unsafe { tell(ptr as usize, bytes) };
    }
}

impl Driver for Emulated {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn alloc(&self, bytes: usize) -> Result<u64, GpuError> {
        let held: usize = self.sizes.lock().expect(UNPOISONED).values().sum();
        if held + bytes > self.info.memory {
            return Err(GpuError::NoMemory);
        }
        // What is there from the start is NaN, so that it shows where it is read.
        // SAFETY: a layout of at least one byte.
        let ptr = unsafe { std::alloc::alloc(layout(bytes)) };
        if ptr.is_null() {
            return Err(GpuError::NoMemory);
        }
        // SAFETY: as many bytes were just given.
        unsafe { ptr.write_bytes(0xff, bytes) };
        let ptr = ptr as u64;
        self.sizes.lock().expect(UNPOISONED).insert(ptr, bytes);
        self.tell(ptr, bytes);
        Ok(ptr)
    }
    fn free(&self, ptr: u64) {
        let bytes = self.sizes.lock().expect(UNPOISONED).remove(&ptr);
        if let Some(bytes) = bytes {
            self.tell(ptr, 0);
            // SAFETY: made by `alloc` with this layout, and freed once.
            unsafe { std::alloc::dealloc(ptr as *mut u8, layout(bytes)) };
        }
    }
    fn pools(&self) -> bool {
        self.tell.is_none()
    }
    fn upload(&self, from: &[u8], to: u64) -> Result<(), GpuError> {
        // SAFETY: `to` has room (caller).
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }
    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), GpuError> {
        // SAFETY: `from` has as many bytes (caller).
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), GpuError> {
        // SAFETY: both have as many bytes (caller).
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }
    fn clear(&self, to: u64, bytes: usize) -> Result<(), GpuError> {
        // SAFETY: as many bytes are there (caller).
        unsafe { std::ptr::write_bytes(to as *mut u8, 0, bytes) };
        Ok(())
    }
    fn synchronize(&self) -> Result<(), GpuError> {
        Ok(())
    }
    fn launch(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        args: &[Arg],
    ) -> Result<(), GpuError> {
        let name = CString::new(kernel).expect("a kernel's name");
        let params: [*mut c_void; MAX_ARGS] = params(args);
        let emulate = self.emulate.lock().expect(UNPOISONED);
        let [x, y, z] = grid;
        // SAFETY: arguments as the kernel declares them (checked by `Gpu::launch`).
        let wrong = unsafe { emulate(name.as_ptr(), x, y, z, threads, shared, params.as_ptr()) };
        if wrong.is_null() {
            return Ok(());
        }
        // SAFETY: a string of the library, which nobody changes while `emulate` is locked.
        let reason = unsafe { CStr::from_ptr(wrong) }.to_string_lossy().into_owned();
        drop(emulate);
        assert!(
            self.tell.is_none(),
            "{kernel}, grid {grid:?} of {threads} threads, {shared} bytes of shared memory: {reason}"
        );
        Err(GpuError::Driver { call: kernel, reason })
    }
}
