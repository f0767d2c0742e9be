//! Sorting a few numbers, up or down, by repeated selection.

use crate::problem::{Key, draw, meta_numbers};
use crate::problems::listed;
use crate::{Level, Problem, Split, Style, Task};

pub(super) struct Sorting;

fn ordered(mut numbers: Vec<i64>, down: bool) -> Vec<i64> {
    numbers.sort_unstable();
    if down {
        numbers.reverse();
    }
    numbers
}

fn spaced(numbers: &[i64], between: &str) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(between)
}

impl Task for Sorting {
    fn name(&self) -> &'static str {
        "sorting"
    }

    fn describe(&self) -> &'static str {
        "putting numbers in order, smallest or largest first"
    }

    fn keys(&self) -> &'static [Key] {
        const KEYS: [Key; 2] =
            [Key { name: "numbers", min: 3.0, max: 12.0 }, Key { name: "max_number", min: 20.0, max: 1e6 }];
        &KEYS
    }

    fn problem(&self, split: Split, seed: u64, index: u64, level: &Level) -> Problem {
        let count = level.numbers.unwrap_or(5) as usize;
        let max = i64::from(level.max_number.unwrap_or(99));
        draw(self, split, seed, index, |rng| {
            let mut numbers: Vec<i64> = Vec::new();
            while numbers.len() < count {
                let n = rng.range(1, max);
                if !numbers.contains(&n) {
                    numbers.push(n);
                }
            }
            let down = rng.chance(0.5);
            let direction = if down { "from largest to smallest" } else { "from smallest to largest" };
            Some(Problem {
                task: self.name().into(),
                system: None,
                prompt: format!("Sort {} {direction}.", listed(&numbers)),
                answer: spaced(&ordered(numbers.clone(), down), " "),
                meta: serde_json::json!({ "numbers": numbers, "down": down }),
                verifier: None,
                solution: None,
            })
        })
    }

    fn solution(&self, p: &Problem, style: Style, _seed: u64) -> String {
        let mut left = meta_numbers(p, "numbers");
        let down = p.meta["down"].as_bool().unwrap_or(false);
        let word = if down { "largest" } else { "smallest" };
        let order = ordered(left.clone(), down);
        if style == Style::Hurried {
            return format!("{word} first .");
        }
        let mut text = String::new();
        for n in order {
            if left.len() > 1 {
                text.push_str(&format!("{} : {word} {n} . ", spaced(&left, " ")));
            }
            left.retain(|&m| m != n);
        }
        text.trim_end().to_owned()
    }

    fn verifier(&self) -> &'static str {
        "exact"
    }

    /// The numbers whatever their order and direction.
    fn content(&self, p: &Problem) -> String {
        spaced(&ordered(meta_numbers(p, "numbers"), false), " ")
    }
}
