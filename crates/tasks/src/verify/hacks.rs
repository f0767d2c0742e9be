//! A battery of ways to be paid without solving: each must score zero.

use crate::{Problem, verifier};
use serde_json::{Value, json};

fn problem(prompt: &str, answer: &str, meta: Value) -> Problem {
    Problem {
        task: "user".into(),
        system: None,
        prompt: prompt.into(),
        answer: answer.into(),
        meta,
        verifier: None,
        solution: None,
    }
}

fn countdown() -> Problem {
    problem("Use 6, 22 and 4 to make 46.", "( 6 * 4 ) + 22", json!({"numbers": [6, 22, 4], "target": 46}))
}

fn score(name: &str, problem: &Problem, completion: &str) -> f32 {
    verifier(name).unwrap().score(problem, completion).score
}

fn answered(answer: &str) -> String {
    format!("<think>x</think><answer>{answer}</answer>")
}

/// (verifier, problem) pairs with a right answer each.
fn judges() -> Vec<(&'static str, Problem)> {
    vec![
        ("exact", problem("Which day?", "Monday", Value::Null)),
        ("numeric", problem("What is 40 + 2?", "42", Value::Null)),
        ("numeric_strict", problem("What is 40 + 2?", "42", Value::Null)),
        ("expression", countdown()),
        ("choice", problem("A or B?", "B", Value::Null)),
        ("regex", problem("A word of as?", "a+", Value::Null)),
        ("task", problem("What is 40 + 2?", "42", Value::Null)),
    ]
}

fn right_answer(name: &str, problem: &Problem) -> String {
    if name == "regex" { "aaa".into() } else { problem.answer.clone() }
}

/// The battery would pass vacuously if right answers scored zero too.
#[test]
fn right_answers_score_one() {
    for (name, problem) in judges() {
        assert_eq!(score(name, &problem, &answered(&right_answer(name, &problem))), 1.0, "{name}");
    }
}

#[test]
fn form_tricks_score_zero() {
    for (name, problem) in judges() {
        let right = right_answer(name, &problem);
        for trick in [
            String::new(),
            right.clone(),
            answered(""),
            answered("  \n "),
            answered("\u{200b}"),
            format!("<think>x</think><answer>{right}</answer><answer>{right}</answer>"),
            format!("<think>x</think><answer>zzz</answer><answer>{right}</answer>"),
            format!("<think><answer>{right}</answer></think>"),
            format!("<think><answer>{right}</answer></think><answer></answer>"),
            format!("<answer>{right}</answer><think></think>"),
            format!("<answer>{right}</answer>"),
            format!("<think>x</think><answer><answer>{right}</answer></answer>"),
            format!("<think>x</think><answer>{right}"),
            format!("<think>x</think><ANSWER>{right}</ANSWER>"),
            answered(&problem.prompt),
            answered(&format!("{right} or {right}1")),
            answered(&format!("{right}\n{right}x")),
            answered(&"9".repeat(100_000)),
            answered(&"(".repeat(100_000)),
        ] {
            let shown: String = trick.chars().take(80).collect();
            assert_eq!(score(name, &problem, &trick), 0.0, "{name}: {shown}");
        }
    }
}

#[test]
fn number_tricks_score_zero() {
    let zero = problem("What is 2 - 2?", "0", Value::Null);
    for trick in [
        "NaN", "inf", "0/0", "nan", "null", "false", "-", "0x0", "1e9", "٠", "０", "zero", "0 1", "0;1",
        "0 apples", "%", "$",
    ] {
        assert_eq!(score("numeric", &zero, &answered(trick)), 0.0, "{trick}");
    }
    let billion = problem("", "1000000000", Value::Null);
    assert_eq!(score("numeric", &billion, &answered("1e9")), 1.0);
    assert_eq!(score("numeric_strict", &billion, &answered("1e9")), 0.0);
    assert_eq!(score("numeric", &billion, &answered("1,000,000,000")), 1.0);
    // A broken problem pays nobody.
    assert_eq!(score("numeric", &problem("", "", Value::Null), &answered("0")), 0.0);
    let near = problem("", "3.14159", json!({"tolerance": 0.01}));
    assert_eq!(
        (score("numeric", &near, &answered("22/7")), score("numeric", &near, &answered("3.2"))),
        (1.0, 0.0)
    );
}

#[test]
fn expression_tricks_score_zero() {
    for trick in [
        "46",
        "( 6 * 4 ) + 22 = 46",
        "46 + 6 + 22 + 4 - 6 - 22 - 4",
        "6 * 4 + 22 + 0",
        "6 * 4 + 22 + 6 - 6",
        "64 - 22 + 4",
        "6 4 + 22",
        "22 + 24",
        "( 6 * 4 ) + 22 / ( 4 - 4 )",
        "2 2 + 6 * 4",
        "６ * 4 + 22",
        "6 × 4 + 22",
        "22 - -6 * 4",
        "6 * 4 + 22 # fine",
        "6 * 4 + 22, 6 * 4 + 22",
        "4 * 6 + 22 + (",
        "999999999 * 999999999 * 999999999 * 999999999 * 999999999 * 999999999",
    ] {
        assert_eq!(score("expression", &countdown(), &answered(trick)), 0.0, "{trick}");
    }
    for fine in ["22+4*6", "(4*6)+22", "22 - ( 0 - 4 ) * 6"] {
        assert_eq!(
            score("expression", &countdown(), &answered(fine)),
            f32::from(u8::from(!fine.contains('0'))),
            "{fine}"
        );
    }
    // Exact fractions on the way are fair.
    let fractions = problem("", "", json!({"numbers": [7, 2, 4], "target": 14}));
    assert_eq!(score("expression", &fractions, &answered("7 / 2 * 4")), 1.0);
    let broken = problem("", "", json!({"numbers": [], "target": 0}));
    assert_eq!(score("expression", &broken, &answered("0")), 0.0);
}

#[test]
fn choice_and_pattern_tricks_score_zero() {
    let choice = problem("", "B", Value::Null);
    for trick in ["A", "A B", "AB", "B or C", "not B", "Ｂ", "В", "((B))", "ABCDE"] {
        assert_eq!(score("choice", &choice, &answered(trick)), 0.0, "{trick}");
    }
    for fine in ["b", "(B)", "B.", "B)"] {
        assert_eq!(score("choice", &choice, &answered(fine)), 1.0, "{fine}");
    }
    let pattern = problem("", "", json!({"pattern": "ab|cd"}));
    for trick in ["abx", "xcd", "ab\ncd", "cd ab"] {
        assert_eq!(score("regex", &pattern, &answered(trick)), 0.0, "{trick}");
    }
    let optional = problem("", "", json!({"pattern": "x*"}));
    assert_eq!(score("regex", &optional, &answered("")), 0.0);
    for broken in ["(", "(a{1000}){1000}"] {
        assert_eq!(score("regex", &problem("", broken, Value::Null), &answered("a")), 0.0);
    }
}

/// A problem cannot ask `task` to ask the problem forever.
#[test]
fn a_verifier_that_asks_itself_ends() {
    let mut endless = problem("", "1", Value::Null);
    endless.verifier = Some("task".into());
    assert_eq!(verifier("task").unwrap().score(&endless, &answered("1")).score, 0.0);
}
