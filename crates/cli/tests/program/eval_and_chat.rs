//! `eval` and `chat` on a tiny random model: keys, verifier commands, conversations through a pipe.

use crate::common::{arg, object, refusal, text, tiny, with_input};

fn problems(dir: &std::path::Path) -> std::path::PathBuf {
    let path = dir.join("mine.jsonl");
    let lines = "{\"prompt\": \"What is 2 + 2?\", \"answer\": 4}\n\n{\"prompt\": \"And 3 + 3?\", \"answer\": \"6\", \"verifier\": \"numeric\"}\n";
    std::fs::write(&path, lines).expect("written");
    path
}

#[test]
fn eval_prints_shares_with_intervals() {
    let dir = tiny();
    let (model, file) = (arg(dir.path()).to_owned(), problems(dir.path()));
    let args = ["eval", &model, "--problems", arg(&file), "--samples", "3", "--max-new", "20", "--json"];
    let found = object(&args);
    assert_eq!(found["problems"], 2);
    for key in ["pass@1", "pass@3", "maj@3", "pass@K", "maj@K"] {
        let share = &found[key];
        let [value, low, high] = ["value", "low", "high"].map(|k| share[k].as_f64().expect(key));
        assert!(0.0 <= low && low <= value && value <= high && high <= 1.0, "{key}: {share}");
    }
    assert_eq!(found["by_task"]["user"]["problems"], 2);
    let mut again = object(&[&args[..], &["--threads", "1"]].concat());
    again["seconds"] = found["seconds"].clone();
    assert_eq!(again, found);
    let limited = object(&[
        "eval",
        &model,
        "--task",
        "gcd",
        "--limit",
        "4",
        "--samples",
        "1",
        "--max-new",
        "8",
        "--json",
    ]);
    assert_eq!(limited["problems"], 4);
    assert!(limited["pass@1"].is_object() && limited["maj@1"].is_object());
    let table = text(&["eval", &model, "--problems", arg(&file), "--samples", "2", "--max-new", "8"]);
    assert!(table.contains("pass@2") && table.contains("all"), "{table}");
}

#[test]
fn eval_refuses_what_it_cannot_use() {
    let dir = tiny();
    let (model, file) = (arg(dir.path()).to_owned(), problems(dir.path()));
    let near = refusal(&["eval", &model, "--task", "countdwn"]);
    assert!(near.contains("did you mean `countdown`?"), "{near}");
    let near = refusal(&["eval", &model, "--problems", arg(&file), "--verifier", "numerc"]);
    assert!(near.contains("did you mean `numeric`?"), "{near}");
    let never = refusal(&["eval", &model, "--problems", arg(&file), "--verifier", "expression"]);
    assert!(never.contains("problem 1") && never.contains("no answer to it could score"), "{never}");
    let broken = dir.path().join("broken.jsonl");
    std::fs::write(&broken, "{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"prompt\":\n").expect("written");
    let line = refusal(&["eval", &model, "--problems", arg(&broken)]);
    assert!(line.contains("broken.jsonl line 2"), "{line}");
    std::fs::write(&broken, "").expect("written");
    assert!(refusal(&["eval", &model, "--problems", arg(&broken)]).contains("no problems"));
    std::fs::write(&broken, format!("{{\"prompt\": \"{}\", \"answer\": \"b\"}}\n", "long ".repeat(200)))
        .expect("written");
    assert!(refusal(&["eval", &model, "--problems", arg(&broken)]).contains("problem 1"));
}

/// A command that cannot work is found before anything is generated.
#[cfg(unix)]
#[test]
fn verifier_commands_are_tried_first() {
    let dir = tiny();
    let (model, file) = (arg(dir.path()).to_owned(), problems(dir.path()));
    let run = |command: &str| {
        refusal(&[
            "eval",
            &model,
            "--problems",
            arg(&file),
            "--verifier-cmd",
            command,
            "--verifier-timeout",
            "0.2",
        ])
    };
    assert!(run("/nonexistent/checker --x").contains("/nonexistent/checker"));
    assert!(run("false").contains("`false` failed"));
    assert!(run("sleep 100").contains("`sleep 100` failed"));
    assert!(run("cat").contains("`cat` failed"), "an answer without a score is none");
    assert!(run("'open").contains("never closed"));
    let script = dir.path().join("my check.sh");
    let answer = "while IFS= read -r line; do id=${line#*\\\"id\\\":}; printf '{\"id\": %s, \"score\": 1}\\n' \"${id%%[,\\}]*}\"; done\n";
    std::fs::write(&script, answer).expect("written");
    let command = format!("sh '{}'", arg(&script));
    let found = object(&[
        "eval",
        &model,
        "--problems",
        arg(&file),
        "--verifier-cmd",
        &command,
        "--samples",
        "2",
        "--max-new",
        "4",
        "--json",
    ]);
    assert_eq!(found["problems"], 2);
    assert_eq!(found["verifier"]["crashes"], 0);
    assert!(found["verifier"]["asked"].as_u64() >= Some(1));
}

/// One message a line, plain answers, commands obeyed, and the oldest turns left out when the context is full.
#[test]
fn chat_works_through_a_pipe() {
    let dir = tiny();
    let model = arg(dir.path());
    let out = with_input(
        &["chat", model, "--max-new", "12"],
        "Hello\n/help\n/nonsense\n/reset\nHello again\n/quit\nnever asked\n",
    );
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{stderr}");
    assert!(!stdout.contains('\x1b') && stdout.contains("/reset forgets"), "{stdout}");
    assert!(stderr.contains("forgotten") && stderr.contains("no command /nonsense"), "{stderr}");

    let out = with_input(&["chat", model, "--max-new", "30"], &"What is 17 + 25 - 8?\n".repeat(6));
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && stderr.contains("oldest turn"), "{stderr}");

    let out =
        with_input(&["chat", model, "--max-new", "4"], &format!("{}\nshort\n", "too long ".repeat(100)));
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(stderr.contains("send a shorter one") && stderr.contains("1 of 2 messages"), "{stderr}");
    assert_eq!(out.status.code(), Some(2));
    assert!(refusal(&["chat", "/nonexistent/model"]).contains("/nonexistent/model"));
}

/// A reader that leaves early ends the program quietly.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_error() {
    use std::process::{Command, Stdio};
    let dir = tiny();
    let mut child = Command::new(env!("CARGO_BIN_EXE_shoestring"))
        .args(["generate", arg(dir.path()), "--raw", "--prompt", "a", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let out = child.wait_with_output().expect("the program ends");
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
}
