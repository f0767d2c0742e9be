//! Keys and values of all layers in pages that sequences share.

use tensor::Gpu;
use tensor::ops::{AttentionShape, KvLayer, PAGE};

/// The pages of every layer; page `p` holds the same tokens in all of them.
pub struct KvCache {
    pub(crate) layers: Vec<KvLayer>,
    shape: AttentionShape,
    pages: usize,
    gpu: Option<Gpu>,
}

impl KvCache {
    pub(crate) fn new(layers: usize, shape: AttentionShape, gpu: Option<&Gpu>) -> KvCache {
        let layers = (0..layers).map(|_| KvLayer::default()).collect();
        KvCache { layers, shape, pages: 0, gpu: gpu.cloned() }
    }
    /// Tokens of one page.
    pub const PAGE: usize = PAGE;
    /// Pages that have memory.
    pub fn pages(&self) -> usize {
        self.pages
    }
    /// Makes room for `pages` pages in every layer.
    pub fn grow(&mut self, pages: usize) {
        self.pages = self.pages.max(pages);
        self.layers.iter_mut().for_each(|l| l.grow(self.gpu.as_ref(), pages, &self.shape));
    }
    /// Copies a page in every layer.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        self.layers.iter_mut().for_each(|l| l.copy_page(from, to));
    }
    /// Bytes of one page over all layers.
    pub fn page_bytes(&self) -> usize {
        4 * PAGE * self.shape.kv_heads * (self.shape.qk_dim + self.shape.v_dim) * self.layers.len()
    }
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(KvLayer::bytes).sum()
    }
}
