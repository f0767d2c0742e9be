//! Whether all ranks are about to do the same: the program, the recipe, the problems and every file that it names are compared by
//! checksum before the first step.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::TrainError;
use crate::problems::ProblemSource;
use crate::recipe::{Recipe, Reference};
use crate::run::RunError;
use crate::team::Team;

/// What a rank has, each with its checksum.
type Has = Vec<(String, u32)>;

/// Compares this rank with the others.
///
/// # Errors
/// The first rank that has something else than rank 0, with what that is; a file that cannot be read.
pub fn check(
    team: &Team,
    recipe: &Recipe,
    stages: &[String],
    problems: Option<&ProblemSource>,
) -> Result<(), TrainError> {
    if team.ranks() == 1 {
        return Ok(());
    }
    if tensor::device(0).is_some() {
        return Err(TrainError::Ranks(
            "several ranks calculate on processors: give them `--device cpu`".into(),
        ));
    }
    let mut has = Has::new();
    for (name, path) in files(recipe) {
        has.push((format!("{name} ({})", path.display()), of_path(&path)?));
    }
    let drawn = problems.map(|p| (p.list(None), p.held_out().collect::<Vec<_>>()));
    let mut text = |name: &str, text: &[u8]| has.push((name.to_owned(), crc32fast::hash(text)));
    text("the recipe", recipe.resolved_toml().as_bytes());
    text("--stages", stages.join(",").as_bytes());
    text("the problems", &serde_json::to_vec(&drawn).expect("problems are plain JSON"));
    text("the version of the program", env!("CARGO_PKG_VERSION").as_bytes());
    let program = std::env::current_exe().ok().and_then(|path| of_path(&path).ok());
    let own = (std::env::consts::ARCH.to_owned(), program, has);
    let all = team.all(own);
    let (first_arch, first_program, first) = &all[0];
    for (rank, (arch, program, has)) in all.iter().enumerate() {
        let differs = first.iter().zip(has).find(|(a, b)| a != b).map(|(a, _)| a.0.as_str());
        // Programs for other processors are other files.
        let rebuilt = (arch == first_arch && program != first_program).then_some("the program");
        if let Some(what) = differs.or(rebuilt) {
            return Err(TrainError::Ranks(format!(
                "rank {rank} has not what rank 0 has: {what} differs; ranks must run one program on one recipe with the \
                 same files"
            )));
        }
    }
    Ok(())
}

/// Files and folders that a recipe names, each with its key or the stage that reads it.
fn files(recipe: &Recipe) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    found.extend(recipe.problems.jsonl.iter().map(|path| ("problems.jsonl".to_owned(), path.clone())));
    for stage in &recipe.stages {
        let name = |key: &str| format!("{key} of stage `{}`", stage.name());
        found.extend(stage.files().into_iter().map(|(key, path)| (name(key), path.to_owned())));
        let measured = stage.measures().map_or(&[][..], |m| m.0);
        for reference in stage.built_on().into_iter().chain(measured.iter().map(String::as_str)) {
            if let Reference::Path(path) = recipe.reference(reference)
                && !reference.is_empty()
            {
                found.push((name("a model"), path.to_owned()));
            }
        }
    }
    found
}

/// Of a file's bytes; of a folder's files with their names, those in folders of it too.
fn of_path(path: &Path) -> Result<u32, RunError> {
    let mut sum = crc32fast::Hasher::new();
    add(path, &mut sum)?;
    Ok(sum.finalize())
}

fn add(path: &Path, sum: &mut crc32fast::Hasher) -> Result<(), RunError> {
    let io = || RunError::io("read", path);
    if path.is_dir() {
        let entries = fs::read_dir(path).map_err(io())?.filter_map(Result::ok).map(|e| e.path());
        let mut entries: Vec<PathBuf> = entries.collect();
        entries.sort();
        for entry in entries {
            sum.update(entry.file_name().unwrap_or_default().as_encoded_bytes());
            add(&entry, sum)?;
        }
        return Ok(());
    }
    let mut file = File::open(path).map_err(io())?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(io())? {
            0 => return Ok(()),
            n => sum.update(&buffer[..n]),
        }
    }
}
