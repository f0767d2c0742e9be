//! How a model does before it is taught, asked in the way that suits it best.

use data::Tokenizer;
use model::Model;
use tasks::{AnswerPlace, Problem, placed};

use super::Lesson;
use super::lesson::prompt_template;
use super::lesson_plan::TEMPERATURE;
use crate::TrainError;
use crate::evaluate::{EvalSettings, Evaluation, evaluate};
use crate::team::Team;

/// Samples of each, to find out whether it is ever right.
const SAMPLES: usize = 8;
/// Tokens that a model which was not taught gets for an answer, at least: many talk before they say it.
pub const PATIENCE: usize = 256;

/// How a model does before it is taught, asked in the way that suits it best.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Where it is asked for its answer then.
    pub place: AnswerPlace,
    /// Where it will put its answer once it is taught: behind its work, where there is work to learn from.
    pub taught_place: AnswerPlace,
    /// What it did, of some of the problems.
    pub found: Evaluation,
    /// Tokens that it had for an answer, at most.
    pub max_new: usize,
    /// Seconds that a generated token took.
    pub seconds_per_token: f64,
}

impl Trial {
    /// Why there is nothing to teach, or nothing to build on, if so.
    pub fn pointless(&self, lesson: &Lesson) -> Option<String> {
        let all = &self.found.all;
        if all.pass_at_1.value >= 1.0 && all.maj_at_k.value >= 1.0 {
            return Some(format!(
                "nothing to teach: the model is right on all {} rows that it was tried on",
                all.problems
            ));
        }
        if all.pass_at_1.value == 0.0 && all.pass_at_k.value == 0.0 && lesson.solved == 0 {
            return Some(format!(
                "nothing to build on: of {} rows none was right in {} samples, and there are no worked solutions to learn from. Add a column with solutions (eight rows do to show the form), or take a model that is sometimes right",
                all.problems, all.samples
            ));
        }
        None
    }
}

/// Tries a model on some of the problems, asked in each way that the answers allow, and keeps the kindest. Once it has taken so many
/// seconds, no further way is tried.
///
/// # Errors
/// Problems that cannot be put to the model.
pub fn try_model(
    model: &Model,
    tokenizer: &Tokenizer,
    lesson: &Lesson,
    max_new: usize,
    most_seconds: f64,
    tell: &dyn Fn(&str),
) -> Result<Trial, TrainError> {
    let max_new = max_new.max(PATIENCE);
    let ask = |place: &AnswerPlace, samples: usize| -> Result<(Evaluation, f64), TrainError> {
        let problems: Vec<Problem> = lesson.tried().cloned().map(|p| put(place, p)).collect();
        let verifier = placed(place.clone(), tasks::verifier(lesson.verifier)?.into());
        let settings = EvalSettings { samples, temperature: TEMPERATURE, max_new, seed: 1 };
        let began = std::time::Instant::now();
        let found = evaluate(model, tokenizer, &Team::alone(), &problems, &*verifier, &settings, &|| true)?;
        let seconds = began.elapsed().as_secs_f64() / found.tokens.max(1) as f64;
        Ok((found, seconds))
    };
    let began = std::time::Instant::now();
    let mut tried = Vec::new();
    for place in &lesson.places {
        if !tried.is_empty() && began.elapsed().as_secs_f64() > most_seconds {
            tell(&format!("  `{place}` is not tried: the others have taken long enough"));
            continue;
        }
        let (found, seconds) = ask(place, 0)?;
        let right = 100.0 * found.all.pass_at_1.value;
        tell(&format!("  asked for the answer as `{place}`: {right:.0} % of {} right", found.all.problems));
        tried.push((place, found, seconds));
    }
    // Of equals the first, which is the likeliest.
    let best = |work: bool| {
        let allowed = tried.iter().rev().filter(|(place, ..)| !work || !matches!(place, AnswerPlace::Whole));
        allowed.max_by(|a, b| a.1.all.pass_at_1.value.total_cmp(&b.1.all.pass_at_1.value))
    };
    let (place, found, seconds) = best(false).expect("every lesson has a way to ask");
    let taught_place = best(lesson.solved > 0).map_or(lesson.taught_place(), |(place, ..)| *place).clone();
    // Whether it is ever right matters where its own answers are all there is to learn from, and where it may be right always.
    let (found, seconds_per_token) = match lesson.solved > 0 && found.all.pass_at_1.value < 1.0 {
        true => (found.clone(), *seconds),
        false => ask(place, SAMPLES)?,
    };
    Ok(Trial { place: (*place).clone(), taught_place, found, max_new, seconds_per_token })
}

/// A problem as it is put where the answer is expected in this place.
fn put(place: &AnswerPlace, mut problem: Problem) -> Problem {
    if let Some(template) = prompt_template(place) {
        problem.prompt = template.replace("{prompt}", &problem.prompt);
    }
    problem
}
