//! Files that appear whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::Result;
use crate::error::io_error;

/// A file under a temporary name beside its final one. Dropped without [`AtomicFile::commit`] it leaves nothing.
pub(crate) struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl AtomicFile {
    /// Opens a temporary file beside `path`; missing folders are made.
    pub(crate) fn create(path: &Path) -> Result<AtomicFile> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io_error("create the folder", folder))?;
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".tmp-{}", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)
            .map_err(io_error("create", &temporary))?;
        Ok(AtomicFile { path: path.to_owned(), temporary, writer: Some(BufWriter::new(file)) })
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let writer = self.writer.as_mut().expect("a file is written before it is committed");
        writer.write_all(bytes).map_err(io_error("write", &self.temporary))
    }

    /// Hands the file to `finish` for last changes, then makes it durable under its final name.
    pub(crate) fn commit_with(mut self, finish: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
        let writer = self.writer.take().expect("a file is committed once");
        let done = writer.into_inner().map_err(|e| e.into_error()).and_then(|mut file| {
            finish(&mut file)?;
            file.sync_all()
        });
        done.map_err(io_error("write", &self.temporary))?;
        fs::rename(&self.temporary, &self.path).map_err(io_error("write", &self.path))?;
        sync_folder(&self.path)
    }

    /// Makes the file durable under its final name.
    pub(crate) fn commit(self) -> Result<()> {
        self.commit_with(|_| Ok(()))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // After a commit the temporary name is gone and this is a no-op; a leftover is harmless otherwise.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes a whole file.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.commit()
}

/// Makes a rename durable. Only Unix lets a folder be opened for this.
fn sync_folder(path: &Path) -> Result<()> {
    #[cfg(unix)]
    if let Some(folder) = path.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder).and_then(|f| f.sync_all()).map_err(io_error("write", folder))?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}
