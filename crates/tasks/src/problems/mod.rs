//! The built-in tasks, one file each, and their registry.

mod arithmetic;
mod calendar;
pub(crate) mod countdown;
mod gcd;
mod sorting;
mod word;
mod word_templates;

use crate::{Error, Result, Task};

static TASKS: [&dyn Task; 6] = [
    &arithmetic::Arithmetic,
    &countdown::Countdown,
    &word::Word,
    &sorting::Sorting,
    &calendar::Calendar,
    &gcd::Gcd,
];

/// The task of this name; an unknown name's error names the nearest.
pub fn task(name: &str) -> Result<&'static dyn Task> {
    let found = TASKS.iter().find(|t| t.name() == name);
    found.copied().ok_or_else(|| Error::unknown("task", name, &task_names()))
}

/// All built-in tasks.
pub fn task_names() -> Vec<&'static str> {
    TASKS.iter().map(|t| t.name()).collect()
}

/// Numbers as prose: `6, 25 and 4`.
fn listed(numbers: &[i64]) -> String {
    let words: Vec<String> = numbers.iter().map(i64::to_string).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => words.concat(),
    }
}
