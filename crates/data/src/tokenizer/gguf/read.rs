//! From a file's keys to what a folder would hold.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use ground::gguf::{Gguf, read};
use serde_json::{Map, Value, json};

use super::kind;
use super::pre::{Split, pre_tokenizer};
use crate::error::io_error;
use crate::tokenizer::files::MAX_VOCAB;
use crate::{DataError, Result};

/// Longer pieces are no merges of others: looking for their halves would take time with the square of their length.
const MAX_PIECE: usize = 512;

/// What a folder would hold in its two files.
pub(in crate::tokenizer) struct Files {
    pub(in crate::tokenizer) tokenizer: Value,
    pub(in crate::tokenizer) config: Map<String, Value>,
}

/// Reads the tokenizer of a file.
pub(in crate::tokenizer) fn load(path: &Path) -> Result<Files> {
    let problem = |problem: String| DataError::TokenizerFile { path: path.to_owned(), problem };
    let file = File::open(path).map_err(io_error("read", path))?;
    let len = file.metadata().map_err(io_error("read", path))?.len();
    let file = read(&mut BufReader::new(file), len).map_err(|e| problem(e.to_string()))?;
    files(&file).map_err(problem)
}

/// The vocabulary as the file lists it.
struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: &'a [i64],
}

impl Vocabulary<'_> {
    fn kind(&self, id: usize) -> i64 {
        self.kinds.get(id).copied().unwrap_or(1)
    }
    /// Token to id; of equal tokens the first.
    fn map(&self) -> Map<String, Value> {
        let mut map = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            map.entry(token.clone()).or_insert_with(|| json!(id));
        }
        map
    }
    /// Control tokens, and those that a user defined, which are recognised in text.
    fn added(&self) -> Vec<Value> {
        let is_added = |id: &usize| matches!(self.kind(*id), kind::CONTROL | kind::USER_DEFINED);
        let token = |id: usize| {
            json!({
                "id": id, "content": self.tokens[id], "special": self.kind(id) == kind::CONTROL,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        };
        (0..self.tokens.len()).filter(is_added).filter(|id| !self.tokens[*id].is_empty()).map(token).collect()
    }
}

fn files(file: &Gguf) -> std::result::Result<Files, String> {
    let words = |e: ground::gguf::Error| e.to_string();
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let tokens = file.texts(&key("tokens")).map_err(words)?.ok_or("it has no tokenizer")?;
    if tokens.len() > MAX_VOCAB {
        return Err(format!("it has {} tokens, expected at most {MAX_VOCAB}", tokens.len()));
    }
    let kinds = file.ints(&key("token_type")).map_err(words)?.unwrap_or_default();
    let vocabulary = Vocabulary { tokens, kinds };
    let mut tokenizer = match file.text(&key("model")).map_err(words)? {
        Some("gpt2") => byte_level(file, &vocabulary)?,
        Some("llama") => sentence_piece(file, &vocabulary)?,
        other => {
            let other = other.unwrap_or("missing");
            return Err(format!("its `tokenizer.ggml.model` is {other}; supported are gpt2 and llama"));
        }
    };
    tokenizer["version"] = json!("1.0");
    tokenizer["added_tokens"] = json!(vocabulary.added());

    let mut config = Map::new();
    for (name, ours) in
        [("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token"), ("unknown", "unk_token")]
    {
        let id = file.int(&key(&format!("{name}_token_id"))).map_err(words)?;
        let token = id.and_then(|id| usize::try_from(id).ok()).and_then(|id| tokens.get(id));
        if let Some(token) = token {
            config.insert(ours.to_owned(), json!(token));
        }
    }
    // SentencePiece begins texts with its token unless told otherwise, the others do not.
    let spm = tokenizer["model"]["byte_fallback"] == true;
    let begins = file.flag(&key("add_bos_token")).map_err(words)?.unwrap_or(spm);
    config.insert("add_bos_token".to_owned(), json!(begins));
    let ends = file.flag(&key("add_eos_token")).map_err(words)?.unwrap_or(false);
    config.insert("add_eos_token".to_owned(), json!(ends));
    if let Some(template) = file.text("tokenizer.chat_template").map_err(words)? {
        config.insert("chat_template".to_owned(), json!(template));
    }
    Ok(Files { tokenizer, config })
}

/// GPT-2's byte-level BPE.
fn byte_level(file: &Gguf, vocabulary: &Vocabulary) -> std::result::Result<Value, String> {
    let words = |e: ground::gguf::Error| e.to_string();
    let merges = file.texts("tokenizer.ggml.merges").map_err(words)?.ok_or("it has no merges")?;
    let pre = file.text("tokenizer.ggml.pre").map_err(words)?.unwrap_or("default");
    let (splits, ignore_merges) = match file.text(super::OWN_PIECES).map_err(words)? {
        Some(regex) => (vec![Split::Regex(regex).json()], false),
        None => {
            let pre = pre_tokenizer(pre)?;
            (pre.splits.iter().map(Split::json).collect(), pre.ignore_merges)
        }
    };
    let split = |merge: &String| -> std::result::Result<[String; 2], String> {
        // A token may begin with a space, so the divider is the first space behind the first letter.
        let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let at = at.ok_or_else(|| format!("its merge {merge:?} is not two tokens"))?;
        Ok([merge[..at].to_owned(), merge[at + 1..].to_owned()])
    };
    let merges = merges.iter().map(split).collect::<std::result::Result<Vec<_>, _>>()?;
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let steps: Vec<Value> = splits.into_iter().chain([bytes.clone()]).collect();
    Ok(json!({
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
        "decoder": bytes,
        "model": {
            "type": "BPE", "vocab": vocabulary.map(), "merges": merges, "ignore_merges": ignore_merges,
            "byte_fallback": false, "fuse_unk": false, "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
        },
    }))
}

/// SentencePiece's BPE: of two neighbouring pieces those become one whose whole has the highest score. As merges in the order of
/// these scores it is the BPE of the library; of equal scores the longer left part goes first, as in `transformers`.
fn sentence_piece(file: &Gguf, vocabulary: &Vocabulary) -> std::result::Result<Value, String> {
    let words = |e: ground::gguf::Error| e.to_string();
    let scores = file.floats("tokenizer.ggml.scores").map_err(words)?.ok_or("it has no scores")?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(format!("it has {} scores for {} tokens", scores.len(), vocabulary.tokens.len()));
    }
    let ids: HashMap<&str, usize> =
        vocabulary.tokens.iter().enumerate().rev().map(|(i, t)| (t.as_str(), i)).collect();
    let mut merges: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for (id, token) in vocabulary.tokens.iter().enumerate() {
        if token.len() > MAX_PIECE || matches!(vocabulary.kind(id), kind::CONTROL | kind::BYTE) {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                merges.push((scores[id], *l, *r, left, right));
            }
        }
    }
    // Scores descend; lengths too; the rest by the order of the vocabulary.
    merges.sort_by(|a, b| {
        let lengths = |m: &(f32, usize, usize, &str, &str)| (m.3.chars().count(), m.4.chars().count());
        b.0.total_cmp(&a.0).then(lengths(b).cmp(&lengths(a))).then((a.1, a.2).cmp(&(b.1, b.2)))
    });
    let merges: Vec<[&str; 2]> = merges.iter().map(|m| [m.3, m.4]).collect();
    let unknown = file.int("tokenizer.ggml.unknown_token_id").map_err(words)?;
    let unknown = unknown.and_then(|id| usize::try_from(id).ok()).and_then(|id| vocabulary.tokens.get(id));
    let prefix = file.flag("tokenizer.ggml.add_space_prefix").map_err(words)?.unwrap_or(true);
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let prepend = json!({ "type": "Prepend", "prepend": "▁" });
    let normalizers: Vec<Value> = prefix.then_some(prepend).into_iter().chain([replace]).collect();
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(json!({
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "vocab": vocabulary.map(), "merges": merges, "ignore_merges": false,
            "byte_fallback": true, "fuse_unk": true, "dropout": null, "unk_token": unknown,
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
        },
    }))
}
