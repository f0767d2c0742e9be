//! Pages that are kept for the next prompt that begins with the same tokens.
//!
//! A page is found by its tokens, by the page before it and by the salt: by what it holds, compared in full, and not by
//! a hash alone. Those used least recently go first, children before their parents.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use model::KvCache;

use crate::pages::Pages;

/// A kept page as others refer to it; 0 stands before the first page.
pub(crate) type Link = u64;

/// The page before, the salt, and the tokens of a page.
type Key = (Link, u64, Arc<[u32]>);

struct Entry {
    key: Key,
    page: u32,
    used: u64,
}

/// Whole pages by their content.
#[derive(Default)]
pub(crate) struct Prefix {
    entries: HashMap<Link, Entry>,
    index: HashMap<Key, Link>,
    /// From the time of last use to the entry.
    order: BTreeMap<u64, Link>,
    last: Link,
    clock: u64,
}

impl Prefix {
    /// The kept pages with which `tokens` begins, as far as whole pages leave a token to compute, and the last one's link. The
    /// caller becomes an owner of each.
    pub(crate) fn find(&mut self, salt: u64, tokens: &[u32], pages: &mut Pages) -> (Vec<u32>, Link) {
        let (mut found, mut link) = (Vec::new(), 0);
        let whole = tokens.len().saturating_sub(1) / KvCache::PAGE;
        for chunk in tokens.chunks_exact(KvCache::PAGE).take(whole) {
            let Some(&next) = self.index.get(&(link, salt, chunk.into())) else { break };
            link = next;
            let page = self.entries[&link].page;
            pages.share(page);
            found.push(page);
        }
        self.touch(link);
        (found, link)
    }

    /// Keeps a page that holds `tokens` after `parent`, and becomes an owner of it; gives its link. Where the same is kept
    /// already, that stays.
    pub(crate) fn keep(
        &mut self,
        parent: Link,
        salt: u64,
        tokens: &[u32],
        page: u32,
        pages: &mut Pages,
    ) -> Link {
        let key: Key = (parent, salt, tokens.into());
        if let Some(&link) = self.index.get(&key) {
            self.touch(link);
            return link;
        }
        self.last += 1;
        let link = self.last;
        pages.share(page);
        self.index.insert(key.clone(), link);
        self.clock += 1;
        self.order.insert(self.clock, link);
        self.entries.insert(link, Entry { key, page, used: self.clock });
        self.touch(parent);
        link
    }

    /// Marks an entry and those before it as used now, the first one last.
    fn touch(&mut self, mut link: Link) {
        while let Some(entry) = self.entries.get_mut(&link) {
            self.order.remove(&entry.used);
            self.clock += 1;
            entry.used = self.clock;
            self.order.insert(self.clock, link);
            link = entry.key.0;
        }
    }

    /// Gives up the page that was used least recently and that nobody else owns; says whether there was one.
    pub(crate) fn evict(&mut self, pages: &mut Pages) -> bool {
        let oldest = self.order.values().find(|link| pages.owners(self.entries[link].page) == 1);
        let Some(&link) = oldest else { return false };
        let entry = self.entries.remove(&link).expect("what is in the order is an entry");
        self.order.remove(&entry.used);
        self.index.remove(&entry.key);
        pages.release(entry.page);
        true
    }

    /// Pages that nobody else owns.
    pub(crate) fn idle(&self, pages: &Pages) -> usize {
        self.entries.values().filter(|e| pages.owners(e.page) == 1).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(n: u32) -> Vec<u32> {
        vec![n; KvCache::PAGE]
    }

    /// Found by content, by what is before it and by salt; a whole prompt leaves one token to compute.
    #[test]
    fn pages_are_found_by_what_they_hold() {
        let (mut prefix, mut pages) = (Prefix::default(), Pages::default());
        let [a, b] = [0, 1].map(|_| pages.take(9).expect("room"));
        let first = prefix.keep(0, 5, &page(1), a, &mut pages);
        prefix.keep(first, 5, &page(2), b, &mut pages);
        let mut found = |salt, parts: &[u32], more: usize| {
            let mut tokens: Vec<u32> = parts.iter().flat_map(|&n| page(n)).collect();
            tokens.extend(vec![9; more]);
            let (found, _) = prefix.find(salt, &tokens, &mut pages);
            found.iter().for_each(|&p| pages.release(p));
            found
        };
        assert_eq!(found(5, &[1, 2], 1), [a, b]);
        assert_eq!(found(5, &[1, 2], 0), [a], "the last token is to be computed");
        assert_eq!(found(5, &[2], 1), [0; 0], "another page before it");
        assert_eq!(found(6, &[1, 2], 1), [0; 0], "another salt");
    }

    /// The least recently used goes first, a child before its parent, and nothing that somebody uses.
    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let (mut prefix, mut pages) = (Prefix::default(), Pages::default());
        let taken: Vec<u32> = (0..3).map(|_| pages.take(3).expect("room")).collect();
        let first = prefix.keep(0, 0, &page(1), taken[0], &mut pages);
        prefix.keep(first, 0, &page(2), taken[1], &mut pages);
        prefix.keep(0, 0, &page(3), taken[2], &mut pages);
        assert!(!prefix.evict(&mut pages), "all are in use");
        taken.iter().for_each(|&p| pages.release(p));
        assert_eq!((prefix.idle(&pages), pages.take(3)), (3, None));
        let mut gone = Vec::new();
        while prefix.evict(&mut pages) {
            gone.push(pages.take(3).expect("one was freed"));
        }
        assert_eq!(gone, [taken[1], taken[0], taken[2]]);
    }
}
