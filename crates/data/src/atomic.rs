//! Files that appear whole or not at all, written piece by piece.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use ground::atomic::{self, PendingFile};

use crate::Result;
use crate::error::io_error;

/// A file under a temporary name beside its final one. Dropped without [`AtomicFile::commit`] it leaves nothing.
pub(crate) struct AtomicFile {
    path: PathBuf,
    pending: PendingFile,
    writer: BufWriter<File>,
}

impl AtomicFile {
    /// Opens a temporary file beside `path`; missing folders are made.
    pub(crate) fn create(path: &Path) -> Result<AtomicFile> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io_error("create the folder", folder))?;
        }
        let (pending, file) = PendingFile::create(path).map_err(io_error("create", path))?;
        Ok(AtomicFile { path: path.to_owned(), pending, writer: BufWriter::new(file) })
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(io_error("write", &self.path))
    }

    /// Hands the file to `finish` for last changes, then makes it durable under its final name.
    pub(crate) fn commit_with(self, finish: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
        let AtomicFile { path, pending, writer } = self;
        let published = writer.into_inner().map_err(|e| e.into_error()).and_then(|mut file| {
            finish(&mut file)?;
            file.sync_all()?;
            pending.publish()?;
            atomic::sync_folder_of(&path)
        });
        published.map_err(io_error("write", &path))
    }

    /// Makes the file durable under its final name.
    pub(crate) fn commit(self) -> Result<()> {
        self.commit_with(|_| Ok(()))
    }
}

/// Writes a whole file.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.commit()
}
