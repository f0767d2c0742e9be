//! `score` and `inspect`, on the golden models that `transformers` wrote.

use crate::common::{arg, golden, object, refusal, text};
use model::files::SafeFile;

fn tensor(path: &std::path::Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = SafeFile::open(path).expect("a safetensors file");
    let shape = file.shape(name).expect(name).to_vec();
    let mut values = vec![0.0; shape.iter().product()];
    file.read_f32(name, &shape, &mut values).expect(name);
    (shape, values)
}

/// The logits that the command writes are those of `transformers`, and its log-probabilities are theirs.
#[test]
fn logits_equal_transformers() {
    let out = tempfile::tempdir().expect("a temporary folder");
    for case in
        ["deepseek_q_lora", "deepseek_yarn", "deepseek_mtp", "llama3_rope", "llama_tied", "qwen2", "qwen3"]
    {
        let dir = golden(case);
        let file = SafeFile::open(dir.join("golden.safetensors")).expect("golden values");
        let all = file.read_i64("input_ids").expect("ids");
        let len = file.shape("input_ids").expect("ids")[1];
        let ids: Vec<String> = all[..len].iter().map(i64::to_string).collect();
        let path = out.path().join(format!("{case}.safetensors"));
        let found =
            object(&["score", arg(&dir), "--ids", &ids.join(","), "--logits-out", arg(&path), "--json"]);
        let (shape, logits) = tensor(&path, "logits");
        let (golden_shape, golden_logits) = tensor(&dir.join("golden.safetensors"), "logits");
        let vocab = golden_shape[2];
        assert_eq!(shape, [len, vocab], "{case}");
        let want = &golden_logits[..len * vocab];
        let top = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        let off = logits.iter().zip(want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off / top < 1e-5, "{case}: logits off by {off}");
        let logprobs = found["logprobs"].as_array().expect("a list");
        assert_eq!((logprobs.len(), found["ids"].as_array().map(Vec::len)), (len - 1, Some(len)));
        for (i, got) in logprobs.iter().enumerate() {
            let row: Vec<f64> = want[i * vocab..][..vocab].iter().map(|&x| f64::from(x)).collect();
            let sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
            let got = got.as_f64().expect("a number");
            assert!((got - (row[all[i + 1] as usize] - sum)).abs() < 1e-4, "{case}: position {i}");
        }
    }
}

/// Neither the number of threads nor what comes after a token changes a bit of what is said of it.
#[test]
fn threads_and_later_tokens_change_nothing() {
    let dir = golden("deepseek_q_lora");
    let run =
        |threads: &str, ids: &str| text(&["score", arg(&dir), "--ids", ids, "--threads", threads, "--json"]);
    let (one, two) = (run("1", "3,1,4,1,5,9,2,6"), run("2", "3,1,4,1,5,9,2,6"));
    assert_eq!(one, two);
    let short = run("2", "3,1,4,1");
    let (long, short) = (
        crate::common::printed_list(&one, "logprobs").remove(0),
        crate::common::printed_list(&short, "logprobs").remove(0),
    );
    assert_eq!(long[..3], short[..]);
    assert_eq!(
        object(&["score", arg(&dir), "--ids", "7", "--json"])["logprobs"].as_array().map(Vec::len),
        Some(0)
    );
}

#[test]
fn bad_ids_and_files_are_refused() {
    let dir = golden("qwen3");
    let outside = refusal(&["score", arg(&dir), "--ids", "1,99999"]);
    assert!(outside.contains("token id 99999") && outside.contains("vocabulary"), "{outside}");
    assert!(refusal(&["score", arg(&dir), "--text", "hi"]).contains("tokenizer.json"));
    let nowhere =
        refusal(&["score", arg(&dir), "--ids", "1,2", "--logits-out", "/nonexistent/folder/x.safetensors"]);
    assert!(nowhere.contains("/nonexistent/folder/x.safetensors"), "{nowhere}");

    let broken = tempfile::tempdir().expect("a temporary folder");
    let file = broken.path().join("model.safetensors");
    std::fs::copy(dir.join("config.json"), broken.path().join("config.json")).expect("copied");
    assert!(refusal(&["score", arg(broken.path()), "--ids", "1,2"]).contains("model.safetensors"));
    let bytes = std::fs::read(dir.join("model.safetensors")).expect("read");
    std::fs::write(&file, &bytes).expect("written");
    let own = refusal(&["score", arg(broken.path()), "--ids", "1,2", "--logits-out", arg(&file)]);
    assert!(own.contains("is a file of the model"), "{own}");
    assert!(std::fs::read(&file).expect("read") == bytes, "and it is left as it was");
    std::fs::write(&file, &bytes[..bytes.len() - 100]).expect("written");
    let truncated = refusal(&["score", arg(broken.path()), "--ids", "1,2"]);
    assert!(truncated.contains("model.safetensors is truncated"), "{truncated}");
    std::fs::write(&file, b"PK\x03\x04 this is no safetensors file").expect("written");
    assert!(refusal(&["score", arg(broken.path()), "--ids", "1,2"]).contains("model.safetensors"));
    std::fs::write(broken.path().join("config.json"), "{\"model_type\": \"llama\"").expect("written");
    assert!(refusal(&["score", arg(broken.path()), "--ids", "1,2"]).contains("config.json"));
}

#[test]
fn inspect_counts_folders_and_configs_alike() {
    let dir = golden("deepseek_q_lora");
    let folder = object(&["inspect", arg(&dir), "--json"]);
    for key in ["total_parameters", "active_parameters", "operations_per_token"] {
        assert!(folder[key].as_u64().is_some_and(|n| n > 0), "{key}");
    }
    assert!(folder["active_parameters"].as_u64() < folder["total_parameters"].as_u64());
    let kv = &folder["kv_bytes_per_token"];
    assert!(kv["latent_f32"].as_u64() < kv["expanded_f32"].as_u64());
    let config = object(&["inspect", arg(&dir.join("config.json")), "--json"]);
    assert_eq!(config["forward"], folder["forward"]);
    assert!(text(&["inspect", arg(&dir)]).contains("active per token"));
    assert!(refusal(&["inspect", "/nonexistent/model"]).contains("/nonexistent/model"));
}
