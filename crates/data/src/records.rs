//! Records of one JSON object per line, read and written with exact places in the errors.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::atomic::AtomicFile;
use crate::chat::Message;
use crate::error::io_error;
use crate::{DataError, Result, parquet_rows};

/// The longest line that is read, in bytes: a guard against a file without line ends filling the memory.
pub const MAX_LINE_BYTES: u64 = 256 << 20;

/// A conversation as training data keeps it: `{"messages": [{"role": …, "content": …}, …]}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    /// The turns, oldest first.
    pub messages: Vec<Message>,
}

/// Reads a JSONL file whole. Empty lines are skipped.
///
/// # Errors
/// The first line that is not JSON of the form of `T`, with its number, or an unreadable file.
pub fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    JsonLines::open(path)?.collect()
}

/// Writes a JSONL file, one record per line, whole or not at all.
///
/// # Errors
/// A record that is not JSON (such as a map with keys that are not strings), or an unwritable file.
pub fn write_jsonl<'a, T: Serialize + 'a>(
    path: &Path,
    records: impl IntoIterator<Item = &'a T>,
) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    for (i, record) in records.into_iter().enumerate() {
        let mut line = serde_json::to_vec(record).map_err(|e| DataError::Line {
            path: path.to_owned(),
            line: i as u64 + 1,
            problem: format!("the record cannot be written as JSON: {e}"),
        })?;
        line.push(b'\n');
        file.write(&line)?;
    }
    file.commit()
}

/// Reads conversations from JSONL, or from Parquet where the file's name ends in `.parquet`.
///
/// # Errors
/// As [`read_jsonl`]; for Parquet a missing column `messages` or a row of another form.
pub fn read_conversations(path: &Path) -> Result<Vec<Conversation>> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet")) {
        read_parquet(path, &["messages"])
    } else {
        read_jsonl(path)
    }
}

/// Reads rows of a Parquet file as records: each row becomes an object of the named columns, or of all columns
/// where none is named, and is then read like a line of JSONL.
///
/// # Errors
/// A missing column, a row that is not of the form of `T`, or a damaged file.
pub fn read_parquet<T: DeserializeOwned>(path: &Path, columns: &[&str]) -> Result<Vec<T>> {
    let mut rows = parquet_rows::ParquetRows::open(path, columns)?;
    let mut records = Vec::new();
    while let Some(group) = rows.next_group()? {
        for row in group {
            let record = serde_json::from_value(row.to_json_value()).map_err(|e| DataError::Row {
                path: path.to_owned(),
                row: records.len() as u64,
                problem: format!("not of the expected form: {}", without_position(&e)),
            })?;
            records.push(record);
        }
    }
    Ok(records)
}

/// A JSONL file, read line by line.
#[derive(Debug)]
pub struct JsonLines<T> {
    path: PathBuf,
    reader: BufReader<File>,
    line: u64,
    buffer: Vec<u8>,
    done: bool,
    record: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> JsonLines<T> {
    /// Opens a file; nothing is read yet.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn open(path: &Path) -> Result<JsonLines<T>> {
        let file = File::open(path).map_err(io_error("open", path))?;
        Ok(JsonLines {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 16, file),
            line: 0,
            buffer: Vec::new(),
            done: false,
            record: PhantomData,
        })
    }

    fn read_record(&mut self) -> Result<Option<T>> {
        loop {
            self.buffer.clear();
            self.line += 1;
            let read = (&mut self.reader)
                .take(MAX_LINE_BYTES + 1)
                .read_until(b'\n', &mut self.buffer)
                .map_err(io_error("read", &self.path))?;
            if read == 0 {
                return Ok(None);
            }
            if read as u64 > MAX_LINE_BYTES {
                return Err(self.problem(format!(
                    "longer than {MAX_LINE_BYTES} bytes, expected one JSON object per line"
                )));
            }
            let mut bytes = self.buffer.as_slice();
            if self.line == 1 {
                bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            }
            let bytes = bytes.trim_ascii();
            if bytes.is_empty() {
                continue;
            }
            return match serde_json::from_slice(bytes) {
                Ok(record) => Ok(Some(record)),
                Err(e) => {
                    let column = e.column();
                    Err(self.problem(format!(
                        "not a JSON object of the expected form: {} (column {column})",
                        without_position(&e)
                    )))
                }
            };
        }
    }

    fn problem(&self, problem: String) -> DataError {
        DataError::Line { path: self.path.clone(), line: self.line, problem }
    }
}

impl<T: DeserializeOwned> Iterator for JsonLines<T> {
    type Item = Result<T>;

    /// The next record; after an error the iterator ends.
    fn next(&mut self) -> Option<Result<T>> {
        if self.done {
            return None;
        }
        let item = self.read_record().transpose();
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
