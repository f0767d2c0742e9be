//! Room: which sequences are in work, and whose the pages of the cache are.

use model::KvCache;

use super::{Lane, Seq, Sink, Ticket};
use crate::request::FinishReason;

impl Lane<'_> {
    /// Takes from the queue what there is room for.
    pub(super) fn admit(&mut self, sink: &mut impl Sink) {
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
    pub(super) fn keep(&mut self, i: usize) {
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

    /// The pages of a new sample of the prompt at `i`: whole pages shared, the last, unfinished one copied.
    pub(super) fn share_prompt(&mut self, i: usize) -> Option<Vec<u32>> {
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
    pub(super) fn take_page(&mut self, age: (Ticket, usize)) -> Option<u32> {
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
    pub(super) fn put_back(&mut self) {
        let mut seq = self.active.pop().expect("there is a youngest");
        self.counts.put_back += 1;
        self.give_up_piece_of(seq.age());
        let pages = std::mem::take(&mut seq.pages);
        pages.iter().for_each(|&page| self.pages.release(page));
        (seq.done, seq.ahead, seq.kept, seq.logits) = (0, 0, (0, 0), None);
        seq.mtp_guess = None;
        let at = self.waiting.partition_point(|s| s.age() < seq.age());
        self.waiting.insert(at, seq);
    }

    pub(super) fn release(&mut self, seq: Seq) {
        self.give_up_piece_of(seq.age());
        seq.pages.iter().for_each(|&page| self.pages.release(page));
    }
}
