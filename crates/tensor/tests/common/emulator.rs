//! A GPU for machines without one: all kernels compiled as C++ and run on the processor. Where `SHOESTRING_TEST_GPU` is
//! set, the first GPU of the machine takes its place.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use tensor::Gpu;

/// Whether the tests run on a GPU and not in the emulator.
pub fn on_a_card() -> bool {
    std::env::var_os("SHOESTRING_TEST_GPU").is_some_and(|v| !v.is_empty())
}

/// The emulated GPU, made once for the whole test binary; none where no C++ compiler is found.
pub fn gpu() -> Option<Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| {
        if on_a_card() {
            return Some(Gpu::open(0).unwrap_or_else(|e| panic!("SHOESTRING_TEST_GPU is set: {e}")));
        }
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let (source, library) = (dir.join("kernels.cpp"), dir.join("libkernels.so"));
        let text = Gpu::emulator_source();
        if std::fs::read_to_string(&source).ok().as_ref() != Some(&text) || !library.exists() {
            let temporary = dir.join(format!("libkernels.{}.so", std::process::id()));
            std::fs::write(&source, &text).expect("a writable target folder");
            let mut compiler = Command::new("c++");
            compiler.args(["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-w", "-o"]);
            compiler.arg(&temporary).arg(&source);
            if cfg!(target_arch = "x86_64") {
                compiler.args(["-mavx2", "-mfma"]);
            }
            let Ok(status) = compiler.status() else {
                eprintln!("no C++ compiler: the kernels are not tested");
                return None;
            };
            assert!(status.success(), "the kernels do not compile as C++");
            std::fs::rename(&temporary, &library).expect("a writable target folder");
        }
        Some(Gpu::emulated(&library).expect("a library just made"))
    })
    .clone()
}
