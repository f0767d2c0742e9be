//! What a run says while it runs: `metrics.jsonl` and `samples.jsonl`, one JSON object a line, and the same for
//! TensorBoard.
//!
//! Lines are appended by one write each, so that a killed process leaves at most one broken line, at the end.
//! A stage that goes on from a checkpoint first takes out what it had said after it: no step stands twice.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::tensorboard::EventWriter;
use super::{RunError, write_atomic};

/// The numbers of a run.
pub const METRICS: &str = "metrics.jsonl";
/// The texts of a run.
pub const SAMPLES: &str = "samples.jsonl";
/// TensorBoard's folder, with one folder a stage.
pub const TENSORBOARD: &str = "tensorboard";

/// Names of the numbers that the report draws. A stage may log others as well.
pub mod keys {
    /// Mean loss of a step's batch, in nats per token.
    pub const LOSS: &str = "loss";
    /// Loss on held-out text, in nats per token.
    pub const EVAL_LOSS: &str = "eval_loss";
    /// Mean reward of a rollout.
    pub const REWARD: &str = "reward";
    /// Standard deviation of a rollout's rewards.
    pub const REWARD_STD: &str = "reward_std";
    /// Share of a rollout's answers that the verifiers accept.
    pub const ACCURACY: &str = "accuracy";
    /// Greedy accuracy on held-out problems.
    pub const EVAL_ACCURACY: &str = "eval_accuracy";
    /// Mean length of a rollout's answers, in tokens.
    pub const COMPLETION_LENGTH: &str = "completion_length";
    /// Mean entropy of the next token over a rollout, in nats.
    pub const ENTROPY: &str = "entropy";
    /// Tokens that the stage has trained on so far.
    pub const TOKENS: &str = "tokens";
    /// Tokens a second.
    pub const TOKENS_PER_SECOND: &str = "tokens_per_second";
    /// Share of the machine's large matrix products that the last steps reached.
    pub const CEILING_SHARE: &str = "ceiling_share";
    /// Seconds to the stage's last step, as the last steps went.
    pub const SECONDS_LEFT: &str = "seconds_left";
    /// Where there are several ranks: of one, on average, how long it is since the end of the step before, how much of that it has waited,
    /// and the bytes of gradients and weights that it has sent.
    pub const STEP_SECONDS: &str = "step_seconds";
    /// See [`STEP_SECONDS`].
    pub const WAITING_SECONDS: &str = "waiting_seconds";
    /// See [`STEP_SECONDS`].
    pub const SENT_BYTES: &str = "sent_bytes";
}

/// What stands before the name of a reward of the recipe's in its key.
pub const NAMED_REWARD: &str = "reward_";

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The stage.
    pub stage: String,
    /// Steps done, this one included: the first step is 1.
    pub step: u64,
    /// Seconds since 1970.
    pub time: f64,
    /// The numbers, in the order in which they were logged; one that was not finite reads as NaN.
    pub values: Vec<(String, f64)>,
}

impl Line {
    /// The number of this name.
    pub fn get(&self, key: &str) -> Option<f64> {
        self.values.iter().find(|(name, _)| name == key).map(|(_, value)| *value)
    }

    fn to_json(&self) -> String {
        let mut object = Map::new();
        object.insert("stage".into(), self.stage.as_str().into());
        object.insert("step".into(), self.step.into());
        object.insert("time".into(), self.time.into());
        for (key, value) in &self.values {
            // JSON has no NaN and no infinity: they become null.
            object.insert(key.clone(), (*value).into());
        }
        Value::Object(object).to_string()
    }

    fn from_json(text: &str) -> Option<Self> {
        let object: Map<String, Value> = serde_json::from_str(text).ok()?;
        let number = |value: &Value| if value.is_null() { Some(f64::NAN) } else { value.as_f64() };
        let own = ["stage", "step", "time"];
        let values = object.iter().filter(|(key, _)| !own.contains(&key.as_str()));
        Some(Line {
            stage: object.get("stage")?.as_str()?.to_owned(),
            step: object.get("step")?.as_u64()?,
            time: object.get("time")?.as_f64()?,
            values: values.map(|(key, value)| Some((key.clone(), number(value)?))).collect::<Option<_>>()?,
        })
    }
}

/// A line of `samples.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Text {
    /// The stage.
    pub stage: String,
    /// Steps done.
    pub step: u64,
    /// Seconds since 1970.
    pub time: f64,
    /// What kind of text it is.
    pub tag: String,
    /// The text.
    pub text: String,
}

/// Writes the metrics of one stage.
#[derive(Debug)]
pub struct Metrics {
    stage: String,
    lines: Appender,
    texts: Appender,
    events: EventWriter,
    events_dir: PathBuf,
}

impl Metrics {
    /// Opens the metrics of a stage whose checkpoint holds `resumed_step` steps; 0 begins anew.
    pub fn open(dir: &Path, stage: &str, resumed_step: u64) -> Result<Self, RunError> {
        let keep = |of: &str, step: u64| of != stage || (resumed_step > 0 && step <= resumed_step);
        let (lines_path, texts_path) = (dir.join(METRICS), dir.join(SAMPLES));
        let lines = keep_lines(&lines_path, Line::from_json, |line| keep(&line.stage, line.step))?;
        let texts = keep_lines(&texts_path, parse_text, |text| keep(&text.stage, text.step))?;
        let events_dir = dir.join(TENSORBOARD).join(stage);
        let events = replay(
            &events_dir,
            lines.iter().filter(|line| line.stage == stage),
            texts.iter().filter(|text| text.stage == stage),
        )
        .map_err(RunError::io("write", &events_dir))?;
        Ok(Metrics {
            stage: stage.to_owned(),
            lines: Appender::open(lines_path)?,
            texts: Appender::open(texts_path)?,
            events,
            events_dir,
        })
    }

    /// Adds the numbers of a step; steps are counted from 1, and 0 stands for before the first.
    pub fn log(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), RunError> {
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect();
        let line = Line { stage: self.stage.clone(), step, time: now(), values };
        self.lines.append(&line.to_json())?;
        log_event(&mut self.events, &line).map_err(RunError::io("write", &self.events_dir))
    }

    /// Adds a text, such as a sample of the model's thinking.
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<(), RunError> {
        let text =
            Text { stage: self.stage.clone(), step, time: now(), tag: tag.to_owned(), text: text.to_owned() };
        self.texts.append(&serde_json::to_string(&text).expect("strings and numbers are always JSON"))?;
        text_event(&mut self.events, &text).map_err(RunError::io("write", &self.events_dir))
    }

    /// Waits until everything is on the disk. To be called before a checkpoint of the same step is written.
    pub fn sync(&mut self) -> Result<(), RunError> {
        self.lines.sync()?;
        self.texts.sync()?;
        self.events.sync().map_err(RunError::io("write", &self.events_dir))
    }
}

/// All numbers of a run, in the order in which they were logged; lines that cannot be read are left out.
pub fn read_lines(dir: &Path) -> Result<Vec<Line>, RunError> {
    Ok(read(&dir.join(METRICS), Line::from_json)?.0)
}

/// All texts of a run, in the order in which they were logged; lines that cannot be read are left out.
pub fn read_texts(dir: &Path) -> Result<Vec<Text>, RunError> {
    Ok(read(&dir.join(SAMPLES), parse_text)?.0)
}

fn parse_text(line: &str) -> Option<Text> {
    serde_json::from_str(line).ok()
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// The lines of a file that may not exist, each parsed and as it stands, and whether there were any others.
fn read<T>(path: &Path, parse: fn(&str) -> Option<T>) -> Result<(Vec<T>, Vec<String>, bool), RunError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((vec![], vec![], false)),
        Err(error) => return Err(RunError::io("read", path)(error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let (mut parsed, mut lines, mut broken) = (Vec::new(), Vec::new(), false);
    for line in text.split_inclusive('\n') {
        // A line without its end was cut off, even if what is there happens to be JSON.
        match line.strip_suffix('\n').and_then(parse) {
            Some(value) => {
                parsed.push(value);
                lines.push(line.to_owned());
            }
            None => broken = true,
        }
    }
    Ok((parsed, lines, broken))
}

/// Takes all lines out of a file but those to keep, and gives these.
fn keep_lines<T>(
    path: &Path,
    parse: fn(&str) -> Option<T>,
    keep: impl Fn(&T) -> bool,
) -> Result<Vec<T>, RunError> {
    let (parsed, lines, broken) = read(path, parse)?;
    let before = parsed.len();
    let (kept, lines): (Vec<T>, Vec<String>) =
        parsed.into_iter().zip(lines).filter(|(value, _)| keep(value)).unzip();
    if broken || kept.len() < before {
        write_atomic(path, lines.concat().as_bytes())?;
    }
    Ok(kept)
}

/// A file that grows by lines.
#[derive(Debug)]
struct Appender {
    path: PathBuf,
    file: File,
}

impl Appender {
    fn open(path: PathBuf) -> Result<Self, RunError> {
        let file = OpenOptions::new().create(true).append(true).open(&path);
        Ok(Appender { file: file.map_err(RunError::io("open", &path))?, path })
    }

    fn append(&mut self, line: &str) -> Result<(), RunError> {
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(RunError::io("write", &self.path))
    }

    fn sync(&self) -> Result<(), RunError> {
        self.file.sync_data().map_err(RunError::io("write", &self.path))
    }
}

/// Replaces a stage's event files by one that holds what is kept.
fn replay<'a>(
    dir: &Path,
    lines: impl Iterator<Item = &'a Line>,
    texts: impl Iterator<Item = &'a Text>,
) -> std::io::Result<EventWriter> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir)?;
    let mut events = EventWriter::create(dir, now())?;
    for line in lines {
        log_event(&mut events, line)?;
    }
    for text in texts {
        text_event(&mut events, text)?;
    }
    Ok(events)
}

fn log_event(events: &mut EventWriter, line: &Line) -> std::io::Result<()> {
    events.scalars(line.time, line.step, line.values.iter().map(|(key, value)| (key.as_str(), *value)))
}

fn text_event(events: &mut EventWriter, text: &Text) -> std::io::Result<()> {
    // Four spaces make a block that Markdown leaves alone.
    let block: String = text.text.lines().map(|line| format!("    {line}\n")).collect();
    events.text(text.time, text.step, &text.tag, &block)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(dir: &Path) -> Vec<(String, u64)> {
        read_lines(dir).unwrap().into_iter().map(|line| (line.stage, line.step)).collect()
    }

    fn log(dir: &Path, stage: &str, resumed: u64, range: std::ops::RangeInclusive<u64>) {
        let mut metrics = Metrics::open(dir, stage, resumed).unwrap();
        for step in range {
            metrics.log(step, &[(keys::LOSS, step as f64)]).unwrap();
            metrics.text(step, "sample", "<think>\nhm").unwrap();
        }
        metrics.sync().unwrap();
    }

    /// After a resume each step stands once, in order, and other stages are untouched.
    #[test]
    fn resuming_takes_out_what_comes_after_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), "pretrain", 0, 1..=3);
        log(dir.path(), "grpo", 0, 0..=5);
        log(dir.path(), "grpo", 2, 3..=4);
        let expected = [("pretrain", 1), ("pretrain", 2), ("pretrain", 3)].into_iter();
        let expected = expected.chain((0..=4).map(|step| ("grpo", step)));
        let expected: Vec<(String, u64)> = expected.map(|(stage, step)| (stage.to_owned(), step)).collect();
        assert_eq!(steps(dir.path()), expected);
        let texts: Vec<u64> = read_texts(dir.path()).unwrap().iter().map(|text| text.step).collect();
        assert_eq!(texts, [1, 2, 3, 0, 1, 2, 3, 4]);
        log(dir.path(), "grpo", 0, 0..=0);
        assert_eq!(steps(dir.path()).last(), Some(&("grpo".to_owned(), 0)));
        assert_eq!(steps(dir.path()).len(), 4, "a stage that begins anew forgets its step 0 too");
    }

    /// `kill -9` in the middle of a write leaves half a line, which must not swallow the next one.
    #[test]
    fn a_cut_line_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), "sft", 0, 1..=2);
        let path = dir.path().join(METRICS);
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str(r#"{"stage":"sft","step":3,"ti"#);
        fs::write(&path, &text).unwrap();
        log(dir.path(), "sft", 3, 4..=4);
        assert_eq!(steps(dir.path()).iter().map(|(_, step)| *step).collect::<Vec<_>>(), [1, 2, 4]);
        let whole_but_unended = fs::read_to_string(&path).unwrap().trim_end().to_owned();
        fs::write(&path, whole_but_unended).unwrap();
        assert_eq!(steps(dir.path()).len(), 2);
    }

    /// Numbers come back to the bit; those that JSON cannot hold come back as NaN.
    #[test]
    fn numbers_survive() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(dir.path(), "grpo", 0).unwrap();
        let loss = f64::from(0.1_f32) + 1e-13;
        metrics.log(1, &[("loss", loss), ("kl", f64::NAN), ("grad", f64::INFINITY)]).unwrap();
        let line = &read_lines(dir.path()).unwrap()[0];
        assert_eq!(line.get("loss"), Some(loss));
        assert!(line.get("kl").unwrap().is_nan() && line.get("grad").unwrap().is_nan());
        assert_eq!(line.get("reward"), None);
    }

    /// TensorBoard gets one file per stage that holds what the log holds.
    #[test]
    fn tensorboard_files_are_replaced_on_resume() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), "grpo", 0, 1..=5);
        log(dir.path(), "grpo", 2, 3..=3);
        let events: Vec<_> = fs::read_dir(dir.path().join(TENSORBOARD).join("grpo")).unwrap().collect();
        assert_eq!(events.len(), 1);
    }
}
