//! The problems of a run and what scores them, as the recipe says: the built-in mix, a file, or a command.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use data::{Conversation, Message, hash_bytes, permutation};
use tasks::corpus::Blend;
use tasks::verify::http::{Endpoint, HttpVerifier};
use tasks::verify::{Beside, MostWords, Script, external};
use tasks::{
    AnswerPlace, Mix, MixEntry, NamedReward, Problem, RewardConfig, Scoring, Split, Style, Verifier, corpus,
    placed,
};

use crate::TrainError;
use crate::source::{
    HELD_OUT, PROMPT_SLOT, Problems, RewardChoice, TaskMix, TooLong, Verifier as VerifierChoice,
    VerifierCommand,
};

/// Where at most one problem of a list in so many has a worked solution, these are to show the form, and none of them is held out.
const FEW_WORKED_ONE_IN: usize = 10;

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
    /// The same before they are put.
    plain: Vec<(usize, Problem)>,
    /// All that have a worked solution, each with it, where the recipe says how many there are or a list has others too.
    solved: Option<Vec<Problem>>,
    /// Whether the recipe says how many there are.
    few: bool,
    rewards: Vec<NamedReward>,
    verifier: Arc<dyn Verifier>,
    /// The same for answers in our tags.
    unplaced: Arc<dyn Verifier>,
    seed: u64,
    too_long: TooLong,
}

/// The held-out problems as some models are asked them.
pub struct Asked {
    /// Each with its number, as [`ProblemSource::numbered_held_out`] has them.
    pub problems: Vec<(usize, Problem)>,
    /// What scores the answers.
    pub verifier: Arc<dyn Verifier>,
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
        Ok(Form { place: p.answer.parse()?, system: p.system.clone(), around: around(p.prompt.as_deref()) })
    }

    fn put(&self, mut problem: Problem) -> Problem {
        if let Some((before, behind)) = &self.around {
            problem.prompt = format!("{before}{}{behind}", problem.prompt);
        }
        problem.system = problem.system.or_else(|| self.system.clone());
        problem
    }
}

/// What stands before and behind a problem's text.
fn around(prompt: Option<&str>) -> Option<(String, String)> {
    let (before, behind) = prompt?.split_once(PROMPT_SLOT)?;
    Some((before.to_owned(), behind.to_owned()))
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

/// A verifier as a recipe wants it.
fn made(choice: &VerifierChoice) -> Result<Arc<dyn Verifier>, TrainError> {
    Ok(match choice {
        VerifierChoice::Named(name) => tasks::verifier(name)?.into(),
        VerifierChoice::Command(c) => Arc::new(start(c)?),
        VerifierChoice::Http(h) => Arc::new(HttpVerifier::open(Endpoint {
            url: h.url.clone(),
            timeout: Duration::from_secs_f64(h.timeout_seconds),
            retries: h.retries,
            batch: h.batch,
            workers: h.workers,
        })?),
        VerifierChoice::MostWords(m) => Arc::new(MostWords(m.most_words)),
        VerifierChoice::Script(s) => Arc::new(Script::new(&s.script)?),
    })
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

/// Those of a list that have a worked solution, where others have none: who learns to work does not learn to guess beside it.
fn worked_of<'a>(list: impl ExactSizeIterator<Item = &'a Problem>) -> Option<Vec<&'a Problem>> {
    let all = list.len();
    let worked: Vec<&Problem> = list.filter(|p| corpus::reasoning(p, Style::Careful, 0).is_some()).collect();
    (!worked.is_empty() && worked.len() < all).then_some(worked)
}

type Numbered = Vec<(usize, Problem)>;

/// Parts a file's problems into those to train on and exactly `held_out` others, with their numbers. Which they are depends
/// on their prompts and the seed alone, but for a handful that alone have worked solutions, which come last. A prompt that stands in the file twice is on one side, and held out once.
fn split(all: Vec<Problem>, held_out: Option<usize>, seed: u64) -> Result<(Numbered, Numbered), String> {
    let mut few = worked_of(all.iter()).unwrap_or_default();
    few.truncate(if few.len() * FEW_WORKED_ONE_IN <= all.len() { few.len() } else { 0 });
    let few: HashSet<&str> = few.iter().map(|p| p.prompt.as_str()).collect();
    let mut prompts: Vec<&str> = all.iter().map(|p| p.prompt.as_str()).collect();
    prompts.sort_by_key(|p| (few.contains(p), hash_bytes(p.as_bytes(), seed), *p));
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

/// What a program draws, with problems of our own tasks among them where there is a mix too: to train on, held out, and what judges
/// them.
fn of_program(p: &Problems, seed: u64) -> Result<(Numbered, Numbered, Arc<dyn Verifier>), TrainError> {
    let (command, env) = (p.command.clone(), p.env.clone());
    let external = start(&VerifierCommand { command, env, workers: 2, timeout_seconds: 10.0 })?;
    let own = if p.mix.is_empty() { None } else { Some(mix(&p.mix)?) };
    let draw = |split, count: usize| -> Result<Numbered, TrainError> {
        let each = count.div_ceil((p.tasks.len() + p.mix.len()).max(1));
        let mut lists = Vec::new();
        for task in &p.tasks {
            lists.push(external.problems(task, split, seed, 0, each)?.into_iter());
        }
        for first in (0..p.mix.len()).map(|i| (i * each) as u64) {
            let problems = own.iter().flat_map(|m| (first..).take(each).map(|i| m.problem(split, seed, i)));
            lists.push(problems.collect::<Vec<_>>().into_iter());
        }
        // Tasks in turn, so that any part of the list is a fair mix.
        let turns = (0..each).flat_map(|_| lists.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>());
        Ok((1..).zip(turns.take(count)).collect())
    };
    let (train, held) = (draw(Split::Train, p.count)?, draw(Split::HeldOut, p.held_out.unwrap_or(HELD_OUT))?);
    let verifier: Arc<dyn Verifier> = match own {
        Some(_) => {
            let tasks = p.mix.iter().map(|entry| entry.task.clone()).collect();
            Arc::new(Beside { tasks, others: external })
        }
        None => Arc::new(external),
    };
    Ok((train, held, verifier))
}

impl ProblemSource {
    /// Draws or reads the problems.
    pub fn open(p: &Problems, seed: u64) -> Result<ProblemSource, TrainError> {
        let form = Form::of(p)?;
        let mut of_command: Option<Arc<dyn Verifier>> = None;
        let (origin, held_out) = if let Some(path) = &p.jsonl {
            let (train, held) = split(tasks::load_problems(path)?, p.held_out, seed)
                .map_err(|what| TrainError::Recipe(format!("{}: {what}", path.display())))?;
            (Origin::List(train), held)
        } else if !p.command.is_empty() {
            let (train, held, verifier) = of_program(p, seed)?;
            of_command = Some(verifier);
            (Origin::List(train), held)
        } else {
            let mix = mix(&p.mix)?;
            let drawn =
                (0..p.held_out.unwrap_or(HELD_OUT) as u64).map(|i| mix.problem(Split::HeldOut, seed, i));
            let held = (1..).zip(drawn).collect();
            (Origin::Mix(mix), held)
        };
        let unplaced: Arc<dyn Verifier> = match (&p.verifier, of_command) {
            (Some(choice), _) => made(choice)?,
            (None, Some(external)) => external,
            (None, None) => tasks::verifier("task")?.into(),
        };
        let reward = |r: &RewardChoice| -> Result<NamedReward, TrainError> {
            let verifier = placed(form.place.clone(), made(&r.verifier)?);
            // What looks at all of a completion is not shown an answer alone.
            let verifier = if r.verifier.reads_all() { made(&r.verifier)? } else { verifier };
            Ok(NamedReward { name: r.name.clone(), weight: r.weight, verifier })
        };
        let rewards = p.reward.iter().map(reward).collect::<Result<Vec<_>, TrainError>>()?;
        let verifier = placed(form.place.clone(), Arc::clone(&unplaced));
        let plain = held_out;
        let held_out: Numbered = plain.iter().map(|(n, p)| (*n, form.put(p.clone()))).collect();
        if let Origin::List(train) = &origin
            && let Some((problem, fault)) =
                train.iter().chain(&held_out).find_map(|(_, p)| Some((p, verifier.fault(p)?)))
        {
            let what = format!("no answer could score on the problem {:?}: {fault}", problem.prompt);
            return Err(TrainError::Recipe(what));
        }
        let owned = |worked: Vec<&Problem>| worked.into_iter().cloned().collect();
        let solved = match (p.solved, &origin) {
            (None, Origin::List(list)) => worked_of(list.iter().map(|(_, p)| p)).map(owned),
            (None, Origin::Mix(_)) => None,
            (Some(n), Origin::List(list)) => Some(solve(list.iter().map(|(_, p)| p.clone()), n)?),
            (Some(n), Origin::Mix(mix)) => {
                Some(solve((FIRST_SOLVED..).take(n).map(|i| mix.problem(Split::Train, seed, i)), n)?)
            }
        };
        let too_long = p.too_long;
        Ok(ProblemSource {
            origin,
            form,
            held_out,
            plain,
            solved,
            few: p.solved.is_some(),
            rewards,
            verifier,
            unplaced,
            seed,
            too_long,
        })
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

    /// A held-out problem's own text, whatever it is put in.
    pub fn plain_prompt(&self, number: usize) -> &str {
        self.plain.iter().find(|(n, _)| *n == number).map_or("", |(_, p)| &p.prompt)
    }

    /// The held-out problems put in another way and answered in another place, where either is stated.
    ///
    /// # Errors
    /// A place that is none.
    pub fn asked_so(&self, answer: Option<&str>, prompt: Option<&str>) -> Result<Asked, TrainError> {
        let form = Form {
            place: answer.map_or(Ok(self.form.place.clone()), str::parse)?,
            system: self.form.system.clone(),
            around: if prompt.is_some() { around(prompt) } else { self.form.around.clone() },
        };
        Ok(Asked {
            problems: self.plain.iter().map(|(n, p)| (*n, form.put(p.clone()))).collect(),
            verifier: placed(form.place, Arc::clone(&self.unplaced)),
        })
    }

    /// What is right alone.
    pub fn accuracy(&self) -> Scoring<'_> {
        Scoring { verifier: self.verifier(), weights: &RewardConfig::USUAL, others: &[] }
    }

    /// What is right, the form, and the rewards of the recipe.
    pub fn scoring<'a>(&'a self, weights: &'a RewardConfig) -> Scoring<'a> {
        Scoring { verifier: self.verifier(), weights, others: &self.rewards }
    }

    /// The rewards of the recipe beside the verifier's.
    pub fn rewards(&self) -> &[NamedReward] {
        &self.rewards
    }

    /// Answers that could not be judged so far, by the verifier or for a reward, and what went wrong with them.
    pub fn failures(&self) -> Option<(u64, String)> {
        let all = std::iter::once(&self.verifier).chain(self.rewards.iter().map(|r| &r.verifier));
        let (counts, words): (Vec<u64>, Vec<String>) = all.filter_map(|v| v.failures()).unzip();
        (!counts.is_empty()).then(|| (counts.iter().sum(), words.join("; ")))
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
                let solved = mix.or((!self.few).then_some(unsolved));
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
                if self.few || (blend.questions > 0.0 && rng.chance(blend.questions)) {
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

    /// Rows without a solution teach no answers out of nothing where others are worked; where none is, answers are all there is.
    #[test]
    fn rows_without_work_are_not_learnt_beside_worked_ones() {
        let with = |solutions: &[&str]| -> Vec<Problem> {
            let of = |(i, s): (usize, &&str)| {
                let record = serde_json::json!({"prompt": format!("p{i}"), "answer": "1", "solution": s});
                serde_json::from_value(record).expect("a problem")
            };
            solutions.iter().enumerate().map(of).collect()
        };
        let worked = |solutions: &[&str]| {
            worked_of(with(solutions).iter()).map(|w| w.iter().map(|p| p.prompt.clone()).collect::<Vec<_>>())
        };
        assert_eq!(worked(&["", "so", "", "thus"]), Some(vec!["p1".to_owned(), "p3".to_owned()]));
        assert_eq!((worked(&["", ""]), worked(&["so", "thus"])), (None, None));
        // A handful is there to be learnt from: none of it is held out.
        let handful: Vec<&str> = (0..200).map(|i| if i % 25 == 0 { "so" } else { "" }).collect();
        for seed in 0..5 {
            let (train, held) = split(with(&handful), Some(100), seed).expect("a split");
            assert_eq!(
                (worked_of(train.iter().map(|(_, p)| p)).map(|w| w.len()), held.len()),
                (Some(8), 100)
            );
        }
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
