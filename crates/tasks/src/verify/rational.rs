//! Exact fractions with checked 128-bit parts: an overflow is `None`, never a panic or a wrong value.

/// A fraction in lowest terms with a positive denominator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rational {
    numerator: i128,
    denominator: i128,
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Rational {
    /// `numerator / denominator`; `None` for a zero denominator or an overflow.
    pub fn new(numerator: i128, denominator: i128) -> Option<Rational> {
        let divisor = i128::try_from(gcd(numerator.unsigned_abs(), denominator.unsigned_abs())).ok()?;
        if denominator == 0 {
            return None;
        }
        let (n, d) = (numerator / divisor, denominator / divisor);
        let (n, d) = if d < 0 { (n.checked_neg()?, d.checked_neg()?) } else { (n, d) };
        Some(Rational { numerator: n, denominator: d })
    }

    /// An integer.
    pub fn integer(n: i64) -> Rational {
        Rational { numerator: i128::from(n), denominator: 1 }
    }

    /// `self + other`.
    pub fn checked_add(self, other: Rational) -> Option<Rational> {
        let left = self.numerator.checked_mul(other.denominator)?;
        let right = other.numerator.checked_mul(self.denominator)?;
        Rational::new(left.checked_add(right)?, self.denominator.checked_mul(other.denominator)?)
    }

    /// `self - other`.
    pub fn checked_sub(self, other: Rational) -> Option<Rational> {
        self.checked_add(Rational { numerator: other.numerator.checked_neg()?, ..other })
    }

    /// `self * other`.
    pub fn checked_mul(self, other: Rational) -> Option<Rational> {
        let numerator = self.numerator.checked_mul(other.numerator)?;
        Rational::new(numerator, self.denominator.checked_mul(other.denominator)?)
    }

    /// `self / other`; `None` for a division by zero.
    pub fn checked_div(self, other: Rational) -> Option<Rational> {
        let numerator = self.numerator.checked_mul(other.denominator)?;
        Rational::new(numerator, self.denominator.checked_mul(other.numerator)?)
    }

    /// The nearest floating-point number.
    pub fn to_f64(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }

    /// Reads `-7`, `+7`, `1,234`, `3.50`, `22/7`: ASCII digits, commas between groups of three, no exponent.
    pub fn parse(text: &str) -> Option<Rational> {
        let text = text.trim();
        if text.len() > 60 {
            return None;
        }
        if let Some((n, d)) = text.split_once('/') {
            return Rational::parse_decimal(n.trim())?.checked_div(Rational::parse_decimal(d.trim())?);
        }
        Rational::parse_decimal(text)
    }

    fn parse_decimal(text: &str) -> Option<Rational> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let has_point = whole.len() != text.len();
        if has_point && (part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit())) {
            return None;
        }
        let digits = ungrouped(whole)? + part;
        let value: i128 = digits.parse().ok()?;
        let scale = 10_i128.checked_pow(u32::try_from(part.len()).ok()?)?;
        Rational::new(if negative { -value } else { value }, scale)
    }
}

/// The digits of `1234` or `1,234`; `None` for anything else.
fn ungrouped(text: &str) -> Option<String> {
    let groups: Vec<&str> = text.split(',').collect();
    let digits = groups.iter().all(|g| !g.is_empty() && g.bytes().all(|b| b.is_ascii_digit()));
    let grouped = groups.len() == 1 || (groups[0].len() <= 3 && groups[1..].iter().all(|g| g.len() == 3));
    (digits && grouped).then(|| groups.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers_and_nothing_else() {
        let r = |n, d| Rational::new(n, d);
        for (text, want) in [
            ("42", r(42, 1)),
            (" -7 ", r(-7, 1)),
            ("+7", r(7, 1)),
            ("007", r(7, 1)),
            ("1,234,567.50", r(2_469_135, 2)),
            ("0.25", r(1, 4)),
            ("-22/4", r(-11, 2)),
            ("1/0", None),
            ("1e9", None),
            ("1,23", None),
            ("1,,234", None),
            ("", None),
            ("-", None),
            ("--7", None),
            ("5.", None),
            (".5", None),
            ("1.2.3", None),
            ("1/2/3", None),
            ("४२", None),
            ("4２", None),
            ("0x2a", None),
            ("42 apples", None),
            ("NaN", None),
            ("inf", None),
        ] {
            assert_eq!(Rational::parse(text), want, "{text}");
        }
        assert_eq!(Rational::parse(&"9".repeat(50)), None);
        assert_eq!(Rational::new(i128::MIN, -1), None);
    }
}
