//! Guesses at the tokens to come: looked up in the text, or the MTP layer's, which goes along a token ahead of the model.

use model::{KvCache, Segment};
use tensor::Tensor;
use tensor::ops::{self, Draw};

use super::{Job, Lane, Seq, Ticket};
use crate::speculate;

/// Tokens that may follow.
#[derive(Clone, Default)]
pub(super) struct Guess {
    pub(super) tokens: Vec<u32>,
    /// How many of them, from the first on, the MTP layer says too.
    pub(super) by_mtp: usize,
}

/// The rows of a pass that were one sequence's: the first of them, how many, and after how many tokens.
pub(super) struct Span {
    pub(super) age: (Ticket, usize),
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) past: usize,
}

impl Lane<'_> {
    /// What may follow a sequence in decoding: what the MTP layer says, which is right far more often than what is looked up in what the
    /// sequence holds. Where the latter begins with the same token, it is taken to go on so.
    pub(super) fn guess(&self, i: usize, decoding: usize) -> Guess {
        let seq = &self.active[i];
        let Job { request, extras, .. } = &self.jobs[&seq.ticket];
        let most = speculate::worth(extras.speculate, decoding);
        // The last token of an answer is never guessed for: nothing follows it.
        let left = request.prompt.len() + request.max_new - seq.tokens.len();
        let most = most.min(left.saturating_sub(1));
        if most == 0 || seq.trunk || seq.guide.is_some() {
            return Guess::default();
        }
        let looked_up = speculate::lookup(&seq.tokens, most);
        match seq.mtp_guess {
            None => Guess { tokens: looked_up, by_mtp: 0 },
            Some(token) if looked_up.first() == Some(&token) => Guess { tokens: looked_up, by_mtp: 1 },
            Some(token) => Guess { tokens: vec![token], by_mtp: 1 },
        }
    }

    /// Lets the MTP layer go over the tokens that are certain by now and keeps what it predicts. Its row of a token reads the
    /// hidden state of the token before, so that what is cached of a token depends on those up to it alone, as everything
    /// else does: pages are shared and found again with it. A state that is not at hand (that before a found prefix) is
    /// replaced by its neighbour's: a guess may be worse for it, and no token is another.
    pub(super) fn look_ahead(&mut self, spans: &[Span], hidden: &Tensor) {
        let (mut rows, mut tokens, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        let (mut last, mut guessing) = (Vec::new(), Vec::new());
        for span in spans {
            let Ok(i) = self.active.binary_search_by_key(&span.age, Seq::age) else { continue };
            let seq = &mut self.active[i];
            seq.mtp_guess = None;
            let room = seq.pages.len() * KvCache::PAGE;
            let end = (seq.done + 1).min(seq.tokens.len()).min(room);
            if end <= seq.ahead {
                continue;
            }
            for at in seq.ahead..end {
                let before = at.saturating_sub(1).clamp(span.past, span.past + span.rows - 1);
                rows.push((span.first + before - span.past) as u32);
                tokens.push(seq.tokens[at]);
            }
            segments.push(Segment { rows: end - seq.ahead, past: seq.ahead, pages: seq.pages.clone() });
            seq.ahead = end;
            if end == seq.tokens.len() && !seq.trunk {
                last.push(tokens.len() as u32 - 1);
                guessing.push(i);
            }
        }
        if tokens.is_empty() {
            return;
        }
        let params = self.model.params();
        let before = ops::pick_rows(params, hidden, &rows);
        let ahead = self.model.look_ahead(&before, &tokens, &segments, &mut self.cache);
        if last.is_empty() {
            return;
        }
        let logits = ops::logits(params, &ops::pick_rows(params, &ahead, &last), self.model.head());
        let most_likely = vec![Draw { temperature: 0.0, uniform: 0.0, given: None }; last.len()];
        for (i, drawn) in guessing.into_iter().zip(ops::sample(params, &logits, &most_likely)) {
            self.active[i].mtp_guess = Some(drawn.token);
        }
    }
}
