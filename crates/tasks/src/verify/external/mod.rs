//! Verifiers and problem sources that are other programs.
//!
//! The command is started `workers` times, without a shell. Each process reads one JSON object a line and answers
//! one a line, in order:
//!
//! ```text
//! → {"id": 7, "problem": {"task": …, "prompt": …, "answer": …, "meta": …}, "completion": "…", "answer": "42"}
//! ← {"id": 7, "score": 1.0, "reason": "right"}
//! → {"cmd": "problems", "task": "chain_sum", "split": "train", "seed": 1, "start": 0, "count": 2}
//! ← {"prompt": "…", "answer": "…", "meta": {…}}
//! ← {"prompt": "…", "answer": "…", "meta": {…}}
//! ```
//!
//! `answer` is the completion's one answer, or null; `score` is from 0 to 1, `reason` optional. A problem source
//! that cannot deliver answers `{"error": "…"}`.
//!
//! A worker that ends, hangs beyond the time-out or answers nonsense costs that sample a zero, is counted in
//! [`Stats`], killed and started again after a pause that doubles with every failure in a row. Nothing it does ends a run.

mod worker;

use crate::verify::{Verdict, Verifier, answer_of};
use crate::{Error, Problem, Result, Split};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use worker::{Failure, Worker};

/// Environment variables that every external program is given, where we have them: those without which programs are not found,
/// cannot write a temporary file, or print in another language.
pub const ALWAYS_GIVEN: [&str; 9] =
    ["PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "VIRTUAL_ENV"];

/// How an external program is run.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Processes side by side.
    pub workers: usize,
    /// For one answer.
    pub timeout: Duration,
    /// Added to the first answer of a process, which may have much to import.
    pub startup: Duration,
    /// Environment variables that it is given beside [`ALWAYS_GIVEN`]: whatever else is in ours, keys and tokens among it, it
    /// does not see.
    pub env: Vec<String>,
    /// Whether completions without an answer score zero unseen. With `false` the command may judge the whole
    /// completion; a blank completion scores zero all the same.
    pub needs_answer: bool,
}

impl Command {
    /// `argv` with two workers, ten seconds an answer and a minute to start.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Command {
        Command {
            argv: argv.into_iter().map(Into::into).collect(),
            workers: 2,
            timeout: Duration::from_secs(10),
            startup: Duration::from_secs(60),
            env: Vec::new(),
            needs_answer: true,
        }
    }

    fn fail(&self, what: impl Into<String>) -> Error {
        Error::External { command: self.argv.join(" "), what: what.into() }
    }
}

/// What went wrong so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Answers asked for.
    pub asked: u64,
    /// Processes that ended or could not be started.
    pub crashes: u64,
    /// Answers that did not come in time.
    pub timeouts: u64,
    /// Answers that were not what the protocol says.
    pub nonsense: u64,
}

impl Stats {
    /// Answers that could not be had, and so scored zero.
    pub fn failed(&self) -> u64 {
        self.crashes + self.timeouts + self.nonsense
    }
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Stats { crashes, timeouts, nonsense, .. } = self;
        write!(f, "{crashes} crashes, {timeouts} time-outs, {nonsense} answers that were none")
    }
}

/// A running external command: a verifier, and a source of problems.
pub struct ExternalVerifier {
    command: Command,
    idle: Mutex<Vec<Worker>>,
    freed: Condvar,
    next_id: AtomicU64,
    stats: Mutex<Stats>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ExternalVerifier {
    /// Starts one process, to find a missing program now, and the others when they are needed.
    pub fn start(command: Command) -> Result<ExternalVerifier> {
        if command.argv.is_empty() || command.workers == 0 {
            return Err(command.fail("it needs a program and at least one worker"));
        }
        if let Some(name) = command.env.iter().find(|name| std::env::var_os(name).is_none()) {
            return Err(command
                .fail(format!("it is to be given the environment variable {name:?}, which is not set")));
        }
        let mut workers: Vec<Worker> = (0..command.workers).map(|_| Worker::new(&command)).collect();
        let first = workers.last_mut().expect("at least one");
        first.start().map_err(|e| command.fail(format!("cannot be started: {e}")))?;
        Ok(ExternalVerifier {
            command,
            idle: Mutex::new(workers),
            freed: Condvar::new(),
            next_id: AtomicU64::new(0),
            stats: Mutex::default(),
        })
    }

    /// Counts since the start.
    pub fn stats(&self) -> Stats {
        *lock(&self.stats)
    }

    /// Draws problems `start..start + count` of the command's `task`. The same arguments must give the same problems,
    /// and the two splits must not share any; both are the command's duty.
    ///
    /// # Errors
    /// A crash, a hang, an `{"error": …}`, or a line that is not a problem.
    pub fn problems(
        &self,
        task: &str,
        split: Split,
        seed: u64,
        start: u64,
        count: usize,
    ) -> Result<Vec<Problem>> {
        let request = json!({"cmd": "problems", "task": task, "split": split, "seed": seed, "start": start, "count": count});
        let read = |line: Value| -> std::result::Result<Problem, Failure> {
            if let Some(error) = line["error"].as_str() {
                return Err(Failure::Nonsense(format!("it says: {error}")));
            }
            let mut problem: Problem =
                serde_json::from_value(line).map_err(|e| Failure::Nonsense(format!("not a problem: {e}")))?;
            if problem.prompt.trim().is_empty() {
                return Err(Failure::Nonsense("a problem without a prompt".into()));
            }
            problem.task = task.to_owned();
            problem.solution.get_or_insert_default();
            Ok(problem)
        };
        self.with_worker(|worker| {
            worker.send(&request)?;
            (0..count).map(|_| worker.receive().and_then(&read)).collect::<std::result::Result<Vec<_>, _>>()
        })
        .map_err(|failure| self.command.fail(format!("task `{task}`: {failure}")))
    }

    /// Waits for an idle worker, uses it, counts and cleans up its failure.
    fn with_worker<T>(
        &self,
        work: impl FnOnce(&mut Worker) -> std::result::Result<T, Failure>,
    ) -> std::result::Result<T, Failure> {
        let mut idle = lock(&self.idle);
        let mut worker = loop {
            match idle.pop() {
                Some(worker) => break worker,
                None => idle = self.freed.wait(idle).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(idle);
        let outcome = work(&mut worker);
        {
            let mut stats = lock(&self.stats);
            stats.asked += 1;
            match &outcome {
                Ok(_) => worker.succeeded(),
                Err(Failure::Crash(_)) => stats.crashes += 1,
                Err(Failure::Timeout(_)) => stats.timeouts += 1,
                Err(Failure::Nonsense(_)) => stats.nonsense += 1,
            }
        }
        if outcome.is_err() {
            worker.kill();
        }
        lock(&self.idle).push(worker);
        self.freed.notify_one();
        outcome
    }

    fn ask(
        &self,
        problem: &Problem,
        completion: &str,
        answer: Option<&str>,
    ) -> std::result::Result<Verdict, Failure> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = json!({"id": id, "problem": problem, "completion": completion, "answer": answer});
        self.with_worker(|worker| {
            worker.send(&request)?;
            let reply = worker.receive()?;
            if reply["id"].as_u64() != Some(id) {
                return Err(Failure::Nonsense(format!("an answer with id {} to question {id}", reply["id"])));
            }
            match reply["score"].as_f64() {
                Some(score) if (0.0..=1.0).contains(&score) => {
                    let reason = reply["reason"].as_str().unwrap_or("").to_owned();
                    Ok(Verdict { score: score as f32, reason })
                }
                _ => Err(Failure::Nonsense(format!("score {} is no number from 0 to 1", reply["score"]))),
            }
        })
    }
}

impl Verifier for ExternalVerifier {
    fn score(&self, problem: &Problem, completion: &str) -> Verdict {
        let answer = answer_of(completion);
        if completion.trim().is_empty() || answer == Some("") {
            return Verdict::wrong("the answer is empty");
        }
        if answer.is_none() && self.command.needs_answer {
            return Verdict::wrong("there is not exactly one answer after the reasoning");
        }
        self.ask(problem, completion, answer).unwrap_or_else(|failure| Verdict::wrong(failure.to_string()))
    }

    fn failures(&self) -> Option<(u64, String)> {
        let stats = self.stats();
        (stats.failed() > 0).then(|| (stats.failed(), format!("of {} asked: {stats}", stats.asked)))
    }

    /// One thread for each worker; verdicts come back in the order of `items`.
    fn score_batch(&self, items: &[(&Problem, &str)]) -> Vec<Verdict> {
        let next = AtomicUsize::new(0);
        let verdicts: Vec<Mutex<Option<Verdict>>> = items.iter().map(|_| Mutex::new(None)).collect();
        std::thread::scope(|scope| {
            for _ in 0..self.command.workers.min(items.len()) {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some((problem, completion)) = items.get(i) else { break };
                        *lock(&verdicts[i]) = Some(self.score(problem, completion));
                    }
                });
            }
        });
        verdicts.iter().map(|v| lock(v).take().expect("every index was taken by a thread")).collect()
    }
}

#[cfg(test)]
mod tests;
