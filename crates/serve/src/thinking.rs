//! Telling thinking from the answer, in a text that comes in pieces.

use data::Tokenizer;
use data::answer::held_back;

const OPEN: &str = "<think>";
pub(crate) const CLOSE: &str = "</think>";
const ANSWER: &str = "<answer>";
const END: &str = "</answer>";

/// Whether a model marks its answer by tokens of their own, as those do that were made here: a form of its writing, which readers are
/// not shown. Where the tags are letters like others, somebody has asked for them.
pub(crate) fn marks_answers(tokenizer: &Tokenizer) -> bool {
    [ANSWER, END].iter().all(|tag| tokenizer.token_id(tag).is_some())
}

/// Splits a text at its tags. Models of which the template has opened the thought write no opening tag; a closing one that
/// closes nothing is left out.
#[derive(Clone)]
pub(crate) struct Thinking {
    inside: bool,
    /// Whether thoughts stand before the answer alone.
    first: bool,
    /// Whether tags of an answer are told apart too.
    marks: bool,
    answering: bool,
    pending: String,
    /// Whether anything but white space was said in the present part: what stands at its beginning is dropped.
    said: bool,
    /// What stands behind the answer's opening tag so far.
    answer: Option<String>,
    /// Whether a tag was left out, in place of which white space keeps what stands around it apart.
    gap: bool,
    /// Whether the text ends in white space, or has not begun.
    spaced: bool,
}

/// A piece of what was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) reasoning: String,
    pub(crate) text: String,
    /// What stood between the answer's tags, once they are closed; it is a part of the text.
    pub(crate) answer: Option<String>,
}

impl Thinking {
    /// `inside`: whether the text begins within a thought; `first`: whether there are none once the answer has begun, which has a form;
    /// `marks`: whether the model marks its answer.
    pub(crate) fn new(inside: bool, first: bool, marks: bool) -> Thinking {
        Thinking {
            inside,
            first,
            marks: marks && !first,
            answering: false,
            pending: String::new(),
            said: false,
            answer: None,
            gap: false,
            spaced: true,
        }
    }

    /// Whether what comes next is a thought.
    pub(crate) fn is_inside(&self) -> bool {
        self.inside
    }

    /// Tags that mean something where the text is now.
    fn tags(&self) -> &'static [&'static str] {
        match () {
            () if self.inside => &[CLOSE],
            () if self.first => &[OPEN],
            () if self.marks => &[OPEN, CLOSE, ANSWER, END],
            () => &[OPEN, CLOSE],
        }
    }

    /// Takes a piece, and gives what is certain; at the `end` all of it.
    pub(crate) fn push(&mut self, piece: &str, end: bool) -> Split {
        self.pending.push_str(piece);
        let mut split = Split::default();
        while !self.is_over() {
            let found = self.tags().iter().filter_map(|tag| Some((self.pending.find(tag)?, *tag)));
            let Some((at, tag)) = found.min() else { break };
            if self.first && !self.inside && !self.pending[..at].trim().is_empty() {
                break;
            }
            let part: String = self.pending.drain(..at + tag.len()).collect();
            self.give(&part[..at], &mut split);
            self.cross(tag, &mut split);
        }
        let tags = self.tags().iter().copied();
        let open = if end || self.is_over() { 0 } else { held_back(&self.pending, tags) };
        let part: String = self.pending.drain(..self.pending.len() - open).collect();
        self.give(&part, &mut split);
        split
    }

    /// Whether no thought can come any more.
    fn is_over(&self) -> bool {
        self.first && self.answering
    }

    /// What a tag changes.
    fn cross(&mut self, tag: &str, split: &mut Split) {
        if tag == OPEN || self.inside {
            self.inside = !self.inside;
            self.said = false;
            return;
        }
        self.gap = true;
        match tag {
            ANSWER => self.answer = Some(String::new()),
            END => {
                split.answer =
                    self.answer.take().map(|answer| answer.trim().to_owned()).or(split.answer.take())
            }
            _ => {}
        }
    }

    fn give(&mut self, part: &str, split: &mut Split) {
        let part = if self.said { part } else { part.trim_start() };
        if part.is_empty() {
            return;
        }
        self.said = true;
        if self.inside {
            split.reasoning.push_str(part);
            return;
        }
        self.answering = true;
        if let Some(answer) = &mut self.answer {
            answer.push_str(part);
        }
        if self.gap && !self.spaced && !part.starts_with(char::is_whitespace) {
            split.text.push('\n');
        }
        self.gap = false;
        self.spaced = part.ends_with(char::is_whitespace);
        split.text.push_str(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&str], inside: bool) -> (String, String) {
        let (reasoning, text, _) = parts(pieces, Thinking::new(inside, false, false));
        (reasoning, text)
    }

    fn parts(pieces: &[&str], mut thinking: Thinking) -> (String, String, Option<String>) {
        let (mut reasoning, mut text, mut answer) = (String::new(), String::new(), None);
        for piece in pieces.iter().chain(&[""]) {
            let split = thinking.push(piece, piece.is_empty());
            reasoning += &split.reasoning;
            text += &split.text;
            answer = split.answer.or(answer);
        }
        (reasoning, text, answer)
    }

    #[test]
    fn thinking_and_answer_are_told_apart_however_they_are_cut() {
        let whole = "<think>\na < b</think>\n\nso <b>1</b>";
        for cut in 0..=whole.len() {
            let parts = split(&[&whole[..cut], &whole[cut..]], false);
            assert_eq!(parts, ("a < b".into(), "so <b>1</b>".into()), "cut at {cut}");
        }
        assert_eq!(split(&["a</think>b"], true), ("a".into(), "b".into()));
        assert_eq!(split(&["plain </th"], false), (String::new(), "plain </th".into()));
        assert_eq!(split(&["cut off"], true), ("cut off".into(), String::new()));
        let whole = "<think>a</think>{\"b\": \"<think>c</think>\"}";
        for cut in 0..=whole.len() {
            let formed = parts(&[&whole[..cut], &whole[cut..]], Thinking::new(false, true, true));
            assert_eq!(formed, ("a".into(), "{\"b\": \"<think>c</think>\"}".into(), None), "cut at {cut}");
        }
        assert_eq!(split(&["so 7.</think>8"], false).1, "so 7.\n8");
        assert_eq!(split(&["<answer>7</answer>"], false).1, "<answer>7</answer>");
    }

    /// The tags of a model that marks its answer are not shown, and what they mark is told.
    #[test]
    fn answers_are_told_without_their_tags() {
        for (whole, text, answer) in [
            ("<think>a</think><answer>78</answer>", "78", Some("78")),
            ("<think>a</think>So it is <answer> 7 </answer>.", "So it is  7 .", Some("7")),
            ("It is 7.<answer>7</answer>", "It is 7.\n7", Some("7")),
            ("<answer>cut", "cut", None),
            ("<answer>1</answer><answer>2</answer>", "1\n2", Some("2")),
            ("</answer>a < b", "a < b", None),
        ] {
            for cut in 0..=whole.len() {
                let found = parts(&[&whole[..cut], &whole[cut..]], Thinking::new(false, false, true));
                assert_eq!((&*found.1, found.2.as_deref()), (text, answer), "{whole} cut at {cut}");
            }
        }
    }
}
