//! `chat`: a conversation, answer by answer.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};

use anyhow::{Context, Result, bail};
use clap::Args;
use data::answer::{LiveText, completion_text};
use data::{Message, encode_prompt};
use engine::{Engine, FinishReason, Request, Sampling};
use tensor::Rng;

use super::generate::{SamplingArgs, begins_in_thought};
use super::ranges;
use crate::live::{Painter, put};
use crate::model_files::{Loaded, ModelArgs, reserve};
use crate::output::tell;

const HELP: &str = "\
/reset forgets the conversation, /help shows this, /quit (or Ctrl-D) leaves; Ctrl-C stops an answer.
A line that ends in \\ goes on in the next one.";

const EXAMPLES: &str = "\
Examples:
  shoestring chat runs/launch/grpo --single-turn
  shoestring chat runs/launch/distill --single-turn --temperature 0
  echo 'Compute 52 - 62 + 54 - 17.' | shoestring chat runs/launch/grpo

What the model thinks is dimmed on a terminal. /reset forgets the conversation, /help lists the commands, Ctrl-C stops
an answer, Ctrl-D leaves. The conversation is kept until it outgrows the model's context; then its oldest turns are
left out, with a notice. A model that learnt from single questions answers best with --single-turn.";

/// With which model, and how.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Chat {
    #[command(flatten)]
    from: ModelArgs,
    /// Instructions before the conversation, where the model's template has a place for them.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Forget the conversation before each message, for a model that learnt from single questions (as those of launch did).
    #[arg(long)]
    single_turn: bool,
    /// Tokens of an answer at most; the context may end it before.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = ranges::count)]
    max_new: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Same seed and same messages, same answers.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

/// What the signal handler and the conversation tell each other.
#[derive(Default)]
struct Signals {
    answering: AtomicBool,
    stop: AtomicBool,
    idle_presses: AtomicU8,
}

/// Runs the command.
pub fn run(a: &Chat) -> Result<()> {
    let mut loaded = a.from.open()?;
    if loaded.tokenizer.chat_template().is_none() {
        bail!(
            "the tokenizer in {} has no chat template, so there is no way to talk to the model: \
             continue text with `shoestring generate --raw` instead",
            a.from.model.display()
        );
    }
    let context = reserve(&mut loaded.model, a.max_new.saturating_mul(8).max(4096));
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let signals = Arc::new(Signals::default());
    if terminal {
        handle_signals(&signals)?;
        put(&format!("{} is loaded. {HELP}\n", a.from.model.display()))?;
    }
    let mut chat = Conversation::new(a, &loaded, context, &signals);
    let mut input = std::io::stdin().lock();
    loop {
        if terminal {
            put("\n> ")?;
        }
        let Some(text) = message(&mut input, terminal)? else { break };
        signals.idle_presses.store(0, SeqCst);
        match text.trim() {
            "" => {}
            "/quit" | "/exit" => return Ok(()),
            "/help" => put(&format!("{HELP}\n"))?,
            "/reset" => {
                chat.reset();
                tell("the conversation is forgotten");
            }
            command if command.starts_with('/') && !command.contains(char::is_whitespace) => {
                tell(&format!("there is no command {command}: /reset, /help and /quit are known"));
            }
            text => {
                if a.single_turn {
                    chat.reset();
                }
                chat.answer(text)?;
            }
        }
    }
    match chat.refused {
        _ if terminal => put("\n"),
        0 => Ok(()),
        // A program at the other end looks at how this ends.
        n => bail!("{n} of {} messages were refused", chat.asked + n),
    }
}

/// Ctrl-C ends an answer; between answers it says how to leave, and leaves when pressed again.
fn handle_signals(signals: &Arc<Signals>) -> Result<()> {
    let signals = signals.clone();
    let handler = move || {
        if signals.answering.load(SeqCst) {
            signals.stop.store(true, SeqCst);
        } else if signals.idle_presses.fetch_add(1, SeqCst) > 0 {
            std::process::exit(0);
        } else {
            eprint!("\n(Ctrl-D or /quit leaves)\n> ");
        }
    };
    ctrlc::set_handler(handler).context("cannot listen to Ctrl-C")
}

/// The next message, `None` at the end of the input. On a terminal a line that ends in `\` goes on in the next one.
fn message(input: &mut impl BufRead, terminal: bool) -> Result<Option<String>> {
    let mut text = String::new();
    loop {
        let mut bytes = Vec::new();
        if input.read_until(b'\n', &mut bytes).context("cannot read standard input")? == 0 {
            return Ok((!text.is_empty()).then_some(text));
        }
        let line = String::from_utf8_lossy(&bytes);
        let line = line.trim_end_matches(['\n', '\r']);
        match line.strip_suffix('\\').filter(|_| terminal) {
            Some(start) => {
                text.push_str(start);
                text.push('\n');
                put(". ")?;
            }
            None => {
                text.push_str(line);
                return Ok(Some(text));
            }
        }
    }
}

/// The messages so far and what it takes to go on.
struct Conversation<'a> {
    loaded: &'a Loaded,
    signals: &'a Signals,
    engine: Engine<'a>,
    sampling: Sampling,
    stop_tokens: Vec<u32>,
    max_new: usize,
    context: usize,
    /// Messages that could not be asked.
    refused: u64,
    seed: u64,
    /// Messages asked so far, for seeds.
    asked: u64,
    messages: Vec<Message>,
    /// How many messages at the beginning always stay.
    kept: usize,
}

impl<'a> Conversation<'a> {
    fn new(a: &Chat, loaded: &'a Loaded, context: usize, signals: &'a Signals) -> Conversation<'a> {
        let messages: Vec<Message> = a.system.iter().map(|text| Message::system(text.as_str())).collect();
        Conversation {
            loaded,
            signals,
            engine: Engine::new(&loaded.model, None),
            sampling: a.sampling.resolve(loaded, 0.6),
            stop_tokens: loaded.stop_tokens(),
            max_new: a.max_new,
            context: context.min(loaded.model.positions()),
            refused: 0,
            seed: a.seed,
            asked: 0,
            kept: messages.len(),
            messages,
        }
    }

    fn reset(&mut self) {
        self.messages.truncate(self.kept);
    }

    /// Asks and prints the answer. What is wrong with this one message is said, and the conversation goes on.
    fn answer(&mut self, text: &str) -> Result<()> {
        self.messages.push(Message::user(text));
        let prompt = match self.prompt() {
            Ok(prompt) => prompt,
            Err(error) => {
                self.messages.pop();
                self.refused += 1;
                tell(&format!("error: {error:#}"));
                return Ok(());
            }
        };
        let tokenizer = &self.loaded.tokenizer;
        let mut painter = Painter::new(begins_in_thought(tokenizer, &prompt)?);
        let mut live = LiveText::new(tokenizer, &[]);
        let mut failure = None;
        let request = Request {
            samples: 1,
            max_new: self.max_new.min(self.context - prompt.len()),
            sampling: self.sampling,
            stop_tokens: self.stop_tokens.clone(),
            seed: Rng::at(self.seed, &[self.asked]).next_u64(),
            prompt,
        };
        self.asked += 1;
        self.signals.stop.store(false, SeqCst);
        self.signals.answering.store(true, SeqCst);
        let drawn = self.engine.run(std::slice::from_ref(&request), |token| {
            let shown = live.push(token.id).map_err(Into::into).and_then(|_| painter.write(live.take_new()));
            if let Err(error) = shown {
                failure = Some(error);
            }
            failure.is_none() && !self.signals.stop.load(SeqCst)
        });
        self.signals.answering.store(false, SeqCst);
        if let Some(error) = failure {
            return Err(error);
        }
        let completion = drawn?.remove(0).remove(0);
        live.finish()?;
        painter.write(live.take_rest())?;
        painter.end()?;
        std::io::stderr().flush()?;
        if self.signals.stop.load(SeqCst) {
            tell("(stopped)");
        } else if completion.finish_reason == FinishReason::Length {
            tell(&format!("(cut off after {} tokens)", completion.token_ids.len()));
        }
        self.messages.push(Message::assistant(completion_text(tokenizer, &completion.token_ids)?));
        Ok(())
    }

    /// The ids of the conversation. Oldest turns are left out until an answer has room: all that it may need, or
    /// half of the context.
    fn prompt(&mut self) -> Result<Vec<u32>> {
        let room = self.max_new.min(self.context / 2).max(1);
        let mut dropped = 0;
        let prompt = loop {
            let prompt = encode_prompt(&self.loaded.tokenizer, &self.messages)?;
            let rest = self.messages.len() - self.kept;
            if prompt.len() + room <= self.context || (rest == 1 && prompt.len() < self.context) {
                break prompt;
            }
            if rest == 1 {
                bail!(
                    "this message has {} tokens, but the model's context is {}: send a shorter one",
                    prompt.len(),
                    self.context
                );
            }
            // A turn is a question and its answer.
            let end = self.kept + 2.min(rest - 1);
            self.messages.drain(self.kept..end);
            dropped += 1;
        };
        if dropped > 0 {
            let turns = if dropped == 1 { "turn".to_owned() } else { format!("{dropped} turns") };
            tell(&format!("(the conversation outgrew the model's context: its oldest {turns} left out)"));
        }
        Ok(prompt)
    }
}
