//! What the template engine's fuel does not bound, bounded before and while a template runs.
//!
//! The engine charges fuel for instructions and for the data they create, but a list that holds another list
//! twice costs as much as one that holds it once: sixty rounds of `x = [x, x]` cost nothing and print 2^60 items.
//! Such growth needs names, so every value that gets a name (`set`, `for`, macro parameters) passes a check of its
//! *written-out* size and depth, put behind the tag by [`instrument`]. What is left in a single expression is
//! bounded by the length of the template times that size; the few operations that could still multiply sizes
//! inside of an expression, which chat templates do not use, are refused or taken away.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::jinja::{self, string_end};

/// The written-out size that a named value may have besides what the messages explain, in items and 16-byte units.
pub(super) const BASE_WEIGHT: u64 = 4_096;

/// How deeply a named value may nest.
const MAX_DEPTH: usize = 32;

/// Words and signs that one tag may have outside of strings: a chain of them becomes as deep a tree, on which the engine's
/// compiler calls itself. Published templates have some two hundred.
const MAX_PARTS: usize = 2000;
/// How deeply blocks may nest, and how many `elif` there may be, for the same reason.
const MAX_BLOCKS: usize = 64;
const MAX_BRANCHES: usize = 500;

const CHECK: &str = "__bounded";
/// A name that no template can write.
const PLAIN_MAP: &str = "map without limits";

/// Puts a check behind every tag that names values, and refuses what cannot be bounded.
pub(super) fn instrument(template: &str) -> std::result::Result<String, String> {
    let mut out = String::with_capacity(template.len() + template.len() / 4);
    let mut rest = template;
    let safe = jinja::safe_names(template);
    let (mut depth, mut branches) = (0usize, 0usize);
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let length = match rest.as_bytes().get(1) {
            Some(b'#') => rest.find("#}").map_or(rest.len(), |at| at + 2),
            Some(b'{') => code_length(rest, "}}"),
            Some(b'%') => code_length(rest, "%}"),
            _ => 1,
        };
        let (tag, after) = rest.split_at(length);
        rest = after;
        if !tag.starts_with("{%") && !tag.starts_with("{{") {
            out.push_str(tag);
            continue;
        }
        refuse_products(tag)?;
        refuse_long(tag)?;
        match jinja::safe_sum(tag, &safe) {
            jinja::Sum::No => {}
            jinja::Sum::Checked(tag) => {
                out.push_str(&tag);
                continue;
            }
            jinja::Sum::Refused => {
                return Err(format!(
                    "`{}` adds to text of the filter `safe` with `+`, for which Jinja would escape the rest as HTML: expected `~`",
                    tag.chars().take(60).collect::<String>()
                ));
            }
        }
        let Some(inner) = tag.strip_prefix("{%").and_then(|t| t.strip_suffix("%}")) else {
            out.push_str(tag);
            continue;
        };
        // A tag put behind another ends in the same way, so that white space is treated as before.
        let end = match inner.chars().last() {
            Some('-') => "-%}",
            Some('+') => "+%}",
            _ => "%}",
        };
        let inner = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let (word, arguments) =
            inner.split_at(inner.find(|c: char| !c.is_alphanumeric()).unwrap_or(inner.len()));
        match word {
            "if" | "for" | "macro" => depth += 1,
            _ if word.starts_with("end") => depth = depth.saturating_sub(1),
            "elif" => branches += 1,
            _ => {}
        }
        if depth > MAX_BLOCKS || branches > MAX_BRANCHES {
            return Err(format!(
                "it nests blocks more than {MAX_BLOCKS} deep or has more than {MAX_BRANCHES} `elif`"
            ));
        }
        match word {
            "with" | "call" => return Err(format!("it uses `{word}`, which chat templates may not")),
            // `transformers` marks assistant turns with these blocks, which change nothing in the output.
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            "raw" => {
                out.push_str(tag);
                let close = rest.find("endraw").unwrap_or(rest.len());
                out.push_str(&rest[..close]);
                rest = &rest[close..];
            }
            _ => {
                let checked = if word == "for" { jinja::checked_loop(tag) } else { None };
                out.push_str(checked.as_deref().unwrap_or(tag));
                for name in names_bound(word, arguments) {
                    out.push_str(&format!("{{% set {name} = {name}|{CHECK} {end}"));
                }
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Registers the check and takes away filters that multiply sizes.
pub(super) fn install(env: &mut Environment<'_>, max_weight: u64) {
    env.add_filter(CHECK, move |state: &State, value: Value| -> std::result::Result<Value, Error> {
        let mut weight = 0;
        let walked = weigh(&value, 0, max_weight, &mut weight);
        state.consume_fuel(weight / 4)?;
        walked.map(|()| value)
    });
    for filter in ["batch", "slice", "groupby", "chain", "zip", "sum"] {
        env.remove_filter(filter);
    }
    env.remove_global("debug");
    jinja::install(env);
    env.add_filter(PLAIN_MAP, minijinja::filters::map);
    env.add_filter("map", |state: &mut State, value: Value, args: Rest<Value>, kwargs: Kwargs| {
        let multiplies = |a: &Value| matches!(a.as_str(), Some("default" | "d" | "map"));
        if args.iter().any(multiplies) || kwargs.has("default") {
            let problem = "`map` may not use `default` or `map` in a chat template";
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        let mut all = vec![value];
        all.extend(args.iter().cloned());
        all.push(Value::from(kwargs));
        state.apply_filter(PLAIN_MAP, &all)
    });
}

/// Adds up the written-out size of a value and stops where it is too large or too deep.
fn weigh(value: &Value, depth: usize, max: u64, weight: &mut u64) -> std::result::Result<(), Error> {
    *weight += 1 + value.as_str().map_or(0, |s| s.len() as u64 / 16);
    let problem = |text: String| Err(Error::new(ErrorKind::InvalidOperation, text));
    if *weight > max {
        return problem(format!("a value of the template is too large (more than {max} items)"));
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Ok(());
    }
    if depth == MAX_DEPTH {
        return problem(format!(
            "a value of the template is nested too deeply (more than {MAX_DEPTH} levels)"
        ));
    }
    let Ok(items) = value.try_iter() else { return Ok(()) };
    let is_map = value.kind() == ValueKind::Map;
    for item in items {
        if is_map && let Ok(entry) = value.get_item(&item) {
            weigh(&entry, depth + 1, max, weight)?;
        }
        weigh(&item, depth + 1, max, weight)?;
    }
    Ok(())
}

/// The length of a tag through its closing mark, past strings and brackets.
fn code_length(tag: &str, close: &str) -> usize {
    let bytes = tag.as_bytes();
    let mut at = 2;
    let mut open = 0usize;
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => at = string_end(bytes, at, quote),
            b'}' if close == "}}" && open == 0 && bytes.get(at + 1) == Some(&b'}') => return at + 2,
            b'%' if close == "%}" && bytes.get(at + 1) == Some(&b'}') => return at + 2,
            b'{' | b'(' | b'[' => open += 1,
            b'}' | b')' | b']' => open = open.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

/// Refuses a tag of more parts than the compiler can go down.
fn refuse_long(tag: &str) -> std::result::Result<(), String> {
    let bytes = tag.as_bytes();
    let (mut at, mut parts, mut in_word) = (2, 0, false);
    while at < bytes.len() {
        let is_word = bytes[at].is_ascii_alphanumeric() || bytes[at] == b'_' || !bytes[at].is_ascii();
        if matches!(bytes[at], b'"' | b'\'') {
            at = string_end(bytes, at, bytes[at]);
        }
        let blank = bytes[at].is_ascii_whitespace();
        parts += usize::from(!(blank || is_word && in_word));
        in_word = is_word;
        at += 1;
    }
    if parts > MAX_PARTS {
        return Err(format!("one of its tags has {parts} words and signs, expected at most {MAX_PARTS}"));
    }
    Ok(())
}

/// Refuses `*` between anything but a string literal or two numbers: it repeats lists, which cost no fuel.
fn refuse_products(tag: &str) -> std::result::Result<(), String> {
    let bytes = tag.as_bytes();
    let mut at = 2;
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => at = string_end(bytes, at, quote),
            b'*' if bytes.get(at + 1) == Some(&b'*') => at += 1,
            b'*' => {
                let before = tag[..at].trim_end().bytes().last().unwrap_or(b' ');
                let after = tag[at + 1..].trim_start().bytes().next().unwrap_or(b' ');
                let quoted = [before, after].iter().any(|b| matches!(b, b'"' | b'\''));
                let numbers = before.is_ascii_digit() && after.is_ascii_digit();
                if !(quoted || numbers) {
                    return Err(format!(
                        "it multiplies in `{}`, expected a string literal beside each `*`",
                        tag.chars().take(60).collect::<String>()
                    ));
                }
            }
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// The names to which a tag gives values: `set a, b = …`, `set ns.a = …`, `for k, v in …`, `macro f(a, b=1)`.
fn names_bound<'a>(word: &str, arguments: &'a str) -> Vec<&'a str> {
    let list = match word {
        "set" => arguments.split_once('=').map_or("", |(names, _)| names),
        "for" => {
            let end = arguments
                .match_indices("in")
                .find(|(at, _)| {
                    let around = |b: Option<u8>| b.is_none_or(|b| !(b.is_ascii_alphanumeric() || b == b'_'));
                    around(arguments[..*at].bytes().last())
                        && around(arguments.as_bytes().get(at + 2).copied())
                })
                .map_or(0, |(at, _)| at);
            &arguments[..end]
        }
        "macro" => {
            let open = arguments.find('(').map_or(arguments.len(), |at| at + 1);
            return parameters(&arguments[open..]);
        }
        _ => "",
    };
    let is_name =
        |n: &&str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
    list.split([',', '(', ')']).map(str::trim).filter(is_name).collect()
}

/// The names in a macro's parameter list, without their defaults.
fn parameters(list: &str) -> Vec<&str> {
    let bytes = list.as_bytes();
    let mut names = Vec::new();
    let (mut at, mut start, mut open) = (0, 0, 0usize);
    let name = |part: &'_ std::ops::Range<usize>| {
        let text = &list[part.clone()];
        text.split('=').next().unwrap_or_default().trim()
    };
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => at = string_end(bytes, at, quote),
            b'(' | b'[' | b'{' => open += 1,
            b')' if open == 0 => break,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            b',' if open == 0 => {
                names.push(name(&(start..at)));
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    names.push(name(&(start..at.min(list.len()))));
    names.retain(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
    names
}
