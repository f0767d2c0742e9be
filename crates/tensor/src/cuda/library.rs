//! Products by NVIDIA's library, cuBLASLt, where that is faster than our kernels and gives the same bits.
//!
//! Which algorithms do is found out and not assumed. When a kind of product first occurs, the library is asked what it
//! suggests, and each suggestion multiplies factors that show the order of a sum; those that differ from our kernel in
//! one bit are out, and of the others and our own the fastest is taken from then on. So the library changes how long a
//! product takes and nothing else, and whatever it fails at our kernels do.
//!
//! `SHOESTRING_CUBLASLT=0` does without the library; `SHOESTRING_CUBLASLT=report` says on stderr what every search finds.

use super::cublaslt::{self, Algorithm, Library, Plan};
use super::gemm::{self, Layout, Matrices};
use super::gpu::{Math, Ptr, Scratch};
use super::{Gpu, ROW_THREADS, Slab, args, row_grid};
use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A flat product: what [`gemm::product`] is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    pub(super) layout: Layout,
    pub(super) math: Math,
    pub(super) accumulate: bool,
    /// m, n and k.
    pub(super) sizes: [usize; 3],
    /// Values from one row to the next, of A, B and C.
    pub(super) strides: [usize; 3],
}

/// Bytes that matrices' addresses are multiples of where the library is used.
pub(super) const ALIGNMENT: usize = 16;
/// Steps `m n k` from which on a product is worth a search.
const WORTHWHILE: usize = 1 << 22;
/// Kinds of products that are searched for; should there be more, our kernels do the rest.
const MOST_KINDS: usize = 512;
/// Plans that are kept.
const MOST_PLANS: usize = 4096;
/// The share of our kernel's time that the library must stay below: measured times differ by as much.
const FASTER: f32 = 0.97;

impl Product {
    /// The size that follows the number of tokens, and is not a model's. It is no row's length in any layout.
    fn tokens(&self) -> usize {
        self.sizes[self.token_axis()]
    }
    fn token_axis(&self) -> usize {
        if self.layout == Layout::Tn { 2 } else { 0 }
    }
    fn with_tokens(mut self, tokens: usize) -> Product {
        self.sizes[self.token_axis()] = tokens;
        self
    }
    /// Of products of a kind, which have one algorithm, the largest: tokens are rounded up to a power of two.
    fn kind(&self) -> Product {
        self.with_tokens(self.tokens().next_power_of_two())
    }

    /// Whether the library might do it. In exact mode it does not: its f32 algorithms differ from the processor's chain where
    /// rows vanish or are subnormal, on an H200 all of them.
    fn is_suitable(&self) -> bool {
        let [m, n, k] = self.sizes;
        m * n * k >= WORTHWHILE && self.math == Math::Fast
    }

    /// Rows of A, B and C in memory.
    fn rows(&self) -> [usize; 3] {
        let [m, n, k] = self.sizes;
        match self.layout {
            Layout::Nt => [m, n, m],
            Layout::Nn => [m, k, m],
            Layout::Tn => [k, k, m],
        }
    }
    /// Bytes of A, B and C.
    fn bytes(&self) -> [usize; 3] {
        let factor = if self.math == Math::Exact { 4 } else { 2 };
        let ([a, b, c], [lda, ldb, ldc]) = (self.rows(), self.strides);
        [a * lda * factor, b * ldb * factor, c * ldc * 4]
    }

    fn name(&self) -> &'static str {
        match self.layout {
            Layout::Nt => "cublaslt_nt",
            Layout::Nn => "cublaslt_nn",
            Layout::Tn => "cublaslt_tn",
        }
    }
}

/// What was found out so far.
#[derive(Default)]
pub(super) struct Choices {
    /// The algorithm for each kind of product; none where our kernel does it.
    algorithms: Mutex<HashMap<Product, Option<Algorithm>>>,
    /// The same for products as they occurred.
    plans: Mutex<HashMap<Product, Option<Arc<Plan>>>>,
}

const UNPOISONED: &str = "nothing panics under this lock";

fn setting() -> OsString {
    std::env::var_os("SHOESTRING_CUBLASLT").unwrap_or_default()
}

/// Whether everything that is found out is told.
pub(super) fn reports() -> bool {
    setting() == "report"
}

/// The library's version, or why it is not used.
pub(super) fn version() -> Result<String, &'static str> {
    if setting() == "0" {
        return Err("SHOESTRING_CUBLASLT=0");
    }
    cublaslt::version().ok_or("cuBLASLt was not found (libcublasLt.so): `pip install nvidia-cublas`")
}

/// Computes a product by the library, if that is the thing to do; false if it was not done.
pub(super) fn multiply(gpu: &Gpu, p: &Product, at: Matrices) -> bool {
    let aligned = [at.a, at.b, at.c].iter().all(|ptr| ptr.address().is_multiple_of(ALIGNMENT as u64));
    if !aligned || !p.is_suitable() {
        return false;
    }
    let Some(library) = gpu.driver().library() else { return false };
    let Some(plan) = plan(gpu, library, p) else { return false };
    let mut done = Ok(());
    gpu.driver().measured(p.name(), &mut || done = library.multiply(&plan, at));
    if let Err(status) = done {
        cublaslt::note_failure(status);
        gpu.choices().plans.lock().expect(UNPOISONED).insert(*p, None);
    }
    done.is_ok()
}

/// How the library is to compute a product; none where our kernel does it.
fn plan(gpu: &Gpu, library: &Library, p: &Product) -> Option<Arc<Plan>> {
    let plans = &gpu.choices().plans;
    if let Some(known) = plans.lock().expect(UNPOISONED).get(p) {
        return known.clone();
    }
    let plan = algorithm(gpu, library, p).and_then(|a| library.plan(p, a)).map(Arc::new);
    let mut plans = plans.lock().expect(UNPOISONED);
    if plans.len() >= MOST_PLANS {
        plans.clear();
    }
    plans.insert(*p, plan.clone());
    plan
}

fn algorithm(gpu: &Gpu, library: &Library, p: &Product) -> Option<Algorithm> {
    let algorithms = &gpu.choices().algorithms;
    let known = {
        let algorithms = algorithms.lock().expect(UNPOISONED);
        let full = algorithms.len() >= MOST_KINDS;
        algorithms.get(&p.kind()).copied().or(full.then_some(None))
    };
    known.unwrap_or_else(|| {
        let found = search(gpu, library, p);
        algorithms.lock().expect(UNPOISONED).insert(p.kind(), found);
        found
    })
}

/// The fastest algorithm with our kernel's bits, if it is faster than that.
fn search(gpu: &Gpu, library: &Library, p: &Product) -> Option<Algorithm> {
    let began = Instant::now();
    let trial = Trial::new(gpu, library, &p.kind())?;
    let most = trial.largest.tokens();
    let p = &p.with_tokens(p.tokens().min(most));
    let candidates = library.candidates(p);
    trial.compute_own(p);
    let own = trial.time_own(p)?;
    let tested: Vec<Tested> = candidates.into_iter().filter_map(|a| trial.test(p, a)).collect();
    let mut equal: Vec<&Tested> = tested.iter().filter(|t| t.differing == [0, 0]).collect();
    equal.sort_by(|x, y| x.ms.total_cmp(&y.ms));
    // Others of the kind: the largest, and the smallest, whose last tile is not full.
    let others = [most, most / 2 + 1].map(|tokens| p.with_tokens(tokens));
    let chosen = equal.into_iter().filter(|t| t.ms < FASTER * own).find(|t| {
        others.iter().all(|other| {
            trial.compute_own(other);
            trial.differing(other, &t.algorithm) == Some([0, 0])
        })
    });
    if reports() {
        report(library, p, own, &tested, chosen, began);
    }
    chosen.map(|t| t.algorithm)
}

fn report(
    library: &Library,
    p: &Product,
    own: f32,
    tested: &[Tested],
    chosen: Option<&Tested>,
    began: Instant,
) {
    let one = |t: &Tested| {
        let [ordinary, others] = t.differing;
        let differ =
            if ordinary + others > 0 { format!(" differs {ordinary}+{others}") } else { String::new() };
        format!("{} {:.1} us{differ}", library.name(&t.algorithm), 1e3 * t.ms)
    };
    let all: Vec<String> = tested.iter().map(one).collect();
    let Product { layout, math, accumulate, sizes: [m, n, k], .. } = p;
    eprintln!(
        "cuBLASLt {layout:?} {math:?}{} {m}x{n}x{k}: own {:.1} us, taken: {}; searched {:.0} ms; {}",
        if *accumulate { " +=" } else { "" },
        1e3 * own,
        chosen.map_or("own".to_owned(), one),
        1e3 * began.elapsed().as_secs_f64(),
        all.join(", "),
    );
}

/// An algorithm that has run.
struct Tested {
    algorithm: Algorithm,
    /// Words that differ from our kernel's, in ordinary rows and columns and in others (`library.cu`).
    differing: [u32; 2],
    ms: f32,
}

/// Factors, and room for two results.
struct Trial<'a> {
    gpu: &'a Gpu,
    library: &'a Library,
    /// The largest product that there is room for.
    largest: Product,
    a: Scratch,
    b: Scratch,
    own: Scratch,
    other: Scratch,
    counts: Slab,
}

impl<'a> Trial<'a> {
    /// For products up to one, or up to fewer tokens where memory is short.
    fn new(gpu: &'a Gpu, library: &'a Library, largest: &Product) -> Option<Trial<'a>> {
        let mut largest = *largest;
        loop {
            let [a, b, c] = largest.bytes();
            if a + b + 2 * c <= gpu.info().memory / 8
                && let Some(trial) = Trial::with_room(gpu, library, largest)
            {
                trial.fill_factors();
                return Some(trial);
            }
            if largest.tokens() < 512 {
                return None;
            }
            largest = largest.with_tokens(largest.tokens() / 2);
        }
    }

    fn with_room(gpu: &'a Gpu, library: &'a Library, largest: Product) -> Option<Trial<'a>> {
        let [a, b, c] = largest.bytes();
        Some(Trial {
            gpu,
            library,
            largest,
            a: gpu.scratch(a)?,
            b: gpu.scratch(b)?,
            own: gpu.scratch(c)?,
            other: gpu.scratch(c)?,
            counts: gpu.alloc(2),
        })
    }

    fn fill_factors(&self) {
        let Product { layout, math, strides: [lda, ldb, _], .. } = self.largest;
        let [rows_a, rows_b, _] = self.largest.rows();
        let kernel = if math == Math::Exact { "library_fill" } else { "library_fill_half" };
        self.fill(kernel, self.a.start(), [rows_a, lda], layout != Layout::Tn, 1);
        self.fill(kernel, self.b.start(), [rows_b, ldb], layout == Layout::Nt, 2);
    }
    fn fill(&self, kernel: &'static str, to: Ptr, [rows, width]: [usize; 2], by_rows: bool, seed: usize) {
        let args = args![to, rows, width, by_rows, seed];
        self.gpu.launch(kernel, row_grid(rows, width), ROW_THREADS, args);
    }
    /// The same noise in all of a result, so that what a product adds to, or leaves as it was, is known.
    fn fill_result(&self, p: &Product, c: &Scratch) {
        self.fill("library_fill", c.start(), [p.rows()[2], p.strides[2]], true, 3);
    }

    fn at(&self, c: &Scratch) -> Matrices {
        Matrices { a: self.a.start(), b: self.b.start(), c: c.start() }
    }

    /// Our kernel's result, with which others are compared.
    fn compute_own(&self, p: &Product) {
        self.fill_result(p, &self.own);
        gemm::own_product(self.gpu, p, self.at(&self.own));
    }
    /// Milliseconds of our kernel.
    fn time_own(&self, p: &Product) -> Option<f32> {
        // What it computes goes elsewhere: the result to compare with stays.
        self.time(p, &mut || gemm::own_product(self.gpu, p, self.at(&self.other)))
    }

    fn test(&self, p: &Product, algorithm: Algorithm) -> Option<Tested> {
        let differing = self.differing(p, &algorithm)?;
        let plan = self.library.plan(p, algorithm)?;
        let ms = self.time(p, &mut || _ = self.library.multiply(&plan, self.at(&self.other)))?;
        Some(Tested { algorithm, differing, ms })
    }

    /// Words of an algorithm's result that differ from our kernel's; none if it cannot do it.
    fn differing(&self, p: &Product, algorithm: &Algorithm) -> Option<[u32; 2]> {
        let plan = self.library.plan(p, *algorithm)?;
        self.fill_result(p, &self.other);
        self.library.multiply(&plan, self.at(&self.other)).ok()?;
        self.gpu.clear(&self.counts);
        let (rows, width) = (p.rows()[2], p.strides[2]);
        let args = args![self.own.start(), self.other.start(), &self.counts, rows, width];
        self.gpu.launch("library_compare", row_grid(rows, width), ROW_THREADS, args);
        let mut counts = [u32::MAX; 2];
        self.gpu.download(&self.counts, &mut counts);
        Some(counts)
    }

    /// Milliseconds of a product that has run before, the better of two measurements of some launches each.
    fn time(&self, p: &Product, start: &mut dyn FnMut()) -> Option<f32> {
        let launches = launches(p);
        let mut measure = || self.gpu.driver().elapsed(&mut || (0..launches).for_each(|_| start()));
        let (first, second) = (measure()?, measure()?);
        Some(first.min(second) / launches as f32)
    }
}

/// As many launches as take about a millisecond.
fn launches(p: &Product) -> usize {
    let a_millisecond = if p.math == Math::Exact { 2e10 } else { 2e11 };
    let [m, n, k] = p.sizes.map(|size| size as f64);
    (a_millisecond / (m * n * k)).clamp(2.0, 16.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(layout: Layout, sizes: [usize; 3]) -> Product {
        Product { layout, math: Math::Fast, accumulate: false, sizes, strides: [4096; 3] }
    }

    #[test]
    fn products_of_a_kind_differ_in_tokens_alone_up_to_a_power_of_two() {
        for (layout, [t, n, k]) in [(Layout::Nt, [0, 1, 2]), (Layout::Nn, [0, 1, 2]), (Layout::Tn, [2, 0, 1])]
        {
            let of = |tokens, width, other| {
                let mut sizes = [0; 3];
                (sizes[t], sizes[n], sizes[k]) = (tokens, width, other);
                product(layout, sizes).kind()
            };
            assert_eq!(of(513, 768, 256), of(1024, 768, 256), "{layout:?}");
            assert_ne!(of(512, 768, 256), of(513, 768, 256), "{layout:?}");
            assert_ne!(of(513, 768, 256), of(513, 769, 256), "{layout:?}");
            assert_ne!(of(513, 768, 256), of(513, 768, 257), "{layout:?}");
        }
    }

    #[test]
    fn kinds_keep_apart_what_is_added_to_and_how_rows_lie() {
        let p = product(Layout::Nt, [100, 200, 300]);
        assert_ne!(p.kind(), Product { accumulate: true, ..p }.kind());
        assert_ne!(p.kind(), Product { math: Math::Exact, ..p }.kind());
        assert_ne!(p.kind(), Product { strides: [4096, 4096, 4100], ..p }.kind());
    }

    #[test]
    fn exact_and_small_products_are_left_to_our_kernels() {
        let p = product(Layout::Nt, [1024, 1024, 1024]);
        assert!(p.is_suitable() && Product { accumulate: true, ..p }.is_suitable());
        assert!(!Product { math: Math::Exact, ..p }.is_suitable());
        assert!(!p.with_tokens(3).is_suitable());
    }

    #[test]
    fn a_trial_has_room_for_every_row() {
        let bytes = |layout| {
            Product { math: Math::Exact, strides: [10, 20, 30], ..product(layout, [2, 3, 5]) }.bytes()
        };
        assert_eq!(bytes(Layout::Nt), [2 * 10 * 4, 3 * 20 * 4, 2 * 30 * 4]);
        assert_eq!(bytes(Layout::Nn), [2 * 10 * 4, 5 * 20 * 4, 2 * 30 * 4]);
        assert_eq!(bytes(Layout::Tn), [5 * 10 * 4, 5 * 20 * 4, 2 * 30 * 4]);
    }
}
