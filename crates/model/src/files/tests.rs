//! Model folders: exact round trips, typed refusals, no panic whatever the bytes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::weights::compare;
use super::*;
use crate::config::{ModelConfig, tensor_specs};

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

fn golden(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case)
}

fn sample() -> Tensors {
    let values = |n: usize, from: f32| (0..n).map(|i| from + i as f32 * 0.37).collect();
    vec![
        ("model.embed_tokens.weight".into(), vec![5, 3], values(15, -2.0)),
        ("model.layers.0.mlp.gate.e_score_correction_bias".into(), vec![3], values(3, 1.0 / 3.0)),
        ("model.norm.weight".into(), vec![3], values(3, 1.0)),
        ("lm_head.weight".into(), vec![5, 3], values(15, 7.0)),
    ]
}

fn write(dir: &Path, tensors: &Tensors, dtype: WeightType, max: u64) -> Result<WrittenWeights, FileError> {
    let views = tensors.iter().map(|(name, shape, data)| (name.as_str(), &shape[..], &data[..]));
    write_weights(dir, views, dtype, max)
}

fn read(reader: &WeightsReader, name: &str, shape: &[usize]) -> Result<Vec<f32>, FileError> {
    let mut out = vec![0.0; shape.iter().product()];
    reader.read_f32(name, shape, &mut out).map(|()| out)
}

fn read_of(weights: &Weights, name: &str, shape: &[usize]) -> Result<Vec<f32>, FileError> {
    let mut out = vec![0.0; shape.iter().product()];
    weights.read_f32(name, shape, &mut out).map(|()| out)
}

fn assert_holds(dir: &Path, tensors: &Tensors) {
    let reader = WeightsReader::open(dir).unwrap();
    assert_eq!(reader.names().count(), tensors.len());
    for (name, shape, data) in tensors {
        assert_eq!(&read(&reader, name, shape).unwrap(), data, "{name}");
    }
}

fn files_in(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Protects the tensor list against transformers: every golden folder holds exactly the listed tensors.
#[test]
fn every_golden_folder_fits_its_configuration() {
    for entry in std::fs::read_dir(golden("")).unwrap() {
        let dir = entry.unwrap().path();
        if !dir.join("config.json").exists() {
            continue;
        }
        let folder = ModelFolder::open(&dir).unwrap();
        for spec in tensor_specs(&folder.config) {
            let values = read_of(&folder.weights, &spec.name, &spec.shape).unwrap();
            assert!(values.iter().all(|x| x.is_finite()));
        }
        assert_eq!(folder.generation.eos_token_id, [1]);
    }
}

#[test]
fn f32_weights_survive_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let written = write(dir.path(), &sample(), WeightType::F32, u64::MAX).unwrap();
    assert_eq!((written.files.len(), written.bytes), (1, 36 * 4));
    assert_holds(dir.path(), &sample());
}

/// The `safetensors` crate, from the other side, finds what we wrote, the metadata that frameworks want,
/// and the router's bias in f32 among bf16.
#[test]
fn other_readers_accept_what_we_write() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &sample(), WeightType::Bf16, u64::MAX).unwrap();
    let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (name, shape, data) in sample() {
        let view = file.tensor(&name).unwrap();
        assert_eq!(view.shape(), shape);
        if name.ends_with("e_score_correction_bias") {
            assert_eq!(view.dtype(), Dtype::F32);
        } else {
            assert_eq!(view.dtype(), Dtype::BF16);
            let expected: Vec<u8> =
                data.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
            assert_eq!(view.data(), expected);
        }
    }
    let reader = WeightsReader::open(dir.path()).unwrap();
    let norm = read(&reader, "model.norm.weight", &[3]).unwrap();
    assert_eq!(norm[1], half::bf16::from_f32(1.37).to_f32());
}

/// All four types that published weights come in are read, from files that the `safetensors` crate wrote.
#[test]
fn every_supported_type_is_read_and_others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let x = [1.5f32, -0.25];
    let f64s: Vec<u8> = x.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect();
    let f32s: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
    let bf16s: Vec<u8> = x.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
    let f16s: Vec<u8> = x.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
    let view = |dtype, bytes| TensorView::new(dtype, vec![2], bytes).unwrap();
    let tensors = HashMap::from([
        ("a", view(Dtype::F64, &f64s)),
        ("b", view(Dtype::F32, &f32s)),
        ("c", view(Dtype::BF16, &bf16s)),
        ("d", view(Dtype::F16, &f16s)),
        ("e", view(Dtype::I8, &f16s[..2])),
    ]);
    let path = dir.path().join("model.safetensors");
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    let reader = WeightsReader::open(dir.path()).unwrap();
    for name in ["a", "b", "c", "d"] {
        assert_eq!(read(&reader, name, &[2]).unwrap(), x, "{name}");
    }
    assert!(matches!(read(&reader, "e", &[2]), Err(FileError::ElementType { .. })));
    assert!(matches!(read(&reader, "a", &[1, 2]), Err(FileError::Shape { .. })));
    assert!(matches!(read(&reader, "f", &[2]), Err(FileError::MissingTensor { .. })));
}

/// Shards are divided at the limit, found again through the index, and replaced without leftovers whether
/// the new division has fewer files, more, or one.
#[test]
fn shards_survive_and_replace_each_other() {
    let dir = tempfile::tempdir().unwrap();
    for max in [60, u64::MAX, 100, 1, 60, u64::MAX] {
        let mut tensors = sample();
        tensors[0].2[0] = max as f32;
        let written = write(dir.path(), &tensors, WeightType::F32, max).unwrap();
        assert_holds(dir.path(), &tensors);
        let mut expected = written.files.clone();
        if expected.len() > 1 {
            expected.push("model.safetensors.index.json".into());
        }
        expected.sort();
        assert_eq!(files_in(dir.path()), expected, "limit {max}");
    }
    let shards = write(dir.path(), &sample(), WeightType::F32, 80).unwrap().files;
    std::fs::remove_file(dir.path().join(&shards[1])).unwrap();
    let error = WeightsReader::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains(&shards[1]), "{error}");
}

/// NaN and infinity, also those that rounding to bf16 makes, are never written, and the weights that were
/// there stay.
#[test]
fn poisoned_weights_are_refused_and_the_old_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &sample(), WeightType::F32, u64::MAX).unwrap();
    for poison in [f32::NAN, f32::NEG_INFINITY, f32::MAX] {
        let mut tensors = sample();
        tensors[3].2[4] = poison;
        let error = write(dir.path(), &tensors, WeightType::Bf16, u64::MAX).unwrap_err();
        assert!(matches!(error, FileError::NotFinite { index: 4, .. }), "{error}");
    }
    let mut twice = sample();
    twice.push(twice[0].clone());
    let error = write(dir.path(), &twice, WeightType::F32, u64::MAX).unwrap_err();
    assert!(matches!(error, FileError::DuplicateTensor { .. }));
    assert_eq!(files_in(dir.path()), ["model.safetensors"]);
    assert_holds(dir.path(), &sample());
}

#[test]
fn foreign_formats_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(WeightsReader::open(dir.path()), Err(FileError::NoWeights { .. })));
    std::fs::write(dir.path().join("pytorch_model.bin"), b"PK\x03\x04").unwrap();
    let error = WeightsReader::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("pytorch_model.bin") && error.contains("convert"), "{error}");
    // A pickle under the right name is still a pickle.
    std::fs::write(dir.path().join("model.safetensors"), b"PK\x03\x04 and so on").unwrap();
    let error = WeightsReader::open(dir.path()).unwrap_err();
    assert!(matches!(error, FileError::ForeignFormat { .. }), "{error}");
}

/// An index cannot reach outside of its folder, nor promise tensors that are not there.
#[test]
fn a_hostile_index_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    let hostile = [
        r#"{"weight_map":{"a":"../model.safetensors"}}"#,
        r#"{"weight_map":{"a":"/etc/passwd"}}"#,
        r#"{"weight_map":{}}"#,
        r#"{"weight_map":[]}"#,
        "",
    ];
    for text in hostile {
        std::fs::write(&index, text).unwrap();
        let error = WeightsReader::open(dir.path()).unwrap_err();
        assert!(matches!(error, FileError::Index { .. }), "{error}");
    }
    let sub = tempfile::tempdir().unwrap();
    write(sub.path(), &sample(), WeightType::F32, u64::MAX).unwrap();
    let (from, to) = (sub.path().join("model.safetensors"), dir.path().join("a.safetensors"));
    std::fs::copy(from, to).unwrap();
    std::fs::write(&index, r#"{"weight_map":{"absent":"a.safetensors"}}"#).unwrap();
    let error = WeightsReader::open(dir.path()).unwrap_err();
    assert!(matches!(error, FileError::Index { .. }), "{error}");
}

/// What may be left out is reported as such; what would change the model is an error that names it.
#[test]
fn missing_and_unexpected_tensors_are_told_apart() {
    let config = ModelConfig::load(golden("llama_tied")).unwrap();
    let specs = tensor_specs(&config);
    let mut tensors: Tensors =
        specs.iter().map(|s| (s.name.clone(), s.shape.clone(), vec![0.5; s.elements()])).collect();
    let mut extra = |name: &str| tensors.push((name.to_owned(), vec![1], vec![1.0]));
    extra("lm_head.weight");
    extra("model.layers.0.self_attn.rotary_emb.inv_freq");
    extra("model.layers.2.enorm.weight");
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &tensors, WeightType::F32, u64::MAX).unwrap();
    let report = compare(&Weights::Safetensors(WeightsReader::open(dir.path()).unwrap()), &specs);
    report.check(dir.path()).unwrap();
    assert_eq!(report.ignored.len(), 3);

    tensors.push(("model.layers.0.self_attn.q_proj.bias".into(), vec![1], vec![0.0]));
    tensors.remove(0);
    write(dir.path(), &tensors, WeightType::F32, u64::MAX).unwrap();
    let report = compare(&Weights::Safetensors(WeightsReader::open(dir.path()).unwrap()), &specs);
    let error = report.check(dir.path()).unwrap_err().to_string();
    assert!(error.contains("embed_tokens") && error.contains("q_proj.bias"), "{error}");
}

/// transformers states MTP layers in config.json without saving them: the folder opens without.
#[test]
fn mtp_layers_that_were_not_saved_are_not_expected() {
    let dir = tempfile::tempdir().unwrap();
    let folder = ModelFolder::open(golden("deepseek_mtp")).unwrap();
    write_config(dir.path(), &folder.config, WeightType::F32).unwrap();
    let kept = tensor_specs(&folder.config).into_iter().filter(|spec| spec.layer != Some(2));
    let tensors: Tensors = kept.map(|s| (s.name.clone(), s.shape.clone(), vec![0.5; s.elements()])).collect();
    write(dir.path(), &tensors, WeightType::F32, u64::MAX).unwrap();
    let ModelConfig::Mla(c) = ModelFolder::open(dir.path()).unwrap().config else {
        panic!("another family");
    };
    assert_eq!(c.num_nextn_predict_layers, 0);
}

/// A head that was stored beside the embedding it is said to be tied to counts where it differs, as in transformers, with a
/// notice; and what is written then says so.
#[test]
fn a_head_that_differs_from_its_embedding_is_kept() {
    let tokens = 40;
    let config = |tied: bool| {
        ModelConfig::from_value(&serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": tokens, "hidden_size": 16,
            "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "hidden_act": "silu", "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": tied
        }))
        .unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let mut model = crate::Model::random(config(false), 1);
    let load = |model: &crate::Model| {
        model.save(dir.path()).unwrap();
        write_config(dir.path(), &config(true), WeightType::F32).unwrap();
        crate::Model::load(dir.path()).unwrap()
    };
    let read = load(&model);
    assert!(read.notices()[0].contains("lm_head.weight is there and differs"), "{:?}", read.notices());
    assert_eq!(read.params().get(read.head()), model.params().get(model.head()));
    assert!(!read.config().tie_word_embeddings());

    let (embed, head) = (model.params().weight("model.embed_tokens.weight"), model.head());
    let copy = model.params().get(embed).to_vec();
    model.params_mut().data_mut()[head.offset..][..copy.len()].copy_from_slice(&copy);
    let read = load(&model);
    assert!(read.notices().is_empty() && read.config().tie_word_embeddings());
}

#[test]
fn generation_configs_survive_and_fall_back_to_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let config = ModelConfig::load(golden("qwen2")).unwrap();
    let generation = read_generation_config(dir.path(), &config).unwrap();
    assert_eq!((generation.eos_token_id, generation.bos_token_id), (vec![1], Some(0)));

    let ours = GenerationConfig {
        bos_token_id: Some(3),
        eos_token_id: vec![1, 4],
        do_sample: Some(true),
        temperature: Some(0.6),
        top_p: Some(0.95),
        ..Default::default()
    };
    write_generation_config(dir.path(), &ours).unwrap();
    assert_eq!(read_generation_config(dir.path(), &config).unwrap(), ours);
    let text = std::fs::read_to_string(dir.path().join("generation_config.json")).unwrap();
    assert!(text.contains("0.6") && !text.contains("0.60000002"), "{text}");

    for bad in [r#"{"top_p":0}"#, r#"{"temperature":"hot"}"#, r#"{"top_k":-1}"#, "[]", "{"] {
        std::fs::write(dir.path().join("generation_config.json"), bad).unwrap();
        let error = read_generation_config(dir.path(), &config).unwrap_err().to_string();
        assert!(error.contains("generation_config.json"), "{error}");
    }
}

/// transformers loads the folders that we write, with nothing missing or left over, and computes from them
/// the logits of the goldens. `SHOESTRING_PYTHON` names a Python that has it.
#[test]
#[ignore = "needs Python with torch and transformers"]
fn transformers_loads_what_we_write() {
    let python = std::env::var("SHOESTRING_PYTHON").unwrap_or("python3".into());
    for case in std::fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap().path()) {
        if !case.is_dir() {
            continue;
        }
        let folder = ModelFolder::open(&case).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let of =
            |spec: &crate::config::TensorSpec| read_of(&folder.weights, &spec.name, &spec.shape).unwrap();
        let specs = tensor_specs(&folder.config);
        let tensors: Tensors = specs.iter().map(|s| (s.name.clone(), s.shape.clone(), of(s))).collect();
        write(dir.path(), &tensors, WeightType::F32, 40_000).unwrap();
        write_config(dir.path(), &folder.config, WeightType::F32).unwrap();
        write_generation_config(dir.path(), &folder.generation).unwrap();

        let reference = SafeFile::open(case.join("golden.safetensors")).unwrap();
        let ids = reference.read_i64("input_ids").unwrap();
        let shape = reference.shape("logits").unwrap();
        let mut logits = vec![0.0; shape.iter().product()];
        reference.read_f32("logits", shape, &mut logits).unwrap();
        let (length, vocab) = (shape[1], shape[2]);

        let output = std::process::Command::new(&python)
            .arg(golden("check_export.py"))
            .arg(dir.path())
            .args(ids[..length].iter().map(i64::to_string))
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {errors}", case.display());
        let text = String::from_utf8(output.stdout).unwrap();
        let found: Vec<f32> = text.split_whitespace().map(|x| x.parse().unwrap()).collect();
        assert_eq!(found.len(), length * vocab);
        let largest = logits.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        for (ours, theirs) in logits.iter().zip(&found) {
            assert!((ours - theirs).abs() <= 2e-5 * largest, "{}: {ours} and {theirs}", case.display());
        }
    }
}

/// The bytes of a small valid file.
fn valid_file() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &sample(), WeightType::F32, u64::MAX).unwrap();
    std::fs::read(dir.path().join("model.safetensors")).unwrap()
}

/// Opens bytes as a file and, if that works, reads every tensor by the shape that the file claims.
fn survives(bytes: &[u8]) -> Result<(), FileError> {
    let entries = header::parse(Path::new("fuzzed"), bytes)?.entries;
    for entry in entries.values() {
        // What a reader would allocate is bounded by the file.
        assert!(entry.begin <= entry.end && entry.end <= bytes.len());
        assert!(entry.shape.iter().product::<usize>() <= 8 * bytes.len());
    }
    Ok(())
}

#[test]
fn every_truncation_is_refused() {
    let bytes = valid_file();
    survives(&bytes).unwrap();
    for length in 0..bytes.len() {
        survives(&bytes[..length]).expect_err("a truncated file was accepted");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(survives(&longer), Err(FileError::Header { .. })));
}

#[test]
fn hostile_headers_are_refused() {
    let headers = [
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551612,18446744073709551615]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,0]}}"#,
        r#"{"a":{"dtype":"F128","shape":[1],"data_offsets":[0,16]}}"#,
        "[]",
        "",
    ];
    for header in headers {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.extend([0; 8]);
        survives(&bytes).expect_err(header);
    }
    let mut bytes = u64::MAX.to_le_bytes().to_vec();
    bytes.extend([b' '; 64]);
    assert!(matches!(survives(&bytes), Err(FileError::Header { .. })));
}

proptest! {
    /// Flipped bytes anywhere: read or refused, never a panic, never a claim beyond the file.
    #[test]
    fn corruption_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = valid_file();
        for (index, byte) in changes {
            let length = bytes.len();
            bytes[index.index(length)] = byte;
        }
        let _ = survives(&bytes);
    }

    /// Whatever values the weights have, f32 gives them back and bf16 rounds them.
    #[test]
    fn any_finite_weights_survive(data in prop::collection::vec(-1e30f32..1e30, 1..40), max in 1u64..200) {
        let dir = tempfile::tempdir().unwrap();
        let half = data.len() / 2;
        let tensors: Tensors = vec![
            ("a".into(), vec![half], data[..half].to_vec()),
            ("b".into(), vec![data.len() - half, 1], data[half..].to_vec()),
        ];
        write(dir.path(), &tensors, WeightType::F32, max).unwrap();
        assert_holds(dir.path(), &tensors);
    }
}
