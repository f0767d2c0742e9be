//! The user's own problems: records of `{"prompt", "answer", "meta"?, "verifier"?, "solution"?}`.

use crate::verify::ByTask;
use crate::{Error, Problem, Result, Verifier, verifier};
use data::Records;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::path::Path;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    prompt: String,
    #[serde(default)]
    answer: Option<Box<RawValue>>,
    #[serde(default)]
    meta: Value,
    #[serde(default)]
    verifier: Option<String>,
    #[serde(default)]
    task: Option<String>,
    #[serde(default)]
    solution: Option<String>,
}

/// Reads problems from a file of JSON lines (also in gzip; empty lines are skipped) or from a Parquet file.
///
/// # Errors
/// An unreadable or empty file, and the first record that is not a problem, with its place.
pub fn load_problems(path: impl AsRef<Path>) -> Result<Vec<Problem>> {
    let path = path.as_ref();
    let mut problems = Vec::new();
    for record in Records::<Record>::open(path, &[])? {
        let (place, record) = record?;
        problems.push(problem(record).map_err(|what| place.error(what))?);
    }
    if problems.is_empty() {
        return Err(Error::NoProblems(path.to_owned()));
    }
    Ok(problems)
}

fn problem(record: Record) -> std::result::Result<Problem, String> {
    if record.prompt.trim().is_empty() {
        return Err("`prompt` is empty".into());
    }
    if let Some(name) = &record.verifier {
        verifier(name).map_err(|e| e.to_string())?;
    }
    let answer = record.answer.map_or(Ok(String::new()), |answer| answer_text(answer.get()))?;
    // Only these verifiers can do without an answer: the rest compare with it.
    let self_sufficient = matches!(record.verifier.as_deref(), Some("expression" | "regex" | "format"));
    if answer.trim().is_empty() && !self_sufficient {
        return Err("`answer` is missing or empty, and nothing empty ever scores".into());
    }
    let problem = Problem {
        task: record.task.unwrap_or_else(|| "user".to_owned()),
        system: None,
        prompt: record.prompt,
        answer,
        meta: record.meta,
        verifier: record.verifier,
        solution: Some(record.solution.unwrap_or_default()),
    };
    // Another verifier may be asked for later, so only what the problem itself asks for is checked.
    match problem.verifier.as_ref().and_then(|_| ByTask.fault(&problem)) {
        Some(fault) => Err(fault),
        None => Ok(problem),
    }
}

/// An answer's text. Files often hold `"answer": 42`: a number is as good as its text, to its last digit.
fn answer_text(json: &str) -> std::result::Result<String, String> {
    match json.bytes().next() {
        Some(b'"') => serde_json::from_str(json).map_err(|e| format!("`answer`: {e}")),
        Some(b'-' | b'0'..=b'9') => Ok(json.to_owned()),
        _ if json == "null" => Ok(String::new()),
        _ => Err(format!("`answer` is {json}, expected text or a number")),
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
            b"\xef\xbb\xbf{\"prompt\":\"2+2?\",\"answer\":4,\"solution\":\"two and two\"}\n\n{\"prompt\":\"B?\",\"answer\":\"B\",\"verifier\":\"choice\",\"meta\":{\"x\":1}}\n{\"prompt\":\"many\",\"answer\":123456789012345678901234567890}",
        )
        .unwrap();
        assert_eq!(problems.len(), 3);
        assert_eq!(problems[2].answer, "123456789012345678901234567890", "to the last digit");
        assert_eq!((problems[0].answer.as_str(), problems[0].task.as_str()), ("4", "user"));
        assert_eq!(problems[0].solution.as_deref(), Some("two and two"));
        assert_eq!(problems[1].verifier.as_deref(), Some("choice"));
    }

    /// Rows of Parquet come as parsed JSON.
    #[test]
    fn rows_are_records_too() {
        let record = serde_json::from_value(serde_json::json!({"prompt": "a", "answer": 4})).unwrap();
        assert_eq!(problem(record).unwrap().answer, "4");
    }

    /// A broken line is found by its number, before any training starts.
    #[test]
    fn errors_name_the_line() {
        for (text, want) in [
            (&b"{\"prompt\":\"a\",\"answer\":\"b\"}\n{\"prompt\":"[..], "line 2"),
            (b"{\"question\":\"a\",\"answer\":\"b\"}", "question"),
            (b"{\"prompt\":\"a\"}", "`answer` is missing"),
            (b"{\"prompt\":\"a\",\"answer\":[1]}", "`answer` is [1], expected text or a number"),
            (b"{\"prompt\":\" \",\"answer\":\"b\"}", "`prompt` is empty"),
            (b"{\"prompt\":\"a\",\"answer\":\"b\",\"verifier\":\"exakt\"}", "did you mean `exact`?"),
            (br#"{"prompt":"a","answer":"b","verifier":"numeric"}"#, "is not a number"),
            (br#"{"prompt":"a","answer":"([","verifier":"regex"}"#, "pattern is broken"),
            (br#"{"prompt":"a","answer":"3","verifier":"expression"}"#, "lacks numbers and target"),
            (br#"{"prompt":"a","answer":"5","verifier":"choice"}"#, "no letter from A to E"),
            (b"\xff\xff", "not UTF-8"),
            (b"\n\n", "no problems"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("mine.jsonl"), "{error}");
        }
    }
}
