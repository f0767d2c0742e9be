//! Writing a file: the head from what is known of the tensors, then their bytes one after the other.

use std::io::{self, Write};

use super::{ALIGNMENT, MAGIC, Value, kind};

/// What the head says of a tensor.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Its name.
    pub name: String,
    /// Its shape, the outermost dimension first.
    pub shape: Vec<usize>,
    /// ggml's number for the type of its blocks.
    pub kind: u32,
    /// Bytes that it takes.
    pub bytes: u64,
}

/// Writes a file of version 3. `bytes(i)` gives those of tensor `i`, one tensor at a time and in order.
///
/// # Errors
/// The system's.
///
/// # Panics
/// When a tensor's bytes are not as many as its outline says.
pub fn write(
    to: &mut impl Write,
    keys: &[(String, Value)],
    tensors: &[Outline],
    mut bytes: impl FnMut(usize) -> Vec<u8>,
) -> io::Result<()> {
    let mut head = Vec::new();
    head.extend(MAGIC);
    head.extend(3u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        text(&mut head, key);
        put(&mut head, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        text(&mut head, &tensor.name);
        head.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&n| head.extend((n as u64).to_le_bytes()));
        head.extend(tensor.kind.to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset = (offset + tensor.bytes).next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
    to.write_all(&head)?;
    for (i, tensor) in tensors.iter().enumerate() {
        let data = bytes(i);
        assert_eq!(data.len() as u64, tensor.bytes, "bytes of tensor {}", tensor.name);
        to.write_all(&data)?;
        let filled = tensor.bytes.next_multiple_of(ALIGNMENT) - tensor.bytes;
        to.write_all(&[0; ALIGNMENT as usize][..filled as usize])?;
    }
    Ok(())
}

fn text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

fn put(to: &mut Vec<u8>, value: &Value) {
    let list = |to: &mut Vec<u8>, kind: u32, n: usize| {
        to.extend(kind::LIST.to_le_bytes());
        to.extend(kind.to_le_bytes());
        to.extend((n as u64).to_le_bytes());
    };
    match value {
        Value::Int(n) => match (u32::try_from(*n), i32::try_from(*n)) {
            (Ok(n), _) => {
                to.extend(kind::U32.to_le_bytes());
                to.extend(n.to_le_bytes());
            }
            (_, Ok(n)) => {
                to.extend(kind::I32.to_le_bytes());
                to.extend(n.to_le_bytes());
            }
            _ => {
                to.extend(kind::I64.to_le_bytes());
                to.extend(n.to_le_bytes());
            }
        },
        Value::Float(x) => {
            to.extend(kind::F32.to_le_bytes());
            to.extend((*x as f32).to_le_bytes());
        }
        Value::Bool(b) => {
            to.extend(kind::BOOL.to_le_bytes());
            to.push(u8::from(*b));
        }
        Value::Text(s) => {
            to.extend(kind::TEXT.to_le_bytes());
            text(to, s);
        }
        Value::Ints(ints) => {
            let narrow: Option<Vec<i32>> = ints.iter().map(|&n| i32::try_from(n).ok()).collect();
            list(to, if narrow.is_some() { kind::I32 } else { kind::I64 }, ints.len());
            match narrow {
                Some(ints) => ints.iter().for_each(|n| to.extend(n.to_le_bytes())),
                None => ints.iter().for_each(|n| to.extend(n.to_le_bytes())),
            }
        }
        Value::Floats(floats) => {
            list(to, kind::F32, floats.len());
            floats.iter().for_each(|x| to.extend(x.to_le_bytes()));
        }
        Value::Bools(bools) => {
            list(to, kind::BOOL, bools.len());
            to.extend(bools.iter().map(|&b| u8::from(b)));
        }
        Value::Texts(texts) => {
            list(to, kind::TEXT, texts.len());
            texts.iter().for_each(|s| text(to, s));
        }
    }
}
