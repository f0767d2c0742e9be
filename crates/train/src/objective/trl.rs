//! The policy step against TRL's (see `tests/golden/make_trl_goldens.py`): advantages, log-probabilities at a temperature,
//! the loss with its terms, slopes, the gradient of every parameter, and the second update of a rollout.

use std::path::{Path, PathBuf};

use model::Model;
use model::files::SafeFile;

use super::{Clip, Norm, ObjectiveKind, Sequence, objective};
use crate::objective::kl::KlKind;
use crate::optim::{Optimizer, OptimizerSettings};
use crate::policy::{PolicySettings, Prompted, Sampled, flatten, policy_step};
use crate::step::{StepOptions, score};
use crate::team::Team;

const CLIP: Clip = Clip { low: 0.2, high: 0.28 };
const BETA: f32 = 0.1;
const GROUP: usize = 3;
const MAX_NEW: usize = 7;
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/trl")
}

fn load(dir: &Path) -> Model {
    Model::load(dir).expect("a model that transformers wrote")
}

struct Golden(SafeFile);

/// A prompt and the answers of its group.
type Group = (Vec<u32>, Vec<Sampled>);

fn prompted(groups: &[Group]) -> Vec<Prompted<'_>> {
    groups.iter().map(|(prompt, answers)| Prompted { prompt, answers: answers.iter().collect() }).collect()
}

fn answers(groups: &[Group]) -> impl Iterator<Item = &Sampled> {
    groups.iter().flat_map(|(_, answers)| answers)
}

impl Golden {
    fn open() -> Golden {
        Golden(SafeFile::open(folder().join("golden.safetensors")).expect("golden values"))
    }

    fn read(&self, name: &str) -> Vec<f32> {
        let shape = self.0.shape(name).unwrap_or_else(|| panic!("{name} in the golden file")).to_vec();
        let mut out = vec![0.0; shape.iter().product()];
        self.0.read_f32(name, &shape, &mut out).expect(name);
        out
    }

    /// The objectives that TRL has.
    fn objectives(&self) -> impl Iterator<Item = (&'static str, ObjectiveKind)> {
        ObjectiveKind::ALL
            .into_iter()
            .filter(|(name, _)| self.0.shape(&format!("{name}.kl0.1.0.near.loss")).is_some())
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.0.read_i64(name).expect(name).into_iter().map(|i| i as u32).collect()
    }

    fn lengths(&self) -> Vec<usize> {
        self.ids("lengths").into_iter().map(|n| n as usize).collect()
    }

    /// `[rows, MAX_NEW]` without its padding.
    fn rows(&self, name: &str) -> Vec<Vec<f32>> {
        let rows = self.read(name);
        rows.chunks(MAX_NEW).zip(self.lengths()).map(|(row, n)| row[..n].to_vec()).collect()
    }

    /// The groups of a case, with log-probabilities of when they were sampled by the name of `old`.
    fn groups(&self, kind: ObjectiveKind, old: &str, reference: Option<&str>) -> Vec<Group> {
        let (prompts, completions) = (self.ids("prompts"), self.ids("completions"));
        let prompt = prompts.len() / (completions.len() / MAX_NEW / GROUP);
        let rewards = self.read("rewards");
        let advantages: Vec<f32> =
            rewards.chunks(GROUP).flat_map(|rewards| objective(kind).advantages(rewards)).collect();
        let reference = reference.map(|name| self.rows(name));
        let rows = self.lengths().into_iter().zip(self.rows(old)).enumerate();
        let answers: Vec<Sampled> = rows
            .map(|(i, (n, old))| Sampled {
                tokens: completions[i * MAX_NEW..][..n].to_vec(),
                old,
                reference: reference.as_ref().map(|rows| rows[i].clone()),
                advantage: advantages[i],
            })
            .collect();
        prompts
            .chunks(prompt)
            .map(<[u32]>::to_vec)
            .zip(answers.chunks(GROUP).map(<[Sampled]>::to_vec))
            .collect()
    }
}

/// Largest difference relative to the largest reference value.
fn error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let top = want.iter().fold(1e-12f32, |m, x| m.max(x.abs()));
    got.iter().zip(want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / top
}

fn near(got: &[f32], want: &[f32], what: &str) {
    let e = error(got, want);
    assert!(e < 1e-4, "{what} is off by {e}");
}

fn gradient(model: &Model) -> Vec<f32> {
    let mut tensors: Vec<_> = model.params().list().iter().collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors.iter().flat_map(|p| model.params().grad_mut(p.weight).to_vec()).collect()
}

fn settings(kind: ObjectiveKind, groups: &[Group], temperature: f32, kl: f32) -> PolicySettings<'static> {
    let (sequences, tokens) = (answers(groups).count(), answers(groups).map(|a| a.tokens.len()).sum());
    PolicySettings {
        objective: objective(kind),
        clip: CLIP,
        kl: KlKind::K3,
        kl_coefficient: kl,
        norm: Norm { sequences, tokens, mean_tokens: tokens as f32, max_new: MAX_NEW },
        temperature,
        on_policy: false,
        pass_tokens: crate::policy::PASS_TOKENS,
        options: StepOptions::default(),
    }
}

fn optimizer(model: &Model) -> Optimizer {
    let config = OptimizerSettings {
        learning_rate: 1e-2,
        adam_learning_rate: 1e-2,
        eps: 1e-2,
        weight_decay: 0.0,
        clip: 0.0,
        ..OptimizerSettings::default()
    };
    Optimizer::new(model, config, &Team::alone())
}

/// The gradient of one policy step.
fn step(groups: &[Group], s: &PolicySettings) -> Vec<f32> {
    let mut model = load(&folder());
    let mut optimizer = optimizer(&model);
    policy_step(&mut model, &mut optimizer, &Team::alone(), &prompted(groups), s, 1.0);
    gradient(&model)
}

#[test]
fn advantages_are_those_of_trl() {
    let golden = Golden::open();
    assert!(golden.objectives().count() >= 6);
    for (name, kind) in golden.objectives() {
        let scaling = if kind == ObjectiveKind::DrGrpo { "none" } else { "group" };
        let want = golden.read(&format!("advantages.{scaling}"));
        let rewards = golden.read("rewards");
        let got: Vec<f32> = rewards.chunks(GROUP).flat_map(|r| objective(kind).advantages(r)).collect();
        near(&got, &want, name);
        assert_eq!(got[9..], [0.0; 3], "the flat group");
    }
}

#[test]
fn log_probabilities_at_a_temperature_are_those_of_trl() {
    let golden = Golden::open();
    for (who, dir) in [("policy", folder()), ("reference", folder().join("reference"))] {
        for temperature in [1.0f32, 0.7] {
            let groups = golden.groups(ObjectiveKind::Grpo, "old.1.0.near", None);
            let flat = flatten(&prompted(&groups));
            let stats = score(&load(&dir), &flat.tokens, &flat.targets, &flat.segments, temperature);
            let got: Vec<f32> =
                flat.predictions.into_iter().flat_map(|rows| stats.logprobs[rows].to_vec()).collect();
            near(&got, &golden.rows(&format!("{who}.{temperature:.1}")).concat(), who);
        }
    }
}

/// The loss as TRL prints it, from slopes: its terms are linear or constant in the ratio, so each follows from the slope.
fn terms(s: &PolicySettings, kind: ObjectiveKind, r: &Sampled, new: &[f32]) -> Vec<f32> {
    let len = r.tokens.len() as f32;
    let mean = new.iter().zip(&r.old).map(|(n, o)| n - o).sum::<f32>() / len;
    let kl = |i: usize| {
        r.reference.as_ref().map_or(0.0, |reference| s.kl.estimate(new[i], r.old[i], reference[i]).0)
    };
    let term = |i: usize| {
        let ratio = if kind == ObjectiveKind::Gspo { mean.exp() } else { (new[i] - r.old[i]).exp() };
        let held = ratio.clamp(1.0 - s.clip.low, 1.0 + s.clip.high);
        let policy = match kind {
            // TRL knows no lower bound.
            ObjectiveKind::Cispo => -ratio.min(1.0 + s.clip.high) * r.advantage * new[i],
            _ => -(ratio * r.advantage).min(held * r.advantage),
        };
        policy + s.kl_coefficient * kl(i)
    };
    (0..new.len()).map(term).collect()
}

#[test]
fn losses_slopes_and_gradients_are_those_of_trl() {
    let golden = Golden::open();
    for (name, kind) in golden.objectives() {
        // TRL's CISPO knows no lower bound.
        let low = if kind == ObjectiveKind::Cispo { 1.0 } else { CLIP.low };
        for (kl, temperature, drift) in [0, 1].into_iter().flat_map(|kl| {
            [1.0f32, 0.7].into_iter().flat_map(move |t| ["near", "far"].map(|drift| (kl, t, drift)))
        }) {
            let case = format!("{name}.kl{kl}.{temperature:.1}.{drift}");
            let reference = (kl == 1).then(|| format!("reference.{temperature:.1}"));
            let groups = golden.groups(kind, &format!("old.{temperature:.1}.{drift}"), reference.as_deref());
            let mut s = settings(kind, &groups, temperature, BETA * kl as f32);
            s.clip.low = low;
            let policy = golden.rows(&format!("policy.{temperature:.1}"));
            let (mut loss, mut all, mut gradients) = (0.0, Vec::new(), Vec::new());
            for (r, new) in answers(&groups).zip(&policy) {
                let weight = s.objective.weight(new.len(), s.norm);
                let terms = terms(&s, kind, r, new);
                loss += weight * terms.iter().sum::<f32>();
                all.extend(terms);
                let sequence = Sequence { new, old: &r.old, advantage: r.advantage };
                let got = s.objective.gradients(&sequence, s.clip, weight);
                gradients.extend(got.gradients.iter().enumerate().map(|(i, gradient)| {
                    let reference = r.reference.as_ref().map_or(0.0, |reference| {
                        s.kl.estimate(new[i], r.old[i], reference[i]).1 * s.kl_coefficient * weight
                    });
                    gradient + reference
                }));
            }
            let want = golden.rows(&format!("{case}.terms")).concat();
            near(&all, &want, &format!("{case}: terms"));
            let scale = want.iter().fold(0.0f32, |m, t| m.max(t.abs()));
            let want = golden.read(&format!("{case}.loss"))[0];
            assert!((loss - want).abs() < 1e-4 * scale, "{case}: loss {loss} for {want}");
            near(&gradients, &golden.rows(&format!("{case}.slopes")).concat(), &format!("{case}: slopes"));
            near(&step(&groups, &s), &golden.read(&format!("{case}.gradient")), &format!("{case}: gradient"));
        }
    }
}

/// Two minibatches of a rollout: what a token weighs is the objective's to say.
#[test]
fn a_rollout_in_two_steps_is_normalised_as_by_trl() {
    let golden = Golden::open();
    for ((name, kind), temperature) in golden.objectives().flat_map(|n| [1.0f32, 0.7].map(|t| (n, t))) {
        let case = format!("{name}.half.{temperature:.1}");
        let groups = golden.groups(kind, &format!("old.{temperature:.1}.far"), None);
        let half = &groups[..groups.len() / 2];
        let mut s = settings(kind, half, temperature, 0.0);
        s.norm.mean_tokens = answers(&groups).map(|a| a.tokens.len()).sum::<usize>() as f32 / 2.0;
        if kind == ObjectiveKind::Cispo {
            s.clip.low = 1.0;
        }
        near(&step(half, &s), &golden.read(&format!("{case}.gradient")), &case);
    }
}

#[test]
fn the_second_update_is_that_of_trl() {
    let golden = Golden::open();
    for ((name, kind), temperature) in golden.objectives().flat_map(|n| [1.0f32, 0.7].map(|t| (n, t))) {
        let case = format!("{name}.second.{temperature:.1}");
        let groups = golden.groups(kind, &format!("policy.{temperature:.1}"), None);
        let mut s = settings(kind, &groups, temperature, 0.0);
        if kind == ObjectiveKind::Cispo {
            s.clip.low = 1.0;
        }
        let mut model = load(&folder());
        let mut optimizer = optimizer(&model);
        let all = prompted(&groups);
        for _ in 0..2 {
            policy_step(&mut model, &mut optimizer, &Team::alone(), &all, &s, 1.0);
        }
        near(&gradient(&model), &golden.read(&format!("{case}.gradient")), &case);
    }
}

/// The unbiased estimate multiplies by the token's ratio, as DeepSeek-V3.2 has it. With `gspo`, TRL takes the
/// sequence's.
#[test]
fn the_unbiased_divergence_is_that_of_trl() {
    let golden = Golden::open();
    for ((name, kind), temperature) in golden.objectives().flat_map(|n| [1.0f32, 0.7].map(|t| (n, t))) {
        let (case, reference) =
            (format!("{name}.unbiased.{temperature:.1}"), format!("reference.{temperature:.1}"));
        let groups = golden.groups(kind, &format!("old.{temperature:.1}.near"), Some(&reference));
        let mut s = settings(kind, &groups, temperature, BETA);
        s.kl = KlKind::Unbiased;
        if kind == ObjectiveKind::Cispo {
            s.clip.low = 1.0;
        }
        let (got, want) = (step(&groups, &s), golden.read(&format!("{case}.gradient")));
        if kind == ObjectiveKind::Gspo {
            assert!(error(&got, &want) > 1e-4, "{case}: the choice makes a difference");
        } else {
            near(&got, &want, &case);
        }
    }
}
