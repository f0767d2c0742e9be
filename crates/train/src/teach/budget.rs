//! What there is to spend on a lesson, and what things cost.

use data::{Conversation, Message, Tokenizer, encode_chat};
use model::Model;
use model::inspect::inspect;

use super::{Lesson, PATIENCE, TeachError, Trial};
use crate::memory::{TRAINING_COPIES, available_bytes, training_bytes};

/// Tokens of an answer where no solution tells how long one is.
const MAX_NEW: usize = 256;
/// The rank of adapters where memory is short.
const RANK: usize = 16;
/// The share of the product ceiling that training reaches, for the plan.
const REACHED: f64 = 0.4;
/// Of free memory, what may be used.
const MEMORY_SHARE: f64 = 0.6;
/// Tokens that asking for the form takes.
const REQUEST: usize = 32;

/// What the user wants.
#[derive(Clone, Copy, Debug)]
pub struct Wishes {
    /// The time there is.
    pub minutes: f32,
    /// The longest answer, in tokens, where the solutions are not to tell.
    pub max_new: Option<usize>,
    /// The rank of an adapter to train in place of all weights.
    pub lora: Option<usize>,
}

/// How long the rows are, in tokens.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// The number of the longest row in the table.
    pub longest: u64,
    /// The longest row with its solution, as a conversation.
    pub longest_row: usize,
    /// The longest solution with its answer.
    pub longest_answer: usize,
    /// Of the rows to learn from, the mean: those with a solution, where some have one.
    pub row: f64,
    /// What an answer may take.
    pub max_new: usize,
}

impl Lengths {
    /// Measures the rows, by a tokenizer that has a template.
    ///
    /// # Errors
    /// A row that the tokenizer or its template refuses.
    pub fn of(tokenizer: &Tokenizer, lesson: &Lesson, wishes: &Wishes) -> Result<Lengths, TeachError> {
        if tokenizer.chat_template().is_none() {
            return Err(TeachError::NoTemplate);
        }
        let place = lesson.taught_place();
        let (mut longest, mut longest_row, mut longest_answer, mut sum, mut rows) = (0, 0, 0, 0, 0);
        for (p, row) in lesson.problems.iter().zip(&lesson.numbers) {
            let work = p.solution.as_deref().unwrap_or_default();
            let answer = place.write(work, &p.answer).unwrap_or_default();
            let turns = [Message::user(p.prompt.as_str()), Message::assistant(answer.as_str())];
            let refused = |source| TeachError::Row { row: *row, source };
            let tokens = encode_chat(tokenizer, &Conversation::of(turns)).map_err(refused)?.ids.len();
            let answer = tokenizer.encode(&answer).map_err(refused)?.len();
            if tokens > longest_row {
                (longest, longest_row) = (*row, tokens);
            }
            longest_answer = longest_answer.max(answer);
            if lesson.solved == 0 || !work.is_empty() {
                (sum, rows) = (sum + tokens, rows + 1);
            }
        }
        Ok(Lengths {
            longest,
            longest_row: longest_row + REQUEST,
            longest_answer,
            row: sum as f64 / f64::from(rows.max(1)) + REQUEST as f64,
            max_new: wishes.max_new.unwrap_or(match lesson.solved {
                0 => MAX_NEW,
                _ => (longest_answer * 3 / 2).max(32),
            }),
        })
    }

    /// Makes room in a model for the longest row and its answer.
    ///
    /// # Errors
    /// A context that is too short for that.
    pub fn reserve(&self, model: &mut Model) -> Result<(), TeachError> {
        let context = model.config().max_position_embeddings();
        model.reserve_positions((self.longest_row + self.max_new.max(PATIENCE)).min(context));
        let tokens = self.seq_len();
        let row = self.longest;
        if context < tokens { Err(TeachError::NoRoom { row, tokens, context }) } else { Ok(()) }
    }

    fn seq_len(&self) -> usize {
        self.longest_row + self.max_new
    }
}

/// What there is to spend, and what things cost.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// All of it, in seconds.
    pub seconds: f64,
    /// Seconds of training on a token.
    pub training: f64,
    /// Seconds of a generated token.
    pub generating: f64,
    /// Tokens of an answer at most, and of the longest conversation.
    pub max_new: usize,
    /// See above.
    pub seq_len: usize,
    /// Tokens that the model may take for an answer before it is taught, and takes on average.
    pub before: (usize, f64),
    /// Tokens of an answer, and of a row with its solution, on average.
    pub answer: f64,
    /// See above.
    pub row: f64,
    /// The rank of an adapter, if one is trained in place of all weights.
    pub lora: Option<usize>,
    /// The model's parameters.
    pub parameters: f64,
    /// Memory that may be used, in bytes.
    pub memory: f64,
}

impl Budget {
    /// Counts it; `ceiling` are the operations a second of large products here.
    pub fn of(
        wishes: &Wishes,
        lesson: &Lesson,
        model: &Model,
        trial: &Trial,
        lengths: &Lengths,
        ceiling: f64,
    ) -> Budget {
        let seq_len = lengths.seq_len();
        let counted = inspect(model.config(), seq_len);
        let memory = training_bytes(model.config(), TRAINING_COPIES, 2048);
        let have = model.params().gpu().map(|gpu| gpu.info().memory as f64).or_else(available_bytes);
        let short = have.is_some_and(|have| memory > MEMORY_SHARE * have);
        let answer = match lesson.solved {
            0 => trial.found.mean_tokens,
            _ => lengths.longest_answer as f64 * 0.7,
        };
        Budget {
            seconds: 60.0 * f64::from(wishes.minutes),
            training: counted.training_operations_per_token as f64 / (REACHED * ceiling),
            generating: trial.seconds_per_token,
            max_new: lengths.max_new,
            seq_len,
            before: (trial.max_new, trial.found.mean_tokens),
            answer,
            row: lengths.row,
            lora: wishes.lora.or(short.then_some(RANK)),
            parameters: counted.parameters.total as f64,
            memory: have.map_or(4e9, |have| MEMORY_SHARE * have),
        }
    }
}
