//! Sums, differences, products and quotients written out so that a very small model can follow.
//!
//! A step is `47 + 38 : 7 + 8 = 15 , 4 + 3 + 1 = 8 , so 85`. It was chosen for what each written token must look
//! at: a column goes from the least significant digit, names its two digits, and its result shows the carry as its
//! own tens digit (`15`), so the next column knows whether to write `+ 1` from the token just behind it. A
//! borrow is written the same way, `12 - 5 = 7 , 9 - 8 - 1 = 0`: the `1` in front of `2` says that ten was
//! borrowed. A sum whose sign is not plain is first rewritten, `85 - 92 = -( 92 - 85 ) : …`, so that columns always
//! belong to the two numbers just written and the result copies the sign. What is a column by itself
//! (`6 + 7 = 13`, `12 - 5 = 7`, `6 * 7 = 42`, `63 / 7 = 9`) is stated at once.
//!
//! A step of two two-digit numbers takes about 25 tokens, 33 with a rewriting. Numbers and operators stand
//! apart, so that the tokenizer sees every digit alike.

use std::fmt;

/// An operation between two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`, exact
    Div,
}

impl Op {
    /// The operation that `symbol` stands for.
    pub fn parse(symbol: &str) -> Option<Op> {
        Some(match symbol {
            "+" => Op::Add,
            "-" => Op::Sub,
            "*" => Op::Mul,
            "/" => Op::Div,
            _ => return None,
        })
    }

    /// The result, where it is an integer.
    pub fn apply(self, a: i64, b: i64) -> Option<i64> {
        match self {
            Op::Add => a.checked_add(b),
            Op::Sub => a.checked_sub(b),
            Op::Mul => a.checked_mul(b),
            Op::Div => (b != 0 && a % b == 0).then(|| a / b),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Add => "+",
            Op::Sub => "-",
            Op::Mul => "*",
            Op::Div => "/",
        })
    }
}

/// `a op b = result`, without the work.
pub fn stated(a: i64, op: Op, b: i64) -> String {
    format!("{a} {op} {b} = {}", op.apply(a, b).expect("the step has an integer result"))
}

/// The step with its columns, ending in the result.
///
/// # Panics
/// When the result is not an integer, or a factor, dividend or divisor is negative.
pub fn worked(a: i64, op: Op, b: i64) -> String {
    match op {
        Op::Add | Op::Sub => signed(a, op, b),
        Op::Mul => product(a.max(b), a.min(b)),
        Op::Div => quotient(a, b),
    }
}

/// A sum or difference of signed numbers: rewritten until it is one of non-negative numbers, larger one first.
fn signed(a: i64, op: Op, b: i64) -> String {
    // a op b = a + signed_b
    let signed_b = if op == Op::Sub { -b } else { b };
    let (x, y) = (a.abs(), b.abs());
    let (negative, inner, x, y) = match (a < 0, signed_b < 0) {
        (false, false) => (false, Op::Add, x, y),
        (true, true) => (true, Op::Add, x, y),
        (false, true) if x >= y => (false, Op::Sub, x, y),
        (false, true) => (true, Op::Sub, y, x),
        (true, false) if y >= x => (false, Op::Sub, y, x),
        (true, false) => (true, Op::Sub, x, y),
    };
    let columns = if inner == Op::Add { sum_columns(x, y) } else { difference_columns(x, y) };
    let plain = (a, op, b) == (x, inner, y) && !negative;
    let head = match (plain, negative) {
        (true, _) => format!("{a} {op} {b}"),
        (false, false) => format!("{a} {op} {b} = {x} {inner} {y}"),
        (false, true) => format!("{a} {op} {b} = -( {x} {inner} {y} )"),
    };
    finish(head, columns, op.apply(a, b).expect("small numbers"))
}

/// `head = result` where there are no columns to write, `head : columns , so result` otherwise.
fn finish(head: String, columns: Vec<String>, result: i64) -> String {
    if columns.is_empty() {
        return format!("{head} = {result}");
    }
    format!("{head} : {} , so {result}", columns.join(" , "))
}

/// The decimal digits, least significant first; `[0]` for zero.
fn digits(mut n: i64) -> Vec<i64> {
    let mut out = vec![n % 10];
    while n >= 10 {
        n /= 10;
        out.push(n % 10);
    }
    out
}

/// Columns of `x + y`; none for two digits, which are a column themselves.
fn sum_columns(x: i64, y: i64) -> Vec<String> {
    if x <= 9 && y <= 9 {
        return Vec::new();
    }
    let (dx, dy) = (digits(x), digits(y));
    let mut carry = 0;
    let mut out = Vec::new();
    for i in 0..dx.len().max(dy.len()) {
        let present: Vec<i64> = [dx.get(i), dy.get(i)].into_iter().flatten().copied().collect();
        let total = present.iter().sum::<i64>() + carry;
        let terms: Vec<String> =
            present.iter().chain((carry == 1).then_some(&1)).map(i64::to_string).collect();
        out.push(if terms.len() == 1 {
            terms[0].clone()
        } else {
            format!("{} = {total}", terms.join(" + "))
        });
        carry = total / 10;
    }
    out
}

/// Columns of `x - y` for `x >= y >= 0`; none where the difference is a column itself, as `12 - 5`.
fn difference_columns(x: i64, y: i64) -> Vec<String> {
    if x <= 18 && y <= 9 && x - y <= 9 {
        return Vec::new();
    }
    let (dx, dy) = (digits(x), digits(y));
    let mut borrow = 0;
    let mut out = Vec::new();
    for (i, &top) in dx.iter().enumerate() {
        let taken = dy.get(i).copied();
        let minus = taken.unwrap_or(0) + borrow;
        let raised = if top < minus { top + 10 } else { top };
        let mut column = raised.to_string();
        if let Some(digit) = taken {
            column.push_str(&format!(" - {digit}"));
        }
        if borrow == 1 {
            column.push_str(" - 1");
        }
        if taken.is_some() || borrow == 1 {
            column.push_str(&format!(" = {}", raised - minus));
        }
        out.push(column);
        borrow = i64::from(top < minus);
    }
    out
}

/// `x * y` with `x >= y >= 0`: columns for a one-digit `y`, otherwise `y` is split into tens and ones.
fn product(x: i64, y: i64) -> String {
    assert!(y >= 0, "worked products are of non-negative numbers, got {x} * {y}");
    if y <= 9 {
        return finish(format!("{x} * {y}"), product_columns(x, y), x * y);
    }
    let (tens, ones) = (y / 10 * 10, y % 10);
    let by_tens = finish(format!("{x} * {}", tens / 10), product_columns(x, tens / 10), x * tens / 10);
    if ones == 0 {
        return format!("{by_tens} , {x} * {y} = {}", x * y);
    }
    let by_ones = finish(format!("{x} * {ones}"), product_columns(x, ones), x * ones);
    let sum = signed(x * tens, Op::Add, x * ones);
    format!("{x} * {y} = {x} * {tens} + {x} * {ones} . {by_tens} . {by_ones} . {sum}")
}

/// Columns of `x * y` for a digit `y`; none when `x` is a digit too.
fn product_columns(x: i64, y: i64) -> Vec<String> {
    if x <= 9 {
        return Vec::new();
    }
    let mut carry = 0;
    let mut out = Vec::new();
    for digit in digits(x) {
        let total = digit * y + carry;
        out.push(if carry > 0 {
            format!("{digit} * {y} + {carry} = {total}")
        } else {
            format!("{digit} * {y} = {total}")
        });
        carry = total / 10;
    }
    out
}

/// `x / y`, exact: long division, one `part = y * digit + rest` a digit; none for a one-digit quotient.
fn quotient(x: i64, y: i64) -> String {
    assert!(x >= 0 && y > 0 && x % y == 0, "worked quotients are exact, got {x} / {y}");
    let mut columns = Vec::new();
    if x / y > 9 {
        let mut part = 0;
        for digit in digits(x).into_iter().rev() {
            part = part * 10 + digit;
            if part >= y || !columns.is_empty() {
                columns.push(format!("{part} = {y} * {} + {}", part / y, part % y));
                part %= y;
            }
        }
    }
    finish(format!("{x} / {y}"), columns, x / y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::assert_statements_hold;

    #[test]
    fn reads_as_documented() {
        for (a, op, b, want) in [
            (47, Op::Add, 38, "47 + 38 : 7 + 8 = 15 , 4 + 3 + 1 = 8 , so 85"),
            (95, Op::Add, 7, "95 + 7 : 5 + 7 = 12 , 9 + 1 = 10 , so 102"),
            (105, Op::Sub, 38, "105 - 38 : 15 - 8 = 7 , 10 - 3 - 1 = 6 , 1 - 1 = 0 , so 67"),
            (85, Op::Sub, 92, "85 - 92 = -( 92 - 85 ) : 12 - 5 = 7 , 9 - 8 - 1 = 0 , so -7"),
            (-7, Op::Add, 30, "-7 + 30 = 30 - 7 : 10 - 7 = 3 , 3 - 1 = 2 , so 23"),
            (-7, Op::Sub, 30, "-7 - 30 = -( 7 + 30 ) : 7 + 0 = 7 , 3 , so -37"),
            (6, Op::Add, 7, "6 + 7 = 13"),
            (3, Op::Sub, 9, "3 - 9 = -( 9 - 3 ) = -6"),
            (6, Op::Mul, 47, "47 * 6 : 7 * 6 = 42 , 4 * 6 + 4 = 28 , so 282"),
            (84, Op::Div, 7, "84 / 7 : 8 = 7 * 1 + 1 , 14 = 7 * 2 + 0 , so 12"),
            (63, Op::Div, 7, "63 / 7 = 9"),
        ] {
            assert_eq!(worked(a, op, b), want);
        }
    }

    /// Nothing false may enter the corpus: every `… = …` in every step of this range is evaluated.
    #[test]
    fn every_statement_is_true() {
        for a in -120..=320 {
            for b in 0..=130 {
                for op in [Op::Add, Op::Sub] {
                    let text = worked(a, op, b);
                    assert_statements_hold(&text);
                    assert!(text.ends_with(&format!(" {}", op.apply(a, b).unwrap())), "{text}");
                }
                if a >= 0 {
                    assert_statements_hold(&worked(a, Op::Mul, b));
                    if b > 0 {
                        let text = worked(a * b, Op::Div, b);
                        assert_statements_hold(&text);
                        assert!(text.ends_with(&format!(" {a}")), "{text}");
                    }
                }
            }
        }
    }
}
