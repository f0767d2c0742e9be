//! How long steps take, and how much of a prompt one may take along.

use super::Limits;

/// How long steps take, for how many prompt tokens one may take along so that nobody waits too long.
#[derive(Default)]
pub(super) struct Pace {
    /// Seconds of a step of decoding alone, lately.
    usual: Option<f64>,
    /// Seconds that a prompt token adds to a step of decoding, lately. A step of a prompt alone is no measure: a row among hundreds
    /// takes less than one among a dozen.
    row: Option<f64>,
    /// How many were taken along lately; the end of a prompt, which is short, does not count in full.
    last: usize,
}

/// The least prompt tokens that are taken along, and how many are before anything was measured.
const FEWEST_ROWS: usize = 2;

impl Pace {
    /// How many prompt tokens a step may take along beside decoding: at most twice as many as the last, so that one wrong
    /// measure makes no long pause.
    pub(super) fn rows(&self, limits: &Limits) -> usize {
        let (Some(usual), Some(row)) = (self.usual, self.row) else { return FEWEST_ROWS };
        let more = (f64::from(limits.patience) - 1.0).max(0.0) * usual;
        let most = limits.rows.min(2 * self.last).max(FEWEST_ROWS);
        ((more / row.max(1e-9)) as usize).clamp(FEWEST_ROWS, most)
    }

    /// Takes note of a step of so many sequences in decoding and so many prompt tokens.
    pub(super) fn note(&mut self, seconds: f64, decoding: usize, prompts: usize) {
        let towards =
            |old: Option<f64>, new: f64, share: f64| Some(old.map_or(new, |old| old + share * (new - old)));
        if prompts == 0 {
            // Quickly down and slowly up: what another program takes of the machine is no measure.
            let share = if self.usual.is_some_and(|usual| seconds > usual) { 0.05 } else { 0.5 };
            self.usual = towards(self.usual, seconds, share);
            return;
        }
        if decoding > 0 {
            self.last = prompts.max(self.last / 2);
            let own = self.usual.unwrap_or(0.0);
            self.row = towards(self.row, (seconds - own).max(0.0) / prompts as f64, 0.3);
        }
    }
}
