//! Where a completion has its answer: in our tags, or where models of others are used to put it.

use super::{Verdict, Verifier, answer_of};
use crate::{Error, Problem, Result};
use regex::Regex;
use serde_json::Value;
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The names that [`AnswerPlace::from_str`] takes.
const NAMES: [&str; 7] = ["tags", "boxed", "hash", "last_number", "whole", "json:KEY", "regex:PATTERN"];
/// A pattern that takes more memory than this is refused.
const MAX_PATTERN: usize = 1 << 20;

/// Where a completion has its answer. Of a completion that thinks first, what follows the last `</think>` is looked at.
#[derive(Clone, Debug)]
pub enum AnswerPlace {
    /// The one `<answer>…</answer>` behind the thought.
    Tags,
    /// The last `\boxed{…}`.
    Boxed,
    /// What follows the last `####` in its line.
    Hash,
    /// The last number.
    LastNumber,
    /// All of the text.
    Whole,
    /// This key of the last JSON object.
    Json(String),
    /// The first group of the last match, or all of it where there is no group.
    Pattern(Regex),
}

impl FromStr for AnswerPlace {
    type Err = Error;

    fn from_str(name: &str) -> Result<AnswerPlace> {
        Ok(match name.split_once(':') {
            None if name == "tags" => AnswerPlace::Tags,
            None if name == "boxed" => AnswerPlace::Boxed,
            None if name == "hash" => AnswerPlace::Hash,
            None if name == "last_number" => AnswerPlace::LastNumber,
            None if name == "whole" => AnswerPlace::Whole,
            Some(("json", key)) if !key.is_empty() => AnswerPlace::Json(key.to_owned()),
            Some(("regex", pattern)) if !pattern.is_empty() => {
                let built = regex::RegexBuilder::new(pattern).size_limit(MAX_PATTERN).build();
                AnswerPlace::Pattern(built.map_err(|e| Error::AnswerPattern(e.to_string()))?)
            }
            _ => return Err(Error::unknown("place of the answer", name, &NAMES)),
        })
    }
}

impl fmt::Display for AnswerPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AnswerPlace::Tags => f.write_str("tags"),
            AnswerPlace::Boxed => f.write_str("boxed"),
            AnswerPlace::Hash => f.write_str("hash"),
            AnswerPlace::LastNumber => f.write_str("last_number"),
            AnswerPlace::Whole => f.write_str("whole"),
            AnswerPlace::Json(key) => write!(f, "json:{key}"),
            AnswerPlace::Pattern(pattern) => write!(f, "regex:{pattern}"),
        }
    }
}

impl AnswerPlace {
    /// The answer, without blanks around it, if there is one.
    pub fn find<'a>(&self, completion: &'a str) -> Option<Cow<'a, str>> {
        if let AnswerPlace::Tags = self {
            return answer_of(completion).filter(|a| !a.is_empty()).map(Cow::Borrowed);
        }
        let said = completion.rsplit_once("</think>").map_or(completion, |(_, said)| said).trim();
        let found = match self {
            AnswerPlace::Tags => None,
            AnswerPlace::Boxed => boxed(said).map(Cow::Borrowed),
            AnswerPlace::Hash => {
                said.rsplit_once("####").and_then(|(_, rest)| rest.lines().next()).map(Cow::Borrowed)
            }
            AnswerPlace::LastNumber => last_number(said).map(Cow::Borrowed),
            AnswerPlace::Whole => Some(Cow::Borrowed(said)),
            AnswerPlace::Json(key) => json_value(said, key).map(Cow::Owned),
            AnswerPlace::Pattern(pattern) => {
                let last = pattern.captures_iter(said).last();
                last.and_then(|c| c.get(1).or(c.get(0))).map(|m| Cow::Borrowed(m.as_str()))
            }
        };
        let trimmed = found.map(|answer| match answer {
            Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
            Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
        });
        trimmed.filter(|answer| !answer.is_empty())
    }

    /// What a solver writes whose work is known, or empty; `None` where the form is only known by its pattern.
    pub fn write(&self, work: &str, answer: &str) -> Option<String> {
        let behind = |end: String| if work.is_empty() { end } else { format!("{work}\n{end}") };
        Some(match self {
            AnswerPlace::Tags if work.is_empty() => format!("<think></think><answer>{answer}</answer>"),
            // The blank lets the first word be the token that it is anywhere else.
            AnswerPlace::Tags => format!("<think> {work}</think><answer>{answer}</answer>"),
            AnswerPlace::Boxed => behind(format!("\\boxed{{{answer}}}")),
            AnswerPlace::Hash => behind(format!("#### {answer}")),
            AnswerPlace::LastNumber => behind(format!("The answer is {answer}.")),
            AnswerPlace::Whole => answer.to_owned(),
            AnswerPlace::Json(key) => behind(serde_json::json!({ key.as_str(): answer }).to_string()),
            AnswerPlace::Pattern(_) => return None,
        })
    }

    /// How one asks for this form, at the end of a prompt; nothing where a model does it unasked or not at all, or where only a
    /// pattern tells.
    pub fn request(&self) -> Option<String> {
        Some(match self {
            AnswerPlace::Boxed => "Put the final answer into \\boxed{}.".to_owned(),
            AnswerPlace::Hash => "End with #### and the final answer.".to_owned(),
            AnswerPlace::LastNumber => "End with the final number.".to_owned(),
            AnswerPlace::Whole => "Reply with the answer only.".to_owned(),
            AnswerPlace::Json(key) => {
                format!("End with a JSON object that has the answer under the key \"{key}\".")
            }
            AnswerPlace::Tags | AnswerPlace::Pattern(_) => return None,
        })
    }
}

/// The inside of the last `\boxed{…}` whose braces match.
fn boxed(text: &str) -> Option<&str> {
    let inside = text.rsplit_once("\\boxed{")?.1;
    let mut depth = 1;
    for (i, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&inside[..i]);
        }
    }
    None
}

/// The last number of a text, with its sign, its commas and its point: of "is 1,234.5." that is "1,234.5".
fn last_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let inside = |b: &u8| b.is_ascii_digit() || matches!(b, b',' | b'.' | b'/');
    let mut start = bytes[..end].iter().rposition(|b| !inside(b)).map_or(0, |i| i + 1);
    // A number does not begin with a comma or a slash, nor with a point behind a word.
    while !bytes[start].is_ascii_digit() && bytes[start] != b'.' {
        start += 1;
    }
    let before = &text[..start];
    let minus = ["-", "\u{2212}"].iter().find(|m| before.ends_with(**m));
    let signed = minus.filter(|m| {
        // In "5-3" and "3 - 2" it is not a sign.
        let ahead = before[..before.len() - m.len()].chars().next_back();
        ahead.is_none_or(|c| c.is_whitespace() || "$€£(=:*".contains(c))
    });
    Some(&text[start - signed.map_or(0, |m| m.len())..end])
}

/// A key of the last JSON object in a text; text and numbers as they stand.
fn json_value(text: &str, key: &str) -> Option<String> {
    let mut at = text.len();
    // An object begins at one of the last braces; more are not tried.
    for _ in 0..64 {
        at = text[..at].rfind('{')?;
        let mut stream = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        if let Some(Ok(Value::Object(object))) = stream.next()
            && let Some(value) = object.get(key)
        {
            return Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
    }
    None
}

/// A verifier of answers that stand in a place of their own.
struct Placed {
    place: AnswerPlace,
    verifier: Arc<dyn Verifier>,
}

/// The verifier for answers in this place.
pub fn placed(place: AnswerPlace, verifier: Arc<dyn Verifier>) -> Arc<dyn Verifier> {
    match place {
        AnswerPlace::Tags => verifier,
        place => Arc::new(Placed { place, verifier }),
    }
}

impl Placed {
    /// A completion as verifiers read it.
    fn in_tags(&self, completion: &str) -> Option<String> {
        self.place.find(completion).map(|answer| format!("<think></think><answer>{answer}</answer>"))
    }

    fn nothing(&self) -> Verdict {
        Verdict::wrong(format!("there is no answer where it is expected ({})", self.place))
    }
}

impl Verifier for Placed {
    fn score(&self, problem: &Problem, completion: &str) -> Verdict {
        match self.in_tags(completion) {
            Some(tagged) => self.verifier.score(problem, &tagged),
            None => self.nothing(),
        }
    }

    fn fault(&self, problem: &Problem) -> Option<String> {
        self.verifier.fault(problem)
    }

    fn score_batch(&self, items: &[(&Problem, &str)]) -> Vec<Verdict> {
        let tagged: Vec<Option<String>> = items.iter().map(|(_, c)| self.in_tags(c)).collect();
        let found = items.iter().zip(&tagged).filter_map(|((p, _), t)| Some((*p, t.as_deref()?)));
        let mut verdicts = self.verifier.score_batch(&found.collect::<Vec<_>>()).into_iter();
        let mut next = || verdicts.next().expect("one for each");
        tagged.iter().map(|t| if t.is_some() { next() } else { self.nothing() }).collect()
    }

    fn failures(&self) -> Option<(u64, String)> {
        self.verifier.failures()
    }

    fn answer<'a>(&self, completion: &'a str) -> Option<Cow<'a, str>> {
        self.place.find(completion)
    }

    fn form(&self, completion: &str) -> f32 {
        f32::from(u8::from(self.place.find(completion).is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verifier;

    fn found(place: &str, text: &str) -> Option<String> {
        place.parse::<AnswerPlace>().unwrap().find(text).map(Cow::into_owned)
    }

    #[test]
    fn answers_are_found_where_models_put_them() {
        for (place, text, want) in [
            ("tags", "<think>a</think><answer> 4 </answer>", Some("4")),
            ("boxed", r"So $\boxed{3}$, no, \boxed{\frac{1}{2}}.", Some(r"\frac{1}{2}")),
            ("boxed", r"\boxed{1", None),
            ("hash", "5 + 5 = 10\n#### 10\n", Some("10")),
            ("hash", "#### 1\n#### 2", Some("2")),
            ("hash", "10", None),
            ("last_number", "It costs $1,234.50.", Some("1,234.50")),
            ("last_number", "from 3 to -7", Some("-7")),
            ("last_number", "5-3", Some("3")),
            ("last_number", "= -.5", Some("-.5")),
            ("last_number", "x = \u{2212}12 apples", Some("\u{2212}12")),
            ("last_number", "3/4 of it", Some("3/4")),
            ("last_number", "none", None),
            ("whole", "<think>hm</think>\n Paris ", Some("Paris")),
            ("whole", " ", None),
            ("json:total", "```json\n{\"items\": [1], \"total\": 12.5}\n```", Some("12.5")),
            ("json:total", "{\"total\": \"12 EUR\"} {\"x\": 1}", Some("12 EUR")),
            ("json:total", "{\"sum\": 3}", None),
            (r"regex:Total: (\S+)", "Total: 1\nTotal: 2", Some("2")),
            (r"regex:\d+", "a 1 b 22", Some("22")),
            ("last_number", "<think>7</think>none", None),
        ] {
            assert_eq!(found(place, text).as_deref(), want, "{place}: {text}");
        }
    }

    #[test]
    fn what_is_written_is_found() {
        for name in ["tags", "boxed", "hash", "last_number", "whole", "json:x"] {
            let place: AnswerPlace = name.parse().unwrap();
            assert_eq!(place.to_string(), name);
            for work in ["", "2 + 2 = 4 ."] {
                let text = place.write(work, "-12.5").unwrap();
                assert_eq!(place.find(&text).as_deref(), Some("-12.5"), "{text}");
            }
        }
        assert!("regex:(".parse::<AnswerPlace>().is_err());
        assert!("boxd".parse::<AnswerPlace>().unwrap_err().to_string().contains("did you mean `boxed`"));
    }

    #[test]
    fn a_verifier_looks_where_it_is_told() {
        let problem: Problem = serde_json::from_str(r#"{"prompt": "5 + 5?", "answer": "10"}"#).unwrap();
        let v = placed("hash".parse().unwrap(), verifier("numeric").unwrap().into());
        let texts = ["#### 10", "<think></think><answer>10</answer>", "#### 11", "### 10"];
        let scores: Vec<f32> = texts.iter().map(|t| v.score(&problem, t).score).collect();
        assert_eq!(scores, [1.0, 0.0, 0.0, 0.0]);
        let batch: Vec<f32> =
            v.score_batch(&texts.map(|t| (&problem, t))).into_iter().map(|v| v.score).collect();
        assert_eq!(batch, scores);
        assert_eq!(texts.map(|t| v.form(t)), [1.0, 0.0, 1.0, 0.0]);
    }
}
