//! Lessons: tables are kept under the studio's own folder, taught by a process of its own, which is found again.
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::common::{chat, post, send, start, tiny};
use serde_json::{Value, json};
use serve::{Options, Served, Shelf, Shelved, Teacher};

/// Stands for `shoestring teach`: looks at once; teaches until it is interrupted the first time, and to the end the second.
const TEACHER: &str = r#"
for a in "$@"; do case "$a" in
    --out=*) out="${a#--out=}" ;;
    --dry-run) look=1 ;;
    --question=*) [ "$a" = "--question=--out=x" ] || wrong=1 ;;
esac; done
if [ "$wrong" ]; then echo "error: $a: no such column: name it with --question" >&2; exit 2; fi
if [ "$look" ]; then echo '{"question": "q", "pointless": null}'; exit; fi
echo "it begins" >&2
mkdir -p "$out/eval"
if [ -f "$out.toml" ]; then echo '{"figures": {"measured": [{"stage": "/base", "answers": [{"prompt": "1+1", "answer": "2",
    "completion": {"text": "3", "score": 0.0}}]}, {"stage": "model", "answers": [{"prompt": "1+1", "answer": "2",
    "completion": {"text": "2", "score": 1.0}}]}]}}' > "$out/eval/done.json"; echo '{"gain": 1}'; exit; fi
trap 'echo "saved" >&2; exit 0' INT
echo > "$out.toml"; echo > "$out/recipe.toml"
while :; do sleep 0.05; done
"#;

/// A shelf on which another model appears when its file does.
#[derive(Debug)]
struct Models(std::path::PathBuf);

impl Shelf for Models {
    fn list(&self) -> Vec<Shelved> {
        let all = ["one", "two", "three"].map(|name| Shelved {
            name: name.into(),
            path: self.0.join(name),
            bytes: 10,
            written: SystemTime::UNIX_EPOCH,
            examples: Vec::new(),
        });
        all.into_iter().filter(|s| s.path.exists()).collect()
    }
    fn load(&self, shelved: &Shelved) -> Result<Served, String> {
        match fs::read_to_string(&shelved.path).unwrap_or_default().as_str() {
            "broken" => Err("it is broken".into()),
            _ => Ok(tiny(&shelved.name, 1)),
        }
    }
}

fn options(dir: &Path) -> Options {
    let arguments = ["-c", TEACHER, "sh"].map(Into::into).to_vec();
    Options {
        runs: Some(dir.join("runs")),
        teacher: Some(Teacher { program: "/bin/sh".into(), arguments }),
        shelf: Some(std::sync::Arc::new(Models(dir.to_path_buf()))),
        shelf_bytes: 20,
        ..Options::default()
    }
}

fn wait(what: &str, get: impl Fn() -> Value, done: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let value = get();
        if done(&value) {
            return value;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {value}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_lesson_is_taught_stopped_and_found_again() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::create_dir(dir.path().join("runs")).expect("a folder");
    fs::write(dir.path().join("one"), "").expect("a file");
    let address = start_none(options(dir.path()));
    let get = |path: &str| send(address, "GET", path, &[], "").json();
    let made = send(address, "PUT", "/studio/lessons/..%2F..%2FMy%20sums.csv", &[], "q,a\n1+1,2\n").json();
    assert_eq!((&made["name"], &made["state"]), (&json!("My-sums"), &json!("new")));
    let folder = dir.path().join("runs/lessons/My-sums");
    assert_eq!(fs::read_to_string(folder.join("table.csv")).expect("the table"), "q,a\n1+1,2\n");
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 2, "nothing was written elsewhere");

    let at = "/studio/lessons/My-sums";
    let lesson = || get(at);
    let is = |state: &'static str| move |l: &Value| l["state"] == state;
    for (more, status) in [
        (json!({"model": "none"}), 400),
        (json!({"model": "/etc/passwd"}), 400),
        (json!({"model": "one", "minutes": -1}), 400),
        (json!({"model": "one", "question": "a\u{0}b"}), 400),
        (json!({"model": "one", "question": "x".repeat(300)}), 400),
    ] {
        assert_eq!(post(address, &format!("{at}/look"), &more).status, status, "{more}");
    }
    assert_eq!(post(address, &format!("{at}/stop"), &json!({})).status, 409);
    post(address, &format!("{at}/look"), &json!({"model": "one", "question": "wrong"}));
    // In the words of the page, which has neither the path nor the options.
    let said = "../../My sums.csv: no such column: name it with “Column of questions”";
    assert_eq!(wait("a wrong column", lesson, is("failed"))["error"], said);
    // What looks like an option is a column's name all the same.
    post(address, &format!("{at}/look"), &json!({"model": "one", "question": "--out=x"}));
    assert_eq!(wait("a look", lesson, is("looked"))["look"]["question"], "q");

    let begun = post(address, &format!("{at}/start"), &json!({"model": "one", "minutes": 2}));
    assert_eq!(begun.status, 200, "{}", begun.body);
    wait("the run", lesson, |l| l["begun"] == true);
    assert_eq!(post(address, &format!("{at}/start"), &json!({"model": "one"})).status, 409, "one at a time");
    // Another studio on the same folder finds it at work, and may stop it.
    let other = start_none(options(dir.path()));
    let seen = send(other, "GET", at, &[], "").json();
    assert_eq!((&seen["state"], &seen["settings"]["minutes"]), (&json!("teaching"), &json!(2)));
    assert_eq!(post(other, &format!("{at}/stop"), &json!({})).status, 200);
    let stopped = wait("the end", lesson, is("stopped"));
    assert_eq!(stopped["log"], json!(["it begins", "saved"]));

    assert_eq!(post(address, &format!("{at}/look"), &json!({"model": "one"})).status, 409, "it has begun");
    post(address, &format!("{at}/start"), &json!({"model": "one"}));
    let done = wait("the outcome", lesson, is("done"));
    let pair = json!([{"question": "1+1", "answer": "2", "before": {"text": "3", "right": false}, "after": {"text": "2", "right": true}}]);
    assert_eq!((&done["outcome"]["gain"], &done["answers"]), (&json!(1), &pair));
    let again = send(address, "PUT", "/studio/lessons/My%20sums.csv", &[], "q,a\n").json();
    assert_eq!(again["name"], "My-sums-2");
    assert_eq!(get("/studio/lessons")["lessons"].as_array().map(Vec::len), Some(2));
}

#[test]
fn strangers_teach_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let address = start_none(options(dir.path()));
    for path in ["..", "%2e%2e", "..%2flessons", "a%00b", "none", "%2e"] {
        let found = send(address, "GET", &format!("/studio/lessons/{path}"), &[], "");
        assert_eq!(found.status, 404, "{path}");
    }
    assert_eq!(send(address, "PUT", "/studio/lessons/x.csv", &[], "").status, 400, "an empty table");
    let foreign =
        send(address, "PUT", "/studio/lessons/x.csv", &[("origin", "https://example.org")], "q,a\n");
    assert_eq!(foreign.status, 403, "another page");
    assert!(!dir.path().join("runs").exists(), "nothing was written");
    assert_eq!(send(start(Options::default()), "GET", "/studio/lessons", &[], "").status, 404);
    let open =
        Options { hosts: vec!["127.0.0.1".into()], address: ([0, 0, 0, 0], 0).into(), ..options(dir.path()) };
    let open = crate::common::serve_at(Vec::new(), open);
    let open = std::net::SocketAddr::from(([127, 0, 0, 1], open.port()));
    assert_eq!(
        send(open, "PUT", "/studio/lessons/x.csv", &[], "q,a\n").status,
        403,
        "reached by anyone, without keys"
    );
}

#[test]
fn models_come_off_the_shelf_when_they_are_asked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("one"), "").expect("a file");
    let address = start_none(options(dir.path()));
    let ids = || -> Vec<(String, bool)> {
        let list = send(address, "GET", "/v1/models", &[], "").json();
        let model = |m: &Value| (m["id"].as_str().unwrap_or_default().to_owned(), m["loaded"] == true);
        list["data"].as_array().expect("a list").iter().map(model).collect()
    };
    let ask =
        |model: &str| post(address, "/v1/chat/completions", &chat(json!({"model": model, "temperature": 0})));
    assert_eq!(ids(), [("one".to_owned(), false)]);
    let first = ask("one").json()["choices"][0]["message"].clone();
    assert_eq!(ids(), [("one".to_owned(), true)]);
    assert_eq!(ask("two").status, 404);
    // A run has made another, and a third: there is room for two.
    fs::write(dir.path().join("two"), "").expect("a file");
    assert_eq!(ask("two").json()["choices"][0]["message"], first, "the same weights");
    fs::write(dir.path().join("three"), "broken").expect("a file");
    let broken = ask("three");
    assert_eq!(
        (broken.status, broken.json()["error"]["message"].as_str().map(|m| m.contains("it is broken"))),
        (400, Some(true))
    );
    fs::write(dir.path().join("three"), "").expect("a file");
    assert_eq!(ask("three").status, 200);
    assert_eq!(ids().iter().filter(|(_, loaded)| *loaded).count(), 2);
    assert_eq!(ask("one").json()["choices"][0]["message"], first);
}

fn start_none(options: Options) -> std::net::SocketAddr {
    crate::common::serve_models(Vec::new(), options)
}
