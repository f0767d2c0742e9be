//! The fields of a request, each checked as it is taken; what is left is unknown.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{Answer, ApiError};

/// What a request holds that was not taken yet.
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Before every field's name in errors.
    place: String,
    /// Fields that are read under another name, after that.
    renamed: Vec<(&'static str, &'static str)>,
}

impl Fields {
    /// The fields of a request's body.
    pub(crate) fn parse(body: &[u8]) -> Answer<Fields> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| ApiError::bad(format!("the body is not valid JSON: {e}")))?;
        match value {
            Value::Object(map) => Ok(Fields { map, place: String::new(), renamed: Vec::new() }),
            other => Err(ApiError::bad(format!("the body is {}, expected an object", kind(&other)))),
        }
    }

    /// The fields of a value inside of a request.
    pub(crate) fn of(place: &str, value: Value) -> Answer<Fields> {
        match value {
            Value::Object(map) => Ok(Fields { map, place: format!("{place}."), renamed: Vec::new() }),
            other => Err(ApiError::field(place, format!("{place} is {}, expected an object", kind(&other)))),
        }
    }

    /// The full name of a field, as the client wrote it.
    pub(crate) fn name(&self, field: &str) -> String {
        let written = self.renamed.iter().find(|(to, _)| *to == field).map_or(field, |(_, from)| from);
        format!("{}{written}", self.place)
    }

    fn wrong<T>(&self, field: &str, found: &Value, expected: &str) -> Answer<T> {
        let name = self.name(field);
        Err(ApiError::field(&name, format!("{name} is {}, expected {expected}", kind(found))))
    }

    /// A field's value; nothing where it is absent or null.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|value| !value.is_null())
    }

    /// A field's value that must be there.
    pub(crate) fn need(&mut self, field: &str) -> Answer<Value> {
        let name = self.name(field);
        self.take(field).ok_or_else(|| ApiError::field(&name, format!("{name} is missing")))
    }

    /// A field's value as it stands; null where it is absent.
    pub(crate) fn peek(&self, field: &str) -> Value {
        self.map.get(field).cloned().unwrap_or_default()
    }

    /// Lets a field be read under another name; errors go on to say the first.
    pub(crate) fn rename(&mut self, from: &'static str, to: &'static str) {
        if let Some(value) = self.map.remove(from) {
            self.map.insert(to.to_owned(), value);
            self.renamed.push((to, from));
        }
    }

    /// A finite number within a range.
    pub(crate) fn number(&mut self, field: &str, range: RangeInclusive<f64>) -> Answer<Option<f32>> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if range.contains(&x) => Ok(Some(x as f32)),
            Some(x) => {
                let (name, (least, most)) = (self.name(field), (range.start(), range.end()));
                Err(ApiError::field(&name, format!("{name} is {x}, expected {least} to {most}")))
            }
            None => self.wrong(field, &value, "a number"),
        }
    }

    /// A whole number within a range.
    pub(crate) fn whole(&mut self, field: &str, range: RangeInclusive<i64>) -> Answer<Option<i64>> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let exact = |x: f64| (x.fract() == 0.0 && x.abs() < 9e15).then_some(x as i64);
        match value.as_i64().or_else(|| value.as_f64().and_then(exact)) {
            Some(x) if range.contains(&x) => Ok(Some(x)),
            _ if value.is_number() => {
                let (name, (least, most)) = (self.name(field), (range.start(), range.end()));
                let expected = format!("a whole number from {least} to {most}");
                Err(ApiError::field(&name, format!("{name} is {value}, expected {expected}")))
            }
            _ => self.wrong(field, &value, "a whole number"),
        }
    }

    /// A count.
    pub(crate) fn count(&mut self, field: &str, range: RangeInclusive<usize>) -> Answer<Option<usize>> {
        let range = *range.start() as i64..=i64::try_from(*range.end()).unwrap_or(i64::MAX);
        Ok(self.whole(field, range)?.map(|n| n as usize))
    }

    /// True or false.
    pub(crate) fn flag(&mut self, field: &str) -> Answer<Option<bool>> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => self.wrong(field, &other, "true or false"),
        }
    }

    /// A text.
    pub(crate) fn text(&mut self, field: &str) -> Answer<Option<String>> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => self.wrong(field, &other, "a string"),
        }
    }

    /// A list.
    pub(crate) fn list(&mut self, field: &str) -> Answer<Option<Vec<Value>>> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => self.wrong(field, &other, "a list"),
        }
    }

    /// An object.
    pub(crate) fn object(&mut self, field: &str) -> Answer<Option<Map<String, Value>>> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => self.wrong(field, &other, "an object"),
        }
    }

    /// Refuses fields that mean something which is not done here, unless they say what is done anyway.
    pub(crate) fn refuse(&mut self, fields: &[(&str, &[&str])]) -> Answer<()> {
        for (field, harmless) in fields {
            let Some(value) = self.take(field) else { continue };
            if !harmless.contains(&value.to_string().as_str()) {
                let name = self.name(field);
                return Err(ApiError::field(&name, format!("{name} is not supported here: leave it out")));
            }
        }
        Ok(())
    }

    /// Names that nobody asked for.
    pub(crate) fn unknown(&self) -> Vec<String> {
        self.map.keys().map(|name| short(name)).collect()
    }

    /// What was not taken.
    pub(crate) fn rest(self) -> Map<String, Value> {
        self.map
    }
}

/// A name of a client's as it is told.
pub(crate) fn short(name: &str) -> String {
    name.chars().take(40).collect()
}

/// What a value is, in words.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
