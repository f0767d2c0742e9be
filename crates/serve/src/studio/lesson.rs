//! A lesson: a table and what is to be done with it, in a folder of its own, and the process that does it.
//!
//! ```text
//! lessons/<lesson>/table.csv       the table as it was dropped
//! lessons/<lesson>/lesson.json     what is asked for
//! lessons/<lesson>/process         the process's number; it holds the lock of this file for as long as it lives
//! lessons/<lesson>/look.json       what `teach --dry-run --json` said, and look.log what it told along the way
//! lessons/<lesson>/outcome.json    what `teach --json` said in the end, and teach.log
//! <lesson>/                        the run
//! ```
//!
//! The process is not the studio's: it goes on when the studio ends, and whoever comes later finds it by its lock.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{json_of, whole};
use crate::app::now;
use crate::error::{Answer, ApiError};
use crate::options::Teacher;

/// Bytes of a log that are told, from its end.
const MOST_LOG: u64 = 16 << 10;
/// Answers before and after that are shown.
const MOST_ANSWERS: usize = 20;

/// What the page calls the options of `teach`.
const FIELDS: [(&str, &str); 5] = [
    ("--question", "“Column of questions”"),
    ("--answer", "“Column of answers”"),
    ("--solution", "“Column of solutions”"),
    ("--max-new", "“Tokens of an answer at most”"),
    ("--minutes", "“Minutes it may take”"),
];

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// Understand the table and try the model.
    Look,
    Teach,
}

impl Doing {
    fn name(self) -> &'static str {
        match self {
            Doing::Look => "look",
            Doing::Teach => "teach",
        }
    }
}

/// A lesson's folder, and the folder of runs that it lies in.
pub(super) struct Lesson {
    pub(super) name: String,
    runs: PathBuf,
}

/// The folder of lessons among runs.
pub(super) const LESSONS: &str = "lessons";

impl Lesson {
    /// A lesson that is there. A name is one part of a path, so that it leads nowhere else.
    pub(super) fn find(runs: &Path, name: &str) -> Option<Lesson> {
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        let lesson = Lesson { name: name.to_owned(), runs: runs.to_path_buf() };
        (plain && !name.is_empty() && lesson.path("lesson.json").is_file()).then_some(lesson)
    }

    /// All of them, the newest first.
    pub(super) fn all(runs: &Path) -> Vec<Lesson> {
        let entries = fs::read_dir(runs.join(LESSONS)).into_iter().flatten().flatten();
        let mut found: Vec<(u64, Lesson)> = entries
            .filter_map(|e| Lesson::find(runs, e.file_name().to_str()?))
            .map(|l| (l.asked()["made"].as_u64().unwrap_or_default(), l))
            .collect();
        found.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.name.cmp(&b.1.name)));
        found.into_iter().map(|(_, lesson)| lesson).collect()
    }

    /// A new one for a table that was called so, in a folder that nothing else has.
    pub(super) fn create(runs: &Path, file: &str, table: &[u8]) -> std::io::Result<Lesson> {
        let (stem, ending) = plain_name(file);
        fs::create_dir_all(runs.join(LESSONS))?;
        for n in 1.. {
            let name = if n == 1 { stem.clone() } else { format!("{stem}-{n}") };
            let lesson = Lesson { name, runs: runs.to_path_buf() };
            if lesson.run().exists() || lesson.recipe().exists() {
                continue;
            }
            match fs::create_dir(lesson.path("")) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            let table_name = format!("table{ending}");
            fs::write(lesson.path(&table_name), table)?;
            let file: String = file.chars().filter(|c| !c.is_control()).take(200).collect();
            lesson.save(&json!({"file": file, "table": table_name, "made": now(), "settings": {}}))?;
            return Ok(lesson);
        }
        unreachable!("some number is free")
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.runs.join(LESSONS).join(&self.name).join(file)
    }

    /// The run's folder.
    fn run(&self) -> PathBuf {
        self.runs.join(&self.name)
    }

    /// The run's recipe; where there is one, teaching has begun.
    fn recipe(&self) -> PathBuf {
        self.runs.join(format!("{}.toml", self.name))
    }

    pub(super) fn has_begun(&self) -> bool {
        self.recipe().is_file()
    }

    /// `lesson.json`.
    pub(super) fn asked(&self) -> Value {
        json_of(&self.path("lesson.json")).unwrap_or_default()
    }

    fn save(&self, asked: &Value) -> std::io::Result<()> {
        let next = self.path("lesson.json.new");
        fs::write(&next, asked.to_string())?;
        fs::rename(next, self.path("lesson.json"))
    }

    /// The file whose lock says that a process is at work.
    fn process(&self) -> std::io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.path("process"))
    }

    pub(super) fn is_at_work(&self) -> bool {
        self.process().is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Starts a process: `model` is where the model lies, `settings` what was asked for.
    pub(super) fn begin(&self, teacher: &Teacher, doing: Doing, model: &Path, settings: Value) -> Answer<()> {
        let mut asked = self.asked();
        let table = self.path(asked["table"].as_str().unwrap_or_default());
        let arguments = arguments(doing, &settings, model, &table, &self.run());
        asked["settings"] = settings;
        asked["doing"] = doing.name().into();
        asked["began"] = now().into();
        let broken = |e: std::io::Error| ApiError::internal(format!("cannot start to teach: {e}"));
        let (said, log) = match doing {
            Doing::Look => ("look.json", "look.log"),
            Doing::Teach => ("outcome.json", "teach.log"),
        };
        let mut lock = self.process().map_err(broken)?;
        lock.try_lock().map_err(|_| ApiError::conflict("this lesson is at work already"))?;
        self.save(&asked).map_err(broken)?;
        let mut command = Command::new(&teacher.program);
        command.args(&teacher.arguments).args(arguments);
        // Its standard input is the locked file: the lock lasts as long as the process does.
        command.stdin(lock.try_clone().map_err(broken)?);
        command.stdout(File::create(self.path(said)).map_err(broken)?);
        command.stderr(File::create(self.path(log)).map_err(broken)?);
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(broken)?;
        lock.set_len(0).and_then(|()| write!(lock, "{}", child.id())).map_err(broken)?;
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// Asks the process to save and end.
    pub(super) fn stop(&self) -> Answer<()> {
        if !self.is_at_work() {
            return Err(ApiError::conflict("this lesson is not at work"));
        }
        let id = whole(&self.path("process")).and_then(|text| text.trim().parse::<i32>().ok());
        interrupt(id.filter(|&id| id > 1))
            .ok_or_else(|| ApiError::internal("the process cannot be told to stop"))
    }

    /// How it stands, in a word: new, looking, looked, teaching, stopped, failed or done.
    fn state(&self, asked: &Value) -> &'static str {
        let teaches = asked["doing"] == Doing::Teach.name();
        match () {
            () if self.is_at_work() => {
                if teaches {
                    "teaching"
                } else {
                    "looking"
                }
            }
            () if json_of(&self.path("outcome.json")).is_some() => "done",
            () if self.error(asked).is_some() => "failed",
            () if self.has_begun() => "stopped",
            () if json_of(&self.path("look.json")).is_some() => "looked",
            () => "new",
        }
    }

    /// What the process that ended last has to complain of, in the words of the page: the table as it was called, fields for options.
    fn error(&self, asked: &Value) -> Option<String> {
        let teaches = asked["doing"] == Doing::Teach.name();
        let log = tail(&self.path(if teaches { "teach.log" } else { "look.log" }));
        let said = log.lines().rev().find_map(|line| line.strip_prefix("error: "))?;
        let table = self.path(asked["table"].as_str().unwrap_or_default());
        let said = said.replace(&*table.to_string_lossy(), asked["file"].as_str().unwrap_or("the table"));
        Some(FIELDS.iter().fold(said, |said, (option, field)| said.replace(option, field)))
    }

    /// In a line of a list.
    pub(super) fn brief(&self) -> Value {
        let asked = self.asked();
        json!({"name": self.name, "file": asked["file"], "state": self.state(&asked)})
    }

    /// All that there is to know.
    pub(super) fn describe(&self) -> Value {
        let asked = self.asked();
        let state = self.state(&asked);
        let teaches = asked["doing"] == Doing::Teach.name();
        let log = if teaches { "teach.log" } else { "look.log" };
        let began = asked["began"].as_u64();
        json!({
            "name": self.name,
            "file": asked["file"],
            "state": state,
            "settings": asked["settings"],
            "seconds": began.filter(|_| self.is_at_work()).map(|began| now().saturating_sub(began)),
            "begun": self.has_begun(),
            "run": self.run().join("recipe.toml").is_file(),
            "look": json_of(&self.path("look.json")),
            "outcome": json_of(&self.path("outcome.json")),
            "error": if state == "failed" { self.error(&asked) } else { None },
            "log": tail(&self.path(log)).lines().rev().take(12).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>(),
            "answers": if state == "done" { answers(&self.run()) } else { Vec::new() },
        })
    }
}

/// A file's name as that of a folder, and its ending.
fn plain_name(file: &str) -> (String, String) {
    let last = file.rsplit(['/', '\\']).next().unwrap_or_default();
    let (stem, ending) = last.split_once('.').unwrap_or((last, ""));
    let mut plain = String::new();
    for c in stem.chars().take(60) {
        match c {
            c if c.is_ascii_alphanumeric() || c == '_' => plain.push(c),
            _ if plain.ends_with('-') || plain.is_empty() => {}
            _ => plain.push('-'),
        }
    }
    let plain = plain.trim_end_matches('-');
    let known =
        |part: &&str| !part.is_empty() && part.len() <= 8 && part.bytes().all(|b| b.is_ascii_alphanumeric());
    let parts: Vec<&str> = ending.rsplit('.').take(2).filter(known).collect();
    let ending = match parts[..] {
        ["gz", kind] => format!(".{kind}.gz"),
        [kind, ..] => format!(".{kind}"),
        [] => String::new(),
    };
    (if plain.is_empty() { "table".to_owned() } else { plain.to_owned() }, ending.to_lowercase())
}

fn arguments(doing: Doing, settings: &Value, model: &Path, table: &Path, out: &Path) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["teach".into(), "--json".into()];
    if doing == Doing::Look {
        all.push("--dry-run".into());
    }
    let mut option = |name: &str, value: OsString| {
        let mut text = OsString::from(format!("--{name}="));
        text.push(value);
        all.push(text);
    };
    option("out", out.into());
    for (key, name) in [
        ("minutes", "minutes"),
        ("question", "question"),
        ("answer", "answer"),
        ("solution", "solution"),
        ("max_new", "max-new"),
    ] {
        match &settings[key] {
            Value::String(text) => option(name, text.into()),
            Value::Number(number) => option(name, number.to_string().into()),
            _ => {}
        }
    }
    all.extend(["--".into(), model.into(), table.into()]);
    all
}

#[cfg(unix)]
fn interrupt(id: Option<i32>) -> Option<()> {
    let process = rustix::process::Pid::from_raw(id?)?;
    rustix::process::kill_process(process, rustix::process::Signal::INT).ok()
}

#[cfg(not(unix))]
fn interrupt(_: Option<i32>) -> Option<()> {
    None
}

/// The end of a file.
fn tail(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let length = file.metadata().map_or(0, |m| m.len());
        let _ = file
            .seek(SeekFrom::Start(length.saturating_sub(MOST_LOG)))
            .and_then(|_| file.take(MOST_LOG).read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What the model answered before and after, problem by problem: read off what the run's stages have measured.
fn answers(run: &Path) -> Vec<Value> {
    let stages = fs::read_dir(run).into_iter().flatten().flatten();
    let measured: Vec<Value> = stages
        .filter_map(|stage| json_of(&stage.path().join("done.json")))
        .filter_map(|mut done| done["figures"]["measured"].as_array_mut().map(std::mem::take))
        .flatten()
        .collect();
    let of =
        |taught: bool| measured.iter().find(|m| (m["stage"] == "model") == taught)?["answers"].as_array();
    let (Some(before), Some(after)) = (of(false), of(true)) else { return Vec::new() };
    let said = |a: &Value| {
        let completion = &a["completion"];
        json!({"text": completion["text"], "right": completion["score"].as_f64().is_some_and(|s| s >= 0.5)})
    };
    let after_of = |b: &Value| after.iter().find(|a| a["answer"] == b["answer"] && same_prompt(a, b));
    let pairs = before.iter().filter_map(|b| Some((b, after_of(b)?))).take(MOST_ANSWERS);
    pairs
        .map(|(b, a)| json!({"question": b["prompt"], "answer": b["answer"], "before": said(b), "after": said(a)}))
        .collect()
}

/// Whether two are of one problem, though it may have been put in two ways.
fn same_prompt(a: &Value, b: &Value) -> bool {
    let text =
        |v: &Value| v["prompt"].as_str().unwrap_or_default().lines().next().unwrap_or_default().to_owned();
    text(a) == text(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_become_names_of_folders() {
        for (file, stem, ending) in [
            ("Sums of 2026.csv", "Sums-of-2026", ".csv"),
            ("../../etc/passwd", "passwd", ""),
            ("C:\\tables\\a.b.JSONL.gz", "a", ".jsonl.gz"),
            ("..", "table", ""),
            ("", "table", ""),
            (".csv", "table", ".csv"),
            ("--out=x.csv", "out-x", ".csv"),
            ("Über\0\u{202e}.tsv", "ber", ".tsv"),
            ("x.c/v", "v", ""),
            ("x.very-long-ending", "x", ""),
        ] {
            assert_eq!(plain_name(file), (stem.to_owned(), ending.to_owned()), "{file:?}");
        }
    }
}
