//! From logits to a token.

use std::borrow::Cow;

use model::files::GenerationConfig;
use tensor::cpu::math;
use tensor::ops::{self, Draw, Drawn, argmax, normalizer, walk};
use tensor::{Params, Rng, Tensor, threads};

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
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

impl Sampling {
    /// Always the most likely token.
    pub fn greedy() -> Sampling {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// Whether tokens are left out or penalised, which is done in the host's memory.
    fn filters(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0 || self.repetition_penalty != 1.0
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
        }
    }

    /// Chooses from a row of logits after the tokens `seen`; `rng` is used for one number at most. Ties go to the lower
    /// id.
    ///
    /// The log-probabilities are the model's own and the tempered model's, nothing filtered or penalised, bit for bit the
    /// trainer's.
    fn choose(&self, logits: &[f32], seen: [&[u32]; 2], rng: &mut Rng) -> Drawn {
        let (lse, _) = normalizer(logits);
        let wanted = self.penalised(logits, seen);
        let token = if self.temperature <= 0.0 { argmax(&wanted) } else { self.draw(&wanted, rng) };
        let logprob = logits[token] - lse;
        let mut tempered = logprob;
        if self.temperature > 0.0 && self.temperature != 1.0 {
            let mut scaled = logits.to_vec();
            math::scale(&mut scaled, 1.0 / self.temperature);
            tempered = scaled[token] - normalizer(&scaled).0;
        }
        Drawn { token: token as u32, logprob, tempered }
    }

    /// The logits after the penalty of repetition, which is paid once however often a token was seen.
    fn penalised<'a>(&self, logits: &'a [f32], seen: [&[u32]; 2]) -> Cow<'a, [f32]> {
        if self.repetition_penalty == 1.0 {
            return Cow::Borrowed(logits);
        }
        let mut out = logits.to_vec();
        for &id in seen.into_iter().flatten() {
            let x = logits[id as usize];
            out[id as usize] =
                if x < 0.0 { x * self.repetition_penalty } else { x / self.repetition_penalty };
        }
        Cow::Owned(out)
    }

    fn draw(&self, logits: &[f32], rng: &mut Rng) -> usize {
        let mut p = logits.to_vec();
        if self.temperature != 1.0 {
            math::scale(&mut p, 1.0 / self.temperature);
        }
        let top = math::max(&p);
        math::exp_sum(&mut p, top);
        if self.filters() {
            self.filter(&mut p);
        }
        walk(&p, rng.uniform())
    }

    /// Sets what is filtered out to zero. The most likely token always stays; of equals at a limit, those of lower ids.
    fn filter(&self, p: &mut [f32]) {
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
        let floor = self.min_p * p[order[0]];
        let limit = if self.top_k == 0 { p.len() } else { self.top_k.min(p.len()) };
        let total: f64 = order[..limit].iter().map(|&i| f64::from(p[i])).sum();
        let mut sum = 0.0;
        let mut kept = 0;
        for &i in &order[..limit] {
            if kept > 0 && (sum >= f64::from(self.top_p) * total || p[i] < floor) {
                break;
            }
            sum += f64::from(p[i]);
            kept += 1;
        }
        order[kept..].iter().for_each(|&i| p[i] = 0.0);
    }
}

/// What a row's token is to be: how it is chosen, after which tokens, and by which number.
#[derive(Clone, Copy)]
pub(crate) struct Wish<'a> {
    pub(crate) sampling: Sampling,
    /// The prompt and what was drawn so far.
    pub(crate) seen: [&'a [u32]; 2],
    pub(crate) rng: Rng,
}

/// Chooses for every row of `logits [rows, vocab]`, on the GPU if they lie there and nothing is filtered.
pub(crate) fn choose(params: &Params, logits: &Tensor, wishes: &[Wish]) -> Vec<Drawn> {
    if !wishes.iter().any(|w| w.sampling.filters()) {
        let draw = |&Wish { sampling, mut rng, .. }: &Wish| Draw {
            temperature: sampling.temperature,
            uniform: rng.uniform(),
        };
        return ops::sample(params, logits, &wishes.iter().map(draw).collect::<Vec<_>>());
    }
    let mut chosen = vec![Drawn::default(); wishes.len()];
    let (all, vocab) = (logits.host(), logits.cols());
    threads::parallel_chunks(&mut chosen, 4, |at, out| {
        for (i, out) in out.iter_mut().enumerate() {
            let Wish { sampling, seen, mut rng } = wishes[at + i];
            *out = sampling.choose(&all[(at + i) * vocab..][..vocab], seen, &mut rng);
        }
    });
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_follow_the_distribution_and_the_filters() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.15, 0.05].iter().map(|p| p.ln()).collect();
        let count = |s: Sampling| {
            let mut seen = [0usize; 4];
            (0..20_000)
                .for_each(|i| seen[s.choose(&logits, [&[], &[]], &mut Rng::at(7, &[i])).token as usize] += 1);
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
        let mut rng = Rng::new(1);
        assert_eq!(s.penalised(&logits, [&[0, 2, 0], &[2, 0]])[..], [2.0 / 1.3, 1.5, -1.3, -1.2]);
        assert_eq!(s.choose(&logits, [&[0], &[]], &mut rng).token, 0);
        assert_eq!(Sampling { repetition_penalty: 1.4, ..s }.choose(&logits, [&[0], &[]], &mut rng).token, 1);
        let drawn = Sampling { repetition_penalty: 2.0, ..s }.choose(&logits, [&[], &[0]], &mut rng);
        let own = logits[1] - normalizer(&logits).0;
        assert_eq!(drawn, Drawn { token: 1, logprob: own, tempered: own });
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
