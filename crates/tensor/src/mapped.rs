//! Read-only memory maps of files.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file's bytes, mapped. Another process that truncates the file meanwhile makes reads fail with a signal, as
/// for every memory map; the run folder's lock keeps our own processes from doing so.
pub struct Mapped(Option<memmap2::Mmap>);

/// Maps a file; an empty file gives an empty slice.
pub fn map_file(path: &Path) -> io::Result<Mapped> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Mapped(None));
    }
    // SAFETY: the map is read-only; see the type's note on concurrent truncation.
    unsafe { memmap2::Mmap::map(&file) }.map(|m| Mapped(Some(m)))
}

impl Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}
