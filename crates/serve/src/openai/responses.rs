//! `/v1/responses`. Nothing is stored: a conversation goes on by sending it whole.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use data::Message;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::Receiver;

use super::params::{VOTES, Wishes};
use super::{Usage, Watch, messages, new_id};
use crate::app::{App, Call, now, read};
use crate::blocks::{self, Block, Blocks, Change, Kind};
use crate::error::{Answer, ApiError, json_response};
use crate::fields::{Fields, kind};
use crate::generation::{Delta, Finish, begin};
use crate::grammar;
use crate::sse::{Events, Gone};
use crate::talk::Talk;
use crate::tools;

/// Fields that mean something which is not done here, with the values that mean nothing.
const REFUSED: [(&str, &[&str]); 10] = [
    ("previous_response_id", &[]),
    ("conversation", &[]),
    ("background", &["false"]),
    ("prompt", &[]),
    ("truncation", &["\"disabled\""]),
    ("max_tool_calls", &[]),
    ("top_logprobs", &["0"]),
    ("logprobs", &["false"]),
    ("response_format", &[]),
    ("reasoning_effort", &[]),
];

/// Fields that are told again in the response.
const ECHOED: [&str; 14] = [
    "instructions",
    "max_output_tokens",
    "metadata",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "safety_identifier",
    "prompt_cache_key",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning",
    "text",
];

/// What is told of a request again in its response.
struct Reply {
    id: String,
    created: u64,
    model: String,
    echo: Map<String, Value>,
}

/// Answers a request.
pub(crate) async fn answer(State(app): State<Arc<App>>, request: Request<Body>) -> Answer<Response> {
    let Call { app, fields: mut f, salt } = read(app, request).await?;
    let model = f.text("model")?;
    let entry = &app.entry(model.as_deref()).await?;
    f.refuse(&REFUSED)?;
    f.refuse(&VOTES)?;
    if f.list("include")?.is_some_and(|list| list.iter().any(|what| what == "message.output_text.logprobs")) {
        return Err(ApiError::field("include", "log-probabilities are told by /v1/chat/completions alone"));
    }
    let echo = ECHOED.iter().map(|&field| (field.to_owned(), f.peek(field))).collect();
    let talk = talk(&mut f)?;
    f.rename("max_output_tokens", "max_completion_tokens");
    let wishes = Wishes::take(&mut f, &entry.served)?;
    if wishes.samples != 1 {
        return Err(ApiError::field("n", "a response has one answer: leave n out"));
    }
    app.note_ignored(&f);
    let ask = talk.ask(&app, entry, &wishes, salt).await?;
    let prompt = ask.request.prompt.len();
    let reply = Reply { id: new_id("resp_"), created: now(), model: entry.served.name.clone(), echo };
    let deltas = begin(entry, ask)?;
    if wishes.stream {
        let (events, response) = Events::new();
        let app = app.clone();
        tokio::spawn(async move {
            let mut watch = Watch::new(&app, prompt);
            let _ = Stream { events: &events, reply: &reply, number: 0, ids: Vec::new() }
                .run(&mut watch, deltas)
                .await;
            watch.done();
        });
        return Ok(response);
    }
    let mut watch = Watch::new(&app, prompt);
    let (blocks, finish) = blocks::collect(&mut watch, deltas).await?;
    watch.done();
    let output = blocks.iter().map(|b| item(&item_id(b), b, "completed")).collect();
    Ok(json_response(StatusCode::OK, &reply.whole(output, Some((&finish, watch.usage)))))
}

/// `input`, `instructions`, `tools` and `reasoning`.
fn talk(f: &mut Fields) -> Answer<Talk> {
    let mut talk = Talk { field: "input", ..Talk::default() };
    if let Some(instructions) = f.text("instructions")? {
        talk.messages.push(Message::system(instructions));
    }
    match f.need("input")? {
        Value::String(text) => talk.messages.push(Message::user(text)),
        Value::Array(items) => {
            for (i, value) in items.into_iter().enumerate() {
                input(&format!("input[{i}]"), value, &mut talk.messages)?;
            }
        }
        other => {
            return Err(ApiError::field(
                "input",
                format!("input is {}, expected a string or a list", kind(&other)),
            ));
        }
    }
    if talk.messages.is_empty() {
        return Err(ApiError::field("input", "input is empty"));
    }
    talk.take_tools(f, true)?;
    if let Some(reasoning) = f.take("reasoning") {
        let effort = Fields::of("reasoning", reasoning)?.text("effort")?;
        talk.take_effort("reasoning.effort", effort)?;
    }
    let text = f.take("text").unwrap_or_else(|| json!({}));
    if let Some(format) = Fields::of("text", text)?.take("format") {
        let field = "text.format";
        talk.schema = grammar::schema(field, format)?.map(|schema| (field, schema));
    }
    Ok(talk)
}

/// One item of the input, as templates know it.
fn input(place: &str, value: Value, out: &mut Vec<Message>) -> Answer<()> {
    let kind = value.get("type").and_then(Value::as_str).unwrap_or("message").to_owned();
    let mut f = Fields::of(place, value)?;
    match kind.as_str() {
        "message" => {
            f.take("type");
            out.push(messages::message(place, Value::Object(f.rest()))?);
        }
        "function_call" => {
            let function = json!({"name": f.need("name")?, "arguments": f.take("arguments")});
            let call = json!({"id": f.take("call_id"), "type": "function", "function": function});
            let call = messages::call(place, call)?;
            match out.last_mut().and_then(|m| m.more.get_mut("tool_calls")?.as_array_mut()) {
                Some(calls) => calls.push(call),
                None => {
                    let mut message = Message::assistant("");
                    message.more.insert("tool_calls".into(), vec![call].into());
                    out.push(message);
                }
            }
        }
        "function_call_output" => {
            let said =
                f.take("output").map(|output| messages::text(&f.name("output"), output)).transpose()?;
            let mut message = Message::new("tool", said.unwrap_or_default());
            if let Some(id) = f.take("call_id") {
                message.more.insert("tool_call_id".into(), id);
            }
            out.push(message);
        }
        // Thoughts of earlier turns: templates leave them out.
        "reasoning" => {}
        _ => {
            return Err(ApiError::field(
                place,
                format!("{place} is of a type that the models here do not read"),
            ));
        }
    }
    Ok(())
}

fn item_id(block: &Block) -> String {
    new_id(match block {
        Block::Thinking(_) => "rs_",
        Block::Text(_) => "msg_",
        Block::Call(_) => "fc_",
    })
}

fn part(block: &Block) -> Value {
    match block {
        Block::Thinking(text) => json!({"type": "reasoning_text", "text": text}),
        Block::Text(text) => json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []}),
        Block::Call(_) => Value::Null,
    }
}

fn item(id: &str, block: &Block, status: &str) -> Value {
    let empty = status != "completed";
    let parts = || if empty { Vec::new() } else { vec![part(block)] };
    match block {
        Block::Thinking(_) => {
            json!({"type": "reasoning", "id": id, "status": status, "summary": [], "content": parts()})
        }
        Block::Text(_) => {
            json!({"type": "message", "id": id, "status": status, "role": "assistant", "content": parts()})
        }
        Block::Call(tools::Call { name, arguments }) => json!({
            "type": "function_call", "id": id, "status": status, "call_id": id.replacen("fc_", "call_", 1), "name": name,
            "arguments": if empty { "" } else { arguments },
        }),
    }
}

fn usage(u: Usage) -> Value {
    json!({
        "input_tokens": u.prompt,
        "input_tokens_details": {"cached_tokens": u.cached},
        "output_tokens": u.spent.tokens,
        "output_tokens_details": {"reasoning_tokens": u.spent.reasoning},
        "total_tokens": u.prompt + u.spent.tokens,
    })
}

/// A tool as a response tells it, with every field that it may have.
fn told(tool: &Value) -> Value {
    let mut tool = tool.clone();
    for field in ["description", "parameters", "strict"] {
        // What is not there reads as null, and stands there so.
        tool[field] = tool[field].take();
    }
    tool
}

impl Reply {
    /// The response: in work, or ended.
    fn whole(&self, output: Vec<Value>, end: Option<(&Finish, Usage)>) -> Value {
        let (status, incomplete) = match end {
            None => ("in_progress", Value::Null),
            Some((Finish::Length, _)) => ("incomplete", json!({"reason": "max_output_tokens"})),
            Some(_) => ("completed", Value::Null),
        };
        let mut value = json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": null,
            "completed_at": end.map(|_| now()), "incomplete_details": incomplete, "model": self.model, "output": output,
            "previous_response_id": null, "store": false, "background": false, "max_tool_calls": null, "top_logprobs": 0,
            "service_tier": "default", "truncation": "disabled", "usage": end.map(|(_, u)| usage(u)),
        });
        for (key, given) in &self.echo {
            value[key] = match (key.as_str(), given) {
                ("tools", _) => given.as_array().into_iter().flatten().map(told).collect(),
                ("tool_choice", Value::Null) => "auto".into(),
                ("parallel_tool_calls", Value::Null) => true.into(),
                ("metadata", Value::Null) => json!({}),
                ("text", Value::Null) => json!({"format": {"type": "text"}}),
                ("temperature" | "top_p", Value::Null) => 1.0.into(),
                ("presence_penalty" | "frequency_penalty", Value::Null) => 0.0.into(),
                _ => given.clone(),
            };
        }
        value
    }
}

/// Events with their numbers.
struct Stream<'a> {
    events: &'a Events,
    reply: &'a Reply,
    number: usize,
    /// The items' ids.
    ids: Vec<String>,
}

impl Stream<'_> {
    async fn run(&mut self, watch: &mut Watch<'_>, mut deltas: Receiver<Delta>) -> Result<(), Gone> {
        let begun = self.reply.whole(Vec::new(), None);
        self.event("response.created", json!({"response": begun})).await?;
        self.event("response.in_progress", json!({"response": begun})).await?;
        let (mut blocks, mut finish) = (Blocks::default(), Finish::Stop);
        while let Some(delta) = self.events.next(&mut deltas).await? {
            watch.note(&delta);
            let changes = match delta {
                Delta::Begun { .. } => continue,
                Delta::Piece { piece, .. } => blocks.take(&piece),
                Delta::End { finish: end, .. } => {
                    finish = end;
                    blocks.close().into_iter().collect()
                }
                Delta::Failed(error) => {
                    let error = json!({"code": "server_error", "message": error.message, "param": null});
                    return self.event("error", error).await;
                }
            };
            for (index, change) in changes {
                self.show(index, change).await?;
            }
        }
        let output = blocks.done.iter().zip(&self.ids).map(|(b, id)| item(id, b, "completed")).collect();
        let response = self.reply.whole(output, Some((&finish, watch.usage)));
        let name = if finish == Finish::Length { "response.incomplete" } else { "response.completed" };
        self.event(name, json!({"response": response})).await
    }

    async fn show(&mut self, index: usize, change: Change) -> Result<(), Gone> {
        match change {
            Change::Open(kind) => {
                let empty = match kind {
                    Kind::Thinking => Block::Thinking(String::new()),
                    Kind::Text => Block::Text(String::new()),
                };
                let id = self.open(index, &empty).await?;
                let data =
                    json!({"item_id": id, "output_index": index, "content_index": 0, "part": part(&empty)});
                self.event("response.content_part.added", data).await
            }
            Change::More(kind, text) => {
                let name = match kind {
                    Kind::Thinking => "response.reasoning_text.delta",
                    Kind::Text => "response.output_text.delta",
                };
                let data = json!({"item_id": self.ids[index], "output_index": index, "content_index": 0, "delta": text, "logprobs": []});
                self.event(name, data).await
            }
            Change::Close(block) => {
                let (name, text) = match &block {
                    Block::Thinking(text) => ("response.reasoning_text.done", text),
                    Block::Text(text) => ("response.output_text.done", text),
                    Block::Call(_) => return Ok(()),
                };
                let id = self.ids[index].clone();
                let place = json!({"item_id": id, "output_index": index, "content_index": 0});
                let with = |key: &str, value: Value| {
                    let mut data = place.clone();
                    data[key] = value;
                    data
                };
                let mut done = with("text", text.as_str().into());
                done["logprobs"] = json!([]);
                self.event(name, done).await?;
                self.event("response.content_part.done", with("part", part(&block))).await?;
                self.close(index, &block).await
            }
            Change::Call(call) => {
                let block = Block::Call(call.clone());
                let id = self.open(index, &block).await?;
                let mut data = json!({"item_id": id, "output_index": index, "delta": call.arguments});
                self.event("response.function_call_arguments.delta", data.clone()).await?;
                data = json!({"item_id": id, "output_index": index, "name": call.name, "arguments": call.arguments});
                self.event("response.function_call_arguments.done", data).await?;
                self.close(index, &block).await
            }
        }
    }

    async fn open(&mut self, index: usize, block: &Block) -> Result<String, Gone> {
        let id = item_id(block);
        self.ids.push(id.clone());
        let data = json!({"output_index": index, "item": item(&id, block, "in_progress")});
        self.event("response.output_item.added", data).await?;
        Ok(id)
    }

    async fn close(&mut self, index: usize, block: &Block) -> Result<(), Gone> {
        let data = json!({"output_index": index, "item": item(&self.ids[index], block, "completed")});
        self.event("response.output_item.done", data).await
    }

    async fn event(&mut self, name: &str, mut data: Value) -> Result<(), Gone> {
        data["type"] = name.into();
        data["sequence_number"] = self.number.into();
        self.number += 1;
        self.events.named(name, &data).await
    }
}
