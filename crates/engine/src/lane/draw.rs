//! Tokens: drawn from what the model predicts, and handed out.

use tensor::{Rng, Tensor, ops};

use super::ahead::Guess;
use super::pass::Part;
use super::{Job, Lane, Seq, Sink};
use crate::guide::{Allowed, Guide};
use crate::request::FinishReason;
use crate::sampler::{Chosen, Wish, choose};

impl Lane<'_> {
    /// Begins the samples of prompts that went through, as far as there is room.
    pub(super) fn begin_samples(&mut self, sink: &mut impl Sink) {
        let mut running = self.active.iter().filter(|s| !s.trunk).count();
        let mut i = 0;
        while i < self.active.len() {
            if self.active[i].logits.is_none() {
                i += 1;
                continue;
            }
            let before = self.active.len();
            self.begin_some(i, &mut running, sink);
            // What was begun stands before the prompt.
            i += 1 + self.active.len().saturating_sub(before);
        }
    }

    /// Begins samples of the prompt at `i`, which is taken away with the last of them.
    fn begin_some(&mut self, i: usize, running: &mut usize, sink: &mut impl Sink) {
        let ticket = self.active[i].ticket;
        let Some(job) = self.jobs.get(&ticket) else { return };
        let (first, all) = (self.active[i].sample, job.request.samples);
        let count = (all - first).min(self.limits.sequences.saturating_sub(*running));
        if count == 0 {
            return;
        }
        let params = self.model.params();
        let logits = self.active[i].logits.as_ref().expect("the prompt went through");
        let rows = ops::pick_rows(params, logits, &vec![0; count]);
        let prompt = self.active[i].tokens.clone();
        let mut guides: Vec<_> = (0..count).map(|_| job.extras.guide.as_ref().map(|make| make())).collect();
        let wishes: Vec<Wish> = (first..first + count)
            .zip(&mut guides)
            .map(|(sample, guide)| wish(job, sample, &prompt, guide))
            .collect();
        let chosen = choose(params, &rows, &wishes);
        let mut at = i;
        for ((sample, chosen), guide) in (first..).zip(chosen).zip(guides) {
            let mut seq = Seq::new(ticket, sample, false, prompt.clone(), guide);
            // A page of its own comes first: without one the sample begins later, with the same token.
            let Some(pages) = self.share_prompt(at) else { break };
            self.active[at].sample += 1;
            seq.done = prompt.len();
            seq.ahead = seq.done;
            seq.kept = self.active[at].kept;
            seq.pages = pages;
            if self.accept(&mut seq, &chosen, sink) {
                self.release(seq);
            } else {
                self.active.insert(at, seq);
                at += 1;
                *running += 1;
            }
        }
        if self.active[at].sample == all {
            let trunk = self.active.remove(at);
            self.release(trunk);
        }
    }

    /// Draws the tokens of the sequences whose rows are done, and hands them out.
    pub(super) fn take_predictions(
        &mut self,
        parts: Vec<Part>,
        logits: &Tensor,
        wanted: usize,
        sink: &mut impl Sink,
    ) {
        let params = self.model.params();
        let mut drawing: Vec<(usize, &Part)> = Vec::with_capacity(parts.len());
        let mut rows: Vec<u32> = Vec::with_capacity(wanted);
        let mut at = 0;
        for part in &parts {
            at += self.active[at..].iter().position(|s| s.age() == part.age).expect("a part has a sequence");
            self.active[at].done += part.rows;
            self.keep(at);
            let Some(row) = part.wanted else { continue };
            if self.active[at].trunk {
                self.active[at].logits = Some(ops::pick_rows(params, logits, &[row as u32]));
            } else {
                rows.extend((row..=row + part.guess.tokens.len()).map(|r| r as u32));
                drawing.push((at, part));
            }
        }
        if rows.is_empty() {
            return;
        }
        let picked = (rows.len() < wanted).then(|| ops::pick_rows(params, logits, &rows));
        // With the guesses behind them, as they would stand if all came so.
        let texts: Vec<Vec<u32>> = drawing
            .iter()
            .filter(|(_, p)| !p.guess.tokens.is_empty())
            .map(|(i, p)| [&self.active[*i].tokens[..], &p.guess.tokens].concat())
            .collect();
        let mut texts = texts.iter();
        let mut wishes = Vec::with_capacity(rows.len());
        let mut guides: Vec<_> = drawing.iter().map(|(i, _)| self.active[*i].guide.take()).collect();
        for ((i, part), guide) in drawing.iter().zip(&mut guides) {
            let seq = &self.active[*i];
            let job = &self.jobs[&seq.ticket];
            wishes.push(wish(job, seq.sample, &seq.tokens, guide));
            if !part.guess.tokens.is_empty() {
                let text = texts.next().expect("one for each guess");
                let more = (1..=part.guess.tokens.len()).map(|n| &text[..seq.tokens.len() + n]);
                wishes.extend(more.map(|text| wish(job, seq.sample, text, &mut None)));
            }
        }
        let mut chosen = choose(params, picked.as_ref().unwrap_or(logits), &wishes).into_iter();
        drop(wishes);
        let ages: Vec<_> = drawing.iter().map(|(_, p)| (p.age, p.guess.clone())).collect();
        for ((age, guess), guide) in ages.into_iter().zip(guides) {
            let chosen: Vec<Chosen> = chosen.by_ref().take(1 + guess.tokens.len()).collect();
            // Those that ended meanwhile have moved the others.
            let i = self.active.binary_search_by_key(&age, Seq::age).expect("a part has a sequence");
            let mut seq = self.active.remove(i);
            seq.guide = guide;
            if self.accept_all(&mut seq, &guess, &chosen, sink) {
                self.release(seq);
            } else {
                self.active.insert(i, seq);
                self.keep(i);
            }
        }
    }

    /// Takes a drawn token and those after it that were guessed right; says whether the continuation has ended.
    fn accept_all(&mut self, seq: &mut Seq, guess: &Guess, chosen: &[Chosen], sink: &mut impl Sink) -> bool {
        let right = guess.tokens.iter().zip(chosen).take_while(|(g, c)| **g == c.drawn.token).count();
        if !guess.tokens.is_empty() {
            self.counts.guessed += guess.tokens.len();
            self.counts.guessed_right += right;
            self.counts.mtp_guessed += guess.by_mtp;
            self.counts.mtp_guessed_right += guess.by_mtp.min(right);
            sink.guessed(seq.ticket, seq.sample, guess.tokens.len(), right);
        }
        for (n, c) in chosen[..=right].iter().enumerate() {
            // The row of a guess that came has computed its key and value.
            seq.done += usize::from(n > 0);
            if self.accept(seq, c, sink) {
                return true;
            }
        }
        false
    }

    /// Appends a token; says whether that ended the continuation.
    fn accept(&mut self, seq: &mut Seq, chosen: &Chosen, sink: &mut impl Sink) -> bool {
        let token = chosen.drawn.token;
        seq.tokens.push(token);
        if let Some(guide) = &mut seq.guide {
            guide.accept(token);
        }
        let go_on = sink.token(seq.ticket, seq.sample, chosen.drawn, &chosen.top);
        let Some(job) = self.jobs.get_mut(&seq.ticket) else { return true };
        let reason = if !go_on {
            FinishReason::Stop
        } else if job.request.stop_tokens.contains(&token) {
            let whole = seq.guide.as_mut().is_none_or(|guide| guide.is_whole());
            if whole { FinishReason::Stop } else { FinishReason::Length }
        } else if seq.tokens.len() - job.request.prompt.len() >= job.request.max_new {
            FinishReason::Length
        } else {
            return false;
        };
        sink.end(seq.ticket, seq.sample, reason);
        job.open -= 1;
        if job.open == 0 {
            self.jobs.remove(&seq.ticket);
        }
        true
    }
}

/// What the next token of a sample is to be, after `tokens`.
fn wish<'a>(job: &'a Job, sample: usize, tokens: &'a [u32], guide: &mut Option<Box<dyn Guide>>) -> Wish<'a> {
    let (prompt, answer) = tokens.split_at(job.request.prompt.len());
    Wish {
        sampling: job.request.sampling,
        seen: [prompt, answer],
        rng: Rng::at(job.request.seed, &[sample as u64, answer.len() as u64]),
        bias: &job.extras.logit_bias,
        allowed: guide.as_mut().map_or(Allowed::All, |g| g.allowed()),
        top: job.extras.top_logprobs,
    }
}
