//! Countdown: make the target from all the numbers, each used once, with + − * and exact division.
//!
//! # How the search is written
//! ```text
//! numbers 25 , 22 , 4 .
//! try 25 : need 78 - 25 = 53 or 78 + 25 = 103 . 22 + 4 = 26 , 22 - 4 = 18 , 22 * 4 = 88 no .
//! try 22 : need 78 - 22 = 56 or 78 + 22 = 100 . 25 + 4 = 29 , 25 - 4 = 21 , 25 * 4 = 100 yes , 100 - 22 = 78 .
//! ```
//! Backwards: one number is taken as the last operand; the target undone by it gives the few values that the other
//! two must make; their sum, difference, product and exact quotient are listed in that order until one is
//! needed (`yes`, then the last operation is said forward) or the list ends (`no`). Three tries cover every
//! expression that does not end in a division; where they all fail, a second round asks for those:
//! ```text
//! divide 30 : need 30 / 6 = 5 or 6 * 30 = 180 . 12 - 7 = 5 yes , 30 / 5 = 6 .
//! ```
//! There a dividend above 250 is only named where it is the right one.
//!
//! Every written token follows from the prompt and what stands before it: which number comes next and which of two is
//! the larger are read off the first line, and the rest are facts about two small numbers, or whether a number just
//! written is among the needed ones. A model has nothing to guess, so whatever it gets wrong it can learn.
//!
//! What is needed is written as the statement that finds it, because that is the same skill as listing what two numbers
//! make. Writing the last operation in its place (`need 21 + 25 or 71 - 25`) is shorter, but a small model then got one
//! need in four wrong, and learnt the statements themselves more slowly.
//!
//! Products above 250 are called `big`, as they can only matter for a division at the end. A try takes about 45
//! tokens, where digits, words and signs count one token each; five problems of eight end in the first.
//!
//! With two numbers a solution is a single list, with four the first try is the one that leads on.

use crate::problem::{Key, draw, meta_numbers};
use crate::problems::listed;
use crate::rng::Rng;
use crate::steps::{Op, stated};
use crate::{Level, Problem, Split, Style, Task};
use std::collections::BTreeSet;

pub(super) struct Countdown;

const PROMPTS: [&str; 3] =
    ["Use {n} to make {t}.", "Make {t} from {n}.", "Reach {t} with {n}, each used once."];

/// Above this a product is not worked out.
const BIG: i64 = 250;

/// A value that the other numbers may make, the statement that finds it, and the operation that then ends in the target.
#[derive(Clone, Debug, PartialEq)]
struct Need {
    value: i64,
    text: String,
    op: Op,
    /// `last op value` instead of `value op last`.
    swapped: bool,
}

impl Need {
    /// `a undo b`, where it is an integer.
    fn find(a: i64, undo: Op, b: i64, op: Op, swapped: bool) -> Option<Need> {
        Some(Need { value: undo.apply(a, b)?, text: stated(a, undo, b), op, swapped })
    }

    /// The last operation, where `value` stands for what the other numbers make.
    fn join(&self, value: &str, last: i64) -> String {
        if self.swapped {
            format!("{last} {} {value}", self.op)
        } else {
            format!("{value} {} {last}", self.op)
        }
    }
}

/// What the others must make so that `last` completes `target` by +, − or *; `target != last`.
fn needs(target: i64, last: i64) -> Vec<Need> {
    let first = if target > last {
        Need::find(target, Op::Sub, last, Op::Add, false)
    } else {
        Need::find(last, Op::Sub, target, Op::Sub, true)
    };
    let others = [
        Need::find(target, Op::Add, last, Op::Sub, false),
        Need::find(target, Op::Div, last, Op::Mul, false),
    ];
    [first].into_iter().chain(others).flatten().collect()
}

/// What the others must make so that a division by `last`, or of it, completes `target`.
fn division_needs(target: i64, last: i64) -> Vec<Need> {
    let of = Need::find(last, Op::Div, target, Op::Div, true);
    let by = Need::find(target, Op::Mul, last, Op::Div, false);
    [of, by].into_iter().flatten().collect()
}

/// What two numbers make, larger operand first.
fn pair_values(a: i64, b: i64) -> Vec<(Op, i64)> {
    let (a, b) = (a.max(b), a.min(b));
    let mut out = vec![(Op::Add, a + b)];
    if a > b {
        out.push((Op::Sub, a - b));
    }
    out.push((Op::Mul, a * b));
    if b > 1 && a % b == 0 {
        out.push((Op::Div, a / b));
    }
    out
}

/// The list of what two numbers make, up to the first needed value: the text, and the index of the need met.
/// Products above `limit` that nothing needs are called big.
fn list_pair(a: i64, b: i64, needed: &[i64], limit: i64) -> (String, Option<(usize, Op)>) {
    let (a, b) = (a.max(b), a.min(b));
    let mut parts = Vec::new();
    for (op, value) in pair_values(a, b) {
        if let Some(which) = needed.iter().position(|&n| n == value) {
            parts.push(format!("{a} {op} {b} = {value} yes"));
            return (parts.join(" , "), Some((which, op)));
        }
        let big = op == Op::Mul && value > limit;
        parts.push(if big { format!("{a} {op} {b} big") } else { format!("{a} {op} {b} = {value}") });
    }
    (parts.join(" , "), None)
}

/// What to look for with `last` as the last number.
fn opening(verb: &str, last: i64, needs: &[Need]) -> String {
    let ways: Vec<&str> = needs.iter().map(|n| n.text.as_str()).collect();
    format!("{verb} {last} : need {}", ways.join(" or "))
}

/// The last operation said forward, and the whole expression.
fn closing(target: i64, need: &Need, last: i64, (a, op, b): (i64, Op, i64)) -> Found {
    let check = format!("{} = {target} .", need.join(&need.value.to_string(), last));
    (check, need.join(&format!("( {a} {op} {b} )"), last))
}

/// A piece of a search: its text and, where it succeeds, the expression.
fn attempt(target: i64, last: i64, a: i64, b: i64) -> (String, Option<String>) {
    let needs = needs(target, last);
    let needed: Vec<i64> = needs.iter().map(|n| n.value).collect();
    let (list, met) = list_pair(a, b, &needed, BIG.max(target + last));
    let text = format!("{} . {list}", opening("try", last, &needs));
    let Some((which, op)) = met else { return (text + " no .", None) };
    let (check, expression) = closing(target, &needs[which], last, (a.max(b), op, a.min(b)));
    (format!("{text} , {check}"), Some(expression))
}

/// The same for a division at the end, after all tries have failed.
fn attempt_division(target: i64, last: i64, a: i64, b: i64) -> (String, Option<String>) {
    let (a, b) = (a.max(b), a.min(b));
    let made = |need: &Need| pair_values(a, b).into_iter().find(|(_, v)| *v == need.value);
    let mut needs = division_needs(target, last);
    needs.retain(|need| need.value <= BIG || made(need).is_some());
    let met = needs.iter().find_map(|need| Some((need, made(need)?.0)));
    if needs.is_empty() {
        return (format!("divide {last} no ."), None);
    }
    let text = opening("divide", last, &needs);
    let Some((need, op)) = met else { return (text + " no .", None) };
    let (check, expression) = closing(target, need, last, (a, op, b));
    (format!("{text} . {} yes , {check}", stated(a, op, b)), Some(expression))
}

/// What a try needs, for practice: `need 78 - 25 = 53 or 78 + 25 = 103`, with a quotient more often than by chance.
pub(crate) fn drill_needs(rng: &mut Rng) -> String {
    let last = rng.range(2, 30);
    let other = rng.range(1, 199);
    let other = other + i64::from(other >= last);
    let target = if rng.chance(0.3) { last * rng.range(2, 200 / last) } else { other };
    let needs = needs(target, last);
    format!("{} .", opening("try", last, &needs))
}

/// What two numbers make, for practice: `22 + 4 = 26 , 22 - 4 = 18 , 22 * 4 = 88`.
pub(crate) fn drill_pair(rng: &mut Rng) -> String {
    list_pair(rng.range(1, 30), rng.range(1, 30), &[], BIG).0 + " ."
}

/// The whole search with three numbers.
fn search_three(numbers: &[i64], target: i64) -> Option<Found> {
    let mut order = numbers.to_vec();
    order.sort_unstable_by(|a, b| b.cmp(a));
    let listed: Vec<String> = order.iter().map(i64::to_string).collect();
    let mut text = format!("numbers {} .", listed.join(" , "));
    for round in [attempt, attempt_division] {
        for (i, &last) in order.iter().enumerate().filter(|(_, last)| **last != target) {
            let rest = without(&order, i);
            let (part, found) = round(target, last, rest[0], rest[1]);
            text = format!("{text} {part}");
            if let Some(expression) = found {
                return Some((text, expression));
            }
        }
    }
    None
}

/// `numbers` without the one at `i`.
fn without(numbers: &[i64], i: usize) -> Vec<i64> {
    numbers.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, &n)| n).collect()
}

/// Every positive integer that `numbers` make in this task's forms.
fn reachable(numbers: &[i64]) -> BTreeSet<i64> {
    if let [a, b] = *numbers {
        return pair_values(a, b).into_iter().map(|(_, v)| v).collect();
    }
    let mut out = BTreeSet::new();
    for (i, &c) in numbers.iter().enumerate() {
        for v in reachable(&without(numbers, i)) {
            for (a, b) in [(v, c), (c, v)] {
                out.extend([Op::Add, Op::Sub, Op::Mul, Op::Div].iter().filter_map(|op| op.apply(a, b)));
            }
        }
    }
    out.retain(|&v| v > 0);
    out
}

/// A worked search for a target and the expression it ends in.
type Found = (String, String);

/// The written search for `target`; `None` where there is no solution.
fn search(numbers: &[i64], target: i64) -> Option<Found> {
    match *numbers {
        [a, b] => {
            let (text, met) = list_pair(a, b, &[target], BIG.max(target));
            met.map(|(_, op)| (text + " .", format!("{} {op} {}", a.max(b), a.min(b))))
        }
        [_, _, _] => search_three(numbers, target),
        _ => numbers.iter().enumerate().filter(|(_, last)| **last != target).find_map(|(i, &last)| {
            let mut ways = needs(target, last);
            ways.extend(division_needs(target, last));
            ways.iter().find_map(|need| {
                let (text, inner) = search(&without(numbers, i), need.value)?;
                let check = format!("{} = {target}", need.join(&need.value.to_string(), last));
                let opening = opening("try", last, std::slice::from_ref(need));
                Some((format!("{opening} . {text} {check} ."), need.join(&format!("( {inner} )"), last)))
            })
        }),
    }
}

impl Task for Countdown {
    fn name(&self) -> &'static str {
        "countdown"
    }

    fn describe(&self) -> &'static str {
        "an expression that makes a target from all the given numbers"
    }

    fn keys(&self) -> &'static [Key] {
        const KEYS: [Key; 3] = [
            Key { name: "numbers", min: 2.0, max: 4.0 },
            Key { name: "max_number", min: 10.0, max: 100.0 },
            Key { name: "max_target", min: 20.0, max: 1000.0 },
        ];
        &KEYS
    }

    /// Numbers uniform, then a target uniform over all that they reach.
    fn problem(&self, split: Split, seed: u64, index: u64, level: &Level) -> Problem {
        let count = level.numbers.unwrap_or(3) as usize;
        let max_number = i64::from(level.max_number.unwrap_or(30));
        let max_target = i64::from(level.max_target.unwrap_or(200));
        draw(self, split, seed, index, |rng| {
            let numbers: Vec<i64> = (0..count).map(|_| rng.range(1, max_number)).collect();
            let targets: Vec<i64> = reachable(&numbers)
                .into_iter()
                .filter(|t| *t <= max_target && !numbers.contains(t))
                .collect();
            if targets.is_empty() {
                return None;
            }
            let target = *rng.pick(&targets);
            let (_, answer) = search(&numbers, target)?;
            let prompt =
                rng.pick(&PROMPTS).replace("{n}", &listed(&numbers)).replace("{t}", &target.to_string());
            Some(Problem {
                task: self.name().into(),
                system: None,
                prompt,
                answer,
                meta: serde_json::json!({ "numbers": numbers, "target": target }),
                verifier: None,
                solution: None,
            })
        })
    }

    fn solution(&self, p: &Problem, style: Style, _seed: u64) -> String {
        let target = p.meta["target"].as_i64().unwrap_or(0);
        match search(&meta_numbers(p, "numbers"), target) {
            Some((text, expression)) if style == Style::Careful && expression == p.answer => text,
            _ => format!("{} = {target} .", p.answer),
        }
    }

    fn verifier(&self) -> &'static str {
        "expression"
    }

    /// The numbers in order of size, and the target.
    fn content(&self, p: &Problem) -> String {
        let mut numbers = meta_numbers(p, "numbers");
        numbers.sort_unstable();
        format!("{numbers:?} {}", p.meta["target"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn reads_as_documented() {
        let (text, expression) = search(&[4, 22, 25], 78).unwrap();
        assert_eq!(
            text,
            "numbers 25 , 22 , 4 . \
             try 25 : need 78 - 25 = 53 or 78 + 25 = 103 . 22 + 4 = 26 , 22 - 4 = 18 , 22 * 4 = 88 no . \
             try 22 : need 78 - 22 = 56 or 78 + 22 = 100 . 25 + 4 = 29 , 25 - 4 = 21 , 25 * 4 = 100 yes , \
             100 - 22 = 78 ."
        );
        assert_eq!(expression, "( 25 * 4 ) - 22");
        let (text, expression) = search(&[30, 7, 12], 6).unwrap();
        let (_, round_two) = text.split_once("no . divide").unwrap();
        assert_eq!(round_two, " 30 : need 30 / 6 = 5 or 6 * 30 = 180 . 12 - 7 = 5 yes , 30 / 5 = 6 .");
        assert_eq!(expression, "30 / ( 12 - 7 )");
    }

    /// The search is complete: whatever three numbers reach, some try ends in it.
    #[test]
    fn three_tries_find_every_reachable_target() {
        let mut rng = Rng::new(&[5]);
        for _ in 0..400 {
            let numbers: Vec<i64> = (0..3).map(|_| rng.range(1, 30)).collect();
            for target in reachable(&numbers).into_iter().filter(|t| *t <= 200 && !numbers.contains(t)) {
                assert!(search(&numbers, target).is_some(), "{numbers:?} {target}");
            }
        }
    }
}
