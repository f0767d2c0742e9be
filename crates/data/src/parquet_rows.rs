//! Rows of Parquet files, one row group at a time, with the library's panics on damaged files turned into errors.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::Value;

use crate::error::{guard, io_error};
use crate::{DataError, Result};

/// The most that the wanted columns of one row group may take when unpacked, in bytes.
const MAX_GROUP_BYTES: i64 = 4 << 30;

/// An open Parquet file.
pub(crate) struct ParquetRows {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    projection: Option<Type>,
    columns: Vec<String>,
    next: usize,
}

impl ParquetRows {
    /// Opens a file and checks that it has the named columns; no names means all columns.
    pub(crate) fn open(path: &Path, columns: &[&str]) -> Result<ParquetRows> {
        let file = File::open(path).map_err(io_error("open", path))?;
        let reader = guarded(path, || SerializedFileReader::new(file))?;
        let schema = reader.metadata().file_metadata().schema();
        let fields = schema.get_fields();
        let mut wanted = Vec::new();
        for column in columns {
            match fields.iter().find(|f| f.name() == *column) {
                Some(field) => wanted.push(Arc::clone(field)),
                None => {
                    let names: Vec<&str> = fields.iter().map(|f| f.name()).collect();
                    return Err(DataError::MissingColumn {
                        path: path.to_owned(),
                        column: (*column).to_owned(),
                        found: names.join(", "),
                    });
                }
            }
        }
        let projection = if wanted.is_empty() {
            None
        } else {
            let name = schema.name().to_owned();
            let build = || Type::group_type_builder(&name).with_fields(wanted).build();
            Some(guarded(path, build)?)
        };
        Ok(ParquetRows {
            path: path.to_owned(),
            reader,
            projection,
            columns: columns.iter().map(|c| (*c).to_owned()).collect(),
            next: 0,
        })
    }

    /// All rows of the next row group, or `None` after the last.
    pub(crate) fn next_group(&mut self) -> Result<Option<Vec<Row>>> {
        if self.next >= self.reader.num_row_groups() {
            return Ok(None);
        }
        let index = self.next;
        self.next += 1;
        self.check_size(index)?;
        let (reader, projection) = (&self.reader, self.projection.clone());
        let rows = guarded(&self.path, || {
            let group = reader.get_row_group(index)?;
            group.get_row_iter(projection)?.collect::<parquet::errors::Result<Vec<Row>>>()
        })?;
        Ok(Some(rows))
    }

    /// Refuses a row group whose metadata announces more than can be meant, or a compression that is not read, before
    /// anything is unpacked.
    fn check_size(&self, index: usize) -> Result<()> {
        let group = self.reader.metadata().row_group(index);
        let mut bytes = 0i64;
        for column in group.columns() {
            let codec = column.compression();
            if !matches!(
                codec,
                Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_)
            ) {
                let problem = format!(
                    "it is compressed with {codec}; snappy, gzip and zstd are read, so write it with one of them"
                );
                return Err(DataError::Parquet { path: self.path.clone(), problem });
            }
            let top = column.column_path().parts().first().map_or("", String::as_str);
            if self.columns.is_empty() || self.columns.iter().any(|c| c == top) {
                bytes = bytes.saturating_add(column.uncompressed_size().max(0));
            }
        }
        if bytes > MAX_GROUP_BYTES {
            return Err(DataError::Parquet {
                path: self.path.clone(),
                problem: format!(
                    "row group {index} unpacks to {bytes} bytes, expected at most {MAX_GROUP_BYTES}; \
                     write the file with smaller row groups"
                ),
            });
        }
        Ok(())
    }
}

/// A row as an object of its columns.
///
/// # Errors
/// Bytes that are not UTF-8, in words.
pub(crate) fn to_json(row: &Row) -> std::result::Result<Value, String> {
    let field = |(name, field): (&String, &Field)| {
        let value = of_field(field).map_err(|problem| format!("column `{name}` holds {problem}"))?;
        Ok((name.clone(), value))
    };
    row.get_column_iter().map(field).collect::<std::result::Result<_, _>>().map(Value::Object)
}

/// A value as JSON. Bytes are text: many writers forget to say so, and no record that is read here has other ones.
fn of_field(field: &Field) -> std::result::Result<Value, String> {
    match field {
        Field::Bytes(bytes) => match bytes.as_utf8() {
            Ok(text) => Ok(text.into()),
            Err(_) => Err("bytes that are not UTF-8, expected text".to_owned()),
        },
        Field::Group(row) => to_json(row),
        Field::ListInternal(list) => list.elements().iter().map(of_field).collect(),
        Field::MapInternal(map) => {
            let entry = |(key, value): &(Field, Field)| {
                let key = match of_field(key)? {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                Ok((key, of_field(value)?))
            };
            map.entries().iter().map(entry).collect::<std::result::Result<_, _>>().map(Value::Object)
        }
        other => Ok(other.to_json_value()),
    }
}

fn guarded<T>(path: &Path, f: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
    let problem = match guard(f) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(e)) => e.to_string(),
        Err(problem) => problem,
    };
    Err(DataError::Parquet { path: path.to_owned(), problem })
}
