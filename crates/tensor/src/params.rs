//! Weights and their gradients, with packed panels kept until the weights change.
//!
//! A model's values have addresses, one after the other in three regions. First what is trained: one flat arena, with one of
//! gradients and the optimizer's beside it. Then what is frozen: an arena of f32 that nothing changes. Last matrices as a file
//! stores them, in blocks ([`crate::blocks`]), unpacked where a product or an embedding reads them. A model that trains in full has the
//! first region alone.

use crate::blocks::Format;
use crate::buffer::Buf;
use crate::cpu::coded::{Coded, Row};
use crate::cpu::gemm::{Right, pack_transposed, packed_len};
use crate::cuda::{Gpu, Math, Ptr, ROW_THREADS, Slab, args, row_grid};
use crate::memory::{Data, Ints};
use std::collections::HashMap;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};

/// A matrix `[rows, cols]` (row-major; a vector has one row) at an address. It may span several parameters that lie next to each
/// other, such as a gate and an up projection read as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Weight {
    /// Address of the first value.
    pub offset: usize,
    /// Rows: the outputs of a projection.
    pub rows: usize,
    /// Columns: its inputs.
    pub cols: usize,
}

impl Weight {
    /// The number of values.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }
    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// This matrix and `next`, which lies directly behind it, as one. Panics if it does not.
    pub fn stacked(self, next: Weight) -> Weight {
        assert!(
            self.offset + self.len() == next.offset && self.cols == next.cols,
            "{self:?} and {next:?} do not stack"
        );
        Weight { rows: self.rows + next.rows, ..self }
    }
    /// A part of the rows.
    pub fn row_range(self, start: usize, rows: usize) -> Weight {
        assert!(start + rows <= self.rows, "rows {start}+{rows} of {self:?}");
        Weight { offset: self.offset + start * self.cols, rows, cols: self.cols }
    }
}

/// How a parameter is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// In f32, with a gradient that moves it.
    Trained,
    /// In f32 among the trained ones, but moved by a rule of its own: a router's balance bias.
    Steered,
    /// In f32, and never moved.
    Frozen,
    /// In blocks, and never moved. Matrices only.
    Stored(Format),
}

/// A named parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// Its name on disk.
    pub name: String,
    /// Its shape on disk.
    pub shape: Vec<usize>,
    /// Its place.
    pub weight: Weight,
    /// Whether gradients train it.
    pub trained: bool,
    /// How it is held.
    pub hold: Hold,
}

/// A matrix in blocks.
struct Stored {
    weight: Weight,
    format: Format,
    blocks: Vec<u8>,
    /// Where they begin on a GPU, in bytes.
    place: usize,
}

/// Weights on a GPU as factors of products.
pub(crate) struct Factor {
    start: Ptr,
    /// Bytes of a value.
    size: usize,
    /// What was unpacked for the occasion. Work that is queued while it lives may read it.
    _unpacked: Option<Slab>,
}

impl Factor {
    /// The place of a value.
    pub(crate) fn at(&self, offset: usize) -> Ptr {
        self.start.further(self.size * offset)
    }
}

/// A weight as the right factor of products.
pub(crate) enum Panels {
    /// Values.
    Plain(Buf),
    /// Codes.
    Coded(Coded),
}

impl Panels {
    /// The factor of a weight with `k` inputs.
    pub(crate) fn right(&self, k: usize) -> Right<'_> {
        match self {
            Panels::Plain(values) => Right::packed(values, k),
            Panels::Coded(codes) => Right::coded(codes),
        }
    }
}

/// All parameters of a model.
pub struct Params {
    list: Vec<Param>,
    /// The trained region, from address 0 on.
    data: Data,
    grads: Mutex<Data>,
    /// The frozen region behind it.
    frozen: Data,
    /// The stored region behind that, by address.
    stored: Vec<Stored>,
    /// The blocks on the GPU, once one has asked for them.
    stored_on: OnceLock<Slab>,
    packed: RwLock<HashMap<Weight, Arc<Panels>>>,
}

/// Why a lock on a model's memory is never poisoned.
const UNPOISONED: &str = "a panic while the gradients or the panels are held ends the process";

/// A part of the gradient arena, held by one op at a time.
pub struct Grads<'a> {
    arena: MutexGuard<'a, Data>,
    part: Range<usize>,
}

impl Deref for Grads<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.arena.host()[self.part.clone()]
    }
}

impl DerefMut for Grads<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.arena.host_mut()[self.part.clone()]
    }
}

/// The values of a weight: where they lie, or unpacked.
pub enum Values<'a> {
    /// In the arena.
    Held(&'a [f32]),
    /// Of a weight in blocks.
    Unpacked(Buf),
}

impl Deref for Values<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Values::Held(values) => values,
            Values::Unpacked(values) => values,
        }
    }
}

/// A whole weight within a region of `len` values that begins at `start`, as an offset there. Panics if it is not within.
fn within(w: Weight, start: usize, len: usize) -> usize {
    let offset = w.offset.checked_sub(start).filter(|at| at + w.len() <= len);
    offset.unwrap_or_else(|| panic!("{w:?} in a region of {len} values from address {start} on"))
}

impl Params {
    /// Zeros for the given `(name, shape, trained)` in the given order, without gaps; what is not trained is steered.
    pub fn new(specs: impl IntoIterator<Item = (String, Vec<usize>, bool)>) -> Params {
        let hold = |trained| if trained { Hold::Trained } else { Hold::Steered };
        Params::held(specs.into_iter().map(|(name, shape, trained)| (name, shape, hold(trained))))
    }

    /// Zeros for the given `(name, shape, hold)`. Within each region they lie in the given order, without gaps.
    pub fn held(specs: impl IntoIterator<Item = (String, Vec<usize>, Hold)>) -> Params {
        let mut list = Vec::new();
        let mut lens = [0usize; 3];
        for (name, shape, hold) in specs {
            let (rows, cols) = match shape[..] {
                [cols] => (1, cols),
                [rows, cols] => (rows, cols),
                _ => panic!("parameter {name}: shape {shape:?} is neither a vector nor a matrix"),
            };
            let region = &mut lens[region(hold)];
            let weight = Weight { offset: *region, rows, cols };
            let len = rows.checked_mul(cols).expect("a parameter's size fits the address space");
            *region = len.checked_add(*region).expect("the parameters fit the address space");
            list.push(Param { name, shape, weight, trained: hold == Hold::Trained, hold });
        }
        let [trained, frozen, _] = lens;
        let (mut stored, mut place) = (Vec::new(), 0usize);
        for param in &mut list {
            param.weight.offset += [0, trained, trained + frozen][region(param.hold)];
            if let Hold::Stored(format) = param.hold {
                let (name, w) = (&param.name, param.weight);
                let bytes = format.bytes_of(w.cols).and_then(|row| row.checked_mul(w.rows));
                let bytes =
                    bytes.unwrap_or_else(|| panic!("parameter {name}: rows of {} in {format:?}", w.cols));
                stored.push(Stored { weight: w, format, blocks: vec![0; bytes], place });
                // What is a whole number of sixteen bytes lies next to its neighbour, as in f32.
                place += bytes.next_multiple_of(16);
            }
        }
        let zeros = |len| Data::zeros(None, len);
        let grads = Mutex::new(zeros(0));
        Params {
            list,
            data: zeros(trained),
            grads,
            frozen: zeros(frozen),
            stored,
            stored_on: OnceLock::new(),
            packed: RwLock::default(),
        }
    }

    /// The parameters in their order.
    pub fn list(&self) -> &[Param] {
        &self.list
    }
    /// The number of values in all.
    pub fn len(&self) -> usize {
        self.list.iter().map(|p| p.weight.len()).sum()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
    /// The number of values in the trained region, with gradients.
    pub fn trained_len(&self) -> usize {
        self.data.len()
    }
    /// Bytes that hold the values, gradients and panels apart.
    pub fn bytes(&self) -> usize {
        4 * (self.data.len() + self.frozen.len()) + self.stored.iter().map(|s| s.blocks.len()).sum::<usize>()
    }
    /// Whether a weight has a gradient: it lies in the trained region.
    pub fn trains(&self, w: Weight) -> bool {
        w.offset < self.data.len()
    }
    /// The place of a parameter. Panics if there is none of that name.
    pub fn weight(&self, name: &str) -> Weight {
        self.find(name).unwrap_or_else(|| panic!("no parameter named {name}"))
    }
    /// The place of a parameter, if there is one of that name.
    pub fn find(&self, name: &str) -> Option<Weight> {
        self.list.iter().find(|p| p.name == name).map(|p| p.weight)
    }
    /// The GPU that they lie on, and that ops on them run on, if any.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.data.gpu()
    }
    /// Moves the values to a GPU or back, and with them the work of all ops; gradients are forgotten.
    pub fn move_to(&mut self, gpu: Option<&Gpu>) {
        self.stored_on.take();
        self.packed.get_mut().expect(UNPOISONED).clear();
        self.data.move_to(gpu);
        self.frozen.move_to(gpu);
        *self.grads.get_mut().expect(UNPOISONED) = Data::zeros(None, 0);
    }
    /// The trained region's values, in the host's memory.
    pub fn data(&self) -> &[f32] {
        self.data.host()
    }
    /// The same, to change them in the host's memory; drops the packed panels.
    pub fn data_mut(&mut self) -> &mut [f32] {
        self.forget_trained();
        self.data.host_mut()
    }
    /// Drops the panels of what may change. Those of weights that are frozen stay.
    fn forget_trained(&mut self) {
        let trained = self.data.len();
        self.packed.get_mut().expect(UNPOISONED).retain(|w, _| w.offset >= trained);
    }
    /// The trained region's values (to change) and gradients together, for the optimizer; drops its packed panels.
    pub fn data_and_grads_mut(&mut self) -> (&mut Data, &mut Data) {
        self.forget_trained();
        (&mut self.data, self.grads.get_mut().expect(UNPOISONED))
    }
    /// The values of one weight, in the host's memory. Panics for one in blocks; see [`Params::values`].
    pub fn get(&self, w: Weight) -> &[f32] {
        let (data, start) = self.region_of(w);
        &data.host()[within(w, start, data.len())..][..w.len()]
    }
    /// The values of one weight, unpacked if need be.
    pub fn values(&self, w: Weight) -> Values<'_> {
        if !self.is_stored(w) {
            return Values::Held(self.get(w));
        }
        let mut values = Buf::new(w.len());
        crate::threads::parallel_chunks(
            &mut values,
            (1usize << 14).div_ceil(w.cols) * w.cols,
            |at, values| {
                for (i, to) in values.chunks_exact_mut(w.cols).enumerate() {
                    self.read_row(w, at / w.cols + i, to);
                }
            },
        );
        Values::Unpacked(values)
    }
    /// Row `i` of a weight into `to`.
    pub fn read_row(&self, w: Weight, i: usize, to: &mut [f32]) {
        if self.is_stored(w) {
            let (format, blocks) = self.stored_row(w, i);
            format.unpack(blocks, to);
        } else {
            to.copy_from_slice(&self.get(w)[i * w.cols..][..w.cols]);
        }
    }
    /// Changes the values of a parameter, whatever it is held as: values are rounded into blocks where it is stored.
    pub fn set(&mut self, w: Weight, values: &[f32]) {
        assert_eq!(values.len(), w.len(), "values of {w:?}");
        if self.is_stored(w) {
            let format = self.stored[self.stored_at(w.offset)].format;
            let blocks = format.pack(values).unwrap_or_else(|| panic!("{format:?} is not written"));
            return self.set_blocks(w, blocks);
        }
        self.values_mut(w).copy_from_slice(values);
    }
    /// The values of one parameter in f32, to change them. Panics for one in blocks.
    pub fn values_mut(&mut self, w: Weight) -> &mut [f32] {
        self.packed.get_mut().expect(UNPOISONED).clear();
        let trained = self.data.len();
        let (data, start) =
            if w.offset < trained { (&mut self.data, 0) } else { (&mut self.frozen, trained) };
        let at = within(w, start, data.len());
        &mut data.host_mut()[at..at + w.len()]
    }
    /// The blocks of one stored parameter. Panics if there are not as many bytes as it has.
    pub fn set_blocks(&mut self, w: Weight, blocks: Vec<u8>) {
        self.packed.get_mut().expect(UNPOISONED).clear();
        let at = self.stored_at(w.offset);
        let stored = &mut self.stored[at];
        assert!(stored.weight == w && stored.blocks.len() == blocks.len(), "blocks of {w:?}");
        stored.blocks = blocks;
        self.stored_on.take();
    }
    /// Whether a weight is held in blocks.
    fn is_stored(&self, w: Weight) -> bool {
        w.offset >= self.data.len() + self.frozen.len() && !self.stored.is_empty()
    }
    /// The matrix in blocks that has an address.
    fn stored_at(&self, address: usize) -> usize {
        self.stored.partition_point(|s| s.weight.offset <= address) - 1
    }
    /// The format and blocks of row `i` of a weight in blocks.
    fn stored_row(&self, w: Weight, i: usize) -> Row<'_> {
        let address = w.offset + i * w.cols;
        let stored = &self.stored[self.stored_at(address)];
        let row = (address - stored.weight.offset) / w.cols;
        assert!(stored.weight.cols == w.cols && row < stored.weight.rows, "row {i} of {w:?}");
        let bytes = stored.format.bytes_of(w.cols).expect("checked when it was made");
        (stored.format, &stored.blocks[row * bytes..][..bytes])
    }
    /// The region in f32 that a weight lies in, and its first address.
    fn region_of(&self, w: Weight) -> (&Data, usize) {
        if w.offset < self.data.len() { (&self.data, 0) } else { (&self.frozen, self.data.len()) }
    }
    /// Where a weight lies on the GPU.
    pub(crate) fn on(&self, gpu: &Gpu, w: Weight) -> Ptr {
        let (data, start) = self.region_of(w);
        data.on(gpu).at(within(w, start, data.len()))
    }
    /// Whether a weight begins with a pair of values of its region, so that it can be read in pairs.
    pub(crate) fn is_in_pairs(&self, w: Weight) -> bool {
        let (_, start) = self.region_of(w);
        (w.offset - start).is_multiple_of(2)
    }
    /// A weight on the GPU as a factor of products.
    pub(crate) fn factor_on(&self, gpu: &Gpu, w: Weight) -> Factor {
        self.factors_on(gpu, w.offset..w.offset + w.len())
    }
    /// The weights at some addresses on the GPU as factors of products; those in blocks are unpacked for it, unless they are
    /// what its mode reads.
    pub(crate) fn factors_on(&self, gpu: &Gpu, addresses: Range<usize>) -> Factor {
        let all = Weight { offset: addresses.start, rows: 1, cols: addresses.len() };
        let size = if gpu.math() == Math::Fast { 2 } else { 4 };
        if !self.is_stored(all) {
            let (data, start) = self.region_of(all);
            let start = data.operand(gpu).at(within(all, start, data.len()));
            return Factor { start, size, _unpacked: None };
        }
        if let Some(start) = self.halves_on(gpu, &addresses).filter(|_| gpu.math() == Math::Fast) {
            return Factor { start, size, _unpacked: None };
        }
        let values = gpu.alloc(all.len());
        for (stored, part) in self.stored_parts(&addresses) {
            let to = values.at(part.offset - addresses.start);
            self.unpack_on(
                gpu,
                stored,
                (part.offset - stored.weight.offset) / part.cols,
                (None, part.rows),
                to,
            );
        }
        let values = if gpu.math() == Math::Fast { values.rounded(all.len()) } else { values };
        Factor { start: values.at(0), size, _unpacked: Some(values) }
    }
    /// Where values of bf16 lie on the GPU that are one behind the other there, if they are.
    fn halves_on(&self, gpu: &Gpu, addresses: &Range<usize>) -> Option<Ptr> {
        let place = |stored: &Stored, part: Weight| stored.place + 2 * (part.offset - stored.weight.offset);
        let first = self.stored_parts(addresses).next().map(|(stored, part)| place(stored, part))?;
        let follows = |(stored, part): (&Stored, Weight)| {
            stored.format == Format::Bf16
                && place(stored, part) == first + 2 * (part.offset - addresses.start)
        };
        self.stored_parts(addresses).all(follows).then(|| self.blocks_on(gpu).byte(first))
    }
    /// The matrices in blocks that lie at some addresses, with the rows that do.
    fn stored_parts(&self, addresses: &Range<usize>) -> impl Iterator<Item = (&Stored, Weight)> {
        let Range { start, end } = *addresses;
        let all = &self.stored[self.stored_at(start)..];
        all.iter().take_while(move |s| s.weight.offset < end).map(move |s| {
            let Weight { offset, cols, .. } = s.weight;
            let (from, to) = (start.max(offset) - offset, end.min(offset + s.weight.len()) - offset);
            assert!(from % cols == 0 && to % cols == 0, "parts of rows of {:?}", s.weight);
            (s, s.weight.row_range(from / cols, (to - from) / cols))
        })
    }
    /// All blocks on the GPU.
    fn blocks_on(&self, gpu: &Gpu) -> &Slab {
        self.stored_on.get_or_init(|| {
            let bytes = self.stored.last().map_or(0, |s| s.place + s.blocks.len());
            gpu.upload_parts(bytes, self.stored.iter().map(|s| (s.place, &s.blocks[..])))
        })
    }
    /// Unpacks rows from `first` on: the numbered ones, or `n` one after the other.
    fn unpack_on(
        &self,
        gpu: &Gpu,
        stored: &Stored,
        first: usize,
        (rows, n): (Option<&Slab>, usize),
        to: Ptr,
    ) {
        let (cols, format) = (stored.weight.cols, stored.format);
        let bytes = format.bytes_of(cols).expect("checked when it was made");
        let blocks = self.blocks_on(gpu).byte(stored.place + first * bytes);
        let rows = rows.map_or(Ptr::NULL, |rows| rows.at(0));
        let args = args![blocks, rows, to, format.ggml() as usize, cols, bytes];
        gpu.launch("blocks_unpack", row_grid(n, cols), ROW_THREADS, args);
    }
    /// Rows of a weight into `to [rows, cols]` on the GPU.
    pub(crate) fn rows_on(&self, gpu: &Gpu, w: Weight, rows: &Ints, to: Ptr) {
        if self.is_stored(w) {
            let stored = &self.stored[self.stored_at(w.offset)];
            assert_eq!(stored.weight, w, "rows of several matrices");
            return self.unpack_on(gpu, stored, 0, (Some(rows.on(gpu)), rows.len()), to);
        }
        let args = args![self.on(gpu, w), rows.on(gpu), to, w.cols];
        gpu.launch("embedding_forward", row_grid(rows.len(), w.cols), ROW_THREADS, args);
    }
    /// Where a weight's gradient lies on the GPU, to be added to there.
    pub(crate) fn grad_on(&self, gpu: &Gpu, w: Weight) -> Ptr {
        let mut grads = self.grads.lock().expect(UNPOISONED);
        let at = within(w, 0, grads.len());
        grads.on_mut(gpu).at(at)
    }
    /// Gives the gradients memory (once) and sets them to zero.
    pub fn zero_grads(&mut self) {
        let gpu = self.data.gpu();
        let grads = self.grads.get_mut().expect(UNPOISONED);
        if grads.len() != self.data.len() {
            *grads = Data::new(gpu, self.data.len());
        }
        grads.clear();
    }
    /// Takes the gradients away, so that others can be computed beside them; there are none until the next
    /// [`Params::zero_grads`].
    pub fn set_grads_aside(&mut self) -> Data {
        std::mem::replace(self.grads.get_mut().expect(UNPOISONED), Data::zeros(None, 0))
    }
    /// Adds gradients that were set aside to those that are there.
    pub fn add_grads(&mut self, grads: &Data) {
        crate::ops::add_assign(self.grads.get_mut().expect(UNPOISONED), grads);
    }
    /// All gradients of the trained region; empty before the first [`Params::zero_grads`].
    pub fn grads(&self) -> Grads<'_> {
        let arena = self.grads.lock().expect(UNPOISONED);
        let part = 0..arena.len();
        Grads { arena, part }
    }
    /// The gradient of one weight, to add to. Panics before the first [`Params::zero_grads`], and for what has none.
    pub fn grad_mut(&self, w: Weight) -> Grads<'_> {
        Grads { part: w.offset..w.offset + w.len(), ..self.grads() }
    }
    /// The panels of a projection's transpose, packed at first use after each change of the weights.
    pub(crate) fn packed(&self, w: Weight) -> Arc<Panels> {
        if let Some(p) = self.packed.read().expect(UNPOISONED).get(&w) {
            return p.clone();
        }
        let panels = if self.is_stored(w) {
            Panels::Coded(Coded::pack(w.rows, w.cols, |i| self.stored_row(w, i)))
        } else {
            let mut panels = Buf::new(packed_len(w.rows, w.cols));
            pack_transposed(self.get(w), w.rows, w.cols, w.cols, &mut panels);
            Panels::Plain(panels)
        };
        let panels = Arc::new(panels);
        self.packed.write().expect(UNPOISONED).insert(w, panels.clone());
        panels
    }
}

/// The number of a region.
fn region(hold: Hold) -> usize {
    match hold {
        Hold::Trained | Hold::Steered => 0,
        Hold::Frozen => 1,
        Hold::Stored(_) => 2,
    }
}
