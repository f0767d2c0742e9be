//! A GPU for machines without one: all kernels compiled as C++ and run on the processor. Where `SHOESTRING_TEST_GPU` is
//! set, the first GPU of the machine takes its place. (The tests of the commands use this file too.)
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::PathBuf;
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

fn compile() -> Option<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (source, library) = (dir.join("kernels.cpp"), dir.join("libkernels.so"));
    let text = Gpu::emulator_source();
    if std::fs::read_to_string(&source).ok().as_ref() == Some(&text) && library.exists() {
        return Some(library);
    }
    // Several test binaries may do this at once: each makes its own, and the last one stays.
    let own = |name: &str| dir.join(format!("{}-{name}", std::process::id()));
    std::fs::write(own("kernels.cpp"), &text).expect("a writable target folder");
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-w", "-o"]);
    compiler.arg(own("libkernels.so")).arg(own("kernels.cpp"));
    if cfg!(target_arch = "x86_64") {
        compiler.args(["-mavx2", "-mfma"]);
    }
    let Ok(status) = compiler.status() else {
        eprintln!("no C++ compiler: the kernels are not tested");
        return None;
    };
    assert!(status.success(), "the kernels do not compile as C++");
    for (name, to) in [("libkernels.so", &library), ("kernels.cpp", &source)] {
        std::fs::rename(own(name), to).expect("a writable target folder");
    }
    Some(library)
}
