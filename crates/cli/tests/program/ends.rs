//! Where answers begin and end and how a model wants to be sampled: the same for every command, and kept by training.

use std::path::Path;

use crate::common::{arg, object, puppet, refusal, shoestring, tokenizer};
use serde_json::{Value, json};

/// Changes a JSON file of a folder.
fn edit(dir: &Path, file: &str, key: &str, value: Value) {
    let path = dir.join(file);
    let mut map: Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    map[key] = value;
    std::fs::write(path, map.to_string()).expect("written");
}

/// `generate` and `eval` stop at a token that generation_config.json alone names.
#[test]
fn an_end_of_generation_config_ends_answers_everywhere() {
    let tokenizer = tokenizer();
    let dir = puppet(&tokenizer, "<|assistant|><think></think><answer>4</answer><|system|>");
    let model = arg(dir.path());
    let end = tokenizer.token_id("<|system|>").expect("a token");
    edit(dir.path(), "generation_config.json", "eos_token_id", json!([tokenizer.eos_id(), end]));
    let file = dir.path().join("mine.jsonl");
    std::fs::write(&file, "{\"prompt\": \"2 + 2?\", \"answer\": 4}\n").expect("written");

    let said = object(&["generate", model, "--prompt", "2 + 2?", "--temperature", "0", "--json"]);
    assert_eq!(said["samples"][0]["finish_reason"], "stop");
    assert_eq!(said["samples"][0]["token_ids"].as_array().expect("ids").last(), Some(&json!(end)));
    let found =
        object(&["eval", model, "--problems", arg(&file), "--samples", "1", "--max-new", "12", "--json"]);
    assert_eq!((&found["pass@1"]["value"], &found["mean_tokens"]), (&json!(1.0), &json!(6.0)));
}

/// The penalty of repetition is applied where the folder asks for it, and what is not known is refused by name.
#[test]
fn a_penalty_of_repetition_is_applied() {
    let tokenizer = tokenizer();
    let dir = puppet(&tokenizer, "<|assistant|>xx");
    let model = arg(dir.path());
    // As raw text, since a user's turn would hold the end token, which then pays the penalty too.
    let ask =
        ["generate", model, "--raw", "--prompt", "<|assistant|>", "--temperature", "0", "--max-new", "5"];
    let say = || {
        let args = [&ask[..], &["--json"]].concat();
        object(&args)["samples"][0]["text"].clone()
    };
    assert_eq!(say(), "xxxxx");
    // The head of a follower says 64 or a little more, that of the end token 40.
    edit(dir.path(), "generation_config.json", "repetition_penalty", json!(3.0));
    assert_eq!(say(), "x");
    edit(dir.path(), "generation_config.json", "no_repeat_ngram_size", json!(3));
    let error = refusal(&["generate", model, "--prompt", "?"]);
    assert!(error.contains("no_repeat_ngram_size") && error.contains("generation_config.json"), "{error}");
}

/// Names of control tokens in special_tokens_map.json count where tokenizer_config.json has none.
#[test]
fn a_special_tokens_map_names_the_end() {
    let tokenizer = tokenizer();
    let dir = puppet(&tokenizer, "<|assistant|>x<|end|>");
    edit(dir.path(), "tokenizer_config.json", "eos_token", Value::Null);
    edit(dir.path(), "config.json", "eos_token_id", Value::Null);
    edit(dir.path(), "generation_config.json", "eos_token_id", Value::Null);
    let finish = || {
        let args =
            ["generate", arg(dir.path()), "--prompt", "?", "--temperature", "0", "--max-new", "5", "--json"];
        object(&args)["samples"][0]["finish_reason"].clone()
    };
    assert_eq!(finish(), "length");
    let map = json!({"eos_token": {"content": "<|end|>", "special": true}});
    std::fs::write(dir.path().join("special_tokens_map.json"), map.to_string()).expect("written");
    assert_eq!(finish(), "stop");
}

/// What fine-tuning teaches as the end of a turn is an end of the model that it writes, which keeps the wishes of the
/// one that it began with; where turns end in nothing, it says so.
#[test]
fn what_fine_tuning_teaches_as_an_end_is_an_end() {
    let tokenizer = tokenizer();
    let dir = puppet(&tokenizer, "<|assistant|>x<|end|>");
    let pad = tokenizer.token_id("<|pad|>").expect("a token");
    edit(dir.path(), "tokenizer_config.json", "eos_token", json!("<|pad|>"));
    edit(dir.path(), "config.json", "eos_token_id", json!(pad));
    edit(dir.path(), "generation_config.json", "eos_token_id", json!(pad));
    edit(dir.path(), "generation_config.json", "top_p", json!(0.5));
    let chats = dir.path().join("chats.jsonl");
    let chat = json!({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}]});
    std::fs::write(&chats, format!("{chat}\n")).expect("written");
    let recipe = dir.path().join("r.toml");
    let text = format!(
        "name = 'r'\n[[stage]]\nkind = 'sft'\nfrom = {:?}\nsteps = 1\nbatch_tokens = 64\nseq_len = 64\nsample_every = 0\n\
         [stage.data]\njsonl = {:?}\n[stage.optimizer]\nlearning_rate = 1e-9\n",
        arg(dir.path()),
        arg(&chats)
    );
    std::fs::write(&recipe, text).expect("written");
    let out = dir.path().join("out");
    let run = |out: &Path| {
        let done = shoestring(&["run", arg(&recipe), "--out", arg(out)]);
        let said = String::from_utf8(done.stdout).expect("UTF-8") + &String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}");
        said
    };
    let said = run(&out);
    assert!(said.contains("<|end|>") && said.contains("generation_config.json"), "{said}");
    let written: Value =
        serde_json::from_slice(&std::fs::read(out.join("sft/generation_config.json")).expect("read"))
            .expect("JSON");
    assert_eq!(written["eos_token_id"], json!([pad, tokenizer.eos_id()]));
    assert_eq!(written["top_p"], 0.5);

    let plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    edit(dir.path(), "tokenizer_config.json", "chat_template", json!(plain));
    let said = run(&dir.path().join("again"));
    assert!(said.contains("warning: sft: 1 of its turns end in no control token"), "{said}");
}

/// A prompt that opens the thought has begun the answer: it is well formed, kept by `reject`, and learnt from.
#[test]
fn a_thought_that_the_prompt_opens_is_part_of_the_answer() {
    let tokenizer = tokenizer();
    let template = tokenizer
        .chat_template()
        .expect("a template")
        .replace("'<|assistant|>' -}}\n{%- endif -%}\n", "'<|assistant|><think>\\n' -}}\n{%- endif -%}\n");
    let tokenizer = tokenizer.with_chat_template(template);
    let dir = puppet(&tokenizer, "<|assistant|><think>\n</think><answer>4</answer><|end|>");
    let lines: String = (0..20)
        .map(|i| json!({"prompt": format!("Number {i}: 2 + 2?"), "answer": "4", "verifier": "numeric", "solution": "so"}).to_string() + "\n")
        .collect();
    std::fs::write(dir.path().join("mine.jsonl"), lines).expect("written");
    let recipe = dir.path().join("r.toml");
    let text = format!(
        "name = 'r'\n[problems]\njsonl = {:?}\n\
         [[stage]]\nkind = 'grpo'\nfrom = {model:?}\nsteps = 1\nprompts = 2\ngroup = 2\nmax_new = 8\n\
         [[stage]]\nkind = 'reject'\nfrom = {model:?}\nproblems = 4\nsamples = 1\nmax_new = 8\n\
         [[stage]]\nkind = 'sft'\nfrom = {model:?}\nsteps = 1\nbatch_tokens = 256\nseq_len = 128\ndata = {{ stage = 'reject' }}\n",
        arg(&dir.path().join("mine.jsonl")),
        model = arg(dir.path()),
    );
    std::fs::write(&recipe, text).expect("written");
    let out = dir.path().join("out");
    let done = shoestring(&["run", arg(&recipe), "--out", arg(&out)]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).expect("read");
    let step: Value = serde_json::from_str(metrics.lines().next().expect("a line")).expect("JSON");
    let text = step.to_string();
    assert!(text.contains("\"format\":1.0"), "{text}");
    let traces = std::fs::read_to_string(out.join("reject/traces.jsonl")).expect("read");
    assert_eq!(traces.lines().count(), 4);
    assert!(traces.contains(r"<think>\n</think><answer>4</answer>"), "{traces}");
}

/// An `eval` stage of a model from outside is in the closing table, with one sample too.
#[test]
fn an_eval_stage_of_a_model_from_outside_is_in_the_table() {
    let tokenizer = tokenizer();
    let dir = puppet(&tokenizer, "<|assistant|><think></think><answer>4</answer><|end|>");
    let line = |i: usize| json!({"prompt": format!("Number {i}"), "answer": "4"}).to_string() + "\n";
    std::fs::write(dir.path().join("mine.jsonl"), (1..=30).map(line).collect::<String>()).expect("written");
    let recipe = dir.path().join("r.toml");
    let text = format!(
        "name = 'r'\n[problems]\njsonl = {:?}\nheld_out = 20\n[[stage]]\nkind = 'eval'\nof = {:?}\nmax_new = 8\n",
        arg(&dir.path().join("mine.jsonl")),
        arg(dir.path()),
    );
    std::fs::write(&recipe, text).expect("written");
    for samples in ["1", "2"] {
        let (out, set) = (dir.path().join(samples), format!("stage.eval.samples={samples}"));
        let done = shoestring(&["run", arg(&recipe), "--out", arg(&out), "--set", &set]);
        let said = String::from_utf8_lossy(&done.stdout);
        let row = said.lines().find(|l| l.trim_start().starts_with(arg(dir.path()))).expect("a row");
        assert!(row.contains("100.0 %"), "{said}");
        assert!(!said.contains("text.toml"), "nothing that has to do with another run: {said}");
        let report: Value =
            serde_json::from_slice(&std::fs::read(out.join("report.json")).expect("read")).expect("JSON");
        assert_eq!(report["evaluation"][arg(dir.path())]["problems"], 20);
    }
}

/// A problem that leaves no room for an answer is named before the first step, or left out with a count where the recipe, or
/// the option of `eval`, says so.
#[test]
fn a_prompt_that_is_too_long_is_named_before_the_first_step_or_left_out() {
    let tokenizer = tokenizer();
    let dir = puppet(&tokenizer, "<|assistant|><think></think><answer>4</answer><|end|>");
    let line = |i: usize| {
        let prompt = format!("Number {i}: {}", "x".repeat(if [17, 20].contains(&i) { 400 } else { 4 }));
        json!({"prompt": prompt, "answer": "4"}).to_string() + "\n"
    };
    std::fs::write(dir.path().join("mine.jsonl"), (1..=30).map(line).collect::<String>()).expect("written");
    let recipe = dir.path().join("r.toml");
    let text = format!(
        "name = 'r'\n[problems]\njsonl = {:?}\n[[stage]]\nkind = 'grpo'\nfrom = {:?}\nsteps = 40\nprompts = 1\ngroup = 2\nmax_new = 8\n",
        arg(&dir.path().join("mine.jsonl")),
        arg(dir.path()),
    );
    std::fs::write(&recipe, &text).expect("written");
    let done = shoestring(&["run", arg(&recipe), "--out", arg(&dir.path().join("out"))]);
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{said}");
    assert!(said.contains("problem 17 has ") && said.contains("the limit is 248"), "{said}");
    assert!(!dir.path().join("out/metrics.jsonl").exists(), "nothing was trained");

    let set = "problems.too_long=\"leave_out\"";
    let evaluated = text.replace("steps = 40", "steps = 1")
        + &format!("[[stage]]\nkind = 'eval'\nof = {:?}\nmax_new = 8\n", arg(dir.path()));
    std::fs::write(&recipe, evaluated).expect("written");
    let out = dir.path().join("again");
    let done = shoestring(&["run", arg(&recipe), "--out", arg(&out), "--set", set]);
    let said = String::from_utf8(done.stdout).expect("UTF-8") + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    assert!(said.contains("1 of 27 problems and 1 of 3 held-out ones are left out"), "{said}");
    let ended = std::fs::read_to_string(out.join("grpo/done.json")).expect("read");
    assert!(ended.contains("\"problems_left_out\": 1.0"), "{ended}");

    let mine = dir.path().join("mine.jsonl");
    let eval =
        ["eval", arg(dir.path()), "--problems", arg(&mine), "--samples", "1", "--max-new", "8", "--json"];
    assert!(refusal(&eval).contains("problem 17 has "));
    let found = object(&[&eval[..], &["--leave-out-too-long"]].concat());
    assert_eq!((&found["left_out"], &found["problems"]), (&json!(2), &json!(28)));
}
