//! Where a record stands.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::DataError;

/// Where a record stands: a line, counted from 1, or a row of a Parquet file, counted from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: Arc<Path>,
    unit: &'static str,
    number: u64,
}

impl Place {
    /// The place before the first record of a file; `unit` is what is counted.
    pub(crate) fn before_first(path: &Path, unit: &'static str) -> Place {
        Place { path: path.into(), unit, number: 0 }
    }
    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
    /// Goes on to the next record.
    pub(crate) fn advance(&mut self) {
        self.number += 1;
    }
    /// The number of its line or row.
    pub fn number(&self) -> u64 {
        self.number
    }
    /// An error about this record.
    pub fn error(&self, problem: impl Into<String>) -> DataError {
        DataError::Record { place: self.clone(), problem: problem.into() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.path.display(), self.unit, self.number)
    }
}
