//! `generate`: continuations of prompts, with token ids and log-probabilities.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::{ArgGroup, Args};
use data::answer::{LiveText, completion_text, opening};
use data::{Message, Tokenizer, encode_prompt};
use engine::{Completion, Engine, FinishReason, Request, Sampling};
use serde::Serialize;

use super::ranges;
use crate::live::Painter;
use crate::model_files::{Loaded, ModelArgs, reserve};
use crate::output::{json_line, line, tell};

const EXAMPLES: &str = "\
Examples:
  shoestring generate runs/launch/grpo --prompt 'Compute 52 - 62 + 54 - 17.'
  shoestring generate runs/launch/grpo --prompts questions.txt --samples 4 --seed 7 --json > samples.json
  shoestring generate base-model --raw --prompt 'Once upon a time' --max-new 100 --temperature 0.8 --stop '. '

A prompt is asked as a user's message through the model's chat template. With --raw, and where the model has no
template, the text is continued as it stands.

The same model, prompt, seed and sample number give the same tokens and log-probabilities to the bit, whatever else
is generated beside them and on however many threads. Log-probabilities are natural logarithms of the model's own
distribution (temperature 1, nothing filtered), and `score` computes the same ones.";

/// New tokens that a model's folder may wish for; who wants more says so.
const MOST_WISHED: usize = 1 << 16;

/// What to continue, and how.
#[derive(Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("what").required(true))]
pub struct Generate {
    #[command(flatten)]
    from: ModelArgs,
    /// The prompt.
    #[arg(long, value_name = "TEXT", group = "what", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file with one prompt a line; `-` reads standard input.
    #[arg(long, value_name = "FILE", group = "what")]
    prompts: Option<PathBuf>,
    /// Tokens of a continuation at most (default: the model's own wish, else 256); the context may end it before.
    #[arg(long, value_name = "N", value_parser = ranges::count)]
    max_new: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Same seed, same continuations.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Continuations of each prompt.
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = ranges::count)]
    samples: usize,
    /// End a continuation where this string begins; may be given several times.
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Continue the text as it stands, without the chat template, behind the beginning-of-sequence token if the tokenizer puts
    /// one there; control tokens that it spells are recognised.
    #[arg(long)]
    raw: bool,
    /// Print one JSON object: samples[] of {prompt_ids, token_ids, logprobs, text, finish_reason}.
    #[arg(long)]
    json: bool,
}

/// How tokens are chosen.
#[derive(Args)]
pub struct SamplingArgs {
    /// Divides the logits; 0 takes the most likely token (default: generation_config.json's, else 1; in a chat 0.6).
    #[arg(long, value_name = "T", value_parser = ranges::temperature, allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Only the K most likely tokens; 0 for all (default: generation_config.json's, else 0).
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Only the most likely tokens that together reach this probability (default: generation_config.json's, else 1).
    #[arg(long, value_name = "P", value_parser = ranges::top_p)]
    top_p: Option<f32>,
    /// Only tokens at least this fraction as likely as the most likely one (default: generation_config.json's, else 0).
    #[arg(long, value_name = "P", value_parser = ranges::share)]
    min_p: Option<f32>,
    /// Makes tokens of the prompt and the answer so far less likely: divides their positive logits and multiplies their
    /// negative ones (default: generation_config.json's, else 1).
    #[arg(long, value_name = "R", value_parser = ranges::penalty)]
    repetition_penalty: Option<f32>,
}

impl SamplingArgs {
    /// What was asked for, else what the model's folder says, else `temperature` and nothing filtered.
    pub fn resolve(&self, loaded: &Loaded, temperature: f32) -> Sampling {
        let wished = Sampling::wished(loaded.model.generation(), temperature);
        Sampling {
            temperature: self.temperature.unwrap_or(wished.temperature),
            top_k: self.top_k.unwrap_or(wished.top_k),
            top_p: self.top_p.unwrap_or(wished.top_p),
            min_p: self.min_p.unwrap_or(wished.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(wished.repetition_penalty),
            ..wished
        }
    }
}

/// One continuation, as scripts read it.
#[derive(Serialize)]
struct Sample<'a> {
    prompt_ids: &'a [u32],
    token_ids: &'a [u32],
    logprobs: &'a [f32],
    text: String,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Samples<'a> {
    samples: Vec<Sample<'a>>,
}

/// A prompt and where it came from, for errors.
struct Prompt {
    place: String,
    text: String,
}

/// Runs the command.
pub fn run(a: &Generate) -> Result<()> {
    let prompts = prompts(a)?;
    let mut loaded = a.from.open()?;
    let ids = prompts.iter().map(|p| encode(&loaded.tokenizer, p, a.raw)).collect::<Result<Vec<_>>>()?;
    let max_new = a
        .max_new
        .or(loaded.model.generation().max_new_tokens.filter(|&n| n > 0).map(|n| n.min(MOST_WISHED)))
        .unwrap_or(256);
    let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
    let context = reserve(&mut loaded.model, longest.saturating_add(max_new));
    let sampling = a.sampling.resolve(&loaded, 1.0);
    let stop_tokens = loaded.stop_tokens();
    let mut requests = Vec::with_capacity(ids.len());
    for (prompt, ids) in prompts.iter().zip(ids) {
        let room = context.saturating_sub(ids.len());
        if room == 0 {
            bail!(
                "{} has {} tokens, but the model's context is {context}: shorten it, so that there is room for an answer",
                prompt.place,
                ids.len()
            );
        }
        if a.max_new.is_some() && room < max_new {
            tell(&format!(
                "note: {} leaves room for {room} new tokens in the model's context of {context}",
                prompt.place
            ));
        }
        let stop_tokens = stop_tokens.clone();
        requests.push(Request {
            prompt: ids,
            samples: a.samples,
            max_new: max_new.min(room),
            sampling,
            stop_tokens,
            seed: a.seed,
        });
    }
    let stream = !a.json && requests.len() == 1 && a.samples == 1;
    let texts = draw(&loaded, &requests, &a.stop, stream)?;
    if stream {
        return Ok(());
    }
    let mut samples = Vec::new();
    for (request, texts) in requests.iter().zip(&texts) {
        for (completion, text) in texts {
            samples.push(Sample {
                prompt_ids: &request.prompt,
                token_ids: &completion.token_ids,
                logprobs: &completion.logprobs,
                text: text.clone(),
                finish_reason: reason(completion.finish_reason),
            });
        }
    }
    if a.json {
        return json_line(&Samples { samples });
    }
    for (i, sample) in samples.iter().enumerate() {
        let (prompt, number) = (i / a.samples + 1, i % a.samples + 1);
        line(&format!(
            "── prompt {prompt}, sample {number} ({} tokens, {}) ──",
            sample.token_ids.len(),
            sample.finish_reason
        ))?;
        let mut painter = Painter::new(begins_in_thought(&loaded.tokenizer, sample.prompt_ids)?);
        painter.write(&sample.text)?;
        painter.end()?;
    }
    Ok(())
}

/// Draws every continuation with its text; with `stream` the text is printed as it comes.
fn draw(
    loaded: &Loaded,
    requests: &[Request],
    stops: &[String],
    stream: bool,
) -> Result<Vec<Vec<(Completion, String)>>> {
    let tokenizer = &loaded.tokenizer;
    let mut live: Vec<Vec<LiveText>> =
        requests.iter().map(|r| (0..r.samples).map(|_| LiveText::new(tokenizer, stops)).collect()).collect();
    let mut painter = Painter::new(stream && begins_in_thought(tokenizer, &requests[0].prompt)?);
    let mut failure = None;
    let follow = stream || !stops.is_empty();
    let completions = Engine::new(&loaded.model, None).run(requests, |token| {
        if !follow {
            return true;
        }
        let text = &mut live[token.request][token.sample];
        let going = text.push(token.id).map_err(Into::into).and_then(|going| {
            if stream {
                painter.write(text.take_new())?;
            }
            Ok(going)
        });
        going.unwrap_or_else(|error| {
            failure.get_or_insert(error);
            false
        })
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    if stream {
        let text = &mut live[0][0];
        text.finish()?;
        painter.write(text.take_rest())?;
        painter.end()?;
    }
    let mut out = Vec::with_capacity(completions.len());
    for (completions, live) in completions.into_iter().zip(&mut live) {
        let mut of_request = Vec::with_capacity(completions.len());
        for (completion, live) in completions.into_iter().zip(live) {
            let text = match stops.is_empty() {
                true => completion_text(tokenizer, &completion.token_ids)?,
                false => live.finish()?.to_owned(),
            };
            of_request.push((completion, text));
        }
        out.push(of_request);
    }
    Ok(out)
}

fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// Whether a prompt ends with an opened thought: some chat templates write `<think>` themselves.
pub fn begins_in_thought(tokenizer: &Tokenizer, prompt: &[u32]) -> Result<bool> {
    Ok(!opening(tokenizer, prompt)?.is_empty())
}

fn encode(tokenizer: &Tokenizer, prompt: &Prompt, raw: bool) -> Result<Vec<u32>> {
    let ids = if raw || tokenizer.chat_template().is_none() {
        tokenizer.encode_whole(&prompt.text)
    } else {
        encode_prompt(tokenizer, &[Message::user(prompt.text.as_str())])
    };
    ids.map_err(|e| anyhow!("{}: {e}", prompt.place))
}

fn prompts(a: &Generate) -> Result<Vec<Prompt>> {
    let Some(path) = &a.prompts else {
        let text = a.prompt.clone().unwrap_or_default();
        if text.is_empty() {
            bail!("the prompt is empty: give --prompt some text");
        }
        return Ok(vec![Prompt { place: "the prompt".into(), text }]);
    };
    let name = if path.as_os_str() == "-" { "standard input".into() } else { path.display().to_string() };
    let bytes = read(path).with_context(|| format!("cannot read the prompts from {name}"))?;
    let mut lines: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
    if lines.last().is_some_and(|l| l.is_empty()) {
        lines.pop();
    }
    if lines.is_empty() {
        bail!("{name} holds no prompts: expected one a line");
    }
    let mut prompts = Vec::with_capacity(lines.len());
    for (i, bytes) in lines.into_iter().enumerate() {
        let place = format!("the prompt in {name}, line {}", i + 1);
        let text =
            std::str::from_utf8(bytes).map_err(|_| anyhow!("{place}, is not UTF-8: convert the file"))?;
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.trim().is_empty() {
            bail!("{place}, is empty: write a prompt there or remove the line");
        }
        prompts.push(Prompt { place, text: text.to_owned() });
    }
    Ok(prompts)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes)?;
    } else {
        data::open_text(path)?.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
