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
            return line(&serde_json::to_string(value)?);
        }
        line(title)?;
        for (key, value) in value.as_object().into_iter().flatten() {
            line(&format!("  {key:<24} {}", show(value)))?;
        }
        Ok(())
    }

    /// The same, with the list under `rows` as a table.
    pub fn table(&self, title: &str, value: &Value, rows: &str) -> Result<()> {
        if self.json {
            return line(&serde_json::to_string(value)?);
        }
        line(title)?;
        for row in value[rows].as_array().into_iter().flatten() {
            let cells: Vec<String> =
                row.as_object().into_iter().flatten().map(|(k, v)| format!("{k} {:>8}", show(v))).collect();
            line(&format!("  {}", cells.join("  ")))?;
        }
        Ok(())
    }
}

/// A value as one line of JSON; 32-bit floats as the shortest decimals that read back to them.
pub fn json_line(value: &impl serde::Serialize) -> Result<()> {
    line(&serde_json::to_string(value)?)
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

/// Writes a line to stdout. A reader that has gone away ends the program quietly.
pub fn line(text: &str) -> Result<()> {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Writes a line to stderr. It speaks beside the work: where nobody listens, the work goes on.
pub fn tell(text: &str) {
    tell_part(&format!("{text}\n"));
}

/// Writes to stderr without ending the line.
pub fn tell_part(text: &str) {
    use std::io::Write;
    let mut stderr = std::io::stderr().lock();
    // Nothing is left to tell it to.
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

fn show(value: &Value) -> String {
    match value {
        Value::Number(n) if n.is_f64() => {
            let x = n.as_f64().unwrap_or(f64::NAN);
            if x.abs() >= 1e5 {
                format!("{x:.3e}")
            } else if x.abs() >= 100.0 {
                format!("{x:.1}")
            } else {
                format!("{x:.4}")
            }
        }
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// The most memory that this process has held, in bytes (0 where the system does not say).
pub fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}
