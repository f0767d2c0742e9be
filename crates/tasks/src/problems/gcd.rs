//! Greatest common divisors by Euclid's divisions.

use crate::problem::{Key, draw, meta_numbers};
use crate::{Level, Problem, Split, Style, Task};

pub(super) struct Gcd;

const PROMPTS: [&str; 3] = [
    "What is the greatest common divisor of {a} and {b}?",
    "Find the largest number that divides both {a} and {b}.",
    "What is gcd of {a} and {b}?",
];

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Task for Gcd {
    fn name(&self) -> &'static str {
        "gcd"
    }

    fn describe(&self) -> &'static str {
        "the greatest common divisor of two numbers"
    }

    fn keys(&self) -> &'static [Key] {
        const KEYS: [Key; 1] = [Key { name: "max_number", min: 30.0, max: 1e6 }];
        &KEYS
    }

    fn problem(&self, split: Split, seed: u64, index: u64, level: &Level) -> Problem {
        let max = i64::from(level.max_number.unwrap_or(150));
        draw(self, split, seed, index, |rng| {
            // A drawn common factor, since two random numbers mostly share none; small ones more often, as
            // large ones leave few multiples.
            let factor = rng.range(1, max / 4).min(rng.range(1, max / 4));
            let (a, b) = (factor * rng.range(1, max / factor), factor * rng.range(1, max / factor));
            if a == b || a.min(b) < 2 {
                return None;
            }
            Some(Problem {
                task: self.name().into(),
                system: None,
                prompt: rng.pick(&PROMPTS).replace("{a}", &a.to_string()).replace("{b}", &b.to_string()),
                answer: gcd(a, b).to_string(),
                meta: serde_json::json!({ "numbers": [a, b] }),
                verifier: None,
                solution: None,
            })
        })
    }

    fn solution(&self, p: &Problem, style: Style, _seed: u64) -> String {
        let numbers = meta_numbers(p, "numbers");
        let [a, b] = numbers[..] else { return String::new() };
        if style == Style::Hurried {
            return format!("both are multiples of {} .", gcd(a, b));
        }
        let (mut a, mut b) = (a.max(b), a.min(b));
        let mut text = String::new();
        while b > 0 {
            text.push_str(&format!("{a} = {b} * {} + {} . ", a / b, a % b));
            (a, b) = (b, a % b);
        }
        text + &format!("rest 0 , so {a} .")
    }

    fn verifier(&self) -> &'static str {
        "numeric"
    }

    fn content(&self, p: &Problem) -> String {
        let mut numbers = meta_numbers(p, "numbers");
        numbers.sort_unstable();
        format!("{numbers:?}")
    }
}
