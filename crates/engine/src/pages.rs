//! Which page of the cache belongs to whom.

/// Pages with reference counts; freed pages are used again before new ones.
#[derive(Default)]
pub(crate) struct Pages {
    counts: Vec<u32>,
    free: Vec<u32>,
}

impl Pages {
    /// A page with one owner, where there may be `budget` pages in all; none if all are taken.
    pub(crate) fn take(&mut self, budget: usize) -> Option<u32> {
        if self.free.is_empty() && self.counts.len() >= budget {
            return None;
        }
        let page = self.free.pop().unwrap_or_else(|| {
            self.counts.push(0);
            (self.counts.len() - 1) as u32
        });
        self.counts[page as usize] = 1;
        Some(page)
    }
    /// One more owner.
    pub(crate) fn share(&mut self, page: u32) {
        self.counts[page as usize] += 1;
    }
    /// One owner less; the last one frees the page.
    pub(crate) fn release(&mut self, page: u32) {
        let count = &mut self.counts[page as usize];
        *count -= 1;
        if *count == 0 {
            self.free.push(page);
        }
    }
    /// Owners of a page.
    pub(crate) fn owners(&self, page: u32) -> u32 {
        self.counts[page as usize]
    }
    /// Pages ever taken.
    pub(crate) fn len(&self) -> usize {
        self.counts.len()
    }
    /// Pages in use.
    pub(crate) fn used(&self) -> usize {
        self.counts.len() - self.free.len()
    }
}
