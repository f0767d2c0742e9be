//! What a model writes, as text: tags of thinking and answers stay, other control tokens are left out.

use crate::{DecodeStream, Result, Tokenizer};

/// What a completion says: control tokens are left out, `<think>` and `<answer>` tags stay, whatever kind of token the
/// tokenizer makes of them.
///
/// # Errors
/// As [`Tokenizer::decode`].
pub fn completion_text(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String> {
    let kept: Vec<u32> =
        ids.iter().copied().filter(|&id| !tokenizer.is_special(id) || is_tag(tokenizer, id)).collect();
    tokenizer.decode(&kept, false)
}

/// Whether a control token is one of the tags of a completion.
pub fn is_tag(tokenizer: &Tokenizer, id: u32) -> bool {
    let text = tokenizer.token_text(id);
    text.is_some_and(|t| ["<think>", "</think>", "<answer>", "</answer>"].contains(&t.as_str()))
}

/// What a prompt has begun of the answer already: some chat templates open the thought themselves, with `<think>` and
/// perhaps a line end.
///
/// # Errors
/// As [`Tokenizer::decode`].
pub fn opening(tokenizer: &Tokenizer, prompt: &[u32]) -> Result<String> {
    let end = completion_text(tokenizer, &prompt[prompt.len().saturating_sub(8)..])?;
    let opened = end.rfind("<think>").filter(|at| end[*at..].trim_end() == "<think>");
    Ok(opened.map_or_else(String::new, |at| end[at..].to_owned()))
}

/// The text of one continuation, grown token by token and ended by stop strings.
pub struct LiveText<'a> {
    tokenizer: &'a Tokenizer,
    stream: DecodeStream<'a>,
    stops: &'a [String],
    text: String,
    /// How much of the text was handed out.
    shown: usize,
    /// The stop string that came, by its number.
    stopped: Option<usize>,
}

impl<'a> LiveText<'a> {
    /// An empty text; empty stop strings are left aside.
    pub fn new(tokenizer: &'a Tokenizer, stops: &'a [String]) -> LiveText<'a> {
        LiveText {
            tokenizer,
            stream: tokenizer.stream(),
            stops,
            text: String::new(),
            shown: 0,
            stopped: None,
        }
    }

    /// Adds a token; returns whether the text goes on, false once it holds a stop string (which is cut off).
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<bool> {
        if self.tokenizer.is_special(id) {
            // The stream skips control tokens; tags stay, whatever kind of token they are.
            if is_tag(self.tokenizer, id) {
                let held = self.stream.finish()?;
                self.stream = self.tokenizer.stream();
                self.grow(held);
                self.grow(self.tokenizer.token_text(id));
            }
        } else {
            let piece = self.stream.push(id)?;
            self.grow(piece);
        }
        Ok(self.stopped.is_none())
    }

    fn grow(&mut self, piece: Option<String>) {
        let Some(piece) = piece.filter(|_| self.stopped.is_none()) else { return };
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let mut from = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text.push_str(&piece);
        let places = self.stops.iter().enumerate().filter(|(_, s)| !s.is_empty());
        let found = places.filter_map(|(i, s)| Some((self.text[from..].find(s.as_str())?, i))).min();
        if let Some((at, stop)) = found {
            self.text.truncate(from + at);
            self.stopped = Some(stop);
        }
    }

    /// The stop string that ended the text.
    pub fn stopped_by(&self) -> Option<&str> {
        self.stopped.map(|i| self.stops[i].as_str())
    }

    /// What is new and certain: no later token can turn it into a part of a stop string.
    pub fn take_new(&mut self) -> &str {
        let open = if self.stopped.is_some() {
            0
        } else {
            held_back(&self.text[self.shown..], self.stops.iter().map(String::as_str))
        };
        let end = self.text.len() - open;
        let start = std::mem::replace(&mut self.shown, end);
        &self.text[start..end]
    }

    /// Ends the text and returns it whole.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<&str> {
        let rest = self.stream.finish()?;
        self.grow(rest);
        Ok(&self.text)
    }

    /// After [`LiveText::finish`]: what was not handed out yet.
    pub fn take_rest(&mut self) -> &str {
        let start = std::mem::replace(&mut self.shown, self.text.len());
        &self.text[start..]
    }
}

/// The length of the longest end of `text` with which one of `words` begins.
pub fn held_back<'w>(text: &str, words: impl Iterator<Item = &'w str>) -> usize {
    let longest = |word: &str| {
        let ends = (0..word.len()).rev().filter(|&n| word.is_char_boundary(n));
        ends.into_iter().find(|&n| text.ends_with(&word[..n])).unwrap_or(0)
    };
    words.map(longest).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_may_become_a_word_is_held_back() {
        let held = |text: &str| held_back(text, ["<think>", "::"].into_iter());
        assert_eq!([held("so <thi"), held("so"), held("a:"), held("<think>"), held("ä<")], [4, 0, 1, 0, 1]);
    }
}
