//! Whoever else is served, and however little room there is: every text is that of its solo run.

use super::*;
use crate::tests::tiny;
use crate::{Allowed, Sampling};
use tensor::Rng;

/// Everything that was heard, by ticket and sample.
#[derive(Default)]
struct Heard {
    tokens: HashMap<(Ticket, usize), Vec<(u32, u32)>>,
    ends: HashMap<(Ticket, usize), FinishReason>,
    cached: HashMap<Ticket, usize>,
    guessed: [usize; 2],
}

impl Sink for Heard {
    fn begun(&mut self, ticket: Ticket, cached: usize) {
        assert_eq!(self.cached.insert(ticket, cached), None, "begun twice");
    }
    fn token(&mut self, ticket: Ticket, sample: usize, drawn: Drawn, top: &[(u32, f32)]) -> bool {
        assert!(top.is_empty() || top[0].1 >= drawn.logprob);
        assert!(!self.ends.contains_key(&(ticket, sample)), "a token after the end");
        self.tokens.entry((ticket, sample)).or_default().push((drawn.token, drawn.logprob.to_bits()));
        true
    }
    fn guessed(&mut self, _: Ticket, _: usize, guessed: usize, right: usize) {
        self.guessed[0] += guessed;
        self.guessed[1] += right;
    }
    fn end(&mut self, ticket: Ticket, sample: usize, reason: FinishReason) {
        assert_eq!(self.ends.insert((ticket, sample), reason), None, "ended twice");
    }
}

/// A text by which a prompt goes on for every sample, drawn alone.
fn solo(model: &Model, request: &Request, extras: &Extras) -> Vec<Vec<(u32, u32)>> {
    let mut lane = Lane::new(model, Limits::default());
    let mut heard = Heard::default();
    let extras = Extras { speculate: 0, ..extras.clone() };
    let ticket = lane.submit(request.clone(), extras).expect("a valid request");
    while lane.step(&mut heard) {}
    (0..request.samples).map(|s| heard.tokens.remove(&(ticket, s)).unwrap_or_default()).collect()
}

/// Requests of all kinds; many begin alike.
fn random(rng: &mut Rng, shared: &[u32]) -> (Request, Extras) {
    let mut prompt = shared[..rng.below(shared.len())].to_vec();
    prompt.extend((0..1 + rng.below(30)).map(|_| rng.below(61) as u32));
    let sampling = match rng.below(4) {
        0 => Sampling::greedy(),
        1 => Sampling { temperature: 0.8, top_p: 0.9, min_p: 0.02, ..Sampling::default() },
        2 => Sampling { frequency_penalty: 0.4, presence_penalty: 0.2, ..Sampling::default() },
        _ => Sampling { temperature: 1.3, repetition_penalty: 1.2, ..Sampling::default() },
    };
    let request = Request {
        prompt,
        samples: [1, 1, 1, 3][rng.below(4)],
        max_new: rng.below(90),
        sampling,
        stop_tokens: vec![7],
        seed: rng.below(5) as u64,
    };
    let extras = Extras {
        logit_bias: if rng.below(3) == 0 { vec![(5, 2.0), (7, -100.0)] } else { vec![] },
        top_logprobs: rng.below(3),
        salt: rng.below(2) as u64,
        guide: (rng.below(4) == 0).then(|| -> crate::MakeGuide { std::sync::Arc::new(|| Box::new(Even)) }),
        speculate: 4 * rng.below(2),
    };
    (request, extras)
}

/// Allows every other token, and 7 after a 6.
struct Even;
impl Guide for Even {
    fn allowed(&mut self) -> Allowed {
        Allowed::Set(vec![0x5555_5555, 0x0555_5555])
    }
    fn accept(&mut self, token: u32) {
        assert_eq!(token % 2, 0, "only what is allowed comes");
    }
}

/// Many requests that come and go at random, in lanes of much and of little room.
#[test]
fn a_text_does_not_depend_on_who_else_is_served() {
    for (kind, seed) in [("dense", 1), ("moe", 2), ("mtp", 3)] {
        let model = tiny(kind);
        let mut rng = Rng::at(seed, &[]);
        let shared: Vec<u32> = (0..200).map(|_| rng.below(61) as u32).collect();
        let asked: Vec<(Request, Extras)> = (0..40).map(|_| random(&mut rng, &shared)).collect();
        let alone: Vec<_> = asked.iter().map(|(r, e)| solo(&model, r, e)).collect();
        let (mut put_back, mut cached, mut right, mut ahead) = (0, 0, 0, 0);
        for limits in [
            Limits { keep: true, ..Limits::default() },
            Limits { pages: 8, keep: true, patience: 1.5, ..Limits::default() },
            Limits { pages: 7, sequences: 5, rows: 20, ..Limits::default() },
            Limits { pages: 16, sequences: 3, rows: 100, keep: true, patience: 0.1, ..Limits::default() },
        ] {
            let limits = Limits { mtp: true, ..limits };
            let mut lane = Lane::new(&model, limits);
            let mut heard = Heard::default();
            let mut tickets: Vec<Option<Ticket>> = Vec::new();
            for (request, extras) in &asked {
                let ticket = lane.submit(request.clone(), extras.clone()).expect("it fits alone");
                tickets.push(Some(ticket));
                for _ in 0..rng.below(12) {
                    lane.step(&mut heard);
                }
                if rng.below(5) == 0 {
                    let gone = rng.below(tickets.len());
                    if let Some(ticket) = tickets[gone].take() {
                        lane.cancel(ticket);
                        heard.ends.retain(|(t, _), _| *t != ticket);
                    }
                }
            }
            let mut steps = 0;
            while lane.step(&mut heard) {
                steps += 1;
                assert!(steps < 100_000, "{limits:?}: it does not come to an end");
            }
            assert_eq!(lane.load(), 0);
            assert_eq!(lane.used_pages(), lane.idle_pages(), "{limits:?}: pages are lost");
            assert!(lane.pages.len() <= limits.pages);
            for ((ticket, (request, _)), want) in tickets.iter().zip(&asked).zip(&alone) {
                let Some(ticket) = ticket else { continue };
                for (sample, want) in want.iter().enumerate() {
                    let got = heard.tokens.get(&(*ticket, sample)).cloned().unwrap_or_default();
                    assert_eq!(&got, want, "{kind} {limits:?}: {request:?}");
                    let end = heard.ends[&(*ticket, sample)];
                    let stopped = got.last().is_some_and(|(id, _)| *id == 7);
                    assert_eq!(end == FinishReason::Stop, stopped);
                }
            }
            let counts = lane.counts();
            put_back += counts.put_back;
            cached += counts.cached;
            right += counts.guessed_right;
            ahead += counts.mtp_guessed_right;
            assert_eq!(heard.guessed, [counts.guessed, counts.guessed_right]);
            assert!(counts.guessed >= counts.guessed_right);
        }
        assert!(put_back > 0 && cached > 0, "{kind}: put back {put_back}, cached {cached}");
        assert!(kind == "moe" || right > 0, "some guesses come true");
        assert_eq!(ahead > 0, kind == "mtp", "{kind}: some of the MTP layer's too, by chance");
    }
}

/// The next turn of a conversation computes what is new.
#[test]
fn what_a_prompt_shares_with_an_earlier_one_is_not_computed_again() {
    let model = tiny("dense");
    let mut lane = Lane::new(&model, Limits { keep: true, pages: 40, ..Limits::default() });
    let prompt: Vec<u32> = (0..300).map(|i| i % 61).collect();
    let request = |prompt: Vec<u32>| Request {
        prompt,
        samples: 1,
        max_new: 8,
        sampling: Sampling::greedy(),
        stop_tokens: vec![],
        seed: 0,
    };
    let mut heard = Heard::default();
    lane.submit(request(prompt[..200].to_vec()), Extras::default()).expect("it fits");
    while lane.step(&mut heard) {}
    let before = lane.counts();
    assert_eq!(before.cached, 0);
    let next = lane.submit(request(prompt), Extras::default()).expect("it fits");
    lane.step(&mut heard);
    assert_eq!(heard.cached[&next], 192);
    while lane.step(&mut heard) {}
    let after = lane.counts();
    assert_eq!((after.cached, after.computed - before.computed), (192, 300 - 192 + 7));
}

/// A guide that has one token to offer gets it, whatever the model thinks, and a request that could never fit is refused.
#[test]
fn what_cannot_be_held_is_refused() {
    let model = tiny("dense");
    let mut lane = Lane::new(&model, Limits { pages: 3, ..Limits::default() });
    let request = Request {
        prompt: vec![1; 100],
        samples: 1,
        max_new: 29,
        sampling: Sampling::greedy(),
        stop_tokens: vec![],
        seed: 0,
    };
    let refused = lane.submit(request.clone(), Extras::default());
    assert_eq!(refused, Err(EngineError::TooManyPages { tokens: 129, pages: 4, budget: 3 }));
    assert!(lane.submit(Request { max_new: 28, ..request }, Extras::default()).is_ok());
    let mut heard = Heard::default();
    while lane.step(&mut heard) {}
    assert_eq!(heard.ends.len(), 1);
}
