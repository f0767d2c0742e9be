//! Where the template engine is quietly otherwise than Jinja: tags are rewritten so that it is not, or fails with a reason.

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};

/// The filter around what a loop goes over.
const ITEMS: &str = "__items";

/// The filter around a sum with text of the filter `safe`.
const UNESCAPED: &str = "__unescaped";

/// Jinja's loops fail on `none`, and the engine's have no rounds; Jinja escapes what is added to text of the filter `safe`.
pub(super) fn install(env: &mut Environment<'_>) {
    env.add_filter(UNESCAPED, |sum: Value, safe: Vec<Value>| -> Result<Value, Error> {
        let rest = safe.iter().filter_map(Value::as_str).filter(|text| !text.is_empty());
        let rest = rest.fold(sum.to_string(), |rest, text| rest.replacen(text, "", 1));
        if rest.contains(['&', '<', '>', '\'', '"']) {
            let problem = "`+` adds text with &, <, >, ' or \" to text of the filter `safe`, for which Jinja would escape it";
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        Ok(sum)
    });
    env.add_filter(ITEMS, |value: Value| -> Result<Value, Error> {
        if value.is_none() {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "a loop goes over `none`, which has no items",
            ));
        }
        Ok(value)
    });
}

/// A word, a sign or a string of a tag, with its place.
struct Part<'a> {
    at: usize,
    text: &'a str,
    /// Brackets open around it.
    depth: usize,
}

fn parts(tag: &str) -> Vec<Part<'_>> {
    let bytes = tag.as_bytes();
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || !b.is_ascii();
    let (mut out, mut at, mut depth) = (Vec::new(), 0, 0usize);
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            quote @ (b'"' | b'\'') => at = string_end(bytes, at, quote) + 1,
            b if is_word(b) => at += bytes[at..].iter().take_while(|b| is_word(**b)).count(),
            b => {
                depth = match b {
                    b'(' | b'[' | b'{' => depth + 1,
                    b')' | b']' | b'}' => depth.saturating_sub(1),
                    _ => depth,
                };
                at += 1;
            }
        }
        out.push(Part { at: start, text: &tag[start..at], depth });
    }
    out.retain(|part| !part.text.trim().is_empty());
    out
}

/// The tag of a loop, `{% for x in items if condition %}`, with a check around its items.
pub(super) fn checked_loop(tag: &str) -> Option<String> {
    let parts = parts(tag);
    let first = |word: &str| parts.iter().find(|p| p.text == word && p.depth == 1).map(|p| p.at);
    let start = first("in")? + 2;
    // `a if b else c` are the items themselves.
    if first("recursive").is_some() || first("else").is_some() {
        return None;
    }
    let condition = first("if");
    let close = tag.len() - 2 - usize::from(tag.ends_with("-%}") || tag.ends_with("+%}"));
    let end = condition.unwrap_or(close);
    let items = tag.get(start..end)?.trim();
    Some(format!("{} ({items})|{ITEMS} {}", &tag[..start], &tag[end..]))
}

/// The names that hold text of the filter `safe`, which Jinja escapes other text for when the two are added with `+`; here they
/// are just added.
pub(super) fn safe_names(template: &str) -> Vec<String> {
    let mut names = Vec::new();
    for tag in template.split("{%").skip(1).filter_map(|rest| rest.split("%}").next()) {
        let parts = parts(tag);
        let begins = parts.iter().position(|p| p.text == "set");
        if let Some(name) = begins.and_then(|at| parts.get(at + 1))
            && uses_safe(&parts)
        {
            names.push(name.text.to_owned());
        }
    }
    names
}

fn uses_safe(parts: &[Part<'_>]) -> bool {
    parts.windows(2).any(|pair| pair[0].text == "|" && pair[1].text == "safe")
}

/// What becomes of a tag in which something may be added to text of the filter `safe`.
#[derive(Debug, PartialEq)]
pub(super) enum Sum {
    /// Nothing is.
    No,
    /// It shows the sum of such text, by name, and more: the tag with a check that there is nothing to escape in the rest.
    Checked(String),
    /// It cannot be followed.
    Refused,
}

/// Looks for sums with text of the filter `safe`, which `names` may hold.
pub(super) fn safe_sum(tag: &str, names: &[String]) -> Sum {
    // The signs at both ends say what becomes of white space.
    let Some(inner) = tag.get(2..tag.len().saturating_sub(2)) else { return Sum::No };
    let expression = inner.trim_matches(['-', '+']);
    let parts = parts(expression);
    let mut named: Vec<&str> =
        parts.iter().map(|p| p.text).filter(|p| names.iter().any(|n| n == p)).collect();
    let safe = uses_safe(&parts);
    if !parts.iter().any(|p| p.text == "+") || !safe && named.is_empty() {
        return Sum::No;
    }
    if safe || !tag.starts_with("{{") {
        return Sum::Refused;
    }
    named.dedup();
    let checked = format!(" ({expression})|{UNESCAPED}([{}]) ", named.join(", "));
    Sum::Checked(tag.replacen(expression, &checked, 1))
}

/// The position of the quote that closes a string, or the last byte.
pub(super) fn string_end(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at.min(bytes.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_checked_and_conditions_kept() {
        for (tag, want) in [
            ("{% for x in y %}", "{% for x in (y)|__items %}"),
            ("{%- for k, v in m.items() -%}", "{%- for k, v in (m.items())|__items -%}"),
            ("{% for m in ms if m.role != 'in if' %}", "{% for m in (ms)|__items if m.role != 'in if' %}"),
            ("{% for x in (a if b else c) %}", "{% for x in ((a if b else c))|__items %}"),
            ("{% for index in range(1, n) %}", "{% for index in (range(1, n))|__items %}"),
        ] {
            assert_eq!(checked_loop(tag).as_deref(), Some(want));
        }
        assert_eq!(checked_loop("{% for x in a if b else c %}"), None);
        assert_eq!(checked_loop("{% for x in tree recursive %}"), None);
    }

    #[test]
    fn sums_with_safe_text_are_seen() {
        let names = safe_names("{%- set a = b | tojson | safe if c else d %}{% set e = f %}");
        assert_eq!(names, ["a"]);
        for tag in ["{{ 'x'|safe + y }}", "{%- set z = a + 'x' -%}", "{{ y + (x | safe) }}"] {
            assert_eq!(safe_sum(tag, &names), Sum::Refused, "{tag}");
        }
        for tag in ["{{ 'x'|safe ~ y }}", "{{- e + 'a' -}}", "{{ a }}", "{{+ a +}}", "{{ 'a + b' | safe }}"] {
            assert_eq!(safe_sum(tag, &names), Sum::No, "{tag}");
        }
        let checked = "{{- ( y + a )|__unescaped([a]) -}}";
        assert_eq!(safe_sum("{{- y + a -}}", &names), Sum::Checked(checked.to_owned()));
    }
}
