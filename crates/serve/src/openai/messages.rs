//! A conversation as clients send it, and its ids.

use data::Message;
use serde_json::{Map, Value};

use crate::error::{Answer, ApiError};
use crate::fields::{Fields, kind};

/// Turns of a conversation at most.
const MOST_MESSAGES: usize = 4096;

/// Reads `messages`.
pub(crate) fn messages(list: Vec<Value>) -> Answer<Vec<Message>> {
    if list.is_empty() {
        return Err(ApiError::field("messages", "messages is empty: give at least one"));
    }
    if list.len() > MOST_MESSAGES {
        let message = format!("messages has {} turns, expected at most {MOST_MESSAGES}", list.len());
        return Err(ApiError::field("messages", message));
    }
    list.into_iter().enumerate().map(|(i, value)| message(&format!("messages[{i}]"), value)).collect()
}

/// Reads one turn, which stands at `place`.
pub(crate) fn message(place: &str, value: Value) -> Answer<Message> {
    let mut f = Fields::of(place, value)?;
    let role = match f.text("role")? {
        None => return Err(ApiError::field(f.name("role"), format!("{place}.role is missing"))),
        // What OpenAI calls the instructions nowadays; templates know the older word.
        Some(role) if role == "developer" => "system".to_owned(),
        Some(role) if data::chat::ROLES.contains(&role.as_str()) => role,
        Some(role) => {
            let short: String = role.chars().take(40).collect();
            let known = data::chat::ROLES.join(", ");
            return Err(ApiError::field(
                f.name("role"),
                format!("{place}.role is {short:?}, expected one of {known}"),
            ));
        }
    };
    let content = f.take("content").map(|content| text(&f.name("content"), content)).transpose()?;
    let mut more = Map::new();
    // Both names that clients have for it; templates know the first.
    let thought = f.text("reasoning_content")?;
    let thought = thought.or(f.text("reasoning")?);
    if let Some(thought) = thought.filter(|t| !t.is_empty()) {
        more.insert("reasoning_content".to_owned(), thought.into());
    }
    for field in ["name", "tool_call_id"] {
        if let Some(text) = f.text(field)? {
            more.insert(field.to_owned(), text.into());
        }
    }
    if let Some(calls) = f.list("tool_calls")?.filter(|c| !c.is_empty()) {
        let calls = calls.into_iter().enumerate().map(|(i, c)| call(&format!("{place}.tool_calls[{i}]"), c));
        more.insert("tool_calls".to_owned(), calls.collect::<Answer<Vec<_>>>()?.into());
    }
    if content.is_none() && !more.contains_key("tool_calls") {
        return Err(ApiError::field(f.name("content"), format!("{place}.content is missing")));
    }
    Ok(Message { content: Some(content.unwrap_or_default()), more, ..Message::new(role, "") })
}

/// A text, or the text of a list of parts.
pub(crate) fn text(place: &str, value: Value) -> Answer<String> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => {
            let message = format!("{place} is {}, expected a string or a list of parts", kind(&other));
            return Err(ApiError::field(place, message));
        }
    };
    let mut out = String::new();
    for (i, part) in parts.into_iter().enumerate() {
        let place = format!("{place}[{i}]");
        let mut f = Fields::of(&place, part)?;
        let what = f.text("type")?.unwrap_or_default();
        if !["text", "input_text", "output_text", "refusal"].contains(&what.as_str()) {
            let what: String = what.chars().take(40).collect();
            let message = format!("{place} is of the type {what:?}: the models here read text alone");
            return Err(ApiError::field(f.name("type"), message));
        }
        let text = match f.text("text")? {
            Some(text) => Some(text),
            None => f.text("refusal")?,
        };
        out += &text.ok_or_else(|| ApiError::field(f.name("text"), format!("{place}.text is missing")))?;
    }
    Ok(out)
}

/// A call as templates read it: its arguments are an object.
pub(crate) fn call(place: &str, value: Value) -> Answer<Value> {
    let mut f = Fields::of(place, value)?;
    let function = f.need("function")?;
    let mut function = Fields::of(&format!("{place}.function"), function)?;
    let name = function.need("name")?;
    let arguments = match function.take("arguments") {
        None => Value::Object(Map::new()),
        Some(Value::String(text)) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        Some(other) => other,
    };
    let mut out = f.rest();
    out.insert("function".to_owned(), serde_json::json!({"name": name, "arguments": arguments}));
    Ok(Value::Object(out))
}
