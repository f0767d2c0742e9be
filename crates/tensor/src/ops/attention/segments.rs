//! The sequences of a batch, and where their rows and keys lie.

use super::PAGE;
use crate::memory::Ints;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

/// Consecutive rows of a batch that are one sequence: `rows` new tokens after `past` earlier ones.
///
/// With a cache the earlier tokens lie in `pages`. Without one they are the whole of the latest segment before this one
/// that has no past itself: so the answers to one prompt share its rows, forward and backward.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Tokens in this pass.
    pub rows: usize,
    /// Tokens before them.
    pub past: usize,
    /// The sequence's pages, enough for `past + rows` tokens; empty without a cache.
    pub pages: Vec<u32>,
}

/// The sequences of a batch, made once for all layers: kernels read them from tables that are made when first needed.
#[derive(Clone)]
pub struct Segments(Arc<Inner>);

struct Inner {
    list: Vec<Segment>,
    trained: OnceLock<Tables>,
    cached: OnceLock<Tables>,
}

/// What kernels read (see `attention.cu`).
pub(super) struct Tables {
    /// `[segments][6]`: first row, rows, past, trunk, pages, keys of the segments before.
    pub(super) segments: Ints,
    /// The pages of all segments, one list after another.
    pub(super) pages: Ints,
    /// Tiles of the forward pass, `[tiles][2]`: segment, first row.
    pub(super) rows: Ints,
    /// With a cache: the segments of one row.
    pub(super) single: Ints,
    /// With a cache: where each row's key goes.
    pub(super) slots: Ints,
    /// Without one, for the way back: tiles of rows, tiles of keys, and each row's segment.
    pub(super) back_rows: Ints,
    pub(super) back_keys: Ints,
    pub(super) row_segment: Ints,
    /// Keys of all segments.
    pub(super) keys: usize,
    /// With a cache: the greatest number of a page.
    pub(super) last_page: usize,
}

/// Rows of a tile of the forward pass and keys of a tile of the backward pass; rows of a tile of the backward pass.
const TILE: usize = 64;
const BACK_TILE: usize = 48;

impl From<Vec<Segment>> for Segments {
    fn from(list: Vec<Segment>) -> Segments {
        Segments(Arc::new(Inner { list, trained: OnceLock::new(), cached: OnceLock::new() }))
    }
}

impl Deref for Segments {
    type Target = [Segment];
    fn deref(&self) -> &[Segment] {
        &self.0.list
    }
}

impl Segments {
    pub(super) fn tables(&self, cached: bool) -> &Tables {
        let place = if cached { &self.0.cached } else { &self.0.trained };
        place.get_or_init(|| tables(&self.0.list, cached))
    }
}

fn tables(list: &[Segment], cached: bool) -> Tables {
    let places = places(list, cached);
    let (mut segments, mut pages, mut slots, mut row_segment) = (vec![], vec![], vec![], vec![]);
    let mut keys = 0;
    for (i, (s, place)) in list.iter().zip(&places).enumerate() {
        let end = s.past + s.rows;
        segments.extend([place.start, s.rows, s.past, place.trunk, pages.len(), keys].map(|n| n as u32));
        if cached {
            assert!(
                end.div_ceil(PAGE) <= s.pages.len(),
                "attention: {} pages for {} + {} tokens",
                s.pages.len(),
                s.past,
                s.rows
            );
            pages.extend(&s.pages);
            slots.extend((s.past..end).map(|key| s.pages[key / PAGE] * PAGE as u32 + (key % PAGE) as u32));
        }
        row_segment.extend(std::iter::repeat_n(i as u32, s.rows));
        keys += end;
    }
    let mut taken: Vec<u32> = slots.clone();
    taken.sort_unstable();
    assert!(taken.windows(2).all(|s| s[0] != s[1]), "attention: two tokens for one place of a page");
    let last_page = pages.iter().max().map_or(0, |&p| p as usize);
    let single = |s: &Segment| cached && s.rows == 1;
    let tiles = |length: &dyn Fn(&Segment) -> usize, step: usize| -> Ints {
        let of = |(i, s): (usize, &Segment)| {
            (0..length(s)).step_by(step).flat_map(move |at| [i as u32, at as u32]).collect::<Vec<_>>()
        };
        list.iter().enumerate().flat_map(of).collect::<Vec<u32>>().into()
    };
    let singles = list.iter().enumerate().filter(|(_, s)| single(s)).map(|(i, _)| i as u32);
    Tables {
        segments: segments.into(),
        pages: pages.into(),
        rows: tiles(&|s| if single(s) { 0 } else { s.rows }, TILE),
        single: singles.collect::<Vec<_>>().into(),
        slots: slots.into(),
        back_rows: tiles(&|s| s.rows, BACK_TILE),
        back_keys: tiles(&|s| s.past + s.rows, TILE),
        row_segment: row_segment.into(),
        keys,
        last_page,
    }
}

/// Where a segment's rows lie in the batch.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// First row of the segment without a past that this one continues, or is.
    pub(super) trunk: usize,
    /// Rows of the trunk that come before; 0 for the trunk itself, and with a cache.
    pub(super) past: usize,
    /// First row.
    pub(super) start: usize,
    /// Rows.
    pub(super) rows: usize,
}

impl Place {
    /// The batch's rows of this sequence, past included, as two ranges (first row, rows).
    pub(super) fn spans(&self) -> [(usize, usize); 2] {
        [(self.trunk, self.past), (self.start, self.rows)]
    }
}

pub(super) fn places(segments: &[Segment], cached: bool) -> Vec<Place> {
    let (mut start, mut trunk) = (0, (0, 0));
    segments
        .iter()
        .map(|s| {
            if s.past == 0 || cached {
                trunk = (start, s.rows);
            }
            let past = if cached { 0 } else { s.past };
            assert!(
                past == 0 || past == trunk.1,
                "attention: a past of {past} tokens behind a segment of {} without a cache",
                trunk.1
            );
            let place = Place { trunk: trunk.0, past, start, rows: s.rows };
            start += s.rows;
            place
        })
        .collect()
}

pub(super) fn number_pages(segments: &[Segment]) -> Vec<Segment> {
    let mut next = 0;
    segments
        .iter()
        .map(|s| {
            let n = (s.past + s.rows).div_ceil(PAGE) as u32;
            next += n;
            Segment { rows: s.rows, past: s.past, pages: (next - n..next).collect() }
        })
        .collect()
}
