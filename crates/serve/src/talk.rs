//! A conversation that is to go on: what the three interfaces for it share.

use std::sync::Arc;

use data::{Conversation, Given, Message, encode_conversation, fields_left_out};
use engine::{Allowed, Guide, MakeGuide};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::error::{Answer, ApiError};
use crate::fields::Fields;
use crate::generation::Ask;
use crate::grammar::{self, Form};
use crate::openai::params::Wishes;
use crate::options::{ReasoningField, Served};
use crate::shelf::Entry;
use crate::thinking::CLOSE;
use crate::tools::Calls;

/// Tools that may be offered at most.
const MOST_TOOLS: usize = 128;

/// A tool that may be called.
pub(crate) struct Tool {
    /// As templates know it: `{"type": "function", "function": {"name", "description", "parameters"}}`.
    value: Value,
    /// Whether the arguments of its calls follow their schema, though nobody must call it.
    strict: bool,
}

impl Tool {
    fn name(&self) -> &str {
        self.value["function"]["name"].as_str().unwrap_or_default()
    }
}

/// A conversation and what goes with it.
#[derive(Default)]
pub(crate) struct Talk {
    /// The field that holds it.
    pub(crate) field: &'static str,
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: Vec<Tool>,
    /// The first call alone counts.
    pub(crate) one_call: bool,
    /// The answer is a call.
    pub(crate) must_call: bool,
    pub(crate) variables: Map<String, Value>,
    /// Tokens of thinking at most.
    pub(crate) budget: Option<usize>,
    /// Log-probabilities: how many beside each token.
    pub(crate) top: Option<usize>,
    /// The field that asks for a form, and the JSON schema of the answer.
    pub(crate) schema: Option<(&'static str, Value)>,
}

impl Talk {
    /// What the template is given beside the messages.
    pub(crate) fn given(&self) -> Given {
        let tools = self.tools.iter().map(|t| t.value.clone()).collect();
        Given { tools, chat_template_kwargs: self.variables.clone() }
    }

    /// What the engine is asked for.
    pub(crate) async fn ask(self, app: &App, entry: &Entry, wishes: &Wishes, salt: u64) -> Answer<Ask> {
        let given = self.given();
        let names = self.tools.iter().map(|t| t.name().to_owned()).collect();
        let form = form(self.schema, self.must_call, &self.tools, self.one_call);
        let offered = !self.tools.is_empty();
        let (prompt, opened) = encode(&entry.served, self.field, &self.messages, &given)?;
        let mut extras = wishes.extras(salt, self.top.unwrap_or(0), entry.front.speculate);
        let formed = form.is_some();
        let budget = self.budget.map(|tokens| budget(&entry.served, tokens, opened)).transpose()?;
        let form = match form {
            None => None,
            Some(form) => Some(grammar::guide(entry, form, opened).await?),
        };
        extras.guide = match (budget, form) {
            (Some(budget), Some(form)) => Some(grammar::both(budget, form)),
            (budget, form) => budget.or(form),
        };
        let split = app.options.reasoning != ReasoningField::None;
        Ok(Ask {
            request: wishes.request(entry, prompt, self.field)?,
            extras,
            stops: wishes.stops.clone(),
            thinking: split.then_some(opened),
            formed,
            tell_tokens: self.top.is_some(),
            tools: offered.then_some((names, self.one_call)),
        })
    }

    /// Takes `tools`, of which `flat` ones have their function's fields in themselves, and `tool_choice`.
    pub(crate) fn take_tools(&mut self, f: &mut Fields, flat: bool) -> Answer<()> {
        let list = f.list("tools")?.unwrap_or_default();
        if list.len() > MOST_TOOLS {
            let message = format!("tools has {} entries, expected at most {MOST_TOOLS}", list.len());
            return Err(ApiError::field("tools", message));
        }
        for (i, value) in list.into_iter().enumerate() {
            self.tools.push(tool(&format!("tools[{i}]"), value, flat)?);
        }
        self.one_call = f.flag("parallel_tool_calls")? == Some(false);
        match f.take("tool_choice") {
            None => Ok(()),
            Some(Value::String(mode)) => self.choose("tool_choice", &mode, None),
            Some(choice) => self.take_choice(Fields::of("tool_choice", choice)?),
        }
    }

    /// Takes a `tool_choice` that is an object, in OpenAI's words or in Anthropic's.
    fn take_choice(&mut self, mut f: Fields) -> Answer<()> {
        let kind = f.text("type")?.unwrap_or_default();
        self.one_call |= f.flag("disable_parallel_tool_use")? == Some(true);
        match kind.as_str() {
            "function" | "tool" => {
                let mut inner = match f.take("function") {
                    Some(function) => Fields::of("tool_choice.function", function)?,
                    None => f,
                };
                let name = inner.text("name")?;
                let name = name.ok_or_else(|| ApiError::field("tool_choice", "tool_choice names no tool"))?;
                self.one_call = true;
                self.choose("tool_choice", "required", Some(vec![name]))
            }
            "allowed_tools" => {
                let place = "tool_choice.allowed_tools";
                let mut inner = match f.take("allowed_tools") {
                    Some(inner) => Fields::of(place, inner)?,
                    None => f,
                };
                let mode = inner.text("mode")?.unwrap_or_else(|| "auto".to_owned());
                let list = inner.list("tools")?.unwrap_or_default();
                let name = |tool: Value| {
                    let name = tool["function"]["name"].as_str().or(tool["name"].as_str());
                    name.map(str::to_owned)
                        .ok_or_else(|| ApiError::field(place, format!("{place} holds a tool without a name")))
                };
                let names = list.into_iter().map(name).collect::<Answer<_>>()?;
                self.choose(place, &mode, Some(names))
            }
            mode => self.choose("tool_choice", mode, None),
        }
    }

    /// Leaves the tools of these names, to be called as the mode says.
    fn choose(&mut self, field: &str, mode: &str, names: Option<Vec<String>>) -> Answer<()> {
        if let Some(names) = names {
            if let Some(other) = names.iter().find(|n| !self.tools.iter().any(|t| t.name() == n.as_str())) {
                let other: String = other.chars().take(64).collect();
                return Err(ApiError::field(
                    field,
                    format!("{field} names {other:?}, which is none of the tools"),
                ));
            }
            self.tools.retain(|t| names.iter().any(|n| n == t.name()));
        }
        match mode {
            "auto" => {}
            "none" => self.tools.clear(),
            "required" | "any" if self.tools.is_empty() => {
                return Err(ApiError::field(
                    field,
                    format!("{field} asks for a call, but there are no tools"),
                ));
            }
            "required" | "any" => self.must_call = true,
            _ => {
                let known = "auto, none, required, a tool or some of them";
                return Err(ApiError::field(field, format!("{field} is unknown, expected {known}")));
            }
        }
        Ok(())
    }

    /// Takes `reasoning_effort`, in the words of OpenAI.
    pub(crate) fn take_effort(&mut self, field: &str, effort: Option<String>) -> Answer<()> {
        self.budget = match effort.as_deref() {
            None | Some("high" | "xhigh" | "max") => None,
            Some("medium") => Some(2048),
            Some("low") => Some(512),
            Some("minimal") => Some(64),
            Some("none") => Some(0),
            Some(_) => {
                let known = "none, minimal, low, medium, high or xhigh";
                return Err(ApiError::field(field, format!("{field} is unknown, expected {known}")));
            }
        };
        Ok(())
    }
}

/// What the answer is held to, if to anything. Beside a schema stands the call of a tool, where there are any; a tool that is strict
/// may be called or not, and its calls alone are held to anything.
fn form(schema: Option<(&'static str, Value)>, must_call: bool, tools: &[Tool], one: bool) -> Option<Form> {
    let field = schema.as_ref().map_or("tools", |(field, _)| *field);
    let schema = schema.filter(|_| !must_call).map(|(_, schema)| schema);
    let free = !must_call && schema.is_none();
    let held = if free { tools.iter().any(|t| t.strict) } else { !tools.is_empty() };
    let parameters = |t: &Tool| match free && !t.strict {
        true => json!({"type": "object"}),
        false => t.value["function"]["parameters"].clone(),
    };
    let calls = held.then(|| Calls {
        tools: tools.iter().map(|t| (t.name().to_owned(), parameters(t))).collect(),
        one,
        free,
    });
    (schema.is_some() || calls.is_some()).then_some(Form { field, schema, calls })
}

/// A tool of a request.
fn tool(place: &str, value: Value, flat: bool) -> Answer<Tool> {
    let mut f = Fields::of(place, value)?;
    if let Some(kind) =
        f.text("type")?.filter(|kind| kind != "function" && kind != "custom" || flat && kind == "custom")
    {
        let kind: String = kind.chars().take(40).collect();
        return Err(ApiError::field(
            f.name("type"),
            format!("{place} is a {kind:?}: functions alone can be called here"),
        ));
    }
    let mut inner = if flat { f } else { Fields::of(&format!("{place}.function"), f.need("function")?)? };
    let name = inner.text("name")?.filter(|n| !n.is_empty() && n.len() <= 64);
    let name = name.ok_or_else(|| {
        ApiError::field(inner.name("name"), format!("{place} has no name of 1 to 64 bytes"))
    })?;
    let mut function = Map::new();
    function.insert("name".into(), name.into());
    if let Some(description) = inner.text("description")? {
        function.insert("description".into(), description.into());
    }
    let parameters = match inner.object("parameters")? {
        Some(parameters) => Some(parameters),
        None => inner.object("input_schema")?,
    };
    let none =
        || Map::from_iter([("type".to_owned(), "object".into()), ("properties".to_owned(), json!({}))]);
    function.insert("parameters".into(), Value::Object(parameters.unwrap_or_else(none)));
    let strict = inner.flag("strict")?.unwrap_or(false);
    Ok(Tool { value: json!({"type": "function", "function": function}), strict })
}

/// The ids of a conversation that stands in a field, and whether its prompt opens a thought.
pub(crate) fn encode(
    served: &Served,
    field: &str,
    messages: &[Message],
    given: &Given,
) -> Answer<(Vec<u32>, bool)> {
    if served.tokenizer.chat_template().is_none() {
        let message =
            format!("{} has no chat template: continue text by /v1/completions instead", served.name);
        return Err(ApiError::field("model", message));
    }
    let wrong = |error: data::DataError| ApiError::field(field, error.to_string());
    if !given.tools.is_empty() {
        let whole = Conversation { messages: messages.to_vec(), given: given.clone() };
        if fields_left_out(&served.tokenizer, &whole).map_err(wrong)?.iter().any(|f| f == "tools") {
            let message = format!("the chat template of {} has no place for tools", served.name);
            return Err(ApiError::field("tools", message));
        }
    }
    let ids = encode_conversation(&served.tokenizer, messages, given).map_err(wrong)?;
    let opening = data::answer::opening(&served.tokenizer, &ids).map_err(wrong)?;
    Ok((ids, !opening.is_empty()))
}

/// Ends thinking after so many tokens.
fn budget(served: &Arc<Served>, tokens: usize, opened: bool) -> Answer<MakeGuide> {
    let close = served.tokenizer.encode(CLOSE).map_err(|e| ApiError::internal(e.to_string()))?;
    let served = served.clone();
    Ok(Arc::new(move || {
        Box::new(Budget {
            served: served.clone(),
            left: tokens,
            thinking: opened,
            close: close.clone(),
            forced: 0,
            tail: Vec::new(),
        })
    }))
}

/// Forces the closing tag once thoughts have had their tokens.
struct Budget {
    served: Arc<Served>,
    left: usize,
    thinking: bool,
    close: Vec<u32>,
    /// Tokens of the closing tag that were forced so far.
    forced: usize,
    /// The last tokens, in which tags are looked for.
    tail: Vec<u32>,
}

/// Tokens that a tag may have.
const TAG_TOKENS: usize = 12;

impl Guide for Budget {
    fn allowed(&mut self) -> Allowed {
        if self.thinking && self.left == 0 { Allowed::Only(self.close[self.forced]) } else { Allowed::All }
    }

    fn accept(&mut self, token: u32) {
        if self.thinking && self.left == 0 {
            self.forced += 1;
            if self.forced == self.close.len() {
                (self.thinking, self.forced) = (false, 0);
                self.tail.clear();
            }
            return;
        }
        if self.tail.len() == TAG_TOKENS {
            self.tail.remove(0);
        }
        self.tail.push(token);
        let text = data::answer::completion_text(&self.served.tokenizer, &self.tail).unwrap_or_default();
        match (text.rfind("<think>"), text.rfind("</think>")) {
            (None, None) => {}
            (opened, closed) => self.thinking = opened > closed,
        }
        self.left -= usize::from(self.thinking && self.left > 0);
    }
}
