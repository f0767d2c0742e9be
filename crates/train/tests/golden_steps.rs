//! Ten optimizer steps from the golden weights: every loss against PyTorch in float64.

use std::path::{Path, PathBuf};

use model::files::SafeFile;
use model::{Model, PassOptions, Segment, whole};
use tensor::ops::{self, Muon, TokenStats};
use tensor::{Buf, Data, Tape, Weight};

use train::optim::{Optimizer, OptimizerKind, OptimizerSettings};
use train::team::Team;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

fn read(file: &SafeFile, name: &str) -> Vec<f32> {
    let shape = file.shape(name).expect(name).to_vec();
    let mut out = vec![0.0; shape.iter().product()];
    file.read_f32(name, &shape, &mut out).expect(name);
    out
}

/// The targets of a batch, so many tokens ahead, and their weights: equal, and none at the ends of the sequences.
fn ahead(ids: &[u32], (rows, len): (usize, usize), by: usize, share: f32) -> (Vec<u32>, Vec<f32>) {
    let mut targets = ids.to_vec();
    targets.rotate_left(by);
    let weight = share / (rows * (len - by)) as f32;
    (targets, (0..rows * len).map(|i| if i % len >= len - by { 0.0 } else { weight }).collect())
}

fn nll(stats: &TokenStats, weights: &[f32]) -> f32 {
    stats.logprobs.iter().zip(weights).map(|(l, w)| -l * w).sum()
}

/// The loss of a batch, MTP layer included, with its gradient.
fn loss(model: &mut Model, ids: &[u32], shape: (usize, usize)) -> f32 {
    model.params_mut().zero_grads();
    let tape = Tape::recording(model.params());
    let segments: Vec<Segment> = whole(&vec![shape.1; shape.0]);
    let options = PassOptions::default();
    let pass = model.forward(&tape, ids, &segments, options, None);
    let (targets, weights) = ahead(ids, shape, 1, 1.0);
    let mut loss = nll(&ops::cross_entropy(&tape, &pass.hidden, model.head(), &targets, &weights), &weights);
    if model.has_mtp() {
        let mtp = model.forward_mtp(&tape, &pass.hidden, &targets, &segments, options);
        let (targets, weights) = ahead(ids, shape, 2, 0.3);
        loss += nll(&ops::cross_entropy(&tape, &mtp.hidden, model.head(), &targets, &weights), &weights);
    }
    tape.backward();
    loss
}

/// The losses before each of ten steps and after the last.
fn losses(case: &str, settings: OptimizerSettings) -> Vec<f32> {
    let mut model = Model::load(&golden(case)).expect("a model that transformers wrote");
    let file = SafeFile::open(golden(case).join("golden.safetensors")).expect("golden values");
    let ids: Vec<u32> = file.read_i64("input_ids").expect("ids").into_iter().map(|i| i as u32).collect();
    let [rows, len] = file.shape("input_ids").expect("ids")[..] else { panic!("two sequences") };
    let mut optimizer = Optimizer::new(&model, settings, &Team::alone());
    let mut got = Vec::new();
    for _ in 0..=10 {
        got.push(loss(&mut model, &ids, (rows, len)));
        optimizer.step(model.params_mut(), 1.0, &Team::alone());
    }
    got
}

fn compare(case: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (step, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() < 1e-4 * w.abs(), "{case}, step {step}: {g} for {w}");
    }
}

#[test]
fn losses_follow_pytorch() {
    let settings = OptimizerSettings {
        learning_rate: 1e-3,
        weight_decay: 0.1,
        clip: 0.0,
        ..OptimizerSettings::default()
    };
    for case in [
        "deepseek_q_lora",
        "deepseek_no_q_lora",
        "deepseek_groups",
        "deepseek_yarn",
        "deepseek_mtp",
        "llama_tied",
        "llama3_rope",
        "qwen2",
        "qwen3",
    ] {
        let want = read(&SafeFile::open(golden(case).join("golden.safetensors")).expect("golden"), "losses");
        compare(case, &losses(case, settings.clone()), &want);
    }
}

/// Muon moves matrices as `torch.optim.Muon` does, wide and tall ones, those of one row and of more than one strip.
#[test]
fn muon_moves_matrices_as_pytorch_does() {
    let file = SafeFile::open(golden("muon.safetensors")).expect("golden values");
    for (rows, cols) in [(5, 12), (12, 5), (16, 16), (35, 40), (1, 7)] {
        let of = |what: &str| read(&file, &format!("{what}.{rows}x{cols}"));
        let data = |values: &[f32]| {
            let mut buffer = Buf::new(values.len());
            buffer.copy_from_slice(values);
            Data::from(buffer)
        };
        let (mut p, mut m) = (data(&of("p")), Data::zeros(None, rows * cols));
        let rule = Muon { lr: 0.02, decay: 0.1, momentum: 0.95, grad_scale: 1.0 };
        for g in of("g").chunks(rows * cols) {
            ops::muon(&mut p, &data(g), &mut m, 0, &[Weight { offset: 0, rows, cols }], rule);
        }
        let want = of("q");
        let size = want.iter().fold(0.0f32, |top, x| top.max(x.abs()));
        for (g, w) in p.host().iter().zip(&want) {
            assert!((g - w).abs() < 1e-5 * size, "{rows}x{cols}: {g} for {w}");
        }
    }
}

/// Muon takes the matrices that it takes elsewhere, and AdamW the rest.
#[test]
fn losses_under_muon_follow_pytorch() {
    let settings = OptimizerSettings {
        kind: OptimizerKind::Muon,
        learning_rate: 0.02,
        adam_learning_rate: 1e-3,
        weight_decay: 0.1,
        clip: 0.0,
        ..OptimizerSettings::default()
    };
    let want = read(&SafeFile::open(golden("muon.safetensors")).expect("golden values"), "losses");
    compare("llama_tied", &losses("llama_tied", settings), &want);
}
