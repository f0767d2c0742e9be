//! How every file of somebody's text is opened: unpacked where it is gzip, without its byte order mark, and refused by
//! name where its first bytes say that it is something else.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use crate::error::io_error;
use crate::{DataError, Result};

/// Endings that compressed files have behind their own.
pub(crate) const PACKED: [&str; 7] = ["gz", "zst", "xz", "bz2", "lz4", "br", "zip"];

/// A packed file may unpack to so many times its size, and a little more. Text gives 3 to 10; only what was made for it gives
/// 1000, which would fill the memory of whoever reads it.
const MOST_TIMES: u64 = 200;
const LEAST_BYTES: u64 = 64 << 20;

/// First bytes of what is no text, and its name.
const FOREIGN: [(&[u8], &str); 10] = [
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"BZh", "compressed with bzip2"),
    (b"\x04\x22\x4d\x18", "compressed with lz4"),
    (b"\x02\x21\x4c\x18", "compressed with lz4"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PAR1", "a Parquet file without .parquet at the end of its name"),
    (b"%PDF-", "a PDF"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
];

/// What a packed file of this length may unpack to, in bytes.
pub(crate) fn most_bytes(length: u64) -> u64 {
    length.saturating_mul(MOST_TIMES).max(LEAST_BYTES)
}

/// What is said where it would be more.
pub(crate) fn unpacks_to_too_much() -> String {
    format!("it unpacks to more than {MOST_TIMES} times its size")
}

/// Opens a file as text.
///
/// # Errors
/// A file that cannot be opened, or that is known to be something else.
pub fn open_text(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let length = file.metadata().ok().filter(|m| m.is_file()).map(|m| m.len());
    let foreign = |found| DataError::Foreign { path: path.to_owned(), found };
    let (start, rest) = beginning(file).map_err(io_error("read", path))?;
    let is_gzip = start.starts_with(b"\x1f\x8b");
    let whole = Cursor::new(start).chain(rest);
    let (start, rest): (Vec<u8>, Box<dyn Read + Send>) = if is_gzip {
        let most = length.map_or(u64::MAX, most_bytes);
        let unpacked = Bounded { inner: MultiGzDecoder::new(BufReader::new(whole)), left: most };
        let (start, rest) = beginning(unpacked).map_err(io_error("read", path))?;
        (start, Box::new(rest))
    } else if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("br")) {
        // Brotli has no first bytes of its own.
        return Err(foreign("compressed with brotli"));
    } else {
        let (start, rest) = whole.into_inner();
        (start.into_inner(), Box::new(rest))
    };
    if let Some((_, found)) = FOREIGN.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err(foreign(found));
    }
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&start).to_vec();
    Ok(Box::new(BufReader::with_capacity(1 << 16, Cursor::new(text).chain(rest))))
}

/// The first bytes, by which a file is known, and what is behind them.
fn beginning<R: Read>(mut reader: R) -> io::Result<(Vec<u8>, R)> {
    let mut start = Vec::new();
    (&mut reader).take(8).read_to_end(&mut start)?;
    Ok((start, reader))
}

/// A reader that fails where more comes out of it than can be meant.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| io::Error::other(unpacks_to_too_much()))?;
        Ok(n)
    }
}
