//! `/v1/chat/completions`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::Receiver;

use super::params::{MOST_TOP, Wishes};
use super::{Choice, Watch, collect, finish_reason, messages, new_id, stream, tokens};
use crate::app::{App, Call, now, read};
use crate::error::{Answer, ApiError, json_response};
use crate::fields::{Fields, short};
use crate::generation::{Delta, Piece, begin};
use crate::grammar;
use crate::options::{ReasoningField, Served};
use crate::sse::{Events, Gone};
use crate::talk::Talk;
use crate::{tools, votes};

/// Fields that mean something which is not done here, with the values that mean nothing.
const REFUSED: [(&str, &[&str]); 6] = [
    ("functions", &["[]"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("audio", &[]),
    ("modalities", &["[\"text\"]"]),
    ("prediction", &[]),
    ("web_search_options", &[]),
];

/// Samples of a vote at most.
const MOST_VOTES: usize = 64;

/// What all chunks of a reply have in common.
struct Reply {
    id: String,
    created: u64,
    served: Arc<Served>,
    reasoning: ReasoningField,
    logprobs: bool,
    include_usage: bool,
}

/// Answers a request.
pub(crate) async fn answer(State(app): State<Arc<App>>, request: Request<Body>) -> Answer<Response> {
    let Call { app, fields: mut f, salt } = read(app, request).await?;
    let model = f.text("model")?;
    let entry = &app.entry(model.as_deref()).await?;
    f.refuse(&REFUSED)?;
    let mut talk = talk(&mut f)?;
    let mut wishes = Wishes::take(&mut f, &entry.served)?;
    let logprobs = f.flag("logprobs")?.unwrap_or(false);
    let top = f.count("top_logprobs", 0..=MOST_TOP)?;
    if top.is_some_and(|n| n > 0) && !logprobs {
        return Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs to be true"));
    }
    talk.top = logprobs.then_some(top.unwrap_or(0));
    let votes = votes(&mut f, &mut wishes)?;
    app.note_ignored(&f);
    let template = entry.served.tokenizer.chat_template().unwrap_or_default();
    let idle = talk.variables.keys().filter(|name| !template.contains(name.as_str()));
    app.note(idle.map(|name| format!("chat_template_kwargs.{}", short(name))).collect());
    let ask = talk.ask(&app, entry, &wishes, salt).await?;
    let reply = Reply {
        id: new_id("chatcmpl-"),
        created: now(),
        served: entry.served.clone(),
        reasoning: app.options.reasoning,
        logprobs,
        include_usage: wishes.include_usage,
    };
    let (samples, prompt_tokens) = (ask.request.samples, ask.request.prompt.len());
    let deltas = begin(entry, ask)?;
    if wishes.stream {
        let (events, response) = Events::new();
        let app = app.clone();
        tokio::spawn(async move {
            let mut watch = Watch::new(&app, prompt_tokens);
            let _ = match votes {
                Some(least) => stream_vote(&events, &reply, &mut watch, deltas, samples, least).await,
                None => {
                    let mut chunks = Chunks { reply: &reply, begun: BTreeMap::new() };
                    let usage = |usage| reply.include_usage.then(|| reply.chunk(Vec::new(), usage));
                    stream(&events, &mut watch, deltas, |delta| chunks.chunk(delta), usage).await
                }
            };
            watch.done();
        });
        return Ok(response);
    }
    let mut watch = Watch::new(&app, prompt_tokens);
    let choices = collect(&mut watch, deltas, samples).await?;
    watch.done();
    let value = match votes {
        Some(least) => reply.voted(&choices, &watch, least),
        None => reply.whole(&choices, &watch),
    };
    Ok(json_response(StatusCode::OK, &value))
}

/// The conversation of a request.
fn talk(f: &mut Fields) -> Answer<Talk> {
    let list = f.list("messages")?.ok_or_else(|| ApiError::field("messages", "messages is missing"))?;
    let mut talk = Talk { field: "messages", messages: messages::messages(list)?, ..Talk::default() };
    talk.variables = f.object("chat_template_kwargs")?.unwrap_or_default();
    talk.take_tools(f, false)?;
    if let Some(format) = f.take("response_format") {
        let field = "response_format";
        talk.schema = grammar::schema(field, format)?.map(|schema| (field, schema));
    }
    let effort = f.text("reasoning_effort")?;
    talk.take_effort("reasoning_effort", effort)?;
    Ok(talk)
}

/// `votes`, the samples of a vote, and `min_agreement`, the share of them that must agree: gives the latter.
fn votes(f: &mut Fields, wishes: &mut Wishes) -> Answer<Option<f32>> {
    let votes = f.count("votes", 2..=MOST_VOTES)?;
    let least = f.number("min_agreement", 0.0..=1.0)?;
    let Some(votes) = votes else {
        return match least {
            None => Ok(None),
            Some(_) => Err(ApiError::field("min_agreement", "min_agreement is for votes: give votes")),
        };
    };
    if wishes.samples != 1 {
        return Err(ApiError::field("n", "a vote has one answer: leave n out"));
    }
    wishes.samples = votes;
    Ok(Some(least.unwrap_or(0.0)))
}

/// One chunk with the answer of most samples, once all are there.
async fn stream_vote(
    events: &Events,
    reply: &Reply,
    watch: &mut Watch<'_>,
    deltas: Receiver<Delta>,
    samples: usize,
    least: f32,
) -> Result<(), Gone> {
    let collected = {
        let mut all = std::pin::pin!(collect(watch, deltas, samples));
        loop {
            tokio::select! {
                collected = &mut all => break collected,
                alive = events.keep_alive() => alive?,
            }
        }
    };
    let choices = match collected {
        Ok(choices) => choices,
        Err(error) => {
            events.data(&error.to_json()).await?;
            return events.done().await;
        }
    };
    let mut voted = reply.voted(&choices, watch, least);
    let mut choice = voted["choices"][0].take();
    choice["delta"] = choice["message"].take();
    if let Some(map) = choice.as_object_mut() {
        map.remove("message");
    }
    let finish = choice["finish_reason"].take();
    events.data(&reply.chunk(vec![choice], Value::Null)).await?;
    let end = json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": finish});
    events.data(&reply.chunk(vec![end], Value::Null)).await?;
    if reply.include_usage {
        events.data(&reply.chunk(Vec::new(), watch.usage.to_json())).await?;
    }
    events.done().await
}

/// Makes chunks of what comes.
struct Chunks<'r> {
    reply: &'r Reply,
    /// Of each sample that has begun, the calls so far.
    begun: BTreeMap<usize, usize>,
}

impl Chunks<'_> {
    fn chunk(&mut self, delta: Delta) -> Option<Value> {
        let reply = self.reply;
        let (sample, piece, finish) = match delta {
            Delta::Piece { sample, piece } => (sample, Some(piece), None),
            Delta::End { sample, finish, .. } => (sample, None, Some(finish)),
            Delta::Begun { .. } | Delta::Failed(_) => return None,
        };
        let first = !self.begun.contains_key(&sample);
        let calls = self.begun.entry(sample).or_default();
        let mut body = piece.as_ref().map(|piece| reply.fields(piece, *calls)).unwrap_or_default();
        *calls += piece.as_ref().map_or(0, |piece| piece.calls.len());
        if first {
            body.insert("role".to_owned(), "assistant".into());
            body.entry("content").or_insert_with(|| "".into());
        }
        let logprobs = piece.filter(|_| reply.logprobs);
        let choice = json!({
            "index": sample,
            "delta": body,
            "logprobs": logprobs.map(|p| tokens::chat_logprobs(&reply.served.tokenizer, &p.tokens)),
            "finish_reason": finish.map(|finish| finish_reason(&finish, *calls > 0)),
        });
        Some(reply.chunk(vec![choice], Value::Null))
    }
}

impl Reply {
    /// A piece's fields, behind so many calls.
    fn fields(&self, piece: &Piece, calls: usize) -> Map<String, Value> {
        let mut body = Map::new();
        if !piece.reasoning.is_empty() {
            for name in self.reasoning.names() {
                body.insert((*name).to_owned(), piece.reasoning.as_str().into());
            }
        }
        if !piece.text.is_empty() || piece.reasoning.is_empty() && piece.calls.is_empty() {
            body.insert("content".to_owned(), piece.text.as_str().into());
        }
        if !piece.calls.is_empty() {
            let mut list = tool_calls(&piece.calls);
            list.iter_mut().zip(calls..).for_each(|(call, index)| call["index"] = index.into());
            body.insert("tool_calls".to_owned(), list.into());
        }
        if let Some(answer) = &piece.answer {
            body.insert("answer".to_owned(), answer.as_str().into());
        }
        body
    }

    fn chunk(&self, choices: Vec<Value>, usage: Value) -> Value {
        let mut chunk = self.head("chat.completion.chunk", choices);
        if self.include_usage {
            chunk["usage"] = usage;
        }
        chunk
    }

    fn head(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.served.name,
            "choices": choices,
        })
    }

    fn whole(&self, choices: &[Choice], watch: &Watch) -> Value {
        let list = choices.iter().enumerate().map(|(index, choice)| self.choice(index, choice)).collect();
        let mut whole = self.head("chat.completion", list);
        whole["usage"] = watch.usage.to_json();
        whole
    }

    /// The answer of most samples, or none where fewer agree than must.
    fn voted(&self, choices: &[Choice], watch: &Watch, least: f32) -> Value {
        let vote = votes::count(choices);
        let abstained = vote.winner.is_none() || vote.agreement < f64::from(least);
        let mut winner = vote.winner.map_or_else(Choice::default, |i| choices[i].clone());
        if abstained {
            winner.answer = None;
        }
        let mut choice = self.choice(0, &winner);
        if abstained {
            choice["message"]["content"] = Value::Null;
            choice["message"]["refusal"] = "The samples do not agree enough to answer.".into();
            choice["finish_reason"] = "stop".into();
        }
        choice["votes"] = vote.to_json(abstained);
        let mut whole = self.head("chat.completion", vec![choice]);
        whole["usage"] = watch.usage.to_json();
        whole
    }

    fn choice(&self, index: usize, choice: &Choice) -> Value {
        let mut message = Map::new();
        message.insert("role".to_owned(), "assistant".into());
        let bare = choice.text.is_empty() && !choice.calls.is_empty();
        message.insert("content".to_owned(), if bare { Value::Null } else { choice.text.as_str().into() });
        if !choice.calls.is_empty() {
            message.insert("tool_calls".to_owned(), tool_calls(&choice.calls).into());
        }
        message.insert("refusal".to_owned(), Value::Null);
        if let Some(answer) = &choice.answer {
            message.insert("answer".to_owned(), answer.as_str().into());
        }
        if !choice.reasoning.is_empty() {
            for name in self.reasoning.names() {
                message.insert((*name).to_owned(), choice.reasoning.as_str().into());
            }
        }
        let logprobs = self.logprobs.then(|| tokens::chat_logprobs(&self.served.tokenizer, &choice.tokens));
        json!({
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": choice.finish.as_ref().map(|f| finish_reason(f, !choice.calls.is_empty())),
        })
    }
}

/// Calls as clients read them.
fn tool_calls(calls: &[tools::Call]) -> Vec<Value> {
    let one = |call: &tools::Call| {
        let function = json!({"name": call.name, "arguments": call.arguments});
        json!({"id": new_id("call_"), "type": "function", "function": function})
    };
    calls.iter().map(one).collect()
}
