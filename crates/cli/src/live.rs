//! Text as it is drawn: token ids to text, stop strings, and thinking in a fainter colour.

use std::io::{IsTerminal, Write};

use anyhow::Result;
use data::{DecodeStream, Tokenizer};
use train::speaker::is_tag;

use crate::output::harmless;

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// The text of one continuation, grown token by token and ended by stop strings.
pub struct LiveText<'a> {
    tokenizer: &'a Tokenizer,
    stream: DecodeStream<'a>,
    stops: &'a [String],
    text: String,
    /// How much of the text was handed out.
    shown: usize,
    stopped: bool,
}

impl<'a> LiveText<'a> {
    /// An empty text; empty stop strings are left aside.
    pub fn new(tokenizer: &'a Tokenizer, stops: &'a [String]) -> LiveText<'a> {
        LiveText {
            tokenizer,
            stream: tokenizer.stream(),
            stops,
            text: String::new(),
            shown: 0,
            stopped: false,
        }
    }

    /// Adds a token; returns whether the text goes on, false once it holds a stop string (which is cut off).
    pub fn push(&mut self, id: u32) -> Result<bool> {
        if self.tokenizer.is_special(id) {
            // The stream skips control tokens; tags stay, whatever kind of token they are.
            if is_tag(self.tokenizer, id) {
                let held = self.stream.finish()?;
                self.stream = self.tokenizer.stream();
                self.grow(held);
                self.grow(self.tokenizer.token_text(id));
            }
        } else {
            let piece = self.stream.push(id)?;
            self.grow(piece);
        }
        Ok(!self.stopped)
    }

    fn grow(&mut self, piece: Option<String>) {
        let Some(piece) = piece.filter(|_| !self.stopped) else { return };
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let mut from = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text.push_str(&piece);
        let found = self
            .stops
            .iter()
            .filter(|s| !s.is_empty())
            .filter_map(|s| self.text[from..].find(s.as_str()))
            .min();
        if let Some(at) = found {
            self.text.truncate(from + at);
            self.stopped = true;
        }
    }

    /// What is new and certain: no later token can turn it into a part of a stop string.
    pub fn take_new(&mut self) -> &str {
        let open = if self.stopped {
            0
        } else {
            held_back(&self.text[self.shown..], self.stops.iter().map(String::as_str))
        };
        let end = self.text.len() - open;
        let start = std::mem::replace(&mut self.shown, end);
        &self.text[start..end]
    }

    /// Ends the text and returns it whole.
    pub fn finish(&mut self) -> Result<&str> {
        let rest = self.stream.finish()?;
        self.grow(rest);
        Ok(&self.text)
    }

    /// After [`LiveText::finish`]: what was not handed out yet.
    pub fn take_rest(&mut self) -> &str {
        let start = std::mem::replace(&mut self.shown, self.text.len());
        &self.text[start..]
    }
}

/// The length of the longest end of `text` with which one of `words` begins.
fn held_back<'w>(text: &str, words: impl Iterator<Item = &'w str>) -> usize {
    let longest = |word: &str| {
        let ends = (0..word.len()).rev().filter(|&n| word.is_char_boundary(n));
        ends.into_iter().find(|&n| text.ends_with(&word[..n])).unwrap_or(0)
    };
    words.map(longest).max().unwrap_or(0)
}

/// Writes to stdout as text arrives. On a terminal thinking is dimmed, elsewhere nothing is added.
pub struct Painter {
    colour: bool,
    thinking: bool,
    pending: String,
}

impl Painter {
    /// `thinking`: whether the text begins inside of a thought, because the template opened it.
    pub fn new(thinking: bool) -> Painter {
        Painter { colour: std::io::stdout().is_terminal(), thinking, pending: String::new() }
    }

    /// Writes some text.
    pub fn write(&mut self, text: &str) -> Result<()> {
        if !self.colour {
            return put(text);
        }
        self.pending.push_str(text);
        let painted = self.paint(false);
        put(&painted)
    }

    /// Writes what was held back, and a line end.
    pub fn end(&mut self) -> Result<()> {
        let rest = self.paint(true);
        put(&format!("{rest}\n"))
    }

    /// Takes from `pending` what is certain, with colours around it.
    fn paint(&mut self, all: bool) -> String {
        let mut out = String::new();
        loop {
            let tag = if self.thinking { "</think>" } else { "<think>" };
            let Some(at) = self.pending.find(tag) else { break };
            // The tags themselves are part of the thought.
            let end = if self.thinking { at + tag.len() } else { at };
            let piece: String = self.pending.drain(..end).collect();
            self.dress(&mut out, &piece);
            self.thinking = !self.thinking;
        }
        let tag = if self.thinking { "</think>" } else { "<think>" };
        let open = if all { 0 } else { held_back(&self.pending, std::iter::once(tag)) };
        let piece: String = self.pending.drain(..self.pending.len() - open).collect();
        self.dress(&mut out, &piece);
        out
    }

    fn dress(&self, out: &mut String, piece: &str) {
        if piece.is_empty() {
            return;
        }
        let dim = self.thinking && self.colour;
        out.push_str(if dim { DIM } else { "" });
        out.push_str(&harmless(piece));
        out.push_str(if dim { PLAIN } else { "" });
    }
}

/// Writes to stdout at once. A reader that has gone away ends the program quietly.
pub fn put(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_may_become_a_word_is_held_back() {
        let held = |text: &str| held_back(text, ["<think>", "::"].into_iter());
        assert_eq!([held("so <thi"), held("so"), held("a:"), held("<think>"), held("ä<")], [4, 0, 1, 0, 1]);
    }

    /// A tag that comes in parts opens and closes the dimmed part all the same, and nothing is lost.
    #[test]
    fn thinking_is_dimmed_however_it_is_cut() {
        let text = "a<think>b < c</think>d";
        let want = format!("a{DIM}<think>b < c</think>{PLAIN}d");
        for cut in 0..text.len() {
            let mut painter = Painter { colour: true, thinking: false, pending: String::new() };
            let mut out = String::new();
            for part in [&text[..cut], &text[cut..]] {
                painter.pending.push_str(part);
                out.push_str(&painter.paint(false));
            }
            out.push_str(&painter.paint(true));
            assert_eq!(out.replace(&format!("{PLAIN}{DIM}"), ""), want, "cut at {cut}");
        }
    }
}
