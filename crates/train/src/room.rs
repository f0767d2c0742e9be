//! Whether prompts leave room for an answer, found out before the first step.

use std::borrow::Borrow;

use data::{Tokenizer, encode_prompt};
use model::Model;
use tasks::{Mix, Problem};

use crate::TrainError;
use crate::context::{Context, positions};
use crate::problems::{PROMPT_REMEDY, ProblemSource, asked};
use crate::source::{TaskMix, TooLong};
use crate::speaker;

/// Of an endless mix, the problems whose length is looked at beforehand.
const MEASURED: u64 = 1000;

/// The problems of a stage: those of its own mix or of the run, without those whose prompts are too long, where the recipe
/// wants them left out.
pub struct StageProblems<'a> {
    source: &'a ProblemSource,
    mix: Option<Mix>,
    /// Places in the source's list; none where problems are drawn from a mix.
    fitting: Option<Vec<usize>>,
    held_out: Vec<&'a Problem>,
    left_out: usize,
}

impl<'a> StageProblems<'a> {
    /// Measures the prompts of all problems of a list, or of an endless mix those of some from `first` on, and those of the
    /// held-out ones: each has to leave room for an answer of `max_new` tokens.
    ///
    /// # Errors
    /// The first prompt that is too long, where the recipe does not want such ones left out, with its number and how many
    /// others there are; a prompt that cannot be encoded; no problem left.
    pub fn with_room(
        ctx: &'a Context,
        stage: &str,
        own_mix: &Option<Vec<TaskMix>>,
        (model, tokenizer): (&Model, &Tokenizer),
        first: u64,
        max_new: usize,
    ) -> Result<StageProblems<'a>, TrainError> {
        let source = ctx.problems()?;
        let mix = source.training_mix(own_mix)?;
        let room = Room {
            tokenizer,
            limit: model.config().max_position_embeddings().min(model.positions()).saturating_sub(max_new),
            rule: source.too_long(),
        };
        let held = room.fitting("held-out problem", source.numbered_held_out())?;
        let (fitting, all) = match source.list(mix.as_ref()) {
            Some(list) => {
                let as_put = (0..).zip(list).map(|(i, (n, _))| (*n, source.train(None, i)));
                (Some(room.fitting("problem", as_put)?), list.len())
            }
            None => {
                let drawn: Vec<Problem> =
                    (0..MEASURED).map(|i| source.train(mix.as_ref(), first + i)).collect();
                Room { rule: TooLong::Refuse, ..room }.fitting("problem", (1..).zip(&drawn))?;
                (None, 0)
            }
        };
        if fitting.as_ref().is_some_and(Vec::is_empty) {
            return Err(TrainError::Recipe(format!(
                "stage `{stage}`: no prompt of the {all} problems leaves room for an answer of max_new = {max_new} \
                 tokens: lower `max_new`, or take a model with a longer context"
            )));
        }
        let left_out = fitting.as_ref().map_or(0, |f| all - f.len());
        let of_held_out = source.held_out().count() - held.len();
        if left_out + of_held_out > 0 {
            ctx.reporter.note(&format!(
                "{stage}: {left_out} of {all} problems and {of_held_out} of {} held-out ones are left out: their prompts \
                 leave no room for an answer of max_new = {max_new} tokens",
                source.held_out().count()
            ));
        }
        let all_held: Vec<&Problem> = source.held_out().collect();
        let held_out = held.into_iter().map(|i| all_held[i]).collect();
        Ok(StageProblems { source, mix, fitting, held_out, left_out })
    }

    /// Training problem `index`; a list starts again when it ends.
    pub fn train(&self, index: u64) -> Problem {
        let index = match &self.fitting {
            Some(fitting) => fitting[(index % fitting.len() as u64) as usize] as u64,
            None => index,
        };
        self.source.train(self.mix.as_ref(), index)
    }

    /// The problems kept for evaluation.
    pub fn held_out(&self) -> impl Iterator<Item = &'a Problem> {
        self.held_out.iter().copied()
    }

    /// How many problems to train on were left out.
    pub fn left_out(&self) -> usize {
        self.left_out
    }
}

/// The held-out problems whose prompts leave room for an answer, however short, in the contexts of all of `models`.
///
/// # Errors
/// As [`StageProblems::with_room`].
pub fn held_out_with_room(
    ctx: &Context,
    stage: &str,
    models: &[String],
    held_out: &[(usize, Problem)],
) -> Result<Vec<(usize, Problem)>, TrainError> {
    let source = ctx.problems()?;
    let mut kept: Vec<(usize, &Problem)> = held_out.iter().map(|(n, p)| (*n, p)).collect();
    let all = kept.len();
    for name in models {
        let (config, tokenizer) = speaker::load_tokenizer(&ctx.dir(name)?, None, |_| ())?;
        let room = Room { tokenizer: &tokenizer, limit: positions(&config) - 1, rule: source.too_long() };
        let fitting = room.fitting("held-out problem", kept.iter().copied())?;
        kept = fitting.into_iter().map(|i| kept[i]).collect();
    }
    if kept.len() < all {
        ctx.reporter.note(&format!(
            "{stage}: {} of {all} held-out problems are left out: their prompts leave no room for an answer",
            all - kept.len()
        ));
    }
    Ok(kept.into_iter().map(|(n, p)| (n, p.clone())).collect())
}

/// A limit of prompts.
struct Room<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens of a prompt at most.
    limit: usize,
    rule: TooLong,
}

impl Room<'_> {
    /// The places of those that fit.
    fn fitting(
        &self,
        kind: &str,
        problems: impl Iterator<Item = (usize, impl Borrow<Problem>)>,
    ) -> Result<Vec<usize>, TrainError> {
        let mut fitting = Vec::new();
        let mut found: Option<(usize, usize)> = None;
        let mut others = 0;
        for (i, (number, problem)) in problems.enumerate() {
            let prompt = encode_prompt(self.tokenizer, &asked(problem.borrow()))
                .map_err(|error| TrainError::Recipe(format!("{kind} {number}: {error}")))?;
            if prompt.len() <= self.limit {
                fitting.push(i);
            } else if self.rule == TooLong::Refuse {
                others += usize::from(found.is_some());
                found.get_or_insert((number, prompt.len()));
            }
        }
        let Some((number, tokens)) = found else { return Ok(fitting) };
        let others = match others {
            0 => String::new(),
            1 => " (and one other is too long)".to_owned(),
            n => format!(" (and {n} others are too long)"),
        };
        let what = format!("the prompt of {kind} {number}{others}");
        Err(TrainError::TooLong { what, tokens, limit: self.limit, remedy: PROMPT_REMEDY })
    }
}
