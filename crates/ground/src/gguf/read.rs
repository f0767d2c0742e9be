//! Reading the head of a file: its keys and its table of tensors.

use std::collections::HashSet;
use std::io::Read;

use super::{ALIGNMENT, ALIGNMENT_KEY, Entry, Error, Gguf, MAGIC, Value, kind};

/// The most keys of a file; published ones have some 50.
const MAX_KEYS: u64 = 1 << 16;
/// The most tensors of a file.
const MAX_TENSORS: u64 = 1 << 20;
/// The longest list: no vocabulary is larger.
const MAX_LIST: u64 = 1 << 24;
/// The longest text; the longest published templates have some 20 thousand bytes.
const MAX_TEXT: u64 = 1 << 24;
/// The longest name of a key or tensor.
const MAX_NAME: u64 = 1 << 16;
/// The most dimensions of a tensor in this format.
const MAX_RANK: u32 = 4;

/// Reads the head of a file of `len` bytes; nothing of the tensors' bytes. Where each tensor begins is checked to lie in the
/// file, but how long it is only its type can tell, which is not known here.
///
/// # Errors
/// What is no GGUF file of version 2 or 3, is cut short, or contradicts itself.
pub fn read(from: &mut impl Read, len: u64) -> Result<Gguf, Error> {
    let mut source = Source { from, at: 0, len };
    let magic = source.array::<4>("its magic number")?;
    if &magic != MAGIC {
        return Err(Error::Malformed("it does not begin with the letters GGUF".into()));
    }
    let version = source.u32("its version")?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 2 | 3) => {
            return Err(Error::Malformed("it is big-endian; little-endian files are supported".into()));
        }
        _ => {
            return Err(Error::Malformed(format!(
                "it is of version {version}; versions 2 and 3 are supported"
            )));
        }
    }
    let tensors = source.count("its number of tensors", MAX_TENSORS, 8 + 4 + 8 + 4 + 8)?;
    let keys = source.count("its number of keys", MAX_KEYS, 8 + 4 + 1)?;
    let mut gguf = Gguf { keys: Vec::with_capacity(keys), tensors: Vec::with_capacity(tensors) };
    let mut seen = HashSet::new();
    for i in 0..keys {
        let key = source.text(&format!("the name of key {}", i + 1), MAX_NAME)?;
        let value = source.value(&key)?;
        if !seen.insert(key.clone()) {
            return Err(Error::Malformed(format!("it has the key `{key}` twice")));
        }
        gguf.keys.push((key, value));
    }
    seen.clear();
    for i in 0..tensors {
        let entry = source.entry(i)?;
        if !seen.insert(entry.name.clone()) {
            return Err(Error::Malformed(format!("it has the tensor `{}` twice", entry.name)));
        }
        gguf.tensors.push(entry);
    }
    let alignment = gguf.int(ALIGNMENT_KEY)?.unwrap_or(ALIGNMENT as i64);
    let alignment = u64::try_from(alignment).ok().filter(|a| a.is_power_of_two() && *a <= 1 << 20);
    let alignment = alignment
        .ok_or_else(|| Error::Malformed(format!("its `{ALIGNMENT_KEY}` is no power of two up to 2^20")))?;
    let start = source.at.next_multiple_of(alignment);
    for entry in &mut gguf.tensors {
        if !entry.begin.is_multiple_of(alignment) {
            return Err(Error::Malformed(format!(
                "tensor `{}` begins at no multiple of {alignment}",
                entry.name
            )));
        }
        entry.begin = start.checked_add(entry.begin).filter(|at| *at <= len).ok_or_else(|| {
            Error::Malformed(format!(
                "tensor `{}` begins behind the end of the file: was it cut short?",
                entry.name
            ))
        })?;
    }
    Ok(gguf)
}

/// Bytes that are asked for only where they are there.
struct Source<'a, R> {
    from: &'a mut R,
    at: u64,
    len: u64,
}

impl<R: Read> Source<'_, R> {
    fn left(&self) -> u64 {
        self.len - self.at
    }

    fn ensure(&self, what: &str, needs: u64) -> Result<(), Error> {
        let left = self.left();
        if needs <= left { Ok(()) } else { Err(Error::Truncated { what: what.to_owned(), needs, left }) }
    }

    fn bytes(&mut self, what: &str, n: u64) -> Result<Vec<u8>, Error> {
        self.ensure(what, n)?;
        let mut bytes = vec![0; n as usize];
        self.from.read_exact(&mut bytes).map_err(Error::Io)?;
        self.at += n;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        self.ensure(what, N as u64)?;
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(Error::Io)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A number of things that take at least `each` bytes.
    fn count(&mut self, what: &str, most: u64, each: u64) -> Result<usize, Error> {
        let n = self.u64(what)?;
        if n > most {
            return Err(Error::Malformed(format!("{what} is {n}, expected at most {most}")));
        }
        self.ensure(&format!("{what}, {n},"), n * each)?;
        Ok(n as usize)
    }

    fn text(&mut self, what: &str, most: u64) -> Result<String, Error> {
        let n = self.u64(what)?;
        if n > most {
            return Err(Error::Malformed(format!("{what} has {n} bytes, expected at most {most}")));
        }
        String::from_utf8(self.bytes(what, n)?).map_err(|_| Error::Malformed(format!("{what} is not UTF-8")))
    }

    fn value(&mut self, key: &str) -> Result<Value, Error> {
        let what = format!("the value of `{key}`");
        let kind = self.u32(&what)?;
        match kind {
            kind::TEXT => Ok(Value::Text(self.text(&what, MAX_TEXT)?)),
            kind::BOOL => Ok(Value::Bool(self.array::<1>(&what)? != [0])),
            kind::F32 | kind::F64 => Ok(Value::Float(self.float(kind, &what)?)),
            kind::LIST => {
                let kind = self.u32(&what)?;
                let each = kind::bytes(kind).ok_or_else(|| {
                    Error::Malformed(format!("{what} is a list of the unknown type {kind}"))
                })?;
                let n = self.count(&format!("the length of {what}"), MAX_LIST, each)?;
                Ok(match kind {
                    kind::TEXT => {
                        Value::Texts((0..n).map(|_| self.text(&what, MAX_TEXT)).collect::<Result<_, _>>()?)
                    }
                    kind::BOOL => {
                        Value::Bools(self.bytes(&what, n as u64)?.iter().map(|b| *b != 0).collect())
                    }
                    kind::F32 | kind::F64 => Value::Floats(
                        (0..n).map(|_| Ok(self.float(kind, &what)? as f32)).collect::<Result<_, _>>()?,
                    ),
                    _ => Value::Ints((0..n).map(|_| self.int(kind, &what)).collect::<Result<_, _>>()?),
                })
            }
            _ => Ok(Value::Int(self.int(kind, &what)?)),
        }
    }

    fn float(&mut self, kind: u32, what: &str) -> Result<f64, Error> {
        if kind == kind::F64 {
            return Ok(f64::from_le_bytes(self.array(what)?));
        }
        let x = f32::from_le_bytes(self.array(what)?);
        // The double that prints like the float: 0.00001 and not 0.000009999999747378752.
        Ok(x.to_string().parse().unwrap_or(f64::from(x)))
    }

    fn int(&mut self, kind: u32, what: &str) -> Result<i64, Error> {
        Ok(match kind {
            kind::U8 => self.array::<1>(what)?[0].into(),
            kind::I8 => i8::from_le_bytes(self.array(what)?).into(),
            kind::U16 => u16::from_le_bytes(self.array(what)?).into(),
            kind::I16 => i16::from_le_bytes(self.array(what)?).into(),
            kind::U32 => self.u32(what)?.into(),
            kind::I32 => i32::from_le_bytes(self.array(what)?).into(),
            kind::I64 => i64::from_le_bytes(self.array(what)?),
            kind::U64 => {
                let n = self.u64(what)?;
                i64::try_from(n)
                    .map_err(|_| Error::Malformed(format!("{what} is {n}, which is too large")))?
            }
            _ => return Err(Error::Malformed(format!("{what} is of the unknown type {kind}"))),
        })
    }

    fn entry(&mut self, i: usize) -> Result<Entry, Error> {
        let name = self.text(&format!("the name of tensor {}", i + 1), MAX_NAME)?;
        let what = format!("the line of tensor `{name}`");
        let rank = self.u32(&what)?;
        if !(1..=MAX_RANK).contains(&rank) {
            return Err(Error::Malformed(format!(
                "tensor `{name}` has {rank} dimensions, expected 1 to {MAX_RANK}"
            )));
        }
        let mut shape = Vec::with_capacity(rank as usize);
        for _ in 0..rank {
            let n = self.u64(&what)?;
            let n = usize::try_from(n).ok().filter(|&n| n > 0);
            shape.push(
                n.ok_or_else(|| Error::Malformed(format!("tensor `{name}` has an impossible dimension")))?,
            );
        }
        shape.reverse();
        if shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_none() {
            return Err(Error::Malformed(format!("tensor `{name}` has more elements than can be counted")));
        }
        let kind = self.u32(&what)?;
        Ok(Entry { name, shape, kind, begin: self.u64(&what)? })
    }
}
