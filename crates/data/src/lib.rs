//! Text in, token ids out: tokenizers, chat templates, corpora, token shards and packing.
//!
//! This crate knows nothing of tensors or models. What it promises:
//!
//! - text that a user typed never becomes a control token ([`Tokenizer::encode_untrusted`], [`encode_prompt`]);
//! - files are read as hostile: every size is checked against the file before memory is asked for, and a
//!   broken file gives a [`DataError`] that names the place and the remedy, never a panic;
//! - what is written appears whole or not at all (temporary name, fsync, rename);
//! - shuffles and held-out splits are pure functions of a seed, the same on every machine.
//!
//! Token shards are read with positioned reads, not memory maps: a file that is cut short while a run reads
//! it gives an error here, where a memory map would end the process with a bus error.
#![forbid(unsafe_code)]

pub mod answer;
mod atomic;
pub mod chat;
pub mod corpus;
pub mod error;
mod input;
pub mod pack;
mod parquet_rows;
mod place;
pub mod records;
pub mod shards;
pub mod split;
pub mod table;
pub mod tokenizer;
mod workbook;

pub use chat::{
    Conversation, DEFAULT_SPECIAL_TOKENS, DEFAULT_TEMPLATE, Given, Message, Sample, chat_len, encode_chat,
    encode_conversation, encode_prompt, fields_left_out, render_chat,
};
pub use corpus::{Corpus, TextDocument, read_texts, read_texts_with};
pub use error::DataError;
pub use input::open_text;
pub use pack::{Document, Packed, chunk_document, pack, plan_batches};
pub use place::Place;
pub use records::{Records, write_jsonl};
pub use shards::{ShardWriter, Shards};
pub use split::{hash_bytes, is_held_out, permutation};
pub use table::{Table, read_table};
pub use tokenizer::{DecodeStream, Tokenizer, TrainOptions, Trust};

/// The result of anything in this crate that can fail.
pub type Result<T> = std::result::Result<T, DataError>;
