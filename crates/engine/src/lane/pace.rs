//! How long steps take, and how much of a prompt one may take along.

use super::Limits;

/// How long steps take, for how many prompt tokens one may take along so that nobody waits too long.
#[derive(Default)]
pub(super) struct Pace {
    /// Seconds of a step of decoding alone, lately.
    usual: Option<f64>,
    /// Seconds that a prompt token adds to a step, lately.
    row: Option<f64>,
}

/// The least prompt tokens that are taken along, and how many are before anything was measured.
const FEWEST_ROWS: usize = 8;
const FIRST_ROWS: usize = 32;

impl Pace {
    /// How many prompt tokens a step may take along beside decoding.
    pub(super) fn rows(&self, limits: &Limits) -> usize {
        match (self.usual, self.row) {
            (Some(usual), Some(row)) => {
                let more = (f64::from(limits.patience) - 1.0).max(0.0) * usual;
                ((more / row.max(1e-9)) as usize).clamp(FEWEST_ROWS, limits.rows.max(FEWEST_ROWS))
            }
            _ => FIRST_ROWS,
        }
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
        let own = if decoding == 0 { 0.0 } else { self.usual.unwrap_or(0.0) };
        self.row = towards(self.row, (seconds - own).max(0.0) / prompts as f64, 0.3);
    }
}
