//! The tensors of a GGUF file under Hugging Face's names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ground::gguf::{Entry, Gguf};
use tensor::blocks::Format;
use tensor::mapped::{Mapped, map_file};
use tensor::threads::parallel_chunks;

use super::names::{Place, place};
use crate::config::{ModelConfig, TensorSpec, tensor_specs};
use crate::files::FileError;

/// A tensor of the file, its bytes checked to lie in it.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// Position in the file's table.
    entry: usize,
    format: Format,
    /// First byte, bytes.
    begin: usize,
    bytes: usize,
}

/// Where a tensor of ours is, and how its rows are to be read.
#[derive(Debug, Clone)]
struct Source {
    held: Held,
    shape: Vec<usize>,
    /// The first of its rows in the tensor, for experts.
    first_row: usize,
    /// Rows lie so that RoPE turns neighbours, in so many heads, and ours so that it turns halves.
    interleaved_heads: Option<usize>,
}

/// `kv_b_proj` where a file keeps it for absorbed decoding: the keys' part of each head transposed, `[heads, rank, nope]`, the values'
/// part, `[heads, v, rank]`, in a tensor of its own.
#[derive(Debug, Clone)]
struct SplitLatent {
    keys: Held,
    values: Held,
    /// Rows of ours, rank.
    shape: Vec<usize>,
    heads: usize,
    nope: usize,
}

/// A GGUF file's tensors, under the names of a configuration.
pub struct GgufWeights {
    path: PathBuf,
    bytes: Mapped,
    sources: HashMap<String, Source>,
    latents: HashMap<String, SplitLatent>,
    /// Tensors that the configuration has no name for.
    unknown: Vec<String>,
}

impl std::fmt::Debug for GgufWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "GgufWeights({}, {} tensors)", self.path.display(), self.sources.len())
    }
}

/// Tensors that say again what the configuration says.
const IGNORED: [&str; 1] = ["rope_freqs.weight"];

impl GgufWeights {
    /// Opens a file whose configuration is known; its tensors are checked to lie in it.
    pub fn open(path: &Path, config: &ModelConfig) -> Result<Self, FileError> {
        let bytes = map_file(path).map_err(FileError::io("read", path))?;
        let bad = |reason: String| FileError::Gguf { path: path.to_path_buf(), reason };
        let file = ground::gguf::read(&mut &bytes[..], bytes.len() as u64).map_err(|e| bad(e.to_string()))?;
        let mut by_name = HashMap::new();
        for (entry, tensor) in file.tensors.iter().enumerate() {
            by_name.insert(tensor.name.as_str(), held(entry, tensor, bytes.len()).map_err(&bad)?);
        }
        let mut used = vec![false; file.tensors.len()];
        let (mut sources, mut latents) = (HashMap::new(), HashMap::new());
        for spec in tensor_specs(config) {
            let Some(place) = place(&spec.name, config.family().gguf_names) else { continue };
            let (Place::Whole(name) | Place::Expert { name, .. }) = &place;
            let Some(&held) = by_name.get(name.as_str()) else {
                let part = |letter: &str| by_name.get(name.replace("attn_kv_b", letter).as_str()).copied();
                if let (ModelConfig::Mla(c), true) = (config, name.contains("attn_kv_b"))
                    && let (Some(keys), Some(values)) = (part("attn_k_b"), part("attn_v_b"))
                {
                    let (heads, nope, rank) = (c.num_attention_heads, c.qk_nope_head_dim, c.kv_lora_rank);
                    let shapes = [keys, values].map(|held| file.tensors[held.entry].shape.clone());
                    if shapes == [vec![heads, rank, nope], vec![heads, c.v_head_dim, rank]] {
                        (used[keys.entry], used[values.entry]) = (true, true);
                        let latent = SplitLatent { keys, values, shape: spec.shape, heads, nope };
                        latents.insert(spec.name, latent);
                    }
                }
                continue;
            };
            used[held.entry] = true;
            let found = &file.tensors[held.entry].shape;
            let source = source(&file, config, &spec, &place, held);
            let (name, path) = (spec.name.clone(), path.to_path_buf());
            let source =
                source.ok_or(FileError::Shape { path, name, expected: spec.shape, found: found.clone() })?;
            sources.insert(spec.name, source);
        }
        let unknown = file.tensors.iter().zip(used).filter(|(t, used)| !used && !IGNORED.contains(&&*t.name));
        let unknown = unknown.map(|(t, _)| t.name.clone()).collect();
        Ok(GgufWeights { path: path.to_path_buf(), bytes, sources, latents, unknown })
    }

    /// The names of all tensors, in no order; those that the configuration does not know under the file's own names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sources.keys().chain(self.latents.keys()).chain(&self.unknown).map(String::as_str)
    }

    /// The shape of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let whole = self.sources.get(name).map(|source| source.shape.as_slice());
        whole.or_else(|| self.latents.get(name).map(|latent| latent.shape.as_slice()))
    }

    /// How a tensor is stored.
    pub fn format(&self, name: &str) -> Option<Format> {
        self.sources.get(name).map(|source| source.held.format)
    }

    /// Unpacks a tensor into `out`.
    ///
    /// # Panics
    /// When `out` does not have the number of elements of the tensor's shape.
    pub fn read_f32(&self, name: &str, out: &mut [f32]) -> Result<(), FileError> {
        if let Some(latent) = self.latents.get(name) {
            self.join(latent, out);
            return Ok(());
        }
        let source = self.source(name)?;
        let cols = *source.shape.last().expect("a shape of one or two dimensions");
        assert_eq!(out.len(), source.shape.iter().product::<usize>(), "read_f32 of `{name}`");
        parallel_chunks(out, (1usize << 14).div_ceil(cols) * cols, |at, out| {
            for (i, row) in out.chunks_exact_mut(cols).enumerate() {
                source.held.format.unpack(self.row(source, at / cols + i), row);
            }
        });
        Ok(())
    }

    /// Puts keys and values of each head side by side again.
    fn join(&self, latent: &SplitLatent, out: &mut [f32]) {
        let (rank, nope) = (latent.shape[1], latent.nope);
        let all = |held: &Held, n: usize| {
            let mut values = vec![0.0; n];
            held.format.unpack(&self.bytes[held.begin..][..held.bytes], &mut values);
            values
        };
        let rows = latent.shape[0] / latent.heads;
        let keys = all(&latent.keys, latent.heads * rank * nope);
        let values = all(&latent.values, latent.heads * (rows - nope) * rank);
        for (h, head) in out.chunks_exact_mut(rows * rank).enumerate() {
            let (to_keys, to_values) = head.split_at_mut(nope * rank);
            for (i, row) in to_keys.chunks_exact_mut(rank).enumerate() {
                row.iter_mut().enumerate().for_each(|(r, x)| *x = keys[(h * rank + r) * nope + i]);
            }
            to_values.copy_from_slice(&values[h * to_values.len()..][..to_values.len()]);
        }
    }

    /// A tensor's blocks as they are stored, row by row.
    pub fn read_blocks(&self, name: &str) -> Result<Vec<u8>, FileError> {
        let source = self.source(name)?;
        let rows = source.shape.iter().rev().skip(1).product::<usize>();
        Ok((0..rows).flat_map(|i| self.row(source, i)).copied().collect())
    }

    fn source(&self, name: &str) -> Result<&Source, FileError> {
        let missing = || FileError::MissingTensor { path: self.path.clone(), name: name.to_owned() };
        self.sources.get(name).ok_or_else(missing)
    }

    /// The blocks of row `i`.
    fn row(&self, source: &Source, i: usize) -> &[u8] {
        let cols = *source.shape.last().expect("a shape of one or two dimensions");
        let bytes = source.held.format.bytes_of(cols).expect("checked when the file was opened");
        let i = source.first_row + interleaved(i, source);
        &self.bytes[source.held.begin..][..source.held.bytes][i * bytes..][..bytes]
    }
}

/// Where row `i` of ours lies in the file.
fn interleaved(i: usize, source: &Source) -> usize {
    let Some(heads) = source.interleaved_heads else { return i };
    let dim = source.shape[0] / heads;
    let (head, within) = (i / dim, i % dim);
    head * dim + within % (dim / 2) * 2 + within / (dim / 2)
}

fn held(entry: usize, tensor: &Entry, len: usize) -> Result<Held, String> {
    let name = &tensor.name;
    let format = Format::of_ggml(tensor.kind).ok_or_else(|| {
        let all: Vec<&str> = Format::ALL.iter().map(|f| f.name()).collect();
        let kind = kind_name(tensor.kind);
        format!("tensor `{name}` is stored as {kind}; supported are {}", all.join(", "))
    })?;
    let cols = *tensor.shape.last().expect("at least one dimension");
    let rows = tensor.shape.iter().rev().skip(1).product::<usize>();
    let bytes = format.bytes_of(cols).and_then(|row| row.checked_mul(rows)).ok_or_else(|| {
        format!("tensor `{name}` has rows of {cols} values, which are no whole blocks of {}", format.name())
    })?;
    let begin = tensor.begin as usize;
    if begin.checked_add(bytes).is_none_or(|end| end > len) {
        return Err(format!(
            "tensor `{name}` takes {bytes} bytes from byte {begin} on, but the file ends at {len}"
        ));
    }
    Ok(Held { entry, format, begin, bytes })
}

/// ggml's name for a type of blocks that is not read.
fn kind_name(kind: u32) -> String {
    const OTHERS: [(u32, &str); 19] = [
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (39, "MXFP4"),
    ];
    let known = OTHERS.iter().find(|(number, _)| *number == kind);
    known.map_or_else(|| format!("ggml's type {kind}"), |(_, name)| (*name).to_owned())
}

/// `None` where the shapes differ.
fn source(file: &Gguf, config: &ModelConfig, spec: &TensorSpec, place: &Place, held: Held) -> Option<Source> {
    let found = &file.tensors[held.entry].shape;
    let first_row = match place {
        Place::Whole(_) => (*found == spec.shape).then_some(0)?,
        Place::Expert { expert, .. } => {
            let [experts, rows, cols] = found[..] else { return None };
            (*expert < experts && spec.shape == [rows, cols]).then_some(expert * rows)?
        }
    };
    let interleaved_heads = config.gguf_interleaved_heads(&spec.name);
    Some(Source { held, shape: spec.shape.clone(), first_row, interleaved_heads })
}
