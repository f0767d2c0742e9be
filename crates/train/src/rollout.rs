//! Sampling answers to problems and scoring them: what reinforcement and rejection sampling share.

use data::{Tokenizer, encode_prompt};
use engine::{Engine, EngineError, FinishReason, Request, Sampling};
use model::Model;
use serde::{Deserialize, Serialize};
use tasks::{Problem, Reward, Scoring};

use crate::TrainError;
use crate::policy::{Prompted, Sampled};
use crate::problems::{PROMPT_REMEDY, asked};
use crate::speaker::{answer_text, stop_tokens};
use crate::team::Team;

/// How answers are sampled.
#[derive(Clone, Copy, Debug)]
pub struct SampleSettings {
    /// Answers per problem.
    pub group: usize,
    /// Tokens of an answer at most.
    pub max_new: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Seed of the first problem; the others count up.
    pub seed: u64,
}

/// One sampled answer.
#[derive(Serialize, Deserialize)]
pub struct Answer {
    /// Tokens and log-probabilities, and what a policy step adds.
    pub sampled: Sampled,
    /// Its text, tags included, also the one that the prompt has opened.
    pub text: String,
    /// What it earns.
    pub reward: Reward,
    /// Whether it ran out of tokens.
    pub truncated: bool,
}

/// A problem with its answers.
pub struct Group {
    /// The problem.
    pub problem: Problem,
    /// Its prompt's ids.
    pub prompt: Vec<u32>,
    /// The answers.
    pub answers: Vec<Answer>,
}

impl Group {
    /// Tokens of all answers.
    pub fn tokens(&self) -> usize {
        self.answers.iter().map(|a| a.sampled.tokens.len()).sum()
    }

    /// The group as a policy step sees it.
    pub fn prompted(&self) -> Prompted<'_> {
        Prompted { prompt: &self.prompt, answers: self.answers.iter().map(|a| &a.sampled).collect() }
    }
}

/// Samples and scores a group of answers to every problem; also gives the tokens computed. The problems are dealt out to the ranks.
pub fn sample(
    model: &Model,
    tokenizer: &Tokenizer,
    team: &Team,
    problems: Vec<Problem>,
    scoring: &Scoring,
    s: SampleSettings,
) -> Result<(Vec<Group>, u64), TrainError> {
    let mut computed = 0;
    let found = team.deal(problems.len(), |part| {
        let s = SampleSettings { seed: s.seed.wrapping_add(part.start as u64), ..s };
        let (found, tokens) = sample_here(model, tokenizer, &problems[part], scoring, s)?;
        computed = tokens;
        Ok::<_, TrainError>(found)
    })?;
    let groups = problems.into_iter().zip(found).map(|(problem, Found { prompt, answers })| Group {
        problem,
        prompt,
        answers,
    });
    Ok((groups.collect(), team.total(computed)))
}

/// What was found for a problem: its prompt's ids, and the answers.
#[derive(Serialize, Deserialize)]
struct Found {
    prompt: Vec<u32>,
    answers: Vec<Answer>,
}

fn sample_here(
    model: &Model,
    tokenizer: &Tokenizer,
    problems: &[Problem],
    scoring: &Scoring,
    s: SampleSettings,
) -> Result<(Vec<Found>, u64), TrainError> {
    if problems.is_empty() {
        return Ok((Vec::new(), 0));
    }
    let stop_tokens = stop_tokens(model, tokenizer);
    let mut requests = Vec::with_capacity(problems.len());
    for (i, p) in problems.iter().enumerate() {
        let prompt = encode_prompt(tokenizer, &asked(p))?;
        let seed = s.seed.wrapping_add(i as u64);
        requests.push(Request {
            prompt,
            samples: s.group,
            max_new: s.max_new,
            sampling: s.sampling,
            stop_tokens: stop_tokens.clone(),
            seed,
        });
    }
    let mut engine = Engine::new(model, None);
    let results = engine.run(&requests, |_| true).map_err(|error| match error {
        EngineError::TooLong { request, prompt, max_new, context } => TrainError::TooLong {
            what: format!("the prompt of the problem {:?}", problems[request].prompt),
            tokens: prompt,
            limit: context.saturating_sub(max_new),
            remedy: PROMPT_REMEDY,
        },
        error => error.into(),
    })?;
    let mut texts = Vec::new();
    for (request, completions) in requests.iter().zip(&results) {
        for c in completions {
            texts.push(answer_text(tokenizer, &request.prompt, &c.token_ids)?);
        }
    }
    let items: Vec<(&Problem, &str)> =
        texts.iter().enumerate().map(|(i, t)| (&problems[i / s.group], t.as_str())).collect();
    let rewards = scoring.rewards(&items);
    let mut scored = texts.into_iter().zip(rewards);
    let mut found = Vec::with_capacity(problems.len());
    for (request, completions) in requests.into_iter().zip(results) {
        let answers = completions.into_iter().zip(&mut scored).map(|(completion, (text, reward))| Answer {
            reward,
            truncated: completion.finish_reason == FinishReason::Length,
            sampled: Sampled::new(completion.token_ids, completion.tempered_logprobs),
            text,
        });
        found.push(Found { prompt: request.prompt, answers: answers.collect() });
    }
    Ok((found, engine.computed_tokens() as u64))
}
