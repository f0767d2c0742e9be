//! Numbers on the command line, refused outside of their range.

/// More than anyone wants of anything that is counted on a command line, and little enough to be held.
const MOST: usize = 1_000_000;

/// A whole number from one to a million.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if (1..=MOST).contains(&n) => Ok(n),
        _ => Err(format!("expected a whole number from 1 to {MOST}")),
    }
}

/// A token id, with or without blanks around it.
pub fn token_id(text: &str) -> Result<u32, String> {
    text.trim().parse().map_err(|_| "expected token ids such as 1,2,3".to_owned())
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

/// A penalty of repetition; 1 is none.
pub fn penalty(text: &str) -> Result<f32, String> {
    within(text, 0.001, 100.0)
}

/// Seconds, above 0.
pub fn seconds(text: &str) -> Result<f32, String> {
    within(text, 0.001, 86_400.0)
}

/// Minutes, above 0.
pub fn minutes(text: &str) -> Result<f32, String> {
    within(text, 0.001, 100_000.0)
}

/// A size of memory in GiB.
pub fn gib(text: &str) -> Result<f32, String> {
    within(text, 0.001, 4096.0)
}

fn within(text: &str, low: f32, high: f32) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if (low..=high).contains(&x) => Ok(x),
        _ => Err(format!("expected a number from {low} to {high}")),
    }
}
