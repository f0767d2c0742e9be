//! Reading a model from disk, held as it is to be used: trained in full, frozen, or frozen with adapters that are trained.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tensor::blocks::Format;
use tensor::{Gpu, Hold, Math, Params};

use crate::adapter::{AdapterConfig, base_of};
use crate::config::{ModelConfig, TensorKind, TensorSpec, tensor_specs};
use crate::device::place_of;
use crate::files::peft::AdapterFolder;
use crate::files::{FileError, ModelFolder, Weights};
use crate::transformer::Model;

/// How weights that nothing trains are held in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeldAs {
    /// As the file stores them, with the values that they have unpacked.
    #[default]
    Stored,
    /// In f32: twice the memory of bf16, and the fastest where many rows are multiplied.
    F32,
    /// Rounded to bf16.
    Bf16,
    /// Rounded to blocks of 8 bits.
    #[serde(rename = "q8_0")]
    Q8_0,
}

/// What is to be done with a model that is read.
#[derive(Debug, Clone, Default)]
pub enum Use {
    /// All weights are trained, in f32.
    #[default]
    Train,
    /// Nothing is trained.
    Infer(HeldAs),
    /// Adapters are trained beside weights that are frozen.
    Adapt(HeldAs, AdapterConfig),
}

impl Model {
    /// Reads a Hugging Face model folder or a GGUF file, to train it in full.
    ///
    /// A folder that holds an adapter (`adapter_config.json`) and no model of its own is read with the model that it names, into
    /// which the adapter is merged.
    pub fn load(path: &Path) -> Result<Model, FileError> {
        Model::open(path, Use::Train)
    }

    /// The same for a given use. Where `path` is an adapter's folder, [`Use::Adapt`] goes on with that adapter, whose settings must
    /// be the given ones; [`Use::Infer`] applies it unmerged.
    pub fn open(path: &Path, wanted: Use) -> Result<Model, FileError> {
        match AdapterFolder::find(path)? {
            Some(adapter) => Model::with_adapter(&adapter.base(path)?, &adapter, wanted),
            None => Model::base(path, wanted, None),
        }
    }

    /// Reads a model with an adapter from a folder of its own.
    pub fn open_with(path: &Path, adapter: &Path, wanted: Use) -> Result<Model, FileError> {
        let found = AdapterFolder::find(adapter)?;
        let found = found.ok_or_else(|| FileError::NoAdapter { dir: adapter.to_path_buf() })?;
        Model::with_adapter(path, &found, wanted)
    }

    fn with_adapter(base: &Path, adapter: &AdapterFolder, wanted: Use) -> Result<Model, FileError> {
        let held = match wanted {
            Use::Train => {
                let mut model =
                    Model::base(base, Use::Adapt(HeldAs::F32, adapter.config.clone()), Some(adapter))?;
                model.merge();
                return Ok(model);
            }
            Use::Infer(held) => held,
            Use::Adapt(held, ref config) => {
                adapter.check_same(config)?;
                held
            }
        };
        Model::base(base, Use::Adapt(held, adapter.config.clone()), Some(adapter))
    }

    fn base(path: &Path, wanted: Use, adapter: Option<&AdapterFolder>) -> Result<Model, FileError> {
        let folder = ModelFolder::open(path)?;
        let mut specs = tensor_specs(&folder.config);
        let place = place_of(&folder.config);
        let place = place.map_err(|reason| FileError::Device { path: path.to_path_buf(), reason })?;
        let (held, adapter_config) = match &wanted {
            Use::Train => (None, None),
            Use::Infer(held) => (Some(*held), None),
            Use::Adapt(held, config) => (Some(*held), Some(config.clone())),
        };
        let all = |wanted: Format| {
            specs.iter().all(|spec| folder.weights.format(&spec.name).is_none_or(|f| f == wanted))
        };
        let held = held.map(|held| match held {
            HeldAs::Stored if all(Format::F32) => HeldAs::F32,
            held => held,
        });
        let hold = |spec: &TensorSpec, held: Option<HeldAs>| match held {
            None if spec.kind == TensorKind::RouterBias => Hold::Steered,
            None => Hold::Trained,
            Some(held) => frozen(spec, held, &folder.weights),
        };
        let mut stored_bytes: usize = specs.iter().map(|spec| bytes_of(spec, hold(spec, held))).sum();
        // The values are the same.
        let unpacked = |gpu: &Gpu| has_room_unpacked(gpu, &specs, all(Format::Bf16));
        let held = held.map(|held| match held {
            HeldAs::Stored if place.gpu.as_ref().is_some_and(unpacked) => HeldAs::F32,
            held => held,
        });
        let mut list: Vec<(String, Vec<usize>, Hold)> =
            specs.iter().map(|s| (s.name.clone(), s.shape.clone(), hold(s, held))).collect();
        if let Some(config) = &adapter_config {
            let refuse = |reason| FileError::Adapter { path: path.to_path_buf(), reason };
            let more = match adapter {
                Some(adapter) => adapter.specs(&specs).map_err(|reason| adapter.refuse(reason))?,
                None => config.specs(&specs).map_err(refuse)?,
            };
            list.extend(more.iter().map(|s| (s.name.clone(), s.shape.clone(), Hold::Trained)));
            stored_bytes += more.iter().map(|spec| bytes_of(spec, Hold::Trained)).sum::<usize>();
            specs.extend(more);
        }
        let mut model = Model::of(folder.config, Params::held(list), adapter_config);
        model.describe(folder.generation, folder.notices, path.to_path_buf());
        model.set_stored_bytes(stored_bytes);
        fill(&mut model, &specs, &folder.weights, adapter)?;
        adapter.map_or(Ok(()), |adapter| adapter.check_base(path, &model.base_mark()))?;
        model.place(place);
        Ok(model)
    }
}

/// Whether stored weights are better unpacked once on a GPU: its products unpack them every time, but for bf16 in fast mode, and
/// half of its memory holds them all.
fn has_room_unpacked(gpu: &Gpu, specs: &[TensorSpec], halves: bool) -> bool {
    let bytes = match gpu.math() {
        Math::Exact => 4,
        Math::Fast if halves => return false,
        // As they are read, and as products read them.
        Math::Fast => 6,
    };
    bytes * specs.iter().map(TensorSpec::elements).sum::<usize>() <= gpu.info().memory / 2
}

/// Bytes of a weight that is held so.
fn bytes_of(spec: &TensorSpec, hold: Hold) -> usize {
    let cols = spec.shape[spec.shape.len() - 1];
    match hold {
        Hold::Stored(format) => {
            let row = format.bytes_of(cols).expect("rows of whole blocks");
            spec.elements() / cols.max(1) * row
        }
        _ => 4 * spec.elements(),
    }
}

/// How a weight that nothing trains is held.
fn frozen(spec: &TensorSpec, held: HeldAs, weights: &Weights) -> Hold {
    let cols = spec.shape[spec.shape.len() - 1];
    let format = match held {
        HeldAs::Stored => weights.format(&spec.name).unwrap_or(Format::F32),
        HeldAs::F32 => Format::F32,
        HeldAs::Bf16 => Format::Bf16,
        HeldAs::Q8_0 => Format::Q8_0,
    };
    let blocks = format != Format::F32 && format.bytes_of(cols).is_some();
    match spec.kind {
        TensorKind::Norm | TensorKind::Bias | TensorKind::RouterBias => Hold::Frozen,
        // What decides much and weighs little is not rounded.
        TensorKind::Router if held != HeldAs::Stored => Hold::Frozen,
        // Neighbours that are read as one must lie in one region, so that all matrices do.
        _ if held == HeldAs::F32 => Hold::Frozen,
        _ if blocks => Hold::Stored(format),
        _ => Hold::Stored(Format::F32),
    }
}

/// Reads every parameter's values, those of an adapter from its folder or as they begin.
fn fill(
    model: &mut Model,
    specs: &[TensorSpec],
    weights: &Weights,
    adapter: Option<&AdapterFolder>,
) -> Result<(), FileError> {
    let params: Vec<_> = model.params().list().iter().map(|p| (p.weight, p.hold)).collect();
    let mut values = Vec::new();
    let from_one = model.config().norms_from_one();
    for (i, (spec, (w, hold))) in specs.iter().zip(params).enumerate() {
        let params = model.params_mut();
        if base_of(&spec.name).is_some() {
            let to = params.values_mut(w);
            match adapter {
                Some(adapter) => adapter.read(spec, to)?,
                None => begin(spec, i, to),
            }
            finite(&spec.name, to)?;
            continue;
        }
        let as_it_is = match hold {
            Hold::Stored(format) if weights.format(&spec.name) == Some(format) => {
                weights.read_blocks(&spec.name)?
            }
            _ => None,
        };
        match (hold, as_it_is) {
            (Hold::Stored(_), Some(blocks)) => {
                params.set_blocks(w, blocks);
                values.resize(w.cols, 0.0);
                for row in 0..w.rows {
                    params.read_row(w, row, &mut values);
                    finite(&spec.name, &values)?;
                }
            }
            (Hold::Stored(_), None) => {
                values.resize(w.len(), 0.0);
                weights.read_f32(&spec.name, &spec.shape, &mut values)?;
                finite(&spec.name, &values)?;
                params.set(w, &values);
            }
            _ => {
                let to = params.values_mut(w);
                weights.read_f32(&spec.name, &spec.shape, to)?;
                finite(&spec.name, to)?;
                // llama.cpp keeps the sum.
                if from_one && spec.kind == TensorKind::Norm && matches!(weights, Weights::Safetensors(_)) {
                    to.iter_mut().for_each(|x| *x += 1.0);
                }
            }
        }
    }
    Ok(())
}

/// An adapter's first values: A uniform within `1 / √inputs`, as PEFT draws it, B zero, so that the model begins as it is.
fn begin(spec: &TensorSpec, number: usize, to: &mut [f32]) {
    if spec.name.ends_with(".lora_B.weight") {
        return;
    }
    let bound = 1.0 / (spec.shape[1] as f32).sqrt();
    let mut rng = tensor::Rng::at(0x10a, &[number as u64]);
    to.iter_mut().for_each(|x| *x = bound * (2.0 * rng.uniform() - 1.0));
}

fn finite(name: &str, values: &[f32]) -> Result<(), FileError> {
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(index) => Err(FileError::NotFinite { name: name.to_owned(), index, value: values[index] }),
    }
}

/// The configuration of a model on disk, an adapter's that of its base.
pub fn config_of(path: &Path) -> Result<ModelConfig, FileError> {
    Ok(ModelConfig::load(base_path(path)?)?)
}

/// Where a model itself lies: the base of an adapter's folder, else the path.
pub fn base_path(path: &Path) -> Result<PathBuf, FileError> {
    match AdapterFolder::find(path)? {
        Some(adapter) => adapter.base(path),
        None => Ok(path.to_path_buf()),
    }
}
