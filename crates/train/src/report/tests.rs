//! What the report promises: the keys that scripts rely on, a page that stands alone, and text that stays text.

use super::*;
use crate::claims::Figure;
use crate::stats::wilson;

fn evaluation(right: u64) -> Scores {
    Scores {
        problems: 200,
        samples: 8,
        pass_at_1: wilson(right, 200),
        pass_at_k: wilson((right + 60).min(200), 200),
        maj_at_k: wilson((right + 15).min(200), 200),
    }
}

fn claim() -> Claim {
    Claim {
        name: "RL helps".into(),
        baseline: "sft".into(),
        ratio: 2.1,
        low: 1.8,
        high: 2.4,
        shown: true,
        figure: Figure::PassAt1,
        flops: Some(2 << 40),
        baseline_flops: Some(3 << 40),
        over_budget: false,
    }
}

fn report() -> RunReport {
    let stage = |name: &str, seconds: f64| StageCost {
        name: name.into(),
        seconds,
        cpu_seconds: 1.9 * seconds,
        tokens: 1000,
        operations: 1 << 60,
        peak_memory_bytes: 1 << 30,
        joules: None,
        cost: seconds * 2.0 * 0.02 / 3600.0,
    };
    RunReport {
        name: "launch".into(),
        seed: 1,
        model: "a mixture of experts".into(),
        task: "arithmetic".into(),
        stages: vec![stage("pretrain", 300.0), stage("sft", 10.0), stage("grpo", 400.0)],
        evaluation: vec![("sft".into(), evaluation(80)), ("grpo".into(), evaluation(170))],
        evaluation_by_task: vec![("arithmetic".into(), vec![("sft".into(), evaluation(90))])],
        claims: vec![claim()],
        reinforcement: Some(("sft".into(), "grpo".into())),
        earned: Some(("sft".into(), "grpo".into())),
        ..RunReport::default()
    }
}

fn line(stage: &str, step: u64, values: &[(&str, f64)]) -> Line {
    let values = values.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect();
    Line { stage: stage.into(), step, time: 1e9 + step as f64, values }
}

fn metrics() -> Vec<Line> {
    let pretrain = (1..=50).map(|step| line("pretrain", step, &[("loss", 6.0 / step as f64)]));
    let values = |step: u64| [("reward", step as f64 / 30.0), ("reward_std", 0.3), ("reward_brief", 0.5)];
    let grpo = (1..=30).map(|step| line("grpo", step, &values(step)));
    pretrain.chain(grpo).collect()
}

/// Scripts rely on these keys, spelt like this.
#[test]
fn the_keys_of_report_json() {
    let json = serde_json::to_value(report()).unwrap();
    let keys: Vec<&String> = json["stages"][0].as_object().unwrap().keys().collect();
    let expected =
        ["name", "seconds", "cpu_seconds", "tokens", "operations", "peak_memory_bytes", "joules", "cost"];
    assert_eq!(keys, expected);
    for key in ["pass@1", "pass@8", "maj@8"] {
        for field in ["value", "low", "high"] {
            assert!(json["evaluation"]["grpo"][key][field].is_f64(), "{key}.{field}");
            assert!(json["evaluation_by_task"]["arithmetic"]["sft"][key][field].is_f64());
        }
    }
    let keys: Vec<&String> = json["claims"][0].as_object().unwrap().keys().collect();
    let expected = [
        "name",
        "baseline",
        "ratio",
        "low",
        "high",
        "shown",
        "figure",
        "flops",
        "baseline_flops",
        "over_budget",
    ];
    assert_eq!(keys, expected);
    assert_eq!(json["stages"][0]["joules"], serde_json::Value::Null);
}

/// A resumed run reads its measurements back from the folder.
#[test]
fn an_evaluation_reads_back_as_itself() {
    for samples in [1, 8, 64] {
        let one = Scores { samples, ..evaluation(80) };
        let one = if samples == 1 {
            Scores { pass_at_k: one.pass_at_1, maj_at_k: one.pass_at_1, ..one }
        } else {
            one
        };
        let text = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<Scores>(&text).unwrap(), one);
    }
    assert!(serde_json::from_str::<Scores>("{}").is_err());
}

/// The page is opened from a disk, without a network and perhaps years later.
#[test]
fn the_page_stands_alone() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &report(), &metrics()).unwrap();
    let page = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
    for outside in ["http://", "https://", "src=", "href=", "@import", "url("] {
        let found = page.replace("http://www.w3.org/2000/svg", "").contains(outside);
        assert!(!found, "{outside}");
    }
    assert!(
        page.contains("its own answers, checked, raised pass@1 from <em>40 %</em> to <em>85 %</em>"),
        "the headline"
    );
    assert!(page.contains("✓ shown"));
    let drawn = |class: &str| page.matches(&format!("<div class=\"{class}\"><svg")).count();
    assert!(
        drawn("narrow") > 2 && drawn("wide") == drawn("narrow"),
        "a chart for a phone for each that is too wide"
    );
    assert!(page.contains("Reward “brief”") && !page.contains("Reward “std”"));
    let curve = std::fs::read_to_string(dir.path().join("curve.svg")).unwrap();
    assert!(curve.starts_with("<svg xmlns=") && curve.contains("prefers-color-scheme"));
    assert!(!curve.contains("NaN") && !page.contains("NaN") && !page.contains(">inf"));
}

/// Names come from a user's recipe and texts from a model: neither may become part of the page.
#[test]
fn hostile_names_and_texts_stay_text() {
    let evil = "</title></svg><script>alert(1)</script>\" onload=\"x";
    let mut report = report();
    report.name = evil.into();
    report.model = evil.into();
    report.task = evil.into();
    report.machine = evil.into();
    report.recipe = evil.into();
    report.stages[0].name = evil.into();
    report.evaluation[0].0 = evil.into();
    report.evaluation_by_task[0].0 = evil.into();
    report.claims[0].name = evil.into();
    report.claims[0].baseline = evil.into();
    report.reinforcement = Some((evil.into(), evil.into()));
    report.earned = report.reinforcement.clone();
    report.overlays = vec![Overlay { title: evil.into(), stages: vec![evil.into(), "grpo".into()] }];
    let completion = Completion { stage: evil.into(), text: evil.into(), score: 0.5, reason: evil.into() };
    report.samples = vec![Sample {
        task: evil.into(),
        prompt: evil.into(),
        answer: evil.into(),
        completions: vec![completion],
    }];
    let mut metrics = metrics();
    metrics.extend((1..=30).map(|step| line(evil, step, &[("reward", 0.5), ("loss", 0.1), (evil, 1.0)])));
    let page = html::page(&report, &metrics);
    assert_eq!(page.matches("<script").count(), 1, "only the page's own");
    assert!(!page.contains("\" onload="));
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
}

/// A run that has only begun, or that never learnt by reinforcement, has a report too.
#[test]
fn a_report_of_nearly_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &RunReport::default(), &[]).unwrap();
    assert!(!dir.path().join("curve.svg").exists());
    let broken = [line("grpo", 1, &[("reward", f64::NAN), ("loss", f64::NAN)])];
    write(dir.path(), &RunReport::default(), &broken).unwrap();
    write(dir.path(), &report(), &[line("grpo", 1, &[("reward", 0.5)])]).unwrap();
}
