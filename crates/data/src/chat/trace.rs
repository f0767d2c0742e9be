//! Following the contents of messages through a template, so that they can be encoded at their own level of trust.
//!
//! A content is handed to the template between two private-use characters that occur nowhere else; where they
//! come out again is where the content went. The marks stand inside of the content's leading and trailing white
//! space, so that templates which strip contents do what they always do. The marked output without its marks has
//! to equal the unmarked output; where it does not (the template looked inside of a content), fewer contents are
//! marked, and a content goes unmarked only if it cannot spell a control token.
//!
//! The rendered text is then encoded in one piece, as `transformers` does it. Only if that finds other control
//! tokens than the template's own parts and the trusted contents hold, the parts are encoded one by one.

use super::{Given, Message, render};
use serde_json::Value;

use crate::tokenizer::{Tokenizer, Trust};
use crate::{DataError, Result};

/// A rendered conversation and the parts of it that are not the template's.
#[derive(Debug)]
pub(super) struct Marked {
    text: String,
    /// Ascending, without overlap; what lies between is trusted in full.
    spans: Vec<Span>,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    end: usize,
    trust: Trust,
}

/// The private-use characters around a content, by its level of trust.
#[derive(Clone, Copy)]
struct Marks {
    open_assistant: char,
    open_user: char,
    close: char,
}

/// Renders a conversation and finds the contents in it; `trust` gives the level of each message.
pub(super) fn render_marked(
    tok: &Tokenizer,
    messages: &[Message],
    given: &Given,
    add_generation_prompt: bool,
    trust: &dyn Fn(&Message) -> Trust,
) -> Result<Marked> {
    let text = render::render(tok, messages, given, add_generation_prompt)?;
    let levels: Vec<Trust> = messages.iter().map(trust).collect();
    if levels.iter().all(|&t| t == Trust::Full) {
        return Ok(Marked { text, spans: Vec::new() });
    }
    let Some(marks) = unused_marks(tok, messages) else {
        return Err(DataError::Template {
            problem: "the conversation uses every character that could mark its contents".to_owned(),
        });
    };
    // A user's text that cannot spell a control token, and an assistant's that spells none, may go unmarked.
    let mut risky = Vec::with_capacity(messages.len());
    for (index, (message, &level)) in messages.iter().zip(&levels).enumerate() {
        if level == Trust::None
            && let Some((field, _)) = message.fields().find(|(_, value)| spells_token(tok, value))
        {
            return Err(DataError::ControlField { index, field: field.clone() });
        }
        risky.push(match level {
            Trust::Full => false,
            Trust::None => tok.may_spell_token(message.text()),
            Trust::Assistant => {
                let content = message.text();
                tok.encode_at(content, Trust::Full)? != tok.encode_at(content, Trust::Assistant)?
            }
        });
    }
    let all = |i: usize| levels[i] != Trust::Full;
    let users_and_risky = |i: usize| levels[i] == Trust::None || risky[i];
    let only_risky = |i: usize| risky[i];
    let choices: [&dyn Fn(usize) -> bool; 3] = [&all, &users_and_risky, &only_risky];
    for choose in choices {
        let marked: Vec<Message> = messages
            .iter()
            .enumerate()
            .map(|(i, m)| if choose(i) { marks.around(m, levels[i]) } else { m.clone() })
            .collect();
        // A template may fail on marks alone, for instance by parsing a content.
        let Ok(rendered) = render::render(tok, &marked, given, add_generation_prompt) else { continue };
        if let Some(found) = marks.find(&rendered)
            && found.text == text
        {
            return Ok(found);
        }
    }
    match risky.iter().position(|&r| r) {
        Some(index) => Err(DataError::ControlText { index }),
        None => Ok(Marked { text, spans: Vec::new() }),
    }
}

impl Marks {
    fn around(self, message: &Message, trust: Trust) -> Message {
        let content = message.text();
        let body = content.trim();
        if body.is_empty() {
            return message.clone();
        }
        let start = content.len() - content.trim_start().len();
        let (lead, tail) = (&content[..start], &content[start + body.len()..]);
        let open = if trust == Trust::Assistant { self.open_assistant } else { self.open_user };
        let close = self.close;
        Message { content: Some(format!("{lead}{open}{body}{close}{tail}")), ..message.clone() }
    }

    /// Takes the marks out of a text again; `None` where they do not come in pairs.
    fn find(self, rendered: &str) -> Option<Marked> {
        let mut text = String::with_capacity(rendered.len());
        let mut spans = Vec::new();
        let mut open: Option<(usize, Trust)> = None;
        for c in rendered.chars() {
            if c == self.open_assistant || c == self.open_user {
                let trust = if c == self.open_user { Trust::None } else { Trust::Assistant };
                if open.replace((text.len(), trust)).is_some() {
                    return None;
                }
            } else if c == self.close {
                let (start, trust) = open.take()?;
                spans.push(Span { start, end: text.len(), trust });
            } else {
                text.push(c);
            }
        }
        if open.is_some() { None } else { Some(Marked { text, spans }) }
    }
}

/// Whether some text in a field may spell a control token.
pub(super) fn spells_token(tok: &Tokenizer, value: &Value) -> bool {
    match value {
        Value::String(text) => tok.may_spell_token(text),
        Value::Array(items) => items.iter().any(|item| spells_token(tok, item)),
        Value::Object(map) => {
            map.iter().any(|(key, item)| tok.may_spell_token(key) || spells_token(tok, item))
        }
        _ => false,
    }
}

/// Three characters of the last private-use plane that occur in no message and not in the template.
fn unused_marks(tok: &Tokenizer, messages: &[Message]) -> Option<Marks> {
    let template = tok.chat_template().unwrap_or_default();
    let taken = |c: &char| template.contains(*c) || messages.iter().any(|m| m.text().contains(*c));
    let mut free = ('\u{10f000}'..='\u{10fffd}').filter(|c| !taken(c));
    Some(Marks { open_assistant: free.next()?, open_user: free.next()?, close: free.next()? })
}

impl Marked {
    /// The rendered text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// A part of the text with the spans that lie in it.
    pub(super) fn slice(&self, start: usize, end: usize) -> Marked {
        let spans = self
            .spans
            .iter()
            .filter(|s| s.start < end && s.end > start)
            .map(|s| Span { start: s.start.max(start) - start, end: s.end.min(end) - start, trust: s.trust })
            .collect();
        Marked { text: self.text[start..end].to_owned(), spans }
    }

    /// The ids of the text, each part at its level of trust.
    pub(super) fn encode(&self, tok: &Tokenizer) -> Result<Vec<u32>> {
        let whole = tok.encode_at(&self.text, Trust::Full)?;
        if self.spans.is_empty() {
            return Ok(whole);
        }
        let mut parts = Vec::with_capacity(whole.len());
        let mut done = 0;
        for span in &self.spans {
            parts.extend(tok.encode_at(&self.text[done..span.start], Trust::Full)?);
            parts.extend(tok.encode_at(&self.text[span.start..span.end], span.trust)?);
            done = span.end;
        }
        parts.extend(tok.encode_at(&self.text[done..], Trust::Full)?);
        let control =
            |ids: &[u32]| -> Vec<u32> { ids.iter().copied().filter(|&id| tok.is_protected(id)).collect() };
        Ok(if control(&whole) == control(&parts) { whole } else { parts })
    }
}
