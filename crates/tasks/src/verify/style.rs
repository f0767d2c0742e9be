//! How an answer is written, whatever it says: its length, its script. For rewards beside the verifier's.

use regex::Regex;

use super::{Verdict, Verifier};
use crate::{Error, Problem, Result};

/// Answers of so many words or fewer score 1, from there on less, and from twice as many on nothing.
pub struct MostWords(pub usize);

impl Verifier for MostWords {
    fn score(&self, _: &Problem, completion: &str) -> Verdict {
        let words = completion.split_whitespace().count();
        let over = words.saturating_sub(self.0) as f32 / self.0.max(1) as f32;
        Verdict {
            score: (1.0 - over).max(0.0),
            reason: format!("{words} words, where {} are wanted", self.0),
        }
    }
}

/// The share of letters that are of one script: of a language that has one to itself, or of those that share it.
pub struct Script {
    name: String,
    letters: Regex,
    of_it: Regex,
}

impl Script {
    /// A script by its name in Unicode: `Latin`, `Cyrillic`, `Greek`, `Arabic`, `Hebrew`, `Han`, `Hangul`, …
    ///
    /// # Errors
    /// A name that Unicode does not know.
    pub fn new(name: &str) -> Result<Script> {
        let plain = name.chars().all(|c| c.is_ascii_alphabetic() || c == '_');
        let of_it = plain.then(|| Regex::new(&format!(r"\p{{Script={name}}}")).ok()).flatten();
        let known = ["Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Han", "Hangul"];
        Ok(Script {
            name: name.to_owned(),
            letters: Regex::new(r"\p{L}").expect("a pattern"),
            of_it: of_it.ok_or_else(|| Error::unknown("script", name, &known))?,
        })
    }
}

impl Verifier for Script {
    fn score(&self, _: &Problem, completion: &str) -> Verdict {
        let letters: String = self.letters.find_iter(completion).map(|m| m.as_str()).collect();
        let all = letters.chars().count().max(1);
        let share = self.of_it.find_iter(&letters).count() as f32 / all as f32;
        Verdict { score: share, reason: format!("{:.0} % of the letters are {}", 100.0 * share, self.name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_and_script_are_measured() {
        let problem: Problem = serde_json::from_str(r#"{"prompt": "p", "answer": ""}"#).expect("a problem");
        let words = |n: usize| MostWords(10).score(&problem, &"w ".repeat(n)).score;
        assert_eq!([words(0), words(10), words(15), words(20), words(99)], [1.0, 1.0, 0.5, 0.0, 0.0]);
        let latin = Script::new("Latin").expect("a script");
        let share = |text: &str| latin.score(&problem, text).score;
        assert_eq!([share("so, 42"), share("да so"), share("42 !"), share("是")], [1.0, 0.5, 0.0, 0.0]);
        for wrong in ["Latn ", "}", "", "Klingon"] {
            assert!(Script::new(wrong).is_err(), "{wrong}");
        }
    }
}
