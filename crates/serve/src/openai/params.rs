//! How an answer is to be drawn, as requests say it.

use engine::{Extras, Request, Sampling};
use serde_json::Value;

use super::random;
use crate::error::{Answer, ApiError};
use crate::fields::{Fields, kind};
use crate::options::Served;
use crate::shelf::Entry;

/// Answers to one prompt at most.
const MOST_SAMPLES: usize = 128;
/// Stop strings, and bytes of one, at most.
const MOST_STOPS: usize = 16;
const MOST_STOP_BYTES: usize = 1024;
/// Tokens with a bias at most.
const MOST_BIASES: usize = 1024;
/// Most likely tokens that are told beside one.
pub(crate) const MOST_TOP: usize = 20;

/// Fields of other servers that would change an answer and are not done here, with the values that mean nothing.
const UNDONE: [(&str, &[&str]); 11] = [
    ("best_of", &["1"]),
    ("use_beam_search", &["false"]),
    ("min_tokens", &["0"]),
    ("stop_token_ids", &["[]"]),
    ("bad_words", &["[]"]),
    ("structured_outputs", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("prompt_logprobs", &["0"]),
];
/// What is for chats alone: elsewhere it is refused too.
pub(crate) const VOTES: [(&str, &[&str]); 2] = [("votes", &[]), ("min_agreement", &[])];

/// How an answer is to be drawn.
pub(crate) struct Wishes {
    pub(crate) samples: usize,
    pub(crate) max_new: Option<usize>,
    pub(crate) sampling: Sampling,
    pub(crate) seed: u64,
    pub(crate) stops: Vec<String>,
    pub(crate) logit_bias: Vec<(u32, f32)>,
    pub(crate) ignore_eos: bool,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
}

impl Wishes {
    /// Takes them from a request's fields.
    pub(crate) fn take(f: &mut Fields, served: &Served) -> Answer<Wishes> {
        f.refuse(&UNDONE)?;
        let stream = f.flag("stream")?.unwrap_or(false);
        let include_usage = match f.take("stream_options") {
            None => false,
            Some(_) if !stream => {
                return Err(ApiError::field("stream_options", "stream_options is for streams: set stream"));
            }
            Some(options) => Fields::of("stream_options", options)?.flag("include_usage")?.unwrap_or(false),
        };
        let most = f.count("max_tokens", 0..=usize::MAX)?;
        let max_new = f.count("max_completion_tokens", 0..=usize::MAX)?.or(most);
        let seed = f.whole("seed", i64::MIN..=i64::MAX)?.map_or_else(random, |seed| seed as u64);
        Ok(Wishes {
            samples: f.count("n", 1..=MOST_SAMPLES)?.unwrap_or(1),
            max_new,
            sampling: sampling(f, served)?,
            seed,
            stops: stops(f)?,
            logit_bias: logit_bias(f, served)?,
            ignore_eos: f.flag("ignore_eos")?.unwrap_or(false),
            stream,
            include_usage,
        })
    }

    /// The request to the engine, for a prompt of which `param` names the field.
    pub(crate) fn request(&self, entry: &Entry, prompt: Vec<u32>, param: &str) -> Answer<Request> {
        let (served, most) = (&entry.served, entry.served.context().min(entry.front.cache_tokens));
        let room = most.saturating_sub(prompt.len());
        if prompt.is_empty() {
            return Err(ApiError::field(param, "the prompt is empty: give some text"));
        }
        if room == 0 {
            let (n, context) = (prompt.len(), served.context());
            let what = if most < context { "the cache holds" } else { "the model's context is" };
            return Err(ApiError::too_long(
                param,
                format!(
                    "the prompt has {n} tokens, but {what} {most}: shorten it, so that there is room for an answer"
                ),
            ));
        }
        let wished = served.model.generation().max_new_tokens.filter(|&n| n > 0).unwrap_or(room);
        Ok(Request {
            prompt,
            samples: self.samples,
            max_new: self.max_new.unwrap_or(wished).min(room),
            sampling: self.sampling,
            stop_tokens: if self.ignore_eos { Vec::new() } else { served.stop_tokens.clone() },
            seed: self.seed,
        })
    }

    /// What else the engine is asked for.
    pub(crate) fn extras(&self, salt: u64, top: usize, speculate: usize) -> Extras {
        Extras { logit_bias: self.logit_bias.clone(), top_logprobs: top, salt, guide: None, speculate }
    }
}

fn sampling(f: &mut Fields, served: &Served) -> Answer<Sampling> {
    let wished = Sampling::wished(served.model.generation(), 1.0);
    Ok(Sampling {
        temperature: f.number("temperature", 0.0..=2.0)?.unwrap_or(wished.temperature),
        // -1 says all, as vLLM has it.
        top_k: f.whole("top_k", -1..=i64::MAX)?.map_or(wished.top_k, |k| k.max(0) as usize),
        top_p: f.number("top_p", 0.0..=1.0)?.unwrap_or(wished.top_p),
        min_p: f.number("min_p", 0.0..=1.0)?.unwrap_or(wished.min_p),
        repetition_penalty: f.number("repetition_penalty", 0.01..=10.0)?.unwrap_or(wished.repetition_penalty),
        frequency_penalty: f.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        presence_penalty: f.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
    })
}

fn stops(f: &mut Fields) -> Answer<Vec<String>> {
    let name = f.name("stop");
    let wrong = |message: String| ApiError::field(&name, message);
    let list = match f.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => vec![Value::String(one)],
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(wrong(format!("{name} is {}, expected a string or a list of them", kind(&other))));
        }
    };
    if list.len() > MOST_STOPS {
        return Err(wrong(format!("{name} has {} strings, expected at most {MOST_STOPS}", list.len())));
    }
    let text = |value| match value {
        Value::String(text) if text.is_empty() => Err(wrong(format!("{name} holds an empty string"))),
        Value::String(text) if text.len() > MOST_STOP_BYTES => {
            Err(wrong(format!("{name} holds a string of more than {MOST_STOP_BYTES} bytes")))
        }
        Value::String(text) => Ok(text),
        other => Err(wrong(format!("{name} holds {}, expected strings", kind(&other)))),
    };
    list.into_iter().map(text).collect()
}

fn logit_bias(f: &mut Fields, served: &Served) -> Answer<Vec<(u32, f32)>> {
    let name = f.name("logit_bias");
    let Some(map) = f.object("logit_bias")? else { return Ok(Vec::new()) };
    let vocab = served.model.config().vocab_size();
    if map.len() > MOST_BIASES {
        return Err(ApiError::field(
            &name,
            format!("{name} has {} tokens, expected at most {MOST_BIASES}", map.len()),
        ));
    }
    let mut out = Vec::with_capacity(map.len());
    for (id, bias) in map {
        let short: String = id.chars().take(20).collect();
        let id = id.parse::<u32>().ok().filter(|&id| (id as usize) < vocab).ok_or_else(|| {
            ApiError::field(
                &name,
                format!("{name} names {short:?}, expected token ids from 0 to {}", vocab - 1),
            )
        })?;
        let bias = bias
            .as_f64()
            .filter(|b| (-100.0..=100.0).contains(b))
            .ok_or_else(|| ApiError::field(&name, format!("{name} of {id} is no number from -100 to 100")))?;
        out.push((id, bias as f32));
    }
    Ok(out)
}
