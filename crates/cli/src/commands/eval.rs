//! `eval`: how many problems a model solves, with intervals.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args};
use serde_json::{Value, json};
use tasks::verify::external::Command;
use tasks::{
    ExternalVerifier, Level, Mix, MixEntry, Problem, Split, Verdict, Verifier, load_problems, verifier,
};
use train::evaluate::{EvalSettings, Evaluation, Scores, evaluate, leave_out_too_long};
use train::stats::Estimate;
use train::team::Team;

use super::{ranges, words};
use crate::model_files::{ModelArgs, reserve};
use crate::output::{json_line, line, tell, tell_part};

/// Problems drawn for `--task` unless `--limit` says otherwise.
const DRAWN: usize = 200;

const EXAMPLES: &str = "\
Examples:
  shoestring eval runs/launch/grpo --task countdown --samples 8
  shoestring eval runs/launch/grpo --task arithmetic --task word --limit 500 --json
  shoestring eval my-model --problems mine.jsonl --verifier numeric
  shoestring eval my-model --problems mine.jsonl --verifier-cmd 'python3 check.py --strict'

A problems file holds one JSON object a line (gzip and Parquet are read too): {\"prompt\": \"…\", \"answer\": \"…\"} and, where wanted,
\"verifier\" and \"meta\". `expression` needs \"meta\": {\"numbers\": [6, 25, 4], \"target\": 46}, `regex` may have \"meta\": {\"pattern\": \"…\"};
`choice` has a letter from A to E as answer; `exact` compares texts, case and all.
`numeric` takes an answer that is one number and nothing else: 42, 42., .5, 1e3, 1,234.50 or 1 234, 22/7, -42 with either minus,
a currency before it and a percent sign behind it ($42 and 42 % are 42), and LaTeX around it ($42$, \\boxed{42},
\\frac{1}{2}). It takes no words (42 apples, 42 million), mixed numbers (1 1/2) or decimal commas. `numeric_strict` takes 42,
-42, +42, 1,234, 3.50 and 22/7 alone.

Every problem is answered once greedily (pass@1) and K times by sampling: pass@K counts problems with a right answer
among the K, maj@K those whose most frequent answer is right. Intervals are of 95 %.

A verifier command reads one JSON object a line ({\"id\", \"problem\", \"completion\", \"answer\"}) and answers each with one
({\"id\", \"score\", \"reason\"}), the score from 0 to 1. It is started without a shell. Where an answer of it fails, that
completion counts as wrong and the failure is counted under `verifier`.";

/// What to evaluate on.
#[derive(Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("what").required(true))]
pub struct Eval {
    #[command(flatten)]
    from: ModelArgs,
    /// Problems of your own, as JSON lines.
    #[arg(long, value_name = "FILE.jsonl", group = "what")]
    problems: Option<PathBuf>,
    /// Held-out problems of a built-in task (arithmetic, countdown, word, sorting, calendar, gcd); given several times
    /// it draws an even mix.
    #[arg(long, value_name = "NAME", group = "what")]
    task: Vec<String>,
    /// What scores answers: exact, numeric, numeric_strict, expression, choice, regex, format, or task for what each problem asks for.
    #[arg(long, value_name = "NAME", default_value = "task")]
    verifier: String,
    /// A program that scores answers instead; words are split as a shell does.
    #[arg(long, value_name = "CMD", conflicts_with = "verifier")]
    verifier_cmd: Option<String>,
    /// Seconds that the program may take for one answer (to start, and for the first answer, six times as long more).
    #[arg(long, value_name = "S", default_value = "10", value_parser = ranges::seconds)]
    verifier_timeout: f32,
    /// An environment variable that the program is given (repeatable). Beside those named it gets PATH, HOME, USER, LANG,
    /// LC_ALL, LC_CTYPE, TZ, TMPDIR and VIRTUAL_ENV alone.
    #[arg(long, value_name = "NAME", requires = "verifier_cmd")]
    verifier_env: Vec<String>,
    /// Leave out problems whose prompts leave no room for an answer, and say how many (by default the first is refused).
    #[arg(long)]
    leave_out_too_long: bool,
    /// Sampled answers of each problem (K).
    #[arg(long, value_name = "K", default_value_t = 8, value_parser = ranges::count)]
    samples: usize,
    /// Of the samples (top_k, top_p, min_p and repetition_penalty are those of generation_config.json, if it has any).
    #[arg(long, value_name = "T", default_value = "1", value_parser = ranges::temperature, allow_negative_numbers = true)]
    temperature: f32,
    /// Tokens of an answer at most; the context may end it before.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = ranges::count)]
    max_new: usize,
    /// The first N problems only (default: the whole file, or 200 drawn problems).
    #[arg(long, value_name = "N", value_parser = ranges::count)]
    limit: Option<usize>,
    /// Same seed, same drawn problems and samples.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object: problems, pass@1, pass@K and maj@K (each {value, low, high}), and more.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(a: &Eval) -> Result<()> {
    let mut problems = problems(a)?;
    let scorer = Scorer::open(a)?;
    let mut loaded = a.from.open()?;
    if loaded.tokenizer.chat_template().is_none() {
        bail!(
            "the tokenizer in {} has no chat template, so there is no way to ask the model anything: \
             add `chat_template` to its tokenizer_config.json",
            a.from.model.display()
        );
    }
    scorer.try_out(&problems[0])?;
    let faults = problems.iter().enumerate().filter_map(|(i, p)| Some((i, scorer.verifier().fault(p)?)));
    if let Some((i, fault)) = { faults }.next() {
        bail!("problem {}: {fault}, so no answer to it could score (verifier `{}`)", i + 1, a.verifier);
    }
    let longest = problems.iter().map(|p| p.prompt.len()).max().unwrap_or(0);
    // A token is a byte or more; what a template adds is far below this.
    reserve(&mut loaded.model, longest.saturating_add(a.max_new).saturating_add(4096));
    let mut left_out = 0;
    if a.leave_out_too_long {
        left_out = leave_out_too_long(&loaded.model, &loaded.tokenizer, &mut problems)?;
        if left_out > 0 {
            tell(&format!("{left_out} problems are left out: their prompts leave no room for an answer"));
        }
    }
    let settings =
        EvalSettings { samples: a.samples, temperature: a.temperature, max_new: a.max_new, seed: a.seed };
    let progress = Progress::new(!a.json);
    let started = Instant::now();
    let found = evaluate(
        &loaded.model,
        &loaded.tokenizer,
        &Team::alone(),
        &problems,
        scorer.verifier(),
        &settings,
        &|| progress.token(),
    );
    progress.clear();
    let found = found?;
    let stats = scorer.check()?;
    if a.json {
        let mut out = to_json(&found, stats, started.elapsed().as_secs_f64());
        out["left_out"] = json!(left_out);
        return json_line(&out);
    }
    print(&found, &problems, started.elapsed())
}

fn problems(a: &Eval) -> Result<Vec<Problem>> {
    if let Some(path) = &a.problems {
        let mut problems = load_problems(path)?;
        problems.truncate(a.limit.unwrap_or(usize::MAX));
        return Ok(problems);
    }
    let entry = |task: &String| MixEntry { task: task.clone(), weight: 1.0, level: Level::default() };
    let mix = Mix::new(a.task.iter().map(entry).collect())?;
    Ok((0..a.limit.unwrap_or(DRAWN) as u64).map(|i| mix.problem(Split::HeldOut, a.seed, i)).collect())
}

/// A built-in verifier or a command.
enum Scorer {
    Named(Box<dyn Verifier>),
    Command(Box<ExternalVerifier>, String),
}

impl Scorer {
    fn open(a: &Eval) -> Result<Scorer> {
        let Some(text) = &a.verifier_cmd else {
            return Ok(Scorer::Named(verifier(&a.verifier)?));
        };
        let argv = words::split(text).with_context(|| format!("--verifier-cmd {text:?}"))?;
        let mut command = Command::new(argv);
        command.timeout = Duration::from_secs_f32(a.verifier_timeout);
        command.startup = 6 * command.timeout;
        command.env = a.verifier_env.clone();
        Ok(Scorer::Command(Box::new(ExternalVerifier::start(command)?), text.clone()))
    }

    fn verifier(&self) -> &dyn Verifier {
        match self {
            Scorer::Named(v) => &**v,
            Scorer::Command(v, _) => &**v,
        }
    }

    /// Asks a command about one answer before the long work begins.
    fn try_out(&self, problem: &Problem) -> Result<()> {
        let Scorer::Command(v, text) = self else { return Ok(()) };
        let answer = if problem.answer.trim().is_empty() { "0" } else { &problem.answer };
        let Verdict { reason, .. } =
            v.score(problem, &format!("<think>A trial.</think><answer>{answer}</answer>"));
        if v.stats().failed() > 0 {
            bail!(
                "the verifier command `{text}` failed when it was tried on the first problem ({reason}): see `eval --help` for what it has to answer"
            );
        }
        Ok(())
    }

    /// What a command did wrong; an error if it never worked.
    fn check(&self) -> Result<Option<Value>> {
        let Scorer::Command(v, text) = self else { return Ok(None) };
        let s = v.stats();
        let failed = s.failed();
        if failed > 0 && failed + 1 >= s.asked {
            bail!("the verifier command `{text}` failed on every answer ({s}): nothing was scored");
        }
        if failed > 0 {
            tell(&format!(
                "warning: the verifier command failed on {failed} of {} answers, which count as wrong ({s})",
                s.asked
            ));
        }
        Ok(Some(serde_json::to_value(s)?))
    }
}

fn to_json(e: &Evaluation, verifier: Option<Value>, seconds: f64) -> Value {
    let scores = |s: &Scores| {
        let mut out = json!(s);
        out["pass@K"] = json!(s.pass_at_k);
        out["maj@K"] = json!(s.maj_at_k);
        // Of one sample the share that is right.
        out[format!("maj@{}", s.samples)] = json!(s.maj_at_k);
        out
    };
    let mut out = scores(&e.all);
    out["k"] = json!(e.all.samples);
    out["by_task"] = e.by_task.iter().map(|(task, s)| (task.clone(), scores(s))).collect();
    out["tokens"] = json!(e.tokens);
    out["mean_tokens"] = json!(e.mean_tokens);
    out["truncated_share"] = json!(e.truncated_share);
    out["seconds"] = json!(seconds);
    if let Some(verifier) = verifier {
        out["verifier"] = verifier;
    }
    out
}

fn print(e: &Evaluation, problems: &[Problem], took: Duration) -> Result<()> {
    let cell =
        |x: Estimate| format!("{:5.1} % [{:5.1}, {:5.1}]", 100.0 * x.value, 100.0 * x.low, 100.0 * x.high);
    let row = |name: &str, s: &Scores| {
        let shares = [s.pass_at_1, s.pass_at_k, s.maj_at_k];
        let shown = &shares[..if s.samples == 1 { 2 } else { 3 }];
        let cells: String = shown.iter().map(|&x| format!("{:<24}", cell(x))).collect();
        line(format!("{name:<12} {:>8}  {cells}", s.problems).trim_end())
    };
    // Of one sample the share that is right and the majority are the same.
    let heads = match e.all.samples {
        1 => ["pass@1".to_owned(), "one sample".to_owned(), String::new()],
        k => ["pass@1".to_owned(), format!("pass@{k}"), format!("maj@{k}")],
    };
    let heads = heads.map(|h| format!("{h:<24}"));
    line(format!("{:<12} {:>8}  {}", "", "problems", heads.join("")).trim_end())?;
    if e.by_task.len() > 1 {
        e.by_task.iter().try_for_each(|(task, s)| row(task, s))?;
    }
    row("all", &e.all)?;
    let (tokens, seconds, cut) = (e.tokens, took.as_secs_f64(), 100.0 * e.truncated_share);
    line(&format!(
        "{tokens} tokens in {seconds:.1} s, {:.0} a completion, {cut:.1} % of them cut off",
        e.mean_tokens
    ))?;
    if let Some(wrong) = e.greedy.iter().find(|g| !g.is_right()) {
        let at = problems.iter().position(|p| *p == wrong.problem).map_or(0, |i| i + 1);
        line(&format!("\nthe first problem not solved greedily (number {at}, {}):", wrong.reason))?;
        line(&format!("  {}", wrong.problem.prompt.trim().replace('\n', "\n  ")))?;
        line(&format!("  → {}", wrong.completion.trim().replace('\n', "\n    ")))?;
    }
    Ok(())
}

/// A counter on stderr, for a person who waits.
struct Progress {
    shown: bool,
    started: Instant,
    /// When it was last written, in milliseconds since the start.
    last: AtomicU64,
    tokens: AtomicU64,
}

impl Progress {
    fn new(wanted: bool) -> Progress {
        Progress {
            shown: wanted && std::io::stderr().is_terminal(),
            started: Instant::now(),
            last: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
        }
    }

    /// One more token; always goes on.
    fn token(&self) -> bool {
        let n = self.tokens.fetch_add(1, Relaxed) + 1;
        let elapsed = self.started.elapsed();
        let now = elapsed.as_millis() as u64;
        if self.shown && n.is_multiple_of(64) && now > self.last.load(Relaxed) + 500 {
            self.last.store(now, Relaxed);
            tell_part(&format!("\r{n} tokens, {:.0} a second ", n as f64 / elapsed.as_secs_f64()));
        }
        true
    }

    fn clear(&self) {
        if self.shown {
            tell_part("\r\x1b[K");
        }
    }
}
