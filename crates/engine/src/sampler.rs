//! From logits to a token.

use model::files::GenerationConfig;
use tensor::cpu::math;
use tensor::ops::{self, Draw, Drawn, argmax, normalizer, walk};
use tensor::{Params, Rng, Tensor, threads};

use crate::guide::Allowed;

/// How tokens are chosen. What filters there are come in the order of transformers: the penalty, the temperature, top_k,
/// top_p of what is left of it, min_p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this share of the probability of the `top_k`; 1 for all.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the most likely one; 0 for all.
    pub min_p: f32,
    /// Divides positive logits of tokens that the prompt or the answer holds already and multiplies negative ones, before
    /// everything else; 1 for none.
    pub repetition_penalty: f32,
    /// Taken from the logit of a token for each time that the answer holds it already; 0 for nothing.
    pub frequency_penalty: f32,
    /// Taken from the logits of all tokens that the answer holds already; 0 for nothing.
    pub presence_penalty: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
        }
    }
}

impl Sampling {
    /// Always the most likely token.
    pub fn greedy() -> Sampling {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// Whether tokens are left out.
    fn filters(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }

    /// Whether tokens are penalised.
    fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }

    /// As a model's folder says that it wants to be sampled; `temperature` where that says nothing of it.
    pub fn wished(generation: &GenerationConfig, temperature: f32) -> Sampling {
        let g = generation;
        let own = if g.do_sample == Some(false) { Some(0.0) } else { g.temperature };
        Sampling {
            temperature: own.unwrap_or(temperature),
            top_k: g.top_k.unwrap_or(0),
            top_p: g.top_p.unwrap_or(1.0),
            min_p: g.min_p.unwrap_or(0.0),
            repetition_penalty: g.repetition_penalty.unwrap_or(1.0),
            ..Sampling::default()
        }
    }

    /// Chooses from a row of logits after all penalties; `rng` is used for one number at most. Ties go to the lower id.
    fn choose(&self, wanted: &[f32], rng: &mut Rng) -> u32 {
        let token = if self.temperature <= 0.0 { argmax(wanted) } else { self.draw(wanted, rng) };
        token as u32
    }

    /// The logits after the penalties for tokens of the prompt and of the answer: that of repetition, which is paid once
    /// however often a token was seen, then those for tokens of the answer.
    fn penalise(&self, logits: &mut [f32], [prompt, answer]: [&[u32]; 2]) {
        if self.repetition_penalty != 1.0 {
            let before = logits.to_vec();
            for &id in prompt.iter().chain(answer) {
                let x = before[id as usize];
                logits[id as usize] =
                    if x < 0.0 { x * self.repetition_penalty } else { x / self.repetition_penalty };
            }
        }
        if self.frequency_penalty == 0.0 && self.presence_penalty == 0.0 {
            return;
        }
        let mut answer = answer.to_vec();
        answer.sort_unstable();
        for same in answer.chunk_by(|a, b| a == b) {
            logits[same[0] as usize] -= self.presence_penalty + self.frequency_penalty * same.len() as f32;
        }
    }

    fn draw(&self, logits: &[f32], rng: &mut Rng) -> usize {
        let mut p = logits.to_vec();
        if self.temperature != 1.0 {
            math::scale(&mut p, 1.0 / self.temperature);
        }
        let top = math::max(&p);
        math::exp_sum(&mut p, top);
        // Exactly nothing for what is forbidden.
        p.iter_mut().zip(logits).filter(|(_, x)| **x == f32::NEG_INFINITY).for_each(|(p, _)| *p = 0.0);
        if self.filters() {
            self.filter(&mut p);
        }
        walk(&p, rng.uniform())
    }

    /// Sets what is filtered out to zero. The most likely token always stays; of equals at a limit, those of lower ids.
    fn filter(&self, p: &mut [f32]) {
        let mut order: Vec<u32> = (0..p.len() as u32).collect();
        let by_weight = |&a: &u32, &b: &u32| p[b as usize].total_cmp(&p[a as usize]).then(a.cmp(&b));
        let limit = if self.top_k == 0 { p.len() } else { self.top_k.min(p.len()) };
        if limit < p.len() {
            order.select_nth_unstable_by(limit, by_weight);
            order.truncate(limit);
        }
        let total: f64 = order.iter().map(|&i| f64::from(p[i as usize])).sum();
        // In pieces: of a large vocabulary only the first few are wanted, as a rule.
        let (mut sum, mut kept, mut sorted, mut floor) = (0.0, 0, 0, 0.0);
        while kept < limit {
            if kept == sorted {
                let piece = (4 * sorted).max(256).min(limit - sorted);
                if sorted + piece < limit {
                    order[sorted..].select_nth_unstable_by(piece - 1, by_weight);
                }
                order[sorted..sorted + piece].sort_unstable_by(by_weight);
                sorted += piece;
            }
            let weight = p[order[kept] as usize];
            if kept == 0 {
                floor = self.min_p * weight;
            } else if sum >= f64::from(self.top_p) * total || weight < floor {
                break;
            }
            sum += f64::from(weight);
            kept += 1;
        }
        let keep: Vec<(u32, f32)> = order[..kept].iter().map(|&i| (i, p[i as usize])).collect();
        p.fill(0.0);
        keep.into_iter().for_each(|(i, weight)| p[i as usize] = weight);
    }
}

/// What a row's token is to be: how it is chosen, after which tokens, and by which number.
#[derive(Clone)]
pub(crate) struct Wish<'a> {
    pub(crate) sampling: Sampling,
    /// The prompt and what was drawn so far.
    pub(crate) seen: [&'a [u32]; 2],
    pub(crate) rng: Rng,
    /// Added to single logits.
    pub(crate) bias: &'a [(u32, f32)],
    /// What may be chosen.
    pub(crate) allowed: Allowed,
    /// How many of the most likely tokens are told.
    pub(crate) top: usize,
}

/// A chosen token, and the most likely ones with their log-probabilities, where they were wished for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chosen {
    pub(crate) drawn: Drawn,
    pub(crate) top: Vec<(u32, f32)>,
}

impl Wish<'_> {
    /// Whether a plain draw is not enough, so that the host chooses.
    fn is_special(&self) -> bool {
        self.sampling.filters() || self.sampling.penalises() || !self.is_open() || self.top > 0
    }

    /// Whether every token may come, none with a bias.
    fn is_open(&self) -> bool {
        self.bias.is_empty() && self.allowed == Allowed::All
    }

    /// Chooses where a plain draw is not enough.
    fn choose(&self, logits: &[f32]) -> u32 {
        let mut rng = self.rng;
        if self.is_open() && !self.sampling.penalises() {
            self.sampling.choose(logits, &mut rng)
        } else {
            self.sampling.choose(&self.wanted(logits), &mut rng)
        }
    }

    /// The logits with bias and penalties, of what is allowed.
    fn wanted(&self, logits: &[f32]) -> Vec<f32> {
        let mut out = logits.to_vec();
        for &(id, bias) in self.bias {
            out[id as usize] += bias;
        }
        self.sampling.penalise(&mut out, self.seen);
        match &self.allowed {
            Allowed::All => {}
            Allowed::Only(token) => {
                out.iter_mut().enumerate().filter(|(i, _)| *i != *token as usize).for_each(forbid)
            }
            Allowed::Set(set) => {
                let has = |i: usize| set.get(i / 32).is_some_and(|word| word >> (i % 32) & 1 == 1);
                out.iter_mut().enumerate().filter(|(i, _)| !has(*i)).for_each(forbid)
            }
        }
        out
    }
}

fn forbid((_, logit): (usize, &mut f32)) {
    *logit = f32::NEG_INFINITY;
}

/// The `n` most likely tokens with their log-probabilities, the most likely first, of equals the lower id.
fn most_likely(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let (lse, _) = normalizer(logits);
    let by_logit = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    if n < order.len() {
        order.select_nth_unstable_by(n, by_logit);
        order.truncate(n);
    }
    order.sort_unstable_by(by_logit);
    order.into_iter().map(|i| (i, logits[i as usize] - lse)).collect()
}

/// Chooses for every row of `logits [rows, vocab]`: in the host's memory where more than a plain draw is wished for, else
/// on the GPU if they lie there.
///
/// The drawn token's log-probabilities are the model's own and the tempered model's, nothing filtered or penalised, bit for
/// bit the trainer's.
pub(crate) fn choose(params: &Params, logits: &Tensor, wishes: &[Wish]) -> Vec<Chosen> {
    let mut special = vec![Special::default(); wishes.len()];
    if wishes.iter().any(Wish::is_special) {
        let (all, vocab) = (logits.host(), logits.cols());
        threads::parallel_chunks(&mut special, 1, |at, out| {
            let (wish, row) = (&wishes[at], &all[at * vocab..][..vocab]);
            if wish.is_special() {
                let top = if wish.top == 0 { Vec::new() } else { most_likely(row, wish.top) };
                out[0] = Special { token: Some(wish.choose(row)), top };
            }
        });
    }
    let draw = |(w, s): (&Wish, &Special)| Draw {
        temperature: w.sampling.temperature,
        uniform: { w.rng }.uniform(),
        given: s.token,
    };
    let draws: Vec<Draw> = wishes.iter().zip(&special).map(draw).collect();
    let drawn = ops::sample(params, logits, &draws);
    drawn.into_iter().zip(special).map(|(drawn, s)| Chosen { drawn, top: s.top }).collect()
}

/// What is chosen and told of a row in the host's memory.
#[derive(Clone, Default)]
struct Special {
    token: Option<u32>,
    top: Vec<(u32, f32)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_follow_the_distribution_and_the_filters() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let count = |s: Sampling| {
            let mut seen = [0usize; 4];
            (0..20_000).for_each(|i| seen[s.choose(&logits, &mut Rng::at(7, &[i])) as usize] += 1);
            seen.map(|n| n as f32 / 20_000.0)
        };
        let all = count(Sampling::default());
        for (got, want) in all.iter().zip([0.5, 0.3, 0.15, 0.05]) {
            assert!((got - want).abs() < 0.015, "{all:?}");
        }
        assert_eq!(count(Sampling { top_k: 2, ..Sampling::default() })[2..], [0.0, 0.0]);
        assert_eq!(count(Sampling { top_p: 0.7, ..Sampling::default() })[2..], [0.0, 0.0]);
        assert_eq!(count(Sampling { min_p: 0.2, ..Sampling::default() })[3], 0.0);
        assert_eq!(count(Sampling::greedy()), [1.0, 0.0, 0.0, 0.0]);
        assert!(count(Sampling { temperature: 0.5, ..Sampling::default() })[0] > 0.65);
    }

    /// As `RepetitionPenaltyLogitsProcessor` of transformers: once for each token of prompt and answer, before the
    /// temperature, and what is reported stays the model's own.
    #[test]
    fn what_was_seen_pays_the_penalty_of_repetition_once() {
        let logits = [2.0f32, 1.5, -1.0, -1.2];
        let s = Sampling { repetition_penalty: 1.3, ..Sampling::greedy() };
        assert_eq!(wish(s, [&[0, 2, 0], &[2, 0]]).wanted(&logits), [2.0 / 1.3, 1.5, -1.3, -1.2]);
        assert_eq!(wish(s, [&[0], &[]]).choose(&logits), 0);
        let more = Sampling { repetition_penalty: 1.4, ..s };
        assert_eq!(wish(more, [&[0], &[]]).choose(&logits), 1);
        let most = Sampling { repetition_penalty: 2.0, ..s };
        let own = logits[1] - normalizer(&logits).0;
        let drawn = Drawn { token: 1, logprob: own, tempered: own };
        assert_eq!(chosen(&logits, wish(most, [&[], &[0]])).drawn, drawn);
    }

    /// OpenAI's formula: the count in the answer times the one and, where there is any, the other; the prompt is free.
    #[test]
    fn what_the_answer_holds_pays_for_its_frequency_and_presence() {
        let logits = [2.0f32, 1.5, -1.0, 0.0];
        let s = Sampling { frequency_penalty: 0.5, presence_penalty: 0.25, ..Sampling::greedy() };
        assert_eq!(wish(s, [&[3, 3], &[0, 2, 0]]).wanted(&logits), [0.75, 1.5, -1.75, 0.0]);
    }

    /// Bias and guide move the draw, and what is told of it stays the model's own.
    #[test]
    fn bias_and_guide_decide_what_may_come() {
        let logits = [2.0f32, 1.5, -1.0, 0.0];
        let free = wish(Sampling::greedy(), [&[], &[]]);
        let token = |w: Wish| w.choose(&logits);
        assert_eq!(token(Wish { bias: &[(3, 9.0), (0, -100.0)], ..free.clone() }), 3);
        assert_eq!(token(Wish { allowed: Allowed::Only(2), ..free.clone() }), 2);
        assert_eq!(token(Wish { allowed: Allowed::Set(vec![0b1100]), ..free.clone() }), 3);
        let hot = Sampling { temperature: 50.0, ..Sampling::default() };
        for i in 0..500 {
            let rng = Rng::at(3, &[i]);
            let allowed = Allowed::Set(vec![0b0110]);
            assert!([1, 2].contains(&token(Wish { allowed, rng, ..wish(hot, [&[], &[]]) })));
        }
        let told = chosen(&logits, Wish { allowed: Allowed::Only(2), top: 2, ..free });
        let lse = normalizer(&logits).0;
        assert_eq!(told.drawn.logprob, -1.0 - lse);
        assert_eq!(told.top, [(0, 2.0 - lse), (1, 1.5 - lse)]);
    }

    fn chosen(logits: &[f32], wish: Wish) -> Chosen {
        let row = Tensor::constant(tensor::Buf::copy_of(logits), 1, logits.len());
        choose(&Params::new([]), &row, &[wish]).remove(0)
    }

    fn wish(sampling: Sampling, seen: [&'static [u32]; 2]) -> Wish<'static> {
        Wish { sampling, seen, rng: Rng::new(1), bias: &[], allowed: Allowed::All, top: 0 }
    }

    /// How many tokens transformers 5.23 leaves of eight, through the processors that `generate` makes for
    /// temperature, top_k, top_p and min_p.
    #[test]
    fn filters_keep_what_transformers_keeps() {
        let logits: Vec<f32> =
            [0.30f32, 0.22, 0.16, 0.12, 0.09, 0.06, 0.03, 0.02].iter().map(|p| p.ln()).collect();
        for (temperature, top_k, top_p, min_p, kept) in [
            (1.0, 0, 0.7, 0.0, 4),
            (1.0, 4, 0.7, 0.0, 3),
            (1.0, 4, 0.8, 0.0, 3),
            (1.0, 4, 0.9, 0.0, 4),
            (0.5, 5, 0.9, 0.0, 4),
            (2.0, 5, 0.9, 0.0, 5),
            (1.0, 6, 0.9, 0.3, 5),
            (1.0, 0, 0.95, 0.25, 5),
            (2.0, 0, 0.95, 0.5, 5),
            (1.0, 3, 0.27, 0.0, 1),
            (1.0, 2, 1.0, 0.8, 1),
        ] {
            let s = Sampling { temperature, top_k, top_p, min_p, ..Sampling::default() };
            let mut p = logits.clone();
            math::scale(&mut p, 1.0 / temperature);
            let top = math::max(&p);
            math::exp_sum(&mut p, top);
            s.filter(&mut p);
            assert_eq!(p.iter().filter(|&&p| p > 0.0).count(), kept, "{s:?}");
            assert!(p[..kept].iter().all(|&p| p > 0.0), "{s:?}");
        }
    }
}
