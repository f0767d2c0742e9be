//! Conversations to token ids, through the model's own chat template.
//!
//! # What a user types stays text
//! The template and the tokenizer's control tokens give a conversation its structure; the contents of messages
//! must not. [`encode_prompt`] and [`encode_chat`] therefore follow each untrusted content through the template
//! (module `trace`), and the ids that come out of it are checked: none of them is a control token, whatever the
//! content spells. Conversations without such text encode exactly as the rendered string does.

mod bounds;
mod date;
mod jinja;
mod json;
mod render;
mod trace;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};

use crate::tokenizer::{Tokenizer, Trust};
use crate::{DataError, Result};

use trace::Marked;

/// The roles that a message can have.
pub const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// The chat template of models made here: `<|role|>content<|end|>` per message, nothing between.
pub const DEFAULT_TEMPLATE: &str = "\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('this chat template knows the roles system, user and assistant, not ' + message['role']) -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
";

/// The control tokens of [`DEFAULT_TEMPLATE`], and one for padding; the end token is `<|end|>`.
pub const DEFAULT_SPECIAL_TOKENS: [&str; 5] =
    ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"];

/// The names that files give to the thought of a turn, the present one first.
const THOUGHTS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// One turn of a conversation.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(try_from = "Fields")]
pub struct Message {
    /// Who speaks, one of [`ROLES`].
    pub role: String,
    /// What is said; nothing where a turn consists of calls alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Whether an assistant's turn is to be learned; in files `"weight": 0` says no.
    #[serde(rename = "weight", serialize_with = "weight::serialize", skip_serializing_if = "is_yes")]
    pub learned: bool,
    /// What else stands in it, for the template: `reasoning_content`, `tool_calls`, `name`, … A `content` of null is among it,
    /// since templates can tell it from none.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

fn yes() -> bool {
    true
}

fn is_yes(learned: &bool) -> bool {
    *learned
}

/// A message as files have it.
#[derive(Deserialize)]
struct Fields {
    role: String,
    #[serde(rename = "weight", default = "yes", deserialize_with = "weight::deserialize")]
    learned: bool,
    #[serde(flatten)]
    more: Map<String, Value>,
}

impl TryFrom<Fields> for Message {
    type Error = String;

    fn try_from(fields: Fields) -> std::result::Result<Message, String> {
        let Fields { role, learned, mut more } = fields;
        let content = match more.get_mut("content") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(std::mem::take(text)),
            Some(_) => {
                return Err("a turn's `content` is neither null nor text, expected a string".to_owned());
            }
        };
        if content.is_some() {
            more.shift_remove("content");
        }
        Ok(Message { role, content, learned, more })
    }
}

/// Whether a turn is learned, as the number that files have.
mod weight {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(learned: &bool, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(u8::from(*learned))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
        match Option::<f64>::deserialize(deserializer)? {
            None | Some(1.0) => Ok(true),
            Some(0.0) => Ok(false),
            Some(other) => Err(de::Error::custom(format!("a turn's `weight` is {other}, expected 0 or 1"))),
        }
    }
}

impl Message {
    /// A turn that is nothing but text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: Some(content.into()), learned: true, more: Map::new() }
    }

    /// A user's turn.
    pub fn user(content: impl Into<String>) -> Message {
        Message::new("user", content)
    }

    /// An assistant's turn.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message::new("assistant", content)
    }

    /// The instructions before a conversation.
    pub fn system(content: impl Into<String>) -> Message {
        Message::new("system", content)
    }

    /// What is said, or nothing.
    fn text(&self) -> &str {
        self.content.as_deref().unwrap_or_default()
    }

    fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }

    /// Its fields but for those that say nothing, as files with columns have them for every turn.
    fn fields(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.more.iter().filter(|(_, value)| !value.is_null())
    }

    /// About how long it is, in bytes.
    fn size(&self) -> usize {
        self.text().len() + self.fields().map(|(_, value)| value.to_string().len()).sum::<usize>()
    }

    /// What a template sees: as in `transformers`, a thought has the names that templates know it by, and fields that say
    /// nothing, but for the content, are left out.
    fn to_value(&self) -> minijinja::Value {
        let mut seen = Map::new();
        let thought = THOUGHTS.iter().find_map(|name| self.more.get(*name).filter(|value| !value.is_null()));
        if let Some(thought) = thought {
            seen.insert("thinking".to_owned(), thought.clone());
        }
        seen.insert("role".to_owned(), self.role.clone().into());
        if self.content.is_some() || self.more.contains_key("content") {
            seen.insert("content".to_owned(), self.content.clone().into());
        }
        seen.extend(self.fields().map(|(key, value)| (key.clone(), value.clone())));
        if let Some(thought) = thought {
            seen.insert("reasoning_content".to_owned(), thought.clone());
        }
        minijinja::Value::from(minijinja::value::Serde(&seen))
    }
}

/// What a template is given beside the messages.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// The functions that the assistant may call; in files a list, or its JSON as text.
    #[serde(default, deserialize_with = "list_or_text", skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Value>,
    /// Variables such as `enable_thinking`.
    #[serde(default, deserialize_with = "map_or_null", skip_serializing_if = "Map::is_empty")]
    pub chat_template_kwargs: Map<String, Value>,
}

fn list_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<Value>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(Vec::new()),
        Value::Array(tools) => Ok(tools),
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|e| de::Error::custom(format!("`tools` is text that is not a JSON list: {e}"))),
        _ => Err(de::Error::custom("`tools` is neither a list nor the JSON of one")),
    }
}

fn map_or_null<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Map<String, Value>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Given {
    /// About how long it is, in bytes.
    fn size(&self) -> usize {
        let tools = self.tools.iter().map(|tool| tool.to_string().len()).sum::<usize>();
        tools + self.chat_template_kwargs.values().map(|v| v.to_string().len()).sum::<usize>()
    }
}

/// A conversation as training data keeps it: `{"messages": [{"role": …, "content": …}, …], "tools": […]}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    /// The turns, oldest first.
    pub messages: Vec<Message>,
    /// What else the template is given.
    #[serde(flatten)]
    pub given: Given,
}

impl Conversation {
    /// Turns and nothing else.
    pub fn of(messages: impl Into<Vec<Message>>) -> Conversation {
        Conversation { messages: messages.into(), given: Given::default() }
    }
}

/// A conversation as a training example.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Sample {
    /// Token ids.
    pub ids: Vec<u32>,
    /// `loss[i]` says whether `ids[i]` is to be learned; as long as `ids`.
    pub loss: Vec<bool>,
}

/// Renders a conversation with the tokenizer's template, as `apply_chat_template(tokenize=False)` of `transformers`
/// does. For looking at; to get ids use [`encode_prompt`] or [`encode_chat`], which keep contents harmless.
///
/// # Errors
/// No template, an unknown role, a template that fails, or one that uses up its fuel or its output allowance.
pub fn render_chat(tok: &Tokenizer, chat: &Conversation, add_generation_prompt: bool) -> Result<String> {
    check_roles(&chat.messages)?;
    render::render(tok, &chat.messages, &chat.given, add_generation_prompt)
}

/// The ids after which the model writes the next assistant turn: the conversation with the generation prompt.
///
/// Contents are untrusted ([`Trust::None`]); those of assistant turns, which come back from clients, may hold
/// added tokens such as `<think>` but no control tokens ([`Trust::Assistant`]).
///
/// # Errors
/// As [`render_chat`]; text of a control token under a template that rewrites contents beyond recognition.
pub fn encode_prompt(tok: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>> {
    encode_conversation(tok, messages, &Given::default())
}

/// [`encode_prompt`] with what else the template is given, which is as untrusted as what users say.
///
/// # Errors
/// As [`encode_prompt`]; text of a control token in what is given.
pub fn encode_conversation(tok: &Tokenizer, messages: &[Message], given: &Given) -> Result<Vec<u32>> {
    check_roles(messages)?;
    let Given { tools, chat_template_kwargs } = given;
    if tools.iter().chain(chat_template_kwargs.values()).any(|value| trace::spells_token(tok, value)) {
        let problem = "the tools or the template's variables spell a control token".to_owned();
        return Err(DataError::Template { problem });
    }
    let trust = |m: &Message| if m.is_assistant() { Trust::Assistant } else { Trust::None };
    trace::render_marked(tok, messages, given, true, &trust)?.encode(tok)
}

/// A conversation as a training example with the loss on assistant turns only.
///
/// A turn's loss begins after the generation prompt and ends with the turn's end token; what a template writes
/// after that token (a line end) is left out. Contents and fields of assistant turns are trusted, and so is what the template
/// is given beside the messages; all others are not. The ids
/// up to the first assistant turn equal those of [`encode_prompt`] for the messages before it, and likewise for
/// later turns where the template ends turns with a control token: what is trained is what is generated.
///
/// # Errors
/// As [`encode_prompt`]; a template that renders the conversation up to some turn otherwise than as a beginning
/// of the whole ([`DataError::NotPrefix`]).
pub fn encode_chat(tok: &Tokenizer, conversation: &Conversation) -> Result<Sample> {
    let Conversation { messages, given } = conversation;
    check_roles(messages)?;
    let mut messages = messages.clone();
    loop {
        match encode_turns(tok, &messages, given) {
            // Once for each turn, which then begins as its prompt ends.
            Err(DataError::NotPrefix { index }) => reopen(tok, &mut messages, given, index)?,
            encoded => return encoded,
        }
    }
}

/// Lets an assistant's turn begin with what its prompt ends with, where the template opens the thought itself: the turn's own
/// `<think>` becomes the template's, white space included.
fn reopen(tok: &Tokenizer, messages: &mut [Message], given: &Given, index: usize) -> Result<()> {
    const OPEN: &str = "<think>";
    let before = render::render(tok, &messages[..index], given, true)?;
    let opening = before.rfind(OPEN).map(|at| &before[at..]).filter(|opening| opening.trim_end() == OPEN);
    let Some(opening) = opening else { return Err(DataError::NotPrefix { index }) };
    let content = messages[index].text();
    let thought = content.trim_start().strip_prefix(OPEN).map(str::trim_start);
    match thought.map(|thought| format!("{opening}{thought}")) {
        Some(reopened) if reopened != content => {
            messages[index].content = Some(reopened);
            Ok(())
        }
        Some(_) => Err(DataError::NotPrefix { index }),
        None => Err(DataError::Unopened { index, opening: opening.to_owned() }),
    }
}

/// How many ids a conversation has, for a fraction of the work of [`encode_chat`], which goes over the whole once for each
/// turn.
///
/// # Errors
/// As [`encode_prompt`].
pub fn chat_len(tok: &Tokenizer, conversation: &Conversation) -> Result<usize> {
    check_roles(&conversation.messages)?;
    let trust = |m: &Message| if m.is_assistant() { Trust::Full } else { Trust::None };
    let Conversation { messages, given } = conversation;
    Ok(trace::render_marked(tok, messages, given, false, &trust)?.encode(tok)?.len())
}

/// [`encode_chat`] of contents as they are.
fn encode_turns(tok: &Tokenizer, messages: &[Message], given: &Given) -> Result<Sample> {
    let trust = |m: &Message| if m.is_assistant() { Trust::Full } else { Trust::None };
    let full = trace::render_marked(tok, messages, given, false, &trust)?;

    // Where assistant turns begin and end in the rendered text: (end of the segment, is it a turn).
    let mut cuts: Vec<(usize, bool)> = Vec::new();
    for (index, message) in messages.iter().enumerate().filter(|(_, m)| m.is_assistant()) {
        let before = render::render(tok, &messages[..index], given, true)?;
        let through = render::render(tok, &messages[..=index], given, false)?;
        let last = cuts.last().map_or(0, |&(end, _)| end);
        if !full.text().starts_with(&through) || !through.starts_with(&before) || before.len() < last {
            return Err(DataError::NotPrefix { index });
        }
        cuts.push((before.len(), false));
        cuts.push((through.len(), message.learned));
    }
    cuts.push((full.text().len(), false));

    let mut sample = Sample::default();
    let mut start = 0;
    for (end, is_turn) in cuts {
        let segment = next_segment(tok, &full, &sample.ids, start, end)?;
        let learned = if is_turn { learned_len(tok, &segment)? } else { 0 };
        sample.loss.extend((0..segment.len()).map(|i| i < learned));
        sample.ids.extend(segment);
        start = end;
    }
    Ok(sample)
}

/// The ids of `full[start..end]` as a continuation of `before`, the ids of `full[..start]`.
///
/// Some vocabularies treat the beginning of a text specially (a dummy space), so the text is encoded from its
/// beginning where that continues `before`; otherwise a token would straddle the cut, and the segment stands alone.
fn next_segment(
    tok: &Tokenizer,
    full: &Marked,
    before: &[u32],
    start: usize,
    end: usize,
) -> Result<Vec<u32>> {
    if start == end {
        return Ok(Vec::new());
    }
    let whole = full.slice(0, end).encode(tok)?;
    match whole.strip_prefix(before) {
        Some(rest) => Ok(rest.to_vec()),
        None => full.slice(start, end).encode(tok),
    }
}

/// How many ids of an assistant turn carry loss: through the last control token where only white space follows it.
fn learned_len(tok: &Tokenizer, segment: &[u32]) -> Result<usize> {
    let is_end = |id: &u32| tok.is_special(*id) || tok.eos_id() == Some(*id);
    let Some(last) = segment.iter().rposition(is_end) else { return Ok(segment.len()) };
    let rest = tok.decode(&segment[last + 1..], false)?;
    Ok(if rest.trim().is_empty() { last + 1 } else { segment.len() })
}

/// The fields of a conversation that its template leaves out, such as a thought that it does not know: what is rendered
/// without them is the same. `tools` stands for those.
///
/// # Errors
/// As [`render_chat`].
pub fn fields_left_out(tok: &Tokenizer, conversation: &Conversation) -> Result<Vec<String>> {
    let Conversation { messages, given } = conversation;
    let mut fields: Vec<&String> = messages.iter().flat_map(|m| m.fields().map(|(key, _)| key)).collect();
    fields.sort_unstable();
    fields.dedup();
    let mut out = Vec::new();
    if fields.is_empty() && given.tools.is_empty() {
        return Ok(out);
    }
    let whole = render::render(tok, messages, given, false)?;
    for field in fields {
        let mut without = messages.clone();
        without.iter_mut().for_each(|m| drop(m.more.remove(field)));
        // A template that fails without a field uses it.
        if render::render(tok, &without, given, false).is_ok_and(|text| text == whole) {
            out.push(field.clone());
        }
    }
    let without = Given { tools: Vec::new(), ..given.clone() };
    if !given.tools.is_empty()
        && render::render(tok, messages, &without, false).is_ok_and(|text| text == whole)
    {
        out.push("tools".to_owned());
    }
    Ok(out)
}

/// A role is text of the template's making once rendered, so only known ones pass.
fn check_roles(messages: &[Message]) -> Result<()> {
    match messages.iter().position(|m| !ROLES.contains(&m.role.as_str())) {
        None => Ok(()),
        Some(index) => {
            Err(DataError::Role { index, found: messages[index].role.clone(), expected: ROLES.join(", ") })
        }
    }
}

#[cfg(test)]
mod tests;
