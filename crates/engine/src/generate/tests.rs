use model::{PassOptions, whole};
use tensor::{Rng, Tape, ops};

use super::*;
use crate::Sampling;
use crate::tests::tiny;

const TEMPERATURES: [f32; 3] = [1.0, 0.7, 1.3];

fn requests() -> Vec<Request> {
    let mut rng = Rng::new(5);
    [3usize, 70, 64, 1, 130]
        .iter()
        .enumerate()
        .map(|(i, &n)| Request {
            prompt: (0..n).map(|_| rng.below(61) as u32).collect(),
            samples: 2 + 2 * (i % 3),
            max_new: 5 + 40 * (i % 2),
            sampling: Sampling { temperature: TEMPERATURES[i % 3], ..Sampling::default() },
            stop_tokens: vec![7],
            seed: 11 + i as u64,
        })
        .collect()
}

/// The contract that reinforcement learning stands on: what the sampler reports is what the trainer computes,
/// to the bit, for any batch, chunking and number of threads, at temperature 1 and at that of the draw.
#[test]
fn log_probs_equal_the_trainers_bit_for_bit() {
    for kind in ["moe", "dense"] {
        let model = tiny(kind);
        let requests = requests();
        let mut first = None;
        for (sequences, rows, n) in [(256, 512, 2), (2, 7, 1), (3, 100, 3), (1, 1, 2)] {
            threads::set_threads(n);
            let mut engine = Engine::new(&model, Some(Limits { sequences, rows, ..Limits::default() }));
            let results = engine.run(&requests, |_| true).expect("valid requests");
            assert!(engine.lanes.iter().all(|l| l.used_pages() == 0), "all pages are free at the end");
            let lanes = if n == 2 { 2 } else { 1 };
            assert_eq!(engine.lanes.len(), lanes, "a lane for each thread where there are sequences enough");
            assert_eq!(
                first.get_or_insert_with(|| results.clone()),
                &results,
                "limits {sequences} {rows} changed a result"
            );
        }
        let (mut tokens, mut targets, mut lens, mut want) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (r, samples) in requests.iter().zip(first.expect("four runs")) {
            for s in samples {
                let all: Vec<u32> = r.prompt.iter().chain(&s.token_ids).copied().collect();
                tokens.extend(&all[..all.len() - 1]);
                targets.extend(&all[1..]);
                lens.push(all.len() - 1);
                want.push((r.prompt.len(), r.sampling.temperature, s));
            }
        }
        let tape = Tape::recording(model.params());
        let pass = model.forward(&tape, &tokens, &whole(&lens), PassOptions::default(), None);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        for temperature in TEMPERATURES {
            let stats = ops::log_probs(model.params(), &pass.hidden, model.head(), &targets, temperature);
            let mut at = 0;
            for (len, (prompt, drawn_at, s)) in lens.iter().zip(&want) {
                let got = bits(&stats.logprobs[at + prompt - 1..at + len]);
                if temperature == 1.0 {
                    assert_eq!(got, bits(&s.logprobs), "{kind}");
                }
                if temperature == *drawn_at {
                    assert_eq!(got, bits(&s.tempered_logprobs), "{kind} at {temperature}");
                }
                at += len;
            }
        }
    }
}

#[test]
fn bad_requests_are_refused_with_a_reason() {
    let model = tiny("dense");
    let mut engine = Engine::new(&model, None);
    let good = requests().remove(0);
    let empty = Request { prompt: vec![], ..good.clone() };
    assert_eq!(engine.run(&[empty], |_| true), Err(EngineError::Empty { request: 0 }));
    let outside = Request { prompt: vec![61], ..good.clone() };
    assert_eq!(
        engine.run(&[outside], |_| true),
        Err(EngineError::OutsideVocabulary { request: 0, id: 61, vocab: 61 })
    );
    let long = Request { max_new: 600, ..good };
    assert!(matches!(engine.run(&[long], |_| true), Err(EngineError::TooLong { context: 512, .. })));
}

/// Plans know of the cache what the configuration tells.
#[test]
fn a_tokens_keys_and_values_are_what_the_configuration_says() {
    for kind in ["moe", "dense"] {
        let model = tiny(kind);
        let said = model::inspect::inspect(model.config(), 1).kv_cache.expanded_f32;
        assert_eq!(said as usize, model.new_cache().page_bytes() / KvCache::PAGE, "{kind}");
    }
}

/// A lane that took more than its share at the start would leave the others idle.
#[test]
fn lanes_share_the_sequences() {
    let model = tiny("moe");
    for (prompts, samples) in [(8, 8), (64, 1), (1, 64), (3, 40)] {
        let request = Request { samples, ..requests().remove(0) };
        let (lanes, limits) = plan(&model, &vec![request; prompts]);
        assert!(
            limits.sequences <= (prompts * samples).div_ceil(lanes),
            "{lanes} lanes of {}",
            limits.sequences
        );
    }
}
