//! Renders chat templates for the comparison with Jinja (`tests/templates/compare.py`): one JSON object a line on stdin,
//! `{"template": …, "conversation": {"messages": […], …}, "add_generation_prompt": …}`, and one a line on stdout,
//! `{"text": …}` or `{"error": …}`.

use std::io::{self, BufRead, Write};

use data::{Conversation, Tokenizer, TrainOptions, render_chat};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: serde_json::Value,
    add_generation_prompt: bool,
}

fn render(tokenizer: &Tokenizer, case: Case) -> Result<String, String> {
    let conversation: Conversation =
        serde_json::from_value(case.conversation).map_err(|error| error.to_string())?;
    let tokenizer = tokenizer.clone().with_chat_template(case.template);
    render_chat(&tokenizer, &conversation, case.add_generation_prompt).map_err(|error| error.to_string())
}

fn main() -> io::Result<()> {
    let options = TrainOptions {
        bos: Some("<s>".to_owned()),
        eos: "</s>".to_owned(),
        pad: Some("<pad>".to_owned()),
        ..TrainOptions::reasoning(300)
    };
    let texts = std::iter::once("Some text.".to_owned());
    let tokenizer = Tokenizer::train(texts, &options).expect("a tokenizer of one text");
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let case: Case = serde_json::from_str(&line?)?;
        let answer = match render(&tokenizer, case) {
            Ok(text) => serde_json::json!({"text": text}),
            Err(error) => serde_json::json!({"error": error}),
        };
        writeln!(out, "{answer}")?;
    }
    Ok(())
}
