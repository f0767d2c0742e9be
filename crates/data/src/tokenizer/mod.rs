//! Tokenizers: trained here as byte-level BPE, or loaded from a Hugging Face folder of any model type.
//!
//! A text can be encoded at three levels of trust ([`Trust`]). The level decides which of the tokenizer's *added
//! tokens* (`<|end|>`, `<think>`, …) the text may contain as such; everything else in it is encoded as plain
//! text, whatever it spells.

mod encode;
mod files;
mod gguf;
mod limits;

mod stream;
mod train;

use std::collections::HashSet;
use std::fmt;

use tokenizers::AddedVocabulary;

pub use encode::Trust;
pub use stream::DecodeStream;
pub use train::TrainOptions;

use crate::error::guard;
use crate::{DataError, Result};

/// A tokenizer with its control tokens and chat template.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The added tokens with special ones switched off, for [`Trust::Assistant`].
    assistant_vocabulary: AddedVocabulary,
    /// The added tokens with all but pure white space switched off, for [`Trust::None`].
    plain_vocabulary: AddedVocabulary,
    /// Ids of added tokens that are skipped on decode.
    special: HashSet<u32>,
    /// Ids that untrusted text must never give: the added tokens but for those that are mere white space.
    protected: HashSet<u32>,
    /// The texts of protected tokens as [`encode::squeezed`], and their first and last characters as they stand.
    spellings: Vec<String>,
    openers: HashSet<char>,
    closers: HashSet<char>,
    vocab_size: usize,
    /// Ids from this one on have no row in the model's embedding.
    rows: usize,
    /// What the post-processor puts before and behind a text.
    begin: Vec<u32>,
    end: Vec<u32>,
    eos: Option<String>,
    bos: Option<String>,
    pad: Option<String>,
    chat_template: Option<String>,
    /// `tokenizer_config.json` as it was read, so that saving keeps the keys that mean nothing here.
    config: serde_json::Map<String, serde_json::Value>,
}

impl Tokenizer {
    /// The largest id plus one: the number of rows an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token by its exact text in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token).filter(|&id| (id as usize) < self.rows)
    }

    /// The same tokenizer for a model whose embedding has only so many rows: the ids beyond are neither found nor given, and
    /// a text that holds one of them is refused. Says which tokens these are; `None` where ids beyond belong to the
    /// vocabulary proper and not to tokens added to it, which is another model's then.
    pub fn with_rows(mut self, rows: usize) -> Option<(Tokenizer, Vec<String>)> {
        if self.inner.get_vocab(false).into_values().any(|id| id as usize >= rows) {
            return None;
        }
        self.rows = rows;
        let beyond = (rows..self.vocab_size).filter_map(|id| self.token_text(id as u32)).collect();
        Some((self, beyond))
    }

    /// The text of an id in the vocabulary: for byte-level models in their alphabet (`Ġthe`), not decoded.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The end-of-sequence token's id.
    pub fn eos_id(&self) -> Option<u32> {
        self.token_id(self.eos.as_deref()?)
    }

    /// The beginning-of-sequence token's id.
    pub fn bos_id(&self) -> Option<u32> {
        self.token_id(self.bos.as_deref()?)
    }

    /// The padding token's id.
    pub fn pad_id(&self) -> Option<u32> {
        self.token_id(self.pad.as_deref()?)
    }

    /// The end-of-sequence token's text.
    pub fn eos_token(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    /// The beginning-of-sequence token's text.
    pub fn bos_token(&self) -> Option<&str> {
        self.bos.as_deref()
    }

    /// The padding token's text.
    pub fn pad_token(&self) -> Option<&str> {
        self.pad.as_deref()
    }

    /// The control tokens that have names, by them: `bos_token`, `unk_token`, …
    pub(crate) fn named_tokens(&self) -> serde_json::Map<String, serde_json::Value> {
        let known = [("bos_token", &self.bos), ("eos_token", &self.eos), ("pad_token", &self.pad)];
        let known = known.into_iter().filter_map(|(name, token)| Some((name, token.as_deref()?)));
        let others = ["unk_token", "sep_token", "cls_token", "mask_token"].into_iter().filter_map(|name| {
            let token = self.config.get(name)?;
            Some((name, token.as_str().or_else(|| token["content"].as_str())?))
        });
        known.chain(others).map(|(name, token)| (name.to_owned(), token.into())).collect()
    }

    /// The chat template, in Jinja.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The same tokenizer with another chat template.
    pub fn with_chat_template(mut self, template: String) -> Tokenizer {
        self.chat_template = Some(template);
        self
    }

    /// Whether an id is a control token, skipped on decode.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The ids of control tokens, ascending.
    pub fn special_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.special.iter().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// A number that changes when the vocabulary or the rules of the tokenizer change, for caches of encoded text.
    pub fn fingerprint(&self) -> u64 {
        let text = self.inner.to_string(false).unwrap_or_default();
        crate::split::hash_bytes(text.as_bytes(), 0)
    }

    /// Turns ids back into text. Ids outside of the vocabulary (rows that pad an embedding) give nothing.
    ///
    /// # Errors
    /// A decoder in `tokenizer.json` that fails on these tokens.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let decoded = guard(|| self.inner.decode(ids, skip_special));
        decoded
            .and_then(|text| text.map_err(|e| e.to_string()))
            .map_err(|problem| DataError::Decode { problem })
    }

    /// Starts an incremental decode that skips special tokens.
    pub fn stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }

    /// Derives everything that is looked up often from the library's tokenizer.
    fn from_parts(inner: tokenizers::Tokenizer, names: Names) -> std::result::Result<Tokenizer, String> {
        let mut inner = inner;
        // Settings of somebody's batching would otherwise cut or fill every text.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        inner.set_encode_special_tokens(false);

        let mut added: Vec<(u32, tokenizers::AddedToken)> =
            inner.get_added_tokens_decoder().into_iter().collect();
        added.sort_unstable_by_key(|(id, _)| *id);
        let is_protected =
            |t: &tokenizers::AddedToken| t.special || !t.content.chars().all(char::is_whitespace);
        let ids = |keep: &dyn Fn(&tokenizers::AddedToken) -> bool| -> HashSet<u32> {
            added.iter().filter(|(_, t)| keep(t)).map(|(id, _)| *id).collect()
        };
        let special = ids(&|t| t.special);
        let protected = ids(&is_protected);
        let texts = || added.iter().filter(|(_, t)| is_protected(t)).map(|(_, t)| t.content.as_str());
        let spellings = texts().map(encode::squeezed).collect();
        let openers = texts().filter_map(|t| t.chars().next()).collect();
        let closers = texts().filter_map(|t| t.chars().next_back()).collect();

        let mut assistant_vocabulary = inner.get_added_vocabulary().clone();
        assistant_vocabulary.set_encode_special_tokens(true);

        // The library can switch off special tokens only, so in this copy every protected token is special.
        let mut plain_vocabulary = AddedVocabulary::new();
        let marked = added.iter().map(|(_, t)| t.clone().special(is_protected(t)));
        plain_vocabulary
            .add_tokens(marked, inner.get_model(), inner.get_normalizer())
            .map_err(|e| e.to_string())?;
        plain_vocabulary.set_encode_special_tokens(true);
        for (id, token) in &added {
            let copied = plain_vocabulary.get_vocab().get(&token.content).copied();
            if copied != Some(*id) {
                return Err(format!(
                    "the added token {:?} has the id {id}, expected ids without gaps after the model's vocabulary",
                    token.content
                ));
            }
        }

        let largest = inner.get_vocab(true).into_values().max();
        let vocab_size = largest.map_or(0, |id| id as usize + 1);
        if vocab_size > files::MAX_VOCAB {
            return Err(format!(
                "the largest token id is {}, expected at most {}",
                vocab_size - 1,
                files::MAX_VOCAB - 1
            ));
        }
        for (key, token) in [("eos_token", &names.eos), ("bos_token", &names.bos), ("pad_token", &names.pad)]
        {
            if let Some(token) = token
                && inner.token_to_id(token).is_none()
            {
                return Err(format!("`{key}` is {token:?}, expected a token of the vocabulary"));
            }
        }
        let Names { eos, bos, pad, chat_template, config } = names;
        let (mut begin, mut end) = surroundings(&inner)?;
        // What tokenizer_config.json says of these two goes before the post-processor, as in transformers.
        for (key, token, side) in [("add_bos_token", &bos, &mut begin), ("add_eos_token", &eos, &mut end)] {
            let id = token.as_deref().and_then(|token| inner.token_to_id(token));
            match (config.get(key).and_then(serde_json::Value::as_bool), id) {
                (Some(true), Some(id)) if !side.contains(&id) => side.push(id),
                (Some(false), Some(id)) => side.retain(|&other| other != id),
                _ => {}
            }
        }
        Ok(Tokenizer {
            inner,
            assistant_vocabulary,
            plain_vocabulary,
            special,
            protected,
            spellings,
            openers,
            closers,
            vocab_size,
            rows: usize::MAX,
            begin,
            end,
            eos,
            bos,
            pad,
            chat_template,
            config,
        })
    }
}

/// The ids that the post-processor puts before and behind a text.
fn surroundings(inner: &tokenizers::Tokenizer) -> std::result::Result<(Vec<u32>, Vec<u32>), String> {
    let encode = |special| {
        let encoding = inner.encode("a", special).map_err(|e| e.to_string())?;
        Ok::<_, String>(encoding.get_ids().to_vec())
    };
    let (plain, whole) = (encode(false)?, encode(true)?);
    if plain.is_empty() {
        // A vocabulary without the letter; what is put around a text mostly stands before it.
        return Ok((whole, Vec::new()));
    }
    let at = (0..=whole.len().saturating_sub(plain.len())).find(|&at| whole[at..].starts_with(&plain));
    let at =
        at.ok_or("its post-processor changes the text's own ids, expected ids before and behind them alone")?;
    Ok((whole[..at].to_vec(), whole[at + plain.len()..].to_vec()))
}

/// What a tokenizer has beside the library's part.
struct Names {
    eos: Option<String>,
    bos: Option<String>,
    pad: Option<String>,
    chat_template: Option<String>,
    config: serde_json::Map<String, serde_json::Value>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("eos", &self.eos)
            .field("bos", &self.bos)
            .field("pad", &self.pad)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
