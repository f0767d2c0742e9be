//! Tokenizers on disk: `tokenizer.json` and `tokenizer_config.json`, as `transformers` reads and writes them.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::{Names, Tokenizer, gguf, limits};
use crate::atomic::write_file;
use crate::error::{guard, io_error};
use crate::{DataError, Result};

/// The most ids a vocabulary may have; the largest published ones are near a million.
pub(super) const MAX_VOCAB: usize = 1 << 24;

/// The largest file that is read, in bytes; the largest published ones have some 30 million.
const MAX_BYTES: u64 = 256 << 20;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
/// What older folders name their control tokens in.
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const TEMPLATE: &str = "chat_template.jinja";

impl Tokenizer {
    /// Loads a tokenizer from a folder with `tokenizer.json` (any model type) and, where present,
    /// `tokenizer_config.json`, `special_tokens_map.json` (for names that the former has not) and
    /// `chat_template.jinja`; or from a GGUF file.
    ///
    /// Settings for padding and truncation in the file are left aside: encoding neither fills nor cuts.
    ///
    /// # Errors
    /// A missing or broken file, added tokens whose ids contradict the vocabulary, or an end token outside of it.
    pub fn load(dir: &Path) -> Result<Tokenizer> {
        if gguf::is_gguf(dir) {
            let gguf::Files { tokenizer, config } = gguf::load(dir)?;
            return Tokenizer::parse(dir, &tokenizer.to_string(), || names(dir, config, &Map::new()));
        }
        let path = dir.join(TOKENIZER);
        Tokenizer::parse(&path, &read(&path)?, || read_names(dir))
    }

    /// A tokenizer from the text of a `tokenizer.json`; `path` is named in errors.
    fn parse(path: &Path, text: &str, names: impl FnOnce() -> Result<Names>) -> Result<Tokenizer> {
        let problem = |problem| DataError::TokenizerFile { path: path.to_owned(), problem };
        let steps: limits::Steps = serde_json::from_str(text).map_err(|e| problem(e.to_string()))?;
        limits::check(&steps).map_err(problem)?;
        let inner: tokenizers::Tokenizer = guard(|| text.parse::<tokenizers::Tokenizer>())
            .and_then(|t| t.map_err(|e| e.to_string()))
            .map_err(problem)?;
        check_added_ids(text, &inner).map_err(problem)?;
        let names = names()?;
        guard(|| Tokenizer::from_parts(inner, names)).and_then(|t| t).map_err(problem)
    }

    /// Saves the files that `AutoTokenizer.from_pretrained` loads: `tokenizer.json` and `tokenizer_config.json`,
    /// with the chat template inside the latter. Keys of a loaded configuration that mean nothing here are kept.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(TOKENIZER);
        let json = self.inner.to_string(true).map_err(|e| DataError::TokenizerFile {
            path: path.clone(),
            problem: format!("it cannot be written as JSON: {e}"),
        })?;
        write_file(&path, json.as_bytes())?;

        let mut config = self.config.clone();
        config.entry("tokenizer_class").or_insert_with(|| "PreTrainedTokenizerFast".into());
        // Otherwise decoding in transformers would edit spaces before punctuation.
        config.entry("clean_up_tokenization_spaces").or_insert(Value::Bool(false));
        let tokens = [("eos_token", &self.eos), ("bos_token", &self.bos), ("pad_token", &self.pad)];
        for (key, value) in tokens.into_iter().chain([("chat_template", &self.chat_template)]) {
            match value {
                Some(text) => config.insert(key.to_owned(), text.clone().into()),
                None => config.remove(key),
            };
        }
        let mut bytes = serde_json::to_vec_pretty(&Value::Object(config)).unwrap_or_default();
        bytes.push(b'\n');
        write_file(&dir.join(CONFIG), &bytes)?;
        // A template file left by a former save of another tokenizer would take precedence over the one inside.
        let stale = dir.join(TEMPLATE);
        if stale.exists() {
            fs::remove_file(&stale).map_err(io_error("remove", &stale))?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String> {
    let found = fs::metadata(path).map_err(io_error("read", path))?;
    let refuse = |problem: &str| io_error("read", path)(std::io::Error::other(problem));
    if !found.is_file() {
        return Err(refuse("it is no plain file"));
    }
    if found.len() > MAX_BYTES {
        return Err(refuse("it is larger than 256 MiB"));
    }
    let mut bytes = fs::read(path).map_err(io_error("read", path))?;
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|e| DataError::NotUtf8 {
        path: path.to_owned(),
        offset: e.utf8_error().valid_up_to() as u64,
    })
}

/// The library takes the model's id for an added token that the file lists with another one, and only logs it:
/// every control token would then be another row of the embedding.
fn check_added_ids(text: &str, inner: &tokenizers::Tokenizer) -> std::result::Result<(), String> {
    #[derive(serde::Deserialize)]
    struct Listed {
        #[serde(default)]
        added_tokens: Vec<ListedToken>,
    }
    #[derive(serde::Deserialize)]
    struct ListedToken {
        id: u32,
        content: String,
    }
    let listed: Listed = serde_json::from_str(text).map_err(|e| e.to_string())?;
    for ListedToken { id, content } in listed.added_tokens {
        let found = inner.token_to_id(&content);
        if found != Some(id) {
            let found = found.map_or("none".to_owned(), |id| id.to_string());
            return Err(format!(
                "the added token {content:?} is listed with the id {id}, but the vocabulary gives it {found}"
            ));
        }
    }
    Ok(())
}

fn read_names(dir: &Path) -> Result<Names> {
    let config = object(&dir.join(CONFIG))?;
    let mut names = names(&dir.join(CONFIG), config, &object(&dir.join(SPECIAL_TOKENS))?)?;
    let template_path = dir.join(TEMPLATE);
    if template_path.exists() {
        names.chat_template = Some(read(&template_path)?);
    }
    Ok(names)
}

/// The names in a `tokenizer_config.json`, and in `map` those that it has not; `path` is named in errors.
fn names(path: &Path, config: Map<String, Value>, map: &Map<String, Value>) -> Result<Names> {
    let problem = |problem| DataError::TokenizerFile { path: path.to_owned(), problem };
    let token = |key: &str| match token(&config, key).map_err(problem)? {
        Some(token) => Ok(Some(token)),
        None => token(map, key).map_err(problem),
    };
    let chat_template = match config.get("chat_template") {
        None | Some(Value::Null) => None,
        Some(Value::String(template)) => Some(template.clone()),
        Some(Value::Array(list)) => Some(default_template(list).ok_or_else(|| {
            problem("`chat_template` is a list, expected one of it to be named `default`".to_owned())
        })?),
        Some(other) => {
            return Err(problem(format!(
                "`chat_template` is {}, expected a string or a list of {{name, template}}",
                brief(other)
            )));
        }
    };
    let (eos, bos, pad) = (token("eos_token")?, token("bos_token")?, token("pad_token")?);
    Ok(Names { eos, bos, pad, chat_template, config })
}

/// The JSON object of a file; an empty one where there is no file.
fn object(path: &Path) -> Result<Map<String, Value>> {
    let problem = |problem| DataError::TokenizerFile { path: path.to_owned(), problem };
    if !path.exists() {
        return Ok(Map::new());
    }
    match serde_json::from_str(&read(path)?) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(problem("it is not a JSON object".to_owned())),
        Err(e) => Err(problem(format!("it is not JSON: {e}"))),
    }
}

/// The text of a token that a file names under a key, either alone or as an object.
fn token(map: &Map<String, Value>, key: &str) -> std::result::Result<Option<String>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(token)) => Ok(Some(token.clone())),
        Some(Value::Object(token)) if token.get("content").is_some_and(Value::is_string) => {
            Ok(token["content"].as_str().map(str::to_owned))
        }
        Some(other) => {
            Err(format!("`{key}` is {}, expected a string or an object with `content`", brief(other)))
        }
    }
}

/// The template named `default`, or the only one.
fn default_template(list: &[Value]) -> Option<String> {
    let named = list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
    let only = if list.len() == 1 { list.first() } else { None };
    Some(named.or(only)?.get("template")?.as_str()?.to_owned())
}

/// A JSON value in an error message, cut short.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
