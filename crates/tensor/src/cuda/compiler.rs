//! NVRTC, CUDA's compiler as a library: from the kernels' text to machine code, kept in the user's cache folder.

use super::error::GpuError;
use super::libraries::{candidates, files_like};
use super::sources;
use super::versions::CompilerInfo;
use ground::atomic;
use ground::seeds::{FNV, fnv};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

type Program = *mut std::ffi::c_void;
type Status = c_int;

/// The functions of NVRTC that are used.
pub(super) struct Compiler {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    info: CompilerInfo,
    _library: Library,
}

/// Machine code, and what the compiler says of it: registers, spills, shared memory.
pub(super) struct Compiled {
    pub(super) cubin: Vec<u8>,
    pub(super) log: String,
}

impl Compiler {
    /// The compiler, looked for once: where the loader looks, in the CUDA toolkit, in Python's environment.
    pub(super) fn get() -> Result<&'static Compiler, GpuError> {
        static COMPILER: OnceLock<Option<Compiler>> = OnceLock::new();
        COMPILER
            .get_or_init(|| {
                let files = candidates(&["cu13/lib", "cuda_nvrtc/lib"], "libnvrtc.so");
                files.into_iter().find_map(|path| Compiler::open(&path))
            })
            .as_ref()
            .ok_or(GpuError::NoCompiler)
    }

    fn open(path: &Path) -> Option<Compiler> {
        // NVRTC loads a library of built-in functions by its name, which the loader finds if it is loaded already.
        for builtins in path.parent().map(|dir| files_like(dir, "libnvrtc-builtins.so")).unwrap_or_default() {
            // SAFETY: NVIDIA's library; loading it runs no code of ours.
            if let Ok(library) = unsafe { Library::new(builtins) } {
                std::mem::forget(library);
            }
        }
        // SAFETY: as above; the signatures are those of NVRTC's header, unchanged since CUDA 11.
        unsafe {
            let library = Library::new(path).ok()?;
            Some(Compiler {
                info: info(&library)?,
                create: *library.get(b"nvrtcCreateProgram").ok()?,
                destroy: *library.get(b"nvrtcDestroyProgram").ok()?,
                compile: *library.get(b"nvrtcCompileProgram").ok()?,
                log_size: *library.get(b"nvrtcGetProgramLogSize").ok()?,
                log: *library.get(b"nvrtcGetProgramLog").ok()?,
                cubin_size: *library.get(b"nvrtcGetCUBINSize").ok()?,
                cubin: *library.get(b"nvrtcGetCUBIN").ok()?,
                _library: library,
            })
        }
    }

    /// What it is.
    pub(super) fn info(&self) -> &CompilerInfo {
        &self.info
    }
    /// Its version, as "13.0".
    pub(super) fn version(&self) -> String {
        self.info.name()
    }

    /// Compiles a file of [`sources::FILES`] for an architecture such as "sm_90".
    pub(super) fn compile(&self, file: usize, arch: &str) -> Result<Compiled, GpuError> {
        let text = CString::new(sources::text(file)).expect("sources hold no zero byte");
        let name = CString::new(format!("{}.cu", sources::FILES[file].0)).expect("nor do names");
        let options: Vec<CString> =
            options(arch).into_iter().map(|o| CString::new(o).expect("options hold no zero byte")).collect();
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        // SAFETY: strings outlive the program; buffers have the sizes that NVRTC asks for.
        unsafe {
            let mut program: Program = std::ptr::null_mut();
            (self.create)(&mut program, text.as_ptr(), name.as_ptr(), 0, std::ptr::null(), std::ptr::null());
            let status = (self.compile)(program, pointers.len() as c_int, pointers.as_ptr());
            let mut size = 0;
            (self.log_size)(program, &mut size);
            let mut log = vec![0u8; size.max(1)];
            (self.log)(program, log.as_mut_ptr().cast());
            let log = CStr::from_bytes_until_nul(&log)
                .map(|s| s.to_string_lossy().into_owned())
                .unwrap_or_default();
            let mut size = 0;
            let result = if status == 0 && (self.cubin_size)(program, &mut size) == 0 && size > 0 {
                let mut cubin = vec![0u8; size];
                (self.cubin)(program, cubin.as_mut_ptr().cast());
                Ok(Compiled { cubin, log })
            } else {
                let file = format!("{}.cu", sources::FILES[file].0);
                Err(GpuError::Compiler { version: self.version(), file, arch: arch.to_owned(), log })
            };
            (self.destroy)(&mut program);
            result
        }
    }
}

/// A compiler's version and architectures.
///
/// # Safety
/// The library is NVRTC.
unsafe fn info(library: &Library) -> Option<CompilerInfo> {
    type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status;
    type Integers = unsafe extern "C" fn(*mut c_int) -> Status;
    // SAFETY: the signatures are those of NVRTC's header (caller); all places are writable, and the list is as long as it is said
    // to be. The last two functions are there since CUDA 11.2.
    unsafe {
        let (mut major, mut minor) = (0, 0);
        library.get::<Version>(b"nvrtcVersion").ok()?(&mut major, &mut minor);
        let mut architectures = Vec::new();
        if let (Ok(count), Ok(list)) = (
            library.get::<Integers>(b"nvrtcGetNumSupportedArchs"),
            library.get::<Integers>(b"nvrtcGetSupportedArchs"),
        ) {
            let mut known = 0;
            count(&mut known);
            architectures = vec![0; usize::try_from(known).ok()?];
            list(architectures.as_mut_ptr());
        }
        let architectures = architectures.into_iter().filter_map(|a| u32::try_from(a).ok()).collect();
        Some(CompilerInfo { version: (major, minor), architectures })
    }
}

fn options(arch: &str) -> Vec<String> {
    vec![
        format!("--gpu-architecture={arch}"),
        "--std=c++17".into(),
        "--fmad=false".into(),
        // Lambdas of kernels are device code; without this, versions before 13.1 take them for the host's.
        "--device-as-default-execution-space".into(),
        "--ptxas-options=-v".into(),
    ]
}

/// Machine code of every file, from the cache or compiled, several at once, and put there. `announce` is called before
/// anything has to be compiled: it takes a while.
pub(super) fn cubins(
    compiler: &Compiler,
    arch: &str,
    announce: impl FnOnce(),
) -> Result<Vec<Vec<u8>>, GpuError> {
    let mut found: Vec<Option<Vec<u8>>> =
        (0..sources::FILES.len()).map(|f| cached(compiler, f, arch)).collect();
    let missing: Vec<usize> = (0..found.len()).filter(|&f| found[f].is_none()).collect();
    if missing.is_empty() {
        return Ok(found.into_iter().flatten().collect());
    }
    announce();
    let made = each(&missing, |file| compile_and_keep(compiler, file, arch))?;
    missing.into_iter().zip(made).for_each(|(file, cubin)| found[file] = Some(cubin));
    Ok(found.into_iter().flatten().collect())
}

/// Does something with every file, several at once; results are in the files' order.
pub(super) fn each<T: Send>(
    files: &[usize],
    work: impl Fn(usize) -> Result<T, GpuError> + Sync,
) -> Result<Vec<T>, GpuError> {
    let next = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get()).min(files.len());
    let some = || {
        let mut made = Vec::new();
        loop {
            let place = next.fetch_add(1, Relaxed);
            let Some(&file) = files.get(place) else { return Ok(made) };
            made.push((place, work(file)?));
        }
    };
    let mut made = std::thread::scope(|scope| -> Result<Vec<(usize, T)>, GpuError> {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(some)).collect();
        let made = threads.into_iter().map(|t| t.join().expect("the compiler does not panic"));
        Ok(made.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    })?;
    made.sort_by_key(|(place, _)| *place);
    Ok(made.into_iter().map(|(_, result)| result).collect())
}

/// A hash of all that a file's machine code is made of.
pub(super) fn hash(compiler: &Compiler, file: usize, arch: &str) -> u64 {
    let made_of = format!("{} {:?} {}", compiler.version(), options(arch), sources::text(file));
    fnv(FNV, made_of.as_bytes())
}

/// Where a file's machine code is kept.
fn place(compiler: &Compiler, file: usize, arch: &str) -> Option<PathBuf> {
    let key = hash(compiler, file, arch);
    Some(cache()?.join(format!("{}-{arch}-{key:016x}.cubin", sources::FILES[file].0)))
}

/// What is kept is machine code and its hash behind it: the driver reads the code without being told its length.
fn cached(compiler: &Compiler, file: usize, arch: &str) -> Option<Vec<u8>> {
    let mut kept = std::fs::read(place(compiler, file, arch)?).ok()?;
    let hash = kept.split_off(kept.len().checked_sub(size_of::<u64>())?);
    (!kept.is_empty() && hash == fnv(FNV, &kept).to_le_bytes()).then_some(kept)
}

/// Compiles a file and puts the result into the cache. A cache that cannot be written is done without.
fn compile_and_keep(compiler: &Compiler, file: usize, arch: &str) -> Result<Vec<u8>, GpuError> {
    let cubin = compiler.compile(file, arch)?.cubin;
    if let Some(place) = place(compiler, file, arch) {
        // Several processes may compile at once: each writes its own file, and the last one stays.
        let own = place.with_extension(std::process::id().to_string());
        let _ = std::fs::create_dir_all(place.parent().expect("a file in the cache folder"))
            .and_then(|()| atomic::replace(&own, &[&cubin[..], &fnv(FNV, &cubin).to_le_bytes()].concat()))
            .and_then(|()| std::fs::rename(&own, &place));
    }
    Ok(cubin)
}

fn cache() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = of("XDG_CACHE_HOME").or_else(|| of("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("shoestring").join("kernels"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nvrtc_tells_its_version_and_architectures() {
        let Ok(compiler) = Compiler::get() else { return };
        let info = compiler.info();
        assert!(info.version.0 >= 11, "{info:?}");
        for known in [80, 90] {
            assert!(info.architectures.contains(&known), "{info:?}");
        }
    }
}
