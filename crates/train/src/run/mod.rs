//! A run: where it lives ([`folder`]) and what it says on the way ([`metrics`]).

pub mod checkpoint;
pub mod folder;
pub mod metrics;
pub mod share;
pub mod tensorboard;

use std::io;
use std::path::{Path, PathBuf};

use ground::atomic;

use thiserror::Error;

/// Why a run folder could not be used.
#[derive(Debug, Error)]
pub enum RunError {
    /// The disk is full, or a quota is reached.
    #[error("the disk is full: cannot write {}; free some space and run the same command again, nothing that was saved is lost", path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// Reading or writing failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process works on the folder.
    #[error("{} is in use by another process{}; wait for it or choose another --out", path.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The process, if it could be read.
        pid: Option<u32>,
    },
    /// The folder's run has another recipe.
    #[error("{} holds a run of another recipe ({}); choose another --out, or give the recipe that it began with", path.display(), first_few(differences))]
    OtherRecipe {
        /// The folder.
        path: PathBuf,
        /// What differs, each as `key: old → new`.
        differences: Vec<String>,
    },
    /// A link in the folder.
    #[error("{} is a link, and a run writes and removes nothing outside of its folder; put what it leads to in its place", path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// The folder holds something else.
    #[error("{} is not empty and holds no run (no recipe.toml); choose another --out", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
    },
    /// A file of the run was damaged.
    #[error("{} is damaged: {message}; move it away to repeat what it stands for", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

/// The first differences, and how many more there are.
fn first_few(differences: &[String]) -> String {
    let shown = &differences[..differences.len().min(4)];
    match differences.len() - shown.len() {
        0 => shown.join("; "),
        more => format!("{}; and {more} more", shown.join("; ")),
    }
}

impl RunError {
    /// An error of reading or writing `path`, told apart from a full disk.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunError {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                RunError::DiskFull { path: path.to_path_buf() }
            }
            _ => RunError::Io { action, path: path.to_path_buf(), source },
        }
    }
}

/// Replaces a file: at any moment, and after a power cut, it holds either what it held or all of `bytes`.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), RunError> {
    atomic::replace(path, bytes).map_err(RunError::io("write", path))
}
