//! Answers of a given form: JSON of a schema, calls of tools, or either, or text in which calls alone are held to a form.
//! Thinking is free, the answer is held to the form;
//! it ends when that is full and not before, so that an answer is of the form or is told to be cut off.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use engine::{Allowed, Guide, MakeGuide};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::error::{Answer, ApiError};
use crate::fields::Fields;
use crate::openai::tokens::token_bytes;
use crate::options::Served;
use crate::shelf::Entry;
use crate::tools::{Calls, Style};

/// Bytes of a schema at most, and how long it may take to read one.
const MOST_BYTES: usize = 64 << 10;
const MOST_TIME: Duration = Duration::from_secs(5);
/// Symbols of what becomes of a schema, and rules of it that may be open at once.
const MOST_SYMBOLS: usize = 100_000;

/// What a model's vocabulary needs for grammars, made at the first request for one.
#[derive(Default)]
pub(crate) struct Grammars(OnceLock<Option<Arc<ParserFactory>>>);

/// The schema of a `response_format`, if it asks for JSON. The schema may stand in `json_schema` or in the format itself.
pub(crate) fn schema(field: &str, format: Value) -> Answer<Option<Value>> {
    let mut f = Fields::of(field, format)?;
    let schema = match f.text("type")?.unwrap_or_default().as_str() {
        "text" => return Ok(None),
        "json_object" => json!({"type": "object"}),
        "json_schema" => match f.take("json_schema") {
            Some(inner) => Fields::of(&f.name("json_schema"), inner)?.need("schema")?,
            None => f.need("schema")?,
        },
        _ => {
            let message = format!("{field}.type is none of text, json_object and json_schema");
            return Err(ApiError::field(f.name("type"), message));
        }
    };
    if schema.to_string().len() > MOST_BYTES {
        return Err(ApiError::field(field, format!("the schema is larger than {MOST_BYTES} bytes")));
    }
    Ok(Some(schema))
}

/// What an answer is held to: JSON of a schema, calls of tools, or what it likes of the two; or text that is free but for its calls.
pub(crate) struct Form {
    /// The field that asks for it.
    pub(crate) field: &'static str,
    pub(crate) schema: Option<Value>,
    pub(crate) calls: Option<Calls>,
}

impl Form {
    /// As llguidance reads it, in its dialect of Lark.
    fn lark(self, served: &Served) -> Answer<String> {
        let (mut ways, mut rules) = (Vec::new(), String::new());
        if let Some(schema) = self.schema {
            ways.push("answer");
            rules += &format!("answer: %json {}\n", compact(schema));
        }
        if let Some(calls) = self.calls {
            ways.push(if calls.free { "free" } else { "calls" });
            let template = served.tokenizer.chat_template().unwrap_or_default();
            rules += &calls.lark(Style::of(template), compact);
        }
        if rules.len() > MOST_BYTES {
            let message = format!("the schemas are larger than {MOST_BYTES} bytes");
            return Err(ApiError::field(self.field, message));
        }
        Ok(format!("start: {}\n{rules}", ways.join(" | ")))
    }
}

/// A schema of JSON without needless white space: without end it is JSON too, and weak models write it.
fn compact(mut schema: Value) -> Value {
    if let Value::Object(map) = &mut schema {
        let spaces = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        map.insert("x-guidance".to_owned(), spaces);
    }
    schema
}

/// Holds answers to a form.
pub(crate) async fn guide(entry: &Entry, form: Form, opened: bool) -> Answer<MakeGuide> {
    let field = form.field;
    let served = entry.served.clone();
    let factory = entry.grammars.0.get_or_init(|| factory(&served).map(Arc::new)).clone();
    let Some(factory) = factory else {
        let message =
            format!("{} has no token that ends an answer, so none can be held to a form", served.name);
        return Err(ApiError::field("model", message));
    };
    let lark = form.lark(&served)?;
    let reading = tokio::task::spawn_blocking(move || {
        let parser = factory.create_parser(TopLevelGrammar::from_lark(lark));
        let mut matcher = Matcher::new(parser);
        // The first step shows whether the schema can be met at all.
        let _ = matcher.compute_mask();
        matcher
    });
    let matcher = tokio::time::timeout(MOST_TIME, reading).await;
    let Ok(Ok(matcher)) = matcher else {
        return Err(ApiError::field(field, "the schema takes too long to read"));
    };
    if let Some(problem) = matcher.get_error() {
        // Behind where in the grammar it stands, which the client has never seen.
        let problem = problem.lines().next().unwrap_or_default();
        let problem: String =
            problem.rsplit("JSON schema: ").next().unwrap_or_default().chars().take(300).collect();
        return Err(ApiError::field(field, format!("the schema cannot be followed: {problem}")));
    }
    let think = served.tokenizer.token_id("<think>");
    let matcher = Mutex::new(matcher);
    let no_end = no_end(&served);
    Ok(Arc::new(move || {
        Box::new(Grammar {
            served: served.clone(),
            matcher: matcher.lock().expect("nothing panics under this lock").deep_clone(),
            state: if opened { State::Thinking } else { State::Beginning },
            think,
            no_end: no_end.clone(),
            tail: Vec::new(),
        })
    }))
}

/// Every token but those that end an answer.
fn no_end(served: &Served) -> Vec<u32> {
    let vocab = served.model.config().vocab_size();
    let mut set = vec![u32::MAX; vocab.div_ceil(32)];
    served.stop_tokens.iter().for_each(|&id| set[id as usize / 32] &= !(1 << (id % 32)));
    set
}

/// Reads a vocabulary.
fn factory(served: &Served) -> Option<ParserFactory> {
    let tokenizer = &served.tokenizer;
    let vocab = served.model.config().vocab_size() as u32;
    let end = *served.stop_tokens.first()?;
    let word = |id: u32| match tokenizer.is_special(id) {
        // What the library takes for a token that no text holds.
        true => [&[0xff], tokenizer.token_text(id).unwrap_or_default().as_bytes()].concat(),
        false => token_bytes(tokenizer, id),
    };
    let words: Vec<Vec<u8>> = (0..vocab).map(word).collect();
    let trie = TokTrie::from(&TokRxInfo::new(vocab, end), &words);
    let env: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env).ok()?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.max_grammar_size = MOST_SYMBOLS;
    limits.verbose_errors = false;
    Some(factory)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// A thought may open, or the answer begins.
    Beginning,
    Thinking,
    Answering,
}

struct Grammar {
    served: Arc<Served>,
    matcher: Matcher,
    state: State,
    /// The token that opens a thought, if it is one.
    think: Option<u32>,
    /// Every token but those that end an answer: what a thought may hold.
    no_end: Vec<u32>,
    /// The last tokens of a thought, in which its end is looked for.
    tail: Vec<u32>,
}

/// Tokens that a tag may have.
const TAG_TOKENS: usize = 12;

impl Grammar {
    /// What the form allows; where it is full or the library gives up, the end.
    fn form(&mut self) -> Allowed {
        let ends = &self.served.stop_tokens;
        let Ok(mask) = self.matcher.compute_mask_or_eos() else { return Allowed::Only(ends[0]) };
        let mut set = mask.as_slice().to_vec();
        let has = |set: &[u32], id: u32| set.get(id as usize / 32).is_some_and(|w| w >> (id % 32) & 1 == 1);
        if has(&set, ends[0]) {
            ends.iter().for_each(|&id| set[id as usize / 32] |= 1 << (id % 32));
        }
        if set.iter().all(|&word| word == 0) { Allowed::Only(ends[0]) } else { Allowed::Set(set) }
    }
}

impl Guide for Grammar {
    fn allowed(&mut self) -> Allowed {
        match self.state {
            State::Thinking => Allowed::Set(self.no_end.clone()),
            State::Answering => self.form(),
            State::Beginning => match (self.form(), self.think) {
                (Allowed::Set(mut set), Some(think)) => {
                    set[think as usize / 32] |= 1 << (think % 32);
                    Allowed::Set(set)
                }
                (form, _) => form,
            },
        }
    }

    fn accept(&mut self, token: u32) {
        match self.state {
            State::Beginning if Some(token) == self.think => self.state = State::Thinking,
            State::Beginning | State::Answering => {
                self.state = State::Answering;
                if !self.served.stop_tokens.contains(&token) {
                    // What it refuses, it did not allow; then the next step says the end.
                    let _ = self.matcher.consume_token(token);
                }
            }
            State::Thinking => {
                if self.tail.len() == TAG_TOKENS {
                    self.tail.remove(0);
                }
                self.tail.push(token);
                let text =
                    data::answer::completion_text(&self.served.tokenizer, &self.tail).unwrap_or_default();
                if text.contains("</think>") {
                    self.state = State::Answering;
                }
            }
        }
    }

    fn is_whole(&mut self) -> bool {
        self.state == State::Answering && self.matcher.is_accepting().unwrap_or(false)
    }
}

/// Two guides, of which the first that has something to say is heard.
pub(crate) fn both(first: MakeGuide, second: MakeGuide) -> MakeGuide {
    Arc::new(move || Box::new(Both(first(), second())))
}

struct Both(Box<dyn Guide>, Box<dyn Guide>);

impl Guide for Both {
    fn allowed(&mut self) -> Allowed {
        match self.0.allowed() {
            Allowed::All => self.1.allowed(),
            said => said,
        }
    }
    fn accept(&mut self, token: u32) {
        self.0.accept(token);
        self.1.accept(token);
    }
    fn is_whole(&mut self) -> bool {
        self.0.is_whole() && self.1.is_whole()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use data::{Tokenizer, TrainOptions};
    use model::{Model, ModelConfig};

    fn served(template: &str) -> Served {
        let texts = (0..40).map(|i| format!("<think>{i}</think> add <tool_call>"));
        let tokenizer = Tokenizer::train(texts, &TrainOptions::reasoning(300)).expect("a tokenizer");
        let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": tokenizer.vocab_size(),
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
            "num_key_value_heads": 1, "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "initializer_range": 0.1, "tie_word_embeddings": true});
        let model = Model::random(ModelConfig::from_value(&config).expect("a valid config"), 1);
        let stop_tokens = tokenizer.eos_id().into_iter().collect();
        Served {
            name: "x".into(),
            model,
            tokenizer: tokenizer.with_chat_template(template.to_owned()),
            stop_tokens,
            examples: Vec::new(),
        }
    }

    /// With a strict tool that nobody must call, text is free; what looks like a call is one, and of the schema.
    #[test]
    fn calls_alone_are_held_to_a_schema() {
        let hermes = |name: &str, arguments: &str| {
            format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
        };
        let deepseek = |name: &str, arguments: &str| {
            format!(
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
            )
        };
        let bare =
            |name: &str, arguments: &str| format!("{{\"name\": \"{name}\", \"parameters\": {arguments}}}");
        type Write<'w> = &'w dyn Fn(&str, &str) -> String;
        let styles: [(&str, Write); 3] =
            [("<tool_call>", &hermes), ("<｜tool▁call▁begin｜>", &deepseek), ("parameters", &bare)];
        for (template, write) in styles {
            let served = served(template);
            let factory = factory(&served).expect("a factory");
            let add = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false});
            let tools = vec![("add".to_owned(), add), ("now".to_owned(), json!({"type": "object"}))];
            let form = || Form {
                field: "tools",
                schema: None,
                calls: Some(Calls { tools: tools.clone(), one: false, free: true }),
            };
            let is_whole = |text: &str| {
                let lark = form().lark(&served).expect("a grammar");
                let mut matcher =
                    Matcher::new(factory.create_parser(TopLevelGrammar::from_lark(lark.clone())));
                let ids = served.tokenizer.encode(text).expect("ids");
                let taken = matcher.try_consume_tokens(&ids).unwrap_or_else(|e| panic!("{e}: {lark}"));
                taken == ids.len() && matcher.is_accepting().expect("it goes on")
            };
            let right = write("add", "{\"a\": 3}");
            for text in ["", "Let me see.\n", "a < b <tool", "3 {x}"] {
                assert!(is_whole(text), "{template}: {text}");
                assert!(is_whole(&format!("{text}{right}")), "{template}: {text}{right}");
            }
            assert!(is_whole(&write("now", "{\"x\": [1]}")), "{template}: what is not strict is any object");
            let cut = right[..right.len() - 1].to_owned();
            for wrong in [write("add", "{\"a\": \"3\"}"), write("add", "{}"), write("other", "{}"), cut] {
                assert!(!is_whole(&wrong), "{template}: {wrong}");
                let told = format!("So. {wrong}");
                // Without a mark a call is one from the first letter on, or text.
                assert_eq!(is_whole(&told), template == "parameters", "{template}: {told}");
            }
        }
    }
}
