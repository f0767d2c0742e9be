//! Tokenizers in GGUF files, both ways.
//!
//! Two kinds are known: `gpt2`, byte-level BPE with merges and a named pre-tokenizer, and `llama`, SentencePiece's BPE with a
//! score for each piece. What a file says is turned into the `tokenizer.json` that means the same, and the other way round.

mod pre;
mod read;
mod write;

pub(super) use ground::gguf::is_gguf;
pub(super) use read::{Files, load};

/// `tokenizer.ggml.token_type`.
mod kind {
    pub(super) const NORMAL: i64 = 1;
    pub(super) const UNKNOWN: i64 = 2;
    pub(super) const CONTROL: i64 = 3;
    pub(super) const USER_DEFINED: i64 = 4;
    pub(super) const UNUSED: i64 = 5;
    pub(super) const BYTE: i64 = 6;
}

/// Our own key for an expression that llama.cpp has no name for.
const OWN_PIECES: &str = "shoestring.tokenizer.pieces";

#[cfg(test)]
mod tests;
