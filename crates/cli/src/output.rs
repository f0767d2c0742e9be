//! What commands print: one JSON object, or lines for a person.

use anyhow::Result;
use serde_json::Value;

/// The chosen form.
pub struct Output {
    json: bool,
}

impl Output {
    /// JSON or lines.
    pub fn new(json: bool) -> Output {
        Output { json }
    }

    /// A flat object: `key  value` lines under a title.
    pub fn object(&self, title: &str, value: &Value) -> Result<()> {
        if self.json {
            return json_line(value);
        }
        line(title)?;
        for (key, value) in value.as_object().into_iter().flatten() {
            line(&format!("  {key:<24} {}", show(key, value)))?;
        }
        Ok(())
    }

    /// The same, with the list under `rows` as a table.
    pub fn table(&self, title: &str, value: &Value, rows: &str) -> Result<()> {
        if self.json {
            return json_line(value);
        }
        line(title)?;
        for row in value[rows].as_array().into_iter().flatten() {
            let cells: Vec<String> = row
                .as_object()
                .into_iter()
                .flatten()
                .map(|(k, v)| format!("{k} {:>8}", show(k, v)))
                .collect();
            line(&format!("  {}", cells.join("  ")))?;
        }
        Ok(())
    }
}

/// Whether to colour what goes to a terminal: unless the reader wants none (no-color.org).
pub fn colours(is_terminal: bool) -> bool {
    is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A path as one word of a shell's command.
pub fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@,".contains(c);
    if !path.is_empty() && path.chars().all(plain) {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

/// A value as one line of JSON; 32-bit floats as the shortest decimals that read back to them.
pub fn json_line(value: &impl serde::Serialize) -> Result<()> {
    write_line(&serde_json::to_string(value)?)
}

/// A text as it may be shown to a person: what would steer the terminal or turn the order of letters is replaced. Texts of
/// models, templates, problems and other programs are shown, and none of them is trusted.
pub fn harmless(text: &str) -> String {
    let steers = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
    };
    text.chars().map(|c| if steers(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// An error as one sentence: each cause once, though many of our errors already state theirs.
pub fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(|c| c.to_string()) {
        if text.is_empty() || cause.contains(&text) {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Writes a line for a person to stdout, made [`harmless`].
pub fn line(text: &str) -> Result<()> {
    write_line(&harmless(text))
}

/// Writes a line to stdout. A reader that has gone away ends the program quietly.
fn write_line(text: &str) -> Result<()> {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Writes a line to stderr, made [`harmless`]. It speaks beside the work: where nobody listens, the work goes on.
pub fn tell(text: &str) {
    tell_part(&format!("{}\n", harmless(text)));
}

/// Writes to stderr as it stands, without ending the line.
pub fn tell_part(text: &str) {
    use std::io::Write;
    let mut stderr = std::io::stderr().lock();
    // Nothing is left to tell it to.
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// A value for people: bytes, shares and rates in their usual units.
fn show(key: &str, value: &Value) -> String {
    let Some(x) = value.as_f64() else {
        return value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    };
    match key {
        _ if key.ends_with("_bytes") => format!("{:.1} MiB", x / f64::from(1 << 20)),
        _ if key.ends_with("_share") => format!("{:.1} %", 100.0 * x),
        "operations_per_second" => format!("{:.1} GFLOP/s", 1e-9 * x),
        _ if !value.is_f64() => value.to_string(),
        _ if x.abs() >= 100.0 => format!("{x:.1}"),
        _ => format!("{x:.4}"),
    }
}

/// The most memory that this process has held, in bytes (0 where the system does not say).
pub fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn what_steers_a_terminal_is_replaced() {
        let evil = "a\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}2J\r\u{202e}b\n\tc ü 日本";
        let shown = harmless(evil);
        assert_eq!(shown, "a\u{fffd}]0;title\u{fffd}\u{fffd}[2J\u{fffd}2J\u{fffd}\u{fffd}b\n\tc ü 日本");
    }
}
