//! The user's own problems: JSON lines of `{"prompt", "answer", "meta"?, "verifier"?, "solution"?}`.

use crate::verify::ByTask;
use crate::{Error, Problem, Result, Verifier, verifier};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    prompt: String,
    #[serde(default)]
    answer: Answer,
    #[serde(default)]
    meta: Value,
    #[serde(default)]
    verifier: Option<String>,
    #[serde(default)]
    task: Option<String>,
    #[serde(default)]
    solution: Option<String>,
}

/// Files often hold `"answer": 42`: a number is as good as its text.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Answer {
    Text(String),
    Number(serde_json::Number),
    #[default]
    Missing,
}

/// Reads problems from a JSON-lines file; empty lines are skipped.
///
/// # Errors
/// An unreadable or empty file, and the first line that is not a problem, with its number.
pub fn load_problems(path: impl AsRef<Path>) -> Result<Vec<Problem>> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let fail = |line: usize, what: String| Error::Line { path: path.to_owned(), line, what };
    let mut problems = Vec::new();
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate() {
        let line = std::str::from_utf8(line).map_err(|_| fail(i + 1, "is not UTF-8".into()))?.trim();
        if !line.is_empty() {
            problems.push(parse(line).map_err(|what| fail(i + 1, what))?);
        }
    }
    if problems.is_empty() {
        return Err(fail(
            1,
            "the file holds no problems; expected lines of {\"prompt\": …, \"answer\": …}".into(),
        ));
    }
    Ok(problems)
}

fn parse(line: &str) -> std::result::Result<Problem, String> {
    let record: Record = serde_json::from_str(line).map_err(|e| {
        // It is a line of its own, which the caller counts.
        let text = e.to_string();
        text.rsplit_once(" at line 1 ").map_or(text.clone(), |(what, at)| format!("{what} at {at}"))
    })?;
    if record.prompt.trim().is_empty() {
        return Err("`prompt` is empty".into());
    }
    if let Some(name) = &record.verifier {
        verifier(name).map_err(|e| e.to_string())?;
    }
    let answer = match record.answer {
        Answer::Text(text) => text,
        Answer::Number(number) => number.to_string(),
        Answer::Missing => String::new(),
    };
    // Only these verifiers can do without an answer: the rest compare with it.
    let self_sufficient = matches!(record.verifier.as_deref(), Some("expression" | "regex" | "format"));
    if answer.trim().is_empty() && !self_sufficient {
        return Err("`answer` is missing or empty, and nothing empty ever scores".into());
    }
    let problem = Problem {
        task: record.task.unwrap_or_else(|| "user".to_owned()),
        prompt: record.prompt,
        answer,
        meta: record.meta,
        verifier: record.verifier,
        solution: record.solution,
    };
    // Another verifier may be asked for later, so only what the problem itself asks for is checked.
    match problem.verifier.as_ref().and_then(|_| ByTask.fault(&problem)) {
        Some(fault) => Err(fault),
        None => Ok(problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &[u8]) -> Result<Vec<Problem>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.jsonl");
        std::fs::write(&path, text).unwrap();
        load_problems(&path)
    }

    #[test]
    fn reads_problems() {
        let problems = load(
            b"{\"prompt\":\"2+2?\",\"answer\":4,\"solution\":\"two and two\"}\n\n{\"prompt\":\"B?\",\"answer\":\"B\",\"verifier\":\"choice\",\"meta\":{\"x\":1}}\n",
        )
        .unwrap();
        assert_eq!(problems.len(), 2);
        assert_eq!((problems[0].answer.as_str(), problems[0].task.as_str()), ("4", "user"));
        assert_eq!(problems[0].solution.as_deref(), Some("two and two"));
        assert_eq!(problems[1].verifier.as_deref(), Some("choice"));
    }

    /// A broken line is found by its number, before any training starts.
    #[test]
    fn errors_name_the_line() {
        for (text, want) in [
            (&b"{\"prompt\":\"a\",\"answer\":\"b\"}\n{\"prompt\":"[..], "line 2"),
            (b"{\"question\":\"a\",\"answer\":\"b\"}", "question"),
            (b"{\"prompt\":\"a\"}", "`answer` is missing"),
            (b"{\"prompt\":\" \",\"answer\":\"b\"}", "`prompt` is empty"),
            (b"{\"prompt\":\"a\",\"answer\":\"b\",\"verifier\":\"exakt\"}", "did you mean `exact`?"),
            (br#"{"prompt":"a","answer":"b","verifier":"numeric"}"#, "is not a number"),
            (br#"{"prompt":"a","answer":"([","verifier":"regex"}"#, "pattern is broken"),
            (br#"{"prompt":"a","answer":"3","verifier":"expression"}"#, "lacks numbers and target"),
            (br#"{"prompt":"a","answer":"5","verifier":"choice"}"#, "no letter from A to E"),
            (b"\xff\xfe", "not UTF-8"),
            (b"\n\n", "no problems"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("mine.jsonl"), "{error}");
        }
    }
}
