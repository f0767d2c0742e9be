//! Chains of numbers with + and −, and on request one product among the terms.

use crate::problem::{Key, draw};
use crate::rng::{Rng, hash_text};
use crate::steps::{Op, stated, worked};
use crate::{Level, Problem, Split, Style, Task};
use serde::{Deserialize, Serialize};

pub(super) struct Arithmetic;

/// One term: its sign, its number, and the digit it is multiplied by, if any.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Term {
    minus: bool,
    number: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    times: Option<i64>,
}

impl Term {
    fn value(&self) -> i64 {
        self.number * self.times.unwrap_or(1)
    }

    fn text(&self) -> String {
        self.times.map_or(self.number.to_string(), |t| format!("{} * {t}", self.number))
    }

    fn op(&self) -> Op {
        if self.minus { Op::Sub } else { Op::Add }
    }
}

const PROMPTS: [&str; 4] = ["What is {}?", "Compute {}.", "Work out {}.", "Find the value of {}."];

fn terms(p: &Problem) -> Vec<Term> {
    serde_json::from_value(p.meta["terms"].clone()).unwrap_or_default()
}

fn chain(terms: &[Term]) -> String {
    let rest = terms.iter().skip(1).map(|t| format!(" {} {}", t.op(), t.text()));
    terms[0].text() + &rest.collect::<String>()
}

fn total(terms: &[Term]) -> i64 {
    terms.iter().map(|t| if t.minus { -t.value() } else { t.value() }).sum()
}

impl Task for Arithmetic {
    fn name(&self) -> &'static str {
        "arithmetic"
    }

    fn describe(&self) -> &'static str {
        "sums and differences of several numbers, such as 47 + 38 - 92"
    }

    fn keys(&self) -> &'static [Key] {
        const KEYS: [Key; 3] = [
            Key { name: "operands", min: 2.0, max: 8.0 },
            Key { name: "digits", min: 1.0, max: 6.0 },
            Key { name: "times", min: 0.0, max: 1.0 },
        ];
        &KEYS
    }

    fn problem(&self, split: Split, seed: u64, index: u64, level: &Level) -> Problem {
        let operands = level.operands.unwrap_or(3) as usize;
        let digits = level.digits.unwrap_or(2);
        let (low, high) = (if digits == 1 { 0 } else { 10_i64.pow(digits - 1) }, 10_i64.pow(digits) - 1);
        let number = |rng: &mut Rng| rng.range(low, high);
        draw(self, split, seed, index, |rng| {
            let product_at = level.times.unwrap_or(false).then(|| rng.below(operands));
            let terms: Vec<Term> = (0..operands)
                .map(|i| Term {
                    minus: i > 0 && rng.chance(0.5),
                    number: number(rng),
                    times: (product_at == Some(i)).then(|| rng.range(2, 9)),
                })
                .collect();
            Some(Problem {
                task: self.name().into(),
                system: None,
                prompt: rng.pick(&PROMPTS).replace("{}", &chain(&terms)),
                answer: total(&terms).to_string(),
                meta: serde_json::json!({ "terms": terms }),
                verifier: None,
                solution: None,
            })
        })
    }

    fn solution(&self, p: &Problem, style: Style, seed: u64) -> String {
        let terms = terms(p);
        if terms.is_empty() {
            return String::new();
        }
        let careful = style == Style::Careful;
        // Half of the hurried ones do not even stop at the running value.
        if !careful && Rng::new(&[seed, hash_text(&p.prompt)]).chance(0.5) {
            return format!("{} = {} .", chain(&terms), total(&terms));
        }
        let write = if careful { worked } else { stated };
        let products = terms.iter().filter_map(|t| t.times.map(|times| write(t.number, Op::Mul, times)));
        let mut lines: Vec<String> = products.collect();
        let mut running = terms[0].value();
        for term in &terms[1..] {
            lines.push(write(running, term.op(), term.value()));
            running += if term.minus { -term.value() } else { term.value() };
        }
        lines.join(" . ") + " ."
    }

    fn verifier(&self) -> &'static str {
        "numeric"
    }

    /// The terms as a sorted list: `47 + 38 - 92` and `38 + 47 - 92` are one problem.
    fn content(&self, p: &Problem) -> String {
        let mut terms: Vec<String> = terms(p).iter().map(|t| format!("{}{}", t.op(), t.text())).collect();
        terms.sort();
        terms.concat()
    }
}
