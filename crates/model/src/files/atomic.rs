//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::FileError;

/// A file being written under a temporary name next to its destination; removed again unless published.
pub(super) struct PendingFile {
    temporary: PathBuf,
    destination: PathBuf,
    published: bool,
}

impl PendingFile {
    /// Writes a file with `fill` and syncs it to disk, still under its temporary name.
    pub(super) fn write(
        destination: PathBuf,
        fill: impl FnOnce(&mut File) -> std::io::Result<()>,
    ) -> Result<Self, FileError> {
        let name = destination.file_name().unwrap_or_default().to_string_lossy();
        let temporary = destination.with_file_name(format!(".{name}.tmp"));
        let pending = PendingFile { temporary, destination, published: false };
        let result = File::create(&pending.temporary).and_then(|mut file| {
            fill(&mut file)?;
            file.sync_all()
        });
        result.map_err(FileError::io("write", &pending.destination))?;
        Ok(pending)
    }

    /// Moves the file to its name. The folder is to be [synced](sync_folder) afterwards.
    pub(super) fn publish(mut self) -> Result<(), FileError> {
        fs::rename(&self.temporary, &self.destination).map_err(FileError::io("write", &self.destination))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: a file that stays behind is overwritten by the next attempt.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Makes renames and removals in a folder survive a power cut.
pub(super) fn sync_folder(dir: &Path) -> Result<(), FileError> {
    // Windows can neither open nor sync folders.
    if cfg!(unix) {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(FileError::io("write", dir))?;
    }
    Ok(())
}

/// Replaces a small file.
pub(super) fn replace(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    PendingFile::write(path.to_path_buf(), |file| file.write_all(contents))?.publish()?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Removes a file that may not exist.
pub(super) fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
