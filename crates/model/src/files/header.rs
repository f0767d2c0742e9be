//! The header of a safetensors file: eight bytes of length, then JSON that names every tensor.
//!
//! Parsed here, and not by the `safetensors` crate, so that a hostile header costs memory in proportion to
//! its length only; the tests read and write with that crate on the other side.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use super::FileError;

/// Longest header that is read: room for more than a hundred thousand tensors.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Deepest shape that is read; weights have one or two dimensions.
const MAX_RANK: usize = 8;
const LENGTH_BYTES: usize = 8;

/// Where a tensor lies in its file and what it holds.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Bytes from the start of the file, checked to lie within it.
    pub(super) begin: usize,
    pub(super) end: usize,
}

/// What a file says of its tensors.
pub(super) struct Header {
    pub(super) entries: HashMap<String, Entry>,
    /// Of an adapter from here: the mark of the model that it was trained beside.
    pub(super) base_mark: Option<String>,
}

/// What is read of the metadata.
#[derive(Deserialize)]
struct Metadata {
    base_mark: Option<String>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;
        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a shape of at most {MAX_RANK} dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::with_capacity(2);
                while let Some(size) = seq.next_element::<usize>()? {
                    if shape.len() == MAX_RANK {
                        return Err(serde::de::Error::invalid_length(MAX_RANK + 1, &self));
                    }
                    shape.push(size);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct RawHeader(HashMap<String, RawEntry>, Option<String>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let (mut entries, mut base_mark) = (HashMap::new(), None);
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        base_mark = map.next_value::<Option<Metadata>>()?.and_then(|found| found.base_mark);
                        continue;
                    }
                    let entry = map.next_value::<RawEntry>()?;
                    if let Some(_twice) = entries.insert(name, entry) {
                        return Err(serde::de::Error::custom("a tensor is listed twice"));
                    }
                }
                Ok(RawHeader(entries, base_mark))
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Parses and checks the header of a whole file: offsets within the file, lengths equal to shape times
/// type, no overlap, no gap, nothing after the last tensor.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Header, FileError> {
    let bad = |reason: String| FileError::Header { path: path.to_path_buf(), reason };
    if let Some(format) = foreign_format(file) {
        return Err(FileError::ForeignFormat { path: path.to_path_buf(), format });
    }
    let truncated =
        |expected: u64| FileError::Truncated { path: path.to_path_buf(), expected, found: file.len() as u64 };
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(truncated(LENGTH_BYTES as u64));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(bad(format!("its header claims {length} bytes; at most {MAX_HEADER_BYTES} are read")));
    }
    let Some((json, data)) = rest.split_at_checked(length as usize) else {
        return Err(truncated(LENGTH_BYTES as u64 + length));
    };
    let RawHeader(raw, base_mark) =
        serde_json::from_slice(json).map_err(|error| bad(format!("its header: {error}")))?;

    let data_start = LENGTH_BYTES + json.len();
    let mut spans = Vec::with_capacity(raw.len());
    let mut entries = HashMap::with_capacity(raw.len());
    for (name, RawEntry { dtype, shape: Shape(shape), data_offsets: (begin, end) }) in raw {
        let bits = shape.iter().try_fold(dtype.bitsize() as u64, |bits, &size| bits.checked_mul(size as u64));
        let fits = bits.is_some_and(|bits| bits % 8 == 0 && end.checked_sub(begin) == Some(bits / 8));
        if !fits {
            let reason = format!(
                "tensor `{name}` of type {dtype} and shape {shape:?} does not fill bytes {begin}..{end}"
            );
            return Err(bad(reason));
        }
        if end > data.len() as u64 {
            return Err(truncated((data_start as u64).saturating_add(end)));
        }
        spans.push((begin, end));
        let (begin, end) = (data_start + begin as usize, data_start + end as usize);
        entries.insert(name, Entry { dtype, shape, begin, end });
    }

    spans.sort_unstable();
    let mut covered = 0;
    for (begin, end) in spans {
        if begin != covered {
            return Err(bad(format!("its tensors overlap or leave a gap at byte {covered} of the data")));
        }
        covered = end;
    }
    if covered != data.len() as u64 {
        let surplus = data.len() as u64 - covered;
        return Err(bad(format!("{surplus} bytes follow its last tensor")));
    }
    Ok(Header { entries, base_mark })
}

/// Names the format of files that people rename or mistake for safetensors.
fn foreign_format(file: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 5] = [
        (b"PK\x03\x04", "a PyTorch pickle, which can run code when opened"),
        (b"\x80\x02", "a PyTorch pickle, which can run code when opened"),
        (b"GGUF", "GGUF"),
        (b"\x89HDF", "HDF5"),
        (b"version https://git-lfs", "a Git LFS pointer without the file's contents"),
    ];
    let found = MAGICS.iter().find(|(magic, _)| file.starts_with(magic));
    found.map(|&(_, format)| format)
}
