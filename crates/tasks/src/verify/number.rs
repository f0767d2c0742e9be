//! Numbers in the forms that people and models write them.

use super::Rational;

/// A number; equal ones are equal however they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Number {
    /// One that a fraction of 128-bit parts holds.
    Fraction(Rational),
    /// An integer with more digits than that, without leading zeros.
    Long {
        /// Whether it is below 0.
        negative: bool,
        /// The digits.
        digits: String,
    },
}

/// The longest text that is taken for a number, in bytes.
const LONGEST: usize = 10_000;
/// The largest exponent, beyond which no fraction of 128-bit parts reaches.
const LARGEST_EXPONENT: i32 = 38;
/// Blanks that stand between groups of digits: the plain one, no-break, narrow no-break and thin.
const BLANKS: [char; 4] = [' ', '\u{a0}', '\u{202f}', '\u{2009}'];
const CURRENCIES: [char; 5] = ['$', '€', '£', '¥', '₹'];

impl Number {
    /// Reads an answer that is one number and nothing else:
    ///
    /// | form | examples |
    /// |---|---|
    /// | integers and decimals of any length | `42`, `+7`, `007`, `42.`, `.5` |
    /// | a minus, typed or typographic | `-42`, `−42` |
    /// | digits in groups of three, between commas or blanks | `1,234,567.50`, `1 234` |
    /// | an exponent | `1e3`, `1.5E-3` |
    /// | fractions | `22/7`, `\frac{1}{2}`, `\dfrac{1}{2}` |
    /// | a currency before it, a percent sign behind it, which change nothing | `$42`, `-$42`, `42 %`, `42\%` |
    /// | LaTeX around it | `$42$`, `\(42\)`, `\boxed{42}` |
    ///
    /// Words behind a number are not taken (`42 apples`, `42 million`), nor are mixed numbers (`1 1/2`), decimal commas
    /// (`3,5`), equations, other digits than 0 to 9, and what is no number at all (`NaN`, `inf`).
    pub fn parse(text: &str) -> Option<Number> {
        if text.len() > LONGEST {
            return None;
        }
        let (negative, text) = sign(bare(text));
        let text = text.strip_prefix('\\').filter(|t| t.starts_with('$')).unwrap_or(text);
        let (negative_inside, text) = match text.strip_prefix(CURRENCIES) {
            Some(rest) if !negative => sign(rest.trim_start()),
            Some(rest) => (false, rest.trim_start()),
            None => (false, text),
        };
        let text = match text.strip_suffix('%') {
            Some(rest) => rest.strip_suffix('\\').unwrap_or(rest).trim_end(),
            None => text,
        };
        magnitude(text)?.negated(negative || negative_inside)
    }

    /// Reads a number in the strict form of [`Rational::parse`]: digits, a sign, commas between groups of three, a point
    /// with digits on both sides, a slash.
    pub fn parse_strictly(text: &str) -> Option<Number> {
        Rational::parse(text).map(Number::Fraction)
    }

    /// The nearest floating-point number.
    pub fn to_f64(&self) -> f64 {
        match self {
            Number::Fraction(value) => value.to_f64(),
            Number::Long { negative, digits } => {
                let size: f64 = digits.parse().unwrap_or(f64::INFINITY);
                if *negative { -size } else { size }
            }
        }
    }

    fn negated(self, negate: bool) -> Option<Number> {
        Some(match self {
            number if !negate => number,
            Number::Fraction(value) => Number::Fraction(Rational::integer(0).checked_sub(value)?),
            Number::Long { negative, digits } => Number::Long { negative: !negative, digits },
        })
    }
}

/// The text without LaTeX around it.
fn bare(text: &str) -> &str {
    let mut text = text.trim();
    for (open, close) in [("$", "$"), ("\\(", "\\)"), ("\\boxed{", "}")] {
        let inside = text.strip_prefix(open).and_then(|t| t.strip_suffix(close));
        text = inside.map_or(text, str::trim);
    }
    text
}

fn sign(text: &str) -> (bool, &str) {
    match text.strip_prefix(['-', '\u{2212}']) {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// A number without its sign.
fn magnitude(text: &str) -> Option<Number> {
    let latex = ["\\frac{", "\\dfrac{", "\\tfrac{"].iter().find_map(|open| text.strip_prefix(open));
    let parts = match latex {
        Some(rest) => Some(rest.strip_suffix('}')?.split_once("}{")?),
        None => text.split_once('/'),
    };
    let Some((above, below)) = parts else { return decimal(text) };
    let part = |text: &str| {
        let (negative, text) = sign(text.trim());
        match decimal(text)?.negated(negative)? {
            Number::Fraction(value) => Some(value),
            Number::Long { .. } => None,
        }
    };
    part(above)?.checked_div(part(below)?).map(Number::Fraction)
}

/// Digits with a point somewhere and an exponent, without a sign.
fn decimal(text: &str) -> Option<Number> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            let (negative, digits) = sign(exponent);
            let size: i32 = if is_digits(digits) { digits.parse().ok()? } else { return None };
            (mantissa, if negative { -size } else { size })
        }
        None => (text, 0),
    };
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let whole = if whole.is_empty() && !part.is_empty() { String::new() } else { ungrouped(whole)? };
    if !(part.is_empty() || is_digits(part)) {
        return None;
    }
    let digits = format!("{whole}{part}");
    let digits = digits.trim_start_matches('0');
    let value: i128 = match digits {
        "" => 0,
        digits => match digits.parse() {
            Ok(value) => value,
            // Too long for a fraction, but as an integer it can still be compared.
            Err(_) if exponent == 0 && part.bytes().all(|b| b == b'0') => {
                let digits = digits[..digits.len() - part.len()].to_owned();
                return Some(Number::Long { negative: false, digits });
            }
            Err(_) => return None,
        },
    };
    let shift = exponent.checked_sub(i32::try_from(part.len()).ok()?)?;
    if value != 0 && shift.abs() > LARGEST_EXPONENT {
        return None;
    }
    let power = if value == 0 { 1 } else { 10i128.checked_pow(shift.unsigned_abs())? };
    let fraction =
        if shift < 0 { Rational::new(value, power) } else { Rational::new(value.checked_mul(power)?, 1) };
    fraction.map(Number::Fraction)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// Digits without the commas or blanks between their groups; `None` where the groups are not of three, or of two kinds.
fn ungrouped(text: &str) -> Option<String> {
    let Some(mark) = text.chars().find(|c| *c == ',' || BLANKS.contains(c)) else {
        return is_digits(text).then(|| text.to_owned());
    };
    let mut groups = text.split(mark);
    let first = groups.next().filter(|g| g.len() <= 3)?;
    let mut digits = first.to_owned();
    for group in groups {
        if group.len() != 3 {
            return None;
        }
        digits += group;
    }
    (is_digits(first) && is_digits(&digits)).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_taken_in_the_forms_of_the_table_and_no_other() {
        let r = |n, d| Rational::new(n, d).map(Number::Fraction);
        for (text, want) in [
            ("42", r(42, 1)),
            (" -7 ", r(-7, 1)),
            ("+7", r(7, 1)),
            ("007", r(7, 1)),
            ("42.", r(42, 1)),
            (".5", r(1, 2)),
            ("-.5", r(-1, 2)),
            ("1e3", r(1000, 1)),
            ("1.5E-3", r(3, 2000)),
            ("2e+2", r(200, 1)),
            ("0e9", r(0, 1)),
            ("\u{2212}42", r(-42, 1)),
            ("1,234,567.50", r(2_469_135, 2)),
            ("1 234", r(1234, 1)),
            ("1\u{202f}234\u{202f}567", r(1_234_567, 1)),
            ("$42", r(42, 1)),
            ("-$42", r(-42, 1)),
            ("$-42", r(-42, 1)),
            ("\\$42", r(42, 1)),
            ("€ 1,000", r(1000, 1)),
            ("42%", r(42, 1)),
            ("42 %", r(42, 1)),
            ("42\\%", r(42, 1)),
            ("$42$", r(42, 1)),
            ("\\(42\\)", r(42, 1)),
            ("\\boxed{42}", r(42, 1)),
            ("$\\boxed{-42}$", r(-42, 1)),
            ("22/7", r(22, 7)),
            ("-22 / 4", r(-11, 2)),
            ("22/-4", r(-11, 2)),
            ("\\frac{1}{2}", r(1, 2)),
            ("-\\dfrac{1}{2}", r(-1, 2)),
            ("\\boxed{\\frac{1}{2}}", r(1, 2)),
            ("0.000000000000000000000000000001", Rational::new(1, 10i128.pow(30)).map(Number::Fraction)),
            ("", None),
            ("-", None),
            (".", None),
            ("--7", None),
            ("-$-42", None),
            ("$", None),
            ("%", None),
            ("1/0", None),
            ("1/2/3", None),
            ("1 1/2", None),
            ("1.2.3", None),
            ("3,5", None),
            ("1,23", None),
            ("1,,234", None),
            ("1234,567", None),
            ("1,234 567", None),
            ("12 34", None),
            ("0 1", None),
            (",123", None),
            ("1e", None),
            ("e3", None),
            ("1e1.5", None),
            ("1e400", None),
            ("1e99999999999", None),
            ("42 apples", None),
            ("42 million", None),
            ("x=42", None),
            ("12:30", None),
            ("1_000", None),
            ("0x2a", None),
            ("४२", None),
            ("4２", None),
            ("½", None),
            ("NaN", None),
            ("inf", None),
            ("\\frac{1}{}", None),
            ("\\frac{1}{2}{3}", None),
            ("\\boxed{}", None),
            ("42\n42", None),
        ] {
            assert_eq!(Number::parse(text), want, "{text}");
        }
    }

    #[test]
    fn integers_of_any_length_are_compared_to_the_last_digit() {
        let long = "9".repeat(60);
        let number = |text: &str| Number::parse(text).expect("a number");
        assert_eq!(number(&long), number(&format!("0{long}.00")));
        assert_ne!(number(&long), number(&format!("-{long}")));
        assert_ne!(number(&long), number(&format!("{}8", &long[1..])));
        assert_eq!(Number::parse(&"9".repeat(LONGEST + 1)), None);
        assert_eq!(Number::parse(&format!("{long}/2")), None);
    }
}
