//! Every kernel compiles for every architecture, and takes no more registers and spills no more than it did. What it
//! took is in `kernels.tsv`, with a hash of the sources: where it is theirs, one architecture is compiled for, else all.
//! `SHOESTRING_WRITE_KERNEL_TABLE=1` writes that file anew. No GPU is needed, but NVRTC is:
//! without it the test passes with a note, unless `SHOESTRING_REQUIRE_NVRTC` is set.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use tensor::{Gpu, GpuError};

/// Ampere, Ada, Hopper, and the Blackwells of servers and of workstations.
const ARCHITECTURES: [&str; 5] = ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"];

/// The one that is compiled for where the table is of these very sources.
const ALWAYS: &str = "sm_90";

/// Registers that a kernel may take beyond the table: fewer are the compiler's whim.
const REGISTERS_OF_GRACE: u32 = 8;

const REWRITE: &str =
    "SHOESTRING_WRITE_KERNEL_TABLE=1 cargo test --release -p shoestring-tensor --test kernels";

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Use {
    registers: u32,
    /// Bytes of spill stores, those of functions that are not inlined included.
    spilled: u32,
}

/// What kernels take, by name and architecture.
type Table = BTreeMap<(String, String), Use>;

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|v| !v.is_empty())
}

/// A line on stderr, shown for tests that pass as well.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The number before a word: 88 of "88 bytes stack frame, 96 bytes spill stores" before " bytes spill stores".
fn number_before(line: &str, word: &str) -> Option<u32> {
    let before = &line[..line.find(word)?];
    before.split(|c: char| !c.is_ascii_digit()).next_back()?.parse().ok()
}

/// Reads the report of `ptxas -v`.
fn read_report(report: &str, table: &mut Table) {
    let mut entry = None;
    for line in report.lines().filter(|l| l.starts_with("ptxas")) {
        if line.contains("Compiling entry function") {
            let mut quoted = line.split('\'').skip(1).step_by(2).map(str::to_owned);
            let key = (quoted.next().expect("a kernel"), quoted.next().expect("an architecture"));
            entry = Some(table.entry(key).or_default());
        } else if let Some(entry) = &mut entry {
            entry.spilled += number_before(line, " bytes spill stores").unwrap_or(0);
            entry.registers = number_before(line, " registers").unwrap_or(entry.registers);
        }
    }
}

/// What all kernels take on some architectures.
fn compiled(architectures: &[&str]) -> Table {
    let mut table = Table::new();
    for arch in architectures {
        let reports = Gpu::compile_all(arch).unwrap_or_else(|e| panic!("{e}"));
        reports.iter().for_each(|(_, report)| read_report(report, &mut table));
    }
    table
}

/// The table's first line: what it was made with, and of.
fn heading(version: &str) -> String {
    let hashes = ARCHITECTURES.map(|arch| Gpu::hash_of_sources(arch).expect("the compiler is there"));
    format!("# NVRTC {version}, sources {:016x}", hashes.iter().fold(0, |all, hash| all ^ hash))
}

fn write_table(path: &Path, heading: &str, table: &Table) {
    let mut text = format!("{heading}\nkernel\tarchitecture\tregisters\tspilled_bytes\n");
    for ((kernel, arch), used) in table {
        text.push_str(&format!("{kernel}\t{arch}\t{}\t{}\n", used.registers, used.spilled));
    }
    std::fs::write(path, text).expect("a writable checkout");
}

fn parse_table(text: &str) -> Table {
    let rows = text.lines().skip(2).map(|line| {
        let cells: Vec<&str> = line.split('\t').collect();
        let [kernel, arch, registers, spilled] = cells[..] else { panic!("four cells, not {line:?}") };
        let number = |cell: &str| cell.parse().unwrap_or_else(|_| panic!("no number: {cell:?} of {line:?}"));
        ((kernel.into(), arch.into()), Use { registers: number(registers), spilled: number(spilled) })
    });
    rows.collect()
}

/// What is wrong with `now`, given what kernels took.
fn complaints(before: &Table, now: &Table) -> Vec<String> {
    let mut all = Vec::new();
    for ((kernel, arch), used) in now {
        match before.get(&(kernel.clone(), arch.clone())) {
            None => all.push(format!("{kernel} for {arch} is not in the table")),
            Some(was) => {
                if used.spilled > was.spilled {
                    all.push(format!(
                        "{kernel} for {arch} spills {} bytes, before {}",
                        used.spilled, was.spilled
                    ));
                }
                if used.registers > was.registers + REGISTERS_OF_GRACE {
                    let (now, before) = (used.registers, was.registers);
                    all.push(format!("{kernel} for {arch} takes {now} registers, before {before}"));
                }
            }
        }
    }
    let gone = before.keys().filter(|key| !now.contains_key(key));
    all.extend(gone.map(|(kernel, arch)| format!("{kernel} for {arch} is in the table, but is no kernel")));
    all
}

#[test]
fn kernels_compile_and_take_no_more_than_before() {
    let version = match Gpu::compiler() {
        Ok(version) => version,
        Err(e @ GpuError::NoCompiler) if !is_set("SHOESTRING_REQUIRE_NVRTC") => {
            return note(&format!("the kernels are not compiled: {e}"));
        }
        Err(e) => panic!("{e}"),
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels.tsv");
    let heading = heading(&version);
    if is_set("SHOESTRING_WRITE_KERNEL_TABLE") {
        let now = compiled(&ARCHITECTURES);
        write_table(&path, &heading, &now);
        return note(&format!("{} has {} rows of NVRTC {version}", path.display(), now.len()));
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let head = text.lines().next().unwrap_or_default();
    // What these sources take elsewhere was written down when the table was made.
    let architectures: &[&str] = if head == heading { &[ALWAYS] } else { &ARCHITECTURES };
    let now = compiled(architectures);
    if !head.starts_with(&format!("# NVRTC {version},")) {
        let of = head.trim_start_matches("# ");
        return note(&format!(
            "the kernels compile with NVRTC {version}; what they take is known of {of} alone"
        ));
    }
    let mut before = parse_table(&text);
    before.retain(|(_, arch), _| architectures.contains(&arch.as_str()));
    let complaints = complaints(&before, &now);
    assert!(complaints.is_empty(), "{}\nIf it must be so:\n    {REWRITE}", complaints.join("\n"));
}

#[test]
fn a_kernel_that_spills_more_or_takes_many_more_registers_is_reported() {
    let report = |registers, spilled| {
        let mut table = Table::new();
        let text = format!(
            "gemm.cu(1): warning: 3 registers\n\
             ptxas info    : 28 bytes gmem\n\
             ptxas info    : Compiling entry function 'gemm_a' for 'sm_90'\n\
             ptxas info    : Function properties for gemm_a\n\
             ptxas         .     88 bytes stack frame, {spilled} bytes spill stores, 96 bytes spill loads\n\
             ptxas info    : Used {registers} registers, used 1 barriers, 64 bytes smem\n"
        );
        read_report(&text, &mut table);
        table
    };
    let before = report(100, 16);
    assert_eq!(before[&("gemm_a".into(), "sm_90".into())], Use { registers: 100, spilled: 16 });
    assert!(complaints(&before, &report(108, 0)).is_empty());
    assert_eq!(complaints(&before, &report(109, 16)).len(), 1);
    assert_eq!(complaints(&before, &report(90, 20)).len(), 1);
    assert_eq!(complaints(&before, &Table::new()).len(), 1);
    assert_eq!(complaints(&Table::new(), &before).len(), 1);
}
