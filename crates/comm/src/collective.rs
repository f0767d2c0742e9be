//! What all ranks do together. Each must call the same functions in the same order.
//!
//! The number of ranks R is a power of two. An array that is divided among them is cut into R pieces; rank r owns the piece whose
//! number is r with its bits reversed, so that what a rank holds on the way is always one range: pairs of neighbours halve the
//! whole, pairs of pairs the halves, and so on.

use std::ops::Range;

use crate::Comm;

/// Values of one parcel: large enough that a far network is busy, small beside an arena.
const PARCEL: usize = 1 << 24;

/// An array in pieces, one for each rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slices {
    /// Where the pieces begin, and the end of the last.
    bounds: Vec<usize>,
}

impl Slices {
    /// Pieces between ascending bounds, of which the first is 0. Panics unless their number is a power of two.
    pub fn new(bounds: Vec<usize>) -> Slices {
        let ordered = bounds.windows(2).all(|w| w[0] <= w[1]) && bounds.first() == Some(&0);
        assert!(ordered && (bounds.len() - 1).is_power_of_two(), "slices between {bounds:?}");
        Slices { bounds }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Where the pieces begin, and the end of the last.
    pub fn bounds(&self) -> &[usize] {
        &self.bounds
    }

    /// The piece of a rank.
    pub fn of(&self, rank: usize) -> Range<usize> {
        self.held(rank, self.count().trailing_zeros())
    }

    /// What a rank holds once it has halved the whole so many times.
    fn held(&self, rank: usize, halvings: u32) -> Range<usize> {
        let (mut low, mut high) = (0, self.count());
        for level in 0..halvings {
            let middle = (low + high) / 2;
            if rank >> level & 1 == 0 { high = middle } else { low = middle }
        }
        self.bounds[low]..self.bounds[high]
    }
}

/// Two ranges of an array that do not overlap, the first to read.
fn apart(data: &mut [f32], read: Range<usize>, write: Range<usize>) -> (&[f32], &mut [f32]) {
    if read.is_empty() {
        (&[], &mut data[write])
    } else if read.start < write.start {
        let (low, high) = data.split_at_mut(write.start);
        (&low[read], &mut high[..write.len()])
    } else {
        let (low, high) = data.split_at_mut(read.start);
        (&high[..read.len()], &mut low[write])
    }
}

/// Adds the arrays of all ranks in one fixed binary tree: neighbours first, then pairs of neighbours. Each rank ends with the sum
/// in its own piece; the rest of the array is unspecified. A rank that is not `present` adds nothing: its array is not read.
/// `add` adds its second argument to its first.
pub fn reduce_scatter(
    comm: &dyn Comm,
    data: &mut [f32],
    slices: &Slices,
    present: &[bool],
    add: &dyn Fn(&mut [f32], &[f32]),
) {
    let rank = comm.rank();
    let mut arrived = Vec::new();
    for level in 0..slices.count().trailing_zeros() {
        let (size, with) = (1usize << level, rank ^ 1 << level);
        let any = |member: usize| present[member & !(size - 1)..][..size].iter().any(|&p| p);
        let (mine, theirs) = (any(rank), any(with));
        let (keep, give) = (slices.held(rank, level + 1), slices.held(with, level + 1));
        for at in (0..keep.len().max(give.len())).step_by(PARCEL) {
            let part = |of: &Range<usize>, wanted: bool| {
                let end = if wanted { of.end.min(of.start + at + PARCEL) } else { 0 };
                (of.start + at).min(end)..end
            };
            let (out, into) = (part(&give, mine), part(&keep, theirs));
            arrived.resize(into.len(), 0.0);
            comm.exchange(with, &data[out], &mut arrived);
            if mine {
                add(&mut data[into], &arrived);
            } else {
                data[into].copy_from_slice(&arrived);
            }
        }
    }
}

/// Gives all ranks the pieces of all.
pub fn all_gather(comm: &dyn Comm, data: &mut [f32], slices: &Slices) {
    let rank = comm.rank();
    for level in (0..slices.count().trailing_zeros()).rev() {
        let with = rank ^ 1 << level;
        let (out, into) = (slices.held(rank, level + 1), slices.held(with, level + 1));
        let (out, into) = apart(data, out, into);
        let parcels = out.len().max(into.len()).div_ceil(PARCEL);
        for i in 0..parcels {
            let part = |len: usize| (i * PARCEL).min(len)..((i + 1) * PARCEL).min(len);
            let here = part(into.len());
            let (out, into) = (&out[part(out.len())], &mut into[here]);
            comm.exchange(with, out, into);
        }
    }
}

/// Gives rank 0 the pieces of all, each in an array of its own, as `own` is; on the others `whole` is empty.
pub fn gather(comm: &dyn Comm, own: &[f32], whole: &mut [f32], slices: &Slices) {
    if comm.rank() > 0 {
        return send(comm, 0, own);
    }
    whole[slices.of(0)].copy_from_slice(own);
    for from in 1..comm.ranks() {
        receive(comm, from, &mut whole[slices.of(from)]);
    }
}

/// The other way: from rank 0 to each its piece.
pub fn scatter(comm: &dyn Comm, whole: &[f32], own: &mut [f32], slices: &Slices) {
    if comm.rank() > 0 {
        return receive(comm, 0, own);
    }
    own.copy_from_slice(&whole[slices.of(0)]);
    for to in 1..comm.ranks() {
        send(comm, to, &whole[slices.of(to)]);
    }
}

fn send(comm: &dyn Comm, to: usize, values: &[f32]) {
    values.chunks(PARCEL).for_each(|part| comm.send(to, part));
}

fn receive(comm: &dyn Comm, from: usize, values: &mut [f32]) {
    values.chunks_mut(PARCEL).for_each(|part| comm.receive(from, part));
}

/// The rank from which this one has what rank 0 gives to all, and those that it hands it on to: a binomial tree.
fn passing(comm: &dyn Comm) -> (Option<usize>, Vec<usize>) {
    let rank = comm.rank();
    let from = (rank > 0).then(|| rank & (rank - 1));
    let below = if rank == 0 { comm.ranks() } else { rank }.trailing_zeros();
    (from, (0..below).rev().map(|bit| rank | 1 << bit).collect())
}

/// Gives all ranks the values of rank 0.
pub fn broadcast(comm: &dyn Comm, values: &mut [f32]) {
    let (from, to) = passing(comm);
    for part in values.chunks_mut(PARCEL) {
        if let Some(from) = from {
            comm.receive(from, part);
        }
        to.iter().for_each(|&to| comm.send(to, part));
    }
}

/// Gives all ranks the message of rank 0.
pub fn broadcast_message(comm: &dyn Comm, message: Vec<u8>) -> Vec<u8> {
    let (from, to) = passing(comm);
    let message = from.map_or(message, |from| comm.hear(from));
    to.into_iter().for_each(|to| comm.tell(to, &message));
    message
}

/// The messages of all ranks, in their order, on all of them.
pub fn all_gather_messages(comm: &dyn Comm, message: Vec<u8>) -> Vec<Vec<u8>> {
    let (rank, ranks) = (comm.rank(), comm.ranks());
    let mut all = vec![Vec::new(); ranks];
    all[rank] = message;
    let mut size = 1;
    while size < ranks {
        let block = |of: usize| of & !(size - 1)..(of & !(size - 1)) + size;
        let with = rank ^ size;
        let mut parcel = Vec::new();
        for message in &all[block(rank)] {
            parcel.extend((message.len() as u64).to_le_bytes());
            parcel.extend(message);
        }
        let arrived = comm.swap(with, &parcel);
        let mut rest = &arrived[..];
        for to in &mut all[block(with)] {
            let (len, after) = rest.split_first_chunk().expect("a length before every message");
            let (message, after) = after.split_at(u64::from_le_bytes(*len) as usize);
            *to = message.to_vec();
            rest = after;
        }
        size *= 2;
    }
    all
}

/// Returns once all ranks have come here.
pub fn barrier(comm: &dyn Comm) {
    all_gather_messages(comm, Vec::new());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local;

    fn add(a: &mut [f32], b: &[f32]) {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    }

    /// Values of which every other order of addition has other bits.
    fn values(rank: usize, len: usize) -> Vec<f32> {
        (0..len)
            .map(|i| ((rank * 7919 + i * 104_729) as f32).sin() * 10f32.powi((i + rank) as i32 % 9))
            .collect()
    }

    /// The tree on one machine: neighbours, then pairs of neighbours.
    fn tree(len: usize, present: &[bool], ranks: Range<usize>) -> Option<Vec<f32>> {
        if ranks.len() == 1 {
            return present[ranks.start].then(|| values(ranks.start, len));
        }
        let middle = ranks.start + ranks.len() / 2;
        let (left, right) = (tree(len, present, ranks.start..middle), tree(len, present, middle..ranks.end));
        match (left, right) {
            (Some(mut left), Some(right)) => {
                add(&mut left, &right);
                Some(left)
            }
            (left, right) => left.or(right),
        }
    }

    #[test]
    fn sums_are_those_of_one_tree_whoever_takes_part() {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for ranks in [1, 2, 4, 8] {
            for bounds in [vec![0, 5, 5, 9, 11, 30, 31, 31, 40], (0..=8).map(|i| i * 37).collect()] {
                let bounds: Vec<usize> = bounds.into_iter().step_by(8 / ranks).collect();
                let len = *bounds.last().expect("the end");
                let slices = Slices::new(bounds);
                for mask in [0xff, 0b1, 0b1010_0110, 0b1000_0000, 0b0111_1000] {
                    let present: Vec<bool> = (0..ranks).map(|r| mask >> r & 1 == 1).collect();
                    let Some(want) = tree(len, &present, 0..ranks) else { continue };
                    let got = local::run(ranks, |comm| {
                        let mut data = values(comm.rank(), len);
                        reduce_scatter(&comm, &mut data, &slices, &present, &add);
                        let own = slices.of(comm.rank());
                        assert_eq!(bits(&data[own.clone()]), bits(&want[own.clone()]));
                        let rest = (0..len).filter(|i| !own.contains(i));
                        rest.for_each(|i| data[i] = f32::NAN);
                        all_gather(&comm, &mut data, &slices);
                        data
                    });
                    got.iter()
                        .for_each(|got| assert_eq!(bits(got), bits(&want), "{ranks} ranks, {present:?}"));
                }
            }
        }
    }

    #[test]
    fn pieces_and_messages_reach_whom_they_are_for() {
        for ranks in [1, 2, 4, 8] {
            let slices = Slices::new((0..=ranks).map(|i| i * i).collect());
            let len = ranks * ranks;
            let whole = values(0, len);
            local::run(ranks, |comm| {
                let rank = comm.rank();
                let mut own = vec![0.0; slices.of(rank).len()];
                scatter(&comm, if rank == 0 { &whole } else { &[] }, &mut own, &slices);
                assert_eq!(own, whole[slices.of(rank)]);
                let mut back = vec![0.0; if rank == 0 { len } else { 0 }];
                gather(&comm, &own, &mut back, &slices);
                assert!(rank > 0 || back == whole);
                let heard = broadcast_message(&comm, if rank == 0 { vec![1, 2, 3] } else { Vec::new() });
                assert_eq!(heard, [1, 2, 3]);
                let mut given = if rank == 0 { values(0, 9) } else { vec![0.0; 9] };
                broadcast(&comm, &mut given);
                assert_eq!(given, values(0, 9));
                let all = all_gather_messages(&comm, vec![rank as u8; rank]);
                assert!(all.iter().enumerate().all(|(r, m)| *m == vec![r as u8; r]));
                barrier(&comm);
            });
        }
    }
}
