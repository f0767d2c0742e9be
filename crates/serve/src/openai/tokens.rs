//! Tokens as text: `/tokenize`, `/detokenize`, and log-probabilities.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use data::Tokenizer;
use serde_json::{Value, json};

use super::messages;
use crate::app::{App, read};
use crate::error::{Answer, ApiError, json_response};
use crate::generation::Told;

/// The bytes that a token stands for, as far as its vocabulary tells: of part of a character its own.
pub(crate) fn token_bytes(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let text = tokenizer.token_text(id).unwrap_or_default();
    if tokenizer.is_special(id) {
        return text.into_bytes();
    }
    let decoded = tokenizer.decode(&[id], false).unwrap_or_default();
    if let Some(byte) = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')) {
        return u8::from_str_radix(byte, 16).map_or(decoded.into_bytes(), |byte| vec![byte]);
    }
    // Byte-level vocabularies write every byte as a character of an alphabet of their own.
    let bytes: Option<Vec<u8>> = text.chars().map(byte_of).collect();
    match bytes {
        Some(bytes) if String::from_utf8_lossy(&bytes) == decoded => bytes,
        _ => decoded.into_bytes(),
    }
}

/// The byte behind a character of GPT-2's alphabet: printable ones stand for themselves, the others for U+0100 and on.
fn byte_of(c: char) -> Option<u8> {
    let plain = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(c);
    match u8::try_from(code) {
        Ok(byte) => plain(byte).then_some(byte),
        Err(_) => (0..=255u8).filter(|b| !plain(*b)).nth(code.checked_sub(0x100)? as usize),
    }
}

fn one(tokenizer: &Tokenizer, id: u32, logprob: f32) -> Value {
    let bytes = token_bytes(tokenizer, id);
    json!({"token": String::from_utf8_lossy(&bytes), "logprob": finite(logprob), "bytes": bytes})
}

/// JSON has no infinity; this is what OpenAI writes for what never happens.
pub(crate) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// Tokens with their log-probabilities, as chats tell them.
pub(crate) fn chat_logprobs(tokenizer: &Tokenizer, tokens: &[Told]) -> Value {
    let list: Vec<Value> = tokens
        .iter()
        .map(|t| {
            let mut entry = one(tokenizer, t.id, t.logprob);
            let top: Vec<Value> = t.top.iter().map(|&(id, logprob)| one(tokenizer, id, logprob)).collect();
            entry["top_logprobs"] = top.into();
            entry
        })
        .collect();
    json!({"content": list, "refusal": null})
}

/// Answers `/tokenize`: `{"prompt"}` or `{"messages"}` → `{"count", "max_model_len", "tokens"}`.
pub(crate) async fn tokenize(State(app): State<Arc<App>>, request: Request<Body>) -> Answer<Response> {
    let mut call = read(app, request).await?;
    let model = call.fields.text("model")?;
    let entry = call.app.entry(model.as_deref()).await?;
    let served = &entry.served;
    let f = &mut call.fields;
    let with_special = f.flag("add_special_tokens")?.unwrap_or(true);
    let ids = match (f.text("prompt")?, f.list("messages")?) {
        (Some(text), None) => {
            let encoded = if with_special {
                served.tokenizer.encode_whole(&text)
            } else {
                served.tokenizer.encode_untrusted(&text)
            };
            encoded.map_err(|e| ApiError::field("prompt", e.to_string()))?
        }
        (None, Some(list)) => {
            crate::talk::encode(served, "messages", &messages::messages(list)?, &data::Given::default())?.0
        }
        _ => return Err(ApiError::field("prompt", "give either prompt, a string, or messages")),
    };
    let value = json!({"count": ids.len(), "max_model_len": served.context(), "tokens": ids});
    Ok(json_response(StatusCode::OK, &value))
}

/// Answers `/detokenize`: `{"tokens"}` → `{"prompt"}`.
pub(crate) async fn detokenize(State(app): State<Arc<App>>, request: Request<Body>) -> Answer<Response> {
    let mut call = read(app, request).await?;
    let model = call.fields.text("model")?;
    let entry = call.app.entry(model.as_deref()).await?;
    let served = &entry.served;
    let ids = ids("tokens", call.fields.need("tokens")?, served.model.config().vocab_size())?;
    let text = served.tokenizer.decode(&ids, false).map_err(|e| ApiError::field("tokens", e.to_string()))?;
    Ok(json_response(StatusCode::OK, &json!({"prompt": text})))
}

/// A list of token ids within the vocabulary.
pub(crate) fn ids(name: &str, value: Value, vocab: usize) -> Answer<Vec<u32>> {
    let wrong = || {
        let message = format!("{name} is no list of token ids from 0 to {}", vocab - 1);
        ApiError::field(name, message)
    };
    let Value::Array(list) = value else { return Err(wrong()) };
    let id = |v: &Value| v.as_u64().filter(|&id| id < vocab as u64).map(|id| id as u32).ok_or_else(wrong);
    list.iter().map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Ġ` is a blank, `Ċ` a line end, `ł` 0xa0's neighbour: GPT-2's table.
    #[test]
    fn characters_of_the_alphabet_are_bytes() {
        let bytes: Vec<u8> = "ĠĊĉa!Ā".chars().filter_map(byte_of).collect();
        assert_eq!(bytes, [b' ', b'\n', b'\t', b'a', b'!', 0]);
        assert_eq!(byte_of('Ń'), Some(0xad), "the last of them");
        assert_eq!(byte_of('語'), None);
    }
}
