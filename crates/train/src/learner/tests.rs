use super::*;
use crate::context::{Ceiling, Machine, Reporter};
use crate::run::folder::RunFolder;
use data::TrainOptions;
use model::ModelConfig;
use serde_json::json;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tensor::Rng;

/// Says nothing, and asks to stop after some steps.
struct Quiet(AtomicU64);

impl Reporter for Quiet {
    fn stage(&self, _: &str, _: &str, _: usize, _: usize) {}
    fn progress(&self, _: &Progress) {}
    fn stage_done(&self, _: &str, _: &StageCost, _: &str) {}
    fn sample(&self, _: &str, _: u64, _: &str, _: &str) {}
    fn note(&self, _: &str) {}
    fn stop(&self) -> bool {
        self.0.fetch_sub(1, Relaxed) == 1
    }
}

const TOTAL: u64 = 40;

/// A stage whose steps read documents, of which those of `poison` give no usable loss.
struct Poisoned<'a> {
    poison: &'a [u64],
    /// The step at which nothing is saved and all is over; 0 for none.
    crash: u64,
    done: u64,
}

impl Steps for Poisoned<'_> {
    fn step(&mut self, l: &mut Learner, now: &Now) -> Result<StepOutcome, TrainError> {
        self.done += 1;
        if self.done == self.crash {
            return Err(TrainError::Interrupted);
        }
        let document = l.cursor;
        l.cursor += 1;
        let skipped = self.poison.contains(&document);
        if !skipped {
            let mut rng = Rng::at(document, &[now.step]);
            l.model.params_mut().zero_grads();
            let (weights, grads) = l.model.params_mut().data_and_grads_mut();
            for (g, w) in grads.host_mut().iter_mut().zip(weights.host()) {
                *g = 0.1 * w + rng.normal();
            }
            l.optimizer.step(l.model.params_mut(), now.lr_factor, &l.team);
            l.saw_loss(f64::from(rng.uniform()));
        }
        l.set_figure("document", document as f64);
        let headline = ("loss", l.usual_loss);
        Ok(StepOutcome { headline, values: Vec::new(), named: Vec::new(), tokens: 1, skipped, enough: false })
    }

    fn measure(&mut self, _: &Learner, _: u64, _: &mut Metrics) -> Result<(), TrainError> {
        Ok(())
    }
}

/// Runs such a stage until it stops, which is `crash` steps (nothing is saved) or `stop` steps (all is) from where it
/// began. The weights and figures at the end, if there was one.
fn attempt(
    dir: &Path,
    poison: &[u64],
    seconds: f64,
    (crash, stop): (u64, u64),
) -> Result<(Vec<u32>, BTreeMap<String, f64>), TrainError> {
    let folder = RunFolder::open(dir, "")?;
    folder.claim("")?;
    let (reporter, measure) = (Quiet(stop.into()), || 1e9);
    let ceiling = Ceiling::new(&measure);
    let (machine, models) = (Machine::default(), toml::Table::new());
    let ctx = Context {
        seed: 1,
        machine: &machine,
        models: &models,
        stages: BTreeMap::from([("stage", 0)]),
        folder: &folder,
        reporter: &reporter,
        problems: None,
        team: Rc::new(Team::alone()),
        ceiling,
    };
    let text = std::iter::repeat_n("some words and more words".to_owned(), 3);
    let tokenizer = Tokenizer::train(text, &TrainOptions::reasoning(300))?;
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 300,
        "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "hidden_act": "silu", "max_position_embeddings": 8, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "initializer_range": 0.3, "tie_word_embeddings": true});
    let model = Model::random(ModelConfig::from_value(&config).expect("a valid config"), 3);
    let optimizer = OptimizerSettings { learning_rate: 1e-2, adam_learning_rate: 1e-2, ..Default::default() };
    let training = Training { optimizer, checkpoint_seconds: seconds, ..Training::default() };
    let mut learner = Learner::new(model, tokenizer, &training.optimizer, &ctx.team);
    let mut steps = Poisoned { poison, crash, done: 0 };
    learner.run(&ctx, "stage", &training, (TOTAL, TOTAL), &mut steps)?;
    let weights = learner.model.params().data().iter().map(|w| w.to_bits()).collect();
    Ok((weights, learner.figures))
}

#[test]
fn a_hard_example_among_learnt_ones_is_no_spike() {
    assert_eq!(spike_above(0.004), 1.0);
    assert_eq!(spike_above(2.0), 20.0);
    assert_eq!(spike_above(f64::INFINITY), f64::INFINITY);
}

/// Whenever it is stopped or killed, and however often it saves: a stage ends with the same weights, or diverges.
#[test]
fn going_back_does_not_depend_on_the_clock() {
    let mut rng = Rng::new(9);
    let (mut went_back, mut diverged) = (0, 0);
    for case in 0..6 {
        let at = 2 + rng.below(TOTAL as usize - 8) as u64;
        let mut poison: Vec<u64> = (at..at + 3).collect();
        if case % 3 == 0 {
            poison.push(rng.below(TOTAL as usize) as u64);
        }
        if case % 4 == 0 {
            poison.extend(at + 5..at + 8);
        }
        let run = |never| {
            let dir = tempfile::tempdir().expect("a folder");
            let mut rng = Rng::new(case);
            loop {
                let seconds = [0.0, 1e-9, 1e9][rng.below(3)];
                let ends = if never {
                    (0, 0)
                } else {
                    [(1 + rng.below(12) as u64, 0), (0, 1 + rng.below(12) as u64)][rng.below(2)]
                };
                match attempt(dir.path(), &poison, seconds, ends) {
                    Ok(end) => {
                        // Killed before its end mark: the same again.
                        let again = attempt(dir.path(), &poison, 0.0, (1, 0)).expect("it has ended");
                        assert_eq!(again, end);
                        return Some(end);
                    }
                    Err(TrainError::Diverged(_)) => return None,
                    Err(TrainError::Interrupted) => {}
                    Err(e) => panic!("{e}"),
                }
            }
        };
        let want = run(true);
        went_back += usize::from(want.is_some());
        diverged += usize::from(want.is_none());
        for _ in 0..2 {
            assert_eq!(run(false), want, "{poison:?}");
        }
    }
    assert!(went_back >= 2 && diverged >= 1, "{went_back} and {diverged}");
}
