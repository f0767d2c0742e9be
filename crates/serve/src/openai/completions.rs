//! `/v1/completions`: text that is continued as it stands.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::{Receiver, channel};

use super::params::{MOST_TOP, VOTES, Wishes};
use super::{Choice, Watch, collect, finish_reason, new_id, stream, tokens};
use crate::app::{App, Call, now, read};
use crate::error::{Answer, ApiError, json_response};
use crate::fields::kind;
use crate::generation::{Ask, Delta, Piece, Told, begin};
use crate::options::Served;
use crate::sse::{Events, Gone};

/// Prompts of one request at most.
const MOST_PROMPTS: usize = 128;

/// Fields that mean something which is not done here, with the values that mean nothing.
const REFUSED: [(&str, &[&str]); 4] = [
    ("suffix", &["\"\""]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("tools", &["[]"]),
    ("reasoning_effort", &[]),
];

/// What all chunks of a reply have in common.
struct Reply {
    id: String,
    created: u64,
    served: Arc<Served>,
    logprobs: bool,
    include_usage: bool,
}

/// Answers a request.
pub(crate) async fn answer(State(app): State<Arc<App>>, request: Request<Body>) -> Answer<Response> {
    let Call { app, fields: mut f, salt } = read(app, request).await?;
    let model = f.text("model")?;
    let entry = &app.entry(model.as_deref()).await?;
    f.refuse(&REFUSED)?;
    f.refuse(&VOTES)?;
    let prompts = prompts(&entry.served, f.need("prompt")?)?;
    let wishes = Wishes::take(&mut f, &entry.served)?;
    let echo = f.flag("echo")?.unwrap_or(false);
    let top = f.count("logprobs", 0..=MOST_TOP)?;
    if echo && top.is_some() {
        return Err(ApiError::field("logprobs", "log-probabilities of an echoed prompt are not given here"));
    }
    app.note_ignored(&f);
    let samples = wishes.samples;
    let mut echoes = Vec::new();
    let mut streams = Vec::new();
    let mut prompt_tokens = 0;
    for ids in prompts {
        if echo {
            let text = entry.served.tokenizer.decode(&ids, true);
            echoes.push(text.map_err(|e| ApiError::field("prompt", e.to_string()))?);
        }
        prompt_tokens += ids.len();
        let ask = Ask {
            request: wishes.request(entry, ids, "prompt")?,
            extras: wishes.extras(salt, top.unwrap_or(0), entry.front.speculate),
            stops: wishes.stops.clone(),
            thinking: None,
            formed: false,
            tell_tokens: top.is_some(),
            tools: None,
        };
        streams.push(begin(entry, ask)?);
    }
    let all = samples * streams.len();
    let reply = Reply {
        id: new_id("cmpl-"),
        created: now(),
        served: entry.served.clone(),
        logprobs: top.is_some(),
        include_usage: wishes.include_usage,
    };
    let deltas = merge(streams, samples);
    if wishes.stream {
        let (events, response) = Events::new();
        let app = app.clone();
        tokio::spawn(async move {
            let mut watch = Watch::new(&app, prompt_tokens);
            let _ = answer_in_chunks(&events, &reply, &mut watch, deltas, &echoes, samples).await;
            watch.done();
        });
        return Ok(response);
    }
    let mut watch = Watch::new(&app, prompt_tokens);
    let mut choices = collect(&mut watch, deltas, all).await?;
    for (i, choice) in choices.iter_mut().enumerate().filter(|_| echo) {
        choice.text.insert_str(0, &echoes[i / samples]);
    }
    watch.done();
    Ok(json_response(StatusCode::OK, &reply.whole(&choices, &watch)))
}

/// One prompt, several, or the token ids of one or several.
fn prompts(served: &Served, value: Value) -> Answer<Vec<Vec<u32>>> {
    let vocab = served.model.config().vocab_size();
    let wrong = |message: String| ApiError::field("prompt", message);
    let encode = |text: &str| served.tokenizer.encode_whole(text).map_err(|e| wrong(e.to_string()));
    match value {
        Value::String(text) => Ok(vec![encode(&text)?]),
        Value::Array(list) if list.iter().any(Value::is_number) => {
            Ok(vec![tokens::ids("prompt", Value::Array(list), vocab)?])
        }
        Value::Array(list) => {
            if list.is_empty() || list.len() > MOST_PROMPTS {
                return Err(wrong(format!(
                    "prompt has {} entries, expected 1 to {MOST_PROMPTS}",
                    list.len()
                )));
            }
            let one = |value| match value {
                Value::String(text) => encode(&text),
                ids => tokens::ids("prompt", ids, vocab),
            };
            list.into_iter().map(one).collect()
        }
        other => Err(wrong(format!(
            "prompt is {}, expected a string, token ids, or a list of these",
            kind(&other)
        ))),
    }
}

/// The answers to several prompts as one, their samples counted on.
fn merge(streams: Vec<Receiver<Delta>>, samples: usize) -> Receiver<Delta> {
    let (to, merged) = channel(16);
    for (i, mut from) in streams.into_iter().enumerate() {
        let to = to.clone();
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    next = from.recv() => next,
                    () = to.closed() => return,
                };
                let moved = match next {
                    None => return,
                    Some(Delta::Piece { sample, piece }) => {
                        Delta::Piece { sample: i * samples + sample, piece }
                    }
                    Some(Delta::End { sample, finish, spent }) => {
                        Delta::End { sample: i * samples + sample, finish, spent }
                    }
                    Some(other) => other,
                };
                if to.send(moved).await.is_err() {
                    return;
                }
            }
        });
    }
    merged
}

/// Writes the prompts that are to be echoed, then chunks as they come.
async fn answer_in_chunks(
    events: &Events,
    reply: &Reply,
    watch: &mut Watch<'_>,
    deltas: Receiver<Delta>,
    echoes: &[String],
    samples: usize,
) -> Result<(), Gone> {
    let mut offsets: BTreeMap<usize, usize> = BTreeMap::new();
    for (i, text) in echoes.iter().enumerate() {
        for sample in i * samples..(i + 1) * samples {
            let piece = Piece { text: text.clone(), ..Piece::default() };
            events.data(&reply.chunk(sample, &piece, 0, None)).await?;
            offsets.insert(sample, text.chars().count());
        }
    }
    let chunk = |delta| match delta {
        Delta::Piece { sample, piece } => {
            let offset = offsets.entry(sample).or_default();
            let chunk = reply.chunk(sample, &piece, *offset, None);
            *offset += piece.text.chars().count();
            Some(chunk)
        }
        Delta::End { sample, finish, .. } => {
            Some(reply.chunk(sample, &Piece::default(), 0, Some(finish_reason(&finish, false))))
        }
        Delta::Begun { .. } | Delta::Failed(_) => None,
    };
    let usage = |usage| {
        let mut last = reply.head(Vec::new());
        last["usage"] = usage;
        reply.include_usage.then_some(last)
    };
    stream(events, watch, deltas, chunk, usage).await
}

impl Reply {
    fn head(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.served.name,
            "choices": choices,
        })
    }

    fn chunk(&self, sample: usize, piece: &Piece, offset: usize, finish: Option<&str>) -> Value {
        let told = !piece.tokens.is_empty();
        let logprobs = (self.logprobs && told).then(|| self.logprobs(&piece.tokens, offset));
        let choice =
            json!({"index": sample, "text": piece.text, "logprobs": logprobs, "finish_reason": finish});
        let mut chunk = self.head(vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn whole(&self, choices: &[Choice], watch: &Watch) -> Value {
        let choice = |(index, c): (usize, &Choice)| {
            let logprobs = self.logprobs.then(|| self.logprobs(&c.tokens, 0));
            let finish = c.finish.as_ref().map(|f| finish_reason(f, false));
            json!({"index": index, "text": c.text, "logprobs": logprobs, "finish_reason": finish})
        };
        let mut whole = self.head(choices.iter().enumerate().map(choice).collect());
        whole["usage"] = watch.usage.to_json();
        whole
    }

    /// Tokens with their log-probabilities in the older form.
    fn logprobs(&self, told: &[Told], mut offset: usize) -> Value {
        let text =
            |id| String::from_utf8_lossy(&tokens::token_bytes(&self.served.tokenizer, id)).into_owned();
        let (mut texts, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        for t in told {
            let token = text(t.id);
            offsets.push(offset);
            offset += token.chars().count();
            texts.push(token);
            logprobs.push(tokens::finite(t.logprob));
            let top = t.top.iter().map(|&(id, p)| (text(id), json!(tokens::finite(p))));
            tops.push(Value::Object(top.collect::<Map<_, _>>()));
        }
        json!({"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets})
    }
}
