//! Workers that crash, hang and babble: each costs its sample a zero and nothing else.

use super::*;
use std::time::Instant;

fn problem() -> Problem {
    Problem {
        task: "t".into(),
        system: None,
        prompt: "2 + 2?".into(),
        answer: "4".into(),
        meta: Value::Null,
        verifier: None,
        solution: None,
    }
}

const RIGHT: &str = "<think>x</think><answer>4</answer>";

/// A shell script as a worker, with short deadlines.
fn shell(script: &str) -> ExternalVerifier {
    let mut command = Command::new(["sh", "-c", script]);
    command.workers = 1;
    command.timeout = Duration::from_millis(300);
    command.startup = Duration::from_millis(300);
    ExternalVerifier::start(command).unwrap()
}

/// Answers every line with score 1 and the right id; `$id` and `$line` are set for `special`, which comes first.
fn honest(special: &str) -> String {
    format!(
        r#"while read -r line; do
            id=$(printf '%s' "$line" | sed 's/.*"id":\([0-9]*\).*/\1/')
            {special}
            printf '{{"id":%s,"score":1.0,"reason":"fine"}}\n' "$id"
        done"#
    )
}

#[test]
fn an_honest_worker_scores() {
    let verifier = shell(&honest(""));
    for _ in 0..3 {
        assert_eq!(verifier.score(&problem(), RIGHT), Verdict { score: 1.0, reason: "fine".into() });
    }
    assert_eq!(verifier.stats(), Stats { asked: 3, ..Stats::default() });
}

/// The worker would pay for anything; empty answers never reach it.
#[test]
fn empty_answers_never_score() {
    let verifier = shell(&honest(""));
    for empty in
        ["", "  ", "<think></think><answer></answer>", "<think>a</think><answer> </answer>", "<think>4", "4"]
    {
        assert_eq!(verifier.score(&problem(), empty).score, 0.0, "{empty}");
    }
    assert_eq!(verifier.stats().asked, 0);
}

#[test]
fn a_crash_costs_one_sample() {
    let verifier = shell(&honest("case $id in 1) echo 'out of cheese' >&2; exit 3;; esac"));
    let verdicts: Vec<Verdict> = (0..3).map(|_| verifier.score(&problem(), RIGHT)).collect();
    assert_eq!(verdicts.iter().map(|v| v.score).collect::<Vec<_>>(), [1.0, 0.0, 1.0]);
    assert!(verdicts[1].reason.contains("exit status: 3"), "{}", verdicts[1].reason);
    assert!(verdicts[1].reason.contains("out of cheese"), "{}", verdicts[1].reason);
    assert_eq!(verifier.stats(), Stats { asked: 3, crashes: 1, ..Stats::default() });
}

/// Notes on stderr that are no UTF-8, have no line ends or come in floods neither end a verifier nor stop it.
#[test]
fn what_is_on_stderr_ends_nothing() {
    for note in [r"printf 'Pr\374fung\n' >&2", "printf 'no end' >&2", "head -c 6000000 /dev/zero >&2"] {
        let verifier = shell(&honest(&format!("{note};")));
        let scores: Vec<f32> = (0..3).map(|_| verifier.score(&problem(), RIGHT).score).collect();
        assert_eq!((scores, verifier.stats().failed()), (vec![1.0; 3], 0), "{note}");
    }
    let verdict =
        shell(r"read -r line; printf 'Pr\374fung: out of cheese' >&2; exit 3").score(&problem(), RIGHT);
    assert!(verdict.reason.contains("exit status: 3: Pr\u{fffd}fung: out of cheese"), "{}", verdict.reason);
}

/// A hanging worker, its sleeping child included, is gone after the deadline.
#[test]
fn a_hang_costs_one_sample_and_its_deadline() {
    let verifier = shell(&honest("case $id in 1) sleep 1000;; esac"));
    let begin = Instant::now();
    let scores: Vec<f32> = (0..3).map(|_| verifier.score(&problem(), RIGHT).score).collect();
    assert_eq!(scores, [1.0, 0.0, 1.0]);
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(verifier.stats(), Stats { asked: 3, timeouts: 1, ..Stats::default() });
}

#[test]
fn nonsense_costs_one_sample() {
    for babble in [
        "hello",
        "{}",
        "[]",
        "null",
        "",
        r#"{"id":99,"score":1.0}"#,
        r#"{"id":1}"#,
        r#"{"id":1,"score":1.5}"#,
        r#"{"id":1,"score":-1}"#,
        r#"{"id":1,"score":"1.0"}"#,
        r#"{"id":1,"score":true}"#,
        r#"{"id":1,"score":NaN}"#,
        r#"{"id":1,"score":1e999}"#,
        r#"{"id":"1","score":1.0}"#,
    ] {
        let verifier = shell(&honest(&format!("case $id in 1) echo '{babble}'; continue;; esac")));
        let scores: Vec<f32> = (0..3).map(|_| verifier.score(&problem(), RIGHT).score).collect();
        assert_eq!(scores, [1.0, 0.0, 1.0], "{babble}");
        assert_eq!(verifier.stats(), Stats { asked: 3, nonsense: 1, ..Stats::default() }, "{babble}");
    }
}

/// An answer too many belongs to no later question: the ids tell.
#[test]
fn an_extra_answer_is_not_taken_for_the_next() {
    let verifier = shell(&honest(r#"case $id in 0) echo '{"id":0,"score":0.5}';; esac"#));
    assert_eq!(verifier.score(&problem(), RIGHT).score, 0.5);
    assert_eq!(verifier.score(&problem(), RIGHT).score, 0.0);
    assert_eq!(verifier.score(&problem(), RIGHT).score, 1.0);
    assert_eq!(verifier.stats().nonsense, 1);
}

/// A flood neither fills the memory nor blocks.
#[test]
fn a_flood_is_nonsense() {
    let verifier = shell("cat /dev/zero");
    let verdict = verifier.score(&problem(), RIGHT);
    assert_eq!(verdict.score, 0.0);
    assert_eq!(verifier.stats().crashes, 0);
    assert_eq!(shell("yes").score(&problem(), RIGHT).score, 0.0);
}

/// A worker that never reads does not block the writer of a long completion.
#[test]
fn a_worker_that_does_not_read_times_out() {
    let verifier = shell("sleep 1000");
    let long = format!("<think>{}</think><answer>4</answer>", "x".repeat(1 << 20));
    assert_eq!(verifier.score(&problem(), &long).score, 0.0);
    assert_eq!(verifier.stats().timeouts, 1);
}

#[test]
fn a_program_that_always_crashes_never_stops_a_run() {
    let verifier = shell("exit 1");
    let begin = Instant::now();
    for _ in 0..6 {
        assert_eq!(verifier.score(&problem(), RIGHT).score, 0.0);
    }
    assert_eq!(verifier.stats().crashes, 6);
    assert!(begin.elapsed() >= Duration::from_millis(20 + 40 + 80 + 160 + 320), "restarts must back off");
}

#[test]
fn a_missing_program_is_an_error_at_the_start() {
    let error = ExternalVerifier::start(Command::new(["/no/such/program"])).err().unwrap().to_string();
    assert!(error.contains("/no/such/program") && error.contains("cannot be started"), "{error}");
    assert!(ExternalVerifier::start(Command::new(Vec::<String>::new())).is_err());
}

/// Verdicts belong to their items however the workers share them.
#[test]
fn batches_keep_their_order() {
    let mut command = Command::new([
        "sh",
        "-c",
        &honest(r#"case $line in *wrong*) printf '{"id":%s,"score":0.25}\n' "$id"; continue;; esac"#),
    ]);
    command.workers = 3;
    let verifier = ExternalVerifier::start(command).unwrap();
    let wrong = "<think>x</think><answer>wrong</answer>";
    let p = problem();
    let items: Vec<(&Problem, &str)> =
        (0..40).map(|i| (&p, if i % 3 == 0 { wrong } else { RIGHT })).collect();
    for (i, verdict) in verifier.score_batch(&items).iter().enumerate() {
        assert_eq!(verdict.score, if i % 3 == 0 { 0.25 } else { 1.0 });
    }
}

#[test]
fn a_command_can_be_the_source_of_problems() {
    let script = r#"while read -r line; do
        case $line in
            *'"cmd":"problems"'*'"task":"good"'*) echo '{"prompt":"1+1?","answer":"2"}'; echo '{"prompt":"1+2?","answer":"3","meta":{"k":1}}';;
            *'"task":"bad"'*) echo '{"error":"no such dataset"}';;
            *'"task":"garbled"'*) echo '{"question":"?"}';;
            *) exit 1;;
        esac
    done"#;
    let verifier = shell(script);
    let problems = verifier.problems("good", Split::Train, 1, 0, 2).unwrap();
    assert_eq!((problems.len(), problems[1].answer.as_str(), problems[1].task.as_str()), (2, "3", "good"));
    let fails = |task| verifier.problems(task, Split::HeldOut, 1, 0, 2).unwrap_err().to_string();
    assert!(fails("bad").contains("no such dataset"));
    assert!(fails("garbled").contains("not a problem"));
    assert!(fails("gone").contains("crashed"));
    assert!(
        verifier.problems("good", Split::Train, 1, 0, 3).unwrap_err().to_string().contains("did not answer")
    );
}

/// Of our environment a command sees what any program needs and what it is named to be given; a name that is not set is an
/// error before anything runs.
#[test]
fn a_command_sees_the_variables_it_is_named() {
    // Cargo sets these for every test.
    let (secret, wanted) = ("CARGO_MANIFEST_DIR", "CARGO_PKG_NAME");
    assert!(std::env::var_os(secret).is_some());
    let script =
        format!(r#"test -z "${secret}" && test -n "${wanted}" && test -n "$PATH" || exit 9; {}"#, honest(""));
    let mut command = Command::new(["sh", "-c", script.as_str()]);
    command.env = vec![wanted.to_owned()];
    let verifier = ExternalVerifier::start(command.clone()).unwrap();
    assert_eq!(verifier.score(&problem(), RIGHT).score, 1.0);
    command.env = vec!["SHOESTRING_NO_SUCH_VARIABLE".into()];
    let error = ExternalVerifier::start(command).err().expect("refused").to_string();
    assert!(error.contains("SHOESTRING_NO_SUCH_VARIABLE") && error.contains("not set"), "{error}");
}

/// The real package: `GYM_PYTHON=/path/to/venv/bin/python cargo test -p shoestring-tasks -- --ignored`.
#[test]
#[ignore = "needs a Python with reasoning-gym, named by GYM_PYTHON"]
fn reasoning_gym_plugs_in() {
    let python = std::env::var("GYM_PYTHON").expect("GYM_PYTHON names a Python with reasoning-gym");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/reasoning_gym.py");
    let gym = ExternalVerifier::start(Command::new([python.as_str(), script])).unwrap();
    for task in ["leg_counting", "letter_counting", "chain_sum", "number_sorting", "calendar_arithmetic"] {
        let train = gym.problems(task, Split::Train, 1, 0, 60).unwrap();
        let held_out = gym.problems(task, Split::HeldOut, 1, 0, 60).unwrap();
        assert_eq!(train[20..], gym.problems(task, Split::Train, 1, 20, 40).unwrap());
        assert!(train.iter().all(|p| held_out.iter().all(|q| p.prompt != q.prompt)), "{task}");
        let right: Vec<String> =
            train.iter().map(|p| format!("<think>x</think><answer>{}</answer>", p.answer)).collect();
        let items: Vec<(&Problem, &str)> = train.iter().zip(&right).map(|(p, c)| (p, c.as_str())).collect();
        assert!(gym.score_batch(&items).iter().all(|v| v.score == 1.0), "{task}");
        assert_eq!(gym.score(&train[0], "<think>x</think><answer>zzz</answer>").score, 0.0, "{task}");
    }
    assert!(gym.problems("no_such_dataset", Split::Train, 1, 0, 1).is_err());
    let stats = gym.stats();
    assert_eq!((stats.crashes, stats.timeouts), (0, 0));
}
