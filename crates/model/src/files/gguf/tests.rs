use std::path::{Path, PathBuf};

use super::*;
use crate::files::GgufType;
use crate::{HeldAs, Model, PassOptions, Use, whole};
use tensor::blocks::Format;
use tensor::{Tape, ops};

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case)
}

/// A model as a file; its tokenizer's keys do not matter here.
fn written(model: &Model, path: &Path, kind: GgufType) {
    use ground::gguf::Value::{Int, Text};
    let mut keys = vec![("tokenizer.ggml.model".to_owned(), Text("gpt2".into()))];
    let eos = model.config().eos_token_id().first().copied();
    for (name, id) in [("bos", model.config().bos_token_id()), ("eos", eos)] {
        keys.extend(id.map(|id| (format!("tokenizer.ggml.{name}_token_id"), Int(id.into()))));
    }
    let values = |name: &str| model.params().get(model.params().weight(name));
    write_gguf(path, model.config(), "test", keys, kind, values).unwrap();
}

fn logits(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (0..17).map(|i| (i * i * 7 + 3) % model.config().vocab_size() as u32).collect();
    let tape = Tape::inference(model.params());
    let pass = model.forward(&tape, &ids, &whole(&[ids.len()]), PassOptions::default(), None);
    ops::logits(model.params(), &pass.hidden, model.head()).host().to_vec()
}

/// Keys and names both ways: what transformers wrote comes back through GGUF with equal bits.
#[test]
fn models_survive_the_format_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    for case in ["llama_tied", "qwen2", "qwen3", "deepseek_q_lora", "deepseek_no_q_lora", "deepseek_groups"] {
        let model = Model::load(&golden(case)).unwrap();
        written(&model, &path, GgufType::Plain(Format::F32));
        let back = Model::load(&path).unwrap();
        assert_eq!(back.params().data(), model.params().data(), "{case}");
        assert_eq!(logits(&back), logits(&model), "{case}");
    }
}

/// Families whose files do not state all that a configuration may say: what they take for granted goes both ways, the rest is
/// refused.
#[test]
fn every_family_goes_both_ways() {
    use serde_json::{Value, json};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let cases = [
        ("qwen3_moe", json!({}), ""),
        ("olmoe", json!({"num_key_value_heads": 4}), "num_key_value_heads"),
        ("deepseek_v2", json!({}), ""),
        ("mistral_window", json!({"sliding_window": null}), "sliding_window"),
        ("smollm3", json!({"no_rope_layers": [1, 1, 1, 0]}), "no_rope_layers"),
        ("gemma3", json!({"query_pre_attn_scalar": 8}), "query_pre_attn_scalar"),
    ];
    for (case, changes, refused) in cases {
        let text = std::fs::read_to_string(golden(case).join("config.json")).unwrap();
        let mut value: Value = serde_json::from_str(&text).unwrap();
        if !refused.is_empty() {
            let model = Model::load(&golden(case)).unwrap();
            let values = |name: &str| model.params().get(model.params().weight(name));
            let kind = GgufType::Plain(Format::F32);
            let error =
                write_gguf(&path, model.config(), "test", Vec::new(), kind, values).unwrap_err().to_string();
            assert!(error.contains(refused), "{case}: {error}");
        }
        for (key, to) in changes.as_object().unwrap() {
            value[key] = to.clone();
        }
        let mut model = Model::random(crate::ModelConfig::from_value(&value).unwrap(), 7);
        let mut rng = tensor::Rng::new(2);
        model.params_mut().data_mut().iter_mut().for_each(|x| *x += 0.1 * rng.normal());
        written(&model, &path, GgufType::Plain(Format::F32));
        let back = Model::load(&path).unwrap();
        assert_eq!(back.params().data(), model.params().data(), "{case}");
        assert_eq!(logits(&back), logits(&model), "{case}");
        let folder = dir.path().join(case);
        std::fs::create_dir(&folder).unwrap();
        back.save(&folder).unwrap();
        let again = Model::load(&folder).unwrap();
        // A scale is stored from one, with the rounding of that difference.
        let close =
            again.params().data().iter().zip(model.params().data()).all(|(a, b)| (a - b).abs() <= 2e-7);
        assert!(close, "{case}: as a folder");
    }
}

/// Published files of DeepSeek keep the matrix behind the latent in two parts, one of them transposed, and state the latent's width
/// as that of a key.
#[test]
fn files_for_absorbed_decoding_are_joined_again() {
    use ground::gguf::{Outline, Value, read, write};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let model = Model::load(&golden("deepseek_q_lora")).unwrap();
    written(&model, &path, GgufType::Plain(Format::F32));
    let file = std::fs::read(&path).unwrap();
    let mut head = read(&mut &file[..], file.len() as u64).unwrap();
    // Of the golden model: 3 heads, 7 without position, 6 with, values of 9, a latent of 11.
    let (heads, nope, v, rank) = (3, 7, 9, 11);
    for (key, value) in &mut head.keys {
        match key.as_str() {
            "deepseek2.attention.key_length" => *value = Value::Int(rank as i64 + 6),
            "deepseek2.attention.value_length" => *value = Value::Int(rank as i64),
            "deepseek2.attention.head_count_kv" => *value = Value::Int(1),
            _ => {}
        }
    }
    head.keys.push(("deepseek2.attention.key_length_mla".into(), Value::Int(nope as i64 + 6)));
    head.keys.push(("deepseek2.attention.value_length_mla".into(), Value::Int(v as i64)));
    let (mut outlines, mut bytes) = (Vec::new(), Vec::new());
    let mut push = |name: String, shape: Vec<usize>, data: Vec<u8>| {
        outlines.push(Outline { name, shape, kind: 0, bytes: data.len() as u64 });
        bytes.push(data);
    };
    for t in &head.tensors {
        let data = &file[t.begin as usize..][..4 * t.shape.iter().product::<usize>()];
        if !t.name.contains("attn_kv_b") {
            push(t.name.clone(), t.shape.clone(), data.to_vec());
            continue;
        }
        let value = |h: usize, i: usize, r: usize| &data[4 * ((h * (nope + v) + i) * rank + r)..][..4];
        let keys = (0..heads).flat_map(|h| (0..rank).flat_map(move |r| (0..nope).map(move |i| (h, i, r))));
        let keys = keys.flat_map(|(h, i, r)| value(h, i, r).to_vec()).collect();
        push(t.name.replace("kv_b", "k_b"), vec![heads, rank, nope], keys);
        let values =
            (0..heads).flat_map(|h| (0..v).flat_map(move |i| (0..rank).map(move |r| (h, nope + i, r))));
        let values = values.flat_map(|(h, i, r)| value(h, i, r).to_vec()).collect();
        push(t.name.replace("kv_b", "v_b"), vec![heads, v, rank], values);
    }
    let mut out = std::fs::File::create(&path).unwrap();
    write(&mut out, &head.keys, &outlines, |i| bytes[i].clone()).unwrap();
    assert_eq!(logits(&Model::load(&path).unwrap()), logits(&model));
    assert_eq!(logits(&Model::open(&path, Use::Infer(HeldAs::Stored)).unwrap()), logits(&model));
}

/// Quantised values are exact numbers once unpacked: a file and the folder made of it compute the same bits.
#[test]
fn a_quantised_file_equals_its_unpacked_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let config = crate::ModelConfig::from_json(
        r#"{"model_type":"llama","vocab_size":96,"hidden_size":256,"intermediate_size":512,
            "num_hidden_layers":3,"num_attention_heads":4,"num_key_value_heads":2,"tie_word_embeddings":true,
            "eos_token_id":1}"#,
    );
    let model = Model::random(config.unwrap(), 5);
    let exact = logits(&model);
    for (name, kind) in GgufType::NAMES {
        written(&model, &path, kind);
        let held = Model::open(&path, Use::Infer(HeldAs::Stored)).unwrap();
        let packed = Model::load(&path).unwrap();
        assert_eq!(logits(&held), logits(&packed), "{name}: held as stored");
        let less = held.params().bytes() * 3 < packed.params().bytes() * 2;
        assert_eq!(less, name != "f32", "{name}: {} bytes", held.params().bytes());
        for model in [&held, &packed] {
            assert_eq!(model.stored_bytes(), model.params().bytes(), "{name}");
        }
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        packed.save(&folder).unwrap();
        let unpacked = Model::load(&folder).unwrap();
        assert_eq!(logits(&packed), logits(&unpacked), "{name}");
        let off = exact.iter().zip(logits(&packed)).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        let off = (off / exact.iter().map(|x| x * x).sum::<f32>()).sqrt();
        let most = if name.starts_with('q') { 0.25 } else { 5e-3 };
        assert!(off <= most && (off == 0.0) == (name == "f32"), "{name}: {off}");
    }
}

/// Files that end early or lie about their tensors are refused with a sentence.
#[test]
fn lying_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    written(&Model::load(&golden("llama_tied")).unwrap(), &path, GgufType::Plain(Format::F32));
    let whole = std::fs::read(&path).unwrap();
    let refusal = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        match Model::load(&path) {
            Ok(_) => panic!("a broken file was read"),
            Err(e) => e.to_string(),
        }
    };
    let error = refusal(&whole[..whole.len() - 64]);
    assert!(error.contains("but the file ends at"), "{error}");
    for end in (0..whole.len() - 64).step_by(997) {
        refusal(&whole[..end]);
    }
    let at = whole.windows(16).position(|w| w == b"blk.0.attn_q.wei").unwrap();
    // Behind the name: the number of dimensions, two of them, the type.
    let kind = at + "blk.0.attn_q.weight".len() + 4 + 16;
    let mut changed = whole.clone();
    changed[kind] = 16;
    assert!(refusal(&changed).contains("stored as IQ2_XXS; supported are F32"), "the type by its name");
    changed[kind] = 8;
    assert!(refusal(&changed).contains("no whole blocks of Q8_0"), "rows of 36 values");
    let mut changed = whole.clone();
    changed[kind - 8] ^= 1;
    assert!(refusal(&changed).contains("`model.layers.0.self_attn.q_proj.weight`"), "another shape");
    let mut changed = whole;
    changed[at + 4] = b'9';
    let error = refusal(&changed);
    assert!(error.contains("missing") && error.contains("unexpected"), "{error}");
}
