//! The problems of a run and what scores them, as the recipe says: the built-in mix, a file, or a command.

use std::collections::HashSet;
use std::time::Duration;

use data::{Conversation, Message, hash_bytes, permutation};
use tasks::corpus::Blend;
use tasks::verify::external;
use tasks::{AnswerPlace, Mix, MixEntry, Problem, Split, Style, Verifier, corpus, placed};

use crate::TrainError;
use crate::source::{
    HELD_OUT, PROMPT_SLOT, Problems, TaskMix, TooLong, Verifier as VerifierChoice, VerifierCommand,
};

/// Of a file's problems, one in so many is held out where the recipe does not say how many, and so many at most.
const HELD_OUT_ONE_IN: usize = 10;

/// Documents from this index on are never trained on.
pub const HELD_OUT_START: u64 = 1 << 40;

/// Where problems come from, and their verifier.
pub struct ProblemSource {
    origin: Origin,
    form: Form,
    /// Numbered as a list is.
    held_out: Vec<(usize, Problem)>,
    /// All that have a worked solution, each with it, where the recipe says how many there are.
    solved: Option<Vec<Problem>>,
    verifier: Box<dyn Verifier>,
    seed: u64,
    too_long: TooLong,
}

/// How problems are put to a model, and how it is to answer.
struct Form {
    place: AnswerPlace,
    system: Option<String>,
    /// What stands before and behind a problem's text.
    around: Option<(String, String)>,
}

impl Form {
    fn of(p: &Problems) -> Result<Form, TrainError> {
        let around = p.prompt.as_ref().and_then(|text| text.split_once(PROMPT_SLOT));
        Ok(Form {
            place: p.answer.parse()?,
            system: p.system.clone(),
            around: around.map(|(before, behind)| (before.to_owned(), behind.to_owned())),
        })
    }

    fn put(&self, mut problem: Problem) -> Problem {
        if let Some((before, behind)) = &self.around {
            problem.prompt = format!("{before}{}{behind}", problem.prompt);
        }
        problem.system = problem.system.or_else(|| self.system.clone());
        problem
    }
}

/// The turns that put a problem to a model.
pub fn asked(problem: &Problem) -> Vec<Message> {
    let system = problem.system.as_deref().map(Message::system);
    system.into_iter().chain([Message::user(problem.prompt.as_str())]).collect()
}

enum Origin {
    Mix(Mix),
    /// Each with its number in the file, or among what the command drew, counted from 1.
    List(Vec<(usize, Problem)>),
}

/// What to do about a prompt that leaves no room for an answer.
pub const PROMPT_REMEDY: &str = "shorten it, set `problems.too_long = \"leave_out\"` (problems of a `mix`: lower their `level`), \
     lower `max_new`, or take a model with a longer context";

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
    command.env = c.env.clone();
    Ok(external::ExternalVerifier::start(command)?)
}

/// Where an endless mix has few worked solutions, they are those of the problems from this index on.
const FIRST_SOLVED: u64 = 1 << 36;

/// The first `n` problems that can have a worked solution, each with it.
fn solve(problems: impl Iterator<Item = Problem>, n: usize) -> Result<Vec<Problem>, TrainError> {
    let worked = problems.filter_map(|mut p| {
        let solution = corpus::reasoning(&p, Style::Careful, 0)?;
        p.solution = Some(solution);
        Some(p)
    });
    let solved: Vec<Problem> = worked.take(n).collect();
    if solved.len() == n {
        return Ok(solved);
    }
    let what = format!("problems.solved is {n}, but only {} problems have a worked solution", solved.len());
    Err(TrainError::Recipe(what))
}

type Numbered = Vec<(usize, Problem)>;

/// Parts a file's problems into those to train on and exactly `held_out` others, with their numbers. Which they are depends
/// on their prompts and the seed alone. A prompt that stands in the file twice is on one side, and held out once.
fn split(all: Vec<Problem>, held_out: Option<usize>, seed: u64) -> Result<(Numbered, Numbered), String> {
    let mut prompts: Vec<&str> = all.iter().map(|p| p.prompt.as_str()).collect();
    prompts.sort_by_key(|p| (hash_bytes(p.as_bytes(), seed), *p));
    prompts.dedup();
    let n = held_out.unwrap_or((prompts.len() / HELD_OUT_ONE_IN).clamp(1, HELD_OUT));
    if n >= prompts.len() {
        return Err(format!(
            "it holds {} different problems, of which {n} are to be kept for evaluation: give more, or lower `problems.held_out`",
            prompts.len()
        ));
    }
    let kept: HashSet<String> = prompts[..n].iter().map(|p| (*p).to_owned()).collect();
    let (held, train): (Numbered, Numbered) = (1..).zip(all).partition(|(_, p)| kept.contains(&p.prompt));
    let mut seen = HashSet::new();
    let held = held.into_iter().filter(|(_, p)| seen.insert(p.prompt.clone())).collect();
    Ok((train, held))
}

impl ProblemSource {
    /// Draws or reads the problems.
    pub fn open(p: &Problems, seed: u64) -> Result<ProblemSource, TrainError> {
        let form = Form::of(p)?;
        let mut of_command: Option<external::ExternalVerifier> = None;
        let held_out = p.held_out.unwrap_or(HELD_OUT);
        let (origin, held_out) = if let Some(path) = &p.jsonl {
            let (train, held) = split(tasks::load_problems(path)?, p.held_out, seed)
                .map_err(|what| TrainError::Recipe(format!("{}: {what}", path.display())))?;
            (Origin::List(train), held)
        } else if !p.command.is_empty() {
            let (command, env) = (p.command.clone(), p.env.clone());
            let external = start(&VerifierCommand { command, env, workers: 2, timeout_seconds: 10.0 })?;
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
            let numbered = |problems: Vec<Problem>| (1..).zip(problems).collect();
            let train = numbered(draw(Split::Train, p.count)?);
            let held = numbered(draw(Split::HeldOut, held_out)?);
            of_command = Some(external);
            (Origin::List(train), held)
        } else {
            let mix = mix(&p.mix)?;
            let drawn = (0..held_out as u64).map(|i| mix.problem(Split::HeldOut, seed, i));
            let held = (1..).zip(drawn).collect();
            (Origin::Mix(mix), held)
        };
        let verifier: Box<dyn Verifier> = match (&p.verifier, of_command) {
            (Some(VerifierChoice::Named(name)), _) => tasks::verifier(name)?,
            (Some(VerifierChoice::Command(c)), _) => Box::new(start(c)?),
            (None, Some(external)) => Box::new(external),
            (None, None) => tasks::verifier("task")?,
        };
        let verifier = placed(form.place.clone(), verifier);
        let held_out = held_out.into_iter().map(|(n, p)| (n, form.put(p))).collect();
        if let Origin::List(train) = &origin
            && let Some((problem, fault)) =
                train.iter().chain(&held_out).find_map(|(_, p)| Some((p, verifier.fault(p)?)))
        {
            let what = format!("no answer could score on the problem {:?}: {fault}", problem.prompt);
            return Err(TrainError::Recipe(what));
        }
        let solved = match (p.solved, &origin) {
            (None, _) => None,
            (Some(n), Origin::List(list)) => Some(solve(list.iter().map(|(_, p)| p.clone()), n)?),
            (Some(n), Origin::Mix(mix)) => {
                Some(solve((FIRST_SOLVED..).take(n).map(|i| mix.problem(Split::Train, seed, i)), n)?)
            }
        };
        Ok(ProblemSource { origin, form, held_out, solved, verifier, seed, too_long: p.too_long })
    }

    /// The same with other tasks drawn for training.
    pub fn training_mix(&self, entries: &Option<Vec<TaskMix>>) -> Result<Option<Mix>, TrainError> {
        entries.as_ref().map(|e| mix(e)).transpose()
    }

    /// Training problem `index`; a list starts again when it ends.
    pub fn train(&self, mix: Option<&Mix>, index: u64) -> Problem {
        self.form.put(match (&self.origin, mix) {
            (_, Some(mix)) | (Origin::Mix(mix), None) => mix.problem(Split::Train, self.seed, index),
            (Origin::List(list), None) => list[(index % list.len() as u64) as usize].1.clone(),
        })
    }

    /// A problem with its worked solution, as a conversation; `number` tells equal ones apart.
    ///
    /// # Errors
    /// An answer whose place only a pattern tells: it can be found, but not written.
    pub fn worked(&self, problem: &Problem, style: Style, number: u64) -> Result<Conversation, TrainError> {
        let place = &self.form.place;
        let text = corpus::completion_in(place, problem, style, number).ok_or_else(|| {
            TrainError::Recipe(format!(
                "no answer can be written where `problems.answer` expects it ({place})"
            ))
        })?;
        let mut turns = asked(problem);
        turns.push(Message::assistant(text));
        Ok(Conversation::of(turns))
    }

    /// What is done about problems that leave no room for an answer.
    pub fn too_long(&self) -> TooLong {
        self.too_long
    }

    /// The problems that training draws from, each with its number, where that is a list.
    pub fn list(&self, mix: Option<&Mix>) -> Option<&[(usize, Problem)]> {
        match (&self.origin, mix) {
            (Origin::List(list), None) => Some(list),
            _ => None,
        }
    }

    /// The problems kept for evaluation, each with its number.
    pub fn numbered_held_out(&self) -> impl Iterator<Item = (usize, &Problem)> {
        self.held_out.iter().map(|(n, problem)| (*n, problem))
    }

    /// Problem `index` to learn from by its worked solution: of few, in an order that every epoch shuffles anew, otherwise
    /// training problem `first + index`.
    pub fn solved(&self, mix: Option<&Mix>, first: u64, index: u64) -> Problem {
        let Some(solved) = &self.solved else { return self.train(mix, first + index) };
        let n = solved.len() as u64;
        self.form.put(solved[permutation(self.seed, index / n, n)(index % n) as usize].clone())
    }

    /// The problems kept for evaluation.
    pub fn held_out(&self) -> impl Iterator<Item = &Problem> {
        self.held_out.iter().map(|(_, problem)| problem)
    }

    /// What scores completions.
    pub fn verifier(&self) -> &dyn Verifier {
        &*self.verifier
    }

    /// A document for pretraining: a drill, of a mix; a question; or a problem and its answer in prose, with the worked solution
    /// where one is known. Where solutions are few, only a mix of the stage's own comes with them.
    pub fn document(&self, mix: Option<&Mix>, index: u64, blend: Blend) -> String {
        match (&self.origin, mix) {
            (Origin::List(_), Some(mix)) => corpus::document(mix, Some(mix), self.seed, index, blend),
            (Origin::Mix(unsolved), _) => {
                let solved = mix.or(self.solved.is_none().then_some(unsolved));
                corpus::document(unsolved, solved, self.seed, index, blend)
            }
            (Origin::List(_), None) => {
                let held_out = index >= HELD_OUT_START && !self.held_out.is_empty();
                let p = if held_out {
                    self.held_out[((index - HELD_OUT_START) % self.held_out.len() as u64) as usize].1.clone()
                } else {
                    self.train(None, index)
                };
                let mut rng = tasks::Rng::new(&[self.seed, index]);
                if self.solved.is_some() || (blend.questions > 0.0 && rng.chance(blend.questions)) {
                    return corpus::question(&p, &mut rng);
                }
                let style = if rng.chance(blend.hurried) { Style::Hurried } else { Style::Careful };
                corpus::pretrain_document(&p, style, &mut rng)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(n: usize) -> Vec<Problem> {
        let problem = |i: usize| {
            let record = serde_json::json!({"prompt": format!("problem {i}"), "answer": "1"});
            serde_json::from_value(record).expect("a problem")
        };
        (0..n).map(problem).collect()
    }

    /// As many are held out as the recipe asks for, none of them is trained on, and others stay on their side.
    #[test]
    fn as_many_are_held_out_as_asked() {
        let (train, held) = split(problems(600), Some(100), 1).expect("a split");
        assert_eq!((train.len(), held.len()), (500, 100));
        assert!(train.iter().all(|(_, p)| held.iter().all(|(_, q)| p.prompt != q.prompt)));
        assert!(held.iter().all(|(n, p)| p.prompt == format!("problem {}", n - 1)), "numbers are the file's");
        let twice = [problems(60), problems(60)].concat();
        let (train, held) = split(twice, Some(20), 1).expect("a split");
        assert_eq!((train.len(), held.len()), (80, 20));
        assert_eq!(split(problems(600), None, 1).expect("a split").1.len(), 60);
        assert_eq!(split(problems(9000), None, 1).expect("a split").1.len(), 200);
        assert_eq!(split(problems(5), None, 1).expect("a split").1.len(), 1);
        assert!(split(problems(100), Some(100), 1).unwrap_err().contains("100 different problems"));
        assert!(split(problems(1), None, 1).is_err());
    }

    /// `solved` bounds the worked solutions that fine-tuning ever sees, and pretraining on the recipe's problems sees none.
    #[test]
    fn few_solutions_are_all_there_are() {
        let recipe =
            Problems { mix: vec![TaskMix::plain("arithmetic")], solved: Some(7), ..Problems::default() };
        let source = ProblemSource::open(&recipe, 3).expect("a mix");
        let epoch = |from: u64| -> Vec<String> {
            let worked = (from..from + 7).map(|i| source.solved(None, 1 << 32, i));
            worked.map(|p| format!("{} {}", p.prompt, corpus::completion(&p, Style::Careful, from))).collect()
        };
        let (first, later) = (epoch(0), epoch(700));
        assert_ne!(first, later, "each epoch is shuffled");
        let all: HashSet<&String> = first.iter().chain(&later).collect();
        assert_eq!(all.len(), 7);
        assert!(all.iter().all(|text| text.contains(", so ")), "with the work");
        let blend = Blend { drills: 0.0, questions: 1.0, hurried: 0.0 };
        for i in 0..200 {
            let text = source.document(None, i, blend);
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines.len() == 2 && lines[0].ends_with(lines[1]), "a question, said twice: {text}");
        }
        let easier = mix(&[TaskMix::plain("countdown")]).expect("a mix");
        let solved = Blend { drills: 0.0, questions: 0.0, hurried: 0.0 };
        assert!(
            source.document(Some(&easier), 0, solved).contains("try"),
            "another mix comes with its solutions"
        );
        assert!(solve(problems(5).into_iter(), 1).unwrap_err().to_string().contains("only 0 problems"));
    }
}
