//! Weights and their gradients in flat arenas, with packed panels kept until the weights change.

use crate::buffer::Buf;
use crate::cpu::gemm::{pack_transposed, packed_len};
use crate::cuda::{Gpu, Ptr};
use crate::memory::Data;
use std::collections::HashMap;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

/// A matrix `[rows, cols]` (row-major; a vector has one row) at a place in the arena. It may span several
/// parameters that lie next to each other, such as a gate and an up projection read as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Weight {
    /// Offset of the first value.
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

/// A named parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// Its name on disk.
    pub name: String,
    /// Its shape on disk.
    pub shape: Vec<usize>,
    /// Its place in the arena.
    pub weight: Weight,
    /// Whether gradients train it (a router's balance bias is moved by a rule of its own).
    pub trained: bool,
}

/// All parameters of a model.
pub struct Params {
    list: Vec<Param>,
    data: Data,
    grads: Mutex<Data>,
    packed: RwLock<HashMap<Weight, Arc<Buf>>>,
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

/// Panics if a weight does not lie in an arena of `len` values.
fn lies_in(w: Weight, len: usize) {
    assert!(w.offset + w.len() <= len, "{w:?} in an arena of {len} values");
}

impl Params {
    /// Zeros for the given `(name, shape, trained)` in the given order, without gaps.
    pub fn new(specs: impl IntoIterator<Item = (String, Vec<usize>, bool)>) -> Params {
        let mut list = Vec::new();
        let mut offset = 0;
        for (name, shape, trained) in specs {
            let (rows, cols) = match shape[..] {
                [cols] => (1, cols),
                [rows, cols] => (rows, cols),
                _ => panic!("parameter {name}: shape {shape:?} is neither a vector nor a matrix"),
            };
            let weight = Weight { offset, rows, cols };
            let len = rows.checked_mul(cols).expect("a parameter's size fits the address space");
            offset = len.checked_add(offset).expect("the parameters fit the address space");
            list.push(Param { name, shape, weight, trained });
        }
        let (data, grads) = (Data::zeros(None, offset), Mutex::new(Data::zeros(None, 0)));
        Params { list, data, grads, packed: RwLock::default() }
    }

    /// The parameters in arena order.
    pub fn list(&self) -> &[Param] {
        &self.list
    }
    /// The number of values.
    pub fn len(&self) -> usize {
        self.data.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
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
        self.packed.get_mut().expect(UNPOISONED).clear();
        self.data.move_to(gpu);
        *self.grads.get_mut().expect(UNPOISONED) = Data::zeros(None, 0);
    }
    /// All values, in the host's memory.
    pub fn data(&self) -> &[f32] {
        self.data.host()
    }
    /// All values, to change them in the host's memory; drops the packed panels.
    pub fn data_mut(&mut self) -> &mut [f32] {
        self.packed.get_mut().expect(UNPOISONED).clear();
        self.data.host_mut()
    }
    /// Values (to change) and gradients together, for the optimizer; drops the packed panels.
    pub fn data_and_grads_mut(&mut self) -> (&mut Data, &mut Data) {
        self.packed.get_mut().expect(UNPOISONED).clear();
        (&mut self.data, self.grads.get_mut().expect(UNPOISONED))
    }
    /// The values of one weight, in the host's memory.
    pub fn get(&self, w: Weight) -> &[f32] {
        &self.data()[w.offset..w.offset + w.len()]
    }
    /// Where a weight lies on the GPU.
    pub(crate) fn on(&self, gpu: &Gpu, w: Weight) -> Ptr {
        lies_in(w, self.data.len());
        self.data.on(gpu).at(w.offset)
    }
    /// Where a weight lies on the GPU as a factor of products.
    pub(crate) fn factor_on(&self, gpu: &Gpu, w: Weight) -> Ptr {
        lies_in(w, self.data.len());
        self.data.operand(gpu).at(w.offset)
    }
    /// Where a weight's gradient lies on the GPU, to be added to there.
    pub(crate) fn grad_on(&self, gpu: &Gpu, w: Weight) -> Ptr {
        let mut grads = self.grads.lock().expect(UNPOISONED);
        lies_in(w, grads.len());
        grads.on_mut(gpu).at(w.offset)
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
    /// All gradients; empty before the first [`Params::zero_grads`].
    pub fn grads(&self) -> Grads<'_> {
        let arena = self.grads.lock().expect(UNPOISONED);
        let part = 0..arena.len();
        Grads { arena, part }
    }
    /// The gradient of one weight, to add to. Panics before the first [`Params::zero_grads`].
    pub fn grad_mut(&self, w: Weight) -> Grads<'_> {
        Grads { part: w.offset..w.offset + w.len(), ..self.grads() }
    }
    /// The panels of a projection's transpose, packed at first use after each change of the weights.
    pub(crate) fn packed(&self, w: Weight) -> Arc<Buf> {
        if let Some(p) = self.packed.read().expect(UNPOISONED).get(&w) {
            return p.clone();
        }
        let mut panels = Buf::new(packed_len(w.rows, w.cols));
        pack_transposed(self.get(w), w.rows, w.cols, w.cols, &mut panels);
        let panels = Arc::new(panels);
        self.packed.write().expect(UNPOISONED).insert(w, panels.clone());
        panels
    }
}
