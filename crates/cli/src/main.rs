//! The `shoestring` binary.

mod commands;
mod output;
mod progress;

use clap::{Parser, Subcommand};

/// Reasoning models on a shoestring.
#[derive(Parser)]
#[command(name = "shoestring", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Threads to use (default: all cores).
    #[arg(long, global = true)]
    threads: Option<usize>,
}

#[derive(Subcommand)]
enum Command {
    /// Train, evaluate and report: from nothing to a small model that reasons.
    Launch(commands::run::Launch),
    /// Perform a recipe.
    Run(commands::run::Run),
    /// Measure how fast this machine runs the engine.
    #[command(subcommand)]
    Bench(commands::bench::Bench),
}

fn main() {
    let cli = Cli::parse();
    if let Some(n) = cli.threads {
        tensor::threads::set_threads(n);
    }
    let result = match cli.command {
        Command::Launch(a) => commands::run::launch(&a),
        Command::Run(a) => commands::run::run(&a),
        Command::Bench(b) => commands::bench::run(&b),
    };
    if let Err(e) = result {
        eprintln!("error: {e:#}");
        std::process::exit(2);
    }
}
