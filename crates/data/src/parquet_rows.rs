//! Rows of Parquet files, one at a time, with the library's panics on damaged files turned into errors.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::Value;

use crate::error::{guard, io_error};
use crate::input::{most_bytes, unpacks_to_too_much};
use crate::{DataError, Result};

/// The most that the wanted columns of one row group may take when unpacked, in bytes.
const MAX_GROUP_BYTES: i64 = 4 << 30;

/// The rows of a Parquet file, read as they are asked for.
pub(crate) struct ParquetRows {
    path: PathBuf,
    rows: RowIter<'static>,
    /// Bytes that the rows still to come may hold: a dictionary can repeat a long text without end.
    left: u64,
}

impl ParquetRows {
    /// Opens a file and checks that it has the named columns; no names means all columns.
    pub(crate) fn open(path: &Path, columns: &[&str]) -> Result<ParquetRows> {
        let file = File::open(path).map_err(io_error("open", path))?;
        let length = file.metadata().map_err(io_error("open", path))?.len();
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
        for (index, group) in reader.metadata().row_groups().iter().enumerate() {
            check_group(index, group, columns)
                .map_err(|problem| DataError::Parquet { path: path.to_owned(), problem })?;
        }
        let rows = guarded(path, || RowIter::from_file_into(Box::new(reader)).project(projection))?;
        Ok(ParquetRows { path: path.to_owned(), rows, left: most_bytes(length) })
    }

    /// The next row as an object of its columns, or what is wrong with it; `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<std::result::Result<Value, String>>> {
        let Some(row) = guarded(&self.path, || self.rows.next().transpose())? else { return Ok(None) };
        let value = to_json(&row);
        let size = value.as_ref().map_or(0, size);
        self.left = self
            .left
            .checked_sub(size)
            .ok_or_else(|| DataError::Parquet { path: self.path.clone(), problem: unpacks_to_too_much() })?;
        Ok(Some(value))
    }
}

/// The bytes of all texts in a value, about.
fn size(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(map) => map.values().map(size).sum(),
        _ => 0,
    }
}

/// Refuses a row group whose metadata announces more than can be meant, or a compression that is not read, before anything
/// is unpacked.
fn check_group(index: usize, group: &RowGroupMetaData, columns: &[&str]) -> std::result::Result<(), String> {
    let mut bytes = 0i64;
    for column in group.columns() {
        let top = column.column_path().parts().first().map_or("", String::as_str);
        if !columns.is_empty() && !columns.contains(&top) {
            continue;
        }
        let codec = column.compression();
        if !matches!(
            codec,
            Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_)
        ) {
            return Err(format!(
                "it is compressed with {codec}; snappy, gzip and zstd are read, so write it with one of them"
            ));
        }
        bytes = bytes.saturating_add(column.uncompressed_size().max(0));
    }
    if bytes > MAX_GROUP_BYTES {
        return Err(format!(
            "row group {index} unpacks to {bytes} bytes, expected at most {MAX_GROUP_BYTES}; write the file with smaller row \
             groups"
        ));
    }
    Ok(())
}

/// A row as an object of its columns.
///
/// # Errors
/// Bytes that are not UTF-8, in words.
fn to_json(row: &Row) -> std::result::Result<Value, String> {
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
