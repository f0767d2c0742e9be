//! Where NVIDIA's libraries may lie.

use std::path::{Path, PathBuf};

/// Files that a library of a name such as "libnvrtc.so" may be, best first: in Python's environment, whose folders
/// `wheels` are below `nvidia`, in the CUDA toolkit, and where the loader looks.
pub(super) fn candidates(wheels: &[&str], name: &str) -> Vec<PathBuf> {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let toolkits = [of("CUDA_HOME"), of("CUDA_PATH"), Some("/usr/local/cuda".into())];
    candidates_in(of("VIRTUAL_ENV"), toolkits.into_iter().flatten(), wheels, name)
}

fn candidates_in(
    python: Option<PathBuf>,
    toolkits: impl Iterator<Item = PathBuf>,
    wheels: &[&str],
    name: &str,
) -> Vec<PathBuf> {
    let packages = python.into_iter().flat_map(|env| site_packages(&env));
    let mut found: Vec<PathBuf> =
        packages.flat_map(|dir| wheels.iter().flat_map(move |w| files_like(&dir.join(w), name))).collect();
    found.extend(toolkits.flat_map(|dir| files_like(&dir.join("lib64"), name)));
    found.extend([format!("{name}.13"), format!("{name}.12"), name.to_owned()].map(PathBuf::from));
    found
}

fn site_packages(env: &Path) -> Vec<PathBuf> {
    files_like(&env.join("lib"), "python3").into_iter().map(|p| p.join("site-packages/nvidia")).collect()
}

/// What begins with `prefix` in a folder, the newest version first.
pub(super) fn files_like(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(prefix))
        .map(|e| e.path())
        .collect();
    found.sort();
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_libraries_come_first_then_the_toolkits_then_the_loaders_the_newest_before_the_older() {
        let root = std::env::temp_dir().join(format!("shoestring-libraries-{}", std::process::id()));
        let (python, toolkit) = (root.join("env"), root.join("cuda"));
        let wheel = python.join("lib/python3.12/site-packages/nvidia/cu13/lib");
        let files = [
            wheel.join("libx.so.13"),
            wheel.join("libx.so.12"),
            toolkit.join("lib64/libx.so"),
            toolkit.join("lib64/liby.so"),
        ];
        for file in &files {
            std::fs::create_dir_all(file.parent().expect("a folder")).expect("a writable folder");
            std::fs::write(file, "").expect("a writable folder");
        }
        let found = candidates_in(Some(python), [toolkit].into_iter(), &["cu13/lib", "x/lib"], "libx.so");
        std::fs::remove_dir_all(&root).expect("our own folder");
        let loaders = ["libx.so.13", "libx.so.12", "libx.so"].map(PathBuf::from);
        assert_eq!(found, [&files[..3], &loaders].concat());
    }
}
