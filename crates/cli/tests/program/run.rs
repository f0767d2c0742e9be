//! `run` as a user meets it when something is wrong.

use std::path::Path;
use std::process::{Command, Output, Stdio};

const RECIPE: &str = r#"
name = "tiny"
seed = 1
[problems]
mix = [{ task = "arithmetic" }]
held_out = 4
[models.dense]
model_type = "llama"
hidden_size = 16
intermediate_size = 16
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 128
[[stage]]
kind = "tokenizer"
vocab_size = 300
documents = 40
[[stage]]
kind = "pretrain"
model = "dense"
tokens = 600
batch_tokens = 256
seq_len = 64
sample_every = 0
"#;

fn command(dir: &Path, sets: &[&str]) -> Command {
    let recipe = dir.join("tiny.toml");
    std::fs::write(&recipe, RECIPE).expect("a writable folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoestring"));
    command.args(["--threads", "1", "run"]).arg(recipe).arg("--out").arg(dir.join("out"));
    sets.iter().for_each(|set| {
        command.args(["--set", set]);
    });
    command
}

fn refused(out: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{text}");
    assert_eq!(text.lines().count(), 1, "one sentence: {text}");
    words.iter().for_each(|word| assert!(text.contains(word), "{word} in: {text}"));
}

/// What can be known before the first step is said then, and the folder stays free for the corrected recipe.
#[test]
fn a_refused_recipe_leaves_its_folder_free() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let run = |sets: &[&str]| command(dir.path(), sets).output().expect("the program starts");
    refused(&run(&["models.dense.hidden_sizee=3"]), &["`hidden_sizee`", "did you mean `hidden_size`?"]);
    refused(&run(&["stage.pretrain.seq_len=256", "stage.pretrain.batch_tokens=256"]), &["seq_len", "128"]);
    refused(&run(&["stage.pretrain.source.path=nowhere"]), &["stage `pretrain`", "nowhere"]);
    refused(&run(&["problems.mix=[{ task = \"arithmetik\" }]"]), &["arithmetik", "arithmetic"]);
    let out = run(&[]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// Whoever reads the progress may go away; the run goes on.
#[test]
fn a_closed_stderr_does_not_end_a_run() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut child =
        command(dir.path(), &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    drop(child.stderr.take());
    assert!(child.wait().expect("it ends").success());
    assert!(dir.path().join("out/pretrain/done.json").is_file());
}

/// Some stages now and the others later, in the same folder.
#[test]
fn stages_can_be_performed_apart() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let done = |stage: &str| dir.path().join("out").join(stage).join("done.json").is_file();
    let run = |stages: &[&str]| command(dir.path(), &[]).args(stages).output().expect("the program starts");
    refused(&run(&["--stages", "pretrian"]), &["no stage `pretrian`", "tokenizer, pretrain"]);
    assert!(run(&["--stages", "tokenizer"]).status.success());
    assert!(done("tokenizer") && !done("pretrain"));
    assert!(run(&["--stages", "pretrain"]).status.success());
    assert!(done("pretrain"));
    assert!(run(&[]).status.success());
}
