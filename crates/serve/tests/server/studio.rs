//! Runs are read from their folders, and nothing else is.

use std::fs;
use std::io::Write;

use crate::common::{send, start};
use serde_json::{Value, json};
use serve::Options;

#[test]
fn runs_are_read_as_they_go_and_nothing_else_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let runs = dir.path().join("runs");
    fs::create_dir_all(runs.join("one/grpo")).expect("a folder");
    fs::create_dir_all(runs.join("no-run")).expect("a folder");
    fs::write(dir.path().join("recipe.toml"), "outside").expect("a file");
    let recipe = "name = \"one\"\n\n[[stage]]\nname = \"sft\"\n\n[[stage.mix]]\nname = \"x\"\n\n[[stage]]\nname = \"grpo\"\n\n[[stage]]\nname = \"eval\"\n";
    fs::write(runs.join("one/recipe.toml"), recipe).expect("a file");
    fs::write(
        runs.join("one/grpo/done.json"),
        r#"{"kind": "grpo", "cost": {"seconds": 2.5}, "summary": "good"}"#,
    )
    .expect("a file");
    for stage in ["eval", "sft"] {
        fs::create_dir_all(runs.join("one").join(stage)).expect("a folder");
    }
    fs::write(runs.join("one/sft/done.json"), "{}").expect("a file");
    let mut log = fs::File::create(runs.join("one/metrics.jsonl")).expect("a file");
    // The last line is still being written.
    log.write_all(b"{\"stage\":\"grpo\",\"step\":1,\"reward\":0.5}\n{\"stage\":\"grpo\",\"st")
        .expect("written");
    let address = start(Options { runs: Some(runs), ..Options::default() });
    let get = |path: &str| send(address, "GET", path, &[], "");

    let list = get("/studio/runs").json()["runs"].clone();
    assert_eq!(
        (list.as_array().map(Vec::len), &list[0]["name"], &list[0]["report"]),
        (Some(1), &json!("one"), &json!(false))
    );
    let one = get("/studio/runs/one").json();
    assert_eq!(
        one["stages"][1],
        json!({"name": "grpo", "kind": "grpo", "cost": {"seconds": 2.5}, "summary": "good"})
    );
    assert_eq!(one["stages"][0]["name"], "sft", "in the recipe's order");
    assert_eq!(one["planned"], json!(["sft", "grpo", "eval"]));
    assert_eq!(one["report"], Value::Null);
    let first = get("/studio/runs/one/metrics?from=0").json();
    assert_eq!(first["lines"], json!([{"stage": "grpo", "step": 1, "reward": 0.5}]));
    log.write_all(b"ep\":2,\"reward\":0.75}\n").expect("written");
    let next = get(&format!("/studio/runs/one/metrics?from={}", first["next"])).json();
    assert_eq!(next["lines"], json!([{"stage": "grpo", "step": 2, "reward": 0.75}]));
    assert_eq!(get(&format!("/studio/runs/one/metrics?from={}", next["next"])).json()["lines"], json!([]));
    assert_eq!(get("/studio/runs/one/samples").json()["lines"], json!([]), "nothing was sampled yet");

    for path in [
        "/studio/runs/one/report",
        "/studio/runs/two",
        "/studio/runs/no-run",
        "/studio/runs/..",
        "/studio/runs/%2e%2e",
        "/studio/runs/..%2f",
        "/studio/runs/%00",
    ] {
        assert_eq!(get(path).status, 404, "{path}");
    }
    assert_eq!(get("/studio/runs/one/metrics?from=-1").status, 400);
    assert_eq!(
        send(start(Options::default()), "GET", "/studio/runs", &[], "").status,
        404,
        "a server without runs"
    );
}

/// A report opens by a link, which carries no key and leads nowhere else.
#[test]
fn a_report_opens_by_its_link_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    for run in ["first run", "two"] {
        fs::create_dir(dir.path().join(run)).expect("a folder");
        fs::write(dir.path().join(run).join("recipe.toml"), "name = \"one\"\n").expect("a file");
        fs::write(dir.path().join(run).join("report.html"), "<p>bought").expect("a file");
    }
    let runs = Some(dir.path().to_path_buf());
    let address = start(Options { runs, keys: vec!["sesame".into()], ..Options::default() });
    let key = [("authorization", "Bearer sesame")];
    let one = send(address, "GET", "/studio/runs/first%20run", &key, "").json();
    let link = one["report"].as_str().expect("a link");
    let opened = send(address, "GET", link, &[], "");
    assert_eq!((opened.status, opened.body.as_str()), (200, "<p>bought"));
    let (path, ticket) = link.split_once('?').expect("a ticket");
    for other in [
        path.to_owned(),
        format!("{path}?{}", &ticket[..ticket.len() - 1]),
        format!("{path}?ticket=0000000000000000"),
        format!("/studio/runs/two/report?{ticket}"),
        format!("/studio/runs/first%20run?{ticket}"),
        format!("/v1/models?{ticket}"),
    ] {
        assert_eq!(send(address, "GET", &other, &[], "").status, 401, "{other}");
    }
}
