//! `teach`: a model, a table of questions and answers, and a better model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use data::{Records, read_table, write_jsonl};
use ground::atomic::replace;
use serde_json::{Value, json};
use train::finished::Measured;
use train::forgetting::{BUILT_IN, HeldText, NONE};
use train::recipe::Recipe;
use train::teach::{
    Budget, Columns, Lengths, Lesson, LessonPlan, LessonRecipe, Taught, Trial, Wishes, try_model,
};

use super::bench::ceiling;
use super::convert::merge_into;
use super::{ranges, run};
use crate::model_files::{Loaded, ModelArgs};
use crate::output::{harmless, json_line, line, quoted, tell};
use crate::paths::hint;
use crate::ranks::{self, Joined};

const EXAMPLES: &str = "\
Examples:
  shoestring teach SmolLM2-135M-Instruct.Q4_1.gguf questions.csv --minutes 40
  shoestring teach my-model questions.jsonl --dry-run               # how the table was understood, and the plan
  shoestring teach my-model table.tsv --question Frage --answer Antwort --out taught
  shoestring chat questions/model                                   # what came out

The table has a line of names at the top (CSV, TSV, a sheet of an XLSX or ODS workbook) or an object a line (JSONL) or is Parquet; it
has a column for the question, one for the answer, and perhaps one with worked solutions; twenty rows with an answer are the least.
Numbers, letters from A to E and texts are told apart by what is in the column. A fifth of the rows, at most 100 and fewer when time is short, is kept for
measuring and never trained on. Where some rows have a worked solution and others none, fine-tuning learns from the worked ones
alone, and the others are for the rounds. Eight worked rows are enough to show the form.

The model is tried first, asked in every way that suits the answers, and measured in the way that suits it best, so that the gain is not
one of form alone. If it is right already, or never right with no solutions to learn from, you are told and nothing is done.
Then a recipe is written (OUT.toml, to change and to perform with `shoestring run`) and performed: fine-tuning on the
solutions, then rounds of sampling answers and learning those that are right. Ctrl-C saves, and the same command goes on.";

/// What to teach to whom.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Teach {
    #[command(flatten)]
    model: ModelArgs,
    /// The table: .csv, .tsv, .jsonl, .parquet, .xlsx or .ods.
    table: PathBuf,
    /// The sheet, of a workbook with several.
    #[arg(long, value_name = "NAME")]
    sheet: Option<String>,
    /// Folder of the run (default: the table's name without its ending).
    #[arg(long)]
    out: Option<PathBuf>,
    /// How long it may take, roughly.
    #[arg(long, value_name = "M", default_value = "30", value_parser = ranges::minutes)]
    minutes: f32,
    /// The column with the questions.
    #[arg(long, value_name = "COLUMN")]
    question: Option<String>,
    /// The column with the answers.
    #[arg(long, value_name = "COLUMN")]
    answer: Option<String>,
    /// The column with worked solutions.
    #[arg(long, value_name = "COLUMN")]
    solution: Option<String>,
    /// The longest answer, in tokens (default: from the solutions, or 256).
    #[arg(long, value_name = "N", value_parser = ranges::count)]
    max_new: Option<usize>,
    /// Train low-rank adapters of this rank in place of all weights (default: only where memory is short).
    #[arg(long, value_name = "RANK", value_parser = ranges::count)]
    lora: Option<usize>,
    /// A text on which to measure what is forgotten; its first 32 KiB are taken, and nothing is trained on it (default: a text of 6 KB
    /// that comes with the program; `none` measures nothing).
    #[arg(long, value_name = "FILE")]
    held_text: Option<String>,
    /// Show how the table was understood, and what would be done; do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object at the end: verifier, rows, held_out, before, after, gain, forgotten, minutes, model, adapter, recipe. With
    /// --dry-run: the columns, rows, verifier, five rows that the model tried, and the recipe or why there is none.
    #[arg(long)]
    json: bool,
}

/// Of the time, what trying the ways to ask may take.
const TRYING: f64 = 0.1;

/// Runs the command.
pub fn run(a: &Teach) -> Result<()> {
    let began = std::time::Instant::now();
    ranks::alone("teach")?;
    let say = |text: &str| if a.json { tell(text) } else { line(text).unwrap_or_default() };
    let columns =
        Columns { question: a.question.clone(), answer: a.answer.clone(), solution: a.solution.clone() };
    if !a.table.exists() {
        bail!("there is no table {}{}", a.table.display(), hint(&a.table));
    }
    let lesson = Lesson::of(&read_table(&a.table, a.sheet.as_deref())?, &columns)
        .with_context(|| a.table.display().to_string())?;
    let out = a.out.clone().unwrap_or_else(|| {
        let name = a.table.file_name().unwrap_or_default().to_string_lossy().into_owned();
        PathBuf::from(name.split('.').next().filter(|n| !n.is_empty()).unwrap_or("taught"))
    });
    let recipe_path = beside(&out, ".toml");
    if recipe_path.exists() {
        check_same(a, &lesson, &out)?;
        understood(&lesson, &say);
        say(&format!(
            "going on as {} says, whatever the options say now: remove it and the folder {} to begin anew",
            recipe_path.display(),
            out.display()
        ));
    } else {
        if !a.dry_run {
            check_writable(&out)?;
        }
        let loaded = a.model.open()?;
        understood(&lesson, &say);
        let (trial, settled) = settle(a, &lesson, loaded, &out, &say)?;
        if a.dry_run && a.json {
            return json_line(&plan_json(&lesson, &trial, &settled));
        }
        let text = match settled {
            Err(reason) => {
                say(&reason);
                return Ok(());
            }
            Ok(text) if a.dry_run => return line(&text),
            Ok(text) => text,
        };
        write_jsonl(&problems_of(&out), &lesson.problems)?;
        replace(&recipe_path, text.as_bytes()).with_context(|| recipe_path.display().to_string())?;
    }
    let recipe = Recipe::load(&recipe_path, &[])?;
    if a.dry_run {
        return line(&recipe.resolved_toml());
    }
    run::train(&recipe, &[], &out, &Joined::single(), false)?;
    finale(a, &lesson, &out, began.elapsed().as_secs_f64() / 60.0)
}

/// The lesson's problems, as the recipe reads them.
fn problems_of(out: &Path) -> PathBuf {
    beside(out, ".problems.jsonl")
}

/// Refuses to go on with another table or another model than those that the recipe was written for.
fn check_same(a: &Teach, lesson: &Lesson, out: &Path) -> Result<()> {
    let recipe = beside(out, ".toml");
    let begin_anew = || {
        format!(
            "remove it, {} and the folder {} to begin anew, or name another --out",
            problems_of(out).display(),
            out.display()
        )
    };
    let written =
        Records::<Value>::open(&problems_of(out), &[])?.map(|r| Ok(r?.1)).collect::<Result<Vec<_>>>()?;
    let here = lesson.problems.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
    if written != here {
        bail!(
            "{} was written for other rows than {} has now: {}",
            recipe.display(),
            a.table.display(),
            begin_anew()
        );
    }
    let model = std::path::absolute(&a.model.model)?;
    let stages = Recipe::load(&recipe, &[])?.stages;
    if !stages.iter().any(|s| s.built_on().iter().any(|on| Path::new(on) == model)) {
        bail!(
            "{} was written for another model than {}: {}",
            recipe.display(),
            a.model.model.display(),
            begin_anew()
        );
    }
    Ok(())
}

/// Whether something can be written there, before the model is tried for minutes.
fn check_writable(out: &Path) -> Result<()> {
    let probe = beside(out, ".part");
    if let Some(folder) = probe.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    std::fs::File::create(&probe)
        .and_then(|_| std::fs::remove_file(&probe))
        .with_context(|| format!("cannot write {}", probe.display()))
}

/// A file beside the run's folder, which holds nothing but the run.
fn beside(out: &Path, ending: &str) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn understood(lesson: &Lesson, say: &dyn Fn(&str)) {
    let (question, answer, solution) = &lesson.columns;
    let solutions = match solution {
        Some(name) => format!(", {} of them with a worked solution ({name:?})", lesson.solved),
        None => ", none with a worked solution".to_owned(),
    };
    say(&format!(
        "{} rows with a question ({question:?}) and an answer ({answer:?}){solutions}",
        lesson.problems.len()
    ));
    for (reason, rows, first) in lesson.left_out_by_reason() {
        let are = if rows == 1 { "row is" } else { "rows are" };
        say(&format!("{rows} {are} left out, {reason} (the first is row {first})"));
    }
    say(&format!("scored by `{}`: {}", lesson.verifier, lesson.why));
    for p in lesson.problems.iter().take(5) {
        let short = |text: &str| {
            let text: String = harmless(text).split_whitespace().collect::<Vec<_>>().join(" ");
            if text.chars().count() > 100 { text.chars().take(99).chain(['…']).collect() } else { text }
        };
        say(&format!("  {}  →  {}", short(&p.prompt), short(&p.answer)));
    }
}

/// Tries the model and writes the recipe, or says why there is nothing to teach, or nothing to build on.
fn settle(
    a: &Teach,
    lesson: &Lesson,
    Loaded { mut model, tokenizer }: Loaded,
    out: &Path,
    say: &dyn Fn(&str),
) -> Result<(Trial, Result<String, String>)> {
    let wishes = Wishes { minutes: a.minutes, max_new: a.max_new, lora: a.lora };
    let lengths = Lengths::of(&tokenizer, lesson, &wishes).with_context(|| a.table.display().to_string())?;
    lengths.reserve(&mut model)?;
    let held_text = held_text(a)?;
    say("the model as it came, on some of the rows:");
    let trying = TRYING * 60.0 * f64::from(a.minutes);
    let trial = try_model(&model, &tokenizer, lesson, lengths.max_new, trying, say)?;
    if let Some(reason) = trial.pointless(lesson) {
        return Ok((trial, Err(reason)));
    }
    let ceiling = ceiling(model::inspect::inspect(model.config(), 1).parameters.total as usize);
    let budget = Budget::of(&wishes, lesson, &model, &trial, &lengths, ceiling);
    let plan = LessonPlan::of(lesson, &budget);
    let absolute = |p: &Path| std::path::absolute(p).with_context(|| p.display().to_string());
    // Letters that a recipe's name may have.
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = out.file_name().unwrap_or_default().to_string_lossy().chars().map(plain).collect();
    let name =
        if name.starts_with(|c: char| c.is_ascii_alphanumeric()) { name } else { format!("taught{name}") };
    let problems = absolute(&problems_of(out))?;
    let model = absolute(&a.model.model)?;
    let recipe = LessonRecipe {
        name: &name,
        model: &model,
        problems: &problems,
        lesson,
        before: &trial.place,
        place: &trial.taught_place,
        held_text: held_text.as_deref(),
        budget: &budget,
        plan: &plan,
    };
    let text = recipe.text();
    Ok((trial, Ok(text)))
}

/// Rows that the model tried, of those that are shown.
const SHOWN: usize = 5;

/// What `--dry-run --json` prints.
fn plan_json(lesson: &Lesson, trial: &Trial, settled: &Result<String, String>) -> Value {
    let (question, answer, solution) = &lesson.columns;
    let left_out: Vec<Value> =
        lesson.left_out.iter().map(|(row, reason)| json!({"row": row, "reason": reason})).collect();
    let tried = trial.found.greedy.iter().zip(lesson.tried()).take(SHOWN);
    let tried: Vec<Value> = tried
        .map(|(graded, row)| {
            json!({"question": row.prompt, "answer": row.answer, "said": graded.completion, "right": graded.is_right(),
                "reason": graded.reason})
        })
        .collect();
    json!({
        "question": question,
        "answer": answer,
        "solution": solution,
        "rows": lesson.problems.len(),
        "solved": lesson.solved,
        "left_out": left_out,
        "verifier": lesson.verifier,
        "why": lesson.why,
        "asked": trial.place.to_string(),
        "before": trial.found.all,
        "tried": tried,
        "pointless": settled.as_ref().err(),
        "recipe": settled.as_ref().ok(),
    })
}

/// The text to measure on as a recipe names it, once it can be read.
fn held_text(a: &Teach) -> Result<Option<String>> {
    let Some(text) = &a.held_text else { return Ok(None) };
    HeldText::of(text)?;
    if [BUILT_IN, NONE].contains(&text.as_str()) {
        return Ok(Some(text.clone()));
    }
    Ok(Some(std::path::absolute(text)?.to_string_lossy().into_owned()))
}

/// Before and after, problem by problem.
fn finale(a: &Teach, lesson: &Lesson, out: &Path, minutes: f64) -> Result<()> {
    let taught = Taught::of(out)?;
    let recipe = beside(out, ".toml");
    let (model, adapter) = models(out, &taught)?;
    let (before, after) = (&taught.before, &taught.after);
    if a.json {
        let texts = before.held_text.as_ref().zip(after.held_text.as_ref());
        return json_line(&json!({
            "verifier": lesson.verifier,
            "rows": lesson.problems.len(),
            "held_out": before.outcomes.len(),
            "before": before.scores,
            "after": after.scores,
            "gain": taught.gain,
            "own_answers": taught.own_answers,
            "forgotten": texts.map(|(b, t)| json!({
                "text": b.text,
                "bytes": b.bytes,
                "before": b.bits_per_byte,
                "after": t.bits_per_byte,
                "worse": taught.forgotten(),
            })),
            // Of a run that was gone on with: all sittings.
            "minutes": minutes.max(taught.seconds / 60.0),
            "model": model,
            "adapter": adapter,
            "recipe": recipe,
        }));
    }
    line("")?;
    line(&taught.verdict())?;
    if taught.own_answers == 0 {
        line("  no answer that it sampled was right, so it learnt nothing of its own")?;
    }
    measurements(&taught)?;
    for (b, t) in before.answers.iter().zip(&after.answers).take(3) {
        line(&format!("\n  {}", indented(&b.prompt, "\n  ")))?;
        for (when, answer) in [("before", b), ("after ", t)] {
            let right = if answer.completion.score >= 0.5 { "right" } else { "wrong" };
            line(&format!("  {when} {right}: {}", indented(&answer.completion.text, "\n    ")))?;
        }
    }
    if let Some(adapter) = &adapter {
        line(&format!(
            "\nthe adapter is {}, and {} the model with it merged",
            adapter.display(),
            model.display()
        ))?;
    }
    line("\nnext:")?;
    let model = quoted(&model.to_string_lossy());
    line(&format!("  shoestring chat {model}"))?;
    line(&format!("  shoestring convert {model} --to my-model.gguf --type q8_0"))?;
    line(&format!("  {}, in a browser", out.join("report.html").display()))
}

fn indented(text: &str, line_break: &str) -> String {
    harmless(text).trim().replace('\n', line_break)
}

/// The figures of before and after.
fn measurements(taught: &Taught) -> Result<()> {
    let (before, after) = (&taught.before, &taught.after);
    let pct = |x: f64| format!("{:.1} %", 100.0 * x);
    let range = |m: &Measured| {
        let e = &m.scores.pass_at_1;
        format!("{} [{:.0}–{:.0}]", pct(e.value), 100.0 * e.low, 100.0 * e.high)
    };
    line(&format!(
        "  {} held-out rows, right at the first answer: {} before, {} after",
        before.outcomes.len(),
        range(before),
        range(after)
    ))?;
    if before.scores.samples > 1 {
        let k = before.scores.samples;
        line(&format!(
            "  the answer that most of {k} gave: {} before, {} after",
            pct(before.scores.maj_at_k.value),
            pct(after.scores.maj_at_k.value)
        ))?;
    }
    let texts = before.held_text.as_ref().zip(after.held_text.as_ref());
    if let Some(((b, t), worse)) = texts.zip(taught.forgotten()) {
        line(&format!(
            "  forgotten: {:.3} bits per byte before, {:.3} after ({:+.1} %), on {} bytes of text that nothing was trained on",
            b.bits_per_byte,
            t.bits_per_byte,
            100.0 * worse,
            b.bytes
        ))?;
    }
    Ok(())
}

/// The model that came out and, where that was trained, its adapter, which is merged beside the run.
fn models(out: &Path, taught: &Taught) -> Result<(PathBuf, Option<PathBuf>)> {
    let (model, is_adapter) = taught.model.clone();
    if !is_adapter {
        return Ok((model, None));
    }
    let merged = beside(out, "-merged");
    if !merged.exists() {
        merge_into(&model, &merged)?;
    }
    Ok((merged, Some(model)))
}
