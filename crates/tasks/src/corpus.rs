//! Problems and worked solutions as training text.

use crate::problems::countdown;
use crate::rng::{Rng, hash_text};
use crate::steps::{Op, worked};
use crate::verify::AnswerPlace;
use crate::{Mix, Problem, Split, Style, task};

/// The usual share of [`document`]s that are drills.
pub const DRILL_SHARE: f64 = 0.15;

/// Openings of the three parts of a pretraining document: question, work, result.
const HEADINGS: [[&str; 3]; 5] = [
    ["Question : ", "Work : ", "Result : "],
    ["Problem : ", "Solution : ", "Answer : "],
    ["Exercise : ", "Steps : ", "Result : "],
    ["", "We work it out . ", "The answer is "],
    ["", "", "So the result is "],
];

/// What a pretraining corpus is made of beside solved problems.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Blend {
    /// The share of documents that are drills.
    pub drills: f64,
    /// The share of documents that are questions alone.
    pub questions: f64,
    /// Of the solutions, the share without the work.
    pub hurried: f64,
}

impl Default for Blend {
    fn default() -> Self {
        Blend { drills: DRILL_SHARE, questions: 0.0, hurried: 0.0 }
    }
}

/// Training text number `index` of a pretraining corpus: a drill, a question of the `unsolved` mix, or a problem of the `solved`
/// one with its solution; without a solved mix a question in its place. All are of the train half.
pub fn document(unsolved: &Mix, solved: Option<&Mix>, seed: u64, index: u64, blend: Blend) -> String {
    let mut rng = Rng::new(&[seed, index, hash_text("document")]);
    let part = rng.unit();
    if part < blend.drills {
        return drill(solved.unwrap_or(unsolved), seed, index);
    }
    let Some(solved) = solved.filter(|_| part >= blend.drills + blend.questions) else {
        return question(&unsolved.problem(Split::Train, seed, index), &mut rng);
    };
    let style = if rng.chance(blend.hurried) { Style::Hurried } else { Style::Careful };
    pretrain_document(&solved.problem(Split::Train, seed, index), style, &mut rng)
}

/// A question without its solution or answer, said again a line below, as text quotes text: copying is what a solver does
/// first, and nothing else of a question can be learnt from it.
pub fn question(problem: &Problem, rng: &mut Rng) -> String {
    let (heading, prompt) = (rng.pick(&HEADINGS)[0], &problem.prompt);
    format!("{heading}{prompt}\n{prompt}\n")
}

/// A problem, its solution and its answer as prose, in one of a few wordings; without the tags of a completion.
pub fn pretrain_document(problem: &Problem, style: Style, rng: &mut Rng) -> String {
    let [question, work, result] = rng.pick(&HEADINGS);
    let (prompt, answer) = (&problem.prompt, &problem.answer);
    match reasoning(problem, style, rng.next_u64()) {
        Some(solution) => format!("{question}{prompt}\n{work}{solution}\n{result}{answer} .\n"),
        None => format!("{question}{prompt}\n{result}{answer} .\n"),
    }
}

/// The completion that a careful or hurried solver writes: `<think>…</think><answer>…</answer>`, as a target for
/// supervised fine-tuning. Where no worked solution is known the thought is empty, for reinforcement to fill.
pub fn completion(problem: &Problem, style: Style, seed: u64) -> String {
    completion_in(&AnswerPlace::Tags, problem, style, seed).expect("tags can be written")
}

/// The same with the answer where it is expected; `None` where only a pattern tells that place.
pub fn completion_in(place: &AnswerPlace, problem: &Problem, style: Style, seed: u64) -> Option<String> {
    place.write(&reasoning(problem, style, seed).unwrap_or_default(), &problem.answer)
}

/// The problem's own solution, which a hurried solver skips, or that of its built-in task. An empty one says that none is
/// known: problems of others, who may name a built-in task with numbers that it would never draw, come with one.
pub fn reasoning(problem: &Problem, style: Style, seed: u64) -> Option<String> {
    match &problem.solution {
        Some(solution) if style == Style::Hurried || solution.is_empty() => None,
        Some(solution) => Some(solution.clone()),
        None => task(&problem.task).ok().map(|t| t.solution(problem, style, seed)),
    }
}

/// A short document of facts of one kind, each in the very form in which worked solutions of the mix use it.
pub fn drill(mix: &Mix, seed: u64, index: u64) -> String {
    let mut rng = Rng::new(&[seed, index, hash_text("drill")]);
    let countdown = mix.entries().iter().any(|e| e.task == "countdown");
    // Countdown's facts are the most, so they come twice as often.
    let kinds: &[usize] =
        if countdown { &[0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 9] } else { &[0, 1, 2, 3, 4, 8, 9] };
    let kind = *rng.pick(kinds);
    let lines: Vec<String> = (0..if kind >= 8 { 3 } else { 6 }).map(|_| fact(kind, &mut rng)).collect();
    lines.join("\n") + "\n"
}

fn fact(kind: usize, rng: &mut Rng) -> String {
    let (a, b) = (rng.range(0, 9), rng.range(0, 9));
    match kind {
        0 if rng.chance(0.5) => format!("{a} + {b} + 1 = {} .", a + b + 1),
        0 => format!("{a} + {b} = {} .", a + b),
        1 => {
            // Column differences: ten is borrowed when the digit is too small.
            let borrow = i64::from(rng.chance(0.4));
            let top = if a < b + borrow { a + 10 } else { a };
            let minus_one = if borrow == 1 { " - 1" } else { "" };
            format!("{top} - {b}{minus_one} = {} .", top - b - borrow)
        }
        2 if rng.chance(0.5) => {
            let carry = rng.range(1, 8);
            format!("{a} * {b} + {carry} = {} .", a * b + carry)
        }
        2 => format!("{a} * {b} = {} .", a * b),
        3 => {
            let divisor = rng.range(2, 9);
            let part = rng.range(0, divisor * 10 - 1);
            format!("{part} = {divisor} * {} + {} .", part / divisor, part % divisor)
        }
        4 => {
            // Which number is larger, and whether the first column borrows.
            let step = worked(rng.range(10, 120), Op::Sub, rng.range(10, 99));
            format!("{} .", step.split(" , ").next().expect("split yields a part"))
        }
        5 => {
            let last = rng.range(2, 30);
            let factor = rng.range(1, 200 / last);
            format!("{} / {last} = {factor} .", last * factor)
        }
        6 => countdown::drill_needs(rng),
        7 => countdown::drill_pair(rng),
        8 => {
            let (x, y) = (rng.range(-99, 199), rng.range(10, 99));
            format!("{} .", worked(x, if rng.chance(0.5) { Op::Add } else { Op::Sub }, y))
        }
        _ => {
            let (x, y) = (rng.range(10, 99), rng.range(2, 9));
            if rng.chance(0.5) {
                format!("{} .", worked(x, Op::Mul, y))
            } else {
                format!("{} .", worked(x * y, Op::Div, y))
            }
        }
    }
}

/// An estimate of the tokens of `text` under a tokenizer that never merges digits and knows the words: one for each
/// digit, word and run of signs.
pub fn token_estimate(text: &str) -> usize {
    let mut count = 0;
    let mut previous = ' ';
    for c in text.chars() {
        let class = |c: char| match c {
            c if c.is_whitespace() => 0,
            c if c.is_alphabetic() => 1,
            _ => 2,
        };
        let continues = class(c) == class(previous) && !c.is_ascii_digit() && !previous.is_ascii_digit();
        count += usize::from(class(c) != 0 && !continues);
        previous = c;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A solution that comes with the problem is what is learnt, and an unknown task without one still has an answer.
    #[test]
    fn problems_may_bring_their_own_solution() {
        let line = r#"{"task":"legs","prompt":"3 cats?","answer":"12","solution":"cat 3 * 4 = 12 ."}"#;
        let mut problem: Problem = serde_json::from_str(line).unwrap();
        let written = |p: &Problem, style| completion(p, style, 0);
        assert_eq!(written(&problem, Style::Careful), "<think> cat 3 * 4 = 12 .</think><answer>12</answer>");
        assert_eq!(written(&problem, Style::Hurried), "<think></think><answer>12</answer>");
        assert!(
            pretrain_document(&problem, Style::Careful, &mut Rng::new(&[1])).contains("cat 3 * 4 = 12 .")
        );
        problem.solution = None;
        assert_eq!(written(&problem, Style::Careful), "<think></think><answer>12</answer>");
    }
}
