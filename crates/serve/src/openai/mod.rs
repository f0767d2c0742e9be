//! OpenAI's interface.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod messages;
pub(crate) mod params;
pub(crate) mod responses;
pub(crate) mod tokens;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use crate::app::App;
use crate::error::Answer;
use crate::generation::{Delta, Finish, Spent, Told};
use crate::sse::{Events, Gone};
use crate::tools::Call;

/// A number that nobody foresees.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A name that nothing else has.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random(), random())
}

/// What a request took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) cached: usize,
    pub(crate) spent: Spent,
}

impl Usage {
    pub(crate) fn add(&mut self, spent: Spent) {
        self.spent.tokens += spent.tokens;
        self.spent.reasoning += spent.reasoning;
        self.spent.guessed += spent.guessed;
        self.spent.guessed_right += spent.guessed_right;
    }

    pub(crate) fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.spent.tokens,
            "total_tokens": self.prompt + self.spent.tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {
                "reasoning_tokens": self.spent.reasoning,
                "accepted_prediction_tokens": self.spent.guessed_right,
                "rejected_prediction_tokens": self.spent.guessed - self.spent.guessed_right,
            },
        })
    }
}

/// One answer in full.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choice {
    pub(crate) reasoning: String,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Told>,
    pub(crate) calls: Vec<Call>,
    pub(crate) answer: Option<String>,
    pub(crate) finish: Option<Finish>,
}

/// Watches what comes of a request, for the metrics and the usage.
pub(crate) struct Watch<'a> {
    app: &'a App,
    begun: Instant,
    first: bool,
    pub(crate) usage: Usage,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(app: &'a App, prompt: usize) -> Watch<'a> {
        app.metrics.prompt_tokens.fetch_add(prompt as u64, Relaxed);
        Watch { app, begun: Instant::now(), first: true, usage: Usage { prompt, ..Usage::default() } }
    }

    /// Takes note of what is heard.
    pub(crate) fn note(&mut self, delta: &Delta) {
        match delta {
            Delta::Begun { cached } => {
                self.usage.cached += cached;
                self.app.metrics.cached_tokens.fetch_add(*cached as u64, Relaxed);
            }
            Delta::Piece { .. } if self.first => {
                self.first = false;
                self.app.metrics.first_token.note(self.begun.elapsed());
            }
            Delta::End { spent, .. } => {
                self.usage.add(*spent);
                self.app.metrics.completion_tokens.fetch_add(spent.tokens as u64, Relaxed);
            }
            _ => {}
        }
    }

    pub(crate) fn done(&self) {
        self.app.metrics.whole.note(self.begun.elapsed());
    }
}

/// Waits for all samples of an answer.
pub(crate) async fn collect(
    watch: &mut Watch<'_>,
    mut deltas: Receiver<Delta>,
    samples: usize,
) -> Answer<Vec<Choice>> {
    let mut choices = vec![Choice::default(); samples];
    while let Some(delta) = deltas.recv().await {
        watch.note(&delta);
        match delta {
            Delta::Begun { .. } => {}
            Delta::Piece { sample, piece } => {
                let choice = &mut choices[sample];
                choice.reasoning += &piece.reasoning;
                choice.text += &piece.text;
                choice.tokens.extend(piece.tokens);
                choice.calls.extend(piece.calls);
                choice.answer = piece.answer.or(choice.answer.take());
            }
            Delta::End { sample, finish, .. } => choices[sample].finish = Some(finish),
            Delta::Failed(error) => return Err(error),
        }
    }
    Ok(choices)
}

/// Writes the chunks that are made of what comes, a last one with the usage where `usage` makes one, and the end.
pub(crate) async fn stream(
    events: &Events,
    watch: &mut Watch<'_>,
    mut deltas: Receiver<Delta>,
    mut chunk: impl FnMut(Delta) -> Option<Value>,
    usage: impl FnOnce(Value) -> Option<Value>,
) -> Result<(), Gone> {
    while let Some(delta) = events.next(&mut deltas).await? {
        watch.note(&delta);
        if let Delta::Failed(error) = delta {
            events.data(&error.to_json()).await?;
            return events.done().await;
        }
        if let Some(chunk) = chunk(delta) {
            events.data(&chunk).await?;
        }
    }
    if let Some(last) = usage(watch.usage.to_json()) {
        events.data(&last).await?;
    }
    events.done().await
}

/// `stop`, `length` or `tool_calls`.
pub(crate) fn finish_reason(finish: &Finish, called: bool) -> &'static str {
    match finish {
        Finish::Length => "length",
        Finish::Stop if called => "tool_calls",
        Finish::Stop | Finish::StopString(_) => "stop",
    }
}
