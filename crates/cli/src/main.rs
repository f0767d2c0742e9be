//! The `shoestring` binary.

mod commands;
mod device;
mod live;
mod model_files;
mod output;
mod paths;
mod progress;
mod ranks;

use std::ffi::OsString;
use std::panic::AssertUnwindSafe;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use tensor::GpuError;

/// Reasoning models on a shoestring.
#[derive(Parser)]
#[command(name = "shoestring", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Threads to use (default: all cores).
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Where to compute: cpu, cuda, cuda:N (the GPU of that number) or auto (a GPU if one can be used).
    #[arg(long, global = true, value_name = "DEVICE", default_value = "auto")]
    device: device::Device,
    /// How a GPU computes (default: exact below 100 M parameters, fast from there on).
    #[arg(long, global = true, value_name = "MATH")]
    math: Option<device::MathArg>,
}

#[derive(Subcommand)]
enum Command {
    /// Train, evaluate and report: from nothing to a small model that reasons.
    Launch(commands::run::Launch),
    /// Run a recipe.
    Run(commands::run::Run),
    /// Teach a model to answer a table of questions: a better model, with the gain measured.
    Teach(commands::teach::Teach),
    /// Talk with a model.
    Chat(commands::chat::Chat),
    /// Serve models over HTTP, with a page to chat on.
    Serve(commands::serve::Serve),
    /// A page to talk to what was trained, to teach, and to watch runs.
    Studio(commands::serve::Studio),
    /// Continue prompts: text, token ids, log-probabilities.
    Generate(commands::generate::Generate),
    /// Log-probabilities of given tokens or text.
    Score(commands::score::Score),
    /// How many problems a model solves.
    Eval(commands::eval::Eval),
    /// Parameters, FLOPs and cache of a model, counted.
    Inspect(commands::inspect::Inspect),
    /// Write a model in another format: GGUF for llama.cpp, or a folder for transformers.
    Convert(commands::convert::Convert),
    /// What this machine can compute on, and what is missing for a GPU.
    Devices(commands::devices::Devices),
    /// Measure how fast this machine runs the engine.
    #[command(subcommand)]
    Bench(commands::bench::Bench),
}

/// The arguments; `help --help` asks for what `help` gives.
fn arguments() -> Vec<OsString> {
    let mut given: Vec<OsString> = std::env::args_os().collect();
    if given.get(1).is_some_and(|first| first == "help") {
        given.retain(|argument| argument != "--help" && argument != "-h");
    }
    given
}

fn main() {
    let cli = Cli::parse_from(arguments());
    if let Some(n) = cli.threads {
        tensor::threads::set_threads(n.into());
    } else if let Some(n) = ranks::threads() {
        tensor::threads::set_threads(n);
    }
    if let Err(refusal) = tensor::cpu::simd::wanted() {
        output::tell(&format!("error: {refusal}"));
        std::process::exit(2);
    }
    let result = guarded(move || perform(cli));
    if let Err(e) = result {
        output::tell(&format!("error: {}", output::sentence(&e)));
        std::process::exit(2);
    }
}

/// Runs `f`; a GPU that fails in the midst of an op, for lack of memory say, ends it with an error as anything else does.
fn guarded(f: impl FnOnce() -> Result<()>) -> Result<()> {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload().is::<GpuError>() {
            usual(info);
        }
    }));
    match std::panic::catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result,
        Err(payload) => match payload.downcast::<GpuError>() {
            Ok(error) => Err((*error).into()),
            Err(other) => std::panic::resume_unwind(other),
        },
    }
}

/// The options that all commands take, as they were given.
fn everywhere(cli: &Cli) -> Vec<OsString> {
    let mut options = vec![format!("--device={}", cli.device).into()];
    options.extend(cli.threads.map(|n| format!("--threads={n}").into()));
    let math = cli.math.and_then(|m| m.to_possible_value());
    options.extend(math.map(|m| format!("--math={}", m.get_name()).into()));
    options
}

fn perform(cli: Cli) -> Result<()> {
    if !matches!(cli.command, Command::Inspect(_) | Command::Devices(_)) {
        cli.device.set(cli.math.map(Into::into))?;
    }
    let everywhere = everywhere(&cli);
    match cli.command {
        Command::Launch(a) => commands::run::launch(&a),
        Command::Run(a) => commands::run::run(&a),
        Command::Teach(a) => commands::teach::run(&a),
        Command::Chat(a) => commands::chat::run(&a),
        Command::Serve(a) => commands::serve::run(&a),
        Command::Studio(a) => commands::serve::studio(&a, everywhere),
        Command::Generate(a) => commands::generate::run(&a),
        Command::Score(a) => commands::score::run(&a),
        Command::Eval(a) => commands::eval::run(&a),
        Command::Inspect(a) => commands::inspect::run(&a),
        Command::Convert(a) => commands::convert::run(&a),
        Command::Devices(a) => commands::devices::run(&a),
        Command::Bench(b) => commands::bench::run(&b),
    }
}
