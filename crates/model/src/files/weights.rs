//! Reading weights: one safetensors file, or shards with an index.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use serde::Deserialize;
use tensor::blocks::Format;
use tensor::mapped::{Mapped, map_file};

use super::header::{self, Entry, Header};
use super::{FileError, Weights};
use crate::config::TensorSpec;

/// Weights in one file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The index of weights in several files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The largest index that is read, in bytes.
const MAX_INDEX_BYTES: u64 = 16 << 20;

/// One open safetensors file whose header has been checked.
pub struct SafeFile {
    path: PathBuf,
    bytes: Mapped,
    entries: HashMap<String, Entry>,
    base_mark: Option<String>,
}

impl std::fmt::Debug for SafeFile {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "SafeFile({}, {} tensors)", self.path.display(), self.entries.len())
    }
}

impl SafeFile {
    /// Opens a file and checks its header against its length.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, FileError> {
        let path = path.as_ref().to_path_buf();
        let bytes = map_file(&path).map_err(FileError::io("read", &path))?;
        let Header { entries, base_mark } = header::parse(&path, &bytes)?;
        Ok(SafeFile { path, bytes, entries, base_mark })
    }

    /// Of an adapter from here: the mark of the model that it was trained beside.
    pub(crate) fn base_mark(&self) -> Option<&str> {
        self.base_mark.as_deref()
    }

    /// The names of its tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The shape of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Reads a tensor of F32, BF16, F16 or F64 into `out`, rounding F64 to the nearest f32.
    ///
    /// # Panics
    /// When `out` does not have `expected_shape`'s number of elements.
    pub fn read_f32(&self, name: &str, expected_shape: &[usize], out: &mut [f32]) -> Result<(), FileError> {
        assert_eq!(
            out.len(),
            expected_shape.iter().product::<usize>(),
            "read_f32 of `{name}`: the buffer's length does not fit the shape {expected_shape:?}"
        );
        let entry = self.entry(name)?;
        if entry.shape != expected_shape {
            return Err(FileError::Shape {
                path: self.path.clone(),
                name: name.to_owned(),
                expected: expected_shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        let bytes = &self.bytes[entry.begin..entry.end];
        match entry.dtype {
            Dtype::F32 => convert(bytes, out, f32::from_le_bytes),
            Dtype::BF16 => convert(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => convert(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::F64 => convert(bytes, out, |b| f64::from_le_bytes(b) as f32),
            other => {
                return Err(FileError::ElementType {
                    path: self.path.clone(),
                    name: name.to_owned(),
                    found: other.to_string(),
                });
            }
        }
        Ok(())
    }

    /// How a tensor is stored, if its numbers are of one of the formats that weights are held in.
    pub fn format(&self, name: &str) -> Option<Format> {
        match self.entries.get(name)?.dtype {
            Dtype::F32 => Some(Format::F32),
            Dtype::F16 => Some(Format::F16),
            Dtype::BF16 => Some(Format::Bf16),
            _ => None,
        }
    }

    /// A tensor's bytes.
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.entries.get(name).map(|entry| &self.bytes[entry.begin..entry.end])
    }

    /// Reads a tensor of I64 or I32: token ids and positions of test fixtures.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>, FileError> {
        let entry = self.entry(name)?;
        let bytes = &self.bytes[entry.begin..entry.end];
        match entry.dtype {
            Dtype::I64 => Ok(bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect()),
            Dtype::I32 => Ok(bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect()),
            other => Err(FileError::ElementType {
                path: self.path.clone(),
                name: name.to_owned(),
                found: other.to_string(),
            }),
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry, FileError> {
        self.entries
            .get(name)
            .ok_or_else(|| FileError::MissingTensor { path: self.path.clone(), name: name.to_owned() })
    }
}

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], to_f32: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (out, &chunk) in out.iter_mut().zip(chunks) {
        *out = to_f32(chunk);
    }
}

/// The weights of a model folder, in one file or in shards.
#[derive(Debug)]
pub struct WeightsReader {
    dir: PathBuf,
    files: Vec<SafeFile>,
    /// Tensor name to position in `files`.
    located: HashMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl WeightsReader {
    /// Opens the weights of a folder: `model.safetensors`, else the shards that
    /// `model.safetensors.index.json` names.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, FileError> {
        let dir = dir.as_ref().to_path_buf();
        let single = dir.join(SINGLE_FILE);
        let index_path = dir.join(INDEX_FILE);
        let index = match (single.exists(), index_path.exists()) {
            (true, _) => None,
            (false, true) => Some(read_index(&index_path)?),
            (false, false) => return Err(no_weights(&dir)),
        };
        let paths: Vec<PathBuf> = match &index {
            None => vec![single],
            Some(index) => {
                let shards: BTreeSet<&String> = index.weight_map.values().collect();
                shards.into_iter().map(|shard| dir.join(shard)).collect()
            }
        };

        let mut reader =
            WeightsReader { dir, files: Vec::with_capacity(paths.len()), located: HashMap::new() };
        for path in paths {
            let file = SafeFile::open(path)?;
            for name in file.names() {
                if reader.located.insert(name.to_owned(), reader.files.len()).is_some() {
                    let reason = format!("tensor `{name}` is in two of its files");
                    return Err(FileError::Index { path: index_path, reason });
                }
            }
            reader.files.push(file);
        }
        let listed = index.iter().flat_map(|index| &index.weight_map);
        for (name, shard) in listed {
            let found = reader.located.get(name).map(|&file| &reader.files[file].path);
            if found != Some(&reader.dir.join(shard)) {
                let reason = format!("tensor `{name}` is not in {shard}");
                return Err(FileError::Index { path: index_path, reason });
            }
        }
        Ok(reader)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The names of all tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.located.keys().map(String::as_str)
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.located.contains_key(name)
    }

    /// The shape of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.files[*self.located.get(name)?].shape(name)
    }

    /// How a tensor is stored, as [`SafeFile::format`] says.
    pub fn format(&self, name: &str) -> Option<Format> {
        self.files[*self.located.get(name)?].format(name)
    }

    /// A tensor's bytes, if there is one of that name.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.files[*self.located.get(name)?].bytes(name)
    }

    /// Reads a tensor as [`SafeFile::read_f32`] does.
    ///
    /// # Panics
    /// When `out` does not have `expected_shape`'s number of elements.
    pub fn read_f32(&self, name: &str, expected_shape: &[usize], out: &mut [f32]) -> Result<(), FileError> {
        let file = self
            .located
            .get(name)
            .ok_or_else(|| FileError::MissingTensor { path: self.dir.clone(), name: name.to_owned() })?;
        self.files[*file].read_f32(name, expected_shape, out)
    }
}

/// Compares tensors with those of a configuration.
pub fn compare(weights: &Weights, specs: &[TensorSpec]) -> TensorReport {
    let mut report = TensorReport::default();
    for spec in specs {
        match weights.shape(&spec.name) {
            None => report.missing.push(spec.name.clone()),
            Some(found) if found != spec.shape => {
                let (name, expected) = (&spec.name, &spec.shape);
                report.misshapen.push(format!("`{name}` is {found:?} instead of {expected:?}"));
            }
            Some(_) => {}
        }
    }
    let known: HashSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
    let main_layers = main_layers(specs);
    for name in weights.names().into_iter().filter(|name| !known.contains(name)) {
        if may_be_left_out(name, main_layers) {
            report.ignored.push(name.to_owned());
        } else {
            report.unexpected.push(name.to_owned());
        }
    }
    report.ignored.sort();
    report.unexpected.sort();
    report
}

/// Layers of the main model: those of `specs` before the first MTP layer.
fn main_layers(specs: &[TensorSpec]) -> usize {
    let is_mtp = |spec: &&TensorSpec| spec.name.ends_with(".eh_proj.weight");
    let first_mtp = specs.iter().find(is_mtp).and_then(|spec| spec.layer);
    let last = specs.iter().filter_map(|spec| spec.layer).max();
    first_mtp.or(last.map(|layer| layer + 1)).unwrap_or(0)
}

/// Tensors that a folder may hold beyond the listed ones without changing what the model computes: a
/// second copy of a tied or shared embedding or head, RoPE frequencies that old files stored, and MTP
/// layers that the configuration does not ask for.
fn may_be_left_out(name: &str, main_layers: usize) -> bool {
    if name == "lm_head.weight" || name.ends_with(".rotary_emb.inv_freq") {
        // lm_head gets here only where it is tied and a copy of the embedding.
        return true;
    }
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
    layer.and_then(|n| n.parse::<usize>().ok()).is_some_and(|n| n >= main_layers)
}

/// How a folder's tensors differ from those that its configuration lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TensorReport {
    /// Listed but not in the folder.
    pub missing: Vec<String>,
    /// In the folder with another shape: one readable line each.
    pub misshapen: Vec<String>,
    /// In the folder but unknown: the model probably computes something else than the configuration says.
    pub unexpected: Vec<String>,
    /// In the folder and rightly left out, such as a stored copy of a tied head.
    pub ignored: Vec<String>,
}

impl TensorReport {
    /// An error that names the first few differences, unless there are none that matter.
    pub fn check(&self, dir: &Path) -> Result<(), FileError> {
        let mut parts = Vec::new();
        let differences =
            [("missing", &self.missing), ("misshapen", &self.misshapen), ("unexpected", &self.unexpected)];
        for (what, names) in differences {
            if !names.is_empty() {
                let first: Vec<&str> = names.iter().take(3).map(String::as_str).collect();
                let more = if names.len() > 3 { ", ..." } else { "" };
                parts.push(format!("{} {what} ({}{more})", names.len(), first.join(", ")));
            }
        }
        if parts.is_empty() {
            return Ok(());
        }
        Err(FileError::Misfit { dir: dir.to_path_buf(), reason: parts.join("; ") })
    }
}

fn read_index(path: &Path) -> Result<Index, FileError> {
    let bad = |reason: String| FileError::Index { path: path.to_path_buf(), reason };
    let found = std::fs::metadata(path).map_err(FileError::io("read", path))?;
    if !found.is_file() {
        return Err(bad("it is no plain file".to_owned()));
    }
    let length = found.len();
    if length > MAX_INDEX_BYTES {
        return Err(bad(format!("it has {length} bytes; at most {MAX_INDEX_BYTES} are read")));
    }
    let text = std::fs::read(path).map_err(FileError::io("read", path))?;
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let index: Index = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
    let plain = |shard: &&String| {
        shard.ends_with(".safetensors") && !shard.contains(['/', '\\', '\0']) && !shard.starts_with('.')
    };
    if let Some(shard) = index.weight_map.values().find(|shard| !plain(shard)) {
        return Err(bad(format!("`{shard}` is not the name of a safetensors file in the same folder")));
    }
    if index.weight_map.is_empty() {
        return Err(bad("it lists no tensors".to_owned()));
    }
    Ok(index)
}

/// The error for a folder without safetensors: what it holds instead, if that is known.
fn no_weights(dir: &Path) -> FileError {
    const FOREIGN: [(&str, &str); 6] = [
        ("bin", "a PyTorch pickle, which can run code when opened"),
        ("pt", "a PyTorch pickle, which can run code when opened"),
        ("pth", "a PyTorch pickle, which can run code when opened"),
        ("gguf", "GGUF"),
        ("h5", "HDF5"),
        ("msgpack", "Flax"),
    ];
    let mut files: Vec<PathBuf> = match std::fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(source) => return FileError::io("read", dir)(source),
    };
    files.sort();
    for path in files {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
        if let Some(&(_, format)) = FOREIGN.iter().find(|(e, _)| *e == extension) {
            return FileError::ForeignFormat { path, format };
        }
    }
    FileError::NoWeights { dir: dir.to_path_buf() }
}
