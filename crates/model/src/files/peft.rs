//! Adapters on disk, as PEFT reads and writes them: `adapter_config.json` and `adapter_model.safetensors`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{FileError, SafeFile};
use crate::adapter::{AdapterConfig, base_of, in_order, pair};
use crate::config::keys::Keys;
use crate::config::{ConfigError, TensorKind, TensorSpec, read_json};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// An adapter's folder.
#[derive(Debug)]
pub struct AdapterFolder {
    /// Its settings; the targets are those that it has matrices for.
    pub config: AdapterConfig,
    /// The model that it was trained on, as the folder names it.
    pub base: Option<String>,
    path: PathBuf,
    file: SafeFile,
}

/// Settings that would change the arithmetic, each with the values that mean "as usual".
const UNSUPPORTED: [(&str, &str); 12] = [
    ("use_dora", "[false]"),
    ("use_qalora", "[false]"),
    ("bias", r#"["none"]"#),
    ("fan_in_fan_out", "[false]"),
    ("modules_to_save", "[[]]"),
    ("layers_to_transform", "[[]]"),
    ("layers_pattern", "[[]]"),
    ("rank_pattern", "[{}]"),
    ("alpha_pattern", "[{}]"),
    ("target_parameters", "[[]]"),
    ("trainable_token_indices", "[[], {}]"),
    ("lora_bias", "[false]"),
];

impl AdapterFolder {
    /// Opens a folder, if it holds an adapter and no model beside it.
    pub fn find(dir: &Path) -> Result<Option<AdapterFolder>, FileError> {
        let path = dir.join(CONFIG);
        if !path.is_file() || dir.join("config.json").exists() {
            return Ok(None);
        }
        let value = read_json(&path)?;
        let (mut config, base) = settings(&value)
            .map_err(|source| ConfigError::InFile { path: path.clone(), source: Box::new(source) })?;
        let file = SafeFile::open(dir.join(WEIGHTS))?;
        let bases: Vec<String> = file.names().filter_map(base_of).collect();
        let modules: Vec<&str> = bases.iter().filter_map(|name| name.strip_suffix(".weight")).collect();
        // A list names the ends of modules; a text is a pattern.
        let named = value["target_modules"].as_array().filter(|list| !list.is_empty());
        let is_named = |module: &&&str| {
            let ends = |target: &Value| {
                target.as_str().is_some_and(|t| format!(".{module}").ends_with(&format!(".{t}")))
            };
            named.is_none_or(|list| list.iter().any(ends))
        };
        if let Some(stray) = modules.iter().find(|module| !is_named(module)) {
            let reason = format!("it has matrices for `{stray}`, which its `target_modules` do not name");
            return Err(FileError::Adapter { path: dir.to_path_buf(), reason });
        }
        config.targets = modules.iter().filter_map(|m| Some(m.rsplit('.').next()?.to_owned())).collect();
        config.targets.sort_unstable();
        config.targets.dedup();
        Ok(Some(AdapterFolder { config, base, path: dir.to_path_buf(), file }))
    }

    pub(crate) fn refuse(&self, reason: String) -> FileError {
        FileError::Adapter { path: self.path.clone(), reason }
    }

    /// Where the model lies that the adapter was trained on.
    pub fn base(&self, dir: &Path) -> Result<PathBuf, FileError> {
        let named = self.base.as_deref().unwrap_or_default();
        // From the working directory, as PEFT means it, or beside the adapter.
        let places = [PathBuf::from(named), dir.join(named)];
        let found = places.into_iter().find(|path| !named.is_empty() && path.exists());
        found.ok_or_else(|| {
            self.refuse(format!("it was trained on {named:?}, which is not here: name the model, and this folder with --adapter"))
        })
    }

    /// Refuses other settings than the folder's; no targets mean its own.
    pub fn check_same(&self, wanted: &AdapterConfig) -> Result<(), FileError> {
        let found = &self.config;
        let mut targets = wanted.targets.clone();
        targets.sort_unstable();
        targets.dedup();
        let same = wanted.rank == found.rank && wanted.scale() == found.scale();
        if same && (targets.is_empty() || targets == found.targets) {
            return Ok(());
        }
        let words = format!(
            "it has rank {}, alpha {} and the targets {}: a stage goes on with these, or merges it first (convert)",
            found.rank,
            found.alpha,
            found.targets.join(", ")
        );
        Err(self.refuse(words))
    }

    /// Its matrices as tensors beside a model's.
    ///
    /// # Errors
    /// Matrices that do not fit the model, in words.
    pub fn specs(&self, model: &[TensorSpec]) -> Result<Vec<TensorSpec>, String> {
        let mut pairs = Vec::new();
        for spec in model.iter().filter(|spec| spec.kind == TensorKind::Matrix) {
            let Some(module) = spec.name.strip_suffix(".weight") else { continue };
            let &[_, _] = &spec.shape[..] else { continue };
            let pair = pair(spec, module, self.config.rank);
            if pair.iter().all(|tensor| self.file.shape(&tensor.name).is_none()) {
                continue;
            }
            for TensorSpec { name, shape, .. } in &pair {
                match self.file.shape(name) {
                    None => return Err(format!("`{name}` is not there, but the other of the pair is")),
                    Some(found) if found != &shape[..] => {
                        let rank = self.config.rank;
                        return Err(format!(
                            "`{name}` has the shape {found:?}, but this model and rank {rank} want {shape:?}"
                        ));
                    }
                    Some(_) => {}
                }
            }
            pairs.push(pair);
        }
        let specs = in_order(pairs);
        let mut names = self.file.names();
        match names.find(|name| specs.iter().all(|spec| spec.name != *name)) {
            Some(name) => Err(format!("its tensor `{name}` belongs to nothing in the model")),
            None if specs.is_empty() => Err("it holds no matrices".to_owned()),
            None => Ok(specs),
        }
    }

    /// Refuses a model that the adapter was not trained beside, where the adapter is from here and so knows.
    pub(crate) fn check_base(&self, path: &Path, mark: &str) -> Result<(), FileError> {
        if self.file.base_mark().is_none_or(|own| own == mark) {
            return Ok(());
        }
        let (own, given) = (self.base.as_deref().unwrap_or("another model"), path.display());
        Err(self
            .refuse(format!("it was trained beside the weights of {own}, and those of {given} are others")))
    }

    /// Reads one of the tensors of [`AdapterFolder::specs`].
    pub fn read(&self, spec: &TensorSpec, to: &mut [f32]) -> Result<(), FileError> {
        self.file.read_f32(&spec.name, &spec.shape, to)
    }
}

fn settings(value: &Value) -> Result<(AdapterConfig, Option<String>), ConfigError> {
    let keys = Keys::of(value)?;
    keys.only("peft_type", &["LORA".into()], "only LORA is supported")?;
    for (key, usual) in UNSUPPORTED {
        let usual: Vec<Value> = serde_json::from_str(usual)?;
        keys.only(key, &usual, "must not be set: it would change what the adapter computes")?;
    }
    let config = AdapterConfig {
        rank: keys.size("r")?,
        alpha: keys.number("lora_alpha")?,
        targets: Vec::new(),
        rslora: keys.flag_or("use_rslora", false)?,
    };
    if config.rank == 0 || config.rank > crate::adapter::MAX_RANK {
        return Err(ConfigError::unsupported("r", config.rank, "must be between 1 and 4096"));
    }
    Ok((config, keys.text("base_model_name_or_path")?.map(str::to_owned)))
}

/// Writes `adapter_config.json`.
pub(crate) fn write_config(
    dir: &Path,
    config: &AdapterConfig,
    targets: &[String],
    base: &Path,
) -> Result<(), FileError> {
    let value = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": if config.alpha.fract() == 0.0 { json!(config.alpha as u64) } else { json!(config.alpha) },
        "use_rslora": config.rslora,
        "target_modules": targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
    });
    let path = dir.join(CONFIG);
    ground::atomic::replace(&path, format!("{value:#}\n").as_bytes()).map_err(FileError::io("write", &path))
}

/// The file that an adapter's matrices are written to.
pub(crate) fn weights_path(dir: &Path) -> PathBuf {
    dir.join(WEIGHTS)
}
