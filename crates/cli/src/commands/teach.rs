//! `teach`: a model, a table of questions and answers, and a better model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use data::{Conversation, Message, Tokenizer, encode_chat, read_table, write_jsonl};
use ground::atomic::replace;
use model::Model;
use serde_json::{Value, json};
use train::evaluate::Outcome;
use train::finished::{Finished, Measured};
use train::forgetting::{BUILT_IN, HeldText, NONE};
use train::memory::{TRAINING_COPIES, available_bytes, training_bytes};
use train::recipe::Recipe;
use train::teach::{Budget, Columns, Lesson, LessonPlan, PATIENCE, Trial, try_model};

use super::bench::ceiling;
use super::convert::merge_into;
use super::{ranges, run};
use crate::model_files::{Loaded, ModelArgs, reserve};
use crate::output::{harmless, json_line, line, tell};
use crate::ranks::{self, Joined};

const EXAMPLES: &str = "\
Examples:
  shoestring teach SmolLM2-135M-Instruct.Q4_1.gguf questions.csv --minutes 40
  shoestring teach my-model questions.jsonl --dry-run               # how the table was understood, and the plan
  shoestring teach my-model table.tsv --question Frage --answer Antwort --out taught
  shoestring chat questions/model                                   # what came out

The table has a line of names at the top (CSV, TSV, a sheet of an XLSX or ODS workbook) or an object a line (JSONL) or is Parquet; it has
a column for the question, one for the answer, and perhaps one with worked solutions. Numbers, letters from A to E and texts are told
apart by looking. A fifth of the rows, at most 100, is kept for measuring and never trained on. Where some rows have a worked solution
and others none, the others teach no answer: their problems are for the rounds. Eight worked rows do to show the form.

The model is tried first, asked in each way that suits the answers, and the kindest is taken for before and after alike: what is gained
is not a matter of form alone. If it is right already, or never right and no solutions are given, that is said and nothing is
done. Then a recipe is written (OUT.toml, for `shoestring run` and for changing) and performed: fine-tuning on the
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
    /// Where the run goes (default: the table's name without its ending).
    #[arg(long)]
    out: Option<PathBuf>,
    /// The time there is, about.
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
    /// What is forgotten is measured on this text, its first 32 KiB, that nothing is trained on (default: a text of 6 KB that comes with
    /// the program; `none` measures nothing).
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

/// Tokens of an answer where no solution tells how long one is.
const MAX_NEW: usize = 256;
/// The rank of adapters where memory is short.
const RANK: usize = 16;
/// Of the time, what trying the ways to ask may take.
const TRYING: f64 = 0.1;
/// The share of the product ceiling that training reaches, for the plan.
const REACHED: f64 = 0.4;
/// Of free memory, what may be used.
const MEMORY_SHARE: f64 = 0.6;

/// Runs the command.
pub fn run(a: &Teach) -> Result<()> {
    let began = std::time::Instant::now();
    ranks::alone("teach")?;
    let say = |text: &str| if a.json { tell(text) } else { line(text).unwrap_or_default() };
    let columns =
        Columns { question: a.question.clone(), answer: a.answer.clone(), solution: a.solution.clone() };
    let lesson = Lesson::of(&read_table(&a.table, a.sheet.as_deref())?, &columns)
        .with_context(|| a.table.display().to_string())?;
    let out = a.out.clone().unwrap_or_else(|| {
        let name = a.table.file_name().unwrap_or_default().to_string_lossy().into_owned();
        PathBuf::from(name.split('.').next().filter(|n| !n.is_empty()).unwrap_or("taught"))
    });
    let recipe_path = beside(&out, ".toml");
    if recipe_path.exists() {
        understood(&lesson, &say);
        say(&format!("going on as {} says: remove it to begin anew", recipe_path.display()));
    } else {
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
        write_jsonl(&beside(&out, ".problems.jsonl"), &lesson.problems)?;
        replace(&recipe_path, text.as_bytes()).with_context(|| recipe_path.display().to_string())?;
    }
    let recipe = Recipe::load(&recipe_path, &[])?;
    if a.dry_run {
        return line(&recipe.resolved_toml());
    }
    run::train(&recipe, &[], &out, &Joined::single())?;
    finale(a, &lesson, &out, began.elapsed().as_secs_f64() / 60.0)
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
    for reason in ["no question", "no answer", "longer than 64 KiB"] {
        let rows: Vec<u64> = lesson.left_out.iter().filter(|(_, r)| *r == reason).map(|(n, _)| *n).collect();
        if let Some(first) = rows.first() {
            say(&format!("{} rows are left out, {reason} (the first is row {first})", rows.len()));
        }
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
    mut loaded: Loaded,
    out: &Path,
    say: &dyn Fn(&str),
) -> Result<(Trial, Result<String, String>)> {
    if loaded.tokenizer.chat_template().is_none() {
        bail!(
            "the tokenizer of {} has no chat template, so there is no way to ask the model anything",
            a.model.model.display()
        );
    }
    let lengths = lengths(&loaded.tokenizer, lesson)?;
    let max_new = a.max_new.unwrap_or(match lesson.solved {
        0 => MAX_NEW,
        _ => (lengths.longest_answer * 3 / 2).max(32),
    });
    let seq_len = lengths.longest_row + max_new;
    let patient = lengths.longest_row + max_new.max(PATIENCE);
    if reserve(&mut loaded.model, patient) < seq_len {
        bail!(
            "the longest row and its answer take {seq_len} tokens, more than the model's context: lower --max-new, or leave the row out"
        );
    }
    say("the model as it came, on some of the rows:");
    let held_text = held_text(a)?;
    let trial = try_model(
        &loaded.model,
        &loaded.tokenizer,
        lesson,
        max_new,
        TRYING * 60.0 * f64::from(a.minutes),
        say,
    )?;
    if let Some(reason) = pointless(&trial, lesson) {
        return Ok((trial, Err(reason)));
    }
    let budget = budget(a, lesson, &loaded.model, &trial, &lengths, max_new, seq_len);
    let plan = LessonPlan::of(lesson, &budget);
    let absolute = |p: &Path| std::path::absolute(p).with_context(|| p.display().to_string());
    let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let problems = absolute(&beside(out, ".problems.jsonl"))?;
    let places = (&trial.place, &trial.taught_place);
    let model = absolute(&a.model.model)?;
    let files = (model.as_path(), problems.as_path());
    let text = plan.recipe(&name, files, lesson, places, held_text.as_deref(), &budget);
    Ok((trial, Ok(text)))
}

/// Rows that the model tried, of those that are shown.
const SHOWN: usize = 5;

/// What `--dry-run --json` prints.
fn plan_json(lesson: &Lesson, trial: &Trial, settled: &Result<String, String>) -> Value {
    let (question, answer, solution) = &lesson.columns;
    let left_out: Vec<Value> =
        lesson.left_out.iter().map(|(row, reason)| json!({"row": row, "reason": reason})).collect();
    let tried = trial.found.greedy.iter().zip(&lesson.problems).take(SHOWN);
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

/// Why there is nothing to do, if so.
fn pointless(trial: &Trial, lesson: &Lesson) -> Option<String> {
    let all = &trial.found.all;
    if all.pass_at_1.value >= 1.0 && all.maj_at_k.value >= 1.0 {
        return Some(format!(
            "nothing to teach: the model is right on all {} rows that it was tried on",
            all.problems
        ));
    }
    if all.pass_at_k.value == 0.0 && lesson.solved == 0 {
        return Some(format!(
            "nothing to build on: of {} rows none was right in {} samples, and there are no worked solutions to learn from. Add a column with solutions, or take a model that is sometimes right",
            all.problems, all.samples
        ));
    }
    None
}

struct Lengths {
    longest_row: usize,
    longest_answer: usize,
    row: f64,
}

/// Tokens of rows with their solutions, as conversations.
fn lengths(tokenizer: &Tokenizer, lesson: &Lesson) -> Result<Lengths> {
    let place = lesson.taught_place();
    let (mut longest_row, mut longest_answer, mut sum) = (0, 0, 0);
    for (i, p) in lesson.problems.iter().enumerate() {
        let work = p.solution.as_deref().unwrap_or_default();
        let answer = place.write(work, &p.answer).unwrap_or_default();
        let turns = [Message::user(p.prompt.as_str()), Message::assistant(answer.as_str())];
        let chat = encode_chat(tokenizer, &Conversation::of(turns))
            .with_context(|| format!("row {} cannot be put to the model", i + 1))?;
        let answer = tokenizer.encode(&answer)?.len();
        longest_row = longest_row.max(chat.ids.len());
        longest_answer = longest_answer.max(answer);
        sum += chat.ids.len();
    }
    // What asks for the form comes on top.
    Ok(Lengths {
        longest_row: longest_row + 32,
        longest_answer,
        row: sum as f64 / lesson.problems.len() as f64 + 32.0,
    })
}

fn budget(
    a: &Teach,
    lesson: &Lesson,
    model: &Model,
    trial: &Trial,
    lengths: &Lengths,
    max_new: usize,
    seq_len: usize,
) -> Budget {
    let counted = model::inspect::inspect(model.config(), seq_len);
    let reached = REACHED * ceiling(counted.parameters.total as usize);
    let memory = training_bytes(model.config(), TRAINING_COPIES, 2048);
    let have = tensor::device(0).map(|gpu| gpu.info().memory as f64).or_else(available_bytes);
    let short = have.is_some_and(|have| memory > MEMORY_SHARE * have);
    let answer =
        if lesson.solved > 0 { lengths.longest_answer as f64 * 0.7 } else { trial.found.mean_tokens };
    Budget {
        seconds: 60.0 * f64::from(a.minutes),
        training: counted.training_operations_per_token as f64 / reached,
        generating: trial.seconds_per_token,
        max_new,
        seq_len,
        before: (trial.max_new, trial.found.mean_tokens),
        answer,
        row: lengths.row,
        lora: a.lora.or(short.then_some(RANK)),
        parameters: counted.parameters.total as f64,
        memory: have.map_or(4e9, |have| MEMORY_SHARE * have),
    }
}

/// Before and after, problem by problem.
fn finale(a: &Teach, lesson: &Lesson, out: &Path, minutes: f64) -> Result<()> {
    let (before, after) = (&measured(out, "before")?, &measured(out, "after")?);
    let gain = gain(&before.outcomes, &after.outcomes);
    let pct = |x: f64| format!("{:.1} %", 100.0 * x);
    let range = |m: &Measured| {
        let e = &m.scores.pass_at_1;
        format!("{} [{:.0}–{:.0}]", pct(e.value), 100.0 * e.low, 100.0 * e.high)
    };
    let recipe = beside(out, ".toml");
    let (model, adapter) = models(out)?;
    let forgotten = before.held_text.as_ref().zip(after.held_text.as_ref());
    if a.json {
        return json_line(&json!({
            "verifier": lesson.verifier,
            "rows": lesson.problems.len(),
            "held_out": before.outcomes.len(),
            "before": before.scores,
            "after": after.scores,
            "gain": {"value": gain[0], "low": gain[1], "high": gain[2]},
            "forgotten": forgotten.map(|(b, t)| json!({
                "text": b.text,
                "bytes": b.bytes,
                "before": b.bits_per_byte,
                "after": t.bits_per_byte,
                "worse": t.bits_per_byte / b.bits_per_byte - 1.0,
            })),
            "minutes": minutes,
            "model": model,
            "adapter": adapter,
            "recipe": recipe,
        }));
    }
    line("")?;
    let first = match gain[1] > 0.0 {
        true => format!(
            "better by {:.1} points [{:.1} to {:.1}]",
            100.0 * gain[0],
            100.0 * gain[1],
            100.0 * gain[2]
        ),
        false => format!(
            "not shown to be better: {:+.1} points, and the interval [{:.1} to {:.1}] holds zero",
            100.0 * gain[0],
            100.0 * gain[1],
            100.0 * gain[2]
        ),
    };
    line(&first)?;
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
    if let Some((b, t)) = forgotten {
        line(&format!(
            "  forgotten: {:.3} bits per byte before, {:.3} after ({:+.1} %), on {} bytes of text that nothing was trained on",
            b.bits_per_byte,
            t.bits_per_byte,
            100.0 * (t.bits_per_byte / b.bits_per_byte - 1.0),
            b.bytes
        ))?;
    }
    for (b, t) in before.answers.iter().zip(&after.answers).take(3) {
        line(&format!("\n  {}", harmless(&b.prompt).trim().replace('\n', "\n  ")))?;
        line(&format!(
            "  before {}: {}",
            mark(b.completion.score),
            harmless(&b.completion.text).trim().replace('\n', "\n    ")
        ))?;
        line(&format!(
            "  after  {}: {}",
            mark(t.completion.score),
            harmless(&t.completion.text).trim().replace('\n', "\n    ")
        ))?;
    }
    if let Some(adapter) = &adapter {
        line(&format!(
            "\nthe adapter is {}, and {} the model with it merged",
            adapter.display(),
            model.display()
        ))?;
    }
    line("\nnext:")?;
    line(&format!("  shoestring chat {}", model.display()))?;
    line(&format!("  shoestring convert {} --to my-model.gguf --type q8_0", model.display()))?;
    line(&format!("  {}, in a browser", out.join("report.html").display()))
}

fn mark(score: f64) -> &'static str {
    if score >= 0.5 { "right" } else { "wrong" }
}

/// What a stage of the run measured.
fn measured(out: &Path, stage: &str) -> Result<Measured> {
    let path = out.join(stage).join("done.json");
    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let done: Finished = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let one = done.figures.measured.into_iter().next();
    one.with_context(|| format!("{}: the run's measurements are not those of `teach`", path.display()))
}

/// The model that came out and, where that was trained, its adapter, which is merged beside the run.
fn models(out: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let model = out.join("model");
    if !model.join("adapter_config.json").exists() {
        return Ok((model, None));
    }
    let merged = beside(out, "-merged");
    if !merged.exists() {
        merge_into(&model, &merged)?;
    }
    Ok((merged, Some(model)))
}

/// The difference of the shares that are right, and its interval of 95 %, from the pairs.
fn gain(before: &[Outcome], after: &[Outcome]) -> [f64; 3] {
    let each: Vec<f64> = before
        .iter()
        .zip(after)
        .map(|(b, a)| f64::from(u8::from(a.greedy)) - f64::from(u8::from(b.greedy)))
        .collect();
    let n = each.len().max(1) as f64;
    let mean = each.iter().sum::<f64>() / n;
    // Never without spread: a pair more each way, as Agresti and Caffo do for two shares.
    let spread = (each.iter().map(|d| (d - mean).powi(2)).sum::<f64>() + 2.0) / (n * (n + 2.0));
    [mean, mean - 1.96 * spread.sqrt(), mean + 1.96 * spread.sqrt()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gain_is_of_pairs() {
        let of = |right: &[u8]| -> Vec<Outcome> {
            right.iter().map(|r| Outcome { greedy: *r == 1, any: true, majority: true }).collect()
        };
        let none = gain(&of(&[1, 0, 1, 0]), &of(&[1, 0, 1, 0]));
        assert!(none[0] == 0.0 && none[1] < 0.0 && none[2] > 0.0);
        let all = gain(&of(&[0; 100]), &of(&[1; 100]));
        assert!(all[0] == 1.0 && all[1] > 0.95 && all[1] < 1.0, "{all:?}");
    }
}
