//! Countdown: make the target from all the numbers, each used once, with + − * and exact division.
//!
//! # How the search is written
//! ```text
//! try 25 : need 46 - 25 = 21 or 46 + 25 = 71 . 22 + 4 = 26 , 22 - 4 = 18 , 22 * 4 = 88 no .
//! try 22 : need 46 - 22 = 24 or 46 + 22 = 68 . 25 + 4 = 29 , 25 - 4 = 21 , 25 * 4 = 100 no .
//! try 4 : …
//! ```
//! Backwards: one number is taken as the last operand; the target undone by it gives the few values that the other
//! two must make; their sum, difference, product and exact quotient are listed in that order until one is
//! needed (`yes`, then the last operation is said forward) or the list ends (`no`). Three tries cover every
//! expression, so nothing depends on luck, and each written token depends on the try it stands in: a fact
//! about two small numbers, or whether a number just written is among the needed ones. The order of the tries is
//! shuffled and only tries that fail precede the one that gives the answer, so the model may learn which number to try
//! first.
//!
//! What is needed is written as the statement that finds it, because that is the same skill as listing what two numbers
//! make. Writing the last operation in its place (`need 21 + 25 or 71 - 25`) is shorter, but a small model then got one
//! need in four wrong, and learnt the statements themselves more slowly.
//!
//! Products above 250 are called `big`, as they can only matter for a rare last division; divisions that end an
//! expression are considered only where nothing else leads to the target. A try takes about 45 tokens, where digits,
//! words and signs count one token each.
//!
//! With two numbers a solution is a single list, with four the first try is the one that leads on.

use crate::problem::{Key, draw, meta_numbers};
use crate::problems::listed;
use crate::rng::{Rng, hash_text};
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
    /// The last operation, where `value` stands for what the other numbers make.
    fn join(&self, value: &str, last: i64) -> String {
        if self.swapped {
            format!("{last} {} {value}", self.op)
        } else {
            format!("{value} {} {last}", self.op)
        }
    }
}

/// What the others must make so that `last` completes `target`; `target != last`. Divisions only on request.
fn needs(target: i64, last: i64, divisions: bool) -> Vec<Need> {
    let found = |a: i64, undo: Op, b: i64, op, swapped| {
        let value = undo.apply(a, b)?;
        Some(Need { value, text: stated(a, undo, b), op, swapped })
    };
    let mut out = vec![
        if target > last {
            found(target, Op::Sub, last, Op::Add, false)
        } else {
            found(last, Op::Sub, target, Op::Sub, true)
        },
        found(target, Op::Add, last, Op::Sub, false),
        found(target, Op::Div, last, Op::Mul, false),
    ];
    if divisions && last > 1 {
        out.push(found(last, Op::Div, target, Op::Div, true));
        out.push(found(target, Op::Mul, last, Op::Div, false));
    }
    out.into_iter().flatten().collect()
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
    (parts.join(" , ") + " no", None)
}

/// The opening of a try: what to look for.
fn opening(last: i64, needs: &[Need]) -> String {
    let ways: Vec<&str> = needs.iter().map(|n| n.text.as_str()).collect();
    format!("try {last} : need {} .", ways.join(" or "))
}

/// One try of a three-number search: its text and, where it succeeds, the expression.
fn attempt(target: i64, last: i64, a: i64, b: i64) -> (String, Option<String>) {
    let values: Vec<i64> = pair_values(a, b).into_iter().map(|(_, v)| v).collect();
    let met_by = |needs: &[Need]| needs.iter().any(|n| values.contains(&n.value));
    let mut needs_now = needs(target, last, false);
    if !met_by(&needs_now) {
        let more = needs(target, last, true);
        if met_by(&more) {
            needs_now = more;
        }
    }
    let needed: Vec<i64> = needs_now.iter().map(|n| n.value).collect();
    let (list, met) = list_pair(a, b, &needed, BIG.max(target + last));
    let text = format!("{} {list}", opening(last, &needs_now));
    let Some((which, op)) = met else { return (text + " .", None) };
    let need = &needs_now[which];
    let check = format!("{} = {target}", need.join(&need.value.to_string(), last));
    let expression = need.join(&format!("( {} {op} {} )", a.max(b), a.min(b)), last);
    (format!("{text} , {check} ."), Some(expression))
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

/// A worked search for `target` and the expression it ends in; `None` where there is none.
type Found = (String, String);

/// All ways that the written search can end, one per last number, each with the tries that fail before it left out.
fn endings(numbers: &[i64], target: i64) -> Vec<(usize, Found)> {
    if let [a, b] = *numbers {
        let (text, met) = list_pair(a, b, &[target], BIG.max(target));
        return met
            .map(|(_, op)| (0, (text + " .", format!("{} {op} {}", a.max(b), a.min(b)))))
            .into_iter()
            .collect();
    }
    let mut out = Vec::new();
    for (i, &last) in numbers.iter().enumerate() {
        if last == target {
            continue;
        }
        let rest = without(numbers, i);
        if let [a, b] = rest[..] {
            let (text, expression) = attempt(target, last, a, b);
            out.extend(expression.map(|e| (i, (text, e))));
            continue;
        }
        for need in needs(target, last, true) {
            if let Some((_, (text, inner))) = endings(&rest, need.value).into_iter().next() {
                let check = format!("{} = {target}", need.join(&need.value.to_string(), last));
                let text = format!("{} {text} {check} .", opening(last, std::slice::from_ref(&need)));
                out.push((i, (text, need.join(&format!("( {inner} )"), last))));
                break;
            }
        }
    }
    out
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
            let found = endings(&numbers, target);
            if found.is_empty() {
                return None;
            }
            let (_, (_, answer)) = rng.pick(&found);
            let prompt =
                rng.pick(&PROMPTS).replace("{n}", &listed(&numbers)).replace("{t}", &target.to_string());
            Some(Problem {
                task: self.name().into(),
                prompt,
                answer: answer.clone(),
                meta: serde_json::json!({ "numbers": numbers, "target": target }),
                verifier: None,
                solution: None,
            })
        })
    }

    fn solution(&self, p: &Problem, style: Style, seed: u64) -> String {
        let numbers = meta_numbers(p, "numbers");
        let target = p.meta["target"].as_i64().unwrap_or(0);
        let stated = format!("{} = {target} .", p.answer);
        if style == Style::Hurried {
            return stated;
        }
        let found = endings(&numbers, target);
        let Some((_, (text, _))) = found.iter().find(|(_, (_, expression))| *expression == p.answer) else {
            return stated;
        };
        let mut tries: Vec<String> = Vec::new();
        if let [_, _, _] = numbers[..] {
            let mut failing: Vec<usize> =
                (0..3).filter(|&i| numbers[i] != target && !found.iter().any(|(j, _)| *j == i)).collect();
            let mut rng = Rng::new(&[seed, hash_text(&p.prompt)]);
            rng.shuffle(&mut failing);
            failing.truncate(rng.below(failing.len() + 1));
            for i in failing {
                let rest = without(&numbers, i);
                tries.push(attempt(target, numbers[i], rest[0], rest[1]).0);
            }
        }
        tries.push(text.clone());
        tries.join(" ")
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

    #[test]
    fn reads_as_documented() {
        let (text, none) = attempt(46, 25, 22, 4);
        assert_eq!(
            text,
            "try 25 : need 46 - 25 = 21 or 46 + 25 = 71 . 22 + 4 = 26 , 22 - 4 = 18 , 22 * 4 = 88 no ."
        );
        assert!(none.is_none());
        let (text, expression) = attempt(46, 22, 6, 4);
        assert_eq!(
            text,
            "try 22 : need 46 - 22 = 24 or 46 + 22 = 68 . 6 + 4 = 10 , 6 - 4 = 2 , 6 * 4 = 24 yes , 24 + 22 = 46 ."
        );
        assert_eq!(expression.unwrap(), "( 6 * 4 ) + 22");
    }

    /// The search is complete: whatever three numbers reach, some try ends in it.
    #[test]
    fn three_tries_find_every_reachable_target() {
        let mut rng = Rng::new(&[5]);
        for _ in 0..400 {
            let numbers: Vec<i64> = (0..3).map(|_| rng.range(1, 30)).collect();
            for target in reachable(&numbers).into_iter().filter(|t| *t <= 200 && !numbers.contains(t)) {
                assert!(!endings(&numbers, target).is_empty(), "{numbers:?} {target}");
            }
        }
    }
}
