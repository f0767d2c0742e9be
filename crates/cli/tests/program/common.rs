//! What the tests of the commands share: the built program, and tiny models to run it on.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use data::{Tokenizer, TrainOptions};
use model::{Model, ModelConfig};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Positions of the tiny models.
pub const CONTEXT: usize = 96;

/// Runs the program.
pub fn shoestring(args: &[&str]) -> Output {
    with_input(args, "")
}

/// Runs the program with text on its standard input.
pub fn with_input(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_shoestring"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that refuses its arguments reads nothing.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("the program ends")
}

/// Runs the program, which must succeed, and returns what it wrote to stdout.
pub fn text(args: &[&str]) -> String {
    let out = shoestring(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8")
}

/// Runs the program, which must print one JSON object on one line and nothing else.
pub fn object(args: &[&str]) -> Value {
    let text = text(args);
    assert_eq!(text.matches('\n').count(), 1, "one line: {text}");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert!(value.is_object());
    value
}

/// Runs the program, which must refuse: exit code 2, one sentence on stderr, nothing on stdout.
pub fn refusal(args: &[&str]) -> String {
    let out = shoestring(args);
    let error = String::from_utf8(out.stderr).expect("UTF-8");
    assert_eq!(out.status.code(), Some(2), "{args:?}: {error}");
    assert!(out.stdout.is_empty(), "{args:?}: stdout is not empty");
    assert!(error.starts_with("error: ") && error.trim_end().lines().count() == 1, "{args:?}: {error}");
    error
}

/// The text of a JSON list of numbers, element by element as it was printed.
pub fn printed_list<'a>(json: &'a str, key: &str) -> Vec<Vec<&'a str>> {
    let opening = format!("\"{key}\":[");
    let parts = json.split(opening.as_str()).skip(1);
    parts
        .map(|part| {
            part[..part.find(']').expect("a closed list")].split(',').filter(|s| !s.is_empty()).collect()
        })
        .collect()
}

/// The folder of a golden model.
pub fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case)
}

/// Starts a run of a recipe, for tests that kill it.
pub fn start_run(recipe: &Path, out: &Path, options: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_shoestring"))
        .args(["run", arg(recipe), "--out", arg(out)])
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts")
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("a temporary path is UTF-8")
}

/// A tokenizer with the tags of reasoning and a chat template.
pub fn tokenizer() -> Tokenizer {
    let texts = ["What is 17 + 25 - 8?", "Tom has 3 apples and buys 4 more.", "The answer is 34, I think."];
    Tokenizer::train(texts.iter().map(|t| t.to_string()), &TrainOptions::reasoning(300)).expect("a tokenizer")
}

/// The configuration of a tiny model for a tokenizer.
pub fn config(vocab: usize, eos: Option<u32>) -> ModelConfig {
    let value = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "hidden_act": "silu", "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "initializer_range": 0.15, "tie_word_embeddings": true, "eos_token_id": eos});
    ModelConfig::from_value(&value).expect("a valid config")
}

/// A folder with a model that says what it is told: the next token is a function of the last one, and `script` is the text
/// that comes of it, beginning with `<|assistant|>`; each of its tokens must stand there once. After others comes the
/// tokenizer's end token.
///
/// Every token has a random code of signs as its embedding, the head of its follower is that code, and between them is
/// nothing.
pub fn puppet(tokenizer: &Tokenizer, script: &str) -> TempDir {
    const WIDTH: usize = 64;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let vocab = tokenizer.vocab_size();
    let value = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab,
        "hidden_size": WIDTH, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "hidden_act": "silu", "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "initializer_range": 0.0, "tie_word_embeddings": false, "eos_token_id": tokenizer.eos_id()});
    let mut model = Model::random(ModelConfig::from_value(&value).expect("a valid config"), 3);
    let params = model.params_mut();
    let (embed, head) = (params.weight("model.embed_tokens.weight"), params.weight("lm_head.weight"));
    let mut rng = tensor::Rng::new(5);
    let code: Vec<f32> =
        (0..vocab * WIDTH).map(|i| if i % WIDTH == 0 || rng.below(2) == 0 { 1.0 } else { -1.0 }).collect();
    params.data_mut()[embed.offset..][..code.len()].copy_from_slice(&code);
    let mut follow = |id: u32, code: &[f32]| {
        let row = &mut params.data_mut()[head.offset + id as usize * WIDTH..][..WIDTH];
        row.iter_mut().zip(code).for_each(|(x, c)| *x += c);
    };
    let mut other = [0.0; WIDTH];
    // Below the 64 of a follower, above what two codes have in common.
    other[0] = 40.0;
    follow(tokenizer.eos_id().expect("an end token"), &other);
    let script = tokenizer.encode(script).expect("ids");
    for (i, pair) in script.windows(2).enumerate() {
        assert!(!script[..i].contains(&pair[0]), "the script says a token twice");
        if Some(pair[1]) != tokenizer.eos_id() {
            follow(pair[1], &code[pair[0] as usize * WIDTH..][..WIDTH]);
        }
    }
    model.save(dir.path()).expect("saved");
    tokenizer.save(dir.path()).expect("saved");
    dir
}

/// A folder with a tiny random model and its tokenizer.
pub fn tiny() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let tokenizer = tokenizer();
    Model::random(config(tokenizer.vocab_size(), tokenizer.eos_id()), 3).save(dir.path()).expect("saved");
    tokenizer.save(dir.path()).expect("saved");
    dir
}
