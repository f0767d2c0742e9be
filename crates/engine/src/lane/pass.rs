//! A pass of the model: which rows it has, and what it predicts.

use model::{KvCache, PassOptions, Segment};
use tensor::{Tape, Tensor, ops};

use super::ahead::{Guess, Span};
use super::{Lane, Seq, Sink, Ticket};

/// Rows of a pass that belong to one sequence.
pub(super) struct Part {
    pub(super) age: (Ticket, usize),
    pub(super) rows: usize,
    /// Tokens that are guessed to follow, each a row too.
    pub(super) guess: Guess,
    /// First of the rows whose prediction is wanted, among those of the pass.
    pub(super) wanted: Option<usize>,
}

/// Which sequences a pass takes along.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Which {
    Decoding,
    Prompts,
    All,
}

/// The rows of a pass.
pub(super) struct Rows {
    pub(super) parts: Vec<Part>,
    pub(super) tokens: Vec<u32>,
    pub(super) segments: Vec<Segment>,
    spans: Vec<Span>,
    /// Those whose prediction is wanted.
    wanted: Vec<u32>,
}

impl Seq {
    /// Whether one row of it gives its next token.
    pub(super) fn decodes(&self) -> bool {
        self.logits.is_none() && self.left() == 1
    }
}

impl Lane<'_> {
    /// The rows of the next pass: one of every sequence in decoding, and as many prompt tokens as there is `room` for. None if there
    /// is nothing to do.
    pub(super) fn divide(&mut self, which: Which, mut room: usize) -> Option<Rows> {
        let decoding = self.active.iter().filter(|s| s.decodes()).count();
        let mut parts = Vec::with_capacity(self.active.len());
        let mut i = 0;
        while i < self.active.len() {
            let seq = &self.active[i];
            let (age, left, decodes) = (seq.age(), seq.left(), seq.decodes());
            i += 1;
            let taken = if decodes { which != Which::Prompts } else { which != Which::Decoding };
            let rows =
                if seq.logits.is_some() || !taken { 0 } else { left.min(if decodes { 1 } else { room }) };
            if rows == 0 {
                continue;
            }
            let guess = if decodes { self.guess(i - 1, decoding) } else { Guess::default() };
            let end = self.active[i - 1].done + rows + guess.tokens.len();
            if !self.hold(i - 1, end) {
                // It is the youngest that is left, and waits until an older one is done.
                self.put_back();
                break;
            }
            room -= if decodes { 0 } else { rows };
            parts.push(Part { age, rows, guess, wanted: None });
        }
        (!parts.is_empty()).then(|| self.rows(parts))
    }

    /// Takes pages for a sequence's first `end` tokens; says whether there were enough.
    fn hold(&mut self, i: usize, end: usize) -> bool {
        while self.active[i].pages.len() * KvCache::PAGE < end {
            let Some(page) = self.take_page(self.active[i].age()) else { return false };
            self.active[i].pages.push(page);
        }
        true
    }

    fn rows(&mut self, mut parts: Vec<Part>) -> Rows {
        let (mut tokens, mut segments, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        let mut spans = Vec::with_capacity(parts.len());
        let mut at = 0;
        for part in &mut parts {
            // Parts come in the order of the sequences.
            at += self.active[at..].iter().position(|s| s.age() == part.age).expect("a part has a sequence");
            let seq = &self.active[at];
            let first = tokens.len();
            tokens.extend_from_slice(&seq.tokens[seq.done..seq.done + part.rows]);
            tokens.extend_from_slice(&part.guess.tokens);
            spans.push(Span { age: part.age, first, rows: tokens.len() - first, past: seq.done });
            segments.push(Segment { rows: tokens.len() - first, past: seq.done, pages: seq.pages.clone() });
            if part.rows == seq.left() {
                part.wanted = Some(wanted.len());
                wanted.extend(first as u32 + part.rows as u32 - 1..tokens.len() as u32);
            }
        }
        self.counts.computed += tokens.len();
        Rows { parts, tokens, segments, spans, wanted }
    }

    /// Runs the model over the rows, and takes what it predicts.
    pub(super) fn pass(&mut self, rows: Rows, sink: &mut impl Sink) {
        let tape = Tape::inference(self.model.params());
        let (options, cache) = (PassOptions::default(), Some(&mut self.cache));
        let hidden = self.model.forward(&tape, &rows.tokens, &rows.segments, options, cache).hidden;
        self.finish(rows, &hidden, sink);
    }

    /// Takes what the last hidden states of the rows, `[tokens, H]`, predict.
    pub(super) fn finish(&mut self, rows: Rows, hidden: &Tensor, sink: &mut impl Sink) {
        let params = self.model.params();
        // [wanted, vocab]
        let logits = ops::logits(params, &ops::pick_rows(params, hidden, &rows.wanted), self.model.head());
        self.take_predictions(rows.parts, &logits, rows.wanted.len(), sink);
        if self.limits.mtp {
            self.look_ahead(&rows.spans, hidden);
        }
    }
}
