//! `teach`: a table is understood or refused, what is pointless is not done, and a run ends in a measured model.

use crate::common::{arg, object, puppet, refusal, text, tiny, tokenizer};
use std::path::{Path, PathBuf};

fn table(dir: &Path, name: &str, rows: impl Iterator<Item = String>) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, rows.map(|row| row + "\n").collect::<String>()).expect("a writable folder");
    path
}

fn sums() -> impl Iterator<Item = String> {
    // No answer that random tokens hit.
    let rows = (0..30).map(|i| format!("\"{i} + 7e6, now\",{}", i + 7_000_000));
    std::iter::once("Question,Answer".to_owned()).chain(rows)
}

#[test]
fn tables_that_cannot_be_taught_are_refused() {
    let (dir, model) = (tempfile::tempdir().unwrap(), tiny());
    let of = |name: &str, rows: &[&str]| table(dir.path(), name, rows.iter().map(|r| (*r).to_owned()));
    for (path, want) in [
        (of("a.csv", &["Frage,Antwort", "x,1"]), "no column for the question"),
        (of("b.csv", &["question,answer", "x,1"]), "1 different questions can be used"),
        (of("c.xlsx", &["x"]), "no workbook"),
        (of("d.csv", &["\u{feff}the longer Frage;the Antwort", "x;1"]), "the longer Frage, the Antwort"),
        (dir.path().join("none.csv"), "none.csv"),
    ] {
        let said = refusal(&["teach", arg(model.path()), arg(&path)]);
        assert!(said.contains(want), "{said}");
    }
}

#[test]
fn without_right_answers_or_solutions_there_is_nothing_to_build_on() {
    let (dir, model) = (tempfile::tempdir().unwrap(), tiny());
    let path = table(dir.path(), "sums.csv", sums());
    let out = dir.path().join("out");
    let said = text(&["teach", arg(model.path()), arg(&path), "--out", arg(&out), "--max-new", "4"]);
    assert!(said.contains("30 rows") && said.contains("nothing to build on"), "{said}");
    let look = object(&["teach", arg(model.path()), arg(&path), "--max-new", "4", "--dry-run", "--json"]);
    assert!(
        look["recipe"].is_null() && look["pointless"].as_str().is_some_and(|p| said.contains(p)),
        "{look}"
    );
    assert!(!out.exists());
}

#[test]
fn a_table_ends_in_a_measured_model() {
    let dir = tempfile::tempdir().unwrap();
    // It answers 34, whatever it is asked.
    let model = puppet(&tokenizer(), "<|assistant|>34");
    let row = |i: usize| format!("What is {i}?,{}", if i.is_multiple_of(2) { 34 } else { i });
    let path = table(dir.path(), "sums.csv", std::iter::once("q,a".to_owned()).chain((0..30).map(row)));
    let out = dir.path().join("Übung 1");
    let args =
        ["teach", arg(model.path()), arg(&path), "--out", arg(&out), "--max-new", "4", "--minutes", "0.05"];
    let plan = text(&[&args[..], &["--dry-run"]].concat());
    assert!(
        ["verifier = \"numeric\"", "name = \"before\"", "[[claim]]"].iter().all(|s| plan.contains(s)),
        "{plan}"
    );
    let look = object(&[&args[..], &["--dry-run", "--json"]].concat());
    assert_eq!(
        (&look["question"], &look["verifier"], &look["rows"]),
        (&"q".into(), &"numeric".into(), &30.into())
    );
    assert_eq!(
        (look["tried"].as_array().map(Vec::len), &look["tried"][0]["right"]),
        (Some(5), &true.into()),
        "{look}"
    );
    // Steps and problems follow the speed that was found, and differ from one time to the next.
    let recipe = look["recipe"].as_str().expect("a recipe");
    assert!(look["pointless"].is_null() && recipe.contains("name = \"before\""), "{look}");
    assert!(!out.exists() && !dir.path().join("Übung 1.toml").exists());

    let with_json = [&args[..], &["--json"]].concat();
    let first = object(&with_json);
    assert_eq!((&first["verifier"], &first["rows"]), (&"numeric".into(), &30.into()));
    assert!(first["before"]["pass@1"]["value"].as_f64() > Some(0.0), "{first}");
    let gain = &first["gain"];
    assert!(
        gain["low"].as_f64() <= gain["value"].as_f64() && gain["value"].as_f64() <= gain["high"].as_f64()
    );
    let forgotten = &first["forgotten"];
    assert!(forgotten["bytes"].as_u64() > Some(5000) && forgotten["before"].as_f64() > Some(0.5), "{first}");
    let worse = forgotten["after"].as_f64().unwrap() / forgotten["before"].as_f64().unwrap() - 1.0;
    assert_eq!(forgotten["worse"].as_f64(), Some(worse));
    for (key, want) in [("adapter", serde_json::Value::Null), ("model", arg(&out.join("model")).into())] {
        assert_eq!(first[key], want, "{key}");
    }
    assert!(first["minutes"].as_f64() > Some(0.0) && first["held_out"] == 6 && first["recipe"].is_string());
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["held_text"]["model"]["bits_per_byte"], forgotten["after"]);
    assert!(std::fs::read_to_string(out.join("report.html")).unwrap().contains("What was forgotten"));
    assert!(out.join("model/model.safetensors").exists() && dir.path().join("Übung 1.toml").exists());
    let again = object(&with_json);
    assert_eq!(again["gain"], first["gain"], "the same command has nothing left to do");
    let costs = report["stages"].as_array().unwrap().iter().filter_map(|s| s["seconds"].as_f64());
    let minutes = costs.sum::<f64>() / 60.0;
    assert!(
        again["minutes"].as_f64() >= Some(minutes * 0.999) && minutes > 0.0,
        "all sittings count: {again}"
    );

    // The lesson is this table's and this model's.
    let stranger = tiny();
    let other = [&["teach", arg(stranger.path())], &args[2..]].concat();
    assert!(refusal(&other).contains("another model"));
    table(dir.path(), "sums.csv", std::iter::once("q,a".to_owned()).chain((1..31).map(row)));
    assert!(refusal(&args).contains("other rows"));
}

/// With `--lora` there are an adapter and the model with it merged, which say the same.
#[test]
fn an_adapter_comes_with_the_merged_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = puppet(&tokenizer(), "<|assistant|>34");
    let rows = (0..30).map(|i| format!("What is {i}?,34,so"));
    let path = table(dir.path(), "t.csv", std::iter::once("q,a,work".to_owned()).chain(rows));
    // Right already: nothing is done.
    let out = dir.path().join("out");
    let common =
        ["--out", arg(&out), "--max-new", "8", "--minutes", "0.05", "--lora", "2", "--held-text", "none"];
    let args = [&["teach", arg(model.path()), arg(&path)][..], &common].concat();
    assert!(text(&args).contains("nothing to teach"));
    let rows = (0..30).map(|i| format!("What is {i}?,{},so", if i % 3 == 0 { 34 } else { 7 }));
    let path = table(dir.path(), "t.csv", std::iter::once("q,a,work".to_owned()).chain(rows));
    let args = [&["teach", arg(model.path()), arg(&path)][..], &common, &["--json"]].concat();
    let said = object(&args);
    assert_eq!(said["adapter"], arg(&out.join("model")));
    assert!(said["forgotten"].is_null(), "{said}");
    let merged = PathBuf::from(said["model"].as_str().unwrap());
    assert!(merged.join("model.safetensors").exists() && out.join("model/adapter_config.json").exists());
    assert_eq!(object(&args)["model"], said["model"], "the same command has nothing left to do");
}

/// A round without a right answer ends neither the run nor the measuring: it is said, and the model stays as it is.
#[test]
fn rounds_without_a_right_answer_are_gone_through_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    let model = puppet(&tokenizer(), "<|assistant|>34");
    // Two worked rows in thirty show a form, and no answer that comes of it is right.
    let rows = (0..30).map(|i| format!("What is {i}?,{},{}", 7_000_000 + i, if i < 2 { "so" } else { "" }));
    let path = table(dir.path(), "t.csv", std::iter::once("q,a,work".to_owned()).chain(rows));
    let out = dir.path().join("out");
    let args =
        ["teach", arg(model.path()), arg(&path), "--out", arg(&out), "--max-new", "4", "--minutes", "0.02"];
    let args = [&args[..], &["--lora", "2", "--held-text", "none"]].concat();
    let said = text(&args);
    assert!(said.contains("not shown to be better") && said.contains("learnt nothing of its own"), "{said}");
    let again = object(&[&args[..], &["--json"]].concat());
    assert_eq!((&again["own_answers"], &again["after"]["pass@1"]["value"]), (&0.into(), &0.0.into()));
    assert!(std::fs::read(out.join("own_1/traces.jsonl")).unwrap().is_empty());
}
