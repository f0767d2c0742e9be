//! Text from files and folders, document by document.

use std::fs;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::io_error;
use crate::input::{PACKED, open_text};
use crate::records::Records;
use crate::{DataError, Result};

/// The file types that [`read_texts`] takes from a folder.
pub const TEXT_EXTENSIONS: &[&str] = &[
    "txt", "md", "rst", "tex", "org", "adoc", "html", "htm", "xml", "css", "py", "rs", "c", "h", "cc", "cpp",
    "hpp", "cu", "go", "java", "kt", "js", "ts", "rb", "pl", "lua", "sh", "sql", "r", "jl", "hs", "ml",
    "scala", "swift", "toml", "yaml", "yml", "ini", "csv", "tsv", "jsonl", "parquet",
];

/// A text file longer than this comes in pieces, each a document, cut at an empty line, a line end or, failing
/// both, between characters.
const PIECE_BYTES: usize = 4 << 20;

/// One document of a corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextDocument {
    /// The file it came from.
    pub path: PathBuf,
    /// Its place in that file: the piece of a text file, the record of a JSONL or Parquet file, from 0.
    pub index: u64,
    /// The text, never empty.
    pub text: String,
}

/// A stream of documents; memory holds one document, one piece of a long text file or one Parquet row group.
pub struct Corpus {
    root: PathBuf,
    expected: String,
    files: std::vec::IntoIter<PathBuf>,
    current: Option<Source>,
    index: u64,
    found_any: bool,
    done: bool,
}

/// Reads a file, or the files of a folder and its subfolders in the order of their paths.
///
/// A folder gives the files with the extensions of [`TEXT_EXTENSIONS`]; a single file is taken whatever its name.
/// `.jsonl` gives the field `text` of each line, `.parquet` the column `text`, anything else is text; `.gz` behind any of
/// them is unpacked. Names that
/// begin with a dot and links to folders are passed over. Empty documents are left out.
///
/// # Errors
/// A path that cannot be read, or no file to read in it. What is wrong inside of a file shows when it is reached.
pub fn read_texts(path: &Path) -> Result<Corpus> {
    open(path, &|extension| TEXT_EXTENSIONS.contains(&extension), &TEXT_EXTENSIONS.join(", "))
}

/// As [`read_texts`], with the extensions to take from a folder (without the dot, in any case).
///
/// # Errors
/// As [`read_texts`].
pub fn read_texts_with(path: &Path, extensions: &[String]) -> Result<Corpus> {
    let wanted: Vec<String> =
        extensions.iter().map(|e| e.trim_start_matches('.').to_ascii_lowercase()).collect();
    open(path, &|extension| wanted.iter().any(|w| w == extension), &wanted.join(", "))
}

fn open(path: &Path, wanted: &dyn Fn(&str) -> bool, expected: &str) -> Result<Corpus> {
    let metadata = fs::metadata(path).map_err(io_error("open", path))?;
    let mut files = Vec::new();
    if metadata.is_dir() {
        list(path, wanted, &mut files)?;
        files.sort_unstable();
    } else {
        files.push(path.to_owned());
    }
    if files.is_empty() {
        return Err(DataError::EmptyCorpus { path: path.to_owned(), expected: expected.to_owned() });
    }
    Ok(Corpus {
        root: path.to_owned(),
        expected: expected.to_owned(),
        files: files.into_iter(),
        current: None,
        index: 0,
        found_any: false,
        done: false,
    })
}

fn list(folder: &Path, wanted: &dyn Fn(&str) -> bool, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
        let entry = entry.map_err(io_error("list", folder))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let kind = entry.file_type().map_err(io_error("open", &path))?;
        if kind.is_dir() {
            list(&path, wanted, files)?;
        } else if wanted(&extension(&path)) && path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

/// The ending that says what a file holds, in small letters: of `a.txt.gz` it is `txt`.
fn extension(path: &Path) -> String {
    let ending = |path: &Path| path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let last = ending(path);
    if PACKED.contains(&last.as_str()) {
        ending(Path::new(path.file_stem().unwrap_or_default()))
    } else {
        last
    }
}

impl Corpus {
    /// The files that are still to be opened, in order.
    pub fn files(&self) -> &[PathBuf] {
        self.files.as_slice()
    }

    /// The texts alone.
    pub fn texts(self) -> impl Iterator<Item = Result<String>> + Send {
        self.map(|document| document.map(|d| d.text))
    }

    fn advance(&mut self) -> Result<Option<TextDocument>> {
        loop {
            if self.current.is_none() {
                let Some(path) = self.files.next() else { break };
                self.current = Some(Source::open(path)?);
                self.index = 0;
            }
            let Some(source) = &mut self.current else { break };
            match source.read()? {
                Some(text) => {
                    let index = self.index;
                    self.index += 1;
                    if !text.is_empty() {
                        self.found_any = true;
                        let path = source.path.clone();
                        return Ok(Some(TextDocument { path, index, text }));
                    }
                }
                None => self.current = None,
            }
        }
        if self.found_any {
            return Ok(None);
        }
        Err(DataError::EmptyCorpus { path: self.root.clone(), expected: self.expected.clone() })
    }
}

impl Iterator for Corpus {
    type Item = Result<TextDocument>;

    /// The next document; after an error the iterator ends. A corpus without a document ends in an error.
    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.advance().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

struct Source {
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    Text(TextFile),
    Records(Records<TextRecord>),
}

#[derive(Deserialize)]
struct TextRecord {
    /// A null is an empty text; no text at all is an error.
    #[serde(deserialize_with = "Option::deserialize")]
    text: Option<String>,
}

impl Source {
    fn open(path: PathBuf) -> Result<Source> {
        let kind = match extension(&path).as_str() {
            "jsonl" | "parquet" => Kind::Records(Records::open(&path, &["text"])?),
            _ => Kind::Text(TextFile::open(&path)?),
        };
        Ok(Source { path, kind })
    }

    /// The next text of this file, which may be empty.
    fn read(&mut self) -> Result<Option<String>> {
        match &mut self.kind {
            Kind::Text(file) => file.read(&self.path),
            Kind::Records(records) => {
                let record = records.next().transpose()?;
                Ok(record.map(|(_, record)| record.text.unwrap_or_default()))
            }
        }
    }
}

/// A text file, read in pieces.
struct TextFile {
    reader: Box<dyn BufRead + Send>,
    buffer: Vec<u8>,
    /// The offset in the text of the buffer's first byte.
    offset: u64,
    ended: bool,
}

impl TextFile {
    fn open(path: &Path) -> Result<TextFile> {
        let reader = open_text(path)?;
        Ok(TextFile { reader, buffer: Vec::new(), offset: 0, ended: false })
    }

    fn read(&mut self, path: &Path) -> Result<Option<String>> {
        if !self.ended {
            let missing = (PIECE_BYTES + 1).saturating_sub(self.buffer.len()) as u64;
            let read = self
                .reader
                .by_ref()
                .take(missing)
                .read_to_end(&mut self.buffer)
                .map_err(io_error("read", path))?;
            self.ended = (read as u64) < missing;
        }
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let valid = match std::str::from_utf8(&self.buffer) {
            Ok(text) => text.len(),
            // An incomplete character at the end of a piece that is not the last continues in the next.
            Err(e) if e.error_len().is_none() && !self.ended => e.valid_up_to(),
            Err(e) => {
                let offset = self.offset + e.valid_up_to() as u64;
                return Err(DataError::NotUtf8 { path: path.to_owned(), offset });
            }
        };
        let end = if self.ended { valid } else { cut(&self.buffer[..valid]) };
        let rest = self.buffer.split_off(end);
        let piece = std::mem::replace(&mut self.buffer, rest);
        self.offset += end as u64;
        String::from_utf8(piece).map(Some).map_err(|e| DataError::NotUtf8 {
            path: path.to_owned(),
            offset: self.offset - end as u64 + e.utf8_error().valid_up_to() as u64,
        })
    }
}

/// Where to end a piece: after the last empty line of its second half, else after its last line, else at its end.
fn cut(bytes: &[u8]) -> usize {
    let half = bytes.len() / 2;
    let paragraph = bytes[half..].windows(2).rposition(|w| w == b"\n\n").map(|at| half + at + 2);
    let line = || bytes.iter().rposition(|&b| b == b'\n').map(|at| at + 1);
    paragraph.or_else(line).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests;
