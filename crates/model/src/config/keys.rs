//! Typed access to the keys of a JSON object, with errors that name the key.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::ConfigError;

/// An object of the configuration, with the path that leads to it for messages.
pub(crate) struct Keys<'a> {
    pub(crate) prefix: &'static str,
    pub(crate) map: &'a Map<String, Value>,
    /// Every key that was asked for: what the reader knows.
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    /// The keys of a whole file.
    pub(crate) fn of(value: &'a Value) -> Result<Self, ConfigError> {
        let found = match value {
            Value::Object(map) => return Ok(Keys { prefix: "", map, asked: RefCell::default() }),
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Null => "null",
            _ => "number or boolean",
        };
        Err(ConfigError::NotAnObject { found })
    }

    /// The keys of an object that was made of a file's.
    pub(crate) fn over(map: &'a Map<String, Value>) -> Self {
        Keys { prefix: "", map, asked: RefCell::default() }
    }

    /// Counts as asked what `other` was asked for.
    pub(crate) fn asked_as(&self, other: &Keys) {
        for key in other.asked.borrow().iter() {
            self.get(key);
        }
    }

    /// The value of a key; JSON's null counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        if !self.asked.borrow().contains(key) {
            self.asked.borrow_mut().insert(key.to_owned());
        }
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Refuses keys that nothing has asked for: where a person writes the configuration, such a key is a slip.
    pub(crate) fn refuse_unasked(&self) -> Result<(), ConfigError> {
        let asked = self.asked.borrow();
        let Some(key) = self.map.keys().find(|key| !asked.contains(*key)) else { return Ok(()) };
        let alike = |known: &&String| (strsim::jaro_winkler(key, known) * 1e6) as u64;
        let nearest = asked.iter().max_by_key(alike).cloned().unwrap_or_default();
        Err(ConfigError::Unknown { key: self.path(key), nearest })
    }

    pub(crate) fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    pub(crate) fn wrong(&self, key: &str, found: &Value, supported: &str) -> ConfigError {
        ConfigError::unsupported(&self.path(key), found, supported)
    }

    pub(crate) fn missing(&self, key: &str, expected: &str) -> ConfigError {
        ConfigError::Missing { key: self.path(key), expected: expected.to_owned() }
    }

    pub(crate) fn size_opt(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        // Some files write 8192.0 for a length.
        let integral =
            value.as_f64().filter(|f| f.fract() == 0.0 && (0.0..=9e15).contains(f)).map(|f| f as u64);
        value
            .as_u64()
            .or(integral)
            .and_then(|n| usize::try_from(n).ok())
            .map(Some)
            .ok_or_else(|| self.wrong(key, value, "must be a non-negative integer"))
    }

    pub(crate) fn size(&self, key: &str) -> Result<usize, ConfigError> {
        self.size_opt(key)?.ok_or_else(|| self.missing(key, "it must hold a positive integer"))
    }

    pub(crate) fn size_or(&self, key: &str, default: usize) -> Result<usize, ConfigError> {
        Ok(self.size_opt(key)?.unwrap_or(default))
    }

    pub(crate) fn number_opt(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|f| f.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(self.wrong(key, value, "must be a finite number")),
            },
        }
    }

    pub(crate) fn number(&self, key: &str) -> Result<f64, ConfigError> {
        self.number_opt(key)?.ok_or_else(|| self.missing(key, "it must hold a number"))
    }

    pub(crate) fn number_or(&self, key: &str, default: f64) -> Result<f64, ConfigError> {
        Ok(self.number_opt(key)?.unwrap_or(default))
    }

    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, value, "must be true or false")),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_str() {
                Some(text) => Ok(Some(text)),
                None => Err(self.wrong(key, value, "must be a string")),
            },
        }
    }

    pub(crate) fn object(
        &self,
        key: &'static str,
        prefix: &'static str,
    ) -> Result<Option<Keys<'a>>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys { prefix, map, asked: RefCell::default() })),
            Some(value) => Err(self.wrong(key, value, "must be an object")),
        }
    }

    /// Refuses the key unless it is absent, null or one of the values that mean "as usual".
    pub(crate) fn only(&self, key: &str, usual: &[Value], supported: &str) -> Result<(), ConfigError> {
        match self.get(key) {
            Some(value) if !usual.contains(value) => Err(self.wrong(key, value, supported)),
            _ => Ok(()),
        }
    }

    /// Token ids under a key: a number, a list or nothing. A negative id means "none".
    pub(crate) fn token_ids(&self, key: &str) -> Result<Vec<u32>, ConfigError> {
        let wrong = |value: &Value| self.wrong(key, value, "must be a token id or a list of token ids");
        let one = |value: &Value| match value.as_i64() {
            Some(id) if id < 0 => Ok(None),
            Some(id) => u32::try_from(id).map(Some).map_err(|_| wrong(value)),
            None => Err(wrong(value)),
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(list @ Value::Array(ids)) if ids.len() > 256 => Err(wrong(list)),
            Some(Value::Array(ids)) => ids.iter().filter_map(|id| one(id).transpose()).collect(),
            Some(value) => Ok(one(value)?.into_iter().collect()),
        }
    }

    pub(crate) fn token_id(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        // A list here (some files give bos as one) means its first entry.
        Ok(self.token_ids(key)?.first().copied())
    }
}
