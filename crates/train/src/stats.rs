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

impl Estimate {
    /// A number that was not measured with error, such as a count of operations.
    pub fn exact(value: f64) -> Self {
        Estimate { value, low: value, high: value }
    }
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
    score_interval(successes as f64 / trials as f64, trials as f64)
}

/// Wilson's interval of a share seen in `trials` trials, which need not be a whole number.
fn score_interval(share: f64, trials: f64) -> Estimate {
    let z2 = Z * Z / trials;
    let centre = (share + z2 / 2.0) / (1.0 + z2);
    let half = Z / (1.0 + z2) * (share * (1.0 - share) / trials + z2 / (4.0 * trials)).sqrt();
    // At 0 and 1 the near end is exactly the share, which rounding would miss.
    Estimate { value: share, low: (centre - half).clamp(0.0, share), high: (centre + half).clamp(share, 1.0) }
}

/// The chance that at least one of `k` samples is right, estimated without bias from `samples` samples of
/// which `right` are (Chen et al. 2021, equation 1).
///
/// # Panics
/// If `k` is 0 or above `samples`, or `right` is above `samples`.
pub fn pass_at_k(samples: u64, right: u64, k: u64) -> f64 {
    assert!(k >= 1 && k <= samples && right <= samples, "pass@{k} of {right} right among {samples} samples");
    if samples - right < k {
        return 1.0;
    }
    // 1 − C(n − c, k) / C(n, k), as a product that cannot overflow.
    1.0 - (samples - right + 1..=samples).map(|n| 1.0 - k as f64 / n as f64).product::<f64>()
}

/// The mean over problems of values in [0, 1], such as each problem's pass@k, each from at most
/// `samples_each` samples.
///
/// The interval is Wilson's with the effective number of trials `p(1 − p) / variance of the mean`: exact for
/// zeros and ones, narrower where values lie between, and never empty, even if all problems agree.
pub fn mean_of_shares(values: &[f64], samples_each: u64) -> Estimate {
    let count = values.len() as f64;
    if values.is_empty() {
        return wilson(0, 0);
    }
    let mean = (values.iter().sum::<f64>() / count).clamp(0.0, 1.0);
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    let spread = mean * (1.0 - mean);
    let most = count * samples_each.max(1) as f64;
    let trials = if variance > 0.0 { (count * spread / variance).clamp(count, most) } else { count };
    score_interval(mean, trials)
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
/// over problems.
///
/// # Panics
/// If the two have different lengths.
pub fn ratio_paired(numerator: &[f64], baseline: &[f64]) -> Estimate {
    assert_eq!(numerator.len(), baseline.len(), "a paired ratio needs the same problems on both sides");
    let count = numerator.len();
    ratio(numerator, baseline, |random, pick| {
        for _ in 0..count {
            let index = random.below(count);
            pick(index, index);
        }
    })
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
    let (value, reached) = times(&(0..count).collect::<Vec<_>>());
    let mut random = Random(0x5eed);
    let mut drawn: Vec<(f64, bool)> =
        (0..RESAMPLES).map(|_| times(&(0..count).map(|_| random.below(count)).collect::<Vec<_>>())).collect();
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

/// The ratio of two means over different problems, seeds or steps, with a bootstrap interval.
pub fn ratio_independent(numerator: &[f64], baseline: &[f64]) -> Estimate {
    let counts = (numerator.len(), baseline.len());
    ratio(numerator, baseline, |random, pick| {
        // The shorter side is drawn as often as it is long: the rest of its picks is left out.
        for index in 0..counts.0.max(counts.1) {
            let first = if index < counts.0 { random.below(counts.0) } else { usize::MAX };
            let second = if index < counts.1 { random.below(counts.1) } else { usize::MAX };
            pick(first, second);
        }
    })
}

/// Bootstraps mean(numerator) / mean(baseline). A resample whose baseline is 0 counts it as half a success.
fn ratio(
    numerator: &[f64],
    baseline: &[f64],
    resample: impl Fn(&mut Random, &mut dyn FnMut(usize, usize)),
) -> Estimate {
    let nothing = |values: &[f64]| values.iter().all(|v| *v == 0.0);
    if numerator.is_empty() || baseline.is_empty() || nothing(numerator) && nothing(baseline) {
        // Nothing is known of the ratio.
        return Estimate { value: 1.0, low: 0.0, high: f64::MAX };
    }
    let counts = (numerator.len() as f64, baseline.len() as f64);
    let quotient = |sums: (f64, f64)| {
        let below = if sums.1 > 0.0 { sums.1 } else { 0.5 };
        (sums.0 / counts.0) / (below / counts.1)
    };
    let mut random = Random(0x5eed);
    let mut ratios: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut sums = (0.0, 0.0);
            resample(&mut random, &mut |first, second| {
                sums.0 += numerator.get(first).unwrap_or(&0.0);
                sums.1 += baseline.get(second).unwrap_or(&0.0);
            });
            quotient(sums)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let value = quotient((numerator.iter().sum(), baseline.iter().sum()));
    Estimate { value, low: quantile(&ratios, 0.025).min(value), high: quantile(&ratios, 0.975).max(value) }
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

    /// Against every way to choose k of n, counted out.
    #[test]
    fn pass_at_k_counts_every_choice() {
        assert_eq!(pass_at_k(8, 0, 8), 0.0);
        assert_eq!(pass_at_k(8, 1, 8), 1.0);
        near(pass_at_k(8, 2, 1), 0.25);
        for samples in 1_u64..=7 {
            for right in 0..=samples {
                for k in 1..=samples {
                    let choices: Vec<u32> =
                        (0_u32..1 << samples).filter(|set| set.count_ones() == k as u32).collect();
                    let hits = choices.iter().filter(|set| *set & ((1 << right) - 1) != 0).count();
                    near(pass_at_k(samples, right, k), hits as f64 / choices.len() as f64);
                }
            }
        }
    }

    /// For zeros and ones the mean's interval is Wilson's, and agreement of all problems leaves a doubt.
    #[test]
    fn mean_of_shares_is_wilson_for_whole_answers() {
        let values = [1.0, 0.0, 1.0, 1.0];
        let (found, expected) = (mean_of_shares(&values, 8), wilson(3, 4));
        near(found.low, expected.low);
        near(found.high, expected.high);
        assert_eq!(mean_of_shares(&[1.0; 20], 8), wilson(20, 20));
        let between = mean_of_shares(&[0.5, 0.6, 0.4, 0.5], 8);
        assert!(between.high - between.low < wilson(2, 4).high - wilson(2, 4).low);
        assert!(between.low < 0.5 && between.high > 0.5);
        assert!(mean_of_shares(&[0.5; 4], 8).high > 0.6);
    }

    #[test]
    fn the_majority_wins_and_silence_does_not_vote() {
        assert_eq!(majority(&[Some("3"), Some("4"), Some("4")]), Some(1));
        assert_eq!(majority(&[None, None, Some("4")]), Some(2));
        assert_eq!(majority(&[Some("3"), Some("4")]), Some(0), "the first of equals");
        assert_eq!(majority::<&str>(&[None, None]), None);
        assert_eq!(majority::<&str>(&[]), None);
    }

    /// Pairing takes the problems' difficulty out of the ratio, and nothing depends on the time of day.
    #[test]
    fn ratios_are_steady_and_pairing_narrows() {
        let baseline: Vec<f64> = (0..200).map(|index| f64::from(index % 3 == 0)).collect();
        let better: Vec<f64> = (0..200).map(|index| f64::from(index % 3 == 0 || index % 5 == 0)).collect();
        let paired = ratio_paired(&better, &baseline);
        let apart = ratio_independent(&better, &baseline);
        near(paired.value, better.iter().sum::<f64>() / baseline.iter().sum::<f64>());
        assert!(paired.low > 1.0 && paired.high - paired.low < apart.high - apart.low);
        assert_eq!(paired, ratio_paired(&better, &baseline));
        assert!(ratio_paired(&baseline, &[0.0; 200]).value.is_finite());
        assert_eq!(ratio_paired(&[1.0; 9], &[1.0; 9]), Estimate::exact(1.0));
    }

    /// The interval of independent means holds the truth about as often as it says, for the delta method's
    /// own example: two samples of known spread.
    #[test]
    fn the_independent_ratio_agrees_with_the_delta_method() {
        let first: Vec<f64> = (0..400).map(|index| 2.0 + f64::from(index % 7) / 7.0).collect();
        let second: Vec<f64> = (0..300).map(|index| 1.0 + f64::from(index % 11) / 11.0).collect();
        let found = ratio_independent(&first, &second);
        let moments = |values: &[f64]| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance =
                values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
            (mean, variance / values.len() as f64)
        };
        let ((a, va), (b, vb)) = (moments(&first), moments(&second));
        let half = Z * (a / b) * (va / (a * a) + vb / (b * b)).sqrt();
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
