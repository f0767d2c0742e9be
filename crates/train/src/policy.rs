//! The policy step: from rollouts with advantages to one update of the weights.

use std::ops::Range;

use model::{Model, Segment};
use serde::{Deserialize, Serialize};
use tensor::Tape;
use tensor::ops;

use crate::objective::kl::KlKind;
use crate::objective::{Clip, Norm, Objective, Sequence};
use crate::optim::{Optimizer, StepReport};
use crate::step::{Balance, Descent, StepOptions, descend, score};
use crate::team::Team;

/// Tokens of one pass, where memory allows them; more rollouts are worked off in several passes.
pub const PASS_TOKENS: usize = 8192;

/// One sampled answer with what is known of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sampled {
    /// Its tokens; at least one.
    pub tokens: Vec<u32>,
    /// Log-probabilities that it was sampled by, `[tokens]`, at the temperature of [`PolicySettings`].
    #[serde(with = "crate::team::bits")]
    pub old: Vec<f32>,
    /// Log-probabilities under the reference model at that temperature, `[tokens]`, where a divergence is charged; found after
    /// ranks have told each other what they sampled.
    #[serde(skip)]
    pub reference: Option<Vec<f32>>,
    /// What its tokens are reinforced by.
    pub advantage: f32,
}

impl Sampled {
    /// An answer of which nothing is known yet but how it was sampled.
    pub fn new(tokens: Vec<u32>, old: Vec<f32>) -> Sampled {
        Sampled { tokens, old, reference: None, advantage: 0.0 }
    }

    /// Whether a policy step trains on it, where a divergence is charged with this weight.
    pub fn teaches(&self, kl_coefficient: f32) -> bool {
        self.advantage != 0.0 || kl_coefficient != 0.0
    }
}

/// A prompt with answers to it, whose rows it shares.
#[derive(Clone, Debug)]
pub struct Prompted<'a> {
    /// Its tokens.
    pub prompt: &'a [u32],
    /// The answers.
    pub answers: Vec<&'a Sampled>,
}

/// How a policy step is done.
pub struct PolicySettings<'a> {
    /// The objective.
    pub objective: &'a dyn Objective,
    /// Its clip.
    pub clip: Clip,
    /// The estimate of the divergence.
    pub kl: KlKind,
    /// Its weight.
    pub kl_coefficient: f32,
    /// What the loss is normalised by.
    pub norm: Norm,
    /// The temperature at which the completions were sampled. The policy that is trained is the one that sampled: all
    /// log-probabilities, entropies and divergences are those of the logits divided by it.
    pub temperature: f32,
    /// Whether the weights still are those that sampled. Then the log-probabilities are the sampler's, to the bit, and
    /// are not computed again before the gradient.
    pub on_policy: bool,
    /// Tokens of one pass, at most.
    pub pass_tokens: usize,
    /// Passes and balance.
    pub options: StepOptions,
}

/// What a policy step measured, over the tokens that it trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyStats {
    /// Mean entropy of the predictions, in nats.
    pub entropy: f64,
    /// Mean divergence from the reference (0 without one).
    pub kl: f64,
    /// Share of tokens whose ratio was clipped.
    pub clip_share: f64,
    /// Tokens whose log-probability differs by a bit from the sampler's, of those trained on. On the first step after
    /// sampling this is zero by the engine's contract; [`mismatched`] looks at what that step leaves out.
    pub mismatched: usize,
    /// Tokens trained on.
    pub trained_tokens: usize,
    /// The optimizer's report.
    pub report: StepReport,
}

/// One optimizer step. Answers without advantage add nothing to the gradient and are left out, unless a divergence
/// is charged; the normalisation still counts them.
pub fn policy_step(
    model: &mut Model,
    optimizer: &mut Optimizer,
    team: &Team,
    groups: &[Prompted],
    s: &PolicySettings,
    lr_factor: f32,
) -> PolicyStats {
    let teaches = |a: &&Sampled| a.teaches(s.kl_coefficient);
    let active = groups
        .iter()
        .map(|g| Prompted { prompt: g.prompt, answers: g.answers.iter().copied().filter(teaches).collect() });
    let shards = shards(active.collect(), team);
    let how = Descent { lr_factor, router_bias_rate: s.options.router_bias_rate, loss_limit: 0.0 };
    // Of policies, only the gradient says whether it is usable.
    let loss = |_: &[f64; 5]| 0.0;
    let done = descend(model, optimizer, team, how, &shards, loss, |model, groups, balance| {
        let mut sums = Sums::default();
        for groups in passes(groups.iter().cloned(), s.pass_tokens) {
            pass(model, &groups, s, &mut sums, balance);
        }
        sums.numbers()
    });
    let [tokens, entropy, kl, clipped, mismatched] = done.found;
    let n = tokens.max(1.0);
    PolicyStats {
        entropy: entropy / n,
        kl: kl / n,
        clip_share: clipped / n,
        mismatched: mismatched as usize,
        trained_tokens: tokens as usize,
        report: done.report,
    }
}

/// Cuts groups into the shards of a step: an answer goes to that in which its middle lies, with the prompt.
pub(crate) fn shards<'a>(groups: Vec<Prompted<'a>>, team: &Team) -> Vec<Option<Vec<Prompted<'a>>>> {
    let total = groups.iter().flat_map(|g| &g.answers).map(|a| a.tokens.len()).sum();
    let mut shards = vec![None; team.shards()];
    let mut at = 0;
    for Prompted { prompt, answers } in groups {
        let mut begun = None;
        for answer in answers {
            let number = team.shard_at(at, answer.tokens.len(), total);
            at += answer.tokens.len();
            let shard: &mut Vec<Prompted> = shards[number].get_or_insert_default();
            match shard.last_mut().filter(|_| begun == Some(number)) {
                Some(group) => group.answers.push(answer),
                None => shard.push(Prompted { prompt, answers: vec![answer] }),
            }
            begun = Some(number);
        }
    }
    shards
}

/// Computes the log-probabilities of all tokens of answers, at their temperature, and counts those that differ by a bit from
/// the sampler's.
pub fn mismatched(
    model: &Model,
    team: &Team,
    groups: &[Prompted],
    pass_tokens: usize,
    temperature: f32,
) -> usize {
    let passes = passes(groups.iter().cloned(), pass_tokens);
    let count = |groups: &Vec<Prompted>| -> usize {
        let flat = flatten(groups);
        let stats = score(model, &flat.tokens, &flat.targets, &flat.segments, temperature);
        let answers = groups.iter().flat_map(|g| &g.answers).zip(flat.predictions);
        answers.map(|(a, rows)| differing(&stats.logprobs[rows], &a.old)).sum()
    };
    team.deal_all(passes.len(), |part| passes[part].iter().map(count).collect()).iter().sum()
}

/// Values that are not the same bits.
fn differing(a: &[f32], b: &[f32]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count()
}

#[derive(Default)]
struct Sums {
    tokens: usize,
    entropy: f64,
    kl: f64,
    clipped: usize,
    mismatched: usize,
}

impl Sums {
    fn numbers(&self) -> [f64; 5] {
        let Sums { tokens, entropy, kl, clipped, mismatched } = *self;
        [tokens as f64, entropy, kl, clipped as f64, mismatched as f64]
    }
}

/// Parts groups into passes of at most `most` tokens, or one answer each. A group that is cut has its prompt in both.
fn passes<'a>(groups: impl Iterator<Item = Prompted<'a>>, most: usize) -> Vec<Vec<Prompted<'a>>> {
    let mut passes: Vec<Vec<Prompted>> = Vec::new();
    let mut tokens = most;
    for Prompted { prompt, answers } in groups {
        let mut begun = false;
        for answer in answers {
            tokens += answer.tokens.len() + if begun { 0 } else { prompt.len() };
            if tokens > most {
                passes.push(Vec::new());
                tokens = answer.tokens.len() + prompt.len();
                begun = false;
            }
            let pass = passes.last_mut().expect("the first answer began one");
            match pass.last_mut().filter(|_| begun) {
                Some(group) => group.answers.push(answer),
                None => pass.push(Prompted { prompt, answers: vec![answer] }),
            }
            begun = true;
        }
    }
    passes
}

/// Adds the gradient of some answers.
fn pass(model: &Model, groups: &[Prompted], s: &PolicySettings, sums: &mut Sums, balance: &mut Balance) {
    let Flat { tokens, targets, segments, predictions } = flatten(groups);
    let answers = || groups.iter().flat_map(|g| &g.answers);
    let tape = Tape::recording(model.params());
    let out = model.forward(&tape, &tokens, &segments, s.options.pass(), None);
    let (params, head) = (model.params(), model.head());
    let present =
        (!s.on_policy).then(|| ops::log_probs(params, &out.hidden, head, &targets, s.temperature).logprobs);
    let mut gradients = vec![0.0; tokens.len()];
    for (a, range) in answers().zip(&predictions) {
        let new = present.as_ref().map_or(&a.old[..], |p| &p[range.clone()]);
        let weight = s.objective.weight(a.tokens.len(), s.norm);
        let got =
            s.objective.gradients(&Sequence { new, old: &a.old, advantage: a.advantage }, s.clip, weight);
        gradients[range.clone()].copy_from_slice(&got.gradients);
        if let Some(reference) = &a.reference {
            let share = s.kl_coefficient * weight;
            for ((gradient, new), (old, reference)) in
                gradients[range.clone()].iter_mut().zip(new).zip(a.old.iter().zip(reference))
            {
                let (kl, d) = s.kl.estimate(*new, *old, *reference);
                *gradient += share * d;
                sums.kl += f64::from(kl);
            }
        }
        sums.clipped += got.clipped;
    }
    let stats = ops::seed_log_probs(params, &out.hidden, head, &targets, &gradients, s.temperature);
    for (a, range) in answers().zip(predictions) {
        let new = &stats.logprobs[range.clone()];
        sums.mismatched += differing(new, &a.old);
        sums.entropy += stats.entropies[range].iter().map(|&e| f64::from(e)).sum::<f64>();
        sums.tokens += new.len();
    }
    tape.backward();
    balance.add(out.loads);
}

/// Answers as one batch of inputs and targets.
#[derive(Default)]
pub(crate) struct Flat {
    pub tokens: Vec<u32>,
    /// The next token of each row; any where none is predicted.
    pub targets: Vec<u32>,
    pub segments: Vec<Segment>,
    /// The rows that predict each answer, group after group.
    pub predictions: Vec<Range<usize>>,
}

/// The answers of a group share their prompt's rows, up to its last token, from which their first tokens are predicted.
pub(crate) fn flatten(groups: &[Prompted]) -> Flat {
    let mut flat = Flat::default();
    for group in groups {
        let (last, before) = group.prompt.split_last().expect("a prompt has tokens");
        if !before.is_empty() {
            flat.tokens.extend(before);
            flat.targets.extend(&group.prompt[1..]);
            flat.segments.push(Segment { rows: before.len(), ..Segment::default() });
        }
        for answer in &group.answers {
            let (start, rows) = (flat.tokens.len(), answer.tokens.len());
            flat.tokens.push(*last);
            flat.tokens.extend(&answer.tokens[..rows - 1]);
            flat.targets.extend(&answer.tokens);
            flat.segments.push(Segment { rows, past: before.len(), pages: Vec::new() });
            flat.predictions.push(start..start + rows);
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::{ObjectiveKind, objective};
    use crate::optim::OptimizerSettings;
    use model::config::ModelConfig;
    use tensor::Rng;

    fn tiny() -> Model {
        let config = serde_json::json!({
            "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "vocab_size": 40,
            "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": null, "kv_lora_rank": 16,
            "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4,
            "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
            "norm_topk_prob": true, "routed_scaling_factor": 1.5, "first_k_dense_replace": 1,
            "scoring_func": "sigmoid", "topk_method": "noaux_tc", "hidden_act": "silu",
            "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "initializer_range": 0.3, "tie_word_embeddings": false
        });
        Model::random(ModelConfig::from_value(&config).expect("a valid config"), 3)
    }

    fn prompted<'a>(prompt: &'a [u32], answers: &'a [Sampled]) -> Prompted<'a> {
        Prompted { prompt, answers: answers.iter().collect() }
    }

    /// Answers that share their prompt's rows get the log-probabilities, to the bit, and the gradient, to rounding,
    /// that each would get with a prompt of its own.
    #[test]
    fn sharing_a_prompt_changes_nothing() {
        let model = tiny();
        let mut rng = Rng::new(7);
        let mut ids = |n: usize| -> Vec<u32> { (0..n).map(|_| rng.below(40) as u32).collect() };
        let mut groups = Vec::new();
        for (prompt, answers) in [(70, vec![5, 1, 66]), (1, vec![4, 9]), (9, vec![3])] {
            let answer = |(i, n): (usize, usize)| Sampled {
                advantage: 1.0 - 0.7 * i as f32,
                ..Sampled::new(ids(n), vec![-3.0; n])
            };
            let answers: Vec<Sampled> = answers.into_iter().enumerate().map(answer).collect();
            groups.push((ids(prompt), answers));
        }
        let all: Vec<Prompted> = groups.iter().map(|(prompt, answers)| prompted(prompt, answers)).collect();
        let single = |(prompt, answer)| Prompted { prompt, answers: vec![answer] };
        let alone: Vec<Prompted> =
            all.iter().flat_map(|g| g.answers.iter().map(|a| single((g.prompt, *a)))).collect();
        let flat = flatten(&all);
        assert_eq!(flat.tokens.len(), 69 + 72 + 13 + 8 + 3, "a prompt's rows are there once");
        let shared = crate::step::score(&model, &flat.tokens, &flat.targets, &flat.segments, 1.0);
        for (one, rows) in alone.iter().zip(flat.predictions) {
            let flat = flatten(std::slice::from_ref(one));
            let own = crate::step::score(&model, &flat.tokens, &flat.targets, &flat.segments, 1.0);
            assert_eq!(shared.logprobs[rows], own.logprobs[flat.predictions[0].clone()]);
        }

        let settings = PolicySettings {
            objective: objective(ObjectiveKind::Cispo),
            clip: Clip { low: 10.0, high: 10.0 },
            kl: KlKind::K3,
            kl_coefficient: 0.0,
            norm: Norm { sequences: alone.len(), tokens: 88, mean_tokens: 88.0, max_new: 70 },
            temperature: 1.0,
            on_policy: false,
            pass_tokens: PASS_TOKENS,
            options: StepOptions::default(),
        };
        let gradient = |passes: &[&[Prompted]]| {
            let mut model = tiny();
            model.params_mut().zero_grads();
            for groups in passes {
                pass(&model, groups, &settings, &mut Sums::default(), &mut Balance::default());
            }
            model.params().grads().to_vec()
        };
        let (together, apart) = (gradient(&[&all]), gradient(&alone.chunks(1).collect::<Vec<_>>()));
        let size = apart.iter().fold(0.0f32, |m, g| m.max(g.abs()));
        assert!(size > 1e-3, "there is something to compare");
        for (a, b) in together.iter().zip(&apart) {
            assert!((a - b).abs() <= 1e-5 * size, "{a} and {b}");
        }
    }

    /// On policy, the sampler's log-probabilities stand in for the forward pass over the head: the same step, to the bit.
    #[test]
    fn a_step_on_policy_needs_no_log_probabilities_of_its_own() {
        let mut rng = Rng::new(3);
        let mut ids = |n: usize| -> Vec<u32> { (0..n).map(|_| rng.below(40) as u32).collect() };
        let (prompt, mut answers) = (ids(6), Vec::new());
        for (n, advantage) in [(9, 1.0), (4, -1.0), (7, 0.0)] {
            answers.push(Sampled { advantage, ..Sampled::new(ids(n), vec![0.0; n]) });
        }
        for answer in &mut answers {
            let flat = flatten(&[Prompted { prompt: &prompt, answers: vec![&*answer] }]);
            let scored = crate::step::score(&tiny(), &flat.tokens, &flat.targets, &flat.segments, 0.7);
            answer.old = scored.logprobs[flat.predictions[0].clone()].to_vec();
        }
        let all = [prompted(&prompt, &answers)];
        let step = |on_policy| {
            let settings = PolicySettings {
                objective: objective(ObjectiveKind::Dapo),
                clip: Clip { low: 0.2, high: 0.28 },
                kl: KlKind::K3,
                kl_coefficient: 0.0,
                norm: Norm { sequences: 3, tokens: 20, mean_tokens: 20.0, max_new: 9 },
                temperature: 0.7,
                on_policy,
                pass_tokens: PASS_TOKENS,
                options: StepOptions::default(),
            };
            let mut model = tiny();
            let config = OptimizerSettings { learning_rate: 1e-3, ..OptimizerSettings::default() };
            let team = Team::alone();
            let mut optimizer = Optimizer::new(&model, config, &team);
            let stats = policy_step(&mut model, &mut optimizer, &team, &all, &settings, 1.0);
            (stats, model.params().data().to_vec())
        };
        let sampled = tiny();
        assert_eq!(
            mismatched(&sampled, &Team::alone(), &all, PASS_TOKENS, 0.7),
            0,
            "also of the answer without advantage"
        );
        let mut other = answers.clone();
        other[2].old[3] += 1e-3;
        assert_eq!(mismatched(&sampled, &Team::alone(), &[prompted(&prompt, &other)], PASS_TOKENS, 0.7), 1);

        let (computed, taken) = (step(false), step(true));
        assert!(computed.0.report.grad_norm > 0.0 && computed.0.mismatched == 0);
        assert_eq!(computed, taken);
    }
}
