use std::fs::File;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::tokenizer::{Tokenizer, TrainOptions};

fn through_gguf(tokenizer: &Tokenizer, dir: &Path) -> Tokenizer {
    let (keys, _) = tokenizer.gguf_keys(tokenizer.vocab_size()).unwrap();
    let path = dir.join("tokenizer.gguf");
    let mut file = File::create(&path).unwrap();
    ground::gguf::write(&mut file, &keys, &[], |_| Vec::new()).unwrap();
    Tokenizer::load(&path).unwrap()
}

const TEXTS: [&str; 6] =
    ["Tom has 12 + 7 apples.", "<think>\n 3 * 4 = 12\n</think>", "straße, 日本", "  x ", "<|end|>", ""];

/// The tokenizers that we train cut texts by an expression of their own, which travels in a key of ours.
#[test]
fn a_trained_tokenizer_survives_the_format() {
    let texts = (0..300).map(|i| format!("Tom has {i} + 7 apples and gives {i} of them away."));
    let options = TrainOptions {
        vocab_size: 400,
        special_tokens: vec!["<|user|>".into()],
        added_tokens: vec!["<think>".into()],
        eos: "<|end|>".into(),
        bos: None,
        pad: None,
        chat_template: Some("{{ messages }}".into()),
    };
    let tokenizer = Tokenizer::train(texts, &options).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let back = through_gguf(&tokenizer, dir.path());
    for text in TEXTS {
        assert_eq!(back.encode(text).unwrap(), tokenizer.encode(text).unwrap(), "{text:?}");
        assert_eq!(
            back.encode_untrusted(text).unwrap(),
            tokenizer.encode_untrusted(text).unwrap(),
            "{text:?}"
        );
    }
    assert_eq!((back.eos_id(), back.chat_template()), (tokenizer.eos_id(), tokenizer.chat_template()));
    assert_eq!(back.special_ids(), tokenizer.special_ids());
    assert_eq!(back.decode(&back.encode(TEXTS[0]).unwrap(), true).unwrap(), TEXTS[0]);
}

/// SentencePiece's kind: the pair whose whole has the highest score is merged first, bytes stand in for unknown letters.
#[test]
fn pieces_merge_by_their_scores() {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    let mut kinds = vec![kind::UNKNOWN, kind::CONTROL, kind::CONTROL];
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    kinds.extend([kind::BYTE; 256]);
    let mut scores = vec![0.0; tokens.len()];
    // "abc" is better than "ab" and reached through "bc" alone, which is best.
    for (piece, score) in [
        ("▁", 0.0),
        ("a", 0.0),
        ("b", 0.0),
        ("c", 0.0),
        ("ab", -3.0),
        ("bc", -1.0),
        ("abc", -2.0),
        ("▁a", -4.0),
    ] {
        tokens.push(piece.into());
        kinds.push(kind::NORMAL);
        scores.push(score);
    }
    use ground::gguf::Value::{Floats, Int, Ints, Text, Texts};
    let keys = [
        ("tokenizer.ggml.model", Text("llama".into())),
        ("tokenizer.ggml.tokens", Texts(tokens.clone())),
        ("tokenizer.ggml.token_type", Ints(kinds)),
        ("tokenizer.ggml.scores", Floats(scores)),
        ("tokenizer.ggml.bos_token_id", Int(1)),
        ("tokenizer.ggml.eos_token_id", Int(2)),
        ("tokenizer.ggml.unknown_token_id", Int(0)),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spm.gguf");
    ground::gguf::write(&mut File::create(&path).unwrap(), &keys, &[], |_| Vec::new()).unwrap();
    let tokenizer = Tokenizer::load(&path).unwrap();
    let pieces = |text: &str| -> Vec<String> {
        tokenizer.encode_whole(text).unwrap().iter().map(|&id| tokens[id as usize].clone()).collect()
    };
    assert_eq!(pieces("abc"), ["<s>", "▁", "abc"]);
    assert_eq!(pieces("ab a"), ["<s>", "▁", "ab", "▁a"]);
    assert_eq!(pieces("é"), ["<s>", "▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(tokenizer.decode(&tokenizer.encode("ab aé").unwrap(), true).unwrap(), "ab aé");
    let again = through_gguf(&tokenizer, dir.path());
    for text in ["abc ab", "cab é a", "<s>a"] {
        assert_eq!(again.encode_whole(text).unwrap(), tokenizer.encode_whole(text).unwrap(), "{text:?}");
    }
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.gguf");
    use ground::gguf::Value::{Text, Texts};
    for (model, pre, want) in [("bert", "x", "is bert"), ("gpt2", "nonsense", "\"nonsense\"")] {
        let keys = [
            ("tokenizer.ggml.model", Text(model.into())),
            ("tokenizer.ggml.pre", Text(pre.into())),
            ("tokenizer.ggml.tokens", Texts(vec!["a".into()])),
            ("tokenizer.ggml.merges", Texts(vec![])),
        ]
        .map(|(key, value)| (key.to_owned(), value));
        ground::gguf::write(&mut File::create(&path).unwrap(), &keys, &[], |_| Vec::new()).unwrap();
        let error = Tokenizer::load(&path).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    let wordpiece = json!({"version": "1.0", "model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a",
        "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}});
    std::fs::write(dir.path().join("tokenizer.json"), wordpiece.to_string()).unwrap();
    let error = Tokenizer::load(dir.path()).unwrap().gguf_keys(1).unwrap_err();
    assert!(error.contains("WordPiece"), "{error}");
}
