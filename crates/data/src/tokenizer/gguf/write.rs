//! From a tokenizer to the keys of a GGUF file.

use ground::gguf::{Keys, Value as Field};
use serde_json::Value;

use super::pre::name_of;
use super::{OWN_PIECES, kind};
use crate::tokenizer::Tokenizer;

/// The cuts that stand in for an expression that llama.cpp has no name for: digits one by one, then GPT-2's.
const NEAREST: &str = "smollm";

impl Tokenizer {
    /// The keys of a GGUF file for a model whose embedding has `rows` rows, and what whoever uses it should know.
    ///
    /// # Errors
    /// A kind of tokenizer that has no form there, in words.
    pub fn gguf_keys(&self, rows: usize) -> Result<(Keys, Vec<String>), String> {
        let json = self.inner.to_string(false).map_err(|e| e.to_string())?;
        let json: Value = serde_json::from_str(&json).map_err(|e| e.to_string())?;
        let model = &json["model"];
        let name = model["type"].as_str().unwrap_or("unknown");
        if name != "BPE" {
            return Err(format!(
                "the tokenizer is of the kind {name}, of which GGUF files are not written; BPE is"
            ));
        }
        let mut notices = Vec::new();
        let merges: Vec<[&str; 2]> =
            model["merges"].as_array().into_iter().flatten().filter_map(merge).collect();
        let steps = steps(&json["pre_tokenizer"]);
        let byte_level = steps.iter().any(|step| step["type"] == "ByteLevel");
        let mut keys = Keys::new();
        let mut put = |key: &str, value: Field| keys.push((key.to_owned(), value));
        let tokens: Vec<Option<String>> = (0..rows).map(|id| self.token_text(id as u32)).collect();
        put("tokenizer.ggml.model", Field::Text(if byte_level { "gpt2" } else { "llama" }.to_owned()));
        if byte_level {
            let (pre, own) = pre(&steps, model["ignore_merges"] == true, &mut notices)?;
            put("tokenizer.ggml.pre", Field::Text(pre.to_owned()));
            if let Some(regex) = own {
                put(OWN_PIECES, Field::Text(regex.to_owned()));
            }
        } else {
            if model["byte_fallback"] != true {
                return Err("the tokenizer is BPE over neither bytes nor SentencePiece's pieces".to_owned());
            }
            put("tokenizer.ggml.scores", Field::Floats(scores(&tokens, &merges)));
            put("tokenizer.ggml.add_space_prefix", Field::Bool(begins_with_space(&json)));
        }
        let named = |token: &Option<String>, id: usize| token.clone().unwrap_or_else(|| format!("[PAD{id}]"));
        put(
            "tokenizer.ggml.tokens",
            Field::Texts(tokens.iter().enumerate().map(|(id, t)| named(t, id)).collect()),
        );
        let unknown = model["unk_token"].as_str();
        let kinds = tokens
            .iter()
            .enumerate()
            .map(|(id, token)| self.kind(id as u32, token.as_deref(), unknown, byte_level));
        put("tokenizer.ggml.token_type", Field::Ints(kinds.collect()));
        if byte_level {
            put(
                "tokenizer.ggml.merges",
                Field::Texts(merges.iter().map(|[a, b]| format!("{a} {b}")).collect()),
            );
        }
        let unknown = unknown.and_then(|token| self.token_id(token));
        for (name, id) in
            [("bos", self.bos_id()), ("eos", self.eos_id()), ("padding", self.pad_id()), ("unknown", unknown)]
        {
            if let Some(id) = id.filter(|&id| (id as usize) < rows) {
                put(&format!("tokenizer.ggml.{name}_token_id"), Field::Int(id.into()));
            }
        }
        put(
            "tokenizer.ggml.add_bos_token",
            Field::Bool(self.bos_id().is_some_and(|id| self.begin.contains(&id))),
        );
        put(
            "tokenizer.ggml.add_eos_token",
            Field::Bool(self.eos_id().is_some_and(|id| self.end.contains(&id))),
        );
        if let Some(template) = self.chat_template() {
            put("tokenizer.chat_template", Field::Text(template.to_owned()));
        }
        Ok((keys, notices))
    }

    fn kind(&self, id: u32, token: Option<&str>, unknown: Option<&str>, byte_level: bool) -> i64 {
        let Some(token) = token else { return kind::UNUSED };
        let byte = || token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        match id {
            _ if !byte_level && Some(token) == unknown => kind::UNKNOWN,
            _ if self.special.contains(&id) => kind::CONTROL,
            _ if self.inner.get_added_tokens_decoder().contains_key(&id) => kind::USER_DEFINED,
            _ if !byte_level && byte() => kind::BYTE,
            _ => kind::NORMAL,
        }
    }
}

/// The two parts of a merge, which stands in a file as a list, or as a text in older ones.
fn merge(value: &Value) -> Option<[&str; 2]> {
    match value {
        Value::Array(parts) => Some([parts.first()?.as_str()?, parts.get(1)?.as_str()?]),
        Value::String(text) => text.split_once(' ').map(|(a, b)| [a, b]),
        _ => None,
    }
}

/// The pre-tokenizers, one after the other.
fn steps(pre: &Value) -> Vec<&Value> {
    match pre["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None if pre.is_null() => Vec::new(),
        None => vec![pre],
    }
}

/// The name of byte-level cuts, and the expression itself where that is another.
fn pre<'a>(
    steps: &[&'a Value],
    ignore_merges: bool,
    notices: &mut Vec<String>,
) -> Result<(&'static str, Option<&'a str>), String> {
    let mut splits = Vec::new();
    for step in steps {
        match (step["type"].as_str(), step["use_regex"].as_bool()) {
            // It cuts by GPT-2's expression unless told not to.
            (Some("ByteLevel"), Some(false)) => {}
            (Some("ByteLevel"), _) => splits.push(super::pre::Split::Gpt2.json()),
            _ => splits.push((*step).clone()),
        }
    }
    if let Some(name) = name_of(&splits, ignore_merges) {
        return Ok((name, None));
    }
    let own = match steps {
        [split, bytes] if bytes["type"] == "ByteLevel" => split["pattern"]["Regex"].as_str(),
        _ => None,
    };
    let own = own.ok_or("the tokenizer cuts texts in a way that GGUF files have no name for")?;
    notices.push(format!(
        "note: llama.cpp has no pre-tokenizer that cuts texts as this one does; the nearest, {NEAREST:?}, is written, so it will \
         make other tokens of some texts"
    ));
    Ok((NEAREST, Some(own)))
}

/// Scores in the order of the merges: what is merged first has the highest.
fn scores(tokens: &[Option<String>], merges: &[[&str; 2]]) -> Vec<f32> {
    let mut rank = std::collections::HashMap::new();
    for (i, [a, b]) in merges.iter().enumerate() {
        rank.entry(format!("{a}{b}")).or_insert(i);
    }
    let of = |token: &Option<String>| token.as_ref().and_then(|token| rank.get(token));
    tokens.iter().map(|token| of(token).map_or(0.0, |&i| -(i as f32) - 1.0)).collect()
}

/// Whether a blank is put before a text.
fn begins_with_space(json: &Value) -> bool {
    let normalizer = &json["normalizer"];
    let prepends = |step: &Value| step["type"] == "Prepend";
    let meta = steps(&json["pre_tokenizer"]).into_iter().find(|step| step["type"] == "Metaspace");
    prepends(normalizer)
        || normalizer["normalizers"].as_array().is_some_and(|steps| steps.iter().any(prepends))
        || meta.is_some_and(|step| step["prepend_scheme"] != "never")
}
