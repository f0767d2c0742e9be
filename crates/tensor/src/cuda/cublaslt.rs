//! cuBLASLt, NVIDIA's library of products, as far as [`super::library`] uses it: plain products without workspace, whose
//! sums are not split. Nothing here says whether an algorithm has our kernels' bits.

use super::gemm::{Layout, Matrices};
use super::gpu::Math;
use super::libraries::candidates;
use super::library::{ALIGNMENT, Product};
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::sync::{Once, OnceLock};

/// Zero where all went well.
pub(super) type Status = c_int;
type Opaque = *mut c_void;

// Values of cublasLt.h, cublas_api.h and library_types.h, the same in CUDA 12 and 13.
const COMPUTE_32F: c_int = 68;
const COMPUTE_32F_PEDANTIC: c_int = 69;
const TYPE_32F: c_int = 0;
const TYPE_16BF: c_int = 14;
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;
const PREF_MAX_WORKSPACE_BYTES: c_int = 1;
const PREF_REDUCTION_SCHEME_MASK: c_int = 3;
/// Of the first factor; those of the second, of C and of the result follow.
const PREF_MIN_ALIGNMENT_A_BYTES: c_int = 5;
const CONFIG_ID: c_int = 0;
const CONFIG_TILE_ID: c_int = 1;
const CONFIG_SPLITK_NUM: c_int = 2;
const CONFIG_REDUCTION_SCHEME: c_int = 3;

/// The oldest version whose functions are known to be these: 12.0.
const OLDEST: usize = 120_000;

/// cublasLtMatmulHeuristicResult_t.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Found {
    algorithm: [u64; 8],
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

/// The functions of cuBLASLt that are used.
struct Functions {
    version: unsafe extern "C" fn() -> usize,
    create: unsafe extern "C" fn(*mut Opaque) -> Status,
    operation_create: unsafe extern "C" fn(*mut Opaque, c_int, c_int) -> Status,
    operation_set: unsafe extern "C" fn(Opaque, c_int, *const c_void, usize) -> Status,
    operation_destroy: unsafe extern "C" fn(Opaque) -> Status,
    layout_create: unsafe extern "C" fn(*mut Opaque, c_int, u64, u64, i64) -> Status,
    layout_destroy: unsafe extern "C" fn(Opaque) -> Status,
    preference_create: unsafe extern "C" fn(*mut Opaque) -> Status,
    preference_set: unsafe extern "C" fn(Opaque, c_int, *const c_void, usize) -> Status,
    preference_destroy: unsafe extern "C" fn(Opaque) -> Status,
    /// Handle, operation, layouts of both factors, of C and of the result, preference, room, results, their number.
    heuristic: unsafe extern "C" fn(
        Opaque,
        Opaque,
        Opaque,
        Opaque,
        Opaque,
        Opaque,
        Opaque,
        c_int,
        *mut Found,
        *mut c_int,
    ) -> Status,
    /// Handle, operation, the four layouts, algorithm, result.
    check: unsafe extern "C" fn(
        Opaque,
        Opaque,
        Opaque,
        Opaque,
        Opaque,
        Opaque,
        *const [u64; 8],
        *mut Found,
    ) -> Status,
    config: unsafe extern "C" fn(*const [u64; 8], c_int, *mut c_void, usize, *mut usize) -> Status,
    /// Handle, operation, alpha, the factors each with its layout, beta, C and the result each with its layout,
    /// algorithm, workspace and its size, stream.
    multiply: unsafe extern "C" fn(
        Opaque,
        Opaque,
        *const f32,
        *const c_void,
        Opaque,
        *const c_void,
        Opaque,
        *const f32,
        *const c_void,
        Opaque,
        *mut c_void,
        Opaque,
        *const [u64; 8],
        *mut c_void,
        usize,
        Opaque,
    ) -> Status,
    _library: libloading::Library,
}

impl Functions {
    /// The library, looked for once.
    fn get() -> Option<&'static Functions> {
        static FUNCTIONS: OnceLock<Option<Functions>> = OnceLock::new();
        FUNCTIONS
            .get_or_init(|| {
                let files = candidates(&["cu13/lib", "cublas/lib"], "libcublasLt.so");
                files.into_iter().find_map(|path| Functions::open(&path))
            })
            .as_ref()
    }

    fn open(path: &Path) -> Option<Functions> {
        // SAFETY: NVIDIA's library; loading it runs no code of ours. The signatures are those of cublasLt.h, unchanged
        // since CUDA 11, and the symbols keep their meaning as long as the library is loaded: it is kept beside them.
        unsafe {
            let library = libloading::Library::new(path).ok()?;
            let functions = Functions {
                version: *library.get(b"cublasLtGetVersion").ok()?,
                create: *library.get(b"cublasLtCreate").ok()?,
                operation_create: *library.get(b"cublasLtMatmulDescCreate").ok()?,
                operation_set: *library.get(b"cublasLtMatmulDescSetAttribute").ok()?,
                operation_destroy: *library.get(b"cublasLtMatmulDescDestroy").ok()?,
                layout_create: *library.get(b"cublasLtMatrixLayoutCreate").ok()?,
                layout_destroy: *library.get(b"cublasLtMatrixLayoutDestroy").ok()?,
                preference_create: *library.get(b"cublasLtMatmulPreferenceCreate").ok()?,
                preference_set: *library.get(b"cublasLtMatmulPreferenceSetAttribute").ok()?,
                preference_destroy: *library.get(b"cublasLtMatmulPreferenceDestroy").ok()?,
                heuristic: *library.get(b"cublasLtMatmulAlgoGetHeuristic").ok()?,
                check: *library.get(b"cublasLtMatmulAlgoCheck").ok()?,
                config: *library.get(b"cublasLtMatmulAlgoConfigGetAttribute").ok()?,
                multiply: *library.get(b"cublasLtMatmul").ok()?,
                _library: library,
            };
            ((functions.version)() >= OLDEST).then_some(functions)
        }
    }
}

/// The version of the library, as "13.1", if it is there.
pub(super) fn version() -> Option<String> {
    // SAFETY: takes nothing.
    let version = unsafe { (Functions::get()?.version)() };
    Some(format!("{}.{}", version / 10_000, version / 100 % 100))
}

/// The library on one stream of one device; kept, as those are, for the life of the process.
pub(super) struct Library {
    functions: &'static Functions,
    handle: Opaque,
    stream: Opaque,
    /// Whether suggestions that are not tried are named on stderr.
    reports: bool,
}

// SAFETY: a handle that any thread may use that has made its context the current one (`Driver::library`), and a stream
// of which the same is true.
unsafe impl Send for Library {}
// SAFETY: as above; cuBLASLt documents that several threads may use a handle at once.
unsafe impl Sync for Library {}

/// How the library is to compute a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Algorithm {
    compute: c_int,
    words: [u64; 8],
}

impl Library {
    /// Opens the library for a stream of the context that is this thread's; `None` where it is missing or fails.
    ///
    /// # Safety
    /// The stream is one of this thread's context, and lives as long as the process.
    pub(super) unsafe fn open(stream: Opaque) -> Option<Library> {
        let functions = Functions::get()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a writable place; the context is current (caller).
        let status = unsafe { (functions.create)(&mut handle) };
        if status != 0 {
            note_failure(status);
            return None;
        }
        Some(Library { functions, handle, stream, reports: super::library::reports() })
    }

    /// Algorithms that the library suggests for a product, best first: without workspace, their sums in one piece.
    pub(super) fn candidates(&self, p: &Product) -> Vec<Algorithm> {
        let (computes, each) = match p.math {
            Math::Exact => (&[COMPUTE_32F_PEDANTIC, COMPUTE_32F][..], 8),
            Math::Fast => (&[COMPUTE_32F][..], 16),
        };
        let mut found: Vec<Algorithm> = Vec::new();
        for &compute in computes {
            for words in self.suggested(p, compute, each) {
                if found.iter().all(|a| a.words != words) {
                    found.push(Algorithm { compute, words });
                }
            }
        }
        found
    }

    fn suggested(&self, p: &Product, compute: c_int, count: usize) -> Vec<[u64; 8]> {
        let f = self.functions;
        let (Some(of), Some(preference)) = (Description::new(f, p, compute), Preference::new(f)) else {
            return Vec::new();
        };
        let [first, second, result] = of.layouts;
        let mut found = vec![Found::default(); count];
        let mut got = 0;
        // SAFETY: descriptions that live; `found` has room for `count` results.
        let status = unsafe {
            (f.heuristic)(
                self.handle,
                of.operation,
                first,
                second,
                result,
                result,
                preference.0,
                count as c_int,
                found.as_mut_ptr(),
                &mut got,
            )
        };
        found.truncate(if status == 0 { usize::try_from(got).unwrap_or(0) } else { 0 });
        let (fit, refused): (Vec<Found>, Vec<Found>) =
            found.into_iter().partition(|r| r.state == 0 && r.workspace == 0 && is_whole(f, &r.algorithm));
        for r in refused.iter().filter(|_| self.reports) {
            let of = |what| config(f, &r.algorithm, what);
            eprintln!(
                "cuBLASLt: not tried: algorithm {:?}, state {}, {} bytes of workspace, split {:?}, reduction {:?}",
                of(CONFIG_ID),
                r.state,
                r.workspace,
                of(CONFIG_SPLITK_NUM),
                of(CONFIG_REDUCTION_SCHEME)
            );
        }
        fit.into_iter().map(|r| r.algorithm).collect()
    }

    /// What is needed to compute a product by an algorithm, if that can do it. The check may name four bytes of workspace
    /// for results of 64 MiB and more: asked without any, the library suggests these algorithms and they do without.
    pub(super) fn plan(&self, p: &Product, algorithm: Algorithm) -> Option<Plan> {
        let f = self.functions;
        let description = Description::new(f, p, algorithm.compute)?;
        let [first, second, result] = description.layouts;
        let mut found = Found::default();
        // SAFETY: descriptions that live, a writable place.
        let status = unsafe {
            let operation = description.operation;
            (f.check)(self.handle, operation, first, second, result, result, &algorithm.words, &mut found)
        };
        let beta = if p.accumulate { 1.0 } else { 0.0 };
        (status == 0 && found.state == 0).then_some(Plan { description, algorithm: algorithm.words, beta })
    }

    /// Starts a product; nothing is started where this fails. Matrices are as large as the plan's product says.
    pub(super) fn multiply(&self, plan: &Plan, at: Matrices) -> Result<(), Status> {
        let [first, second, result] = plan.description.layouts;
        let [a, b, c] = [at.a, at.b, at.c].map(|p| p.address() as *mut c_void);
        // SAFETY: descriptions that live, and a handle and a stream of the current context. The matrices' memory is
        // kept by slabs, as for kernels (`Driver::launch`). C is the result's place, which is allowed. Alpha and beta
        // are read before the function returns, as they lie on the host. No workspace is needed (`plan`).
        let status = unsafe {
            (self.functions.multiply)(
                self.handle,
                plan.description.operation,
                &1.0,
                b,
                first,
                a,
                second,
                &plan.beta,
                c,
                result,
                c,
                result,
                &plan.algorithm,
                std::ptr::null_mut(),
                0,
                self.stream,
            )
        };
        if status == 0 { Ok(()) } else { Err(status) }
    }

    /// An algorithm's number and its tile's, for reports.
    pub(super) fn name(&self, algorithm: &Algorithm) -> String {
        let of = |what| config(self.functions, &algorithm.words, what).unwrap_or(-1);
        format!("{}/{} compute {}", of(CONFIG_ID), of(CONFIG_TILE_ID), algorithm.compute)
    }
}

/// Whether a sum over k is made in one piece; how pieces would be put together does not matter then.
fn is_whole(f: &Functions, algorithm: &[u64; 8]) -> bool {
    config(f, algorithm, CONFIG_SPLITK_NUM).is_some_and(|pieces| pieces <= 1)
}

fn config(f: &Functions, algorithm: &[u64; 8], what: c_int) -> Option<i32> {
    let (mut value, mut written) = (-1i32, 0usize);
    // SAFETY: four writable bytes, as said, and a writable place for how many were written.
    let status =
        unsafe { (f.config)(algorithm, what, (&raw mut value).cast(), size_of::<i32>(), &mut written) };
    (status == 0).then_some(value)
}

/// Says once that the library failed.
pub(super) fn note_failure(status: Status) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        eprintln!("note: cuBLASLt failed (status {status}); our own kernels compute what it cannot");
    });
}

/// A product with the algorithm that computes it.
pub(super) struct Plan {
    description: Description,
    algorithm: [u64; 8],
    beta: f32,
}

/// A product in the library's terms: what is done, and how both factors and the result lie.
struct Description {
    functions: &'static Functions,
    operation: Opaque,
    layouts: [Opaque; 3],
}

// SAFETY: memory of the library that is only read once it is made, and freed by its one owner.
unsafe impl Send for Description {}
// SAFETY: as above.
unsafe impl Sync for Description {}

impl Description {
    fn new(f: &'static Functions, p: &Product, compute: c_int) -> Option<Description> {
        let null = std::ptr::null_mut();
        let mut made = Description { functions: f, operation: null, layouts: [null; 3] };
        let factor = if p.math == Math::Exact { TYPE_32F } else { TYPE_16BF };
        let [first, second, result] = columns(p);
        // SAFETY: writable places; attributes of four bytes, as the header has them.
        unsafe {
            ok((f.operation_create)(&mut made.operation, compute, TYPE_32F))?;
            for (what, matrix) in [(DESC_TRANSA, first), (DESC_TRANSB, second)] {
                let transposed = c_int::from(matrix.transposed);
                ok((f.operation_set)(
                    made.operation,
                    what,
                    (&raw const transposed).cast(),
                    size_of::<c_int>(),
                ))?;
            }
            let matrices = [(factor, first), (factor, second), (TYPE_32F, result)];
            for (layout, (kind, m)) in made.layouts.iter_mut().zip(matrices) {
                ok((f.layout_create)(layout, kind, m.rows as u64, m.cols as u64, m.stride as i64))?;
            }
        }
        Some(made)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        let f = self.functions;
        // SAFETY: made by the library, and destroyed once.
        unsafe {
            self.layouts.into_iter().filter(|l| !l.is_null()).for_each(|l| _ = (f.layout_destroy)(l));
            if !self.operation.is_null() {
                (f.operation_destroy)(self.operation);
            }
        }
    }
}

/// What suggested algorithms must do without.
struct Preference(Opaque, &'static Functions);

impl Preference {
    fn new(f: &'static Functions) -> Option<Preference> {
        let mut made = Preference(std::ptr::null_mut(), f);
        let (workspace, schemes, alignment) = (0u64, 0u32, ALIGNMENT as u32);
        // SAFETY: writable places; attributes of eight and of four bytes, as the header has them.
        unsafe {
            ok((f.preference_create)(&mut made.0))?;
            let set = |what, value: *const c_void, size| ok((f.preference_set)(made.0, what, value, size));
            set(PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), size_of::<u64>())?;
            set(PREF_REDUCTION_SCHEME_MASK, (&raw const schemes).cast(), size_of::<u32>())?;
            for matrix in 0..4 {
                let what = PREF_MIN_ALIGNMENT_A_BYTES + matrix;
                set(what, (&raw const alignment).cast(), size_of::<u32>())?;
            }
        }
        Some(made)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by the library, and destroyed once.
            unsafe { (self.1.preference_destroy)(self.0) };
        }
    }
}

fn ok(status: Status) -> Option<()> {
    (status == 0).then_some(())
}

/// A matrix in the library's order, column after column, each `stride` values behind the last.
#[derive(Clone, Copy, Debug)]
struct Columns {
    rows: usize,
    cols: usize,
    stride: usize,
    /// Whether it is transposed before it is multiplied.
    transposed: bool,
}

/// The library's first factor (our B), its second one (our A) and the result: a matrix in our order is its transpose in
/// the library's, and `Cᵀ = (op(A) op(B))ᵀ = op(B)ᵀ op(A)ᵀ`.
fn columns(p: &Product) -> [Columns; 3] {
    let ([m, n, k], [lda, ldb, ldc]) = (p.sizes, p.strides);
    let b = match p.layout {
        Layout::Nt => Columns { rows: k, cols: n, stride: ldb, transposed: true },
        Layout::Nn | Layout::Tn => Columns { rows: n, cols: k, stride: ldb, transposed: false },
    };
    let a = match p.layout {
        Layout::Nt | Layout::Nn => Columns { rows: k, cols: m, stride: lda, transposed: false },
        Layout::Tn => Columns { rows: m, cols: k, stride: lda, transposed: true },
    };
    [b, a, Columns { rows: n, cols: m, stride: ldc, transposed: false }]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the library does, by definition.
    fn multiply([first, second, result]: [Columns; 3], a: &[i32], b: &[i32], c: &mut [i32]) {
        let at = |m: &Columns, x: &[i32], row: usize, col: usize| {
            let (row, col) = if m.transposed { (col, row) } else { (row, col) };
            assert!(row < m.rows && col < m.cols, "{row}, {col} of {m:?}");
            x[col * m.stride + row]
        };
        let inner = if first.transposed { first.rows } else { first.cols };
        for col in 0..result.cols {
            for row in 0..result.rows {
                let terms = (0..inner).map(|i| at(&first, a, row, i) * at(&second, b, i, col));
                c[col * result.stride + row] = terms.sum();
            }
        }
    }

    #[test]
    fn the_librarys_product_of_transposes_is_the_product_in_our_order() {
        let [m, n, k] = [3, 4, 5];
        let (a, b): (Vec<i32>, Vec<i32>) = ((0..100).collect(), (0..100).map(|i| i * i % 23).collect());
        for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
            let [lda, ldb, ldc] = [7, 8, 9];
            let p = Product {
                layout,
                math: Math::Exact,
                accumulate: false,
                sizes: [m, n, k],
                strides: [lda, ldb, ldc],
            };
            let mut found = vec![0; m * ldc];
            multiply(columns(&p), &b, &a, &mut found);
            for row in 0..m {
                for col in 0..n {
                    let term = |i: usize| match layout {
                        Layout::Nt => a[row * lda + i] * b[col * ldb + i],
                        Layout::Nn => a[row * lda + i] * b[i * ldb + col],
                        Layout::Tn => a[i * lda + row] * b[i * ldb + col],
                    };
                    let wanted: i32 = (0..k).map(term).sum();
                    assert_eq!(found[row * ldc + col], wanted, "{layout:?} {row} {col}");
                }
            }
        }
    }

    #[test]
    fn the_result_of_a_search_has_the_headers_size() {
        assert_eq!(size_of::<Found>(), 96);
    }
}
