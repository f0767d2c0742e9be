//! Prompts beside decoding: a piece of them goes through the model a few layers a step.
//!
//! Whatever its size, a piece reads all weights and the keys and values of everything before it: late in a long prompt that alone
//! takes longer than a step of decoding. So what is cut to what a stream can wait for is not the piece alone but its way.

use std::time::{Duration, Instant};

use model::Stream;

use super::pass::{Rows, Which};
use super::{Lane, Limits, Sink, Ticket};

/// A piece of prompts on its way.
pub(super) struct Piece {
    rows: Rows,
    stream: Stream,
    /// How long its layers took so far, and how many they are.
    spent: Duration,
    layers: u32,
    /// How long they might have taken, and in how many steps.
    spare: Duration,
    steps: u32,
}

/// How long things take.
#[derive(Default)]
pub(super) struct Pace {
    /// Seconds of a step of decoding alone, lately.
    usual: Option<f64>,
    /// Whether the last step had a part of a piece.
    beside: bool,
    /// Rows of a piece of which a layer fits into a step.
    rows: usize,
}

/// Rows of a piece: before anything was measured, and at least.
const FEWEST_ROWS: usize = 8;
/// How long decoding takes alone, at least, as a share of the time beside a piece, which has taken the place of the weights in the caches.
const ALONE: f64 = 0.7;

impl Pace {
    /// Takes note of how long decoding took in a step, alone or beside a piece, and gives what is left to a step for prompts.
    fn note_decoding(&mut self, seconds: f64, limits: &Limits) -> Duration {
        let least = if self.beside { ALONE * seconds } else { seconds };
        let usual = self.usual.unwrap_or(least);
        // Quickly down and slowly up: what another program takes of the machine is no measure.
        let usual = match usual {
            _ if usual < least => usual + 0.05 * (least - usual),
            _ if usual > seconds => usual + 0.5 * (seconds - usual),
            _ => usual,
        };
        self.usual = Some(usual);
        Duration::from_secs_f64((f64::from(limits.patience) * usual - seconds).max(0.0))
    }

    /// Takes note of a piece: at most twice as many rows come next, so that one wrong measure makes no long pause.
    fn note_piece(&mut self, piece: &Piece) {
        let rows = piece.rows.tokens.len();
        let (layer, spare) = (piece.spent / piece.layers, piece.spare / piece.steps);
        let fitting = rows as f64 * spare.as_secs_f64() / layer.as_secs_f64().max(1e-9);
        // The last piece of a prompt is short, and no reason to begin the next prompt with less.
        self.rows = (fitting as usize).clamp(rows / 2, self.rows.max(2 * rows));
    }
}

impl Lane<'_> {
    /// A step of decoding, lengthened by a part of a piece of prompts as far as patience goes; where nothing decodes, the whole of it.
    pub(super) fn patient_step(&mut self, sink: &mut impl Sink) {
        let begun = Instant::now();
        let decoding = self.divide(Which::Decoding, 0);
        let spare = decoding.map(|rows| {
            self.pass(rows, sink);
            self.pace.note_decoding(begun.elapsed().as_secs_f64(), &self.limits)
        });
        if self.piece.is_none() {
            let room = if spare.is_some() { self.pace.rows.max(FEWEST_ROWS) } else { usize::MAX };
            self.piece = self.divide(Which::Prompts, room.min(self.limits.rows)).map(|rows| {
                let stream = self.model.begin(&rows.tokens, &rows.segments);
                Piece { rows, stream, spent: Duration::ZERO, layers: 0, spare: Duration::ZERO, steps: 0 }
            });
        }
        self.pace.beside = self.piece.is_some();
        self.advance(spare, sink);
    }

    /// Gives the piece up if it has rows of that sequence, whose pages will be another's.
    pub(super) fn give_up_piece_of(&mut self, age: (Ticket, usize)) {
        self.piece.take_if(|piece| piece.rows.parts.iter().any(|part| part.age == age));
    }

    /// Takes the piece through a layer, and through more while there is time to spare.
    fn advance(&mut self, spare: Option<Duration>, sink: &mut impl Sink) {
        let Some(mut piece) = self.piece.take() else { return };
        piece.spare += spare.unwrap_or_default();
        piece.steps += 1;
        let begun = Instant::now();
        let hidden = loop {
            let layer = Instant::now();
            let hidden = self.model.advance(&mut piece.stream, &mut self.cache);
            let took = layer.elapsed();
            piece.spent += took;
            piece.layers += 1;
            if hidden.is_some() || spare.is_some_and(|spare| begun.elapsed() + took > spare) {
                break hidden;
            }
        };
        let Some(hidden) = hidden else {
            self.piece = Some(piece);
            return;
        };
        if spare.is_some() {
            self.pace.note_piece(&piece);
        }
        self.finish(piece.rows, &hidden, sink);
    }
}
