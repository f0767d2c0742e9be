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

/// A completion in its parts, as they stand, where it has the one `</think>` and behind it the one answer.
struct Parts<'a> {
    thought: &'a str,
    between: &'a str,
    answer: &'a str,
    after: &'a str,
}

impl<'a> Parts<'a> {
    /// Tags of the answer inside of the thought are words of the thought: a model may think about the form.
    fn of(completion: &'a str) -> Option<Parts<'a>> {
        let (thought, rest) = completion.split_at(only(completion, TAGS[1])?);
        let rest = &rest[TAGS[1].len()..];
        let (start, end) = (only(rest, TAGS[2])?, only(rest, TAGS[3])?);
        let answer = rest.get(start + TAGS[2].len()..end)?;
        let (between, after) = (&rest[..start], &rest[end + TAGS[3].len()..]);
        (!rest.contains(TAGS[0])).then_some(Parts { thought, between, answer, after })
    }
}

/// 1 for a thought in its tags and an answer in its own behind it, not empty, and only blanks before, between and after;
/// else 0.
pub fn format_score(completion: &str) -> f32 {
    let Some(parts) = Parts::of(completion.trim()) else { return 0.0 };
    let opened = only(parts.thought, TAGS[0]) == Some(0);
    let blank = [parts.between, parts.after].iter().all(|text| text.trim().is_empty());
    f32::from(u8::from(opened && blank && !parts.answer.trim().is_empty()))
}

/// The trimmed text of the one `<answer>…</answer>` after the one `</think>`. `None` when a tag is missing,
/// repeated or out of order: a model that gives two answers has given none. The opening `<think>` may be
/// absent, since some chat templates put it into the prompt.
pub fn answer_of(completion: &str) -> Option<&str> {
    let parts = Parts::of(completion)?;
    let think_fine = !parts.thought.contains(TAGS[0]) || only(parts.thought, TAGS[0]).is_some();
    think_fine.then(|| parts.answer.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_answer_is_found() {
        assert_eq!(answer_of("<think>a</think><answer> 42 </answer>"), Some("42"));
        assert_eq!(answer_of("a</think>\n<answer>42</answer> bye"), Some("42"));
        assert_eq!(answer_of("<think></think><answer></answer>"), Some(""));
        // A thought may be about the form.
        let thought =
            "<think>It goes between <answer> and </answer>, as <answer>1</answer>.</think><answer>2</answer>";
        assert_eq!((answer_of(thought), format_score(thought)), (Some("2"), 1.0));
    }

    #[test]
    fn anything_else_is_no_answer() {
        for text in [
            "",
            "42",
            "<answer>42</answer>",
            "<think><answer>42</answer></think>",
            "<think></think><answer>1</answer><answer>2</answer>",
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
