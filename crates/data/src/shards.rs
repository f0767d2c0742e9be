//! Encoded text on disk: one file of tokens with an index of documents.
//!
//! A shard folder holds one file, `tokens.bin`. All numbers are little-endian:
//!
//! ```text
//! offset  bytes  field
//!      0      8  magic "SHOETOKS"
//!      8      4  format version, 1
//!     12      4  width of a token in bytes: 2 where the vocabulary has at most 65536 ids, else 4
//!     16      8  vocabulary size
//!     24      8  number of tokens
//!     32      8  number of documents
//!     40      4  CRC-32 of everything after the header
//!     44      4  CRC-32 of the 44 bytes before
//!     48      …  the tokens, then for each document the index of its first token, then the number of tokens
//! ```

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::atomic::AtomicFile;
use crate::error::io_error;
use crate::{DataError, Result};

const FILE_NAME: &str = "tokens.bin";
const MAGIC: [u8; 8] = *b"SHOETOKS";
const VERSION: u32 = 1;
const HEADER: usize = 48;

/// Writes a shard, document by document; nothing is visible under the final name before [`ShardWriter::finish`].
pub struct ShardWriter {
    file: AtomicFile,
    header: Header,
    starts: Vec<u64>,
    crc: crc32fast::Hasher,
    bytes: Vec<u8>,
}

impl ShardWriter {
    /// Starts a shard in a folder, which is made where missing.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn create(dir: &Path, vocab_size: usize) -> Result<ShardWriter> {
        Ok(ShardWriter {
            file: {
                let mut file = AtomicFile::create(&dir.join(FILE_NAME))?;
                file.write(&[0; HEADER])?;
                file
            },
            header: Header {
                width: width_of(vocab_size as u64),
                vocab_size: vocab_size as u64,
                tokens: 0,
                documents: 0,
                body_crc: 0,
            },
            starts: Vec::new(),
            crc: crc32fast::Hasher::new(),
            bytes: Vec::new(),
        })
    }

    /// Appends a document; an empty one is kept as such.
    ///
    /// # Errors
    /// An id outside of the vocabulary (the document is then not appended), or a full disk.
    pub fn push_document(&mut self, ids: &[u32]) -> Result<()> {
        if let Some(position) = ids.iter().position(|&id| u64::from(id) >= self.header.vocab_size) {
            return Err(DataError::TokenRange {
                document: self.header.documents,
                position,
                found: ids[position],
                vocab_size: self.header.vocab_size as usize,
            });
        }
        self.bytes.clear();
        for id in ids {
            self.bytes.extend_from_slice(&id.to_le_bytes()[..self.header.width as usize]);
        }
        self.starts.push(self.header.tokens);
        self.header.tokens += ids.len() as u64;
        self.header.documents += 1;
        self.crc.update(&self.bytes);
        self.file.write(&self.bytes)
    }

    /// Tokens so far.
    pub fn len_tokens(&self) -> u64 {
        self.header.tokens
    }

    /// Completes the file and gives it its final name, durably.
    ///
    /// # Errors
    /// A full disk; the former shard of the folder, if any, then remains.
    pub fn finish(mut self) -> Result<()> {
        self.starts.push(self.header.tokens);
        for block in self.starts.chunks(8192) {
            self.bytes.clear();
            for start in block {
                self.bytes.extend_from_slice(&start.to_le_bytes());
            }
            self.crc.update(&self.bytes);
            self.file.write(&self.bytes)?;
        }
        self.header.body_crc = self.crc.finalize();
        let header = self.header.to_bytes();
        self.file.commit_with(|file| {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&header)
        })
    }
}

/// An open shard. Documents are read from the file when asked for; threads may share it.
#[derive(Debug)]
pub struct Shards {
    path: PathBuf,
    file: File,
    header: Header,
    /// The index of each document's first token, and the number of tokens.
    starts: Vec<u64>,
}

impl Shards {
    /// Opens a shard and checks it whole: sizes against the file's length before memory is asked for, then both
    /// checksums, every token against the vocabulary and the order of the index. Reads the file once.
    ///
    /// # Errors
    /// A missing file, or the part of it that is wrong.
    pub fn open(dir: &Path) -> Result<Shards> {
        let path = dir.join(FILE_NAME);
        let mut file = File::open(&path).map_err(io_error("open", &path))?;
        let length = file.metadata().map_err(io_error("read", &path))?.len();
        let wrong = |field, found: String, expected: String| DataError::Shard {
            path: path.clone(),
            field,
            found,
            expected,
        };
        if length < HEADER as u64 {
            return Err(wrong("length", format!("{length} bytes"), format!("at least {HEADER}")));
        }
        let mut bytes = [0u8; HEADER];
        file.read_exact(&mut bytes).map_err(io_error("read", &path))?;
        let header =
            Header::from_bytes(&bytes).map_err(|(field, found, expected)| wrong(field, found, expected))?;
        let expected = header.file_length();
        if expected != Some(length) {
            let expected = expected.map_or("a possible size".to_owned(), |n| format!("{n} bytes"));
            return Err(wrong("length", format!("{length} bytes"), expected));
        }
        let starts = check_body(&mut file, &header)
            .map_err(io_error("read", &path))?
            .map_err(|(field, found, expected)| wrong(field, found, expected))?;
        Ok(Shards { path, file, header, starts })
    }

    /// The size of the vocabulary that the tokens belong to.
    pub fn vocab_size(&self) -> usize {
        self.header.vocab_size as usize
    }

    /// Tokens in all.
    pub fn len_tokens(&self) -> u64 {
        self.header.tokens
    }

    /// Documents in all.
    pub fn len_documents(&self) -> u64 {
        self.header.documents
    }

    /// The length of a document in tokens, without reading it.
    ///
    /// # Errors
    /// A document that does not exist.
    pub fn document_len(&self, index: u64) -> Result<usize> {
        self.range(index).map(|(start, end)| (end - start) as usize)
    }

    /// The tokens of a document.
    ///
    /// # Errors
    /// A document that does not exist, or a file that was cut short since it was opened.
    pub fn document(&self, index: u64) -> Result<Vec<u32>> {
        let (start, end) = self.range(index)?;
        let width = self.header.width as usize;
        let mut bytes = vec![0u8; (end - start) as usize * width];
        read_exact_at(&self.file, &mut bytes, HEADER as u64 + start * width as u64)
            .map_err(io_error("read", &self.path))?;
        Ok(tokens_of(&bytes, width).collect())
    }

    fn range(&self, index: u64) -> Result<(u64, u64)> {
        if index >= self.header.documents {
            return Err(DataError::NoDocument { index, documents: self.header.documents });
        }
        Ok((self.starts[index as usize], self.starts[index as usize + 1]))
    }
}

type Wrong = (&'static str, String, String);

#[derive(Clone, Copy, Debug)]
struct Header {
    width: u32,
    vocab_size: u64,
    tokens: u64,
    documents: u64,
    body_crc: u32,
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0u8; HEADER];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.width.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.vocab_size.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.tokens.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.documents.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..44]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER]) -> std::result::Result<Header, Wrong> {
        let four = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let eight = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if bytes[..8] != MAGIC {
            let found = String::from_utf8_lossy(&bytes[..8]).into_owned();
            return Err(("magic", format!("{found:?}"), "\"SHOETOKS\"".to_owned()));
        }
        if four(8) != VERSION {
            return Err(("version", four(8).to_string(), VERSION.to_string()));
        }
        let crc = crc32fast::hash(&bytes[..44]);
        if four(44) != crc {
            return Err(("header checksum", format!("{:08x}", four(44)), format!("{crc:08x}")));
        }
        let header = Header {
            width: four(12),
            vocab_size: eight(16),
            tokens: eight(24),
            documents: eight(32),
            body_crc: four(40),
        };
        let width = width_of(header.vocab_size);
        if header.width != width {
            return Err(("token width", header.width.to_string(), width.to_string()));
        }
        Ok(header)
    }

    /// The length the file has to have, or `None` where the counts fit no file.
    fn file_length(&self) -> Option<u64> {
        let tokens = self.tokens.checked_mul(u64::from(self.width))?;
        let index = self.documents.checked_add(1)?.checked_mul(8)?;
        tokens.checked_add(index)?.checked_add(HEADER as u64)
    }
}

fn width_of(vocab_size: u64) -> u32 {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

fn tokens_of(bytes: &[u8], width: usize) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(width).map(|token| {
        let mut four = [0u8; 4];
        four[..token.len()].copy_from_slice(token);
        u32::from_le_bytes(four)
    })
}

/// Reads everything after the header once and returns the index.
fn check_body(file: &mut File, header: &Header) -> io::Result<std::result::Result<Vec<u64>, Wrong>> {
    let width = header.width as usize;
    let mut crc = crc32fast::Hasher::new();
    let mut buffer = vec![0u8; 1 << 20];
    let mut left = header.tokens * u64::from(header.width);
    let mut largest = None;
    while left > 0 {
        let block = &mut buffer[..left.min(1 << 20) as usize];
        file.read_exact(block)?;
        crc.update(block);
        largest = largest.max(tokens_of(block, width).max());
        left -= block.len() as u64;
    }
    // The header's counts were checked against the file's length, so this is bounded by it.
    let mut starts = Vec::with_capacity(header.documents as usize + 1);
    let mut left = (header.documents + 1) * 8;
    while left > 0 {
        let block = &mut buffer[..left.min(1 << 20) as usize];
        file.read_exact(block)?;
        crc.update(block);
        starts.extend(block.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes"))));
        left -= block.len() as u64;
    }
    let crc = crc.finalize();
    if crc != header.body_crc {
        let expected = format!("{:08x}", header.body_crc);
        return Ok(Err(("checksum", format!("{crc:08x}"), expected)));
    }
    if let Some(id) = largest.filter(|&id| u64::from(id) >= header.vocab_size) {
        let expected = format!("below {}", header.vocab_size);
        return Ok(Err(("largest token id", id.to_string(), expected)));
    }
    let ends = (starts.first(), starts.last()) == (Some(&0), Some(&header.tokens));
    if !ends || !starts.is_sorted() {
        let expected = format!("ascending from 0 to {}", header.tokens);
        return Ok(Err(("document index", "out of order".to_owned(), expected)));
    }
    Ok(Ok(starts))
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let read = std::os::windows::fs::FileExt::seek_read(file, buffer, offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[read..];
        offset += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
