//! What a model forgets while it is taught: bits per byte on a text that no stage trains on, before and after.

use std::borrow::Cow;
use std::path::Path;

use data::{Document, Tokenizer, chunk_document};
use model::Model;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::held_out::HeldOut;
use crate::run::RunError;
use crate::team::Team;

/// What a recipe calls the text that comes with the program.
pub const BUILT_IN: &str = "built_in";
/// What a recipe says where nothing is to be measured.
pub const NONE: &str = "none";

/// Prose, a letter, minutes, instructions and a little code, written for this purpose, so that no model has read them.
static TEXT: &str = include_str!("held_text.txt");

/// So much of a file is read; the rest would cost time and tell little more.
const MOST_BYTES: usize = 32 << 10;
/// Tokens that are read in one piece, at most.
const PIECE: usize = 512;

/// A text that models are measured on.
pub struct HeldText {
    name: String,
    text: Cow<'static, str>,
}

/// What a model makes of a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextMeasure {
    /// [`BUILT_IN`], or the file.
    pub text: String,
    /// Bytes that it was measured on.
    pub bytes: usize,
    /// The negative log-likelihood of the text in bits, over its bytes.
    pub bits_per_byte: f64,
}

impl HeldText {
    /// The text of a recipe's setting: nothing for [`NONE`].
    ///
    /// # Errors
    /// A file that cannot be read, or is not text, or is empty.
    pub fn of(setting: &str) -> Result<Option<HeldText>, TrainError> {
        if setting == NONE {
            return Ok(None);
        }
        let text = if setting == BUILT_IN { Cow::Borrowed(TEXT) } else { read(Path::new(setting))?.into() };
        Ok(Some(HeldText { name: setting.to_owned(), text }))
    }

    /// Measures a model.
    ///
    /// # Errors
    /// A text that the tokenizer refuses, or makes fewer than two tokens of.
    pub fn measure(&self, model: &Model, tokenizer: &Tokenizer) -> Result<TextMeasure, TrainError> {
        let mut ids = tokenizer.beginning().to_vec();
        if ids.is_empty() {
            ids.extend(tokenizer.eos_id());
        }
        ids.extend(tokenizer.encode_untrusted(&self.text)?);
        let longest = model.config().max_position_embeddings().min(model.positions()).min(PIECE);
        let pieces: Vec<Document> =
            chunk_document(&ids, longest).into_iter().map(|ids| Document::plain(ids.to_vec())).collect();
        if pieces.is_empty() {
            return Err(TrainError::Recipe(format!(
                "the held text {} is too short to measure on",
                self.name
            )));
        }
        let bits = HeldOut::measure(model, &Team::alone(), 0, &pieces).total() / std::f64::consts::LN_2;
        let bytes = self.text.len();
        Ok(TextMeasure { text: self.name.clone(), bytes, bits_per_byte: bits / bytes as f64 })
    }
}

/// The beginning of a file, up to the end of a letter.
fn read(path: &Path) -> Result<String, TrainError> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(RunError::io("read", path))?;
    file.take(MOST_BYTES as u64).read_to_end(&mut bytes).map_err(RunError::io("read", path))?;
    let refuse = |what: &str| TrainError::Recipe(format!("the held text {} {what}", path.display()));
    let cut = bytes.len() == MOST_BYTES;
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        // The last letter may have been cut.
        Err(e) if cut && e.error_len().is_none() => {
            std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or("")
        }
        Err(_) => return Err(refuse("is not UTF-8 text")),
    };
    if text.trim().is_empty() {
        return Err(refuse("is empty"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_to_a_whole_letter_and_others_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let of = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).expect("a file");
            HeldText::of(path.to_str().expect("a path")).map(|t| t.expect("a text").text.len())
        };
        let long = format!("a{}", "ä".repeat(MOST_BYTES));
        assert_eq!(of("long", long.as_bytes()).expect("text"), MOST_BYTES - 1);
        assert_eq!(of("short", b"so").expect("text"), 2);
        for (name, bytes, want) in [("binary", &b"\xff\xfe"[..], "not UTF-8"), ("blank", b" \n", "is empty")]
        {
            let error = of(name, bytes).expect_err("no text").to_string();
            assert!(error.contains(want) && error.contains(name), "{error}");
        }
        assert!(HeldText::of("/none/such").is_err() && HeldText::of(NONE).expect("nothing").is_none());
        assert!(HeldText::of(BUILT_IN).expect("a text").expect("a text").text.len() < MOST_BYTES);
    }
}
