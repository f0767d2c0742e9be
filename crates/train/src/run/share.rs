//! Files of the first rank, for the others: a machine that has no part in the run's folder works from a folder of its own, which
//! ends with the process.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use comm::collective::broadcast_message;
use ground::atomic;

use super::RunError;
use super::folder::LOCK;
use crate::TrainError;
use crate::team::Team;

/// Bytes of one message.
const PARCEL: usize = 1 << 24;

/// Gives all ranks the files that lie in a folder of the first one. Hidden ones and folders in it are left out.
pub fn share(team: &Team, dir: &Path) -> Result<(), TrainError> {
    if team.ranks() == 1 {
        return Ok(());
    }
    let files = if team.leads() {
        list(dir)?
    } else {
        fs::create_dir_all(dir).map_err(RunError::io("create", dir))?;
        Vec::new()
    };
    for (name, len) in team.from_first(|| files) {
        let path = dir.join(name);
        if team.leads() {
            give(team, &path, len)?;
        } else {
            atomic::replace_with(&path, |file| take(team, file, len))
                .map_err(RunError::io("write", &path))?;
        }
    }
    Ok(())
}

fn list(dir: &Path) -> Result<Vec<(String, u64)>, RunError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(RunError::io("read", dir))? {
        let entry = entry.map_err(RunError::io("read", dir))?;
        let (name, about) = (entry.file_name(), entry.metadata().map_err(RunError::io("read", dir))?);
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.') && about.is_file()) else {
            continue;
        };
        found.push((name.to_owned(), about.len()));
    }
    found.sort();
    Ok(found)
}

fn give(team: &Team, path: &Path, len: u64) -> Result<(), RunError> {
    let mut file = File::open(path).map_err(RunError::io("read", path))?;
    let mut left = len;
    while left > 0 {
        let mut parcel = vec![0; left.min(PARCEL as u64) as usize];
        file.read_exact(&mut parcel).map_err(RunError::io("read", path))?;
        left -= parcel.len() as u64;
        broadcast_message(team.comm(), parcel);
    }
    Ok(())
}

fn take(team: &Team, file: &mut File, len: u64) -> std::io::Result<()> {
    let mut left = len;
    while left > 0 {
        let parcel = broadcast_message(team.comm(), Vec::new());
        left = left.saturating_sub(parcel.len() as u64);
        file.write_all(&parcel)?;
    }
    Ok(())
}

/// What the names of such folders begin with.
const SCRATCH: &str = "shoestring-rank-";

/// The age from which a lock that nobody holds was left behind: a rank that begins in this moment makes its file before it locks it.
const LEFT_FOR: Duration = Duration::from_secs(60);

/// Removes those of processes that were killed: nobody holds their lock any more.
fn remove_left(all: &Path) {
    let left = |lock: File| {
        let made = lock.metadata().and_then(|about| about.modified());
        let age = made.map(|made| made.elapsed().unwrap_or_default());
        age.is_ok_and(|age| age > LEFT_FOR) && lock.try_lock().is_ok()
    };
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(SCRATCH)
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
            && File::open(entry.path().join(LOCK)).is_ok_and(left)
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A folder of this process alone, which goes with it.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one among the system's temporary files.
    pub fn new() -> Result<Scratch, RunError> {
        let all = std::env::temp_dir();
        remove_left(&all);
        let mut number = 0;
        loop {
            let dir = all.join(format!("{SCRATCH}{}-{number}", std::process::id()));
            match fs::create_dir(&dir) {
                Ok(()) => return Ok(Scratch(dir)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists && number < 1000 => number += 1,
                Err(error) => return Err(RunError::io("create", &dir)(error)),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::folder::RunFolder;

    /// What a killed process left goes; ranks that begin in the same moment do not take each other's folders for such.
    #[test]
    fn ranks_that_start_at_once_keep_their_folders_and_old_ones_go() {
        let left = std::mem::ManuallyDrop::new(Scratch::new().unwrap());
        drop(RunFolder::open(left.path(), "a recipe").unwrap());
        let lock = File::options().write(true).open(left.path().join(LOCK)).unwrap();
        lock.set_modified(std::time::SystemTime::now() - 2 * LEFT_FOR).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let scratch = Scratch::new().unwrap();
                        let _held = RunFolder::open(scratch.path(), "a recipe").unwrap();
                        assert!(scratch.path().join(LOCK).is_file());
                    }
                });
            }
        });
        assert!(!left.path().exists());
    }
}
