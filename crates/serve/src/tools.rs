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
/// Marks with which calls begin.
const MARKS: [&str; 3] = [HERMES.0, DEEPSEEK_ALL.0, DEEPSEEK.0];

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
        if self.blank && self.pending.trim_start().starts_with('{') {
            self.held = true;
            return String::new();
        }
        if let Some(at) = MARKS.iter().filter_map(|m| self.pending.find(m)).min() {
            self.held = true;
            return self.pending.drain(..at).collect();
        }
        let end = self.pending.len() - held_back(&self.pending, MARKS.into_iter());
        let text: String = self.pending.drain(..end).collect();
        self.blank &= text.trim().is_empty();
        text
    }

    /// Whether there is nothing to wait for: the first call alone counts, and it is there.
    pub(crate) fn is_done(&self) -> bool {
        self.one && self.held && self.pending.ends_with(['}', '>', '`']) && self.read(false).is_some()
    }

    /// The text around the calls, and the calls: all of them can be read, and are of tools that were offered. Of a text that is `cut`
    /// off, the last may be missing.
    fn read(&self, cut: bool) -> Option<(String, Vec<Call>)> {
        let text = &self.pending;
        let (around, calls) = if text.trim_start().starts_with('{') {
            (String::new(), bare(text, cut)?)
        } else if text.contains(DEEPSEEK.0) {
            let inside = text.replace(DEEPSEEK_ALL.0, "").replace(DEEPSEEK_ALL.1, "");
            between(&inside, DEEPSEEK, cut, deepseek)?
        } else {
            between(text, HERMES, cut, |text| object(text, "arguments"))?
        };
        let known = !calls.is_empty() && calls.iter().all(|c| self.names.contains(&c.name));
        known.then_some((around, calls))
    }

    /// The end: what else is text, and the calls. A call in which the text was `cut` off is left out where there are others.
    pub(crate) fn finish(&mut self, cut: bool) -> (String, Vec<Call>) {
        let read = if self.held { self.read(cut) } else { None };
        let rest = std::mem::take(&mut self.pending);
        let Some((text, mut calls)) = read else { return (rest, Vec::new()) };
        if self.one {
            calls.truncate(1);
        }
        let text = if text.trim().is_empty() { String::new() } else { text };
        (text, calls)
    }
}

/// Calls between marks, and the text around them. One that cannot be read spoils all, unless it is the last of a text that is `cut` off.
/// `read` takes a call off the beginning
/// of a text, and gives the rest.
fn between(
    text: &str,
    (open, close): (&str, &str),
    cut: bool,
    read: impl Fn(&str) -> Option<(Call, &str)>,
) -> Option<(String, Vec<Call>)> {
    let (mut around, mut calls, mut rest) = (String::new(), Vec::new(), text);
    while let Some((before, after)) = rest.split_once(open) {
        around += before;
        let Some((call, after)) = read(after) else {
            let last = cut && !after.contains(open);
            return last.then_some((around, calls));
        };
        calls.push(call);
        // A call that ends with the text needs no closing mark.
        let after = after.trim_start();
        rest = match after.strip_prefix(close) {
            Some(rest) => rest,
            None if after.is_empty() || cut && close.starts_with(after) => "",
            None => return None,
        };
    }
    let begun = if cut { held_back(rest, [open, DEEPSEEK_ALL.1].into_iter()) } else { 0 };
    Some((around + &rest[..rest.len() - begun], calls))
}

/// A JSON value at the beginning of a text, and the rest.
fn value(text: &str) -> Option<(Value, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter();
    let value = values.next()?.ok()?;
    Some((value, &text[values.byte_offset()..]))
}

/// `{"name": …, <field>: {…}}`, and the rest.
fn object<'t>(text: &'t str, field: &str) -> Option<(Call, &'t str)> {
    let (value, rest) = value(text)?;
    Some((call(&value, field)?, rest))
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
fn bare(text: &str, cut: bool) -> Option<Vec<Call>> {
    let between = [';', ' ', '\n', '\t', '\r'];
    let (mut calls, mut rest) = (Vec::new(), text.trim_matches(between));
    while !rest.is_empty() {
        let Some((value, after)) = value(rest) else { return cut.then_some(calls) };
        let field = if value.get("parameters").is_some() { "parameters" } else { "arguments" };
        calls.push(call(&value, field)?);
        rest = after.trim_start_matches(between);
    }
    Some(calls)
}

/// `function<sep>NAME`, then the arguments in a fence (V3, R1); or `NAME<sep>{…}` (V3.1).
fn deepseek(text: &str) -> Option<(Call, &str)> {
    let (first, second) = text.split_once(SEPARATOR)?;
    let (name, arguments) = match second.trim_start().starts_with('{') {
        true => (first, second),
        false => second.split_once("```json")?,
    };
    let (arguments, rest) = value(arguments)?;
    let rest = rest.trim_start().strip_prefix("```").unwrap_or(rest);
    arguments
        .is_object()
        .then(|| (Call { name: name.trim().to_owned(), arguments: arguments.to_string() }, rest))
}

/// Which form a model writes calls in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Hermes,
    /// With the arguments in a fence.
    DeepSeek3,
    DeepSeek31,
    Bare,
}

impl Style {
    /// As its template shows earlier calls.
    pub(crate) fn of(template: &str) -> Style {
        match () {
            () if template.contains(HERMES.0) => Style::Hermes,
            () if template.contains(DEEPSEEK.0) && template.contains("```json") => Style::DeepSeek3,
            () if template.contains(DEEPSEEK.0) => Style::DeepSeek31,
            () => Style::Bare,
        }
    }

    /// What tells calls from text, wherever it stands; without such a mark an answer is a call from its first letter on, or none.
    fn mark(self) -> Option<&'static str> {
        match self {
            Style::Hermes => Some(HERMES.0),
            Style::DeepSeek3 | Style::DeepSeek31 => Some(DEEPSEEK_ALL.0),
            Style::Bare => None,
        }
    }

    /// What stands before all calls, between two, and after all.
    fn around(self) -> [&'static str; 3] {
        match self {
            Style::Hermes => ["", "\n", ""],
            Style::DeepSeek3 => [DEEPSEEK_ALL.0, "\n", DEEPSEEK_ALL.1],
            Style::DeepSeek31 => [DEEPSEEK_ALL.0, "", DEEPSEEK_ALL.1],
            Style::Bare => ["", "; ", ""],
        }
    }

    /// What stands before a call's arguments, and behind them.
    fn call(self, name: &str) -> [String; 2] {
        let object = |field: &str| format!("{{\"name\": {}, \"{field}\": ", Value::from(name));
        match self {
            Style::Hermes => [format!("{}\n{}", HERMES.0, object("arguments")), format!("}}\n{}", HERMES.1)],
            Style::DeepSeek3 => [
                format!("{}function{SEPARATOR}{name}\n```json\n", DEEPSEEK.0),
                format!("\n```{}", DEEPSEEK.1),
            ],
            Style::DeepSeek31 => [format!("{}{name}{SEPARATOR}", DEEPSEEK.0), DEEPSEEK.1.to_owned()],
            Style::Bare => [object("parameters"), "}".to_owned()],
        }
    }
}

/// Calls to which an answer is held.
pub(crate) struct Calls {
    /// What may be called: names, and the schemas of the arguments.
    pub(crate) tools: Vec<(String, Value)>,
    /// Whether there is one and no more.
    pub(crate) one: bool,
    /// Whether there may be text instead of them, and before them.
    pub(crate) free: bool,
}

impl Calls {
    /// Rules of a grammar in llguidance's dialect of Lark, among them `calls`, and where the calls are free also `free`: text, or text
    /// that leads to calls. `schema` readies the schema of a call's arguments.
    pub(crate) fn lark(self, style: Style, schema: impl Fn(Value) -> Value) -> String {
        let text = |text: &str| if text.is_empty() { String::new() } else { Value::from(text).to_string() };
        let [open, between, close] = style.around();
        let (between, close) = (text(between), text(close));
        let more = if self.one { String::new() } else { format!("({between} call)*") };
        let any =
            |kind: &str| (0..self.tools.len()).map(|i| format!("{kind}{i}")).collect::<Vec<_>>().join(" | ");
        let mut rules = format!("calls: {} call {more} {close}\ncall: {}\n", text(open), any("call"));
        // The mark of the first call ends the text before it, and is no part of what follows.
        let marked = self.free.then(|| style.mark()).flatten();
        let unmarked =
            |text: &str| marked.and_then(|mark| text.strip_prefix(mark)).unwrap_or(text).to_owned();
        if self.free {
            rules += &match marked {
                Some(mark) => format!(
                    "free: FREE | lead led\nFREE: /(?s:.*)/ & ~/(?s:.*({}))(?s:.*)/\nlead[lazy]: /(?s:.*){mark}/\n\
                     led: {} first {more} {close}\nfirst: {}\n",
                    MARKS.join("|"),
                    text(&unmarked(open)),
                    any("first"),
                ),
                None => "free: FREE | calls\nFREE: /(?s:.*)/ & ~/\\s*\\{(?s:.*)/\n".to_owned(),
            };
        }
        for (i, (name, arguments)) in self.tools.into_iter().enumerate() {
            let [before, after] = style.call(&name);
            if marked.is_some() {
                let before = if open.is_empty() { unmarked(&before) } else { before.clone() };
                rules += &format!("first{i}: {} arguments{i} {}\n", text(&before), text(&after));
            }
            rules += &format!("call{i}: {} arguments{i} {}\n", text(&before), text(&after));
            rules += &format!("arguments{i}: %json {}\n", schema(arguments));
        }
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, cut: usize) -> (String, Vec<(String, String)>) {
        let mut reader = ToolReader::new(vec!["add".into(), "now".into()], false);
        let mut out = reader.push(&text[..cut]);
        out += &reader.push(&text[cut..]);
        let (rest, calls) = reader.finish(false);
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

    /// An answer that had no room for its second call has made the first; with none that is whole, it is the text that it is.
    #[test]
    fn a_text_that_is_cut_off_has_made_the_calls_before() {
        let (hermes, bare) =
            ("<tool_call>\n{\"name\": \"now\"}\n</tool_call>", "{\"name\": \"now\", \"parameters\": {}}");
        let deepseek = "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>";
        for call in [hermes, bare, deepseek] {
            let whole = [call, call].join(if call == bare { ";" } else { "\n" });
            for cut in (1..whole.len()).filter(|&c| whole.is_char_boundary(c)) {
                let mut reader = ToolReader::new(vec!["now".into()], false);
                let out = reader.push(&whole[..cut]);
                let (rest, calls) = reader.finish(true);
                let made = whole[..cut].matches('}').count() / call.matches('}').count();
                assert_eq!(calls.len(), made, "{}", &whole[..cut]);
                assert!(made == 0 || rest.trim().is_empty(), "{rest:?} of {}", &whole[..cut]);
                assert!(made > 0 || out + &rest == whole[..cut], "{}", &whole[..cut]);
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
