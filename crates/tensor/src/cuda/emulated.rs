//! The kernels compiled as C++ and run on the processor (`emulator.h`), so that machines without a GPU can test them.

use super::driver::{Driver, MAX_ARGS, params};
use super::error::GpuError;
use super::gpu::{Arg, DeviceInfo};
use libloading::Library;
use std::alloc::Layout;
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::sync::Mutex;

type Emulate =
    unsafe extern "C" fn(*const c_char, c_uint, c_uint, c_uint, c_uint, *const *mut c_void) -> c_int;

/// A library that holds all kernels and `emulate`, which runs one. Memory of the device is memory of the host.
pub(super) struct Emulated {
    info: DeviceInfo,
    /// One kernel at a time: the emulator has one set of fibers.
    emulate: Mutex<Emulate>,
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
        let emulate: Emulate = *unsafe { library.get(b"emulate") }.map_err(failed)?;
        let info = DeviceInfo {
            name: "emulated GPU".into(),
            memory: mib_from_environment().unwrap_or(4 << 10) << 20,
            capability: (8, 0),
            multiprocessors: 4,
            clock_khz: 0,
            driver: (0, 0),
        };
        Ok(Emulated { info, emulate: Mutex::new(emulate), sizes: Mutex::default(), _library: library })
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
        Ok(ptr)
    }
    fn free(&self, ptr: u64) {
        if let Some(bytes) = self.sizes.lock().expect(UNPOISONED).remove(&ptr) {
            // SAFETY: made by `alloc` with this layout, and freed once.
            unsafe { std::alloc::dealloc(ptr as *mut u8, layout(bytes)) };
        }
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
        _shared: u32,
        args: &[Arg],
    ) -> Result<(), GpuError> {
        let name = CString::new(kernel).expect("a kernel's name");
        let params: [*mut c_void; MAX_ARGS] = params(args);
        let emulate = self.emulate.lock().expect(UNPOISONED);
        // SAFETY: arguments as the kernel declares them (checked by `Gpu::launch`).
        let status = unsafe { emulate(name.as_ptr(), grid[0], grid[1], grid[2], threads, params.as_ptr()) };
        if status == 0 {
            Ok(())
        } else {
            Err(GpuError::Driver { call: kernel, reason: "the emulator does not have it".into() })
        }
    }
}
