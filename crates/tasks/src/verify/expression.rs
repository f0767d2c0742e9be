//! Countdown answers: an expression that uses the given numbers once each and equals the target.
//!
//! The grammar is `sum := product (('+' | '-') product)*`, `product := atom (('*' | '/') atom)*`,
//! `atom := digits | '(' sum ')'`. There is no unary sign, power, decimal point or function, so numbers cannot be
//! made from nothing; arithmetic is exact and checked.

use super::{Rational, Verdict, Verifier, with_answer};
use crate::Problem;
use crate::problem::meta_numbers;

/// Longer expressions are refused unread.
const MAX_CHARS: usize = 400;
/// Deeper parentheses are refused.
const MAX_DEPTH: usize = 32;

/// Right when the answer uses each of `meta.numbers` exactly once and equals `meta.target`.
pub struct Expression;

impl Verifier for Expression {
    fn score(&self, problem: &Problem, completion: &str) -> Verdict {
        let Some((numbers, target)) = wanted(problem) else { return Verdict::wrong(NO_TARGET) };
        with_answer(completion, |answer| match check(answer, &numbers, target) {
            Ok(()) => Verdict::right(),
            Err(reason) => Verdict::wrong(reason),
        })
    }

    fn fault(&self, problem: &Problem) -> Option<String> {
        wanted(problem).is_none().then(|| NO_TARGET.into())
    }
}

const NO_TARGET: &str = "the problem's meta lacks numbers and target";

fn wanted(problem: &Problem) -> Option<(Vec<i64>, i64)> {
    let numbers = meta_numbers(problem, "numbers");
    let target = problem.meta["target"].as_i64().filter(|_| !numbers.is_empty())?;
    Some((numbers, target))
}

fn check(answer: &str, numbers: &[i64], target: i64) -> Result<(), String> {
    let (value, mut used) = evaluate(answer)?;
    let mut given = numbers.to_vec();
    used.sort_unstable();
    given.sort_unstable();
    if used != given {
        return Err(format!("uses {used:?} instead of each of {given:?} once"));
    }
    if value != Rational::integer(target) {
        return Err(format!("makes {} instead of {target}", value.to_f64()));
    }
    Ok(())
}

/// The exact value of an expression and the numbers in it, in order.
///
/// # Errors
/// What is wrong with it: its form, its size, a division by zero, an overflow.
pub fn evaluate(text: &str) -> Result<(Rational, Vec<i64>), String> {
    if text.len() > MAX_CHARS {
        return Err(format!("longer than {MAX_CHARS} characters"));
    }
    let mut parser = Parser { rest: text.as_bytes(), used: Vec::new() };
    let value = parser.sum(0)?;
    match parser.peek() {
        None => Ok((value, parser.used)),
        Some(b) => Err(format!("`{}` where the expression should end", b.escape_ascii())),
    }
}

struct Parser<'a> {
    rest: &'a [u8],
    used: Vec<i64>,
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    /// Takes the next byte if it is one of `options`.
    fn take(&mut self, options: &[u8]) -> Option<u8> {
        let next = self.peek().filter(|b| options.contains(b))?;
        self.rest = &self.rest[1..];
        Some(next)
    }

    fn sum(&mut self, depth: usize) -> Result<Rational, String> {
        let mut value = self.product(depth)?;
        while let Some(op) = self.take(b"+-") {
            let right = self.product(depth)?;
            let result = if op == b'+' { value.checked_add(right) } else { value.checked_sub(right) };
            value = result.ok_or("the numbers grow too large")?;
        }
        Ok(value)
    }

    fn product(&mut self, depth: usize) -> Result<Rational, String> {
        let mut value = self.atom(depth)?;
        while let Some(op) = self.take(b"*/") {
            let right = self.atom(depth)?;
            let result = if op == b'*' { value.checked_mul(right) } else { value.checked_div(right) };
            value = result.ok_or("a division by zero or a number too large")?;
        }
        Ok(value)
    }

    fn atom(&mut self, depth: usize) -> Result<Rational, String> {
        if depth > MAX_DEPTH {
            return Err(format!("deeper than {MAX_DEPTH} parentheses"));
        }
        if self.take(b"(").is_some() {
            let value = self.sum(depth + 1)?;
            return self.take(b")").map(|_| value).ok_or_else(|| "a parenthesis is not closed".into());
        }
        self.peek();
        let length = self.rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let (digits, rest) = self.rest.split_at(length);
        if length == 0 || length > 9 {
            return Err("a number is missing or too long".into());
        }
        let number = digits.iter().fold(0_i64, |n, b| n * 10 + i64::from(b - b'0'));
        self.rest = rest;
        self.used.push(number);
        Ok(Rational::integer(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn precedence_and_exactness() {
        for (text, want) in
            [("1+2*3", 7), ("(1+2)*3", 9), ("8-4-2", 2), ("8/4/2", 1), ("7/2*2", 7), (" ( 6 * 4 ) + 22", 46)]
        {
            assert_eq!(evaluate(text).unwrap().0, Rational::integer(want), "{text}");
        }
        for text in [
            "", "()", "1+", "-1", "2**3", "2^3", "1.5", "1 2", "(1", "1)", "1/0", "1/(2-2)", "1e3", "６+4",
            "6+4=10",
        ] {
            assert!(evaluate(text).is_err(), "{text}");
        }
    }

    proptest! {
        /// A model can write anything; the parser answers every text.
        #[test]
        fn no_text_panics(text in "[0-9+*/() -]{0,120}|.{0,60}") {
            let _ = evaluate(&text);
        }
    }
}
