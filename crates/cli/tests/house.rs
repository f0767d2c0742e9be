//! The rules of the house, held against the manifests and the sources: which crate may import which of ours, where
//! `unsafe` may stand, and that nothing is async. `ARCHITECTURE.md` says why.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Every crate and those of ours that it may import.
const MAY_IMPORT: [(&str, &[&str]); 10] = [
    ("shoestring-ground", &[]),
    ("shoestring-comm", &[]),
    ("shoestring-tensor", &["shoestring-ground"]),
    ("shoestring-data", &["shoestring-ground"]),
    ("shoestring-model", &["shoestring-tensor", "shoestring-ground"]),
    ("shoestring-tasks", &["shoestring-data", "shoestring-ground"]),
    ("shoestring-engine", &["shoestring-model", "shoestring-tensor"]),
    (
        "shoestring-train",
        &[
            "shoestring-ground",
            "shoestring-comm",
            "shoestring-tensor",
            "shoestring-data",
            "shoestring-model",
            "shoestring-tasks",
            "shoestring-engine",
        ],
    ),
    ("shoestring-serve", &["shoestring-engine", "shoestring-model", "shoestring-data", "shoestring-tasks"]),
    (
        "shoestring",
        &[
            "shoestring-ground",
            "shoestring-comm",
            "shoestring-tensor",
            "shoestring-data",
            "shoestring-model",
            "shoestring-tasks",
            "shoestring-engine",
            "shoestring-train",
            "shoestring-serve",
        ],
    ),
];

/// The one crate with `unsafe`.
const UNSAFE: &str = "shoestring-tensor";
/// The crate that may be async, and the binary that starts it.
const ASYNC: [&str; 2] = ["shoestring-serve", "shoestring"];
/// Packages that bring an async runtime.
const RUNTIMES: [&str; 5] = ["tokio", "async-std", "smol", "async-executor", "futures-executor"];

fn root() -> PathBuf {
    let cli = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    Path::new(&cli).join("../..").canonicalize().expect("the workspace's folder")
}

/// Our packages by name, as `cargo metadata` lists them.
fn packages() -> BTreeMap<String, Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo metadata starts");
    assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("cargo metadata writes JSON");
    let list = metadata["packages"].as_array().expect("a list of packages");
    list.iter().map(|p| (p["name"].as_str().expect("a name").to_owned(), p.clone())).collect()
}

/// Names of what a package depends on, for building, testing and running alike.
fn dependencies(package: &Value) -> impl Iterator<Item = &str> {
    package["dependencies"].as_array().into_iter().flatten().filter_map(|d| d["name"].as_str())
}

fn folder(package: &Value) -> PathBuf {
    let manifest = Path::new(package["manifest_path"].as_str().expect("a path"));
    manifest.parent().expect("a manifest lies in a folder").to_owned()
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Lines of a package's sources that hold `word`, comments apart.
fn lines_with(package: &Value, word: &str) -> Vec<String> {
    let mut files = Vec::new();
    sources(&folder(package), &mut files);
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file is UTF-8");
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            // A hyphen joins words of a policy of pages, and follows no keyword.
            if code.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-').any(|w| w == word) {
                found.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
            }
        }
    }
    found
}

/// Packages of `Cargo.lock` with what each depends on; versions of one name are taken together.
fn locked() -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock is part of the repository");
    let mut packages: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for block in text.split("[[package]]").skip(1) {
        let quoted = |line: &str| line.split('"').nth(1).map(str::to_owned);
        let name =
            block.lines().find(|l| l.starts_with("name = ")).and_then(quoted).expect("a package has a name");
        let list = block.split_once("dependencies = [").map_or("", |(_, rest)| rest);
        let list = list.split(']').next().unwrap_or_default();
        // `"name"`, or `"name version"` where there are several.
        let wanted = list.lines().filter_map(quoted).filter_map(|d| d.split(' ').next().map(str::to_owned));
        packages.entry(name).or_default().extend(wanted);
    }
    packages
}

#[test]
fn imports_point_one_way() {
    let rows: BTreeMap<&str, &[&str]> = MAY_IMPORT.into_iter().collect();
    let packages = packages();
    for (name, package) in &packages {
        let row =
            rows.get(name.as_str()).unwrap_or_else(|| panic!("{name} has no row in the table of imports"));
        for wanted in dependencies(package).filter(|d| packages.contains_key(*d)) {
            assert!(row.contains(&wanted), "{name} may not import {wanted}; it may import {row:?}");
        }
    }
}

/// The modules of `train` that a module's sources name, their tests apart. `error` is named by all and names those whose
/// errors it holds.
fn names_modules(file: &Path, own: &str, out: &mut BTreeSet<String>) {
    let text = fs::read_to_string(file).expect("a source file is UTF-8");
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    for at in code.match_indices("crate::").map(|(at, found)| at + found.len()) {
        let name: String = code[at..].chars().take_while(|c| c.is_lowercase() || *c == '_').collect();
        if !name.is_empty() && name != own && name != "error" {
            out.insert(name);
        }
    }
}

/// A recipe knows its stages and a stage what it is made of, and nothing below knows what is above.
#[test]
fn no_module_of_train_imports_what_imports_it() {
    let src = root().join("crates/train/src");
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in fs::read_dir(&src).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let own = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let mut files = Vec::new();
        if path.is_dir() {
            sources(&path, &mut files)
        } else {
            files.push(path)
        }
        // What stands in a file of its own for the tests alone.
        files
            .retain(|f| !["tests.rs", "trl.rs"].contains(&f.file_name().unwrap().to_string_lossy().as_ref()));
        let found = imports.entry(own.clone()).or_default();
        files.iter().for_each(|file| names_modules(file, &own, found));
    }
    assert!(imports["pipeline"].contains("recipe") && imports["recipe"].contains("stages"));
    for name in imports.keys().filter(|name| *name != "error") {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![name]);
        while let Some(next) = todo.pop() {
            for wanted in imports.get(next).into_iter().flatten().filter(|w| seen.insert((*w).clone())) {
                assert!(wanted != name, "{name} imports {next}, which imports {name}");
                todo.push(wanted);
            }
        }
    }
}

/// The lints of the workspace deny `unsafe` and ask for documentation: they only hold where a crate inherits them.
#[test]
fn every_crate_inherits_the_lints() {
    for (name, package) in packages() {
        let manifest = fs::read_to_string(folder(&package).join("Cargo.toml")).expect("a manifest");
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{name} does not inherit the workspace's lints"
        );
    }
}

#[test]
fn unsafe_stands_in_one_crate() {
    let word = concat!("un", "safe");
    for (name, package) in packages() {
        let found = lines_with(&package, word);
        assert_eq!(found.is_empty(), name != UNSAFE, "{name}:\n{}", found.join("\n"));
    }
}

#[test]
fn nothing_is_async_but_the_server() {
    let locked = locked();
    for (name, package) in packages().iter().filter(|(name, _)| !ASYNC.contains(&name.as_str())) {
        let found = lines_with(package, concat!("as", "ync"));
        assert!(found.is_empty(), "{name}:\n{}", found.join("\n"));
        let (mut seen, mut todo) = (BTreeSet::new(), vec![name.as_str()]);
        while let Some(next) = todo.pop() {
            assert!(!RUNTIMES.contains(&next), "{name} brings in {next}");
            if seen.insert(next) {
                todo.extend(locked.get(next).into_iter().flatten().map(String::as_str));
            }
        }
        assert!(seen.len() > 1 || dependencies(package).next().is_none(), "{name} is not in Cargo.lock");
    }
}
