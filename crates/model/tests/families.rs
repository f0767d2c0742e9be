//! Every family on a GPU has the processor's bits: logits, a loss, every gradient, with adapters and weights as stored too. In fast
//! mode it is near them. The GPU is the emulated one, so that every machine can test this. What a GPU has no kernels for runs on
//! the processor.

#[path = "../../tensor/tests/common/emulator.rs"]
mod emulator;

use std::path::{Path, PathBuf};

use model::{AdapterConfig, HeldAs, Model, ModelConfig, PassOptions, Use, whole};
use tensor::{Math, Tape, ops};

/// In the repository: `bench/gpu/check` runs this program where it was not built.
fn golden(case: &str) -> PathBuf {
    let here = Path::new("tests/golden");
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    if here.exists() { here.join(case) } else { built.join(case) }
}

const FAMILIES: [&str; 13] = [
    "deepseek_groups",
    "deepseek_mtp",
    "deepseek_v2",
    "deepseek_v2_groups",
    "deepseek_yarn",
    "gemma3",
    "llama3_rope",
    "mistral_window",
    "olmoe",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
];

/// Logits of a sequence, log-probabilities, the gradients of what is trained, and how many tokens each expert got.
fn step(mut model: Model) -> Vec<Vec<f32>> {
    let ids: Vec<u32> = (0..90).map(|i| (i * i * 5 + 2) % 61).collect();
    model.reserve_positions(128);
    model.params_mut().zero_grads();
    let tape = Tape::recording(model.params());
    let pass = model.forward(&tape, &ids, &whole(&[70, 20]), PassOptions::default(), None);
    let logits = ops::logits(model.params(), &pass.hidden, model.head()).host().to_vec();
    let weights = vec![0.1; ids.len()];
    let stats = ops::cross_entropy(&tape, &pass.hidden, model.head(), &ids, &weights);
    tape.backward();
    let loads = pass.loads.iter().flat_map(|load| load.load.host().to_vec()).map(|n| n as f32).collect();
    vec![logits, stats.logprobs, model.params().grads().to_vec(), loads]
}

/// The place of the experts' loads in what [`step`] gives.
const LOADS: usize = 3;

/// The length of the difference, in lengths of `want`.
fn relative_distance(got: &[f32], want: &[f32]) -> f64 {
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = &mut got.iter().zip(want).map(|(g, w)| f64::from(*g) - f64::from(*w));
    length(difference) / length(&mut want.iter().map(|w| f64::from(*w)))
}

fn cases() -> Vec<(String, Model)> {
    let adapter = || AdapterConfig { rank: 3, alpha: 5.0, ..Default::default() };
    let uses = |case: &str| {
        vec![
            Use::Train,
            Use::Adapt(HeldAs::Bf16, adapter()),
            // Rows of these models are no whole blocks of more.
            Use::Adapt(HeldAs::F32, AdapterConfig { rslora: case.len().is_multiple_of(2), ..adapter() }),
        ]
    };
    let open = |case: &'static str| {
        uses(case).into_iter().map(move |wanted| {
            let what = format!("{case}, {wanted:?}");
            let mut model = Model::open(&golden(case), wanted).unwrap_or_else(|e| panic!("{what}: {e}"));
            // A fresh adapter changes nothing, and gives its A no gradient.
            if model.adapter().is_some() {
                let mut rng = tensor::Rng::new(4);
                model.params_mut().data_mut().iter_mut().for_each(|x| *x += 0.05 * rng.normal());
            }
            (what, model)
        })
    };
    FAMILIES.iter().flat_map(|case| open(case)).collect()
}

#[test]
fn families_have_the_processors_bits_or_fall_back_to_it() {
    let Some(gpu) = emulator::gpu() else { return };
    let on_cpu: Vec<_> = cases().into_iter().map(|(what, model)| (what, step(model))).collect();
    tensor::set_device(gpu.clone(), Some(Math::Exact), false);
    for ((what, want), (_, model)) in on_cpu.iter().zip(cases()) {
        assert!(model.params().gpu().is_some() && model.notices().is_empty(), "{what}");
        for (i, (got, want)) in step(model).iter().zip(want).enumerate() {
            let same =
                got.len() == want.len() && got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{what}: {i} has other bits");
            assert!(i == LOADS || want.iter().any(|x| *x != 0.0), "{what}: {i} is something");
        }
    }

    for ((what, want), (_, mut model)) in on_cpu.iter().zip(cases()) {
        model.params_mut().move_to(Some(&gpu.with_math(Math::Fast)));
        let got = step(model);
        // Where the scores of two experts are nearly equal, rounding may give a token to the other one.
        let most = if got[LOADS] == want[LOADS] { 0.08 } else { 0.5 };
        for (i, (got, want)) in got.iter().zip(want).enumerate().take(LOADS) {
            let off = relative_distance(got, want);
            assert!(got.len() == want.len() && off < most, "{what}: {i} is off by {off}");
        }
    }

    let value = serde_json::json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 61,
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 258, "hidden_act": "silu", "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "initializer_range": 0.2, "tie_word_embeddings": true});
    let wide = Model::random(ModelConfig::from_value(&value).expect("a valid config"), 1);
    let dir = tempfile::tempdir().expect("a folder");
    wide.save(dir.path()).expect("saved");
    for model in [wide, Model::load(dir.path()).expect("the same")] {
        assert!(model.params().gpu().is_none());
        let [notice] = model.notices() else { panic!("one sentence: {:?}", model.notices()) };
        assert!(notice.contains("running on the processor") && notice.contains("heads of 258"), "{notice}");
        step(model);
    }
}
