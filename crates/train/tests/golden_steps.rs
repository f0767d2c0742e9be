//! Ten AdamW steps from the golden weights: every loss against PyTorch in float64.

use std::path::Path;

use model::files::SafeFile;
use model::{Model, whole};
use tensor::{Tape, ops};
use train::optim::{Optimizer, OptimizerSettings};

fn losses(case: &str) -> (Vec<f32>, Vec<f32>) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case);
    let mut model = Model::load(&dir).expect("a model that transformers wrote");
    let golden = SafeFile::open(dir.join("golden.safetensors")).expect("golden values");
    let ids: Vec<u32> = golden.read_i64("input_ids").expect("ids").into_iter().map(|i| i as u32).collect();
    let [rows, len] = golden.shape("input_ids").expect("ids")[..] else { panic!("two sequences") };
    let mut want = vec![0.0; 11];
    golden.read_f32("losses", &[11], &mut want).expect("losses");
    let mut targets = ids.clone();
    targets.rotate_left(1);
    let weight = 1.0 / (rows * (len - 1)) as f32;
    let weights: Vec<f32> = (0..rows * len).map(|i| if i % len == len - 1 { 0.0 } else { weight }).collect();
    let settings = OptimizerSettings {
        learning_rate: 1e-3,
        weight_decay: 0.1,
        clip: 0.0,
        ..OptimizerSettings::default()
    };
    let mut optimizer = Optimizer::new(&model, settings);
    let mut got = Vec::new();
    for _ in 0..=10 {
        model.params_mut().zero_grads();
        let tape = Tape::recording(model.params());
        let pass = model.forward(&tape, &ids, &whole(&vec![len; rows]), Default::default(), None);
        let stats = ops::cross_entropy(&tape, &pass.hidden, model.head(), &targets, &weights);
        got.push(stats.logprobs.iter().zip(&weights).map(|(l, w)| -l * w).sum());
        tape.backward();
        drop(tape);
        optimizer.step(model.params_mut(), 1.0);
    }
    (got, want)
}

#[test]
fn losses_follow_pytorch() {
    for case in ["deepseek_q_lora", "deepseek_no_q_lora", "deepseek_groups", "llama_tied", "qwen2", "qwen3"] {
        let (got, want) = losses(case);
        for (step, (g, w)) in got.iter().zip(&want).enumerate() {
            assert!((g - w).abs() < 1e-4 * w.abs(), "{case}, step {step}: {g} for {w}");
        }
    }
}
