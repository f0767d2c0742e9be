//! An answer as it grows: tokens to text, ended by stop strings, thinking told apart.

use std::sync::Arc;

use data::Tokenizer;
use data::answer::LiveText;
use engine::{Extras, FinishReason, Request};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::error::{Answer, ApiError};
use crate::lanes::{Heard, Work};
use crate::options::Served;
use crate::shelf::Entry;
use crate::thinking::{Split, Thinking, marks_answers};
use crate::tools::{Call, ToolReader};

/// What is to be continued, and how its text is read.
pub(crate) struct Ask {
    pub(crate) request: Request,
    pub(crate) extras: Extras,
    /// Strings before which an answer ends.
    pub(crate) stops: Vec<String>,
    /// Whether thinking is told apart, and whether the prompt has begun a thought.
    pub(crate) thinking: Option<bool>,
    /// Whether the answer has a form, in which tags of thinking are text like any other.
    pub(crate) formed: bool,
    /// Whether tokens are told, with their log-probabilities.
    pub(crate) tell_tokens: bool,
    /// Names of tools that may be called, and whether the first call alone counts.
    pub(crate) tools: Option<(Vec<String>, bool)>,
}

/// A token that is told.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) id: u32,
    pub(crate) logprob: f32,
    pub(crate) top: Vec<(u32, f32)>,
}

/// Why a sample ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model ended it.
    Stop,
    /// A stop string came.
    StopString(String),
    /// It has all the tokens that it may have.
    Length,
}

/// What comes of a sample, piece by piece.
#[derive(Clone, Debug, Default)]
pub(crate) struct Piece {
    pub(crate) reasoning: String,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Told>,
    pub(crate) calls: Vec<Call>,
    /// What the model has marked as its answer; it is a part of the text.
    pub(crate) answer: Option<String>,
}

impl Piece {
    fn is_empty(&self) -> bool {
        let texts = [&self.text, &self.reasoning];
        texts.iter().all(|text| text.is_empty())
            && self.tokens.is_empty()
            && self.calls.is_empty()
            && self.answer.is_none()
    }
}

/// How much a sample took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    pub(crate) tokens: usize,
    /// Those that were thinking.
    pub(crate) reasoning: usize,
    /// Those that were guessed ahead, and those of them that came.
    pub(crate) guessed: usize,
    /// See `guessed`.
    pub(crate) guessed_right: usize,
}

/// What is heard of an answer.
#[derive(Debug)]
pub(crate) enum Delta {
    Begun {
        cached: usize,
    },
    Piece {
        sample: usize,
        piece: Piece,
    },
    End {
        sample: usize,
        finish: Finish,
        spent: Spent,
    },
    /// Nothing more comes.
    Failed(ApiError),
}

/// Pieces that may wait for whoever reads them.
const BUFFER: usize = 64;

/// How the text of every sample is read.
struct Reading {
    stops: Vec<String>,
    thinking: Option<Thinking>,
    tell_tokens: bool,
    tools: Option<(Vec<String>, bool)>,
}

/// Begins to answer.
pub(crate) fn begin(entry: &Entry, ask: Ask) -> Answer<Receiver<Delta>> {
    let Ask { request, extras, stops, thinking, formed, tell_tokens, tools } = ask;
    let marks = marks_answers(&entry.served.tokenizer);
    let thinking = thinking.map(|opened| Thinking::new(opened, formed, marks));
    let samples = request.samples;
    let work = entry.front.submit(request, extras).map_err(ApiError::busy)?;
    let (to, deltas) = channel(BUFFER);
    let served = entry.served.clone();
    let reading = Reading { stops, thinking, tell_tokens, tools };
    tokio::spawn(async move { pump(served, work, samples, reading, to).await });
    Ok(deltas)
}

/// One sample's text so far.
struct Sample<'a> {
    live: LiveText<'a>,
    thinking: Option<Thinking>,
    tools: Option<ToolReader>,
    spent: Spent,
    /// It ended by a stop string or with the one call that counts; what comes from the engine after that is not its own.
    stopped: bool,
    /// It has all the tokens that it may have.
    cut: bool,
    ended: bool,
}

impl Sample<'_> {
    fn is_thinking(&self) -> bool {
        self.thinking.as_ref().is_some_and(Thinking::is_inside)
    }

    /// Thinking, answer and calls of a piece of text.
    fn split(&mut self, text: &str, end: bool) -> Piece {
        let mut piece = match &mut self.thinking {
            None => Piece { text: text.to_owned(), ..Piece::default() },
            Some(thinking) => {
                let Split { reasoning, text, answer } = thinking.push(text, end);
                Piece { reasoning, text, answer, ..Piece::default() }
            }
        };
        if let Some(tools) = &mut self.tools {
            piece.text = tools.push(&piece.text);
            self.stopped |= tools.is_done();
            if end || self.stopped {
                let (rest, calls) = tools.finish(self.cut);
                piece.text += &rest;
                piece.calls = calls;
            }
        }
        piece
    }
}

/// Reads what the lane tells, and hands it on as text. A reader that goes away ends the work.
async fn pump(served: Arc<Served>, mut work: Work, samples: usize, reading: Reading, to: Sender<Delta>) {
    let tokenizer: &Tokenizer = &served.tokenizer;
    let mut texts: Vec<Sample> = (0..samples)
        .map(|_| Sample {
            live: LiveText::new(tokenizer, &reading.stops),
            thinking: reading.thinking.clone(),
            tools: reading.tools.clone().map(|(names, one)| ToolReader::new(names, one)),
            spent: Spent::default(),
            stopped: false,
            cut: false,
            ended: false,
        })
        .collect();
    let mut open = samples;
    while open > 0 {
        // A client that goes away while its request waits is noticed too.
        let heard = tokio::select! {
            heard = work.next() => heard,
            () = to.closed() => return,
        };
        let deltas = match heard {
            None => {
                vec![Delta::Failed(ApiError::internal("the model's thread has ended: see the server's log"))]
            }
            Some(Heard::Refused(refusal)) => vec![Delta::Failed(ApiError::bad(refusal.to_string()))],
            Some(Heard::Begun { cached }) => vec![Delta::Begun { cached }],
            Some(Heard::Token { sample, drawn, top }) => {
                let told = Told { id: drawn.token, logprob: drawn.logprob, top };
                match texts[sample].take(told, sample, reading.tell_tokens) {
                    Err(error) => vec![Delta::Failed(ApiError::internal(error.to_string()))],
                    Ok(deltas) => {
                        if texts[sample].stopped {
                            work.stop(sample);
                        }
                        deltas
                    }
                }
            }
            Some(Heard::Guessed { sample, guessed, right }) => {
                let spent = &mut texts[sample].spent;
                spent.guessed += guessed;
                spent.guessed_right += right;
                continue;
            }
            Some(Heard::End { sample, reason }) => match texts[sample].end(sample, reason) {
                Err(error) => vec![Delta::Failed(ApiError::internal(error.to_string()))],
                Ok(deltas) => deltas,
            },
        };
        for delta in deltas {
            let failed = matches!(delta, Delta::Failed(_));
            open -= usize::from(matches!(delta, Delta::End { .. }));
            if to.send(delta).await.is_err() || failed {
                return;
            }
        }
    }
}

impl Sample<'_> {
    /// A token's text, and the end of the sample where a stop string came with it.
    fn take(&mut self, told: Told, sample: usize, tell: bool) -> data::Result<Vec<Delta>> {
        if self.stopped {
            return Ok(Vec::new());
        }
        self.spent.tokens += 1;
        self.spent.reasoning += usize::from(self.is_thinking());
        let goes_on = self.live.push(told.id)?;
        let text = self.live.take_new().to_owned();
        self.stopped = !goes_on;
        let mut piece = self.split(&text, !goes_on);
        if tell {
            piece.tokens.push(told);
        }
        let mut deltas = Vec::new();
        if !piece.is_empty() {
            deltas.push(Delta::Piece { sample, piece });
        }
        if self.stopped {
            self.ended = true;
            let finish = self.live.stopped_by().map_or(Finish::Stop, |by| Finish::StopString(by.to_owned()));
            deltas.push(Delta::End { sample, finish, spent: self.spent });
        }
        Ok(deltas)
    }

    /// What was held back, and the end.
    fn end(&mut self, sample: usize, reason: FinishReason) -> data::Result<Vec<Delta>> {
        if self.ended {
            return Ok(Vec::new());
        }
        self.live.finish()?;
        self.cut = reason == FinishReason::Length;
        let rest = self.live.take_rest().to_owned();
        let piece = self.split(&rest, true);
        let mut deltas = Vec::new();
        if !piece.is_empty() {
            deltas.push(Delta::Piece { sample, piece });
        }
        let finish = match (self.live.stopped_by(), reason) {
            (Some(by), _) => Finish::StopString(by.to_owned()),
            (None, FinishReason::Stop) => Finish::Stop,
            (None, FinishReason::Length) => Finish::Length,
        };
        deltas.push(Delta::End { sample, finish, spent: self.spent });
        Ok(deltas)
    }
}
