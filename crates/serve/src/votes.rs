//! The answer that most samples give, and how far they agree.

use serde_json::{Value, json};
use tasks::verify::Number;

use crate::openai::Choice;

/// What a vote found.
pub(crate) struct Vote {
    /// The first sample that gave the answer of most; none where no sample gave any.
    pub(crate) winner: Option<usize>,
    answer: Option<String>,
    /// Share of all samples that gave it.
    pub(crate) agreement: f64,
    samples: usize,
    answered: usize,
}

/// What a sample answers: what it marks, or stands between tags, else its last line that is not blank. Cut off, it answers nothing.
fn answer(choice: &Choice) -> Option<String> {
    if choice.finish == Some(crate::generation::Finish::Length) {
        return None;
    }
    let tagged = || tasks::answer_of(&format!("<think></think>{}", choice.text)).map(str::to_owned);
    let last = || choice.text.lines().rev().map(str::trim).find(|l| !l.is_empty()).map(str::to_owned);
    choice.answer.clone().or_else(tagged).or_else(last).filter(|a| !a.is_empty())
}

/// Whether two answers say the same: the same number, or the same words.
fn same(a: &str, b: &str) -> bool {
    match (Number::parse(a), Number::parse(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a.eq_ignore_ascii_case(b),
    }
}

/// Counts votes; of equally common answers the one given first wins.
pub(crate) fn count(choices: &[Choice]) -> Vote {
    let answers: Vec<Option<String>> = choices.iter().map(answer).collect();
    let mut best: Option<(usize, usize)> = None;
    for (i, given) in answers.iter().enumerate() {
        let Some(given) = given else { continue };
        let votes = answers.iter().flatten().filter(|other| same(given, other)).count();
        if best.is_none_or(|(_, most)| votes > most) {
            best = Some((i, votes));
        }
    }
    Vote {
        winner: best.map(|(i, _)| i),
        answer: best.and_then(|(i, _)| answers[i].clone()),
        agreement: best.map_or(0.0, |(_, votes)| votes as f64 / choices.len() as f64),
        samples: choices.len(),
        answered: answers.iter().flatten().count(),
    }
}

impl Vote {
    /// As it stands beside the message.
    pub(crate) fn to_json(&self, abstained: bool) -> Value {
        json!({
            "samples": self.samples,
            "answered": self.answered,
            "answer": self.answer,
            "agreement": self.agreement,
            "abstained": abstained,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Finish;

    fn choice(text: &str) -> Choice {
        Choice { text: text.to_owned(), finish: Some(Finish::Stop), ..Choice::default() }
    }

    #[test]
    fn most_samples_win_and_numbers_are_compared_as_numbers() {
        let texts =
            ["<answer>7</answer>", "so\n8", "<answer> 7.0 </answer>", "<answer>8</answer>", "It is:\n7", ""];
        let vote = count(&texts.map(choice));
        assert_eq!((vote.winner, vote.answered), (Some(0), 5));
        assert_eq!(vote.agreement, 0.5);
        assert_eq!(vote.to_json(false)["answer"], "7");
        let cut = Choice { finish: Some(Finish::Length), ..choice("7") };
        assert_eq!(count(&[cut, choice("")]).winner, None);
    }
}
