//! What a `tokenizer.json` may ask of the library, which takes it at its word: checked before the library sees it.

use serde::Deserialize;
use serde_json::Value;

/// How many times longer a text may become before it is cut into tokens. Published tokenizers stay below ten.
const MAX_GROWTH: f64 = 4096.0;
/// The product of all numbers of repetitions in a regular expression. Published ones have `{1,3}`; the library's limit on
/// backtracking does not count repetitions of nothing.
const MAX_REPETITIONS: f64 = 10_000.0;

/// The steps of a tokenizer around its model.
#[derive(Deserialize)]
pub(super) struct Steps {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

/// Refuses what would take memory or time without bound.
///
/// # Errors
/// What is too much, in words.
pub(super) fn check(steps: &Steps) -> Result<(), String> {
    let growth = growth(&steps.normalizer) * growth(&steps.decoder);
    if growth > MAX_GROWTH {
        return Err(format!(
            "its normalizer or decoder may make a text {growth:.0} times longer, expected at most {MAX_GROWTH}"
        ));
    }
    [&steps.normalizer, &steps.pre_tokenizer, &steps.decoder].into_iter().try_for_each(parts)
}

/// How many times longer the steps under a value may make a text, one after the other.
fn growth(step: &Value) -> f64 {
    let own = match (step["content"].as_str(), &step["pattern"]) {
        (Some(content), Value::Object(pattern)) => match pattern.get("String").and_then(Value::as_str) {
            Some(text) => content.len() as f64 / text.len().max(1) as f64,
            // An expression may match nothing, between any two letters.
            None => 1.0 + content.len() as f64,
        },
        _ => 1.0,
    };
    let inner = ["normalizers", "decoders"].iter().filter_map(|key| step[*key].as_array()).flatten();
    inner.fold(own.max(1.0), |product, step| product * growth(step))
}

/// Checks every part under a value for itself.
fn parts(value: &Value) -> Result<(), String> {
    match value {
        Value::Array(items) => items.iter().try_for_each(parts),
        Value::Object(map) => {
            if let Some(pattern) = map.get("Regex").and_then(Value::as_str) {
                repetitions(pattern)?;
            }
            if let Some(map) = map.get("precompiled_charsmap").and_then(Value::as_str) {
                charsmap(map)?;
            }
            map.values().try_for_each(parts)
        }
        _ => Ok(()),
    }
}

fn repetitions(pattern: &str) -> Result<(), String> {
    let mut product = 1.0;
    for part in pattern.split('{').skip(1) {
        let inside = part.split('}').next().unwrap_or_default();
        let numbers = inside.split(',').filter_map(|n| n.trim().parse::<f64>().ok());
        product *= numbers.fold(1.0, f64::max);
    }
    if product > MAX_REPETITIONS {
        return Err(format!(
            "a regular expression repeats {product:.0} times, expected at most {MAX_REPETITIONS}"
        ));
    }
    Ok(())
}

/// The map begins with the length of its first part, for which the library asks memory unseen.
fn charsmap(base64: &str) -> Result<(), String> {
    let digit = |b: u8| match b {
        b'A'..=b'Z' => Some(u64::from(b - b'A')),
        b'a'..=b'z' => Some(u64::from(b - b'a') + 26),
        b'0'..=b'9' => Some(u64::from(b - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let broken = || "its precompiled_charsmap is cut short or no base64".to_owned();
    let head = base64.as_bytes().get(..6).ok_or_else(broken)?;
    let bits = head.iter().try_fold(0u64, |bits, &b| Some(bits << 6 | digit(b)?)).ok_or_else(broken)?;
    // Six digits are 36 bits, of which the first 32 are the number.
    let length = u64::from(((bits >> 4) as u32).swap_bytes());
    let held = base64.len() as u64 / 4 * 3;
    if length + 4 > held || !length.is_multiple_of(4) {
        return Err(format!("its precompiled_charsmap claims {length} bytes, but holds {held} in all"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    fn check(tokenizer: &Value) -> Result<(), String> {
        super::check(&serde_json::from_value(tokenizer.clone()).unwrap())
    }

    #[test]
    fn what_takes_the_library_too_far_is_refused() {
        let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let double = replace(json!({"String": "a"}), "aa");
        let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "normalizers": steps});
        let regex =
            |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"});
        let map = |base64: &str| json!({"type": "Precompiled", "precompiled_charsmap": base64});
        for (part, value, want) in [
            ("normalizer", sequence(vec![double.clone(); 40]), "times longer"),
            ("normalizer", sequence(vec![replace(json!({"Regex": ""}), "0123456789"); 9]), "times longer"),
            ("pre_tokenizer", regex("(?:(?:x{100000}){100000})"), "repeats 10000000000 times"),
            ("decoder", json!({"decoders": [replace(json!({"Regex": "(a{1,999}){999,}"}), "")]}), "repeats"),
            ("normalizer", map("////fw=="), "claims 2147483647 bytes"),
            ("normalizer", map("AA"), "cut short"),
            ("normalizer", map("!!!!!!!!"), "no base64"),
        ] {
            let error = check(&json!({part: value})).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
        for (part, value) in [
            ("normalizer", sequence(vec![double; 3])),
            ("normalizer", replace(json!({"String": " "}), "▁")),
            ("normalizer", map("BAAAAAAAAAA=")),
            ("pre_tokenizer", regex(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| {2,}")),
            ("decoder", Value::Null),
        ] {
            assert_eq!(check(&json!({part: value})), Ok(()));
        }
    }
}
