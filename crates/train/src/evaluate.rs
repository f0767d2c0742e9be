//! Evaluation: a model's completions of problems, scored, with intervals.
//!
//! Every problem is answered once greedily and `samples` times by sampling, with the filters and the penalty of repetition
//! that the model's folder wishes. A problem's completions are a function of
//! the seed, its prompt and the model alone: neither the other problems nor their order change them.

use std::collections::BTreeMap;

use data::{Tokenizer, encode_prompt};
use engine::{Completion, Engine, EngineError, FinishReason, Request, Sampling};
use model::Model;
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tasks::verify::Number;
use tasks::{Problem, Verdict, Verifier};
use tensor::Rng;
use thiserror::Error;

use crate::problems::asked;
use crate::speaker::{answer_text, stop_tokens};
use crate::stats::{Estimate, majority, wilson};
use crate::team::{Elsewhere, Team};

/// Problems of one run of the engine: enough to keep it full, few enough to stop soon when asked to.
pub(crate) const PROBLEMS_AT_ONCE: usize = 128;

/// The score from which a completion counts as right. Verifiers that give part marks (external ones may) do not make
/// a half right answer right.
const RIGHT: f32 = 0.999;

/// How to evaluate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvalSettings {
    /// K: sampled completions of each problem. With 0 only the greedy one is drawn, and the scores over samples are
    /// those of no trials.
    pub samples: usize,
    /// Of the samples.
    pub temperature: f32,
    /// Tokens of a completion at most; fewer where the model's context ends before.
    pub max_new: usize,
    /// Of the samples.
    pub seed: u64,
}

/// Shares of problems, with 95 % intervals.
///
/// As JSON `{"problems", "samples", "pass@1", "pass@8", "maj@8"}` for eight samples. With one sample the last two are left
/// out: pass@k would be a second pass@1, of another temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// Problems counted.
    pub problems: usize,
    /// Samples of each: K.
    pub samples: usize,
    /// The greedy completion is right.
    pub pass_at_1: Estimate,
    /// At least one of the K samples is right.
    pub pass_at_k: Estimate,
    /// The answer that most of the K samples gave is right; of equally common answers, the one given first.
    pub maj_at_k: Estimate,
}

impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(5))?;
        map.serialize_entry("problems", &self.problems)?;
        map.serialize_entry("samples", &self.samples)?;
        map.serialize_entry("pass@1", &self.pass_at_1)?;
        if self.samples > 1 {
            map.serialize_entry(&format!("pass@{}", self.samples), &self.pass_at_k)?;
            map.serialize_entry(&format!("maj@{}", self.samples), &self.maj_at_k)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Scores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Read {
            problems: usize,
            samples: usize,
            #[serde(flatten)]
            shares: BTreeMap<String, Estimate>,
        }
        let Read { problems, samples, shares } = Read::deserialize(deserializer)?;
        let share = |key: String| {
            shares.get(&key).copied().ok_or_else(|| D::Error::custom(format!("`{key}` is missing")))
        };
        let pass_at_1 = share("pass@1".into())?;
        let of_many = |key| if samples > 1 { share(format!("{key}@{samples}")) } else { Ok(pass_at_1) };
        let (pass_at_k, maj_at_k) = (of_many("pass")?, of_many("maj")?);
        Ok(Scores { problems, samples, pass_at_1, pass_at_k, maj_at_k })
    }
}

/// A problem with its greedy completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Graded {
    /// The problem.
    pub problem: Problem,
    /// What the model wrote, with the tags and without control tokens.
    pub completion: String,
    /// The verifier's score, 0 to 1.
    pub score: f32,
    /// The verifier's reason.
    pub reason: String,
    /// Whether it was cut off before it ended.
    pub truncated: bool,
}

impl Graded {
    /// Whether the greedy completion counts as right.
    pub fn is_right(&self) -> bool {
        self.score >= RIGHT
    }
}

/// Which answers to one problem are right.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The greedy completion is.
    pub greedy: bool,
    /// Any of the samples is.
    pub any: bool,
    /// The answer that most samples gave is.
    pub majority: bool,
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Over all problems.
    pub all: Scores,
    /// By the problems' task.
    pub by_task: BTreeMap<String, Scores>,
    /// The greedy completions, in the problems' order.
    pub greedy: Vec<Graded>,
    /// What is right, problem by problem.
    pub outcomes: Vec<Outcome>,
    /// Tokens generated, samples included.
    pub tokens: usize,
    /// Share of all completions that were cut off.
    pub truncated_share: f64,
    /// Tokens of a completion on average.
    pub mean_tokens: f64,
}

/// Why an evaluation did not take place.
#[derive(Debug, Error)]
pub enum EvaluateError {
    /// Nothing to evaluate on.
    #[error("there are no problems to evaluate on")]
    NoProblems,
    /// A prompt that cannot be encoded, or completions that cannot be decoded.
    #[error("problem {problem}: {source}")]
    Data {
        /// The problem, counted from 1.
        problem: usize,
        /// What is wrong.
        source: data::DataError,
    },
    /// A prompt that leaves no room for an answer.
    #[error(
        "the prompt of problem {problem} has {tokens} tokens, but the model's context is {context}: \
         shorten the problem, have such problems left out, or take a model with a longer context"
    )]
    TooLong {
        /// The problem, counted from 1.
        problem: usize,
        /// Tokens of its prompt.
        tokens: usize,
        /// The model's context.
        context: usize,
    },
    /// The engine refused a prompt.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Another rank failed.
    #[error(transparent)]
    Elsewhere(#[from] Elsewhere),
    /// `keep_going` said no.
    #[error("the evaluation was stopped")]
    Stopped,
}

/// Evaluates a model on problems, which are dealt out to the ranks. `keep_going` is asked at every token; once that of the first rank
/// says no, the evaluation ends with [`EvaluateError::Stopped`].
///
/// # Errors
/// No problems, a prompt that does not fit the context, text that the tokenizer or its template refuses.
pub fn evaluate(
    model: &Model,
    tokenizer: &Tokenizer,
    team: &Team,
    problems: &[Problem],
    verifier: &dyn Verifier,
    s: &EvalSettings,
    keep_going: &(dyn Fn() -> bool + Sync),
) -> Result<Evaluation, EvaluateError> {
    if problems.is_empty() {
        return Err(EvaluateError::NoProblems);
    }
    let requests = requests(model, tokenizer, problems, s)?;
    let mut engine = Engine::new(model, None);
    let (mut outcomes, mut greedy) = (Vec::new(), Vec::new());
    let (mut tokens, mut truncated, mut completions) = (0, 0, 0);
    for first in (0..problems.len()).step_by(PROBLEMS_AT_ONCE) {
        let count = PROBLEMS_AT_ONCE.min(problems.len() - first);
        let answered = team.deal(count, |part| {
            let part = first + part.start..first + part.end;
            let pairs = &requests[2 * part.start..2 * part.end];
            answer(&mut engine, tokenizer, (part.start, &problems[part]), pairs, verifier, keep_going)
        })?;
        if !team.from_first(keep_going) {
            return Err(EvaluateError::Stopped);
        }
        for (problem, a) in problems[first..].iter().zip(answered) {
            outcomes.push(a.outcome);
            tokens += a.tokens;
            truncated += a.truncated;
            completions += a.completions;
            let Greedy { completion, score, reason, truncated } = a.greedy;
            greedy.push(Graded { problem: problem.clone(), completion, score, reason, truncated });
        }
    }
    let mut by_task: BTreeMap<String, Vec<&Outcome>> = BTreeMap::new();
    for (problem, outcome) in problems.iter().zip(&outcomes) {
        by_task.entry(problem.task.clone()).or_default().push(outcome);
    }
    Ok(Evaluation {
        all: scores(&outcomes.iter().collect::<Vec<_>>(), s.samples),
        by_task: by_task.into_iter().map(|(task, of)| (task, scores(&of, s.samples))).collect(),
        greedy,
        outcomes,
        tokens,
        truncated_share: truncated as f64 / completions as f64,
        mean_tokens: tokens as f64 / completions as f64,
    })
}

/// The answers to one problem.
#[derive(Serialize, Deserialize)]
struct Answered {
    outcome: Outcome,
    greedy: Greedy,
    tokens: usize,
    truncated: usize,
    completions: usize,
}

/// The greedy one.
#[derive(Serialize, Deserialize)]
struct Greedy {
    completion: String,
    score: f32,
    reason: String,
    truncated: bool,
}

/// Answers problems, of which the first is number `first`, and has the answers graded; nothing where `keep_going` says no.
fn answer(
    engine: &mut Engine,
    tokenizer: &Tokenizer,
    (first, problems): (usize, &[Problem]),
    pairs: &[Request],
    verifier: &dyn Verifier,
    keep_going: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<Answered>, EvaluateError> {
    if problems.is_empty() {
        return Ok(Vec::new());
    }
    let drawn = engine.run(pairs, |_| keep_going())?;
    if !keep_going() {
        return Ok(Vec::new());
    }
    // Per problem the greedy completion, then the samples.
    let drawn: Vec<Vec<&Completion>> = drawn.chunks(2).map(|pair| pair.iter().flatten().collect()).collect();
    let mut texts = Vec::with_capacity(drawn.len());
    for (j, all) in drawn.iter().enumerate() {
        let decode = |c: &&Completion| answer_text(tokenizer, &pairs[2 * j].prompt, &c.token_ids);
        let decoded: Result<Vec<String>, _> = all.iter().map(decode).collect();
        texts.push(decoded.map_err(|source| EvaluateError::Data { problem: first + j + 1, source })?);
    }
    let items: Vec<(&Problem, &str)> = problems
        .iter()
        .zip(&texts)
        .flat_map(|(p, texts)| texts.iter().map(move |t| (p, t.as_str())))
        .collect();
    let mut verdicts = verifier.score_batch(&items).into_iter();
    let answered = drawn.iter().zip(texts).map(|(all, texts)| {
        let verdicts: Vec<Verdict> = verdicts.by_ref().take(all.len()).collect();
        let outcome = outcome(verifier, &verdicts, &texts);
        let (verdict, completion) = (verdicts.into_iter().next(), texts.into_iter().next());
        let verdict = verdict.unwrap_or_else(|| Verdict::wrong("the verifier gave no verdict"));
        let is_cut = |c: &&&Completion| c.finish_reason == FinishReason::Length;
        Answered {
            outcome,
            greedy: Greedy {
                completion: completion.unwrap_or_default(),
                score: verdict.score,
                reason: verdict.reason,
                truncated: is_cut(&&all[0]),
            },
            tokens: all.iter().map(|c| c.token_ids.len()).sum(),
            truncated: all.iter().filter(is_cut).count(),
            completions: all.len(),
        }
    });
    Ok(answered.collect())
}

/// The tokens of a problem's prompt, and whether they leave room for an answer in the model's context.
fn prompt_of(
    model: &Model,
    tokenizer: &Tokenizer,
    (i, problem): (usize, &Problem),
) -> Result<(Vec<u32>, bool), EvaluateError> {
    let context = model.config().max_position_embeddings().min(model.positions());
    let prompt = encode_prompt(tokenizer, &asked(problem))
        .map_err(|source| EvaluateError::Data { problem: i + 1, source })?;
    let fits = prompt.len() < context;
    Ok((prompt, fits))
}

/// Drops the problems whose prompts leave no room for an answer, and says how many they were.
///
/// # Errors
/// A prompt that the tokenizer or its template refuses.
pub fn leave_out_too_long(
    model: &Model,
    tokenizer: &Tokenizer,
    problems: &mut Vec<Problem>,
) -> Result<usize, EvaluateError> {
    let before = problems.len();
    let fits = problems.iter().enumerate().map(|p| Ok(prompt_of(model, tokenizer, p)?.1));
    let mut fits = fits.collect::<Result<Vec<bool>, EvaluateError>>()?.into_iter();
    problems.retain(|_| fits.next().unwrap_or(false));
    Ok(before - problems.len())
}

/// Two requests for each problem: the greedy one and the samples.
fn requests(
    model: &Model,
    tokenizer: &Tokenizer,
    problems: &[Problem],
    s: &EvalSettings,
) -> Result<Vec<Request>, EvaluateError> {
    let context = model.config().max_position_embeddings().min(model.positions());
    let stop_tokens = stop_tokens(model, tokenizer);
    let wished = Sampling::wished(model.generation(), 1.0);
    let mut requests = Vec::with_capacity(2 * problems.len());
    for (i, problem) in problems.iter().enumerate() {
        let (prompt, fits) = prompt_of(model, tokenizer, (i, problem))?;
        if !fits {
            return Err(EvaluateError::TooLong { problem: i + 1, tokens: prompt.len(), context });
        }
        let path: Vec<u64> = prompt.iter().map(|&id| u64::from(id)).collect();
        let greedy = Request {
            samples: 1,
            max_new: s.max_new.min(context - prompt.len()),
            sampling: Sampling { temperature: 0.0, ..wished },
            stop_tokens: stop_tokens.clone(),
            seed: Rng::at(s.seed, &path).next_u64(),
            prompt,
        };
        let sampling = Sampling { temperature: s.temperature, ..wished };
        let samples = Request { samples: s.samples, sampling, ..greedy.clone() };
        requests.extend([greedy, samples]);
    }
    Ok(requests)
}

/// Of the greedy completion and the samples, in this order.
fn outcome(verifier: &dyn Verifier, verdicts: &[Verdict], texts: &[String]) -> Outcome {
    let right: Vec<bool> = verdicts.iter().map(|v| v.score >= RIGHT).collect();
    let votes: Vec<Option<Vote>> =
        texts[1..].iter().map(|text| verifier.answer(text).map(|a| vote(&a))).collect();
    let at = |i: usize| right.get(i).copied().unwrap_or(false);
    Outcome {
        greedy: at(0),
        any: right.iter().skip(1).any(|&r| r),
        majority: majority(&votes).is_some_and(|winner| at(winner + 1)),
    }
}

/// An answer as it is counted: equal numbers are one answer, however they are written.
#[derive(Debug, PartialEq)]
enum Vote {
    Number(Number),
    Text(String),
}

fn vote(answer: &str) -> Vote {
    let text = || answer.split_whitespace().collect::<Vec<_>>().join(" ");
    Number::parse(answer).map_or_else(|| Vote::Text(text()), Vote::Number)
}

fn scores(outcomes: &[&Outcome], samples: usize) -> Scores {
    let share = |trials: usize, right: fn(&Outcome) -> bool| {
        wilson(outcomes.iter().take(trials).filter(|o| right(o)).count() as u64, trials as u64)
    };
    let n = outcomes.len();
    let sampled = if samples == 0 { 0 } else { n };
    Scores {
        pass_at_1: share(n, |o| o.greedy),
        pass_at_k: share(sampled, |o| o.any),
        maj_at_k: share(sampled, |o| o.majority),
        problems: n,
        samples,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(answer: &str) -> String {
        format!("<think>so</think><answer>{answer}</answer>")
    }

    /// Numbers are counted by value, missing answers do not vote, and of equally common answers the first wins.
    #[test]
    fn the_majority_is_counted_by_value() {
        let verdict = |right: bool| if right { Verdict::right() } else { Verdict::wrong("no") };
        let of = |greedy: bool, samples: &[(&str, bool)]| {
            let texts: Vec<String> = std::iter::once("greedy".to_owned())
                .chain(samples.iter().map(|(a, _)| completion(a)))
                .collect();
            let verdicts: Vec<Verdict> =
                std::iter::once(verdict(greedy)).chain(samples.iter().map(|&(_, r)| verdict(r))).collect();
            let o = outcome(&tasks::verify::ByTask, &verdicts, &texts);
            (o.greedy, o.any, o.majority)
        };
        assert_eq!(of(true, &[("7", false), ("1/2", true), ("0.50", true)]), (true, true, true));
        assert_eq!(of(false, &[("7", false), ("8", true)]), (false, true, false));
        assert_eq!(of(false, &[("", false), ("", false), ("8", true)]), (false, true, true));
        assert_eq!(of(false, &[("a  b", true), ("c", false), ("a b", true)]), (false, true, true));
        assert_eq!(of(true, &[]), (true, false, false));
    }

    #[test]
    fn scores_without_samples_are_those_of_no_trials() {
        let outcome = Outcome { greedy: true, any: false, majority: false };
        let s = scores(&[&outcome, &outcome], 0);
        assert_eq!((s.pass_at_1.value, s.pass_at_k, s.problems), (1.0, wilson(0, 0), 2));
    }
}
