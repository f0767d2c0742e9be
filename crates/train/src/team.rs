//! Who works on a run: ranks, which a transport joins, and the shards that a step is cut into.
//!
//! A step's gradient is a sum over S shards, each a chain of its own, added in one fixed binary tree by the shards' numbers. Which
//! rank works on which shards decides who computes a part of the tree, never what it is: weights are the same for any number of
//! ranks, to the bit.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use comm::collective::{self, Slices};
use comm::{Comm, single::Single};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tensor::{Data, ops};
use thiserror::Error;

/// How a step is divided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parallel {
    /// Parts whose gradients are computed one by one and added in a tree. It decides the weights' last bits, as the seed decides
    /// all of them; as many ranks as divide it, or fewer, compute the same.
    pub shards: usize,
}

impl Default for Parallel {
    fn default() -> Self {
        Parallel { shards: 1 }
    }
}

/// More shards than anyone has ranks.
pub const MOST_SHARDS: usize = 1 << 16;

/// Something failed on another rank.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("rank {rank}: {message}")]
pub struct Elsewhere {
    /// Where.
    pub rank: usize,
    /// Its own words.
    pub message: String,
}

/// The ranks of a run, seen from one of them.
pub struct Team {
    comm: Rc<dyn Comm>,
    shards: usize,
    /// How fast each rank has lately been where work was dealt by number, about 1 on average.
    speeds: RefCell<Vec<f64>>,
}

impl Team {
    /// One rank, one shard.
    pub fn alone() -> Team {
        Team { comm: Rc::new(Single), shards: 1, speeds: RefCell::new(vec![1.0]) }
    }

    /// Joins ranks that work on so many shards.
    ///
    /// # Errors
    /// Ranks that cannot share the tree over the shards: their number is no power of two, or does not divide that of the shards.
    pub fn new(comm: Rc<dyn Comm>, shards: usize) -> Result<Team, String> {
        let ranks = comm.ranks();
        if !ranks.is_power_of_two() || !shards.is_multiple_of(ranks) {
            let can: Vec<String> =
                (0..=shards.trailing_zeros()).map(|bit| (1u64 << bit).to_string()).collect();
            return Err(format!(
                "{ranks} ranks cannot share {shards} shard{}: their number must be a power of two that divides \
                 `parallel.shards`; start {} ranks, or begin a run with other shards",
                if shards == 1 { "" } else { "s" },
                can.join(" or ")
            ));
        }
        Ok(Team { comm, shards, speeds: RefCell::new(vec![1.0; ranks]) })
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.comm.rank()
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.comm.ranks()
    }

    /// Whether this is the rank that writes and speaks.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// Parts of a step.
    pub fn shards(&self) -> usize {
        self.shards
    }

    /// The transport.
    pub fn comm(&self) -> &dyn Comm {
        &*self.comm
    }

    /// The shards that a rank works on.
    fn shards_of(&self, rank: usize) -> Range<usize> {
        let each = self.shards / self.ranks();
        rank * each..(rank + 1) * each
    }

    /// The shards that this rank works on.
    pub fn own_shards(&self) -> Range<usize> {
        self.shards_of(self.rank())
    }

    /// The number of the shard for something that lies, of `total` units of work, from `start` on and is `len` long: that of its
    /// middle. Depends on the data alone.
    pub fn shard_at(&self, start: usize, len: usize, total: usize) -> usize {
        let middle = 2 * start as u128 + len as u128;
        (middle * self.shards as u128 / (2 * total as u128).max(1)).min(self.shards as u128 - 1) as usize
    }

    /// Adds the gradients of all ranks, of which each ends with its slice. `present` says which shards there are.
    pub fn reduce(&self, gradients: &mut Data, slices: &Slices, present: &[bool]) {
        if self.ranks() == 1 {
            return;
        }
        let present: Vec<bool> =
            (0..self.ranks()).map(|rank| present[self.shards_of(rank)].contains(&true)).collect();
        collective::reduce_scatter(self.comm(), gradients.host_mut(), slices, &present, &ops::add_values);
    }

    /// `Σ x²` of an array of which each rank has its slice: over the pieces of one rank alone, in their order.
    pub fn squared_norm(&self, x: &Data, slices: &Slices) -> f64 {
        if self.ranks() == 1 {
            return ops::squared_norm(x);
        }
        let (values, piece) = (x.host(), ops::NORM_PIECE);
        // What a rank has of a piece that it shares with others, at both ends of its slice, and what lies between.
        let parts = |rank: usize| {
            let own = slices.of(rank);
            let start = own.start.next_multiple_of(piece).min(own.end);
            let end = if own.end == values.len() { own.end } else { (own.end / piece * piece).max(start) };
            ((own.start..start).chain(end..own.end), start..end)
        };
        let (shared, whole) = parts(self.rank());
        let sums = ops::squared_norm_pieces(&values[whole]).into_iter().map(f64::to_bits);
        let words = sums.chain(shared.map(|at| u64::from(values[at].to_bits())));
        let mut sums = vec![0.0f64; values.len().div_ceil(piece)];
        let mut pieces: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for (rank, words) in self.all_words(words).into_iter().enumerate() {
            let (shared, whole) = parts(rank);
            let (of_whole, of_shared) = words.split_at(whole.len().div_ceil(piece));
            for (at, bits) in whole.step_by(piece).zip(of_whole) {
                sums[at / piece] = f64::from_bits(*bits);
            }
            for (at, bits) in shared.zip(of_shared) {
                let len = piece.min(values.len() - at / piece * piece);
                let values = pieces.entry(at / piece).or_insert_with(|| vec![0.0; len]);
                values[at % piece] = f32::from_bits(*bits as u32);
            }
        }
        for (number, values) in pieces {
            sums[number] = ops::squared_norm_pieces(&values)[0];
        }
        sums.iter().sum()
    }

    /// Gives all ranks the slices of all.
    pub fn all_gather(&self, x: &mut Data, slices: &Slices) {
        if self.ranks() > 1 {
            collective::all_gather(self.comm(), x.host_mut(), slices);
        }
    }

    /// Numbers of all ranks, on all of them.
    pub fn all_words(&self, words: impl IntoIterator<Item = u64>) -> Vec<Vec<u64>> {
        if self.ranks() == 1 {
            return vec![words.into_iter().collect()];
        }
        let bytes = words.into_iter().flat_map(u64::to_le_bytes).collect();
        let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
        let all = collective::all_gather_messages(self.comm(), bytes).into_iter();
        all.map(|bytes| bytes.as_chunks().0.iter().map(word).collect()).collect()
    }

    /// The sum over all ranks.
    pub fn total(&self, count: u64) -> u64 {
        self.all_words([count]).into_iter().flatten().sum()
    }

    /// Something of every rank, on all of them, by rank.
    pub fn all<T: Serialize + DeserializeOwned>(&self, own: T) -> Vec<T> {
        if self.ranks() == 1 {
            return vec![own];
        }
        let all = collective::all_gather_messages(self.comm(), to_message(&own)).into_iter();
        all.map(|message| of_message(&message)).collect()
    }

    /// What rank 0 has, on all ranks; the others give nothing.
    pub fn from_first<T: Serialize + DeserializeOwned>(&self, own: impl FnOnce() -> T) -> T {
        if self.ranks() == 1 {
            return own();
        }
        let message = if self.leads() { to_message(&own()) } else { Vec::new() };
        of_message(&collective::broadcast_message(self.comm(), message))
    }

    /// Deals items out by number: each rank computes a range of them, as long as it has lately been fast, and all get all results
    /// in their order. An item's result must not depend on who computes it.
    ///
    /// # Errors
    /// That of this rank, or of the first other one that has one.
    pub fn deal<T, E>(
        &self,
        count: usize,
        compute: impl FnOnce(Range<usize>) -> Result<Vec<T>, E>,
    ) -> Result<Vec<T>, E>
    where
        T: Serialize + DeserializeOwned,
        E: Display + From<Elsewhere>,
    {
        if self.ranks() == 1 {
            return compute(0..count);
        }
        let range = self.dealt(count);
        let (clock, items) = (Instant::now(), range.len());
        let (found, error) = match compute(range) {
            Ok(found) => (Ok(found), None),
            Err(error) => (Err(error.to_string()), Some(error)),
        };
        let seconds = clock.elapsed().as_secs_f64().max(1e-6);
        let all = self.all::<(usize, f64, Result<Vec<T>, String>)>((items, seconds, found));
        let measured: Vec<f64> = all.iter().map(|(items, seconds, _)| *items as f64 / seconds).collect();
        let mean = measured.iter().sum::<f64>() / measured.len() as f64;
        // Where some had nothing to do, they cannot be compared.
        if measured.iter().all(|speed| *speed > 0.0) {
            for (speed, now) in self.speeds.borrow_mut().iter_mut().zip(measured) {
                *speed = (0.5 * (*speed + now / mean)).max(0.05);
            }
        }
        let mut results = Vec::with_capacity(count);
        let mut failed = None;
        for (rank, (_, _, found)) in all.into_iter().enumerate() {
            match found {
                Ok(found) => results.extend(found),
                Err(message) => failed = failed.or(Some(Elsewhere { rank, message })),
            }
        }
        match (error, failed) {
            (Some(own), _) => Err(own),
            (None, Some(other)) => Err(other.into()),
            (None, None) => Ok(results),
        }
    }

    /// The same for what cannot fail.
    pub fn deal_all<T: Serialize + DeserializeOwned>(
        &self,
        count: usize,
        compute: impl FnOnce(Range<usize>) -> Vec<T>,
    ) -> Vec<T> {
        self.deal(count, |part| Ok::<_, Elsewhere>(compute(part))).expect("no rank has an error to tell")
    }

    /// This rank's range of so many items.
    fn dealt(&self, count: usize) -> Range<usize> {
        let speeds = self.speeds.borrow();
        let all: f64 = speeds.iter().sum();
        let bound = |rank: usize| {
            let share = speeds[..rank].iter().sum::<f64>() / all;
            if rank == speeds.len() { count } else { ((share * count as f64).round() as usize).min(count) }
        };
        bound(self.rank())..bound(self.rank() + 1)
    }
}

fn to_message(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("what ranks tell each other is plain JSON")
}

fn of_message<T: DeserializeOwned>(message: &[u8]) -> T {
    serde_json::from_slice(message).expect("ranks of one program understand each other")
}

/// Values as whole numbers: to the bit, also those that JSON has no words for.
pub mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes them.
    pub fn serialize<S: Serializer>(values: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(|value| value.to_bits()))
    }

    /// Reads them.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
        Ok(Vec::<u32>::deserialize(deserializer)?.into_iter().map(f32::from_bits).collect())
    }
}
