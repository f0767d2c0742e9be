//! What is asked of the engine, and what comes of it.

use model::Model;
use thiserror::Error;

use crate::guide::MakeGuide;
use crate::sampler::Sampling;

/// One prompt and how to continue it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// Independent continuations; the prompt is computed once for all.
    pub samples: usize,
    /// Tokens of a continuation at most.
    pub max_new: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end a continuation (and belong to it).
    pub stop_tokens: Vec<u32>,
    /// Sample `i`'s token at position `t` is a function of (seed, i, t) and the model alone.
    pub seed: u64,
}

/// What a request to a [`crate::Lane`] may ask for besides.
#[derive(Clone, Default)]
pub struct Extras {
    /// Added to the logits of single tokens, before everything else.
    pub logit_bias: Vec<(u32, f32)>,
    /// How many of the most likely tokens are told beside each that is drawn.
    pub top_logprobs: usize,
    /// Requests of different salts share no page of the cache.
    pub salt: u64,
    /// Makes what decides which tokens may come next; one for every sample.
    pub guide: Option<MakeGuide>,
    /// How many tokens may be guessed ahead from what the sequence already holds (0: none). It changes no token.
    pub speculate: usize,
}

/// Why a continuation ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token, or the caller said so.
    #[default]
    Stop,
    /// `max_new` tokens, or an end before its guide found it whole.
    Length,
}

/// A finished continuation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    /// The tokens, with the stop token if there was one.
    pub token_ids: Vec<u32>,
    /// Their natural log-probabilities under the model at temperature 1, unfiltered.
    pub logprobs: Vec<f32>,
    /// Their log-probabilities at the temperature that they were drawn at, unfiltered: those of the policy that sampled,
    /// where nothing was filtered. The same as `logprobs` at temperature 1, and where the most likely token is taken.
    pub tempered_logprobs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// A token as it is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Token {
    /// Index of the request.
    pub request: usize,
    /// Index of the sample.
    pub sample: usize,
    /// The token.
    pub id: u32,
    /// Its log-probability at temperature 1.
    pub logprob: f32,
}

/// What a request can be refused for.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum EngineError {
    /// Nothing to continue.
    #[error("prompt {request} is empty: give at least one token")]
    Empty {
        /// Index of the request.
        request: usize,
    },
    /// An id that the model does not have.
    #[error("prompt {request} has token id {id}, but the model's vocabulary has {vocab} ids (0 to {})", vocab - 1)]
    OutsideVocabulary {
        /// Index of the request.
        request: usize,
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// More tokens than the model has positions.
    #[error(
        "prompt {request} has {prompt} tokens and asks for {max_new} more, but the model's context is {context}: \
         shorten the prompt or lower the number of new tokens"
    )]
    TooLong {
        /// Index of the request.
        request: usize,
        /// Tokens of the prompt.
        prompt: usize,
        /// New tokens asked for.
        max_new: usize,
        /// The model's context length.
        context: usize,
    },
    /// More pages than the cache may have, even alone.
    #[error("{tokens} tokens need {pages} pages of the cache, which may hold {budget}: give it more memory")]
    TooManyPages {
        /// Tokens of prompt and answer.
        tokens: usize,
        /// Pages for them.
        pages: usize,
        /// Pages that there may be.
        budget: usize,
    },
}

/// Refuses what the model cannot continue; `index` is the request's.
pub(crate) fn check(model: &Model, index: usize, r: &Request) -> Result<(), EngineError> {
    let request = index;
    let config = model.config();
    let (vocab, context) = (config.vocab_size(), config.max_position_embeddings().min(model.positions()));
    if r.prompt.is_empty() {
        return Err(EngineError::Empty { request });
    }
    if let Some(&id) = r.prompt.iter().find(|&&id| id as usize >= vocab) {
        return Err(EngineError::OutsideVocabulary { request, id, vocab });
    }
    if r.prompt.len().saturating_add(r.max_new) > context {
        let prompt = r.prompt.len();
        return Err(EngineError::TooLong { request, prompt, max_new: r.max_new, context });
    }
    Ok(())
}
