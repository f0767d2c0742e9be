//! Numbers with intervals: what held-out problems say about a model, and what two models say about each other.
//!
//! Everything here is a pure function; the bootstrap draws from a fixed seed, so that the same measurements
//! always give the same interval.

use ground::seeds::{GOLDEN, mix};
use serde::{Deserialize, Serialize};

/// The normal quantile of a two-sided 95 % interval.
const Z: f64 = 1.959_963_984_540_054;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 4000;

/// A number with the ends of its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The number itself.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// The share `successes / trials` with Wilson's interval; of no trials, 0 within [0, 1].
///
/// ```
/// let share = train::stats::wilson(8, 10);
/// assert_eq!(share.value, 0.8);
/// assert!((share.low - 0.4902).abs() < 1e-4 && (share.high - 0.9433).abs() < 1e-4);
/// ```
pub fn wilson(successes: u64, trials: u64) -> Estimate {
    if trials == 0 {
        return Estimate { value: 0.0, low: 0.0, high: 1.0 };
    }
    let (share, trials) = (successes as f64 / trials as f64, trials as f64);
    let z2 = Z * Z / trials;
    let centre = (share + z2 / 2.0) / (1.0 + z2);
    let half = Z / (1.0 + z2) * (share * (1.0 - share) / trials + z2 / (4.0 * trials)).sqrt();
    // At 0 and 1 the near end is exactly the share, which rounding would miss.
    Estimate { value: share, low: (centre - half).clamp(0.0, share), high: (centre + half).clamp(share, 1.0) }
}

/// The answer that most samples gave, as the index of the first sample that gave it; of equally common ones,
/// the one given first. Samples without an answer do not vote.
pub fn majority<T: PartialEq>(answers: &[Option<T>]) -> Option<usize> {
    let mut best: Option<(usize, usize)> = None;
    for (index, answer) in answers.iter().enumerate() {
        let Some(answer) = answer else { continue };
        let votes = answers[index..].iter().filter(|other| other.as_ref() == Some(answer)).count();
        // A later copy of an answer counts fewer votes than its first, so that it never wins over it.
        if best.is_none_or(|(_, most)| votes > most) {
            best = Some((index, votes));
        }
    }
    best.map(|(index, _)| index)
}

/// The ratio of two means over the **same** problems, `numerator` over `baseline`, with a bootstrap interval
/// over problems. A resample whose baseline is 0 counts it as half a success.
///
/// # Panics
/// If the two have different lengths.
pub fn ratio_paired(numerator: &[f64], baseline: &[f64]) -> Estimate {
    assert_eq!(numerator.len(), baseline.len(), "a paired ratio needs the same problems on both sides");
    if numerator.iter().chain(baseline).all(|v| *v == 0.0) {
        // Nothing is known of the ratio.
        return Estimate { value: 1.0, low: 0.0, high: f64::MAX };
    }
    let quotient = |picks: &[usize]| {
        let sum = |values: &[f64]| picks.iter().map(|&i| values[i]).sum::<f64>();
        let below = sum(baseline);
        sum(numerator) / if below > 0.0 { below } else { 0.5 }
    };
    let (value, mut ratios) = bootstrap(numerator.len(), quotient);
    ratios.sort_by(f64::total_cmp);
    Estimate { value, low: quantile(&ratios, 0.025).min(value), high: quantile(&ratios, 0.975).max(value) }
}

/// A statistic of all of `count` problems, which it gets by their numbers, and of resamples of them.
fn bootstrap<T>(count: usize, statistic: impl Fn(&[usize]) -> T) -> (T, Vec<T>) {
    let all: Vec<usize> = (0..count).collect();
    let mut random = Random(0x5eed);
    let mut resample = || (0..count).map(|_| random.below(count)).collect::<Vec<_>>();
    let resamples = (0..RESAMPLES).map(|_| statistic(&resample())).collect();
    (statistic(&all), resamples)
}

/// How many times `flops` a rival needs for the mean of `own`, with a bootstrap interval over the problems, which are the
/// same on all sides. Each of the rival's points is its values and its FLOPs, in any order; between two points FLOPs grow
/// geometrically. Where the rival never gets there, all that it spent is the lower bound that counts, and the upper end
/// of the interval is [`f64::MAX`].
///
/// # Panics
/// If the sides have different lengths, or there is no point.
pub fn leverage(own: &[f64], flops: f64, rival: &[(Vec<f64>, f64)]) -> Estimate {
    let count = own.len();
    assert!(rival.iter().all(|(values, _)| values.len() == count), "the same problems on all sides");
    let mut rival: Vec<&(Vec<f64>, f64)> = rival.iter().collect();
    rival.sort_by(|a, b| a.1.total_cmp(&b.1));
    let times = |picks: &[usize]| {
        let mean = |values: &[f64]| picks.iter().map(|&i| values[i]).sum::<f64>();
        let points: Vec<(f64, f64)> = rival.iter().map(|(values, spent)| (mean(values), *spent)).collect();
        let (needed, reached) = flops_to_reach(mean(own), &points);
        (needed / flops.max(1.0), reached)
    };
    let ((value, reached), mut drawn) = bootstrap(count, times);
    // Lower bounds above the numbers: of those, nobody knows how large they are.
    drawn.sort_by(|a, b| (!a.1).cmp(&!b.1).then(a.0.total_cmp(&b.0)));
    let high = match drawn[(0.975 * (RESAMPLES - 1) as f64).ceil() as usize] {
        (high, true) if reached => high.max(value),
        _ => f64::MAX,
    };
    let mut least: Vec<f64> = drawn.into_iter().map(|(times, _)| times).collect();
    least.sort_by(f64::total_cmp);
    Estimate { value, low: quantile(&least, 0.025).min(value), high }
}

/// FLOPs at which a curve through points of growing FLOPs first reaches `goal`, and whether it does; if not, those of its
/// last point.
fn flops_to_reach(goal: f64, points: &[(f64, f64)]) -> (f64, bool) {
    let mut before: Option<(f64, f64)> = None;
    for &(height, flops) in points {
        if height >= goal {
            let between = |(low, from): (f64, f64)| {
                let part = (goal - low) / (height - low);
                if from > 0.0 { from * (flops / from).powf(part) } else { flops * part }
            };
            return (before.map_or(flops, between), true);
        }
        before = Some((height, flops));
    }
    (before.expect("a curve has points").1, false)
}

/// The quantile of sorted values, with straight lines between them.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + (sorted[high] - sorted[low]) * part
}

/// SplitMix64: enough for resampling, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `bound`, by the high half of a product.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-4, "found {found}, expected {expected}");
    }

    /// Against the values of Wilson's formula worked by hand.
    #[test]
    fn wilson_by_hand() {
        let half = wilson(50, 100);
        near(half.low, 0.403_83);
        near(half.high, 0.596_17);
        let none = wilson(0, 20);
        assert_eq!((none.value, none.low), (0.0, 0.0));
        near(none.high, 0.161_13);
        let all = wilson(20, 20);
        assert_eq!((all.value, all.high), (1.0, 1.0));
        near(all.low, 0.838_87);
        assert_eq!(wilson(0, 0), Estimate { value: 0.0, low: 0.0, high: 1.0 });
    }

    #[test]
    fn the_majority_wins_and_silence_does_not_vote() {
        assert_eq!(majority(&[Some("3"), Some("4"), Some("4")]), Some(1));
        assert_eq!(majority(&[None, None, Some("4")]), Some(2));
        assert_eq!(majority(&[Some("3"), Some("4")]), Some(0), "the first of equals");
        assert_eq!(majority::<&str>(&[None, None]), None);
        assert_eq!(majority::<&str>(&[]), None);
    }

    /// Nothing depends on the time of day, and nothing divides by nothing.
    #[test]
    fn ratios_are_steady() {
        let baseline: Vec<f64> = (0..200).map(|index| f64::from(index % 3 == 0)).collect();
        let better: Vec<f64> = (0..200).map(|index| f64::from(index % 3 == 0 || index % 5 == 0)).collect();
        let paired = ratio_paired(&better, &baseline);
        near(paired.value, better.iter().sum::<f64>() / baseline.iter().sum::<f64>());
        assert!(paired.low > 1.0);
        assert_eq!(paired, ratio_paired(&better, &baseline));
        assert!(ratio_paired(&baseline, &[0.0; 200]).value.is_finite());
        assert_eq!(ratio_paired(&[1.0; 9], &[1.0; 9]), Estimate { value: 1.0, low: 1.0, high: 1.0 });
        assert_eq!(ratio_paired(&[0.0; 9], &[0.0; 9]).high, f64::MAX);
    }

    /// The interval of a ratio of means over the same problems is the delta method's, what they have in common included.
    #[test]
    fn the_paired_ratio_agrees_with_the_delta_method() {
        let second: Vec<f64> = (0..400).map(|index| 1.0 + f64::from(index % 11) / 11.0).collect();
        let first: Vec<f64> = (0..400).map(|index| second[index] + (index % 7) as f64 / 7.0).collect();
        let found = ratio_paired(&first, &second);
        let mean = |of: &dyn Fn(usize) -> f64| (0..400).map(of).sum::<f64>() / 400.0;
        let (a, b) = (mean(&|i| first[i]), mean(&|i| second[i]));
        let half = Z * (mean(&|i| (first[i] - a / b * second[i]).powi(2)) / 400.0).sqrt() / b;
        assert!((found.low - (a / b - half)).abs() < 0.2 * half);
        assert!((found.high - (a / b + half)).abs() < 0.2 * half);
    }

    /// Between its points a rival's FLOPs grow geometrically, and what it never reaches is bounded from below alone.
    #[test]
    fn leverage_is_read_off_the_rivals_curve() {
        let answers = |right: usize| (0..400).map(|i| f64::from(u8::from(i < right))).collect::<Vec<f64>>();
        let own = answers(300);
        let reached = leverage(&own, 2.0, &[(answers(360), 64.0), (answers(240), 4.0)]);
        assert!((reached.value - 8.0).abs() < 1e-9, "{reached:?}");
        assert!(reached.low > 4.0 && reached.high < 16.0 && reached.low < 8.0 && reached.high > 8.0);
        let never = leverage(&own, 2.0, &[(answers(200), 4.0), (answers(240), 40.0)]);
        assert_eq!((never.value, never.high), (20.0, f64::MAX));
        assert!(never.low > 19.0, "{never:?}");
        let at_once = leverage(&own, 2.0, &[(answers(400), 1.0)]);
        assert_eq!((at_once.value, at_once.high), (0.5, 0.5));
    }
}
