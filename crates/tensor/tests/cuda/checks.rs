//! The checks of the emulator (`src/cuda/emulator_checks.h`) find what they are there to find, and nothing else: small kernels, each
//! with one fault or with none.

use super::common::emulator;
use std::path::Path;
use std::process::Command;
use tensor::Gpu;

/// Each kernel's name, what is said of it (nothing if it is right), and its body. All have 64 threads, two blocks, `float* x` of 64
/// values, and 256 bytes of shared memory.
const KERNELS: &[(&str, &str, &str)] = &[
    ("shared_after_a_barrier", "", "s[t] = x[t]; __syncthreads(); y = s[t ^ 63];"),
    ("shared_without_a_barrier", "reads what another thread writes", "s[t] = x[t]; y = s[t ^ 63];"),
    (
        "an_array_without_a_barrier",
        "reads what another thread writes",
        "__shared__ float a[64]; a[t] = x[t]; y = a[t ^ 63];",
    ),
    (
        "one_barrier_too_few",
        "writes what another thread reads",
        "s[t] = 1; __syncthreads(); y = s[t ^ 63]; s[t] = 2;",
    ),
    ("all_write_one_value", "writes what another thread writes", "s[0] = t;"),
    ("lanes_after_syncwarp", "", "s[t] = x[t]; __syncwarp(); y = s[t ^ 1];"),
    (
        "lanes_after_a_shuffle",
        "reads what another thread writes",
        "s[t] = x[t]; y = __shfl_sync(FULL_WARP, y, 0); y = s[t ^ 1];",
    ),
    ("warps_after_syncwarp", "reads what another thread writes", "s[t] = x[t]; __syncwarp(); y = s[t ^ 32];"),
    ("blocks_write_one_place", "writes what another block writes", "if (t == 0) x[0] = 1;"),
    (
        "a_block_reads_what_others_write",
        "reads what another block writes",
        "if (t == 0 && blockIdx.x == 0) x[1] = 1; if (t == 1) y = x[1];",
    ),
    ("behind_the_end", "reads outside of all memory", "y = x[t + 1];"),
    ("over_the_end", "goes beyond the memory", "if (t == 0) emulator::start_copy(s, x + 62, 16, 0);"),
    ("more_shared_than_asked_for", "goes beyond the shared memory", "s[t + 1] = 0;"),
    (
        "unaligned",
        "multiple of its size",
        "if (t == 0) { Float4 v = *(Float4*)(x + 1); y = v.v[0] + v.v[3]; }",
    ),
    ("unaligned_copy", "multiple of its size", "if (t == 0) emulator::start_copy(s, x + 2, 16, 0);"),
    ("half_a_warp", "not all lanes", "if (t < 16) y = __shfl_sync(FULL_WARP, y, 0);"),
    ("atomics", "", "atomicAdd((int*)s, 1);"),
    (
        "copies_that_nobody_waited_for",
        "writes what another thread reads",
        "emulator::start_copy(s + t, x + t, 4, 0); emulator::close_copies(); __syncthreads(); y = s[t ^ 63]; emulator::wait_for_all_but(0);",
    ),
];

fn program() -> String {
    let all = Gpu::emulator_source();
    let mut text = all.split("#line 1 \"").next().expect("the emulator is in front").to_owned();
    text.push_str("static volatile float seen;\n");
    for (name, _, body) in KERNELS {
        text.push_str(&format!(
            "KERNEL({name})(float* x) {{ DYNAMIC_SHARED(float, s); int t = threadIdx.x; float y = 0; {body} seen = y; }}\n"
        ));
    }
    text.push_str("int main() {\n    float* x = new float[1 << 20] + 1024;\n    void* args[] = {&x};\n");
    text.push_str("    emulator_memory((size_t)x, 256);\n");
    for (name, ..) in KERNELS {
        text.push_str(&format!(
            "    checks::begin_launch(256); emulator::start({name}, Dim3{{2, 1, 1}}, 64, args);\n    \
             printf(\"== {name} %s\\n\", checks::verdict() ? checks::verdict() : \"\");\n"
        ));
    }
    text.push_str("}\n");
    text
}

#[test]
fn faults_are_found_and_nothing_else() {
    if emulator::on_a_card() {
        return;
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("checks-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a writable target folder");
    let [source, object, binary] = ["checks.cpp", "checks.o", "checks"].map(|name| dir.join(name));
    std::fs::write(&source, program()).expect("written");
    let Some(compiled) = emulator::compiler(&source, &object, true) else { return };
    assert!(compiled, "the checks do not compile");
    let linked =
        Command::new("c++").arg("-o").args([&binary, &object]).status().expect("the compiler is there");
    assert!(linked.success());
    let output = Command::new(&binary).output().expect("it runs");
    let said = String::from_utf8(output.stdout).expect("text");
    let verdicts: Vec<&str> = said.split("== ").skip(1).collect();
    assert_eq!(verdicts.len(), KERNELS.len(), "{said}");
    for ((name, expected, _), verdict) in KERNELS.iter().zip(verdicts) {
        let verdict = verdict.strip_prefix(*name).expect("in this order").trim();
        assert_eq!(verdict.is_empty(), expected.is_empty(), "{name}: {verdict}");
        assert!(verdict.contains(expected), "{name}: {verdict}");
    }
    std::fs::remove_dir_all(&dir).expect("made above");
}
