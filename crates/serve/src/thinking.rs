//! Telling thinking from the answer, in a text that comes in pieces.

use data::answer::held_back;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Splits a text at its tags. Models of which the template has opened the thought write no opening tag.
#[derive(Clone)]
pub(crate) struct Thinking {
    inside: bool,
    /// Whether thoughts stand before the answer alone.
    first: bool,
    answering: bool,
    pending: String,
    /// Whether anything but white space was said in the present part: what stands at its beginning is dropped.
    said: bool,
}

/// A piece of what was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) reasoning: String,
    pub(crate) text: String,
}

impl Thinking {
    /// `inside`: whether the text begins within a thought; `first`: whether there are none once the answer has begun.
    pub(crate) fn new(inside: bool, first: bool) -> Thinking {
        Thinking { inside, first, answering: false, pending: String::new(), said: false }
    }

    /// Whether what comes next is a thought.
    pub(crate) fn is_inside(&self) -> bool {
        self.inside
    }

    /// Takes a piece, and gives what is certain; at the `end` all of it.
    pub(crate) fn push(&mut self, piece: &str, end: bool) -> Split {
        self.pending.push_str(piece);
        let mut split = Split::default();
        while !self.is_over() {
            let tag = if self.inside { CLOSE } else { OPEN };
            let Some(at) = self.pending.find(tag) else { break };
            if self.first && !self.inside && !self.pending[..at].trim().is_empty() {
                break;
            }
            let part: String = self.pending.drain(..at + tag.len()).collect();
            self.give(&part[..at], &mut split);
            self.inside = !self.inside;
            self.said = false;
        }
        let tag = if self.inside { CLOSE } else { OPEN };
        let open = if end || self.is_over() { 0 } else { held_back(&self.pending, std::iter::once(tag)) };
        let part: String = self.pending.drain(..self.pending.len() - open).collect();
        self.give(&part, &mut split);
        split
    }

    /// Whether no thought can come any more.
    fn is_over(&self) -> bool {
        self.first && self.answering
    }

    fn give(&mut self, part: &str, split: &mut Split) {
        let part = if self.said { part } else { part.trim_start() };
        self.said |= !part.is_empty();
        self.answering |= !self.inside && self.said;
        let to = if self.inside { &mut split.reasoning } else { &mut split.text };
        to.push_str(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&str], inside: bool) -> (String, String) {
        parts(pieces, Thinking::new(inside, false))
    }

    fn parts(pieces: &[&str], mut thinking: Thinking) -> (String, String) {
        let (mut reasoning, mut text) = (String::new(), String::new());
        for piece in pieces.iter().chain(&[""]) {
            let split = thinking.push(piece, piece.is_empty());
            reasoning += &split.reasoning;
            text += &split.text;
        }
        (reasoning, text)
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
            let formed = parts(&[&whole[..cut], &whole[cut..]], Thinking::new(false, true));
            assert_eq!(formed, ("a".into(), "{\"b\": \"<think>c</think>\"}".into()), "cut at {cut}");
        }
    }
}
