//! The problems of a run and what scores them, as the recipe says: the built-in mix, a file, or a command.

use std::time::Duration;

use data::is_held_out;
use tasks::verify::external;
use tasks::{Mix, MixEntry, Problem, Split, Style, Verifier, corpus};

use crate::TrainError;
use crate::run::recipe::{Problems, TaskMix, Verifier as VerifierChoice, VerifierCommand};

/// Of a file's problems, one in so many is held out.
const HELD_OUT_ONE_IN: u64 = 10;

/// Documents from this index on are never trained on.
pub const HELD_OUT_START: u64 = 1 << 40;

/// Where problems come from, and their verifier.
pub struct ProblemSource {
    origin: Origin,
    held_out: Vec<Problem>,
    verifier: Box<dyn Verifier>,
    seed: u64,
}

enum Origin {
    Mix(Mix),
    List(Vec<Problem>),
}

/// The mix of a recipe's entries.
pub fn mix(entries: &[TaskMix]) -> Result<Mix, TrainError> {
    let entries = entries.iter().filter(|e| e.weight > 0.0).map(|e| {
        let level = e.level().map_err(|error| {
            TrainError::Recipe(format!("problems.mix: task `{}`: level: {error}", e.task))
        })?;
        Ok(MixEntry { task: e.task.clone(), weight: e.weight, level })
    });
    let entries = entries.collect::<Result<Vec<_>, TrainError>>()?;
    Ok(if entries.is_empty() { Mix::launch() } else { Mix::new(entries)? })
}

fn start(c: &VerifierCommand) -> Result<external::ExternalVerifier, TrainError> {
    let mut command = external::Command::new(c.command.clone());
    command.workers = c.workers;
    command.timeout = Duration::from_secs_f64(c.timeout_seconds);
    Ok(external::ExternalVerifier::start(command)?)
}

impl ProblemSource {
    /// Draws or reads the problems.
    pub fn open(p: &Problems, seed: u64) -> Result<ProblemSource, TrainError> {
        let mut of_command: Option<external::ExternalVerifier> = None;
        let (origin, held_out) = if let Some(path) = &p.jsonl {
            let all = tasks::load_problems(path)?;
            let (held, train): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|q| is_held_out(q.prompt.as_bytes(), seed, HELD_OUT_ONE_IN));
            if train.is_empty() || held.is_empty() {
                let what = format!(
                    "{}: too few problems to keep one in {HELD_OUT_ONE_IN} for evaluation; give at least 50",
                    path.display()
                );
                return Err(TrainError::Recipe(what));
            }
            (Origin::List(train), held.into_iter().take(p.held_out).collect())
        } else if !p.command.is_empty() {
            let command = VerifierCommand { command: p.command.clone(), workers: 2, timeout_seconds: 10.0 };
            let external = start(&command)?;
            let draw = |split, count: usize| -> Result<Vec<Problem>, TrainError> {
                let each = count.div_ceil(p.tasks.len().max(1));
                let mut lists = Vec::new();
                for task in &p.tasks {
                    lists.push(external.problems(task, split, seed, 0, each)?.into_iter());
                }
                // Tasks in turn, so that any part of the list is a fair mix.
                Ok((0..each)
                    .flat_map(|_| lists.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>())
                    .take(count)
                    .collect())
            };
            let (train, held) = (draw(Split::Train, p.count)?, draw(Split::HeldOut, p.held_out)?);
            of_command = Some(external);
            (Origin::List(train), held)
        } else {
            let mix = mix(&p.mix)?;
            let held = (0..p.held_out as u64).map(|i| mix.problem(Split::HeldOut, seed, i)).collect();
            (Origin::Mix(mix), held)
        };
        let verifier: Box<dyn Verifier> = match (&p.verifier, of_command) {
            (Some(VerifierChoice::Named(name)), _) => tasks::verifier(name)?,
            (Some(VerifierChoice::Command(c)), _) => Box::new(start(c)?),
            (None, Some(external)) => Box::new(external),
            (None, None) => tasks::verifier("task")?,
        };
        if let Origin::List(train) = &origin
            && let Some((problem, fault)) =
                train.iter().chain(&held_out).find_map(|p| Some((p, verifier.fault(p)?)))
        {
            let what = format!("no answer could score on the problem {:?}: {fault}", problem.prompt);
            return Err(TrainError::Recipe(what));
        }
        Ok(ProblemSource { origin, held_out, verifier, seed })
    }

    /// The same with other tasks drawn for training.
    pub fn training_mix(&self, entries: &Option<Vec<TaskMix>>) -> Result<Option<Mix>, TrainError> {
        entries.as_ref().map(|e| mix(e)).transpose()
    }

    /// Training problem `index`; a list starts again when it ends.
    pub fn train(&self, mix: Option<&Mix>, index: u64) -> Problem {
        match (&self.origin, mix) {
            (_, Some(mix)) | (Origin::Mix(mix), None) => mix.problem(Split::Train, self.seed, index),
            (Origin::List(list), None) => list[(index % list.len() as u64) as usize].clone(),
        }
    }

    /// The problems kept for evaluation.
    pub fn held_out(&self) -> &[Problem] {
        &self.held_out
    }

    /// What scores completions.
    pub fn verifier(&self) -> &dyn Verifier {
        &*self.verifier
    }

    /// A document for pretraining: problems and answers in prose, with the worked solution where one is known.
    pub fn document(&self, mix: Option<&Mix>, index: u64, hurried_share: f64) -> String {
        match (&self.origin, mix) {
            (_, Some(mix)) | (Origin::Mix(mix), None) => {
                corpus::document(mix, self.seed, index, hurried_share)
            }
            (Origin::List(_), None) => {
                let held_out = index >= HELD_OUT_START && !self.held_out.is_empty();
                let p = if held_out {
                    self.held_out[((index - HELD_OUT_START) % self.held_out.len() as u64) as usize].clone()
                } else {
                    self.train(None, index)
                };
                let mut rng = tasks::Rng::new(&[self.seed, index]);
                let style = if rng.chance(hurried_share) { Style::Hurried } else { Style::Careful };
                corpus::pretrain_document(&p, style, &mut rng)
            }
        }
    }
}
