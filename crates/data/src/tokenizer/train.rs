//! Training a byte-level BPE vocabulary.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::{Names, Tokenizer};
use crate::error::guard;
use crate::{DataError, Result};

/// What merges may not cross: digits stand alone; words and signs take the space before them, and the one behind
/// them where a digit follows, so that ` + ` between two numbers is one token and not three.
const PIECES: &str = r"\p{N}| ?[^\s\p{L}\p{N}]+ (?=\p{N})| ?\p{L}+ (?=\p{N})| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+";

/// The longest run of letters, blanks or signs, in characters, that is learned from in one piece.
const LONGEST_RUN: usize = 1000;

/// What to train.
#[derive(Clone, Debug, Default)]
pub struct TrainOptions {
    /// Ids in all: 256 bytes, the tokens named below, and merges. Small texts may give fewer.
    pub vocab_size: usize,
    /// Control tokens, skipped on decode.
    pub special_tokens: Vec<String>,
    /// Tokens of one id that are kept on decode, such as `<think>`.
    pub added_tokens: Vec<String>,
    /// The end-of-sequence token; made a special token where it is not named above.
    pub eos: String,
    /// The beginning-of-sequence token, likewise.
    pub bos: Option<String>,
    /// The padding token, likewise.
    pub pad: Option<String>,
    /// The chat template, in Jinja.
    pub chat_template: Option<String>,
}

impl TrainOptions {
    /// A tokenizer for [`crate::DEFAULT_TEMPLATE`], with `<think>`, `</think>`, `<answer>` and `</answer>`.
    pub fn reasoning(vocab_size: usize) -> TrainOptions {
        TrainOptions {
            vocab_size,
            special_tokens: crate::DEFAULT_SPECIAL_TOKENS.map(str::to_owned).to_vec(),
            added_tokens: ["<think>", "</think>", "<answer>", "</answer>"].map(str::to_owned).to_vec(),
            eos: "<|end|>".to_owned(),
            bos: None,
            pad: Some("<|pad|>".to_owned()),
            chat_template: Some(crate::DEFAULT_TEMPLATE.to_owned()),
        }
    }
}

impl Tokenizer {
    /// Trains byte-level BPE (the GPT-2 alphabet) with one token per digit; words may carry their leading space.
    ///
    /// Special tokens get the first ids, then the added tokens, then the 256 bytes, then merges. The same texts
    /// in any order and on any number of threads give the same tokenizer. Where the texts spell one of the named
    /// tokens, that part is left out of the training, so that no merge is spent on it. Nothing is printed.
    ///
    /// # Errors
    /// Options that contradict each other, or no text at all.
    pub fn train<I: Iterator<Item = String> + Send>(texts: I, o: &TrainOptions) -> Result<Tokenizer> {
        let (special, added) = token_lists(o)?;
        let named: Vec<&String> = special.iter().chain(&added).collect();
        let tokens: Vec<tokenizers::AddedToken> = special
            .iter()
            .map(|t| tokenizers::AddedToken::from(t.as_str(), true))
            .chain(added.iter().map(|t| tokenizers::AddedToken::from(t.as_str(), false).normalized(false)))
            .collect();

        let split = Split::new(SplitPattern::Regex(PIECES.into()), SplitDelimiterBehavior::Isolated, false)
            .map_err(|e| DataError::Training { problem: e.to_string() })?;
        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        inner.with_pre_tokenizer(Some(Sequence::new(vec![
            PreTokenizerWrapper::Split(split),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)),
        ])));
        inner.with_decoder(Some(ByteLevel::new(false, false, true)));
        let trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(o.vocab_size)
            .min_frequency(2)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(tokens)
            .build();
        let mut trainer = TrainerWrapper::BpeTrainer(trainer);
        let seen = std::sync::atomic::AtomicBool::new(false);
        let pieces = texts.flat_map(|text| {
            if !text.is_empty() {
                seen.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            pieces_between(text, &named)
        });
        guard(|| inner.train(&mut trainer, pieces).map(|_| ()))
            .and_then(|done| done.map_err(|e| e.to_string()))
            .map_err(|problem| DataError::Training { problem })?;
        if !seen.into_inner() {
            return Err(DataError::Training {
                problem: "there was no text to train on, expected at least one non-empty document".to_owned(),
            });
        }
        let names = Names {
            eos: Some(o.eos.clone()),
            bos: o.bos.clone(),
            pad: o.pad.clone(),
            chat_template: o.chat_template.clone(),
            config: serde_json::Map::new(),
        };
        Tokenizer::from_parts(inner, names).map_err(|problem| DataError::Training { problem })
    }

    /// As [`Tokenizer::train`], over texts whose reading may fail; the first failure is returned.
    ///
    /// # Errors
    /// As [`Tokenizer::train`], or the first error of the iterator.
    pub fn train_fallible<I>(texts: I, o: &TrainOptions) -> Result<Tokenizer>
    where
        I: Iterator<Item = Result<String>> + Send,
    {
        let failure = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&failure);
        let good = texts.map_while(move |text| match text {
            Ok(text) => Some(text),
            Err(e) => {
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                None
            }
        });
        let trained = Tokenizer::train(good, o);
        let failed = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        match failed {
            Some(e) => Err(e),
            None => trained,
        }
    }
}

/// The special and the added tokens, each once, in order, with eos, bos and pad among the special ones.
fn token_lists(o: &TrainOptions) -> Result<(Vec<String>, Vec<String>)> {
    let problem = |key, found: String, expected: String| DataError::TrainOptions { key, found, expected };
    let mut names = HashSet::new();
    let mut special = Vec::new();
    let ends = [("eos", Some(&o.eos)), ("bos", o.bos.as_ref()), ("pad", o.pad.as_ref())];
    let listed = o.special_tokens.iter().map(|t| ("special_tokens", t));
    for (key, token) in listed.chain(ends.into_iter().filter_map(|(k, t)| t.map(|t| (k, t)))) {
        if token.trim().is_empty() {
            return Err(problem(key, format!("{token:?}"), "a visible token text".to_owned()));
        }
        if names.insert(token) {
            special.push(token.clone());
        }
    }
    let mut added = Vec::new();
    for token in &o.added_tokens {
        if token.trim().is_empty() || !names.insert(token) {
            let expected = "visible token texts, none of them also a special token".to_owned();
            return Err(problem("added_tokens", format!("{token:?}"), expected));
        }
        added.push(token.clone());
    }
    let least = 256 + names.len();
    if o.vocab_size < least || o.vocab_size > super::files::MAX_VOCAB {
        return Err(problem(
            "vocab_size",
            o.vocab_size.to_string(),
            format!(
                "between {least} (256 bytes and {} named tokens) and {}",
                names.len(),
                super::files::MAX_VOCAB
            ),
        ));
    }
    Ok((special, added))
}

/// The parts of a text between the named tokens.
fn pieces_between(text: String, named: &[&String]) -> Vec<String> {
    let mut pieces = vec![text];
    for token in named {
        if pieces.iter().any(|p| p.contains(token.as_str())) {
            pieces = pieces.iter().flat_map(|p| p.split(token.as_str())).map(str::to_owned).collect();
        }
    }
    pieces.retain(|p| !p.is_empty());
    pieces.iter().flat_map(|p| without_long_runs(p)).map(str::to_owned).collect()
}

/// A text, cut where letters, blanks or signs go on for longer than any word: the time of training grows with the square of
/// the longest.
fn without_long_runs(text: &str) -> Vec<&str> {
    let class = |c: char| (c.is_alphabetic(), c.is_whitespace(), c.is_numeric());
    let (mut parts, mut start, mut run, mut last) = (Vec::new(), 0, 0, None);
    for (at, c) in text.char_indices() {
        run = if last == Some(class(c)) { run + 1 } else { 1 };
        last = Some(class(c));
        if run > LONGEST_RUN {
            parts.push(&text[start..at]);
            (start, run) = (at, 1);
        }
    }
    parts.push(&text[start..]);
    parts
}
