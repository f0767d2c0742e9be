//! Records, one JSON object a line or one row of a Parquet file, read and written with exact places in the errors.

use std::io::{BufRead, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Result;
use crate::atomic::AtomicFile;
use crate::error::io_error;
use crate::input::open_text;
use crate::parquet_rows::ParquetRows;
use crate::place::Place;

/// The longest line that is read, in bytes: a guard against a file without line ends filling the memory.
pub const MAX_LINE_BYTES: u64 = 256 << 20;

/// Writes a JSONL file, one record per line, whole or not at all.
///
/// # Errors
/// A record that is not JSON (such as a map with keys that are not strings), or an unwritable file.
pub fn write_jsonl<'a, T: Serialize + 'a>(
    path: &Path,
    records: impl IntoIterator<Item = &'a T>,
) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    let mut place = Place::before_first(path, "line");
    for record in records {
        place.advance();
        let mut line = serde_json::to_vec(record)
            .map_err(|e| place.error(format!("the record cannot be written as JSON: {e}")))?;
        line.push(b'\n');
        file.write(&line)?;
    }
    file.commit()
}

/// The records of a file, one after the other, each with its place: lines of JSON (also in gzip; empty ones are skipped),
/// or the rows of a file whose name ends in `.parquet`, each as an object of its columns. After an error it ends.
pub struct Records<T> {
    place: Place,
    source: Source,
    done: bool,
    record: PhantomData<fn() -> T>,
}

enum Source {
    Lines { reader: Box<dyn BufRead + Send>, buffer: Vec<u8> },
    Rows(Box<ParquetRows>),
}

impl<T: DeserializeOwned> Records<T> {
    /// Opens a file; nothing is read yet. Of a Parquet file the named columns are read, or all where none is named.
    ///
    /// # Errors
    /// A file that cannot be opened or is of another kind, or a Parquet file without one of the columns.
    pub fn open(path: &Path, columns: &[&str]) -> Result<Records<T>> {
        let is_parquet = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"));
        let source = if is_parquet {
            Source::Rows(Box::new(ParquetRows::open(path, columns)?))
        } else {
            Source::Lines { reader: open_text(path)?, buffer: Vec::new() }
        };
        let unit = if is_parquet { "row" } else { "line" };
        let place = Place::before_first(path, unit);
        Ok(Records { place, source, done: false, record: PhantomData })
    }

    fn read(&mut self) -> Result<Option<(Place, T)>> {
        match &mut self.source {
            Source::Lines { reader, buffer } => read_line(&mut self.place, reader, buffer),
            Source::Rows(rows) => {
                let Some(row) = rows.next()? else { return Ok(None) };
                let place = self.place.clone();
                self.place.advance();
                let value = row.map_err(|problem| place.error(problem))?;
                let record = serde_json::from_value(value).map_err(|e| {
                    place.error(format!("not of the expected form: {}", without_position(&e)))
                })?;
                Ok(Some((place, record)))
            }
        }
    }
}

fn read_line<T: DeserializeOwned>(
    place: &mut Place,
    reader: &mut impl BufRead,
    buffer: &mut Vec<u8>,
) -> Result<Option<(Place, T)>> {
    loop {
        buffer.clear();
        place.advance();
        let path = PathBuf::from(place.path());
        let read = reader
            .by_ref()
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', buffer)
            .map_err(io_error("read", &path))?;
        if read == 0 {
            return Ok(None);
        }
        if read as u64 > MAX_LINE_BYTES {
            let problem = format!("longer than {MAX_LINE_BYTES} bytes, expected one JSON object per line");
            return Err(place.error(problem));
        }
        let bytes = buffer.trim_ascii();
        if bytes.is_empty() {
            continue;
        }
        let text = std::str::from_utf8(bytes).map_err(|_| place.error("it is not UTF-8"))?;
        let record = serde_json::from_str(text).map_err(|e| {
            let (what, column) = (without_position(&e), e.column());
            place.error(format!("not a JSON object of the expected form: {what} (column {column})"))
        })?;
        return Ok(Some((place.clone(), record)));
    }
}

impl<T: DeserializeOwned> Iterator for Records<T> {
    type Item = Result<(Place, T)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.read().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

/// The message of a JSON error without its "at line 1 column 9", whose line is always 1 here.
fn without_position(e: &serde_json::Error) -> String {
    let text = e.to_string();
    match text.rfind(" at line ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests;
