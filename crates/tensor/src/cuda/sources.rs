//! The kernels' files, by the stem that the names of their kernels begin with.

/// What stands before every file.
pub(super) const PRELUDE: &str = include_str!("prelude.cuh");

/// What stands before the fast mode's files besides.
pub(super) const TENSOR_CORES: &str = include_str!("tensor_cores.cuh");

/// A stem and the file's text.
pub(super) const FILES: &[(&str, &str)] = &[
    ("attention", include_str!("../ops/attention.cu")),
    ("blocks", include_str!("../blocks/blocks.cu")),
    ("cross_entropy", include_str!("../ops/cross_entropy.cu")),
    ("elementwise", include_str!("../ops/elementwise.cu")),
    ("embedding", include_str!("../ops/embedding.cu")),
    ("experts", include_str!("../ops/experts.cu")),
    ("fast_attention", include_str!("../ops/fast_attention.cu")),
    ("fast_elementwise", include_str!("../ops/fast_elementwise.cu")),
    ("fast_gemm", include_str!("fast_gemm.cu")),
    ("fast_head", include_str!("../ops/fast_head.cu")),
    ("gemm", include_str!("gemm.cu")),
    ("heads", include_str!("../ops/heads.cu")),
    ("library", include_str!("library.cu")),
    ("muon", include_str!("../ops/muon.cu")),
    ("optimizer", include_str!("../ops/optimizer.cu")),
    ("rms_norm", include_str!("../ops/rms_norm.cu")),
    ("router", include_str!("../ops/router.cu")),
    ("sampling", include_str!("../ops/sampling.cu")),
    ("swiglu", include_str!("../ops/swiglu.cu")),
];

/// The file that a kernel is in, as its place in [`FILES`].
pub(super) fn file_of(kernel: &str) -> usize {
    FILES
        .iter()
        .position(|(stem, _)| kernel.strip_prefix(stem).is_some_and(|rest| rest.starts_with('_')))
        .unwrap_or_else(|| panic!("no kernel file holds {kernel}"))
}

/// A file's whole text, as it is compiled.
pub(super) fn text(file: usize) -> String {
    let (stem, text) = FILES[file];
    let before = if stem.starts_with("fast_") { TENSOR_CORES } else { "" };
    format!("{PRELUDE}\n{before}\n#line 1 \"{stem}.cu\"\n{text}")
}
