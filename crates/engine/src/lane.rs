//! Sequences that go through the model together: they come and go between any two steps.
//!
//! A lane works on the oldest first. Every sequence in decoding gives a step one row; what room is left is filled with
//! pieces of prompts. Where the budget of pages runs out, kept prefixes go first, then the youngest sequence is put back:
//! its pages are freed, and its tokens are computed again later. By the engine's bitwise contract neither that, nor the
//! pieces, nor who else is there changes a token.

mod ahead;
mod pace;

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use model::{KvCache, Model, PassOptions, Segment};
use tensor::ops::Drawn;
use tensor::{Rng, Tape, Tensor, ops};

use crate::guide::{Allowed, Guide};
use crate::pages::Pages;
use crate::prefix::{Link, Prefix};
use crate::request::{EngineError, Extras, FinishReason, Request, check};
use crate::sampler::{Chosen, Wish, choose};
use ahead::{Guess, Span};
use pace::Pace;

/// How much is worked on at once. None of it changes a result.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Continuations in flight in one lane.
    pub sequences: usize,
    /// Rows of a step: one per continuation, the rest prompt tokens.
    pub rows: usize,
    /// Pages of the cache.
    pub pages: usize,
    /// Whether pages are kept, within the budget, for prompts that begin alike.
    pub keep: bool,
    /// How many times as long as a step of decoding alone one may last that takes prompt tokens along, about; 0 for any.
    pub patience: f32,
    /// Whether the model's MTP layer, if it has one, goes along and guesses for requests that allow guesses.
    pub mtp: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { sequences: 256, rows: 512, pages: usize::MAX, keep: false, patience: 0.0, mtp: false }
    }
}

/// A request in a lane; those that come later are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Whoever listens to a lane.
pub trait Sink {
    /// A request has left the queue, and so many tokens of its prompt were found in the cache.
    fn begun(&mut self, _ticket: Ticket, _cached: usize) {}
    /// A token of a sample, with the `top_logprobs` that were asked for; false ends the continuation.
    fn token(&mut self, ticket: Ticket, sample: usize, drawn: Drawn, top: &[(u32, f32)]) -> bool;
    /// So many of a sample's next tokens were guessed, and so many of these came.
    fn guessed(&mut self, _ticket: Ticket, _sample: usize, _guessed: usize, _right: usize) {}
    /// The end of a sample.
    fn end(&mut self, ticket: Ticket, sample: usize, reason: FinishReason);
}

/// What a lane has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tokens that went through the model.
    pub computed: usize,
    /// Prompt tokens that were found in the cache instead.
    pub cached: usize,
    /// Tokens that were guessed, and those of them that came so.
    pub guessed: usize,
    /// See `guessed`.
    pub guessed_right: usize,
    /// Of these, the MTP layer's.
    pub mtp_guessed: usize,
    /// See `mtp_guessed`.
    pub mtp_guessed_right: usize,
    /// Sequences that were put back for lack of pages.
    pub put_back: usize,
}

/// A request in work.
struct Job {
    request: Request,
    extras: Extras,
    /// Samples that have not ended.
    open: usize,
    begun: bool,
}

/// One sequence: a continuation, or a prompt whose samples have not all begun.
struct Seq {
    ticket: Ticket,
    /// The sample; of a prompt the next one to begin.
    sample: usize,
    /// Whether it is the prompt that several samples share.
    trunk: bool,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// How many of them have their keys and values in `pages`.
    done: usize,
    pages: Vec<u32>,
    /// How many of them have gone through the MTP layer, in a lane with one; it is a token ahead of the model.
    ahead: usize,
    /// What the MTP layer takes for the next token.
    mtp_guess: Option<u32>,
    /// Pages that were handed to the kept prefixes, and the last one's link.
    kept: (usize, Link),
    /// Of a prompt that went through: the prediction after its last token, `[1, vocab]`.
    logits: Option<Tensor>,
    guide: Option<Box<dyn Guide>>,
}

impl Seq {
    /// The oldest is the least.
    fn age(&self) -> (Ticket, usize) {
        (self.ticket, self.sample)
    }
    fn left(&self) -> usize {
        self.tokens.len() - self.done
    }
}

/// Rows of a step that belong to one sequence.
struct Part {
    age: (Ticket, usize),
    rows: usize,
    /// Tokens that are guessed to follow, each a row too.
    guess: Guess,
    /// First of the rows whose prediction is wanted, among those of the step.
    wanted: Option<usize>,
}

/// A queue of requests and their way through one model.
pub struct Lane<'m> {
    model: &'m Model,
    limits: Limits,
    cache: KvCache,
    pages: Pages,
    prefix: Prefix,
    jobs: HashMap<Ticket, Job>,
    /// Without pages, the oldest first.
    waiting: VecDeque<Seq>,
    /// The oldest first.
    active: Vec<Seq>,
    next_ticket: u64,
    counts: Counts,
    pace: Pace,
}

impl<'m> Lane<'m> {
    /// A lane with a cache of its own.
    pub fn new(model: &'m Model, limits: Limits) -> Lane<'m> {
        let limits = Limits { mtp: limits.mtp && model.has_mtp(), ..limits };
        Lane {
            model,
            limits,
            cache: if limits.mtp { model.new_cache_with_mtp() } else { model.new_cache() },
            pages: Pages::default(),
            prefix: Prefix::default(),
            jobs: HashMap::new(),
            waiting: VecDeque::new(),
            active: Vec::new(),
            next_ticket: 0,
            counts: Counts::default(),
            pace: Pace::default(),
        }
    }

    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = Limits { mtp: self.limits.mtp, ..limits };
    }

    /// Queues a request. Its first token comes out of a later [`Lane::step`].
    ///
    /// # Errors
    /// What the model cannot continue, and what the cache could not hold even alone.
    pub fn submit(&mut self, request: Request, extras: Extras) -> Result<Ticket, EngineError> {
        check(self.model, 0, &request)?;
        let tokens = request.prompt.len() + request.max_new;
        // One page more: the samples of a prompt do not share its last page.
        let pages = tokens.div_ceil(KvCache::PAGE) + 1;
        if pages > self.limits.pages {
            return Err(EngineError::TooManyPages { tokens, pages, budget: self.limits.pages });
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        if request.samples > 0 {
            let trunk = request.samples > 1;
            let guide = extras.guide.as_ref().filter(|_| !trunk).map(|make| make());
            self.waiting.push_back(Seq::new(ticket, 0, trunk, request.prompt.clone(), guide));
            self.jobs.insert(ticket, Job { open: request.samples, request, extras, begun: false });
        }
        Ok(ticket)
    }

    /// Forgets a request; no more is heard of it.
    pub fn cancel(&mut self, ticket: Ticket) {
        if self.jobs.remove(&ticket).is_none() {
            return;
        }
        self.waiting.retain(|s| s.ticket != ticket);
        let mut i = 0;
        while i < self.active.len() {
            if self.active[i].ticket == ticket {
                let seq = self.active.remove(i);
                self.release(seq);
            } else {
                i += 1;
            }
        }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.active.is_empty()
    }

    /// Continuations that are in work or waiting, those that have not begun among them.
    pub fn load(&self) -> usize {
        self.jobs.values().map(|j| j.open).sum()
    }

    /// Continuations that wait for room.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(|s| self.samples_of(s)).sum()
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Bytes that the cache holds.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Pages in use, those kept for later among them.
    pub fn used_pages(&self) -> usize {
        self.pages.used()
    }

    /// Pages that are kept for later and used by nobody.
    pub fn idle_pages(&self) -> usize {
        self.prefix.idle(&self.pages)
    }

    /// One pass of the model at most; says whether there is more to do.
    pub fn step(&mut self, sink: &mut impl Sink) -> bool {
        self.begin_samples(sink);
        self.admit(sink);
        let parts = self.divide();
        if !parts.is_empty() {
            self.pass(parts, sink);
        }
        !self.is_idle()
    }

    /// Continuations that a sequence stands for.
    fn samples_of(&self, seq: &Seq) -> usize {
        if seq.trunk { self.jobs[&seq.ticket].request.samples - seq.sample } else { 1 }
    }

    /// Takes from the queue what there is room for.
    fn admit(&mut self, sink: &mut impl Sink) {
        if self.waiting.is_empty() {
            return;
        }
        // No prompt is begun before its samples have room: another lane may be idle sooner.
        let mut ahead: usize = self.active.iter().map(|s| self.samples_of(s)).sum();
        let mut free = self.limits.pages - self.pages.used();
        if self.limits.keep {
            free += self.prefix.idle(&self.pages);
        }
        while ahead < self.limits.sequences {
            let Some(mut seq) = self.waiting.pop_front() else { break };
            let job = &self.jobs[&seq.ticket];
            if job.request.max_new == 0 {
                (0..job.request.samples).for_each(|s| sink.end(seq.ticket, s, FinishReason::Length));
                self.jobs.remove(&seq.ticket);
                continue;
            }
            let wanted = seq.tokens.len().div_ceil(KvCache::PAGE) + 1;
            if wanted > free && !self.active.is_empty() {
                self.waiting.push_front(seq);
                break;
            }
            free = free.saturating_sub(wanted);
            ahead += self.samples_of(&seq);
            self.find_prefix(&mut seq);
            let job = self.jobs.get_mut(&seq.ticket).expect("a sequence has a job");
            if !std::mem::replace(&mut job.begun, true) {
                sink.begun(seq.ticket, seq.done);
            }
            let at = self.active.partition_point(|s| s.age() < seq.age());
            self.active.insert(at, seq);
        }
    }

    /// Gives a sequence the kept pages with which it begins.
    fn find_prefix(&mut self, seq: &mut Seq) {
        if !self.limits.keep {
            return;
        }
        let salt = self.jobs[&seq.ticket].extras.salt;
        let (pages, link) = self.prefix.find(salt, &seq.tokens, &mut self.pages);
        seq.done = pages.len() * KvCache::PAGE;
        seq.ahead = seq.done;
        seq.kept = (pages.len(), link);
        seq.pages = pages;
        self.counts.cached += seq.done;
    }

    /// Keeps the pages that have become whole.
    fn keep(&mut self, i: usize) {
        if !self.limits.keep {
            return;
        }
        let seq = &mut self.active[i];
        let salt = self.jobs[&seq.ticket].extras.salt;
        while (seq.kept.0 + 1) * KvCache::PAGE <= seq.done {
            let (at, parent) = seq.kept;
            let tokens = &seq.tokens[at * KvCache::PAGE..][..KvCache::PAGE];
            let link = self.prefix.keep(parent, salt, tokens, seq.pages[at], &mut self.pages);
            seq.kept = (at + 1, link);
        }
    }

    /// Begins the samples of prompts that went through, as far as there is room.
    fn begin_samples(&mut self, sink: &mut impl Sink) {
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

    /// The pages of a new sample of the prompt at `i`: whole pages shared, the last, unfinished one copied.
    fn share_prompt(&mut self, i: usize) -> Option<Vec<u32>> {
        let prompt = self.active[i].tokens.len();
        let whole = prompt / KvCache::PAGE;
        let mut copy = None;
        if !prompt.is_multiple_of(KvCache::PAGE) {
            let age = self.active[i].age();
            let page = self.take_page(age)?;
            self.cache.copy_page(self.active[i].pages[whole], page);
            copy = Some(page);
        }
        let mut pages = self.active[i].pages[..whole].to_vec();
        pages.iter().for_each(|&page| self.pages.share(page));
        pages.extend(copy);
        Some(pages)
    }

    /// A page for the sequence of that age: a free one, a kept one, or one of a younger sequence.
    fn take_page(&mut self, age: (Ticket, usize)) -> Option<u32> {
        loop {
            if let Some(page) = self.pages.take(self.limits.pages) {
                self.cache.grow(self.pages.len());
                return Some(page);
            }
            if self.prefix.evict(&mut self.pages) {
                continue;
            }
            if self.active.last().is_none_or(|youngest| youngest.age() <= age) {
                return None;
            }
            self.put_back();
        }
    }

    /// Puts the youngest sequence back into the queue; its tokens are computed again later.
    fn put_back(&mut self) {
        let mut seq = self.active.pop().expect("there is a youngest");
        self.counts.put_back += 1;
        let pages = std::mem::take(&mut seq.pages);
        pages.iter().for_each(|&page| self.pages.release(page));
        (seq.done, seq.ahead, seq.kept, seq.logits) = (0, 0, (0, 0), None);
        seq.mtp_guess = None;
        let at = self.waiting.partition_point(|s| s.age() < seq.age());
        self.waiting.insert(at, seq);
    }

    /// Which rows the next step has: one of every sequence in decoding, and as many prompt tokens as there is room for.
    fn divide(&mut self) -> Vec<Part> {
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
    fn pass(&mut self, mut parts: Vec<Part>, sink: &mut impl Sink) {
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

    /// Draws the tokens of the sequences whose rows are done, and hands them out.
    fn take_predictions(&mut self, parts: Vec<Part>, logits: &Tensor, wanted: usize, sink: &mut impl Sink) {
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
            if guess.by_mtp {
                self.counts.mtp_guessed += guess.tokens.len();
                self.counts.mtp_guessed_right += right;
            }
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

    fn release(&mut self, seq: Seq) {
        seq.pages.iter().for_each(|&page| self.pages.release(page));
    }
}

impl Seq {
    fn new(
        ticket: Ticket,
        sample: usize,
        trunk: bool,
        tokens: Vec<u32>,
        guide: Option<Box<dyn Guide>>,
    ) -> Seq {
        Seq {
            ticket,
            sample,
            trunk,
            tokens,
            done: 0,
            ahead: 0,
            mtp_guess: None,
            pages: Vec::new(),
            kept: (0, 0),
            logits: None,
            guide,
        }
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

#[cfg(test)]
mod tests;
