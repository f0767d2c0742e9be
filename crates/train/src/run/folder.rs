//! The folder of a run: one process at a time, one recipe for ever, files that are there whole or not at all.
//!
//! ```text
//! recipe.toml        the resolved recipe
//! <stage>/           what a stage makes: a model folder, traces; `done.json` once it has ended
//! metrics.jsonl      one line a step            samples.jsonl   texts along the way
//! tensorboard/       the same for TensorBoard   report.html, report.json
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::metrics::Metrics;
use super::{RunError, write_atomic};

/// The file that whoever works on a folder holds a lock on.
pub(super) const LOCK: &str = ".lock";
const RECIPE: &str = "recipe.toml";
const DONE: &str = "done.json";

/// A run folder that this process holds; it is free again once this is dropped or the process has ended,
/// however it ended.
#[derive(Debug)]
pub struct RunFolder {
    dir: PathBuf,
    _lock: File,
}

impl RunFolder {
    /// Takes a new or empty folder, or that of this very run, whose `recipe` states all settings, to go on with it. A new one stays free for any recipe until
    /// it is claimed.
    pub fn open(dir: &Path, recipe: &str) -> Result<Self, RunError> {
        fs::create_dir_all(dir).map_err(RunError::io("create", dir))?;
        refuse_links(dir, 3)?;
        let lock = lock(dir)?;
        let path = dir.join(RECIPE);
        match fs::read_to_string(&path) {
            Ok(old) => {
                let differences = differences(&old, recipe)
                    .map_err(|message| RunError::Damaged { path: path.clone(), message })?;
                if !differences.is_empty() {
                    return Err(RunError::OtherRecipe { path: dir.to_path_buf(), differences });
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Hidden files are our own lock and what a killed process had begun.
                let mut entries = fs::read_dir(dir).map_err(RunError::io("read", dir))?;
                let foreign = entries.any(|entry| {
                    entry.is_ok_and(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
                });
                if foreign {
                    return Err(RunError::Foreign { path: dir.to_path_buf() });
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(RunError::Damaged { path, message: "it is not UTF-8 text".into() });
            }
            Err(error) => return Err(RunError::io("read", &path)(error)),
        }
        Ok(RunFolder { dir: dir.to_path_buf(), _lock: lock })
    }

    /// Writes the recipe, unless it is there: from now on the folder is of this run.
    pub fn claim(&self, recipe: &str) -> Result<(), RunError> {
        let path = self.dir.join(RECIPE);
        if path.exists() { Ok(()) } else { write_atomic(&path, recipe.as_bytes()) }
    }

    /// Gives a claimed folder back, if its run has left nothing there: what failed at once may be tried otherwise.
    pub fn release(&self) -> Result<(), RunError> {
        let io = RunError::io("read", &self.dir);
        for entry in fs::read_dir(&self.dir).map_err(io)?.filter_map(Result::ok) {
            let name = entry.file_name();
            let empty = fs::read_dir(entry.path()).is_ok_and(|mut inside| inside.next().is_none());
            if name != RECIPE && !name.to_string_lossy().starts_with('.') && !empty {
                return Ok(());
            }
        }
        let path = self.dir.join(RECIPE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(RunError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The folder of a stage, created if need be.
    pub fn stage_dir(&self, stage: &str) -> Result<PathBuf, RunError> {
        let dir = self.dir.join(stage);
        fs::create_dir_all(&dir).map_err(RunError::io("create", &dir))?;
        Ok(dir)
    }

    /// Records that a stage has ended and what it has to say.
    pub fn mark_done(&self, stage: &str, result: &impl Serialize) -> Result<(), RunError> {
        let text = serde_json::to_string_pretty(result).expect("a result is plain JSON");
        write_atomic(&self.stage_dir(stage)?.join(DONE), text.as_bytes())
    }

    /// What a stage said when it ended; `None` if it has not.
    pub fn done<T: DeserializeOwned>(&self, stage: &str) -> Result<Option<T>, RunError> {
        let path = self.dir.join(stage).join(DONE);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| RunError::Damaged { path, message: error.to_string() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RunError::io("read", &path)(error)),
        }
    }

    /// The metrics of a stage that goes on from `resumed_step`: the steps that its checkpoint holds, 0 to
    /// begin anew. Lines of later steps are taken out.
    pub fn metrics(&self, stage: &str, resumed_step: u64) -> Result<Metrics, RunError> {
        Metrics::open(&self.dir, stage, resumed_step)
    }
}

/// Refuses links in a run folder, `depth` levels down: what is removed and written there has to stay there.
fn refuse_links(dir: &Path, depth: usize) -> Result<(), RunError> {
    for entry in fs::read_dir(dir).map_err(RunError::io("read", dir))? {
        let entry = entry.map_err(RunError::io("read", dir))?;
        let kind = entry.file_type().map_err(RunError::io("read", &entry.path()))?;
        if kind.is_symlink() {
            return Err(RunError::Link { path: entry.path() });
        }
        if kind.is_dir() && depth > 1 {
            refuse_links(&entry.path(), depth - 1)?;
        }
    }
    Ok(())
}

/// Takes the folder for this process. The system gives the lock back when the process ends, by `kill -9` too.
fn lock(dir: &Path) -> Result<File, RunError> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(&path).map_err(RunError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let pid = file.read_to_string(&mut holder).ok().and_then(|_| holder.trim().parse().ok());
            return Err(RunError::Locked { path: dir.to_path_buf(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(RunError::io("lock", &path)(error)),
    }
    // The pid is for the message alone.
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| write!(file, "{}", std::process::id()))
        .map_err(RunError::io("write", &path))?;
    Ok(file)
}

/// What differs between two resolved recipes, each as `key: old → new`.
pub fn differences(old: &str, new: &str) -> Result<Vec<String>, String> {
    let parse = |text: &str| text.parse::<toml::Table>().map_err(|error| error.message().to_owned());
    let (mut before, mut after) = (Vec::new(), Vec::new());
    leaves("", &toml::Value::Table(parse(old)?), &mut before);
    leaves("", &toml::Value::Table(parse(new)?), &mut after);
    let find = |leaves: &[(String, String)], key: &str| {
        leaves.iter().find(|(other, _)| other == key).map(|(_, value)| value.clone())
    };
    let mut differences = Vec::new();
    for (key, value) in &before {
        match find(&after, key) {
            Some(other) if other == *value => {}
            other => differences.push(format!("{key}: {value} → {}", other.unwrap_or("(none)".into()))),
        }
    }
    for (key, value) in &after {
        if find(&before, key).is_none() {
            differences.push(format!("{key}: (none) → {value}"));
        }
    }
    Ok(differences)
}

/// Every value of a recipe with its full key; stages are called by name, and their order is a value too.
fn leaves(key: &str, value: &toml::Value, out: &mut Vec<(String, String)>) {
    let under = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                leaves(&under(name), value, out);
            }
        }
        toml::Value::Array(items) if items.iter().any(toml::Value::is_table) => {
            let name = |(index, item): (usize, &toml::Value)| {
                let name = item.get("name").and_then(toml::Value::as_str);
                name.map_or_else(|| (index + 1).to_string(), str::to_owned)
            };
            let names: Vec<String> = items.iter().enumerate().map(name).collect();
            out.push((key.to_owned(), names.join(", ")));
            for (name, item) in names.iter().zip(items) {
                leaves(&under(name), item, out);
            }
        }
        other => out.push((key.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    const RECIPE_TEXT: &str = "
        [models.moe]
        hidden_size = 64
        [[stage]]
        kind = 'tokenizer'
        [[stage]]
        kind = 'pretrain'
        model = 'moe'
        [[stage]]
        kind = 'grpo'
        steps = 200
    ";

    fn recipe(sets: &[&str]) -> String {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        Recipe::parse("launch.toml", RECIPE_TEXT, &sets).unwrap().resolved_toml()
    }

    /// Two processes on one folder would overwrite each other's checkpoints.
    #[test]
    fn a_second_opening_is_refused_until_the_first_ends() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunFolder::open(dir.path(), &recipe(&[])).unwrap();
        let error = RunFolder::open(dir.path(), &recipe(&[])).unwrap_err();
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        RunFolder::open(dir.path(), &recipe(&[])).unwrap();
    }

    /// A process killed by `kill -9` leaves the lock file behind; that must not block anyone.
    #[test]
    fn a_stale_lock_file_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LOCK), "1").unwrap();
        RunFolder::open(dir.path(), &recipe(&[])).unwrap();
    }

    /// Going on with other settings would make a result that no recipe describes.
    #[test]
    fn a_changed_recipe_is_refused_with_the_difference() {
        let dir = tempfile::tempdir().unwrap();
        RunFolder::open(dir.path(), &recipe(&[])).unwrap().claim(&recipe(&[])).unwrap();
        let changed = recipe(&["stage.grpo.steps=300", "models.moe.hidden_size=96"]);
        let error = RunFolder::open(dir.path(), &changed).unwrap_err().to_string();
        assert!(error.contains("stage.grpo.steps: 200 → 300"), "{error}");
        assert!(error.contains("models.moe.hidden_size: 64 → 96"), "{error}");
        RunFolder::open(dir.path(), &recipe(&[])).unwrap();
    }

    /// A recipe that is refused before its first step must not stand in the way of its corrected version.
    #[test]
    fn an_unclaimed_folder_is_free_for_any_recipe() {
        let dir = tempfile::tempdir().unwrap();
        drop(RunFolder::open(dir.path(), &recipe(&[])).unwrap());
        RunFolder::open(dir.path(), &recipe(&["stage.grpo.steps=300"])).unwrap();
    }

    /// Nor must one that failed in its first stage, unless it has left something.
    #[test]
    fn a_folder_with_nothing_in_it_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(dir.path(), &recipe(&[])).unwrap();
        folder.claim(&recipe(&[])).unwrap();
        folder.stage_dir("tokenizer").unwrap();
        folder.release().unwrap();
        assert!(!dir.path().join(RECIPE).exists());
        folder.claim(&recipe(&[])).unwrap();
        folder.mark_done("tokenizer", &serde_json::json!({})).unwrap();
        folder.release().unwrap();
        assert!(dir.path().join(RECIPE).exists());
    }

    #[test]
    fn added_and_removed_stages_are_named() {
        let stage = |name: &str| format!("[[stage]]\nname = '{name}'\nkind = 'grpo'\n");
        let found = differences(&stage("a"), &format!("{}{}", stage("a"), stage("b"))).unwrap();
        assert_eq!(
            found,
            ["stage: a → a, b", "stage.b.name: (none) → \"b\"", "stage.b.kind: (none) → \"grpo\""]
        );
        let swapped = format!("{}{}", stage("b"), stage("a"));
        let found = differences(&format!("{}{}", stage("a"), stage("b")), &swapped).unwrap();
        assert_eq!(found, ["stage: a, b → b, a"]);
    }

    /// Nobody's files are mixed with a run's, and what a killed process left of its first write is no run.
    #[test]
    fn a_foreign_folder_is_refused_and_a_half_made_one_taken() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".recipe.toml.tmp"), "half").unwrap();
        drop(RunFolder::open(dir.path(), &recipe(&[])).unwrap());
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("thesis.tex"), "").unwrap();
        let error = RunFolder::open(other.path(), &recipe(&[])).unwrap_err();
        assert!(matches!(error, RunError::Foreign { .. }), "{error}");
    }

    #[test]
    fn what_a_stage_said_is_read_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(dir.path(), &recipe(&[])).unwrap();
        assert_eq!(folder.done::<serde_json::Value>("grpo").unwrap(), None);
        let result = serde_json::json!({ "seconds": 0.1 + 0.2, "operations": u64::MAX });
        folder.mark_done("grpo", &result).unwrap();
        assert_eq!(folder.done("grpo").unwrap(), Some(result));
        fs::write(dir.path().join("grpo").join(DONE), "{").unwrap();
        assert!(matches!(folder.done::<serde_json::Value>("grpo"), Err(RunError::Damaged { .. })));
    }

    /// A failed write leaves the old file and no temporary one.
    #[test]
    fn a_failed_replacement_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_atomic(&path, b"old").unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(write_atomic(&dir.path().join("folder"), b"x").is_err());
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["file", "folder"]);
    }

    /// A link in a run folder could lead what is removed and written there to somebody else's files.
    #[test]
    fn a_run_folder_with_links_is_refused() {
        let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        drop(RunFolder::open(dir.path(), &recipe(&[])).unwrap());
        fs::create_dir_all(dir.path().join("grpo")).unwrap();
        for link in ["tensorboard", "grpo/checkpoints", ".recipe.toml.tmp"] {
            let link = dir.path().join(link);
            std::os::unix::fs::symlink(home.path(), &link).unwrap();
            let error = RunFolder::open(dir.path(), &recipe(&[])).unwrap_err();
            assert!(matches!(&error, RunError::Link { path } if *path == link), "{error}");
            fs::remove_file(link).unwrap();
        }
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = RunError::io("write", Path::new("x"))(full);
        assert!(matches!(error, RunError::DiskFull { .. }));
    }
}
