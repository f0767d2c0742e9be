//! `tojson` as `transformers` gives it to templates: Python's `json.dumps` and its arguments.

use minijinja::value::{Kwargs, Value as Given};
use minijinja::{Error, ErrorKind, State};
use serde_json::Value;

/// The longest text that `tojson` writes, in bytes.
const MAX_JSON: usize = 4 << 20;

/// The filter: `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(state: &State, value: &Given, kwargs: Kwargs) -> Result<Given, Error> {
    let refuse = |problem: &str| Error::new(ErrorKind::InvalidOperation, format!("`tojson`: {problem}"));
    if value.is_undefined() {
        return Err(refuse("the value is undefined"));
    }
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    let indent: Option<Given> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let indent = match indent.filter(|i| !i.is_none()) {
        None => None,
        Some(i) => Some(match (i.as_str(), i.as_i64()) {
            (Some(text), _) if text.len() <= 16 => text.to_owned(),
            (None, Some(n)) if n <= 16 => " ".repeat(n.max(0) as usize),
            _ => return Err(refuse("`indent` is more than 16")),
        }),
    };
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([item, key]) if item.len() + key.len() <= 16 => (item.as_str(), key.as_str()),
        Some(_) => return Err(refuse("expected two short `separators`")),
    };
    let value =
        serde_json::to_value(value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let mut writer = Writer {
        out: String::new(),
        ascii: ensure_ascii == Some(true),
        sort: sort_keys == Some(true),
        indent: indent.as_deref(),
        item,
        key,
    };
    if !writer.value(&value, 0) {
        return Err(refuse("the text is longer than 4 MiB"));
    }
    state.consume_fuel(writer.out.len() as u64 / 4)?;
    Ok(Given::from(writer.out))
}

struct Writer<'a> {
    out: String,
    ascii: bool,
    sort: bool,
    indent: Option<&'a str>,
    item: &'a str,
    key: &'a str,
}

impl Writer<'_> {
    /// Says whether there was room.
    fn value(&mut self, value: &Value, depth: usize) -> bool {
        match value {
            Value::String(text) => self.string(text),
            Value::Number(n) => match n.as_f64().filter(|_| n.is_f64()) {
                Some(x) => self.out += &python_float(x),
                None => self.out += &n.to_string(),
            },
            Value::Array(items) => {
                let items = items.iter().map(|item| (None, item)).collect();
                return self.group("[", "]", items, depth);
            }
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().map(|(key, item)| (Some(key), item)).collect();
                if self.sort {
                    entries.sort_by_key(|(key, _)| *key);
                }
                return self.group("{", "}", entries, depth);
            }
            Value::Null => self.out += "null",
            Value::Bool(x) => self.out += if *x { "true" } else { "false" },
        }
        self.out.len() <= MAX_JSON
    }

    fn group(
        &mut self,
        open: &str,
        close: &str,
        entries: Vec<(Option<&String>, &Value)>,
        depth: usize,
    ) -> bool {
        self.out += open;
        let empty = entries.is_empty();
        for (i, (key, item)) in entries.into_iter().enumerate() {
            if i > 0 {
                self.out += self.item;
            }
            self.line(depth + 1);
            if let Some(key) = key {
                self.string(key);
                self.out += self.key;
            }
            if !self.value(item, depth + 1) {
                return false;
            }
        }
        if !empty {
            self.line(depth);
        }
        self.out += close;
        self.out.len() <= MAX_JSON
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent, depth));
        }
    }

    fn string(&mut self, text: &str) {
        let quoted = Value::from(text).to_string();
        if !self.ascii {
            self.out += &quoted;
            return;
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                self.out.push(c);
                continue;
            }
            for unit in c.encode_utf16(&mut [0; 2]) {
                self.out += &format!("\\u{unit:04x}");
            }
        }
    }
}

/// A float as Python's `repr` writes it: the shortest digits, an exponent below 1e-4 and from 1e16 on.
fn python_float(x: f64) -> String {
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let size: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&size) {
        let sign = if size < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", size.abs());
    }
    let plain = x.to_string();
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

#[cfg(test)]
mod tests {
    use super::python_float;

    #[test]
    fn floats_are_written_as_python_does() {
        for (x, want) in [
            (1.0, "1.0"),
            (-0.5, "-0.5"),
            (0.0, "0.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (0.0001, "0.0001"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (1e15, "1000000000000000.0"),
        ] {
            assert_eq!(python_float(x), want);
        }
    }
}
