//! What a table is, and how much of one is held in memory.

use std::path::Path;

use crate::{DataError, Result};

/// More rows than this are refused: a table is held in memory.
const MOST_ROWS: usize = 1_000_000;
/// More bytes of cells than this, too.
const MOST_BYTES: usize = 1 << 30;

/// A table in memory. Cells are text; what a row lacks is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The rows, each with as many cells as there are columns.
    pub rows: Vec<Row>,
}

/// A row of a [`Table`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its place among the rows, from 1; of a file of JSON its line, of a sheet its row there, of Parquet its row from 0.
    pub number: u64,
    /// Its cells.
    pub cells: Vec<String>,
}

impl Table {
    /// The place of the column of this name, whatever the case and blanks around it.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.trim().eq_ignore_ascii_case(name))
    }
}

/// What is held so far, against the limits.
#[derive(Default)]
pub(crate) struct Held {
    rows: usize,
    bytes: usize,
}

impl Held {
    pub(crate) fn add(&mut self, path: &Path, cells: &[String], new_row: bool) -> Result<()> {
        self.rows += usize::from(new_row);
        self.bytes += cells.iter().map(|c| c.len() + size_of::<String>()).sum::<usize>();
        if self.rows > MOST_ROWS || self.bytes > MOST_BYTES {
            let problem = format!("more than {MOST_ROWS} rows or 1 GiB, which a table may not have");
            return Err(DataError::Table { path: path.to_owned(), problem });
        }
        Ok(())
    }
}
