//! Calls of tools, read back out of what a model wrote.
//!
//! Three forms are known: `<tool_call>{"name", "arguments"}</tool_call>` (Hermes, Qwen), a JSON object with `name` and
//! `parameters` and nothing else (Llama 3), and DeepSeek's `<｜tool▁call▁begin｜>`. What looks like a call and is none, or
//! calls what was not offered, stays text.

use data::answer::held_back;
use serde_json::Value;

/// A call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// JSON.
    pub(crate) arguments: String,
}

const HERMES: (&str, &str) = ("<tool_call>", "</tool_call>");
const DEEPSEEK: (&str, &str) = ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>");
const DEEPSEEK_ALL: (&str, &str) = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>");
const SEPARATOR: &str = "<｜tool▁sep｜>";

/// Reads an answer that may hold calls, as it comes.
pub(crate) struct ToolReader {
    /// Names of what may be called.
    names: Vec<String>,
    pending: String,
    /// Whether the text so far was white space alone: a bare object may still come.
    blank: bool,
    /// Whether a call has begun, so that nothing is told until the end.
    held: bool,
    one: bool,
}

impl ToolReader {
    /// A reader for tools of these names; `one`: the first call alone counts.
    pub(crate) fn new(names: Vec<String>, one: bool) -> ToolReader {
        ToolReader { names, pending: String::new(), blank: true, held: false, one }
    }

    /// Takes a piece of the answer, and gives text that is certain to be text.
    pub(crate) fn push(&mut self, piece: &str) -> String {
        self.pending.push_str(piece);
        if self.held {
            return String::new();
        }
        let markers = [HERMES.0, DEEPSEEK_ALL.0, DEEPSEEK.0];
        if self.blank && self.pending.trim_start().starts_with('{') {
            self.held = true;
            return String::new();
        }
        if let Some(at) = markers.iter().filter_map(|m| self.pending.find(m)).min() {
            self.held = true;
            return self.pending.drain(..at).collect();
        }
        let end = self.pending.len() - held_back(&self.pending, markers.into_iter());
        let text: String = self.pending.drain(..end).collect();
        self.blank &= text.trim().is_empty();
        text
    }

    /// The end: what else is text, and the calls.
    pub(crate) fn finish(&mut self) -> (String, Vec<Call>) {
        let rest = std::mem::take(&mut self.pending);
        if !self.held {
            return (rest, Vec::new());
        }
        let (text, mut calls) = if rest.trim_start().starts_with('{') {
            bare(&rest)
        } else if rest.contains(DEEPSEEK.0) {
            let inside = rest.replace(DEEPSEEK_ALL.0, "").replace(DEEPSEEK_ALL.1, "");
            between(&inside, DEEPSEEK, deepseek)
        } else {
            between(&rest, HERMES, |text| object(text, "arguments"))
        };
        if calls.is_empty() || calls.iter().any(|c| !self.names.contains(&c.name)) {
            return (rest, Vec::new());
        }
        if self.one {
            calls.truncate(1);
        }
        let text = if text.trim().is_empty() { String::new() } else { text };
        (text, calls)
    }
}

/// Calls between marks, and the text around them. One that cannot be read spoils all.
fn between(
    text: &str,
    (open, close): (&str, &str),
    read: impl Fn(&str) -> Option<Call>,
) -> (String, Vec<Call>) {
    let (mut around, mut calls, mut rest) = (String::new(), Vec::new(), text);
    while let Some((before, after)) = rest.split_once(open) {
        around += before;
        // A call that ends with the text needs no closing mark.
        let (inside, after) = after.split_once(close).unwrap_or((after, ""));
        let Some(call) = read(inside) else { return (String::new(), Vec::new()) };
        calls.push(call);
        rest = after;
    }
    (around + rest, calls)
}

/// `{"name": …, <field>: {…}}`.
fn object(text: &str, field: &str) -> Option<Call> {
    call(&serde_json::from_str(text.trim()).ok()?, field)
}

fn call(value: &Value, field: &str) -> Option<Call> {
    let name = value.get("name")?.as_str()?.to_owned();
    let arguments = match value.get(field) {
        None => "{}".to_owned(),
        Some(Value::String(text)) => serde_json::from_str::<Value>(text).ok()?.to_string(),
        Some(Value::Object(map)) => Value::Object(map.clone()).to_string(),
        Some(_) => return None,
    };
    Some(Call { name, arguments })
}

/// Objects with `name` and `parameters`, one after another, with `;` between them or nothing.
fn bare(text: &str) -> (String, Vec<Call>) {
    let mut calls = Vec::new();
    let parts = text.split_inclusive('}').fold(vec![String::new()], |mut parts, piece| {
        let last = parts.last_mut().expect("there is one");
        last.push_str(piece);
        if serde_json::from_str::<Value>(last.trim_matches([';', ' ', '\n'])).is_ok() {
            parts.push(String::new());
        }
        parts
    });
    for part in parts {
        let part = part.trim_matches([';', ' ', '\n', '\t', '\r']);
        if part.is_empty() {
            continue;
        }
        let Ok(value) = serde_json::from_str::<Value>(part) else { return (String::new(), Vec::new()) };
        let field = if value.get("parameters").is_some() { "parameters" } else { "arguments" };
        let Some(call) = call(&value, field) else { return (String::new(), Vec::new()) };
        calls.push(call);
    }
    (String::new(), calls)
}

/// `function<sep>NAME`, then the arguments in a fence (V3, R1); or `NAME<sep>{…}` (V3.1).
fn deepseek(text: &str) -> Option<Call> {
    let (first, second) = text.split_once(SEPARATOR)?;
    let (name, arguments) = match second.split_once("```json") {
        Some((name, fenced)) => (name, fenced.split("```").next()?),
        None => (first, second),
    };
    let arguments: Value = serde_json::from_str(arguments.trim()).ok()?;
    arguments.is_object().then(|| Call { name: name.trim().to_owned(), arguments: arguments.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, cut: usize) -> (String, Vec<(String, String)>) {
        let mut reader = ToolReader::new(vec!["add".into(), "now".into()], false);
        let mut out = reader.push(&text[..cut]);
        out += &reader.push(&text[cut..]);
        let (rest, calls) = reader.finish();
        (out + &rest, calls.into_iter().map(|c| (c.name, c.arguments)).collect())
    }

    /// The forms of the models' own templates, however they are cut.
    #[test]
    fn calls_are_read_back() {
        let add = ("add".to_owned(), r#"{"a":1,"b":"x } y"}"#.to_owned());
        let now = ("now".to_owned(), "{}".to_owned());
        for (text, before) in [
            (
                "Let me see.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": \"x } y\"}}\n</tool_call>\n\
                 <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
                "Let me see.\n",
            ),
            (
                "{\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": \"x } y\"}}; {\"name\": \"now\", \"parameters\": {}}",
                "",
            ),
            (
                "So.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 1, \"b\": \"x } y\"}\n```\
                 <｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
                "So.",
            ),
        ] {
            for cut in (0..=text.len()).filter(|&c| text.is_char_boundary(c)) {
                let (rest, calls) = read(text, cut);
                assert_eq!(calls, [add.clone(), now.clone()], "{text}");
                assert_eq!(rest.trim(), before.trim(), "{text}");
            }
        }
    }

    /// Nothing is lost of what is no call.
    #[test]
    fn what_is_no_call_stays_text() {
        for text in [
            "plain < text",
            "{\"name\": \"add\"",
            "{\"answer\": 3}",
            "<tool_call>\n{\"name\": \"other\", \"arguments\": {}}\n</tool_call>",
            "<tool_call>\nnot JSON\n</tool_call>",
            "<tool_call>\n{\"name\": \"add\", \"arguments\": 3}\n</tool_call>",
            "ends with <tool_ca",
        ] {
            for cut in 0..=text.len() {
                assert_eq!(read(text, cut), (text.to_owned(), vec![]));
            }
        }
    }
}
