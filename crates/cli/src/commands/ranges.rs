//! Numbers on the command line, refused outside of their range.

/// A whole number of at least one.
pub fn count(text: &str) -> Result<usize, String> {
    let n: usize = text.parse().map_err(|_| "expected a whole number of at least 1".to_owned())?;
    if n == 0 { Err("must be at least 1".into()) } else { Ok(n) }
}

/// A temperature.
pub fn temperature(text: &str) -> Result<f32, String> {
    within(text, 0.0, 100.0)
}

/// A nucleus: above 0, at most 1.
pub fn top_p(text: &str) -> Result<f32, String> {
    within(text, 1e-6, 1.0)
}

/// A share from 0 to 1.
pub fn share(text: &str) -> Result<f32, String> {
    within(text, 0.0, 1.0)
}

/// Seconds, above 0.
pub fn seconds(text: &str) -> Result<f32, String> {
    within(text, 0.001, 86_400.0)
}

fn within(text: &str, low: f32, high: f32) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if (low..=high).contains(&x) => Ok(x),
        _ => Err(format!("expected a number from {low} to {high}")),
    }
}
