//! Paths that do not exist, and what they may have meant.

use std::fs;
use std::path::{Path, PathBuf};

use train::settings::node::nearest;

/// Names of a folder that are compared, at most.
const MOST_NAMES: usize = 10_000;

/// A question that follows "there is no …": the path of the nearest name, if there is one.
pub fn hint(path: &Path) -> String {
    meant(path).map_or_else(String::new, |near| format!(" (is it {}?)", near.display()))
}

/// The path whose names are the nearest to those of a path that does not exist.
fn meant(path: &Path) -> Option<PathBuf> {
    let mut there = PathBuf::new();
    for part in path.components() {
        let next = there.join(part);
        there = if next.exists() {
            next
        } else {
            let folder = if there.as_os_str().is_empty() { Path::new(".") } else { &there };
            let entries = fs::read_dir(folder).ok()?.flatten().take(MOST_NAMES);
            let names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
            there.join(nearest(part.as_os_str().to_str()?, names.iter().map(String::as_str))?)
        };
    }
    (there != path).then_some(there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_on_the_way_are_found() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(dir.path().join("runs/launch/grpo")).expect("folders");
        let meant = |path: &str| meant(&dir.path().join(path));
        let right = Some(dir.path().join("runs/launch/grpo"));
        assert_eq!(meant("runs/launch/grp"), right);
        assert_eq!(meant("run/lanuch/grpo"), right, "two slips");
        assert_eq!(meant("runs/launch/grpo"), None, "it is there");
        assert_eq!(meant("runs/entirely-other"), None);
        assert_eq!(hint(Path::new("")), "");
    }
}
