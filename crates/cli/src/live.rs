//! Text as it is drawn, with thinking in a fainter colour.

use std::io::{IsTerminal, Write};

use anyhow::Result;
use data::answer::held_back;

use crate::output::{colours, harmless};

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Writes to stdout as text arrives. On a terminal thinking is dimmed, elsewhere nothing is added.
pub struct Painter {
    colour: bool,
    thinking: bool,
    pending: String,
}

impl Painter {
    /// `thinking`: whether the text begins inside of a thought, because the template opened it.
    pub fn new(thinking: bool) -> Painter {
        Painter { colour: colours(std::io::stdout().is_terminal()), thinking, pending: String::new() }
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
