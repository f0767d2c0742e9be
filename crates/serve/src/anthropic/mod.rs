//! Anthropic's interface: `/v1/messages`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use data::Message;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::Receiver;

use crate::app::{App, Call, read};
use crate::blocks::{self, Block, Blocks, Change, Kind};
use crate::error::{Answer, ApiError, json_response};
use crate::fields::{Fields, kind};
use crate::generation::{Delta, Finish, begin};
use crate::openai::params::{VOTES, Wishes};
use crate::openai::{Usage, Watch, new_id};
use crate::sse::{Events, Gone};
use crate::talk::{Talk, encode};
use crate::{grammar, tools};

/// Fields that mean something which is not done here, with the values that mean nothing.
const REFUSED: [(&str, &[&str]); 8] = [
    ("n", &["1"]),
    ("logprobs", &["false"]),
    ("top_logprobs", &["0"]),
    ("response_format", &[]),
    ("reasoning_effort", &[]),
    ("container", &[]),
    ("mcp_servers", &["[]"]),
    ("context_management", &[]),
];

/// A request, read.
struct Asked {
    talk: Talk,
    wishes: Wishes,
    /// Whether thinking is told.
    thinking: bool,
}

/// Answers `/v1/messages`.
pub(crate) async fn answer(State(app): State<Arc<App>>, request: Request<Body>) -> Response {
    match messages(app, request).await {
        Ok(response) => response,
        Err(error) => refusal(&error),
    }
}

/// Answers `/v1/messages/count_tokens`.
pub(crate) async fn count(State(app): State<Arc<App>>, request: Request<Body>) -> Response {
    match count_tokens(app, request).await {
        Ok(response) => response,
        Err(error) => refusal(&error),
    }
}

/// An error in the words of this interface.
pub(crate) fn refusal(error: &ApiError) -> Response {
    let kind = match error.kind() {
        "server_error" => "api_error",
        other => other,
    };
    let body = json!({"type": "error", "error": {"type": kind, "message": error.message}});
    let mut response = json_response(error.status, &body);
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert("retry-after", seconds.into());
    }
    response
}

async fn messages(app: Arc<App>, request: Request<Body>) -> Answer<Response> {
    let Call { app, fields: mut f, salt } = read(app, request).await?;
    let model = f.text("model")?;
    let entry = &app.entry(model.as_deref()).await?;
    let Asked { talk, wishes, thinking } = asked(&mut f, entry)?;
    app.note_ignored(&f);
    let ask = talk.ask(&app, entry, &wishes, salt).await?;
    let prompt = ask.request.prompt.len();
    let deltas = begin(entry, ask)?;
    let name = entry.served.name.clone();
    if wishes.stream {
        let (events, response) = Events::new();
        let app = app.clone();
        tokio::spawn(async move {
            let mut watch = Watch::new(&app, prompt);
            let _ = stream(&events, &name, thinking, &mut watch, deltas).await;
            watch.done();
        });
        return Ok(response);
    }
    let mut watch = Watch::new(&app, prompt);
    let (blocks, finish) = blocks::collect(&mut watch, deltas).await?;
    watch.done();
    let content = blocks.iter().filter(|b| thinking || !matches!(b, Block::Thinking(_))).map(block).collect();
    let called = blocks.iter().any(|b| matches!(b, Block::Call(_)));
    let mut value = head(&name, content, usage(watch.usage));
    end(&finish, called).into_iter().for_each(|(key, v)| value[key] = v);
    Ok(json_response(StatusCode::OK, &value))
}

async fn count_tokens(app: Arc<App>, request: Request<Body>) -> Answer<Response> {
    let Call { app, fields: mut f, .. } = read(app, request).await?;
    let model = f.text("model")?;
    let entry = &app.entry(model.as_deref()).await?;
    let mut talk = Talk { field: "messages", messages: conversation(&mut f)?, ..Talk::default() };
    talk.take_tools(&mut f, true)?;
    let (ids, _) = encode(&entry.served, talk.field, &talk.messages, &talk.given())?;
    Ok(json_response(StatusCode::OK, &json!({"input_tokens": ids.len()})).into_response())
}

fn asked(f: &mut Fields, entry: &crate::shelf::Entry) -> Answer<Asked> {
    let mut talk = Talk { field: "messages", messages: conversation(f)?, ..Talk::default() };
    talk.take_tools(f, true)?;
    f.refuse(&REFUSED)?;
    f.refuse(&VOTES)?;
    output(f, &mut talk)?;
    f.rename("stop_sequences", "stop");
    if f.peek("max_tokens").is_null() {
        return Err(ApiError::field("max_tokens", "max_tokens is missing"));
    }
    let thinking = match f.take("thinking") {
        None => false,
        Some(value) => {
            let mut t = Fields::of("thinking", value)?;
            let kind = t.text("type")?.unwrap_or_default();
            talk.budget = t.count("budget_tokens", 0..=usize::MAX)?.or(talk.budget);
            match kind.as_str() {
                "enabled" | "adaptive" => true,
                "disabled" => {
                    talk.budget = Some(0);
                    false
                }
                _ => {
                    return Err(ApiError::field(
                        "thinking.type",
                        "thinking.type is enabled, adaptive or disabled",
                    ));
                }
            }
        }
    };
    Ok(Asked { talk, wishes: Wishes::take(f, &entry.served)?, thinking })
}

/// `output_config`: the answer's schema, and the effort of thinking.
fn output(f: &mut Fields, talk: &mut Talk) -> Answer<()> {
    let Some(config) = f.take("output_config") else { return Ok(()) };
    let mut config = Fields::of("output_config", config)?;
    let effort = config.text("effort")?;
    talk.take_effort("output_config.effort", effort)?;
    if let Some(format) = config.take("format") {
        let field = "output_config.format";
        talk.schema = grammar::schema(field, format)?.map(|schema| (field, schema));
    }
    Ok(())
}

/// `system` and `messages`, as templates know them.
fn conversation(f: &mut Fields) -> Answer<Vec<Message>> {
    let mut out = Vec::new();
    if let Some(system) = f.take("system") {
        out.push(Message::system(text_of("system", system)?));
    }
    let list = f.list("messages")?.ok_or_else(|| ApiError::field("messages", "messages is missing"))?;
    if list.is_empty() {
        return Err(ApiError::field("messages", "messages is empty: give at least one"));
    }
    for (i, value) in list.into_iter().enumerate() {
        turn(&format!("messages.{i}"), value, &mut out)?;
    }
    Ok(out)
}

/// The text of a string or of blocks of text.
fn text_of(place: &str, value: Value) -> Answer<String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Array(parts) => parts
            .into_iter()
            .enumerate()
            .map(|(i, part)| {
                let mut f = Fields::of(&format!("{place}.{i}"), part)?;
                let what = f.text("type")?.unwrap_or_default();
                if what != "text" {
                    return Err(ApiError::field(
                        place,
                        format!("{place} holds more than text: the models here read text alone"),
                    ));
                }
                f.text("text")?.ok_or_else(|| ApiError::field(place, format!("{place}.{i}.text is missing")))
            })
            .collect(),
        other => {
            Err(ApiError::field(place, format!("{place} is {}, expected a string or blocks", kind(&other))))
        }
    }
}

fn turn(place: &str, value: Value, out: &mut Vec<Message>) -> Answer<()> {
    let mut f = Fields::of(place, value)?;
    let role = f.text("role")?.unwrap_or_default();
    if role != "user" && role != "assistant" {
        return Err(ApiError::field(f.name("role"), format!("{place}.role is neither user nor assistant")));
    }
    let blocks = match f.need("content")? {
        Value::Array(blocks) => blocks,
        other => {
            out.push(Message::new(role, text_of(&f.name("content"), other)?));
            return Ok(());
        }
    };
    let (mut text, mut more, mut calls) = (String::new(), Map::new(), Vec::new());
    for (i, value) in blocks.into_iter().enumerate() {
        let place = format!("{place}.content.{i}");
        let mut b = Fields::of(&place, value)?;
        match b.text("type")?.unwrap_or_default().as_str() {
            "text" => text += &b.text("text")?.unwrap_or_default(),
            "thinking" => {
                drop(more.insert("reasoning_content".into(), b.text("thinking")?.unwrap_or_default().into()))
            }
            "redacted_thinking" => {}
            "tool_use" => {
                let function =
                    json!({"name": b.need("name")?, "arguments": b.take("input").unwrap_or(json!({}))});
                calls.push(json!({"id": b.take("id"), "type": "function", "function": function}));
            }
            "tool_result" => {
                let said = b.take("content").map_or(Ok(String::new()), |c| text_of(&b.name("content"), c))?;
                let mut message = Message::new("tool", said);
                if let Some(id) = b.take("tool_use_id") {
                    message.more.insert("tool_call_id".into(), id);
                }
                out.push(message);
            }
            _ => {
                return Err(ApiError::field(
                    place.clone(),
                    format!("{place} is of a kind that the models here do not read"),
                ));
            }
        }
    }
    if !calls.is_empty() {
        more.insert("tool_calls".into(), calls.into());
    }
    if !text.is_empty() || !more.is_empty() {
        out.push(Message { more, ..Message::new(role, text) });
    }
    Ok(())
}

fn head(model: &str, content: Vec<Value>, usage: Value) -> Value {
    json!({
        "id": new_id("msg_"), "type": "message", "role": "assistant", "model": model, "content": content,
        "stop_reason": null, "stop_sequence": null, "usage": usage,
    })
}

fn usage(u: Usage) -> Value {
    json!({
        "input_tokens": u.prompt - u.cached.min(u.prompt),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": u.cached,
        "output_tokens": u.spent.tokens,
    })
}

/// `stop_reason` and `stop_sequence`.
fn end(finish: &Finish, called: bool) -> [(&'static str, Value); 2] {
    let (reason, sequence) = match finish {
        Finish::Length => ("max_tokens", Value::Null),
        Finish::StopString(stop) => ("stop_sequence", stop.as_str().into()),
        Finish::Stop if called => ("tool_use", Value::Null),
        Finish::Stop => ("end_turn", Value::Null),
    };
    [("stop_reason", reason.into()), ("stop_sequence", sequence)]
}

fn block(block: &Block) -> Value {
    match block {
        Block::Thinking(text) => json!({"type": "thinking", "thinking": text, "signature": ""}),
        Block::Text(text) => json!({"type": "text", "text": text}),
        Block::Call(call) => tool_use(call, true),
    }
}

fn tool_use(call: &tools::Call, whole: bool) -> Value {
    let input = if whole { serde_json::from_str(&call.arguments).unwrap_or_default() } else { json!({}) };
    json!({"type": "tool_use", "id": new_id("toolu_"), "name": call.name, "input": input})
}

/// Writes events as they come.
async fn stream(
    events: &Events,
    model: &str,
    thinking: bool,
    watch: &mut Watch<'_>,
    mut deltas: Receiver<Delta>,
) -> Result<(), Gone> {
    let mut blocks = Blocks::default();
    let (mut finish, mut begun, mut hidden) = (Finish::Stop, false, 0);
    loop {
        let next = events.next(&mut deltas).await?;
        if let Some(delta) = &next {
            watch.note(delta);
        }
        if !begun {
            begun = true;
            let message = head(model, Vec::new(), usage(watch.usage));
            event(events, "message_start", json!({"message": message})).await?;
        }
        let changes = match next {
            None => break,
            Some(Delta::Begun { .. }) => continue,
            Some(Delta::Piece { piece, .. }) => blocks.take(&piece),
            Some(Delta::End { finish: end, .. }) => {
                finish = end;
                blocks.close().into_iter().collect()
            }
            Some(Delta::Failed(error)) => {
                let error = json!({"error": {"type": "api_error", "message": error.message}});
                return event(events, "error", error).await;
            }
        };
        for (index, change) in changes {
            if !thinking && is_thought(&change) {
                hidden += usize::from(matches!(change, Change::Close(_)));
                continue;
            }
            show(events, index - hidden, &change).await?;
        }
    }
    let called = blocks.done.iter().any(|b| matches!(b, Block::Call(_)));
    let delta: Map<String, Value> =
        end(&finish, called).map(|(k, v)| (k.to_owned(), v)).into_iter().collect();
    event(events, "message_delta", json!({"delta": delta, "usage": usage(watch.usage)})).await?;
    event(events, "message_stop", json!({})).await
}

fn is_thought(change: &Change) -> bool {
    matches!(
        change,
        Change::Open(Kind::Thinking) | Change::More(Kind::Thinking, _) | Change::Close(Block::Thinking(_))
    )
}

async fn show(events: &Events, index: usize, change: &Change) -> Result<(), Gone> {
    match change {
        Change::Open(kind) => {
            let empty = match kind {
                Kind::Thinking => Block::Thinking(String::new()),
                Kind::Text => Block::Text(String::new()),
            };
            event(events, "content_block_start", json!({"index": index, "content_block": block(&empty)}))
                .await
        }
        Change::More(kind, text) => {
            let delta = match kind {
                Kind::Thinking => json!({"type": "thinking_delta", "thinking": text}),
                Kind::Text => json!({"type": "text_delta", "text": text}),
            };
            event(events, "content_block_delta", json!({"index": index, "delta": delta})).await
        }
        Change::Close(_) => event(events, "content_block_stop", json!({"index": index})).await,
        Change::Call(call) => {
            let start = json!({"index": index, "content_block": tool_use(call, false)});
            event(events, "content_block_start", start).await?;
            let delta = json!({"type": "input_json_delta", "partial_json": call.arguments});
            event(events, "content_block_delta", json!({"index": index, "delta": delta})).await?;
            event(events, "content_block_stop", json!({"index": index})).await
        }
    }
}

async fn event(events: &Events, name: &str, mut data: Value) -> Result<(), Gone> {
    data["type"] = name.into();
    events.named(name, &data).await
}
