//! `launch` and `run`: recipes from the first stage to the report.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::OnceLock;

use anyhow::{Result, bail};
use clap::Args;
use train::TrainError;
use train::plan::{StagePlan, plan};
use train::recipe::Recipe;
use train::stages::Makes;
use train::team::Team;

use crate::commands::bench::ceiling;
use crate::output::{line, quoted};
use crate::paths::hint;
use crate::progress::Terminal;
use crate::ranks::{self, Joined};

/// The recipes inside the binary.
const LAUNCH: &str = include_str!("../../../../recipes/launch.toml");
const QUICK: &str = include_str!("../../../../recipes/quick.toml");

const LAUNCH_EXAMPLES: &str = "\
Examples:
  shoestring launch                           # into runs/launch, from nothing to a model to talk to
  shoestring launch --quick                   # a shorter recipe in three minutes or so, into runs/quick
  shoestring launch --set seed=2 --out second # another seed, another folder

Ctrl-C saves, and the same command goes on, to the bit. The recipe is inside the program; `recipes/launch.toml` is its
text. What comes out: a folder for each stage, a Hugging Face model folder where the stage trains, metrics.jsonl,
TensorBoard events, report.html and report.json.";

const RUN_EXAMPLES: &str = "\
Examples:
  shoestring run recipes/launch.toml --dry-run                  # all settings stated, and what they would take
  shoestring run recipes/smoke.toml                             # every stage in a minute, to see that all works
  shoestring run mine.toml --set stage.grpo.steps=50 --out try2
  shoestring run recipes/launch.toml --stages grpo              # up to reinforcement; the rest with the same command later
  mpirun -n 4 --bind-to none shoestring run mine.toml --set parallel.shards=8  # on 4 machines, to the same bits (built with --features mpi)

A setting of a stage is `stage.NAME.KEY`, that of a model `models.NAME.KEY`. A key that does not exist is refused, with
the nearest one that does. A run folder belongs to one recipe: with another, name another folder. mpirun gives ranks a second
to save on Ctrl-C; its `--mca odls_base_sigkill_timeout 30` gives them more. SHOESTRING_PATIENCE is how many seconds a rank
waits for another before the run ends (1800).";

/// `launch`
#[derive(Args)]
#[command(after_help = LAUNCH_EXAMPLES)]
pub struct Launch {
    /// Where the run goes; run the same command again to resume it.
    #[arg(long, default_value = "runs/launch")]
    out: PathBuf,
    /// A shorter recipe: easier problems and no student, in three minutes or so, into runs/quick.
    #[arg(long)]
    quick: bool,
    /// Change a setting, e.g. --set seed=2 or --set stage.grpo.steps=50.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// `run`
#[derive(Args)]
#[command(after_help = RUN_EXAMPLES)]
pub struct Run {
    /// The recipe, a TOML file (see recipes/ for examples).
    recipe: PathBuf,
    /// Where the run goes (default: runs/ and the recipe's name); run the same command again to resume it.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Change a setting, e.g. --set seed=2 or --set stage.grpo.steps=50.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Run only these stages and the ones they build on.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    stages: Vec<String>,
    /// Print the whole recipe, defaults included, and its estimated cost, without running it.
    #[arg(long)]
    dry_run: bool,
}

/// Runs the built-in recipe.
pub fn launch(args: &Launch) -> Result<()> {
    let (name, text) = if args.quick { ("quick.toml", QUICK) } else { ("launch.toml", LAUNCH) };
    let out = if args.quick && args.out == Path::new("runs/launch") {
        PathBuf::from("runs/quick")
    } else {
        args.out.clone()
    };
    ranks::together(|joined| {
        perform(&Recipe::parse(name, text, &args.set)?, &[], &out, joined)?;
        if !joined.leads() {
            return Ok(());
        }
        line(
            "  shoestring run recipes/text.toml --set stage.tokenizer.source.path=FOLDER --set stage.pretrain.source.path=FOLDER   # your own text",
        )
    })
}

/// Runs a recipe.
pub fn run(args: &Run) -> Result<()> {
    ranks::together(|joined| {
        if !args.recipe.exists() {
            bail!("there is no recipe {}{}", args.recipe.display(), hint(&args.recipe));
        }
        let recipe = Recipe::load(&args.recipe, &args.set)?;
        if args.dry_run {
            return if joined.leads() { dry_run(&recipe, &args.stages, joined.comm.ranks()) } else { Ok(()) };
        }
        let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&recipe.name));
        perform(&recipe, &args.stages, &out, joined)
    })
}

/// What small models reach of the machine's ceiling, about.
const SHARE_OF_CEILING: f64 = 0.5;

fn dry_run(recipe: &Recipe, names: &[String], ranks: usize) -> Result<()> {
    let wanted: Vec<&str> = train::pipeline::wanted(recipe, names)?.iter().map(|s| s.name()).collect();
    let mut stages = plan(recipe, ranks)?;
    stages.retain(|p| wanted.contains(&p.name.as_str()));
    line(&recipe.resolved_toml())?;
    let ceiling = ceiling(largest(&stages));
    line(&format!(
        "# machine: {:.0} GFLOP/s in large matrix products on {}",
        ceiling / 1e9,
        tensor::device(0)
            .map_or_else(|| format!("{} threads", tensor::threads::threads()), |gpu| gpu.info().name.clone())
    ))?;
    line("# stage                 parameters    active        FLOPs    memory      time")?;
    let mut seconds = 0.0;
    for p in stages {
        let time = p.operations / (SHARE_OF_CEILING * ceiling);
        seconds += time;
        line(&format!(
            "# {:<20} {:>11} {:>9} {:>12.2e} {:>6.2} GiB {:>7.0} s",
            p.name,
            p.parameters,
            p.active_parameters,
            p.operations,
            p.memory_bytes / (1u64 << 30) as f64,
            time
        ))?;
    }
    line(&format!("# about {:.0} minutes and {:.3} $ in all", seconds / 60.0, cost(recipe, seconds)))?;
    on_ranks(recipe)?;
    train::plan::check_memory(recipe, ranks)?;
    Ok(())
}

/// What each of so many ranks would hold and send, for every number of them that the shards allow.
fn on_ranks(recipe: &Recipe) -> Result<()> {
    let shards = recipe.parallel.shards;
    for ranks in (0..=shards.trailing_zeros()).map(|bit| 1 << bit).skip_while(|_| shards == 1) {
        let stages = plan(recipe, ranks)?;
        let most = |of: &dyn Fn(&StagePlan) -> f64| stages.iter().map(of).fold(0.0, f64::max);
        line(&format!(
            "# {ranks} rank{}: at most {:.2} GiB in each, which sends {:.1} MB for a step",
            if ranks == 1 { "" } else { "s" },
            most(&|p| p.memory_bytes) / (1u64 << 30) as f64,
            most(&|p| p.sent_bytes) / 1e6
        ))?;
    }
    Ok(())
}

/// Parameters of the largest model.
fn largest(stages: &[StagePlan]) -> usize {
    stages.iter().map(|p| p.parameters as usize).max().unwrap_or(0)
}

fn cost(recipe: &Recipe, seconds: f64) -> f64 {
    seconds / 3600.0 * recipe.machine.price_per_core_hour * tensor::threads::threads() as f64
}

fn perform(recipe: &Recipe, stages: &[String], out: &Path, joined: &Joined) -> Result<()> {
    train(recipe, stages, out, joined, true)?;
    if joined.leads() { finale(recipe, out) } else { Ok(()) }
}

/// Performs stages of a recipe, all if none is named, with its progress on the terminal. Ends the process where it was
/// interrupted. With `announce` it is said at first where that goes and about how long it takes.
pub(super) fn train(
    recipe: &Recipe,
    stages: &[String],
    out: &Path,
    joined: &Joined,
    announce: bool,
) -> Result<()> {
    let team = Team::new(joined.comm.clone(), recipe.parallel.shards).map_err(TrainError::Ranks)?;
    let team = Rc::new(team);
    let terminal = Terminal::new(joined.leads(), joined.interrupts.clone());
    terminal.catch_interrupt()?;
    let parameters = plan(recipe, 1).map_or(0, |stages| largest(&stages));
    // Nobody reads what the others find.
    let leads = joined.leads();
    let measured = OnceLock::new();
    let measure = || if leads { *measured.get_or_init(|| ceiling(parameters)) } else { 1.0 };
    if leads && announce {
        terminal.open_with(opening(recipe, stages, out, &measure)?);
    }
    let done = train::pipeline::run(recipe, stages, out, &terminal, &measure, team);
    terminal.finish();
    match done {
        Ok(()) => Ok(()),
        Err(TrainError::Interrupted) => {
            if joined.leads() {
                line("stopped; everything is saved. To go on, run the same command again.")?;
            }
            joined.comm.leave();
            // As a shell reports a command that Ctrl-C ended, so that `&&` does not go on.
            std::process::exit(130)
        }
        Err(e) => bail!(e),
    }
}

/// Where a run goes, and about how long what is left of it takes; nothing where nothing is left.
fn opening(
    recipe: &Recipe,
    stages: &[String],
    out: &Path,
    measure: &dyn Fn() -> f64,
) -> Result<Option<String>> {
    let wanted: Vec<&str> = train::pipeline::wanted(recipe, stages)?.iter().map(|s| s.name()).collect();
    let left = |name: &str| wanted.contains(&name) && !out.join(name).join("done.json").exists();
    let count = wanted.iter().filter(|name| left(name)).count();
    if count == 0 {
        return Ok(None);
    }
    let planned = plan(recipe, 1)?;
    let operations: f64 = planned.iter().filter(|p| left(&p.name)).map(|p| p.operations).sum();
    let seconds = operations / (SHARE_OF_CEILING * measure());
    let time = match seconds {
        ..1.0 => String::new(),
        ..90.0 => format!(", about {seconds:.0} seconds"),
        ..5400.0 => format!(", about {:.0} minutes", seconds / 60.0),
        _ => format!(", about {:.1} hours", seconds / 3600.0),
    };
    let stages = if count == 1 { "stage" } else { "stages" };
    Ok(Some(format!(
        "into {}: {count} {stages} to go{time}; Ctrl-C saves, and the same command goes on",
        out.display()
    )))
}

/// The table and what to do next.
fn finale(recipe: &Recipe, out: &Path) -> Result<()> {
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("report.json"))?)?;
    line("")?;
    let measured = report["evaluation"].as_object().is_some_and(|found| !found.is_empty());
    let samples = recipe.stages.iter().rev().find_map(|s| s.measures().map(|(_, samples)| samples));
    let samples = samples.filter(|_| measured);
    if let Some(k) = samples {
        let heads = match k {
            // The report has the greedy answers' share alone then.
            1 => ["pass@1".to_owned(), String::new(), String::new()],
            k => ["pass@1".to_owned(), format!("pass@{k}"), format!("maj@{k}")],
        };
        line(
            format!("{:<22} {:<18} {:<18} {}", "held-out problems", heads[0], heads[1], heads[2]).trim_end(),
        )?;
    }
    let show = |v: &serde_json::Value| {
        let pct = |k: &str| 100.0 * v[k].as_f64().unwrap_or(0.0);
        format!("{:5.1} % [{:.0}–{:.0}]", pct("value"), pct("low"), pct("high"))
    };
    for (name, scores) in report["evaluation"].as_object().into_iter().flatten() {
        let column = |prefix: &str| {
            let found = scores
                .as_object()
                .into_iter()
                .flatten()
                .find(|(k, _)| k.starts_with(prefix) && *k != "pass@1");
            found.map_or_else(String::new, |(_, v)| show(v))
        };
        let row = format!(
            "  {name:<20} {:<18} {:<18} {}",
            show(&scores["pass@1"]),
            column("pass@"),
            column("maj@")
        );
        line(row.trim_end())?;
    }
    for c in report["claims"].as_array().into_iter().flatten() {
        let mark = match (c["shown"] == true, c["over_budget"] == true) {
            (true, _) => "shown    ",
            (_, true) => "void: more FLOPs",
            _ => "not shown",
        };
        let n = |k: &str| c[k].as_f64().unwrap_or(f64::NAN);
        line(&format!(
            "  {mark} {} / {}: {:.2} [{:.2}–{}]",
            text(&c["name"]),
            text(&c["baseline"]),
            n("ratio"),
            n("low"),
            if n("high") > 1e6 { "∞".to_owned() } else { format!("{:.2}", n("high")) }
        ))?;
    }
    let total = |k: &str| {
        report["stages"].as_array().into_iter().flatten().filter_map(|s| s[k].as_f64()).sum::<f64>()
    };
    line(&format!(
        "  {:.1} minutes, {:.2e} FLOPs, {:.4} $",
        total("seconds") / 60.0,
        total("operations"),
        total("cost")
    ))?;
    let made: Vec<_> = recipe.stages.iter().rev().filter(|s| s.makes() == Makes::Model).collect();
    let made: Vec<_> = made.into_iter().filter(|s| out.join(s.name()).join("done.json").exists()).collect();
    let best = made.iter().find(|s| s.kind() == "grpo" && s.name() == "grpo").or(made.first());
    let out = out.to_string_lossy();
    line("")?;
    line("next:")?;
    if let Some(best) = best {
        // What has read nothing but text knows of no turns.
        let talk = if best.kind() == "pretrain" { "generate --raw --prompt 'The '" } else { "chat" };
        let how = if best.kind() != "pretrain" && recipe.draws_problems() { " --single-turn" } else { "" };
        let model = quoted(&format!("{out}/{}", best.name()));
        line(&format!("  shoestring {talk} {model}{how}   # talk to it"))?;
    }
    line(&format!("  {out}/report.html, in a browser      # curves, samples, what it cost"))
}

fn text(v: &serde_json::Value) -> &str {
    v.as_str().unwrap_or_default()
}
