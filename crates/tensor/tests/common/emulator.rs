//! A GPU for machines without one: all kernels compiled as C++ and run on the processor. Where `SHOESTRING_TEST_GPU` is
//! set, the first GPU of the machine takes its place. (The tests of the commands use this file too.)
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tensor::Gpu;

/// Whether the tests run on a GPU and not in the emulator.
pub fn on_a_card() -> bool {
    std::env::var_os("SHOESTRING_TEST_GPU").is_some_and(|v| !v.is_empty())
}

/// Whether sizes may be large: on a card, unless `SHOESTRING_TEST_SMALL` is set, for tools that slow everything down.
pub fn large_sizes() -> bool {
    on_a_card() && std::env::var_os("SHOESTRING_TEST_SMALL").is_none_or(|v| v.is_empty())
}

/// The GPU to test, opened once for the whole test binary; none where no C++ compiler is found.
pub fn gpu() -> Option<Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| {
        if on_a_card() {
            let gpu = Gpu::open(0, || eprintln!("compiling the kernels"));
            return Some(gpu.unwrap_or_else(|e| panic!("SHOESTRING_TEST_GPU is set: {e}")));
        }
        Some(Gpu::emulated(&library()?).expect("a library just made"))
    })
    .clone()
}

/// The library that holds the kernels for this processor; none where no C++ compiler is found.
pub fn library() -> Option<PathBuf> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY.get_or_init(compile).clone()
}

/// Whether every access of the kernels is checked (`tensor/src/cuda/emulator_checks.h`), which makes them twenty times as slow.
fn checked() -> bool {
    std::env::var_os("SHOESTRING_TEST_CHECKED").is_some_and(|v| !v.is_empty())
}

fn compile() -> Option<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(if checked() { "checked" } else { "" });
    std::fs::create_dir_all(&dir).expect("a writable target folder");
    let (source, library) = (dir.join("kernels.cpp"), dir.join("libkernels.so"));
    let text = Gpu::emulator_source();
    if std::fs::read_to_string(&source).ok().as_ref() == Some(&text) && library.exists() {
        return Some(library);
    }
    // Several test binaries may do this at once: each makes its own, and the last one stays.
    let own = |name: &str| dir.join(format!("{}-{name}", std::process::id()));
    std::fs::write(own("kernels.cpp"), &text).expect("a writable target folder");
    let compiled = compiler(&own("kernels.cpp"), &own("kernels.o"), checked())?;
    assert!(compiled, "the kernels do not compile as C++");
    let linked =
        Command::new("c++").arg("-shared").arg("-o").arg(own("libkernels.so")).arg(own("kernels.o")).status();
    assert!(linked.is_ok_and(|s| s.success()), "the kernels do not link");
    std::fs::remove_file(own("kernels.o")).expect("just written");
    for (name, to) in [("libkernels.so", &library), ("kernels.cpp", &source)] {
        std::fs::rename(own(name), to).expect("a writable target folder");
    }
    Some(library)
}

/// Compiles what runs in the emulator, and says whether it compiles; none where no C++ compiler is found.
pub fn compiler(source: &Path, object: &Path, checked: bool) -> Option<bool> {
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-ffp-contract=off", "-fPIC", "-w", "-c", "-o"]).args([object, source]);
    if cfg!(target_arch = "x86_64") {
        compiler.args(["-mavx2", "-mfma"]);
    }
    if checked {
        // What the compiler then calls at every access is ours, so nothing is linked for it.
        compiler.args(["-O1", "-g1", "-DCHECKED", "-fsanitize=thread", "-fsanitize=alignment"]);
    } else {
        compiler.arg("-O2");
    }
    match compiler.status() {
        Ok(status) => Some(status.success()),
        Err(_) => {
            eprintln!("no C++ compiler: the kernels are not tested");
            None
        }
    }
}
