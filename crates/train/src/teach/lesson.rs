//! What a table teaches: its columns, its usable rows, and what scores an answer.

use std::collections::HashSet;

use data::Table;
use tasks::verify::Number;
use tasks::{AnswerPlace, Problem};

use super::TeachError;

/// Names by which a column is known, the likeliest first.
const QUESTION: [&str; 9] =
    ["question", "prompt", "problem", "input", "instruction", "query", "task", "text", "q"];
const ANSWER: [&str; 10] =
    ["answer", "expected", "expected_answer", "output", "target", "result", "label", "response", "gold", "a"];
const SOLUTION: [&str; 8] =
    ["solution", "worked_solution", "explanation", "rationale", "reasoning", "steps", "work", "cot"];

/// Fewer usable rows than this leave nothing to learn from beside what is held out.
pub const FEWEST_ROWS: usize = 20;
/// The longest question, answer or solution that is taken, in bytes.
const LONGEST: usize = 64 << 10;
/// Problems that a model is tried on.
const TRIED: usize = 16;
/// Letters of a choice.
const CHOICES: std::ops::RangeInclusive<char> = 'A'..='E';

/// Which columns hold what, where the table's own names do not tell.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    /// The question's.
    pub question: Option<String>,
    /// The answer's.
    pub answer: Option<String>,
    /// That of worked solutions.
    pub solution: Option<String>,
}

/// A table as it was understood.
#[derive(Clone, Debug)]
pub struct Lesson {
    /// The columns' names: question, answer and, if there is one, solution.
    pub columns: (String, String, Option<String>),
    /// The rows that can be used, as problems.
    pub problems: Vec<Problem>,
    /// Their numbers in the table.
    pub numbers: Vec<u64>,
    /// Of these, how many have a worked solution.
    pub solved: usize,
    /// Rows that were left out, with the reason.
    pub left_out: Vec<(u64, &'static str)>,
    /// What scores an answer.
    pub verifier: &'static str,
    /// Why.
    pub why: String,
    /// Where a model may be asked to put the answer, the likeliest first.
    pub places: Vec<AnswerPlace>,
}

impl Lesson {
    /// The likeliest place for an answer of who is taught: where there is work to learn from, one with room for it.
    pub fn taught_place(&self) -> &AnswerPlace {
        let fits = |place: &&AnswerPlace| self.solved == 0 || !matches!(place, AnswerPlace::Whole);
        self.places.iter().find(fits).unwrap_or(&self.places[0])
    }

    /// The reasons for which rows were left out, how many rows, and the number of the first of them.
    pub fn left_out_by_reason(&self) -> impl Iterator<Item = (&'static str, usize, u64)> {
        counted(&self.left_out)
    }

    /// The problems that a model is tried on, from all over the table.
    pub fn tried(&self) -> impl Iterator<Item = &Problem> {
        let n = self.problems.len();
        (0..TRIED.min(n)).map(move |i| &self.problems[i * n / TRIED.min(n)])
    }

    /// Reads a table.
    ///
    /// # Errors
    /// Columns that are not there or cannot be told apart, and too few rows that can be used.
    pub fn of(table: &Table, wishes: &Columns) -> Result<Lesson, TeachError> {
        let question = column(table, "question", wishes.question.as_deref(), &QUESTION)?;
        let answer = column(table, "answer", wishes.answer.as_deref(), &ANSWER)?;
        let solution =
            match (&wishes.solution, column(table, "solution", wishes.solution.as_deref(), &SOLUTION)) {
                (None, Err(_)) => None,
                (_, found) => Some(found?),
            };
        if question == answer || solution.is_some_and(|s| s == question || s == answer) {
            return Err(TeachError::SameColumn(table.columns[question].clone()));
        }
        let (mut problems, mut numbers, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for row in &table.rows {
            let cell = |at: usize| row.cells[at].trim();
            let work = solution.map(cell).unwrap_or_default();
            match unusable(cell(question), cell(answer), work) {
                Some(reason) => left_out.push((row.number, reason)),
                None => {
                    problems.push(problem(cell(question), cell(answer), work));
                    numbers.push(row.number);
                }
            }
        }
        let questions = problems.iter().map(|p| p.prompt.as_str()).collect::<HashSet<_>>().len();
        if questions < FEWEST_ROWS {
            let counts =
                counted(&left_out).map(|(reason, n, _)| format!("; {n} rows are left out, {reason}"));
            return Err(TeachError::FewRows { questions, left_out: counts.collect() });
        }
        let (verifier, why, places) = scoring(&mut problems);
        let solved = problems.iter().filter(|p| p.solution.as_ref().is_some_and(|s| !s.is_empty())).count();
        let name = |at: usize| table.columns[at].clone();
        let columns = (name(question), name(answer), solution.map(name));
        Ok(Lesson { columns, problems, numbers, solved, left_out, verifier, why, places })
    }
}

fn column(
    table: &Table,
    what: &'static str,
    wish: Option<&str>,
    known: &[&str],
) -> Result<usize, TeachError> {
    let found = match wish {
        Some(name) => table.column(name),
        None => known.iter().find_map(|name| table.column(name)),
    };
    found.ok_or_else(|| TeachError::NoColumn {
        what,
        wanted: wish.map_or_else(|| known.join(", "), str::to_owned),
        there: table.columns.join(", "),
    })
}

/// Why rows are left out.
const REASONS: [&str; 3] = ["no question", "no answer", "longer than 64 KiB"];

fn unusable(question: &str, answer: &str, solution: &str) -> Option<&'static str> {
    let too_long = question.len().max(answer.len()).max(solution.len()) > LONGEST;
    let found = [question.is_empty(), answer.is_empty(), too_long];
    REASONS.into_iter().zip(found).find_map(|(reason, found)| found.then_some(reason))
}

/// The reasons for which rows were left out, how many rows, and the first of them.
fn counted(left_out: &[(u64, &'static str)]) -> impl Iterator<Item = (&'static str, usize, u64)> {
    REASONS.into_iter().filter_map(|reason| {
        let mut rows = left_out.iter().filter(|(_, why)| *why == reason);
        let (first, _) = rows.next()?;
        Some((reason, 1 + rows.count(), *first))
    })
}

fn problem(question: &str, answer: &str, solution: &str) -> Problem {
    Problem {
        task: "table".to_owned(),
        prompt: question.to_owned(),
        system: None,
        answer: answer.to_owned(),
        meta: serde_json::Value::Null,
        verifier: None,
        solution: Some(solution.to_owned()),
    }
}

/// Places that a model is asked for, and the tags that one of ours uses unasked.
fn asked(places: [AnswerPlace; 3]) -> Vec<AnswerPlace> {
    places.into_iter().chain([AnswerPlace::Tags]).collect()
}

/// The verifier that all answers suit, why, and where the answer may stand.
fn scoring(problems: &mut [Problem]) -> (&'static str, String, Vec<AnswerPlace>) {
    let n = problems.len();
    let numbers = problems.iter().filter(|p| Number::parse(&p.answer).is_some()).count();
    let is_letter = |p: &&Problem| {
        let mut letters = p.answer.chars();
        letters.next().is_some_and(|c| CHOICES.contains(&c.to_ascii_uppercase())) && letters.next().is_none()
    };
    let choices = problems.iter().filter(is_letter).count();
    if numbers == n {
        let why = "every answer is a number, so that 1,234 and 1234.0 are the same";
        return (
            "numeric",
            why.to_owned(),
            asked([AnswerPlace::LastNumber, AnswerPlace::Boxed, AnswerPlace::Hash]),
        );
    }
    if choices == n {
        let why = "every answer is a letter from A to E";
        return (
            "choice",
            why.to_owned(),
            asked([AnswerPlace::Whole, AnswerPlace::Hash, AnswerPlace::Boxed]),
        );
    }
    if numbers > 0 {
        for p in problems {
            let of = if Number::parse(&p.answer).is_some() { "numeric" } else { "exact" };
            p.verifier = Some(of.to_owned());
        }
        let why = format!(
            "{numbers} of {n} answers are numbers, compared by value; the others are texts, compared word for word: case counts, spacing does not"
        );
        return ("task", why, asked([AnswerPlace::Hash, AnswerPlace::Boxed, AnswerPlace::Whole]));
    }
    let why = match choices {
        0 => "answers are texts, compared word for word: case counts, spacing does not".to_owned(),
        _ => format!(
            "{choices} of {n} answers are letters and the rest are not, so all are compared as texts, word for word: case counts, spacing does not"
        ),
    };
    ("exact", why, asked([AnswerPlace::Whole, AnswerPlace::Hash, AnswerPlace::Boxed]))
}

/// How a problem is put, with `{prompt}` for its text: the form is asked for behind it.
pub(super) fn prompt_template(place: &AnswerPlace) -> Option<String> {
    place.request().map(|request| format!("{{prompt}}\n\n{request}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use data::table::Row;

    fn table(columns: &[&str], row: impl Fn(usize) -> Vec<String>, n: usize) -> Table {
        let rows = (0..n).map(|i| Row { number: i as u64 + 1, cells: row(i) }).collect();
        Table { columns: columns.iter().map(|c| (*c).to_owned()).collect(), rows }
    }

    fn texts(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|c| (*c).to_owned()).collect()
    }

    #[test]
    fn columns_and_verifier_are_found() {
        let t = table(
            &["ID", "Question", "Answer", "Explanation"],
            |i| vec![i.to_string(), format!("q {i}"), "1,234".into(), "so".into()],
            30,
        );
        let lesson = Lesson::of(&t, &Columns::default()).unwrap();
        assert_eq!(lesson.columns, ("Question".into(), "Answer".into(), Some("Explanation".into())));
        assert_eq!((lesson.verifier, lesson.problems.len(), lesson.solved), ("numeric", 30, 30));
        let letters = table(&["q", "a"], |i| vec![format!("which of {i}?"), "b".into()], 30);
        assert_eq!(Lesson::of(&letters, &Columns::default()).unwrap().verifier, "choice");
        let answer = |i: usize| if i == 0 { "none" } else { "4" };
        let mixed = table(&["q", "a"], |i| vec![format!("x{i}"), answer(i).into()], 30);
        let lesson = Lesson::of(&mixed, &Columns::default()).unwrap();
        assert!(lesson.verifier == "task" && lesson.why.contains("29 of 30"), "{}", lesson.why);
        let of = |i: usize| lesson.problems[i].verifier.as_deref();
        assert_eq!((of(0), of(1)), (Some("exact"), Some("numeric")));
    }

    #[test]
    fn what_cannot_be_taught_is_said() {
        let wished = Columns { question: Some("frage".into()), ..Columns::default() };
        let row = |i: usize| vec![format!("x{i}"), if i.is_multiple_of(2) { "" } else { "4" }.to_owned()];
        let t = table(&["q", "a"], row, 30);
        let few = "15 different questions can be used; 15 rows are left out, no answer, expected 20";
        for (columns, want) in [(&wished, "frage"), (&Columns::default(), few)] {
            let error = Lesson::of(&t, columns).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        let same = table(&["q", "a"], |_| texts(&["x", "4"]), 30);
        let error = Lesson::of(&same, &Columns::default()).unwrap_err().to_string();
        assert!(error.contains("1 different questions"), "{error}");
        let no_answer = table(&["question", "colour"], |_| texts(&["x", "y"]), 30);
        let error = Lesson::of(&no_answer, &Columns::default()).unwrap_err().to_string();
        assert!(error.contains("colour") && error.contains("--answer"), "{error}");
    }
}
