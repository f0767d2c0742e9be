//! Text to ids, at three levels of trust.

use tokenizers::{Encoding, Model, NormalizerWrapper, OffsetType, PreTokenizer};

use super::Tokenizer;
use crate::error::guard;
use crate::{DataError, Result};

/// How far the author of a text is trusted to write control tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// Templates and training data: special and added tokens are recognised.
    Full,
    /// An assistant's turn that comes back from a client: added tokens that are not special (`<think>`) are
    /// recognised, control tokens (`<|end|>`) are not.
    Assistant,
    /// A user's text: neither is recognised.
    None,
}

/// A text in small letters without its white space.
pub(super) fn squeezed(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect()
}

impl Tokenizer {
    /// Encodes trusted text: special and added tokens in it are recognised, nothing is added around it.
    ///
    /// # Errors
    /// A character that the vocabulary cannot express (never with byte-level models).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_at(text, Trust::Full)
    }

    /// Encodes a text that stands for itself, outside of any chat, as `AutoTokenizer` does: trusted, and with the ids around it
    /// that `tokenizer.json` puts there, such as a beginning-of-sequence token.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>> {
        Ok([&self.begin[..], &self.encode(text)?, &self.end].concat())
    }

    /// The ids with which a text begins, before its own; none for most tokenizers.
    pub fn beginning(&self) -> &[u32] {
        &self.begin
    }

    /// Encodes text that a user typed: whatever it spells, no id of a special or added token comes out.
    ///
    /// Added tokens that consist of white space alone carry no control meaning and stay recognised.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], or text that a vocabulary can express through a control token only.
    pub fn encode_untrusted(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_at(text, Trust::None)
    }

    /// Encodes text at a level of trust.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_untrusted`].
    pub fn encode_at(&self, text: &str, trust: Trust) -> Result<Vec<u32>> {
        let ids = self.raw(text, trust, OffsetType::None)?.get_ids().to_vec();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.rows) {
            let token = self.token_text(*id).unwrap_or_default();
            let rows = self.rows;
            let problem = format!("it holds {token:?}, whose id {id} has no row among the model's {rows}");
            return Err(DataError::Encode { problem });
        }
        if ids.iter().any(|&id| self.is_forbidden(id, trust)) {
            return self.encode_around(text, trust, 0);
        }
        Ok(ids)
    }

    /// Encodes many texts on `threads` threads; the result does not depend on their number.
    ///
    /// # Errors
    /// The first error by position in `texts`.
    pub fn encode_batch<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        trust: Trust,
        threads: usize,
    ) -> Result<Vec<Vec<u32>>> {
        let share = texts.len().div_ceil(threads.max(1)).max(1);
        let parts: Vec<Result<Vec<Vec<u32>>>> = std::thread::scope(|scope| {
            let workers: Vec<_> = texts
                .chunks(share)
                .map(|part| {
                    scope.spawn(move || part.iter().map(|t| self.encode_at(t.as_ref(), trust)).collect())
                })
                .collect();
            let lost = || DataError::Encode { problem: "a worker thread ended early".to_owned() };
            workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err(lost()))).collect()
        });
        let mut all = Vec::with_capacity(texts.len());
        for part in parts {
            all.extend(part?);
        }
        Ok(all)
    }

    /// Whether text at this level must not give this id.
    pub(crate) fn is_forbidden(&self, id: u32, trust: Trust) -> bool {
        match trust {
            Trust::Full => false,
            Trust::Assistant => self.special.contains(&id),
            Trust::None => self.protected.contains(&id),
        }
    }

    /// Whether an id belongs to an added token that is more than white space.
    pub(crate) fn is_protected(&self, id: u32) -> bool {
        self.protected.contains(&id)
    }

    /// Whether a text spells a protected token, in any case and with blanks anywhere, or begins or ends as a part of one,
    /// which what stands beside it could complete: a template may trim, fold and join what it is given.
    pub(crate) fn may_spell_token(&self, text: &str) -> bool {
        if !text.chars().any(|c| self.openers.contains(&c) || self.closers.contains(&c)) {
            return false;
        }
        let text = squeezed(text);
        self.spellings.iter().any(|token| {
            let parts = |n: &usize| token.is_char_boundary(*n) && *n > 1 && token.len() - n > 1;
            let partly = |n: usize| text.ends_with(&token[..n]) || text.starts_with(&token[n..]);
            text.contains(token.as_str())
                || token.contains(text.as_str())
                || (1..token.len()).filter(parts).any(partly)
        })
    }

    fn raw(&self, text: &str, trust: Trust, offsets: OffsetType) -> Result<Encoding> {
        let vocabulary = match trust {
            Trust::Full => self.inner.get_added_vocabulary(),
            Trust::Assistant => &self.assistant_vocabulary,
            Trust::None => &self.plain_vocabulary,
        };
        let encode = || {
            let normalizer: Option<&NormalizerWrapper> = self.inner.get_normalizer();
            let mut text = vocabulary.extract_and_normalize(normalizer, text);
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut text)?;
            }
            text.tokenize(|piece| self.inner.get_model().tokenize(piece.get()))?;
            text.into_encoding(None, 0, offsets)
        };
        guard(encode)
            .and_then(|encoding| encoding.map_err(|e| e.to_string()))
            .map_err(|problem| DataError::Encode { problem })
    }

    /// The slow path for vocabularies whose *model* reaches a control token by its own rules (a word list or a
    /// unigram model that holds `</s>`, a merge that spells it): the parts that do so are encoded one character
    /// at a time, the rest as usual.
    fn encode_around(&self, text: &str, trust: Trust, depth: usize) -> Result<Vec<u32>> {
        const MAX_DEPTH: usize = 8;
        let encoding = self.raw(text, trust, OffsetType::Byte)?;
        let forbidden: Vec<(usize, usize)> = encoding
            .get_ids()
            .iter()
            .zip(encoding.get_offsets())
            .filter(|(id, _)| self.is_forbidden(**id, trust))
            .map(|(_, &span)| span)
            .collect();
        if forbidden.is_empty() {
            return Ok(encoding.get_ids().to_vec());
        }
        if depth == MAX_DEPTH || text.chars().nth(1).is_none() {
            return self.encode_chars(text, trust);
        }
        let mut ids = Vec::new();
        let mut done = 0;
        for (start, end) in forbidden {
            // Offsets pass through normalizers; take no part twice and never cut a character.
            let whole = |at: &usize| text.is_char_boundary(*at);
            let start = (done..=start.clamp(done, text.len())).rev().find(whole).unwrap_or(done);
            let end = (end.max(start)..=text.len()).find(whole).unwrap_or(text.len());
            ids.extend(self.encode_around(&text[done..start], trust, depth + 1)?);
            ids.extend(self.encode_chars(&text[start..end], trust)?);
            done = end;
        }
        ids.extend(self.encode_around(&text[done..], trust, depth + 1)?);
        Ok(ids)
    }

    fn encode_chars(&self, text: &str, trust: Trust) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let mut buffer = [0u8; 4];
        for c in text.chars() {
            let encoding = self.raw(c.encode_utf8(&mut buffer), trust, OffsetType::None)?;
            if encoding.get_ids().iter().any(|&id| self.is_forbidden(id, trust)) {
                return Err(DataError::Encode {
                    problem: format!(
                        "this vocabulary expresses {c:?} only as a control token, which a user's text may not contain"
                    ),
                });
            }
            ids.extend_from_slice(encoding.get_ids());
        }
        Ok(ids)
    }
}
