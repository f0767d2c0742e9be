//! `generate`: keys, order, bits, stop strings, and what is refused.

use std::path::Path;

use crate::common::{CONTEXT, arg, object, printed_list, refusal, text, tiny};
use data::{Message, Tokenizer, encode_prompt};

/// What the sampler reports is what the trainer's forward pass computes: the printed decimals are equal.
#[test]
fn log_probs_are_those_of_score() {
    let dir = tiny();
    let model = arg(dir.path());
    let printed = text(&[
        "generate",
        model,
        "--prompt",
        "What is 17 + 25?",
        "--max-new",
        "24",
        "--samples",
        "3",
        "--seed",
        "5",
        "--json",
    ]);
    let samples = serde_json::from_str::<serde_json::Value>(&printed).expect("JSON");
    let samples = samples["samples"].as_array().expect("a list");
    assert_eq!(samples.len(), 3);
    let logprobs = printed_list(&printed, "logprobs");
    let tokenizer = Tokenizer::load(dir.path()).expect("a tokenizer");
    let prompt = encode_prompt(&tokenizer, &[Message::user("What is 17 + 25?")]).expect("ids");
    for (sample, logprobs) in samples.iter().zip(logprobs) {
        let list = |key: &str| -> Vec<u32> { serde_json::from_value(sample[key].clone()).expect("ids") };
        assert_eq!(list("prompt_ids"), prompt);
        let drawn = list("token_ids");
        let text_of = tokenizer.decode(&drawn, true).expect("text");
        assert_eq!(sample["text"], text_of);
        let ended = drawn.last().copied() == tokenizer.eos_id();
        assert_eq!(sample["finish_reason"], if ended { "stop" } else { "length" });
        let ids: Vec<String> = prompt.iter().chain(&drawn).map(u32::to_string).collect();
        let scored = text(&["score", model, "--ids", &ids.join(","), "--json"]);
        assert_eq!(printed_list(&scored, "logprobs")[0][prompt.len() - 1..], logprobs[..]);
        for decimal in logprobs {
            let read: f32 = decimal.parse().expect("a number");
            assert_eq!(serde_json::to_string(&read).expect("a number"), decimal, "the shortest decimal");
        }
    }
}

/// A prompt's samples do not change with the number of threads, the other prompts, or the number of samples.
#[test]
fn neighbours_and_threads_change_nothing() {
    let dir = tiny();
    let model = arg(dir.path());
    let file = dir.path().join("prompts.txt");
    std::fs::write(&file, "Tom has 3 apples.\r\nWhat is 17 + 25 - 8?\nagain\n").expect("written");
    let run = |more: &[&str]| {
        let mut args = vec!["generate", model, "--max-new", "20", "--json"];
        args.extend_from_slice(more);
        object(&args)["samples"].as_array().expect("a list").clone()
    };
    let all = run(&["--prompts", arg(&file), "--samples", "3", "--threads", "2"]);
    assert_eq!(all.len(), 9);
    assert_eq!(all, run(&["--prompts", arg(&file), "--samples", "3", "--threads", "1"]));
    let alone = run(&["--prompt", "What is 17 + 25 - 8?", "--samples", "2"]);
    assert_eq!(all[3..5], alone[..]);
    assert_ne!(alone[0]["token_ids"], alone[1]["token_ids"]);
    assert_ne!(alone, run(&["--prompt", "What is 17 + 25 - 8?", "--samples", "2", "--seed", "10"]));
    let greedy = run(&["--prompt", "What is 17 + 25 - 8?", "--samples", "2", "--temperature", "0"]);
    assert_eq!(greedy[0], greedy[1]);
    assert_eq!(
        run(&["--prompt", "again", "--top-k", "1"])[0],
        run(&["--prompt", "again", "--temperature", "0"])[0]
    );
}

#[test]
fn stop_strings_end_a_continuation() {
    let dir = tiny();
    let model = arg(dir.path());
    let run = |more: &[&str]| {
        let mut args = vec!["generate", model, "--raw", "--prompt", "Tom", "--max-new", "40", "--seed", "1"];
        args.extend_from_slice(more);
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let json = |args: Vec<String>| {
        object(&args.iter().map(String::as_str).collect::<Vec<_>>())["samples"][0].clone()
    };
    let whole = json(run(&["--json"]));
    let whole_text = whole["text"].as_str().expect("text").to_owned();
    let at = whole_text.char_indices().nth(whole_text.chars().count() / 2).expect("some text").0;
    let stop: String = whole_text[at..].chars().take(2).collect();
    let cut = json(run(&["--stop", &stop, "--json"]));
    assert_eq!(cut["text"], whole_text[..whole_text.find(&stop).expect("its own part")]);
    assert_eq!(cut["finish_reason"], "stop");
    assert!(cut["token_ids"].as_array().map(Vec::len) < whole["token_ids"].as_array().map(Vec::len));
    // What is streamed to a person is the same text.
    let args = run(&["--stop", &stop]);
    let streamed = text(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(streamed.strip_suffix('\n'), cut["text"].as_str());
    let args = run(&[]);
    let streamed = text(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(streamed.strip_suffix('\n'), Some(whole_text.as_str()));
}

#[test]
fn the_context_ends_a_continuation() {
    let dir = tiny();
    let samples = object(&[
        "generate",
        arg(dir.path()),
        "--raw",
        "--prompt",
        "a",
        "--samples",
        "8",
        "--max-new",
        "500",
        "--json",
    ]);
    for sample in samples["samples"].as_array().expect("a list") {
        let count = |key: &str| sample[key].as_array().map_or(0, Vec::len);
        let used = count("prompt_ids") + count("token_ids");
        assert!(used == CONTEXT || (used < CONTEXT && sample["finish_reason"] == "stop"), "{used} tokens");
    }
}

#[test]
fn bad_prompts_are_refused() {
    let dir = tiny();
    let model = arg(dir.path());
    let long = "What is 17 + 25 - 8? ".repeat(40);
    let error = refusal(&["generate", model, "--prompt", &long, "--json"]);
    assert!(error.contains("context is 96"), "{error}");
    assert!(refusal(&["generate", model, "--prompt", ""]).contains("the prompt is empty"));
    let file = dir.path().join("prompts.txt");
    for (bytes, want) in [
        (&b""[..], "holds no prompts"),
        (b"one\n\nthree\n", "line 2, is empty"),
        (b"one\n\xff\xfe\n", "line 2, is not UTF-8"),
    ] {
        std::fs::write(&file, bytes).expect("written");
        let error = refusal(&["generate", model, "--prompts", arg(&file), "--json"]);
        assert!(error.contains(want) && error.contains("prompts.txt"), "{error}");
    }
    assert!(refusal(&["generate", model, "--prompts", "/nonexistent/p.txt"]).contains("/nonexistent/p.txt"));
}

#[test]
fn bad_models_are_refused() {
    let missing = refusal(&["generate", "/nonexistent/model", "--prompt", "hi"]);
    assert!(missing.contains("there is no model at /nonexistent/model"), "{missing}");
    let dir = tiny();
    // The folder above a model's names the model.
    let above = tempfile::tempdir().expect("a temporary folder");
    let inner = above.path().join("run/sft");
    std::fs::create_dir_all(&inner).expect("made");
    std::fs::copy(dir.path().join("config.json"), inner.join("config.json")).expect("copied");
    assert!(refusal(&["generate", arg(above.path()), "--prompt", "hi"]).contains("run/sft"));
    assert!(
        refusal(&["generate", arg(&dir.path().join("config.json")), "--prompt", "hi"]).contains("is a file")
    );
    misfit(dir.path());
    std::fs::write(dir.path().join("tokenizer.json"), "{\"version\"").expect("written");
    assert!(refusal(&["generate", arg(dir.path()), "--prompt", "hi"]).contains("tokenizer.json"));
    std::fs::remove_file(dir.path().join("tokenizer.json")).expect("removed");
    assert!(refusal(&["generate", arg(dir.path()), "--prompt", "hi"]).contains("holds no tokenizer.json"));
}

/// A tokenizer with more ids than the model has.
fn misfit(dir: &Path) {
    model::Model::random(crate::common::config(100, None), 1).save(dir).expect("saved");
    let error = refusal(&["generate", arg(dir), "--prompt", "hi", "--json"]);
    assert!(error.contains("does not fit") && error.contains("to 99"), "{error}");
}

/// Clap's own refusals have the same exit code.
#[test]
fn bad_numbers_are_refused() {
    for args in [
        &["generate", "m", "--prompt", "x", "--samples", "0"][..],
        &["generate", "m", "--prompt", "x", "--temperature", "-1"],
        &["generate", "m", "--prompt", "x", "--temperature", "nan"],
        &["generate", "m", "--prompt", "x", "--top-p", "0"],
        &["generate", "m", "--prompt", "x", "--max-new", "0"],
        &["generate", "m"],
        &["generate", "m", "--prompt", "x", "--prompts", "y"],
        &["score", "m", "--ids", "1,x"],
        &["score", "m"],
        &["eval", "m", "--task", "word", "--samples", "0"],
    ] {
        let out = crate::common::shoestring(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(out.stdout.is_empty() && !out.stderr.is_empty(), "{args:?}");
    }
}
