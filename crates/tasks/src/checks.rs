//! Properties of every built-in task, over thousands of its problems.

use crate::corpus::{self, Blend, DRILL_SHARE, token_estimate};
use crate::verify::{ByTask, evaluate};
use crate::{Level, Mix, Problem, Split, Style, Task, Verifier, task, task_names};
use std::collections::HashSet;

const HURRIED: Blend = Blend { drills: DRILL_SHARE, questions: 0.0, hurried: 0.3 };
const STYLES: [Style; 2] = [Style::Careful, Style::Hurried];

fn tasks() -> Vec<&'static dyn Task> {
    task_names().into_iter().map(|name| task(name).unwrap()).collect()
}

/// Finds every `… = …` in `text` and evaluates all of its sides: nothing false is ever taught.
pub(crate) fn assert_statements_hold(text: &str) {
    let arithmetic = |token: &str| {
        matches!(token, "+" | "-" | "*" | "/" | "=" | "(" | ")" | "-(")
            || token.strip_prefix('-').unwrap_or(token).bytes().all(|b| b.is_ascii_digit())
    };
    let mut run: Vec<&str> = Vec::new();
    let mut statements = 0;
    for token in text.split_whitespace().chain(["."]) {
        if arithmetic(token) {
            run.push(token);
            continue;
        }
        if run.contains(&"=") {
            statements += 1;
            let statement = run.join(" ");
            let values: Vec<_> = statement.split(" = ").map(|side| value(side, text)).collect();
            assert!(values.windows(2).all(|w| w[0] == w[1]), "`{statement}` is false in: {text}");
        }
        run.clear();
    }
    assert_eq!(text.contains('='), statements > 0, "a statement escaped the check: {text}");
}

/// The value of one side; a leading minus is read as `0 -`.
fn value(side: &str, text: &str) -> crate::verify::Rational {
    let spelled = side.strip_prefix('-').map_or(side.to_owned(), |rest| format!("0 - {}", rest.trim()));
    evaluate(&spelled).unwrap_or_else(|e| panic!("`{side}`: {e} in: {text}")).0
}

/// The heart of the corpus: every solution of every style is right and says nothing false.
#[test]
fn solutions_are_true_and_end_in_the_right_answer() {
    for task in tasks() {
        for index in 0..3000 {
            let split = if index % 3 == 0 { Split::HeldOut } else { Split::Train };
            let problem = task.problem(split, 11, index, &Level::default());
            for style in STYLES {
                let text = task.solution(&problem, style, index);
                assert!(!text.is_empty() && text.ends_with('.'), "{text:?} for {problem:?}");
                assert_statements_hold(&text);
                let completion = corpus::completion(&problem, style, index);
                let verdict = ByTask.score(&problem, &completion);
                assert_eq!(verdict.score, 1.0, "{} for {problem:?}: {completion}", verdict.reason);
                assert_eq!(crate::format_score(&completion), 1.0, "{completion}");
                assert_ends_in_answer(&problem, style, &text);
            }
        }
    }
}

/// The last thing that a solution says is the answer, so that the answer is a copy.
fn assert_ends_in_answer(problem: &Problem, style: Style, text: &str) {
    let last = text.trim_end_matches(['.', ' ']).rsplit(' ').next().unwrap();
    match (problem.task.as_str(), style) {
        ("countdown", _) => assert_eq!(last, problem.meta["target"].to_string(), "{text}"),
        ("sorting", _) | ("calendar", Style::Hurried) => {}
        ("calendar", Style::Careful) => assert!(problem.answer.ends_with(last), "{text}"),
        _ => assert_eq!(last, problem.answer, "{text}"),
    }
}

/// Train and held-out problems are told apart by what they are, not by how they were drawn.
#[test]
fn splits_never_meet() {
    for task in tasks() {
        let contents = |split, seed| -> HashSet<String> {
            (0..4000).map(|i| task.content(&task.problem(split, seed, i, &Level::default()))).collect()
        };
        let (train, held_out) = (contents(Split::Train, 1), contents(Split::HeldOut, 2));
        assert!(
            train.len() > 1000 && held_out.len() > 100,
            "{}: {} {}",
            task.name(),
            train.len(),
            held_out.len()
        );
        assert!(train.is_disjoint(&held_out), "{}", task.name());
        assert!(train.iter().all(|c| Split::of(task.name(), c) == Split::Train), "{}", task.name());
        assert!(held_out.iter().all(|c| Split::of(task.name(), c) == Split::HeldOut), "{}", task.name());
    }
}

/// Resuming a run draws the same problems again.
#[test]
fn problems_are_pure_functions() {
    let mix = Mix::launch();
    for index in 0..300 {
        assert_eq!(mix.problem(Split::Train, 5, index), mix.problem(Split::Train, 5, index));
        assert_eq!(
            corpus::document(&mix, Some(&mix), 5, index, HURRIED),
            corpus::document(&mix, Some(&mix), 5, index, HURRIED)
        );
        let problem = mix.problem(Split::Train, 5, index);
        let read_back: Problem = serde_json::from_str(&serde_json::to_string(&problem).unwrap()).unwrap();
        assert_eq!(
            corpus::completion(&problem, Style::Careful, 1),
            corpus::completion(&read_back, Style::Careful, 1),
            "a problem that went through a file is solved the same way"
        );
    }
    let prompts = |seed| (0..300).map(|i| mix.problem(Split::Train, seed, i).prompt).collect::<HashSet<_>>();
    assert!(prompts(1).intersection(&prompts(2)).count() < 30);
}

/// Mean and maximum length in estimated tokens of a task's solutions.
fn lengths(task: &dyn Task, style: Style) -> (f64, usize) {
    let all: Vec<usize> = (0..3000)
        .map(|i| {
            token_estimate(&task.solution(&task.problem(Split::Train, 2, i, &Level::default()), style, i))
        })
        .collect();
    (all.iter().sum::<usize>() as f64 / all.len() as f64, *all.iter().max().unwrap())
}

/// Rollouts are most of a run's time: traces must stay short.
#[test]
fn solutions_keep_to_their_token_budgets() {
    for (name, careful, hurried) in [("arithmetic", 60.0, 25), ("word", 90.0, 25), ("countdown", 140.0, 25)] {
        let task = task(name).unwrap();
        let (mean, longest) = lengths(task, Style::Careful);
        println!("{name} careful: mean {mean:.1}, longest {longest}");
        assert!(mean <= careful, "{name}: careful solutions take {mean:.1} tokens on average");
        let (mean, longest) = lengths(task, Style::Hurried);
        println!("{name} hurried: mean {mean:.1}, longest {longest}");
        assert!(longest <= hurried, "{name}: a hurried solution takes {longest} tokens");
    }
}

/// A small vocabulary is what makes the tokenizer small.
#[test]
fn the_launch_corpus_needs_few_words() {
    let mix = Mix::launch();
    let mut words = HashSet::new();
    for index in 0..5000 {
        for word in corpus::document(&mix, Some(&mix), 1, index, HURRIED).split(|c: char| !c.is_alphabetic())
        {
            words.insert(word.to_owned());
        }
    }
    println!("{} words", words.len());
    assert!(words.len() < 520, "{} words", words.len());
}

/// Drills are part of the corpus: true as well.
#[test]
fn drills_are_true_and_short() {
    for index in 0..3000 {
        let text = corpus::drill(&Mix::launch(), 3, index);
        text.lines().for_each(assert_statements_hold);
        assert!(token_estimate(&text) <= 200, "{text}");
    }
}

/// Levels at the ends of their ranges still give problems whose solutions hold.
#[test]
fn levels_change_the_difficulty() {
    for (name, level) in [
        ("arithmetic", r#"{"operands":5,"digits":3,"times":true}"#),
        ("arithmetic", r#"{"operands":2,"digits":1}"#),
        ("countdown", r#"{"numbers":2}"#),
        ("countdown", r#"{"numbers":4}"#),
        ("countdown", r#"{"max_number":100,"max_target":1000}"#),
        ("word", r#"{"steps":2,"distractors":1.0}"#),
        ("sorting", r#"{"numbers":12,"max_number":1000}"#),
        ("calendar", r#"{"max_number":300}"#),
        ("gcd", r#"{"max_number":1000}"#),
        ("gcd", r#"{"max_number":30}"#),
    ] {
        let task = task(name).unwrap();
        let level: Level = serde_json::from_str(level).unwrap();
        task.check(&level).unwrap();
        for index in 0..300 {
            let problem = task.problem(Split::HeldOut, 4, index, &level);
            for style in STYLES {
                assert_statements_hold(&task.solution(&problem, style, index));
                let completion = corpus::completion(&problem, style, index);
                assert_eq!(ByTask.score(&problem, &completion).score, 1.0, "{problem:?} {completion}");
            }
        }
    }
}
