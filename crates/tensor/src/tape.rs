//! Activations and the gradient tape.
//!
//! A [`Tensor`] is a matrix `[rows, cols]`: one row per token. Ops append their backward step to the tape; a
//! backward step owns what it needs (by reference count), so memory is freed as the walk back proceeds.

use crate::cpu::math;
use crate::cuda::{Gpu, args};
use crate::memory::Data;
use crate::params::Params;
use crate::threads::parallel_chunks;
use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard};

/// The gradient of one tensor, filled during the walk back.
#[derive(Clone, Default)]
pub(crate) struct Grad(Arc<Mutex<Option<Arc<Data>>>>);

impl Grad {
    fn slot(&self) -> MutexGuard<'_, Option<Arc<Data>>> {
        self.0.lock().expect("a panic while a gradient is held ends the process")
    }
    /// Takes the gradient out, if any op has produced one.
    pub(crate) fn take(&self) -> Option<Arc<Data>> {
        self.slot().take()
    }
    /// Adds `d`: keeps it where there was none, else sums.
    pub(crate) fn add(&self, d: Arc<Data>) {
        let mut slot = self.slot();
        match slot.as_mut() {
            None => *slot = Some(d),
            Some(have) => add_to(own(have), &d),
        }
    }
    /// [`Grad::add`] of what nobody else holds.
    pub(crate) fn give(&self, d: impl Into<Data>) {
        self.add(Arc::new(d.into()));
    }
    /// Lets `f` write into the gradient of `len` values, on `gpu` or in the host's memory; `f` is told whether to add to
    /// what is there (else it must overwrite).
    pub(crate) fn write(&self, gpu: Option<&Gpu>, len: usize, f: impl FnOnce(&mut Data, bool)) {
        let mut slot = self.slot();
        match slot.as_mut() {
            Some(have) => f(own(have), true),
            None => {
                let mut d = Data::new(gpu, len);
                f(&mut d, false);
                *slot = Some(Arc::new(d));
            }
        }
    }
}

/// `sum += d`, where one of both lies.
fn add_to(sum: &mut Data, d: &Data) {
    match sum.gpu().or(d.gpu()).cloned() {
        Some(gpu) => {
            let (n, sum) = (sum.len(), sum.on_mut(&gpu));
            gpu.launch(
                "elementwise_add",
                [n.div_ceil(1024), 1, 1],
                256,
                args![sum, d.on(&gpu), sum, n as i64],
            );
        }
        None => {
            let d = d.host();
            parallel_chunks(sum.host_mut(), 1 << 14, |at, s| math::add_assign(s, &d[at..at + s.len()]));
        }
    }
}

/// A unique view of a shared value, copied first if it is shared.
fn own(b: &mut Arc<Data>) -> &mut Data {
    if Arc::get_mut(b).is_none() {
        *b = Arc::new(b.copy());
    }
    Arc::get_mut(b).expect("just made unique")
}

/// A matrix of activations, `[rows, cols]`, cheap to clone.
#[derive(Clone)]
pub struct Tensor {
    pub(crate) data: Arc<Data>,
    rows: usize,
    cols: usize,
    pub(crate) grad: Option<Grad>,
}

impl Tensor {
    /// A constant (no gradient). Panics if the length is not `rows * cols`.
    pub fn constant(data: impl Into<Data>, rows: usize, cols: usize) -> Tensor {
        let data = data.into();
        assert_eq!(Some(data.len()), rows.checked_mul(cols), "tensor of {rows} x {cols}");
        Tensor { data: Arc::new(data), rows, cols, grad: None }
    }
    /// Tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Features of a token.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// All values, row by row, in the host's memory: waits for the GPU where they lie on one.
    pub fn host(&self) -> &[f32] {
        self.data.host()
    }
    /// One token's values, in the host's memory.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.host()[i * self.cols..][..self.cols]
    }
    /// The same values without a way back.
    pub fn detached(&self) -> Tensor {
        Tensor { grad: None, ..self.clone() }
    }
    /// The gradient that has reached this tensor so far, taken out.
    pub fn take_grad(&self) -> Option<Arc<Data>> {
        self.grad.as_ref().and_then(Grad::take)
    }
    /// Adds `d` to the gradient of this tensor (a loss seeds the walk back this way). No effect on a constant.
    pub fn add_grad(&self, d: impl Into<Data>) {
        let d = d.into();
        assert_eq!(d.len(), self.data.len(), "gradient of {} x {}", self.rows, self.cols);
        if let Some(g) = &self.grad {
            g.add(Arc::new(d));
        }
    }
}

type Step<'p> = Box<dyn FnOnce(&Params) + 'p>;

/// The record of one forward pass over one set of parameters.
pub struct Tape<'p> {
    params: &'p Params,
    steps: Option<RefCell<Vec<Step<'p>>>>,
}

impl<'p> Tape<'p> {
    /// A tape that records, for training.
    pub fn recording(params: &'p Params) -> Tape<'p> {
        Tape { params, steps: Some(RefCell::default()) }
    }
    /// A tape that records nothing: activations are freed as soon as the forward pass drops them.
    pub fn inference(params: &'p Params) -> Tape<'p> {
        Tape { params, steps: None }
    }
    /// The parameters that ops read.
    pub fn params(&self) -> &'p Params {
        self.params
    }
    /// The GPU that ops run on, if any: that of the parameters.
    pub fn gpu(&self) -> Option<&'p Gpu> {
        self.params.gpu()
    }
    /// Whether ops record their way back.
    pub fn is_recording(&self) -> bool {
        self.steps.is_some()
    }
    /// An op's output.
    pub fn output(&self, data: impl Into<Data>, rows: usize, cols: usize) -> Tensor {
        let data = data.into();
        assert_eq!(Some(data.len()), rows.checked_mul(cols), "tensor of {rows} x {cols}");
        Tensor { data: Arc::new(data), rows, cols, grad: self.steps.as_ref().map(|_| Grad::default()) }
    }
    /// Appends a backward step.
    pub(crate) fn record(&self, step: impl FnOnce(&Params) + 'p) {
        if let Some(steps) = &self.steps {
            steps.borrow_mut().push(Box::new(step));
        }
    }
    /// Walks back: every step once, the last first. Gradients of weights add up in [`Params::grads`].
    pub fn backward(&self) {
        if let Some(steps) = &self.steps {
            loop {
                let step = steps.borrow_mut().pop();
                match step {
                    Some(step) => step(self.params),
                    None => break,
                }
            }
        }
    }
    /// Runs `f` keeping only its input, and runs it again on the way back: memory for time.
    pub fn recomputed(&self, x: &Tensor, f: impl Fn(&Tape<'p>, &Tensor) -> Tensor + 'p) -> Tensor {
        if !self.is_recording() {
            return f(self, x);
        }
        let out = {
            let y = f(&Tape::inference(self.params), x);
            Tensor { grad: Some(Grad::default()), ..y }
        };
        let (params, x, y_grad) = (self.params, x.clone(), out.grad.clone());
        self.record(move |_| {
            let Some(dy) = y_grad.as_ref().and_then(Grad::take) else { return };
            let inner = Tape::recording(params);
            let leaf = Tensor { grad: Some(Grad::default()), ..x.clone() };
            let y = f(&inner, &leaf);
            if let Some(g) = &y.grad {
                g.add(dy);
            }
            inner.backward();
            if let (Some(g), Some(dx)) = (&x.grad, leaf.take_grad()) {
                g.add(dx);
            }
        });
        out
    }
}
