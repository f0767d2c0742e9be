//! The form of a completion: `<think>reasoning</think><answer>ANSWER</answer>`, and nothing else.

use super::{Verdict, Verifier};
use crate::Problem;

const TAGS: [&str; 4] = ["<think>", "</think>", "<answer>", "</answer>"];

/// Scores the form alone.
pub struct Format;

impl Verifier for Format {
    fn score(&self, _problem: &Problem, completion: &str) -> Verdict {
        if format_score(completion) == 1.0 {
            Verdict::right()
        } else {
            Verdict::wrong("not of the form <think>…</think><answer>…</answer>")
        }
    }
}

/// The only place where `tag` stands, if there is just one.
fn only(text: &str, tag: &str) -> Option<usize> {
    let at = text.find(tag)?;
    (text.rfind(tag) == Some(at)).then_some(at)
}

/// 1 for both tags once, in order, with a non-empty answer, and only blanks before, between and after; else 0.
pub fn format_score(completion: &str) -> f32 {
    let text = completion.trim();
    let places: Option<Vec<usize>> = TAGS.iter().map(|tag| only(text, tag)).collect();
    let Some([think, think_end, answer, answer_end]) = places.as_deref() else { return 0.0 };
    let in_order = *think == 0 && think_end < answer && answer < answer_end;
    if !in_order {
        return 0.0;
    }
    let between = &text[think_end + TAGS[1].len()..*answer];
    let after = &text[answer_end + TAGS[3].len()..];
    let inside = &text[answer + TAGS[2].len()..*answer_end];
    let fine = between.trim().is_empty() && after.is_empty() && !inside.trim().is_empty();
    f32::from(u8::from(fine))
}

/// The trimmed text of the one `<answer>…</answer>` after the one `</think>`. `None` when a tag is missing,
/// repeated or out of order: a model that gives two answers has given none. The opening `<think>` may be
/// absent, since some chat templates put it into the prompt.
pub fn answer_of(completion: &str) -> Option<&str> {
    let think_end = only(completion, TAGS[1])?;
    let answer = only(completion, TAGS[2])?;
    let answer_end = only(completion, TAGS[3])?;
    let think_fine = match completion.find(TAGS[0]) {
        Some(think) => only(completion, TAGS[0]).is_some() && think < think_end,
        None => true,
    };
    let start = answer + TAGS[2].len();
    (think_fine && think_end < answer && start <= answer_end).then(|| completion[start..answer_end].trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_answer_is_found() {
        assert_eq!(answer_of("<think>a</think><answer> 42 </answer>"), Some("42"));
        assert_eq!(answer_of("a</think>\n<answer>42</answer> bye"), Some("42"));
        assert_eq!(answer_of("<think></think><answer></answer>"), Some(""));
    }

    #[test]
    fn anything_else_is_no_answer() {
        for text in [
            "",
            "42",
            "<answer>42</answer>",
            "<think><answer>42</answer></think>",
            "<think></think><answer>1</answer><answer>2</answer>",
            "<think><answer>1</answer></think><answer>2</answer>",
            "<think></think><answer><answer>2</answer></answer>",
            "<think></think><answer>2",
            "<think></think></answer>2<answer>",
            "<think></think></think><answer>2</answer>",
            "<think><think></think><answer>2</answer>",
            "</think><think><answer>2</answer>",
        ] {
            assert_eq!(answer_of(text), None, "{text}");
            assert_eq!(format_score(text), 0.0, "{text}");
        }
    }

    #[test]
    fn format_wants_nothing_around_the_tags() {
        assert_eq!(format_score(" <think>x</think>\n<answer>4</answer>\n"), 1.0);
        for text in [
            "x<think></think><answer>4</answer>",
            "<think></think>x<answer>4</answer>",
            "<think></think><answer>4</answer>x",
            "<think></think><answer> </answer>",
            "</think><answer>4</answer>",
        ] {
            assert_eq!(format_score(text), 0.0, "{text}");
        }
    }
}
