//! Logits, losses and every gradient against `transformers` in float64 (see `tests/golden/make_goldens.py` and
//! `make_family_goldens.py`).

use std::path::{Path, PathBuf};

use model::files::SafeFile;
use model::{Model, PassOptions, whole};
use tensor::{Tape, ops};

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case)
}

fn read(file: &SafeFile, name: &str) -> Vec<f32> {
    let shape = file.shape(name).unwrap_or_else(|| panic!("{name} in the golden file")).to_vec();
    let mut out = vec![0.0; shape.iter().product()];
    file.read_f32(name, &shape, &mut out).expect(name);
    out
}

/// Largest difference relative to the largest reference value.
fn error(got: &[f32], want: &[f32]) -> f32 {
    let top = want.iter().fold(1e-12f32, |m, x| m.max(x.abs()));
    got.iter().zip(want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / top
}

fn check(case: &str, recompute: bool) {
    let dir = folder(case);
    let mut model = Model::load(&dir).expect("a model that transformers wrote");
    let golden = SafeFile::open(dir.join("golden.safetensors")).expect("golden values");
    let ids: Vec<u32> = golden.read_i64("input_ids").expect("ids").into_iter().map(|i| i as u32).collect();
    let [rows, len] = golden.shape("input_ids").expect("ids")[..] else { panic!("two sequences") };
    let vocab = model.config().vocab_size();
    model.params_mut().zero_grads();
    let tape = Tape::recording(model.params());
    let segments = whole(&vec![len; rows]);
    let options = PassOptions { recompute, balance_alpha: 0.0 };
    let pass = model.forward(&tape, &ids, &segments, options, None);
    let logits = ops::logits(model.params(), &pass.hidden, model.head());
    let e = error(logits.host(), &read(&golden, "logits"));
    assert!(e < 1e-5, "{case}: logits off by {e}");

    let mut targets = ids.clone();
    targets.rotate_left(1);
    let weight = 1.0 / (rows * (len - 1)) as f32;
    let weights: Vec<f32> = (0..rows * len).map(|i| if i % len == len - 1 { 0.0 } else { weight }).collect();
    let nll = |stats: &ops::TokenStats, w: &[f32]| -> f32 {
        stats.logprobs.iter().zip(w).map(|(l, w)| -l * w).sum()
    };
    let stats = ops::cross_entropy(&tape, &pass.hidden, model.head(), &targets, &weights);
    let mut loss = nll(&stats, &weights);
    if model.has_mtp() {
        let mtp = model.forward_mtp(&tape, &pass.hidden, &targets, &segments, options);
        let mut further = targets.clone();
        further.rotate_left(1);
        let weight = 0.3 / (rows * (len - 2)) as f32;
        let weights: Vec<f32> =
            (0..rows * len).map(|i| if i % len >= len - 2 { 0.0 } else { weight }).collect();
        let all = ops::logits(model.params(), &mtp.hidden, model.head());
        let got: Vec<f32> =
            (0..rows).flat_map(|r| all.host()[r * len * vocab..][..(len - 1) * vocab].to_vec()).collect();
        let e = error(&got, &read(&golden, "mtp_logits"));
        assert!(e < 1e-5, "{case}: MTP logits off by {e}");
        loss += nll(&ops::cross_entropy(&tape, &mtp.hidden, model.head(), &further, &weights), &weights);
    }
    let want = read(&golden, "loss")[0];
    assert!((loss - want).abs() < 1e-5 * want, "{case}: loss {loss} for {want}");
    tape.backward();
    for p in model.params().list().iter().filter(|p| p.trained) {
        let e = error(&model.params().grad_mut(p.weight), &read(&golden, &format!("grad.{}", p.name)));
        assert!(e < 1e-4, "{case}: gradient of {} off by {e}", p.name);
    }
}

macro_rules! cases {
    ($($name:ident),*) => { $(
        #[test]
        fn $name() {
            check(stringify!($name), false);
            check(stringify!($name), true);
        }
    )* };
}
cases!(
    deepseek_q_lora,
    deepseek_no_q_lora,
    deepseek_groups,
    deepseek_yarn,
    deepseek_mtp,
    llama_tied,
    llama3_rope,
    qwen2,
    qwen3,
    mistral_window,
    smollm3,
    qwen3_moe,
    olmoe,
    deepseek_v2,
    deepseek_v2_groups,
    gemma3
);
