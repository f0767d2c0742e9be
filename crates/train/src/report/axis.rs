//! Axes: where ticks fall and what they say.

/// What the numbers on an axis are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Plain,
    /// Shares, shown in per cent.
    Share,
}

/// One axis of a chart: a range with its ticks.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub label: String,
    pub unit: Unit,
    pub min: f64,
    pub max: f64,
    log: bool,
    /// Where there is a tick, and what it says.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis that holds `values` and begins and ends on a tick.
    pub fn over(label: &str, unit: Unit, values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = bounds(values);
        let step = nice_step(high - low, 5);
        let (min, max) = ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step);
        Axis::linear(label, unit, min, max.max(min + step))
    }

    /// An axis from `min` to `max` exactly, whose ticks may end before it does.
    pub fn linear(label: &str, unit: Unit, min: f64, max: f64) -> Self {
        let step = nice_step(max - min, 6);
        let first = (min / step - 1e-9).ceil() as i64;
        let last = (max / step + 1e-9).floor() as i64;
        // A lone tick could not give the scale; ranges are never that odd, but a loop must end.
        let ticks = (first..=last.min(first + 40)).map(|index| index as f64 * step);
        let most = min.abs().max(max.abs());
        let ticks = ticks.map(|value| (value, tick_text(value, step, most, unit))).collect();
        Axis { label: label.to_owned(), unit, min, max, log: false, ticks }
    }

    /// A logarithmic axis over positive values where they span much, else as [`Axis::over`].
    pub fn log_over(label: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        let (low, high) = bounds(values.iter().copied());
        if low <= 0.0 || high / low < 6.0 {
            return Axis::over(label, Unit::Plain, values);
        }
        let (min, max) = (low * 0.9, high * 1.1);
        let decades = min.log10().floor() as i32..=max.log10().ceil() as i32;
        let marks = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(decade)));
        let inside = marks.filter(|mark| (min..=max).contains(mark));
        let ticks = inside.map(|mark| (mark, tick_text(mark, mark, mark, Unit::Plain))).collect();
        Axis { label: label.to_owned(), unit: Unit::Plain, min, max, log: true, ticks }
    }

    /// Where a value stands between the ends, from 0 to 1; values beyond them stand at them.
    pub fn place(&self, value: f64) -> f64 {
        let place = if self.log {
            (value.max(self.min) / self.min).ln() / (self.max / self.min).ln()
        } else {
            (value - self.min) / (self.max - self.min)
        };
        place.clamp(0.0, 1.0)
    }
}

/// The least and the greatest finite value, never the same and never infinite.
fn bounds(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let finite = values.into_iter().filter(|value| value.is_finite());
    let (low, high) = finite
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return (0.0, 1.0);
    }
    if high - low <= 1e-9 * high.abs().max(1e-9) {
        let room = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
        return (low - room, high + room);
    }
    (low, high)
}

/// 1, 2 or 5 times a power of ten, so that about `count` of them span the range.
fn nice_step(range: f64, count: usize) -> f64 {
    let rough = range.max(f64::MIN_POSITIVE) / count as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let digit = [1.0, 2.0, 5.0].into_iter().find(|digit| digit * power >= rough * 0.999).unwrap_or(10.0);
    digit * power
}

/// A tick's number with just the digits that its step needs, on an axis that goes as far as `most`.
fn tick_text(value: f64, step: f64, most: f64, unit: Unit) -> String {
    let decimals = |step: f64| (-step.log10() - 1e-9).ceil().clamp(0.0, 12.0) as usize;
    // Without this, rounding could show −0.
    let value = if value.abs() < step * 1e-6 { 0.0 } else { value };
    match unit {
        Unit::Share => format!("{:.*} %", decimals(step * 100.0), value * 100.0).replace('-', "−"),
        Unit::Plain if most >= 10_000.0 => short(value),
        Unit::Plain => format!("{value:.*}", decimals(step)).replace('-', "−"),
    }
}

/// A number in few characters: 12.3k, 4.56M, 7.8e12 as 7.8T.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    for (unit, name) in [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if size >= unit * 0.9995 {
            return format!("{}{name}", digits(value / unit, 3));
        }
    }
    digits(value, 3)
}

/// A number to so many significant digits, without trailing zeros.
pub(super) fn digits(value: f64, count: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".into() } else { "–".into() };
    }
    let decimals = (count - 1 - value.abs().log10().floor() as i32).clamp(0, 12) as usize;
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    text.replace('-', "−")
}

/// A share in per cent, with one decimal only where it says something.
pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent == 0.0 || percent >= 9.95 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

/// A span of time in words: 48 s, 12 min 5 s, 1 h 4 min.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Bytes in binary units.
pub(super) fn bytes(count: u64) -> String {
    let count = count as f64;
    match count {
        _ if count >= 1073741824.0 => format!("{} GiB", digits(count / 1073741824.0, 3)),
        _ if count >= 1048576.0 => format!("{} MiB", digits(count / 1048576.0, 3)),
        _ => format!("{} KiB", digits(count / 1024.0, 3)),
    }
}

/// A price in dollars.
pub(super) fn money(dollars: f64) -> String {
    match dollars {
        _ if dollars <= 0.0 => "$0".into(),
        _ if dollars < 0.000_05 => "<$0.0001".into(),
        // Cents need two decimals, parts of a cent up to four.
        _ if dollars < 0.0995 => {
            let text = format!("{dollars:.4}");
            format!("${}", text.strip_suffix("00").unwrap_or(&text))
        }
        _ => format!("${dollars:.2}"),
    }
}

/// A price as one says it: 1.3 cents, $4.20.
pub(super) fn price(dollars: f64) -> String {
    match dollars {
        _ if dollars <= 0.0 => "nothing".into(),
        _ if dollars < 0.995 => {
            let cents = digits(dollars * 100.0, 2);
            if cents == "1" { "1 cent".into() } else { format!("{cents} cents") }
        }
        _ => format!("${dollars:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_hold_the_data() {
        assert_eq!(
            texts(&Axis::over("", Unit::Plain, [0.03, 0.97])),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        assert_eq!(
            texts(&Axis::over("", Unit::Share, [0.0, 1.0])),
            ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
        );
        assert_eq!(texts(&Axis::linear("", Unit::Plain, 0.0, 237.0)), ["0", "50", "100", "150", "200"]);
        assert_eq!(
            texts(&Axis::over("", Unit::Plain, [0.0, 48_000.0])),
            ["0", "10k", "20k", "30k", "40k", "50k"]
        );
        assert_eq!(texts(&Axis::log_over("", [0.3, 6.2])), ["0.5", "1", "2", "5"]);
        assert!(texts(&Axis::over("", Unit::Plain, [-0.5, 0.5])).contains(&"−0.4"));
    }

    /// Charts of nothing, of one value and of broken values are still charts.
    #[test]
    fn odd_data_gives_finite_axes() {
        for values in
            [vec![], vec![0.0], vec![3.0, 3.0], vec![f64::NAN, 1.0], vec![f64::INFINITY], vec![-2.0]]
        {
            for axis in [Axis::over("", Unit::Plain, values.clone()), Axis::log_over("", values.clone())] {
                assert!(axis.min.is_finite() && axis.max > axis.min && !axis.ticks.is_empty(), "{values:?}");
                assert!((0.0..=1.0).contains(&axis.place(0.5)));
            }
        }
    }

    #[test]
    fn numbers_in_words() {
        assert_eq!(short(1_234_567.0), "1.23M");
        assert_eq!(short(999_700.0), "1M");
        assert_eq!(short(12.0), "12");
        assert_eq!(percent(0.034), "3.4 %");
        assert_eq!(percent(0.834), "83 %");
        assert_eq!(duration(725.0), "12 min 5 s");
        assert_eq!(duration(3.25), "3.2 s");
        assert_eq!(
            [0.0123, 0.02, 0.0, 1.5, 1e-5].map(money),
            ["$0.0123", "$0.02", "$0", "$1.50", "<$0.0001"]
        );
        assert_eq!([0.0126, 0.01, 2.0].map(price), ["1.3 cents", "1 cent", "$2.00"]);
        assert_eq!(bytes(1_610_612_736), "1.5 GiB");
    }
}
