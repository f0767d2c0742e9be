//! Values that know their place: in the host's memory, on a GPU, or in both.

use crate::buffer::Buf;
use crate::cuda::{Gpu, Math, Operand, Slab};
use std::sync::{Arc, OnceLock};

/// A slice of f32 in the host's memory, on a GPU, or, while nobody writes, in both: each place is filled from the other
/// when it is asked for. Asking for the host's waits for all work on the GPU.
pub struct Data {
    len: usize,
    host: OnceLock<Buf>,
    device: OnceLock<Slab>,
    /// The values on the GPU rounded to bf16, for the fast mode's products; or all that there is of them.
    rounded: OnceLock<Slab>,
    /// The GPU that the values belong to, if any.
    gpu: Option<Gpu>,
}

impl Data {
    /// `len` values with unspecified contents, on `gpu` or else in the host's memory.
    pub fn new(gpu: Option<&Gpu>, len: usize) -> Data {
        match gpu {
            Some(gpu) => Data {
                len,
                host: OnceLock::new(),
                device: OnceLock::from(gpu.alloc(len)),
                rounded: OnceLock::new(),
                gpu: Some(gpu.clone()),
            },
            None => Buf::new(len).into(),
        }
    }
    /// `len` values with unspecified contents on a GPU, in bf16 alone. What is written there by [`Data::operand`] stays
    /// bf16: it reads as f32 all the same.
    pub(crate) fn halves(gpu: &Gpu, len: usize) -> Data {
        Data {
            len,
            host: OnceLock::new(),
            device: OnceLock::new(),
            rounded: OnceLock::from(gpu.alloc(len.div_ceil(2))),
            gpu: Some(gpu.clone()),
        }
    }
    /// `len` zeros.
    pub fn zeros(gpu: Option<&Gpu>, len: usize) -> Data {
        let mut data = Data::new(gpu, len);
        data.clear();
        data
    }
    /// The number of values.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// The GPU that the values belong to.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_ref()
    }
    /// Sets all values to zero where they are.
    pub fn clear(&mut self) {
        match &self.gpu {
            Some(gpu) => {
                self.host.take();
                self.rounded.take();
                let slab = self.device.take().unwrap_or_else(|| gpu.alloc(self.len));
                gpu.clear(&slab);
                self.device = OnceLock::from(slab);
            }
            None => crate::threads::parallel_chunks(self.host_mut(), 1 << 16, |_, x| x.fill(0.0)),
        }
    }
    /// The values in the host's memory.
    pub fn host(&self) -> &[f32] {
        self.host.get_or_init(|| {
            let gpu = self.gpu.as_ref().expect("values lie in one of both places");
            let mut buf = Buf::new(self.len);
            gpu.download(self.on(gpu), &mut buf);
            buf
        })
    }
    /// The values in the host's memory, to change them there.
    pub fn host_mut(&mut self) -> &mut [f32] {
        self.host();
        self.device.take();
        self.rounded.take();
        self.host.get_mut().expect("filled above")
    }
    /// The values on the GPU.
    pub(crate) fn on(&self, gpu: &Gpu) -> &Slab {
        self.device.get_or_init(|| match (self.host.get(), self.rounded.get()) {
            (Some(values), _) => gpu.upload(values),
            (None, Some(rounded)) => rounded.unrounded(self.len),
            (None, None) => unreachable!("values lie in one of both places"),
        })
    }
    /// The values on the GPU, to change them there.
    pub(crate) fn on_mut(&mut self, gpu: &Gpu) -> &Slab {
        self.on(gpu);
        self.host.take();
        self.rounded.take();
        self.on(gpu)
    }
    /// The values on the GPU as a factor of products.
    pub(crate) fn operand(&self, gpu: &Gpu) -> Operand<'_> {
        match gpu.math() {
            Math::Exact => Operand::Exact(self.on(gpu)),
            Math::Fast => Operand::Rounded(self.rounded.get_or_init(|| self.on(gpu).rounded(self.len))),
        }
    }
    /// Makes `gpu`, or the host's memory, the place of the values.
    pub fn move_to(&mut self, gpu: Option<&Gpu>) {
        self.host_mut();
        self.gpu = gpu.cloned();
        if let Some(gpu) = gpu {
            self.on_mut(gpu);
        }
    }
    /// A copy in the same place.
    pub fn copy(&self) -> Data {
        match &self.gpu {
            Some(gpu) if self.host.get().is_none() => {
                let copy = Data::new(Some(gpu), self.len);
                gpu.copy(self.on(gpu).at(0), copy.on(gpu).at(0), self.len);
                copy
            }
            _ => Data { gpu: self.gpu.clone(), ..Buf::copy_of(self.host()).into() },
        }
    }
}

impl From<Buf> for Data {
    fn from(buf: Buf) -> Data {
        Data {
            len: buf.len(),
            host: OnceLock::from(buf),
            device: OnceLock::new(),
            rounded: OnceLock::new(),
            gpu: None,
        }
    }
}

/// Whole numbers that kernels read as well as the host: written once, in one place, and filled into the other at need.
#[derive(Clone)]
pub struct Ints(Arc<IntsInner>);

struct IntsInner {
    len: usize,
    host: OnceLock<Vec<u32>>,
    device: OnceLock<Slab>,
}

impl Ints {
    /// What a kernel writes into `slab`.
    pub(crate) fn written(slab: Slab, len: usize) -> Ints {
        Ints(Arc::new(IntsInner { len, host: OnceLock::new(), device: OnceLock::from(slab) }))
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }
    /// The numbers in the host's memory: waits for the GPU where they come from one.
    pub fn host(&self) -> &[u32] {
        self.0.host.get_or_init(|| {
            let slab = self.0.device.get().expect("numbers lie in one of both places");
            let mut to = vec![0; self.0.len];
            slab.gpu().download(slab, &mut to);
            to
        })
    }
    /// The numbers on the GPU.
    pub(crate) fn on(&self, gpu: &Gpu) -> &Slab {
        self.0.device.get_or_init(|| gpu.upload_ints(self.host()))
    }
}

impl std::fmt::Debug for Ints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.host().fmt(f)
    }
}

impl PartialEq for Ints {
    fn eq(&self, other: &Ints) -> bool {
        self.host() == other.host()
    }
}

impl From<Vec<u32>> for Ints {
    fn from(numbers: Vec<u32>) -> Ints {
        let (len, host) = (numbers.len(), OnceLock::from(numbers));
        Ints(Arc::new(IntsInner { len, host, device: OnceLock::new() }))
    }
}
