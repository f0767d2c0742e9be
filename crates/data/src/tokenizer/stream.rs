//! Text from ids that arrive one at a time.

use super::Tokenizer;
use crate::Result;

/// The most ids held back while their bytes form no character. Four bytes make any character, so more than this
/// is a broken sequence, shown with replacement characters.
const MAX_PENDING: usize = 16;

/// An incremental decode: the pieces that [`DecodeStream::push`] returns, and at last [`DecodeStream::finish`],
/// join to what [`Tokenizer::decode`] gives for all ids at once (bytes that are no UTF-8 may show as another
/// number of replacement characters). Special tokens are skipped.
#[derive(Clone, Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The ids of the last piece, as context for decoders that look back, and the ones held back since.
    ids: Vec<u32>,
    /// How many of `ids` are context.
    context: usize,
    /// The text of the context alone.
    context_text: String,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> DecodeStream<'a> {
        DecodeStream { tokenizer, ids: Vec::new(), context: 0, context_text: String::new() }
    }

    /// Adds an id. Returns the text that is now certain, or `None` while a character is incomplete or where the
    /// id has no text.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        if self.tokenizer.is_special(id) || id as usize >= self.tokenizer.vocab_size() {
            return Ok(None);
        }
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, true)?;
        let incomplete = text.ends_with(char::REPLACEMENT_CHARACTER);
        if incomplete && self.ids.len() - self.context < MAX_PENDING {
            return Ok(None);
        }
        self.emit(text)
    }

    /// Ends the stream: the text of an incomplete character, if one was held back.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<Option<String>> {
        let text = self.tokenizer.decode(&self.ids, true)?;
        self.emit(text)
    }

    fn emit(&mut self, text: String) -> Result<Option<String>> {
        let shared = text
            .char_indices()
            .zip(self.context_text.chars())
            .find(|((_, a), b)| a != b)
            .map_or(text.len().min(self.context_text.len()), |((at, _), _)| at);
        let new = text[shared..].to_owned();
        if new.is_empty() {
            return Ok(None);
        }
        self.ids.drain(..self.context);
        self.context = self.ids.len();
        self.context_text = self.tokenizer.decode(&self.ids, true)?;
        Ok(Some(new))
    }
}
