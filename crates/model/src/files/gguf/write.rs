//! Writing a model as a GGUF file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use ground::gguf::{Keys, Outline, Value as Field, write};
use tensor::blocks::Format;

use super::keys::of_config;
use super::names::{Place, place};
use crate::config::{
    ConfigError, ModelConfig, RopeScaling, TensorKind, TensorSpec, llama3_factors, tensor_specs,
};
use crate::files::FileError;

/// How the matrices of a file are stored. Vectors, and the router's matrix, stay in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufType {
    /// One format for all.
    Plain(Format),
    /// llama.cpp's mix: 4-bit K blocks, 6-bit ones for the head and half of the values' and down projections.
    Q4KM,
}

impl GgufType {
    /// What the user may ask for.
    pub const NAMES: [(&'static str, GgufType); 7] = [
        ("f32", GgufType::Plain(Format::F32)),
        ("bf16", GgufType::Plain(Format::Bf16)),
        ("f16", GgufType::Plain(Format::F16)),
        ("q8_0", GgufType::Plain(Format::Q8_0)),
        ("q4_0", GgufType::Plain(Format::Q4_0)),
        ("q4_1", GgufType::Plain(Format::Q4_1)),
        ("q4_k_m", GgufType::Q4KM),
    ];

    /// llama.cpp's number for a file of this type (`general.file_type`).
    fn number(self) -> i64 {
        match self {
            GgufType::Plain(Format::F32) => 0,
            GgufType::Plain(Format::F16) => 1,
            GgufType::Plain(Format::Q4_0) => 2,
            GgufType::Plain(Format::Q4_1) => 3,
            GgufType::Plain(Format::Q8_0) => 7,
            GgufType::Q4KM => 15,
            GgufType::Plain(Format::Bf16) => 32,
            GgufType::Plain(other) => other.ggml().into(),
        }
    }

    /// The format of a matrix, by llama.cpp's rules (`llama-quant.cpp`): the head has more bits, and so do the layers' values and
    /// down projections at both ends and every third between; rows that are no whole blocks take the next smaller block.
    fn of(self, spec: &TensorSpec, config: &ModelConfig) -> Format {
        let head = match spec.kind {
            TensorKind::Norm | TensorKind::Bias | TensorKind::Router | TensorKind::RouterBias => {
                return Format::F32;
            }
            TensorKind::Head => true,
            TensorKind::Embedding => config.tie_word_embeddings(),
            _ => false,
        };
        let cols = spec.shape[spec.shape.len() - 1];
        let wanted = match self {
            GgufType::Plain(format @ (Format::F32 | Format::F16 | Format::Bf16 | Format::Q8_0)) => format,
            _ if head && !cols.is_multiple_of(256) => Format::Q8_0,
            _ if head => Format::Q6_K,
            GgufType::Plain(format) => format,
            GgufType::Q4KM => {
                let (layer, layers) = (spec.layer.unwrap_or(0), config.num_hidden_layers());
                let ends = layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
                let more = ends && [".v_proj.", ".down_proj."].iter().any(|part| spec.name.contains(part));
                if more { Format::Q6_K } else { Format::Q4_K }
            }
        };
        let smaller = match wanted {
            Format::Q4_K => Format::Q5_0,
            Format::Q6_K => Format::Q8_0,
            other => other,
        };
        let fits = |format: &Format| cols.is_multiple_of(format.values());
        [wanted, smaller, Format::F16].into_iter().find(fits).expect("f16 fits every row")
    }
}

/// One tensor of the file: the ones of ours that it holds, and how.
struct Part {
    name: String,
    specs: Vec<TensorSpec>,
    format: Format,
    outline: Outline,
}

/// Writes a model: its keys, the tokenizer's keys as they are given, and the tensors, whose values `values` finds by their Hugging
/// Face names. Multi-token prediction is left out, for which there is no place.
///
/// # Errors
/// A configuration that the format cannot express, or a folder that cannot be written.
pub fn write_gguf<'a>(
    path: &Path,
    config: &ModelConfig,
    name: &str,
    tokenizer: Keys,
    kind: GgufType,
    values: impl Fn(&str) -> &'a [f32],
) -> Result<(), FileError> {
    let in_file =
        |source: ConfigError| ConfigError::InFile { path: path.to_path_buf(), source: Box::new(source) };
    let mut keys = of_config(config).map_err(in_file)?;
    keys.push(("general.name".into(), Field::Text(name.to_owned())));
    keys.push(("general.file_type".into(), Field::Int(kind.number())));
    keys.push(("general.quantization_version".into(), Field::Int(2)));
    keys.extend(tokenizer);
    let parts = parts(config, kind);
    let mut outlines: Vec<Outline> = parts.iter().map(|p| p.outline.clone()).collect();
    let factors = match &config.rope().scaling {
        RopeScaling::Llama3(scaling) => {
            let dim = 2 * config.rope_tables_spec().inv_freq.len();
            llama3_factors(config.rope().theta, dim, scaling)
        }
        _ => Vec::new(),
    };
    if !factors.is_empty() {
        let (name, n) = ("rope_freqs.weight".to_owned(), factors.len());
        outlines.push(Outline { name, shape: vec![n], kind: Format::F32.ggml(), bytes: 4 * n as u64 });
    }
    let bytes = |i: usize| match parts.get(i) {
        Some(part) => {
            part.specs.iter().flat_map(|spec| blocks(config, part, spec, values(&spec.name))).collect()
        }
        None => factors.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    let fill = |file: &mut File| {
        let mut file = BufWriter::new(file);
        write(&mut file, &keys, &outlines, bytes)?;
        file.flush()
    };
    ground::atomic::replace_with(path, fill).map_err(FileError::io("write", path))
}

fn parts(config: &ModelConfig, kind: GgufType) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let main = |spec: &TensorSpec| spec.layer.is_none_or(|layer| layer < config.num_hidden_layers());
    for spec in tensor_specs(config).into_iter().filter(main) {
        let Some(place) = place(&spec.name, config.family().gguf_names) else { continue };
        let (Place::Whole(name) | Place::Expert { name, .. }) = place.clone();
        let format = kind.of(&spec, config);
        let cols = spec.shape[spec.shape.len() - 1];
        let rows = spec.elements() / cols;
        let bytes = (format.bytes_of(cols).expect("a format that fits") * rows) as u64;
        // A layer's experts share one tensor; ours lie with gate, up and down of each side by side.
        let held = parts.iter_mut().rev().take(3).find(|part| part.name == name);
        match (place, held) {
            (Place::Expert { .. }, Some(part)) => {
                part.outline.bytes += bytes;
                part.outline.shape[0] += 1;
                part.specs.push(spec);
            }
            (place, _) => {
                let experts = matches!(place, Place::Expert { .. }).then_some(1);
                let shape: Vec<usize> = experts.into_iter().chain(spec.shape.iter().copied()).collect();
                let outline = Outline { name: name.clone(), shape, kind: format.ggml(), bytes };
                parts.push(Part { name, specs: vec![spec], format, outline });
            }
        }
    }
    parts
}

/// A tensor's rows in the order of the file, rounded into its blocks.
fn blocks(config: &ModelConfig, part: &Part, spec: &TensorSpec, values: &[f32]) -> Vec<u8> {
    let pack = |values: &[f32]| part.format.pack(values).expect("a format that is written");
    let Some(heads) = config.gguf_interleaved_heads(&spec.name) else { return pack(values) };
    let (rows, cols) = (spec.shape[0], spec.shape[1]);
    let dim = rows / heads;
    let ours = |row: usize| row / dim * dim + row % 2 * (dim / 2) + row % dim / 2;
    (0..rows).flat_map(|row| pack(&values[ours(row) * cols..][..cols])).collect()
}
