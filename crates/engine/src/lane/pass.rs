//! A pass of the model: which rows it has, and what it predicts.

use std::time::Instant;

use model::{KvCache, PassOptions, Segment};
use tensor::{Tape, Tensor, ops};

use super::ahead::{Guess, Span};
use super::{Lane, Sink, Ticket};

/// Rows of a step that belong to one sequence.
pub(super) struct Part {
    pub(super) age: (Ticket, usize),
    pub(super) rows: usize,
    /// Tokens that are guessed to follow, each a row too.
    pub(super) guess: Guess,
    /// First of the rows whose prediction is wanted, among those of the step.
    pub(super) wanted: Option<usize>,
}

impl Lane<'_> {
    /// Which rows the next step has: one of every sequence in decoding, and as many prompt tokens as there is room for.
    pub(super) fn divide(&mut self) -> Vec<Part> {
        let decoding = self.active.iter().filter(|s| s.logits.is_none() && s.left() == 1).count();
        let mut room = if decoding > 0 && self.limits.patience > 0.0 {
            self.pace.rows(&self.limits)
        } else {
            self.limits.rows.saturating_sub(decoding).max(64)
        };
        let mut parts = Vec::with_capacity(self.active.len());
        let mut i = 0;
        while i < self.active.len() {
            let seq = &self.active[i];
            let (age, left) = (seq.age(), seq.left());
            let rows = if seq.logits.is_some() {
                0
            } else if left == 1 {
                1
            } else {
                left.min(room)
            };
            i += 1;
            if rows == 0 {
                continue;
            }
            let guess = if left == 1 { self.guess(i - 1, decoding) } else { Guess::default() };
            let end = self.active[i - 1].done + rows + guess.tokens.len();
            let mut fits = true;
            while fits && self.active[i - 1].pages.len() * KvCache::PAGE < end {
                match self.take_page(age) {
                    Some(page) => self.active[i - 1].pages.push(page),
                    None => fits = false,
                }
            }
            if !fits {
                // It is the youngest that is left, and waits until an older one is done.
                self.put_back();
                break;
            }
            if left > 1 {
                room -= rows;
            }
            parts.push(Part { age, rows, guess, wanted: None });
        }
        parts
    }

    /// Runs the model over the parts, and takes what it predicts.
    pub(super) fn pass(&mut self, mut parts: Vec<Part>, sink: &mut impl Sink) {
        let begun = Instant::now();
        let (mut tokens, mut segments, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        let mut spans = Vec::with_capacity(parts.len());
        let (mut decoding, mut prompts) = (0, 0);
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
            match part.rows {
                1 => decoding += 1,
                n => prompts += n,
            }
        }
        self.counts.computed += tokens.len();
        let (hidden, logits) = self.predict(&tokens, &segments, &wanted);
        self.take_predictions(parts, &logits, wanted.len(), sink);
        if self.limits.mtp {
            self.look_ahead(&spans, &hidden);
        }
        self.pace.note(begun.elapsed().as_secs_f64(), decoding, prompts);
    }

    /// The last hidden states, `[tokens, H]`, and logits of the wanted rows, `[wanted, vocab]`.
    fn predict(&mut self, tokens: &[u32], segments: &[Segment], wanted: &[u32]) -> (Tensor, Tensor) {
        let params = self.model.params();
        let tape = Tape::inference(params);
        let pass = self.model.forward(&tape, tokens, segments, PassOptions::default(), Some(&mut self.cache));
        let logits = ops::logits(params, &ops::pick_rows(params, &pass.hidden, wanted), self.model.head());
        (pass.hidden, logits)
    }
}
