//! The template engine, set up as `transformers` sets up Jinja, and bounded in work and output.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, context};

use super::date::strftime_now;
use super::json::to_json;
use super::{Given, Message, bounds};
use crate::tokenizer::Tokenizer;
use crate::{DataError, Result};

/// Work allowed to a template besides its messages: about one unit per instruction or 64 bytes of data.
/// Published templates use a few hundred units per message.
const BASE_FUEL: u64 = 200_000;
const FUEL_PER_MESSAGE: u64 = 4_000;

/// Output allowed besides what the messages themselves explain, in bytes.
const BASE_OUTPUT: usize = 1 << 20;

/// The longest template that is parsed, in bytes; the longest published ones have some 20 thousand.
const MAX_TEMPLATE: usize = 1 << 17;

/// Renders messages whose roles were checked.
pub(super) fn render(
    tok: &Tokenizer,
    messages: &[Message],
    given: &Given,
    add_generation_prompt: bool,
) -> Result<String> {
    let template = tok.chat_template().ok_or(DataError::NoTemplate)?;
    if template.len() > MAX_TEMPLATE {
        return Err(DataError::Template {
            problem: format!("it is {} bytes long, expected at most {MAX_TEMPLATE}", template.len()),
        });
    }
    let content: usize = messages.iter().map(Message::size).sum::<usize>() + given.size();
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.map_err(|e| problem(&e))?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(method);
    env.set_fuel(Some(BASE_FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + content as u64 / 4));
    env.add_function("raise_exception", |text: String| -> std::result::Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, text))
    });
    env.add_filter("tojson", to_json);

    bounds::install(&mut env, bounds::BASE_WEIGHT + 16 * messages.len() as u64 + content as u64 / 4);

    // Python's None has no items, and Jinja's undefined has none of them.
    env.add_test("iterable", |value: &Value| {
        !value.is_none() && (value.as_str().is_some() || value.try_iter().is_ok())
    });
    for name in ["length", "count"] {
        env.add_filter(name, |value: &Value| match value.len() {
            Some(length) => Ok(length),
            None if value.is_undefined() => Ok(0),
            None => {
                let problem = format!("a value of the kind {} has no length", value.kind());
                Err(Error::new(ErrorKind::InvalidOperation, problem))
            }
        });
    }
    env.add_function("strftime_now", |format: &str| strftime_now(format));

    // As Jinja reads any file.
    let template = template.replace("\r\n", "\n").replace('\r', "\n");
    let source = bounds::instrument(&template).map_err(|problem| DataError::Template { problem })?;
    let template = env.template_from_named_str("chat_template", &source).map_err(|e| problem(&e))?;
    let none = Value::from(());
    let tools = if given.tools.is_empty() { none.clone() } else { Value::from(Serde(&given.tools)) };
    let mut variables = tok.named_tokens();
    variables.extend(given.chat_template_kwargs.clone());
    let context = context! {
        messages => messages.iter().map(Message::to_value).collect::<Vec<Value>>(),
        add_generation_prompt => add_generation_prompt,
        tools => tools,
        documents => none,
        ..Value::from(Serde(&variables))
    };
    let mut output = Limited { bytes: Vec::new(), limit: BASE_OUTPUT + 4 * content };
    let limit = output.limit;
    match template.render_captured_to(context, &mut output) {
        Ok(_) => {}
        Err(_) if output.bytes.len() > limit => {
            return Err(DataError::TemplateLimit { limit: format!("{limit} bytes of output") });
        }
        Err(e) if e.kind() == ErrorKind::OutOfFuel => {
            let limit = "allowance of work; it loops too long or builds values that are too large";
            return Err(DataError::TemplateLimit { limit: limit.to_owned() });
        }
        Err(e) => return Err(problem(&e)),
    }
    String::from_utf8(output.bytes).map_err(|e| DataError::Template { problem: e.to_string() })
}

/// Python's methods of strings, lists and dicts.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> std::result::Result<Value, Error> {
    // A width or precision can ask for gigabytes, which are charged for only when they are there.
    if name == "format" && value.as_str().is_some_and(|s| s.contains(':')) {
        let problem = "`format` may not use format specifications in a chat template";
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// The innermost reason of an error in a template, which is where `raise_exception` speaks.
fn problem(error: &Error) -> DataError {
    let mut text = error.to_string();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    DataError::Template { problem: text }
}

/// An output that refuses to grow beyond its limit; a refused write shows as a length above it.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            self.bytes.resize(self.limit + 1, 0);
            return Err(io::Error::other("the output limit is reached"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
