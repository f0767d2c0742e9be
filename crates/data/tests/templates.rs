//! Chat templates with system messages, thoughts, tools and calls, against Jinja as `transformers` sets it up: the goldens
//! of `tests/templates/compare.py`, which also compares any other collection of templates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data::{Conversation, Tokenizer, TrainOptions, render_chat};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    chats: BTreeMap<String, Conversation>,
    rendered: Vec<Rendered>,
}

#[derive(Deserialize)]
struct Rendered {
    template: String,
    chat: String,
    generate: bool,
    /// None where Jinja fails.
    text: Option<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/templates")
}

#[test]
fn templates_give_the_texts_of_jinja() {
    let golden = std::fs::read_to_string(folder().join("golden.json")).expect("golden texts");
    let Golden { chats, rendered } = serde_json::from_str(&golden).expect("golden texts");
    let options = TrainOptions {
        bos: Some("<s>".to_owned()),
        eos: "</s>".to_owned(),
        pad: Some("<pad>".to_owned()),
        ..TrainOptions::reasoning(300)
    };
    let tokenizer =
        Tokenizer::train(std::iter::once("Some text.".to_owned()), &options).expect("a tokenizer");
    assert!(rendered.iter().filter(|r| r.text.is_some()).count() > 80, "there is something to compare");
    for Rendered { template, chat, generate, text } in rendered {
        let source = std::fs::read_to_string(folder().join(&template)).expect("a template");
        let got = render_chat(&tokenizer.clone().with_chat_template(source), &chats[&chat], generate);
        assert_eq!(
            got.as_ref().ok(),
            text.as_ref(),
            "{template}, {chat}, {generate}: {:?}",
            got.as_ref().err()
        );
    }
}
