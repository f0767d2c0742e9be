//! Adapters beside frozen weights: against PEFT, and the formats both ways.

use std::path::{Path, PathBuf};

use model::files::{SafeFile, WeightType};
use model::{AdapterConfig, HeldAs, Model, PassOptions, Use, whole};
use tensor::{Tape, ops};

fn golden(case: &str) -> PathBuf {
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

fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let tape = Tape::inference(model.params());
    let pass = model.forward(&tape, ids, &whole(&[ids.len()]), PassOptions::default(), None);
    ops::logits(model.params(), &pass.hidden, model.head()).host().to_vec()
}

/// A folder that PEFT wrote (`tests/golden/make_peft_goldens.py`): its logits, and the gradient of every matrix.
fn against_peft(case: &str, base: &str) {
    let (dir, base) = (golden(case), golden(base));
    let adapter = dir.join("adapter");
    let config = {
        let model = Model::open_with(&base, &adapter, Use::Infer(HeldAs::F32)).expect("an adapter of PEFT's");
        model.adapter().expect("an adapter").clone()
    };
    let mut model = Model::open_with(&base, &adapter, Use::Adapt(HeldAs::F32, config)).expect("the same");
    let file = SafeFile::open(dir.join("golden.safetensors")).expect("golden values");
    let ids: Vec<u32> = file.read_i64("input_ids").expect("ids").into_iter().map(|i| i as u32).collect();
    assert!(error(&logits(&model, &ids), &read(&file, "logits")) < 1e-5, "{case}: logits");

    model.params_mut().zero_grads();
    let tape = Tape::recording(model.params());
    let pass = model.forward(&tape, &ids, &whole(&[ids.len()]), PassOptions::default(), None);
    let mut targets = ids.clone();
    targets.rotate_left(1);
    let mut weights = vec![1.0 / (ids.len() - 1) as f32; ids.len()];
    weights[ids.len() - 1] = 0.0;
    ops::cross_entropy(&tape, &pass.hidden, model.head(), &targets, &weights);
    tape.backward();
    let trained: Vec<_> = model.params().list().iter().filter(|p| p.trained).collect();
    assert_eq!(trained.iter().map(|p| p.weight.len()).sum::<usize>(), model.params().trained_len());
    for p in trained {
        let e = error(&model.params().grad_mut(p.weight), &read(&file, &format!("grad.{}", p.name)));
        assert!(e < 1e-4, "{case}: gradient of {} off by {e}", p.name);
    }
}

#[test]
fn lora_is_that_of_peft() {
    against_peft("peft_llama", "llama_tied");
}

#[test]
fn rslora_on_some_targets_is_that_of_peft() {
    against_peft("peft_qwen2_rslora", "qwen2");
}

/// Nothing changes before the first step; what is trained is saved, loaded and merged with the same logits.
#[test]
fn adapters_begin_at_nothing_and_survive_the_disk() {
    let ids: Vec<u32> = (0..17).map(|i| (i * i * 5 + 2) % 61).collect();
    for (case, targets) in [
        ("llama_tied", vec![]),
        ("qwen3", vec!["q_proj", "v_proj"]),
        ("deepseek_q_lora", vec![]),
        ("deepseek_no_q_lora", vec!["kv_a_proj_with_mqa", "gate_proj"]),
    ] {
        let base = golden(case);
        let targets = targets.into_iter().map(String::from).collect();
        let config = AdapterConfig { rank: 3, alpha: 5.0, targets, rslora: false };
        let mut model = Model::open(&base, Use::Adapt(HeldAs::Stored, config.clone())).unwrap();
        let plain = logits(&Model::load(&base).unwrap(), &ids);
        assert_eq!(logits(&model, &ids), plain, "{case}");

        let mut rng = tensor::Rng::new(1);
        model.params_mut().data_mut().iter_mut().for_each(|x| *x += 0.05 * rng.normal());
        let adapted = logits(&model, &ids);
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path()).unwrap();
        for back in [
            Model::open(dir.path(), Use::Infer(HeldAs::Stored)).unwrap(),
            Model::open(dir.path(), Use::Adapt(HeldAs::Stored, config)).unwrap(),
            Model::open_with(&base, dir.path(), Use::Infer(HeldAs::F32)).unwrap(),
        ] {
            assert_eq!(logits(&back, &ids), adapted, "{case}");
        }
        let merged = Model::load(dir.path()).unwrap();
        assert!(merged.adapter().is_none() && merged.params().trained_len() == merged.params().len());
        let e = error(&logits(&merged, &ids), &adapted);
        assert!(e > 0.0 && e < 1e-5, "{case}: merged off by {e}");
        assert!(error(&plain, &adapted) > 1e-2, "{case}: an adapter that does something");
    }
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let base = golden("qwen3");
    let refusal = |result: Result<Model, model::files::FileError>| match result {
        Ok(_) => panic!("an adapter that does not fit was taken"),
        Err(e) => e.to_string(),
    };
    let config =
        |rank, target: &str| AdapterConfig { rank, targets: vec![target.into()], ..Default::default() };
    let error = refusal(Model::open(&base, Use::Adapt(HeldAs::Stored, config(0, "q_proj"))));
    assert!(error.contains("`rank` is 0"), "{error}");
    let error = refusal(Model::open(&base, Use::Adapt(HeldAs::Stored, config(2, "query"))));
    assert!(error.contains("no projection \"query\"") && error.contains("q_proj, up_proj"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let made = Model::open(&base, Use::Adapt(HeldAs::Stored, config(2, "q_proj"))).unwrap();
    made.save(dir.path()).unwrap();
    let error = refusal(Model::open_with(&golden("llama_tied"), dir.path(), Use::Infer(HeldAs::Stored)));
    assert!(error.contains("this model and rank 2 want"), "{error}");
    let error = refusal(Model::open(dir.path(), Use::Adapt(HeldAs::Stored, config(3, "q_proj"))));
    assert!(error.contains("it has rank 2"), "{error}");
    // The same model in another type is the same model; of one that was trained on the shapes fit, but not the weights.
    let other = tempfile::tempdir().unwrap();
    let mut model = Model::load(&base).unwrap();
    model.save_as(other.path(), WeightType::Bf16).unwrap();
    Model::open_with(other.path(), dir.path(), Use::Infer(HeldAs::Stored)).unwrap();
    model.params_mut().data_mut().iter_mut().for_each(|x| *x *= 1.01);
    model.save(other.path()).unwrap();
    let error = refusal(Model::open_with(other.path(), dir.path(), Use::Infer(HeldAs::Stored)));
    assert!(
        error.contains("it was trained beside the weights of") && error.contains("are others"),
        "{error}"
    );
    let error = refusal(Model::open_with(&base, &base, Use::Infer(HeldAs::Stored)));
    assert!(error.contains("holds no adapter"), "{error}");
    let file = dir.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"bias\": \"none\"", "\"bias\": \"all\"")).unwrap();
    let error = refusal(Model::open(dir.path(), Use::Infer(HeldAs::Stored)));
    assert!(error.contains("`bias`"), "{error}");
    std::fs::write(&file, text.replace("\"r\": 2", "\"r\": 5")).unwrap();
    let error = refusal(Model::open(dir.path(), Use::Infer(HeldAs::Stored)));
    assert!(error.contains("this model and rank 5 want [5, "), "{error}");
}
