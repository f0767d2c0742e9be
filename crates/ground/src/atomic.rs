//! Files that are there whole or not at all, also after a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file being written under a temporary name next to its destination; removed again unless published.
pub struct PendingFile {
    temporary: PathBuf,
    destination: PathBuf,
    published: bool,
}

impl PendingFile {
    /// Opens the file, to be written, read, synced and published.
    pub fn create(destination: &Path) -> io::Result<(PendingFile, File)> {
        let name = destination.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        let temporary = destination.with_file_name(format!(".{name}.tmp"));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&temporary)?;
        Ok((PendingFile { temporary, destination: destination.to_owned(), published: false }, file))
    }

    /// Writes a file with `fill` and syncs it to disk, still under its temporary name.
    pub fn write(
        destination: &Path,
        fill: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<PendingFile> {
        let (pending, mut file) = PendingFile::create(destination)?;
        fill(&mut file)?;
        file.sync_all()?;
        Ok(pending)
    }

    /// Moves the file to its name. The folder is to be [synced](sync_folder) afterwards.
    pub fn publish(mut self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.destination)?;
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

/// Replaces a file by what `fill` writes: at any moment it holds either what it held or all of that.
pub fn replace_with(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    PendingFile::write(path, fill)?.publish()?;
    sync_folder_of(path)
}

/// Replaces a small file.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    replace_with(path, |file| file.write_all(contents))
}

/// Removes a file that may not exist.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a rename to `path` survive a power cut.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    sync_folder(path.parent().unwrap_or(Path::new("")))
}

/// Makes renames and removals in a folder survive a power cut.
pub fn sync_folder(dir: &Path) -> io::Result<()> {
    // Windows can neither open nor sync folders.
    if cfg!(unix) {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        replace(&path, b"old").expect("written");
        let failed = replace_with(&path, |file| {
            file.write_all(b"half of the new")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).expect("read"), b"old");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1, "nothing is left behind");
        replace(&path, b"new").expect("written");
        assert_eq!(fs::read(&path).expect("read"), b"new");
    }
}
