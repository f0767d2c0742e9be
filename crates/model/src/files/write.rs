//! Writing weights as safetensors, in one file or in shards.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use ground::atomic::{self, PendingFile};
use half::bf16;
use serde_json::{Map, Value, json};

use super::FileError;
use super::weights::{INDEX_FILE, SINGLE_FILE};

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    /// Four bytes, exact.
    F32,
    /// Two bytes, rounded to nearest even. `e_score_correction_bias` stays in f32, as `transformers` keeps it.
    Bf16,
}

impl WeightType {
    /// The name in a safetensors header.
    fn safetensors(self) -> &'static str {
        match self {
            WeightType::F32 => "F32",
            WeightType::Bf16 => "BF16",
        }
    }

    fn bytes(self) -> u64 {
        match self {
            WeightType::F32 => 4,
            WeightType::Bf16 => 2,
        }
    }

    /// The type that a tensor is stored in when the file is asked to be of this one.
    fn of(self, name: &str) -> WeightType {
        if name.ends_with(".e_score_correction_bias") { WeightType::F32 } else { self }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenWeights {
    /// The files, in order; one, or several with an index besides.
    pub files: Vec<String>,
    /// Bytes of tensor data in all of them.
    pub bytes: u64,
}

/// One tensor to write, with the type that it will have.
struct Item<'a> {
    name: &'a str,
    shape: &'a [usize],
    data: &'a [f32],
    dtype: WeightType,
}

impl Item<'_> {
    fn bytes(&self) -> u64 {
        self.data.len() as u64 * self.dtype.bytes()
    }
}

/// Writes the weights of a model folder: `model.safetensors`, or shards of at most `max_shard_bytes` (a
/// tensor larger than that has a shard of its own) with `model.safetensors.index.json`. Tensors are
/// `(name, shape, values)`.
///
/// Every file is written under a temporary name, synced and only then renamed; weights that were in the
/// folder before are replaced. If it fails or is killed, the folder holds the old weights, the new ones, or
/// shards without an index (refused when read), never a mixture.
///
/// # Panics
/// When the values of a tensor are not as many as its shape says.
pub fn write_weights<'a>(
    dir: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a [usize], &'a [f32])>,
    dtype: WeightType,
    max_shard_bytes: u64,
) -> Result<WrittenWeights, FileError> {
    let shards = plan(tensors, dtype, max_shard_bytes)?;
    let count = shards.len();
    let file_name = |i: usize| match count {
        1 => SINGLE_FILE.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    };

    let mut pending = Vec::with_capacity(count);
    let mut weight_map = Map::new();
    let mut bytes = 0;
    for (i, shard) in shards.iter().enumerate() {
        let path = dir.join(file_name(i));
        let written = PendingFile::write(&path, |file| write_shard(file, shard, None));
        pending.push(written.map_err(FileError::io("write", &path))?);
        for item in shard {
            weight_map.insert(item.name.to_owned(), file_name(i).into());
            bytes += item.bytes();
        }
    }

    let files: Vec<String> = (0..count).map(file_name).collect();
    if count > 1 {
        // An index left over would join new shards to old ones.
        remove(&dir.join(INDEX_FILE))?;
        sync(dir)?;
    }
    pending.into_iter().try_for_each(PendingFile::publish).map_err(FileError::io("write", dir))?;
    sync(dir)?;
    if count > 1 {
        let index = json!({ "metadata": { "total_size": bytes }, "weight_map": weight_map });
        let path = dir.join(INDEX_FILE);
        let written = atomic::replace(&path, format!("{index:#}\n").as_bytes());
        written.map_err(FileError::io("write", &path))?;
        // A single file has precedence when read: until here it kept the old weights readable.
        remove(&dir.join(SINGLE_FILE))?;
    } else {
        remove(&dir.join(INDEX_FILE))?;
    }
    remove_stale_shards(dir, &files)?;
    sync(dir)?;
    Ok(WrittenWeights { files, bytes })
}

/// Writes an adapter's safetensors file, in f32 and under a temporary name first, with the mark of the model that it belongs to.
pub(crate) fn write_adapter<'a>(
    path: &Path,
    base_mark: &str,
    tensors: impl IntoIterator<Item = (&'a str, &'a [usize], &'a [f32])>,
) -> Result<(), FileError> {
    let shards = plan(tensors, WeightType::F32, u64::MAX)?;
    let fill =
        |file: &mut File| shards.iter().try_for_each(|shard| write_shard(file, shard, Some(base_mark)));
    atomic::replace_with(path, fill).map_err(FileError::io("write", path))
}

/// Divides tensors among files, in order, and refuses what must not be written.
fn plan<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a [usize], &'a [f32])>,
    dtype: WeightType,
    max_shard_bytes: u64,
) -> Result<Vec<Vec<Item<'a>>>, FileError> {
    let mut shards: Vec<Vec<Item>> = vec![Vec::new()];
    let mut filled = 0;
    let mut seen = HashSet::new();
    for (name, shape, data) in tensors {
        assert_eq!(
            data.len(),
            shape.iter().product::<usize>(),
            "write_weights: `{name}` has not as many values as its shape {shape:?}"
        );
        if !seen.insert(name) {
            return Err(FileError::DuplicateTensor { name: name.to_owned() });
        }
        let item = Item { name, shape, data, dtype: dtype.of(name) };
        refuse_not_finite(&item)?;
        let bytes = item.bytes();
        if filled > 0 && filled + bytes > max_shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        shards.last_mut().expect("starts with one shard").push(item);
    }
    // f32 first, so that every tensor starts at a multiple of its element's size.
    for shard in &mut shards {
        shard.sort_by_key(|item| std::cmp::Reverse(item.dtype.bytes()));
    }
    Ok(shards)
}

fn refuse_not_finite(item: &Item) -> Result<(), FileError> {
    let stored_finite = |x: f32| match item.dtype {
        WeightType::F32 => x.is_finite(),
        WeightType::Bf16 => bf16::from_f32(x).is_finite(),
    };
    match item.data.iter().position(|&x| !stored_finite(x)) {
        None => Ok(()),
        Some(index) => {
            Err(FileError::NotFinite { name: item.name.to_owned(), index, value: item.data[index] })
        }
    }
}

fn write_shard(file: &mut File, items: &[Item], base_mark: Option<&str>) -> std::io::Result<()> {
    let mut header = Map::new();
    // What frameworks look for before they accept a file.
    let mut metadata = json!({ "format": "pt" });
    if let Some(mark) = base_mark {
        metadata["base_mark"] = mark.into();
    }
    header.insert("__metadata__".to_owned(), metadata);
    let mut begin = 0;
    for item in items {
        let end = begin + item.bytes();
        let dtype = item.dtype.safetensors();
        let entry = json!({ "dtype": dtype, "shape": item.shape, "data_offsets": [begin, end] });
        header.insert(item.name.to_owned(), entry);
        begin = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;

    let mut buffer = Vec::with_capacity(1 << 20);
    for item in items {
        for chunk in item.data.chunks(1 << 18) {
            buffer.clear();
            match item.dtype {
                WeightType::F32 => buffer.extend(chunk.iter().flat_map(|x| x.to_le_bytes())),
                WeightType::Bf16 => {
                    buffer.extend(chunk.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()));
                }
            }
            file.write_all(&buffer)?;
        }
    }
    Ok(())
}

/// Removes shards of an earlier, differently divided model.
fn remove_stale_shards(dir: &Path, current: &[String]) -> Result<(), FileError> {
    let entries = std::fs::read_dir(dir).map_err(FileError::io("read", dir))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_shard_name(&name) && !current.contains(&name) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// `model-00001-of-00002.safetensors`
fn is_shard_name(name: &str) -> bool {
    let number = |part: &str| part.len() == 5 && part.bytes().all(|b| b.is_ascii_digit());
    let middle = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    middle.and_then(|m| m.split_once("-of-")).is_some_and(|(i, n)| number(i) && number(n))
}

fn remove(path: &Path) -> Result<(), FileError> {
    atomic::remove(path).map_err(FileError::io("remove", path))
}

fn sync(dir: &Path) -> Result<(), FileError> {
    atomic::sync_folder(dir).map_err(FileError::io("write", dir))
}
