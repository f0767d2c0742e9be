//! Files of strangers, mutated: every parser answers each of them with a result or an error, without a panic, in less than a
//! second, and with no more memory than twice the file and 64 MiB.
//!
//! Deterministic: run `n` of a target is a function of `n`, of the seeds and of what earlier runs answered. Seeds are the files
//! of `tests/fuzz/<target>/` at the root, and those that the target names. An answer of a new kind makes its input a seed too, so that the search goes on from
//! what got furthest. `SHOESTRING_FUZZ=1000000` sets the number of runs, `SHOESTRING_FUZZ_TARGET=recipe` picks one target;
//! with `SHOESTRING_FUZZ_KEEP=folder` the last input lies there, for a process that ends.

mod archive;
mod mutate;
mod targets;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use tensor::Rng;

use targets::{Case, TARGETS, Target};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Runs of a target, where the environment says nothing.
const USUAL_RUNS: u64 = 10_000;
/// The longest time of one input, and what an input may take in memory beside twice its size.
const LONGEST: Duration = Duration::from_secs(1);
const SPARE: usize = 64 << 20;
/// Inputs longer than this are cut.
const MAX_LEN: usize = 1 << 15;
/// Seeds that answers of new kinds may add.
const MAX_FOUND: usize = 2000;

/// Memory is counted for the whole process, so one target runs at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let own = std::fs::read_dir(root.join("tests/fuzz").join(target.name));
    let own = own.into_iter().flatten().map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<PathBuf> = own.chain(target.more.iter().map(|file| root.join(file))).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has seeds", target.name);
    paths.iter().map(|p| std::fs::read(p).expect("a seed")).collect()
}

/// What an answer says, without its numbers and quoted parts: two answers that differ in those alone are of one kind.
fn kind(answer: &str) -> String {
    let mut out = String::new();
    let mut quoted = false;
    for c in answer.chars().take(300) {
        if c == '"' || c == '`' {
            quoted = !quoted;
        } else if !quoted && !c.is_ascii_digit() {
            out.push(c);
        }
    }
    out
}

/// One input's answer, and what it took.
struct Took {
    answer: Result<String, String>,
    time: Duration,
    memory: usize,
}

fn run(case: &Case, input: &[u8]) -> Took {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let start = Instant::now();
    let answer = catch_unwind(AssertUnwindSafe(|| case.run(input)));
    let time = start.elapsed();
    let memory = MEMORY.peak_usage().saturating_sub(before);
    let words = |panic: Box<dyn std::any::Any + Send>| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
    };
    Took { answer: answer.map_err(words), time, memory }
}

/// How long this thread has worked so far, where the system says so.
fn worked() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}

/// What is wrong with an answer, if anything is.
fn fault(case: &Case, input: &[u8]) -> Result<String, String> {
    let mut took = run(case, input);
    if took.time > LONGEST {
        // A busy machine may have kept it waiting: the time that it worked is what counts.
        let before = worked();
        let again = run(case, input).time;
        took.time = before.zip(worked()).map_or(again, |(before, after)| after.saturating_sub(before));
    }
    let answer = took.answer.map_err(|panic| format!("it panicked: {panic}"))?;
    if took.time > LONGEST {
        return Err(format!("it took {:.1} s", took.time.as_secs_f64()));
    }
    if took.memory > 2 * input.len() + SPARE {
        return Err(format!("it took {} MiB of memory", took.memory >> 20));
    }
    Ok(answer)
}

fn fuzz(name: &str) {
    let _alone = ONE_AT_A_TIME.lock();
    let var = |key: &str| std::env::var(key).ok();
    let runs = var("SHOESTRING_FUZZ").map_or(USUAL_RUNS, |n| n.parse().expect("SHOESTRING_FUZZ is a number"));
    if var("SHOESTRING_FUZZ_TARGET").is_some_and(|wanted| wanted != name) {
        return;
    }
    let keep = var("SHOESTRING_FUZZ_KEEP").map(|dir| Path::new(&dir).join(name));
    // What our guards catch of the libraries below would be printed each time.
    std::panic::set_hook(Box::new(|_| ()));
    let target = TARGETS.iter().find(|t| t.name == name).expect("a target");
    let case = Case::new(target);
    let mut seeds = seeds(target);
    let (mut kinds, mut longest, mut most, mut found) = (HashSet::new(), Duration::ZERO, 0, 0);
    let first = seeds.len() as u64;
    for n in 0..runs.max(first) {
        let input = if n < first {
            seeds[n as usize].clone()
        } else {
            let mut rng = Rng::at(n, &[u64::from(name.len() as u32)]);
            mutate::mutated(&seeds, target.words, MAX_LEN, &mut rng)
        };
        if let Some(path) = &keep {
            std::fs::write(path, &input).expect("kept");
        }
        let start = Instant::now();
        match fault(&case, &input) {
            Ok(answer) => {
                if kinds.insert(kind(&answer)) && n >= first && found < MAX_FOUND {
                    found += 1;
                    seeds.push(input);
                }
            }
            Err(what) => {
                let path = std::env::temp_dir().join(format!("fuzz-{name}-{n}"));
                std::fs::write(&path, &input).expect("written");
                let _ = std::panic::take_hook();
                panic!("{name}, run {n}: {what}; the input is {}", path.display());
            }
        }
        longest = longest.max(start.elapsed());
        most = most.max(MEMORY.peak_usage());
    }
    let _ = std::panic::take_hook();
    println!(
        "{name}: {runs} runs, {} kinds of answers, the longest {:.0} ms, at most {} MiB in all",
        kinds.len(),
        1e3 * longest.as_secs_f64(),
        most >> 20
    );
}

macro_rules! targets {
    ($($name:ident),*) => {
        $(#[test]
        fn $name() {
            fuzz(stringify!($name));
        })*

        #[test]
        fn every_target_has_a_test() {
            assert_eq!(TARGETS.each_ref().map(|t| t.name), [$(stringify!($name)),*]);
        }
    };
}
targets!(
    tokenizer,
    template,
    conversations,
    parquet,
    workbook,
    corpus,
    shards,
    safetensors,
    gguf,
    config,
    generation_config,
    recipe,
    checkpoint,
    problems,
    answers,
    patterns
);
