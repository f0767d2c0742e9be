//! GGUF, the file format of llama.cpp: typed key-values and a table of tensors, then the tensors' bytes.
//!
//! Here is the container alone: `tensor` knows what the bytes of a block mean, `model` and `data` what the keys do. The
//! layout is that of `docs/gguf.md` of the ggml project, versions 2 and 3, little-endian. A file comes from a stranger:
//! every count and length is held against the bytes that are left before anything is allocated for it.

mod read;
mod write;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use read::read;
pub use write::{Outline, write};

/// The first four bytes of every such file.
pub const MAGIC: &[u8; 4] = b"GGUF";
/// Tensors begin at multiples of this unless the file says otherwise.
pub const ALIGNMENT: u64 = 32;
/// The key that says otherwise.
const ALIGNMENT_KEY: &str = "general.alignment";

/// Whether a path is such a file: by its ending or by its first bytes.
pub fn is_gguf(path: &Path) -> bool {
    if !path.is_file() {
        return false;
    }
    let begins = || {
        let mut magic = [0; 4];
        File::open(path).ok()?.read_exact(&mut magic).ok()?;
        Some(&magic == MAGIC)
    };
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) || begins().unwrap_or(false)
}

/// The value of a key. Widths of numbers are forgotten: whole numbers are written as `u32` (`i32` where negative) if they
/// fit, others as `f32`.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number.
    Int(i64),
    /// A number with a fraction. One that was an `f32` is the double that prints like it.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list of whole numbers.
    Ints(Vec<i64>),
    /// A list of numbers.
    Floats(Vec<f32>),
    /// A list of true and false.
    Bools(Vec<bool>),
    /// A list of texts.
    Texts(Vec<String>),
}

/// Keys and their values, in a file's order.
pub type Keys = Vec<(String, Value)>;

/// One tensor's line in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its shape with the outermost dimension first (the file has them the other way round).
    pub shape: Vec<usize>,
    /// ggml's number for the type of its blocks.
    pub kind: u32,
    /// Where its bytes begin, from the start of the file.
    pub begin: u64,
}

/// A file's keys and tensors, in its order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gguf {
    /// The keys.
    pub keys: Keys,
    /// The tensors.
    pub tensors: Vec<Entry>,
}

impl Gguf {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }
    /// A whole number.
    pub fn int(&self, key: &str) -> Result<Option<i64>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Int(n)) => Ok(Some(*n)),
            Some(other) => Err(wrong(key, other, "a whole number")),
        }
    }
    /// A number.
    pub fn float(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Int(n)) => Ok(Some(*n as f64)),
            Some(Value::Float(x)) => Ok(Some(*x)),
            Some(other) => Err(wrong(key, other, "a number")),
        }
    }
    /// True or false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(wrong(key, other, "true or false")),
        }
    }
    /// Text.
    pub fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(key, other, "text")),
        }
    }
    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Texts(list)) => Ok(Some(list)),
            Some(other) => Err(wrong(key, other, "a list of texts")),
        }
    }
    /// A list of whole numbers.
    pub fn ints(&self, key: &str) -> Result<Option<&[i64]>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Ints(list)) => Ok(Some(list)),
            Some(other) => Err(wrong(key, other, "a list of whole numbers")),
        }
    }
    /// A list of numbers.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Floats(list)) => Ok(Some(list)),
            Some(other) => Err(wrong(key, other, "a list of numbers")),
        }
    }
}

fn wrong(key: &str, found: &Value, expected: &str) -> Error {
    let found = match found {
        Value::Int(n) => n.to_string(),
        Value::Float(x) => x.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Text(_) => "text".to_owned(),
        Value::Ints(_) | Value::Floats(_) | Value::Bools(_) | Value::Texts(_) => "a list".to_owned(),
    };
    Error::Malformed(format!("its key `{key}` is {found}, expected {expected}"))
}

/// Why a file could not be read as GGUF.
#[derive(Debug)]
pub enum Error {
    /// The system refused.
    Io(std::io::Error),
    /// The file ends before what it announces.
    Truncated {
        /// What was being read.
        what: String,
        /// How many bytes that takes.
        needs: u64,
        /// How many are left.
        left: u64,
    },
    /// The file contradicts itself or the format.
    Malformed(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(error) => write!(f, "it cannot be read: {error}"),
            Error::Truncated { what, needs, left } => {
                write!(f, "it is cut short: {what} takes {needs} bytes, of which {left} are there")
            }
            Error::Malformed(problem) => f.write_str(problem),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(error) => Some(error),
            _ => None,
        }
    }
}

/// The numbers of value types.
mod kind {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const TEXT: u32 = 8;
    pub(super) const LIST: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;

    /// Bytes of one value of a type; a text has at least its length.
    pub(super) fn bytes(kind: u32) -> Option<u64> {
        Some(match kind {
            U8 | I8 | BOOL => 1,
            U16 | I16 => 2,
            U32 | I32 | F32 => 4,
            TEXT | U64 | I64 | F64 => 8,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests;
