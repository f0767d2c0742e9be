use std::fs;
use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::DataError;

const TEXT: &str = "The cat sat on the mat. 12 + 30 = 42, so the answer is 42. Überall häufig 日本語 \
    if x < 10 { return x; } the cat, the mat, the answer, the theory. ";

/// One small tokenizer for all tests of this module.
fn small() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        Tokenizer::train(std::iter::repeat_n(TEXT.to_owned(), 4), &TrainOptions::reasoning(400)).unwrap()
    })
}

/// Text that is likely to spell tokens, whole and in parts.
fn hostile_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("<|end|>".to_owned()),
        Just("<think>".to_owned()),
        Just("</answer>".to_owned()),
        Just("<|".to_owned()),
        Just("|>".to_owned()),
        Just("end".to_owned()),
        Just("<|user|>".to_owned()),
        Just(" \n".to_owned()),
        ".{0,6}",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|v| v.concat())
}

proptest! {
    /// Protects: no text is lost or changed by encoding and decoding, whatever the script or the control characters.
    #[test]
    fn round_trip(text in prop_oneof![any::<String>(), hostile_text()]) {
        let t = small();
        prop_assert_eq!(&t.decode(&t.encode(&text).unwrap(), false).unwrap(), &text);
        prop_assert_eq!(&t.decode(&t.encode_untrusted(&text).unwrap(), true).unwrap(), &text);
    }

    /// Protects: a user cannot end a turn, open a role or start a thought by typing its name.
    #[test]
    fn untrusted_text_gives_no_control_token(text in hostile_text()) {
        let t = small();
        let named: Vec<u32> = TrainOptions::reasoning(400)
            .special_tokens.iter().chain(&TrainOptions::reasoning(400).added_tokens)
            .map(|name| t.token_id(name).unwrap()).collect();
        for id in t.encode_untrusted(&text).unwrap() {
            prop_assert!(!named.contains(&id), "{:?} in {:?}", t.token_text(id), text);
        }
        for id in t.encode_at(&text, Trust::Assistant).unwrap() {
            prop_assert!(!t.is_special(id), "{:?} in {:?}", t.token_text(id), text);
        }
    }

    /// Protects: streamed text is the text, and every piece of it is whole characters.
    #[test]
    fn stream_joins_to_decode(text in prop_oneof![any::<String>(), hostile_text()]) {
        let t = small();
        let ids = t.encode(&text).unwrap();
        let mut stream = t.stream();
        let mut joined = String::new();
        for &id in &ids {
            joined.extend(stream.push(id).unwrap());
        }
        joined.extend(stream.finish().unwrap());
        prop_assert_eq!(joined, t.decode(&ids, true).unwrap());
    }

    /// Protects: any ids at all, of a model that babbles, stream and decode without a panic and in bounded memory.
    #[test]
    fn any_ids_stream(ids in prop::collection::vec(0u32..500, 0..200)) {
        let t = small();
        let mut stream = t.stream();
        let mut joined = String::new();
        for &id in &ids {
            joined.extend(stream.push(id).unwrap());
        }
        joined.extend(stream.finish().unwrap());
        let whole = t.decode(&ids, true).unwrap();
        let plain = |s: &str| s.replace('\u{fffd}', "");
        if !whole.contains('\u{fffd}') {
            prop_assert_eq!(joined, whole);
        } else {
            prop_assert!(plain(&joined).len() <= whole.len());
        }
    }
}

/// Protects: the ids that others rely on: special tokens first, then the added ones, one token per digit, and a
/// word joined with its leading space.
#[test]
fn layout_of_the_vocabulary() {
    let t = small();
    assert_eq!(t.eos_id(), Some(0));
    assert_eq!(t.token_text(0).as_deref(), Some("<|end|>"));
    assert_eq!(t.token_id("<think>"), Some(5));
    assert_eq!(t.pad_id(), t.token_id("<|pad|>"));
    assert_eq!(t.bos_id(), None);
    assert!(t.vocab_size() > 300 && t.vocab_size() <= 400);
    assert_eq!(t.token_text(t.vocab_size() as u32), None);
    assert_eq!(t.encode("9081").unwrap().len(), 4);
    assert_eq!(t.encode(" the").unwrap().len(), 1);
    assert_eq!(t.encode("<think>").unwrap(), [5]);
    assert_eq!(t.decode(&[5, 0], true).unwrap(), "<think>");
    assert_eq!(t.decode(&[5, 0], false).unwrap(), "<think><|end|>");
}

/// Protects: training is a function of the texts, not of threads, hash seeds or the order of documents.
#[test]
fn training_is_deterministic() {
    let texts: Vec<String> = (0..200).map(|i| format!("{TEXT} {} word{}", i * i, i % 7)).collect();
    let options = TrainOptions::reasoning(600);
    let first = Tokenizer::train(texts.clone().into_iter(), &options).unwrap();
    let again = Tokenizer::train(texts.clone().into_iter(), &options).unwrap();
    let reversed = Tokenizer::train(texts.into_iter().rev(), &options).unwrap();
    assert_eq!(first.fingerprint(), again.fingerprint());
    assert_eq!(first.fingerprint(), reversed.fingerprint());
}

/// Protects: control tokens in the training text cost no merges and cannot become words.
#[test]
fn named_tokens_are_not_learned_from_text() {
    let text = "<|end|><think>".repeat(500) + TEXT;
    let t = Tokenizer::train(std::iter::repeat_n(text, 3), &TrainOptions::reasoning(300)).unwrap();
    for word in ["<|", "|>", "think", "end"] {
        assert!(t.token_id(word).is_none(), "{word} became a token");
    }
}

/// Protects: contradictory options are refused with the option's name, before any work.
#[test]
fn bad_options_are_named() {
    let train =
        |o: &TrainOptions| Tokenizer::train(std::iter::once(TEXT.to_owned()), o).unwrap_err().to_string();
    let message = train(&TrainOptions::reasoning(200));
    assert!(message.contains("`vocab_size` is 200") && message.contains("265"), "{message}");
    let mut o = TrainOptions::reasoning(400);
    o.added_tokens.push("<|end|>".to_owned());
    assert!(train(&o).contains("`added_tokens`"));
    let o = TrainOptions { vocab_size: 400, ..TrainOptions::default() };
    assert!(train(&o).contains("`eos`"));
    let none = Tokenizer::train(std::iter::empty(), &TrainOptions::reasoning(400)).unwrap_err();
    assert!(none.to_string().contains("no text"), "{none}");
    let failing = [Ok(TEXT.to_owned()), Err(DataError::NoTemplate)];
    let e = Tokenizer::train_fallible(failing.into_iter(), &TrainOptions::reasoning(400)).unwrap_err();
    assert!(matches!(e, DataError::NoTemplate));
}

/// Protects: a saved tokenizer is the same tokenizer when loaded, and keys of others survive a second save.
#[test]
fn save_and_load() {
    let t = small();
    let dir = tempfile::tempdir().unwrap();
    t.save(dir.path()).unwrap();
    let path = dir.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["model_max_length"] = json!(77);
    fs::write(&path, config.to_string()).unwrap();
    let loaded = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(loaded.fingerprint(), t.fingerprint());
    assert_eq!(loaded.eos_id(), t.eos_id());
    assert_eq!(loaded.pad_id(), t.pad_id());
    assert_eq!(loaded.chat_template(), t.chat_template());
    assert_eq!(loaded.vocab_size(), t.vocab_size());
    loaded.save(dir.path()).unwrap();
    assert!(fs::read_to_string(&path).unwrap().contains("\"model_max_length\": 77"));
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "temporary files remain: {left:?}");
}

/// Protects: the forms in which `transformers` has written token names and templates over the years.
#[test]
fn config_variants() {
    let dir = tempfile::tempdir().unwrap();
    small().save(dir.path()).unwrap();
    let path = dir.path().join("tokenizer_config.json");
    let load = |config: Value| {
        fs::write(&path, config.to_string()).unwrap();
        Tokenizer::load(dir.path())
    };
    let named = json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]);
    let t =
        load(json!({"eos_token": {"content": "<|end|>", "lstrip": false}, "chat_template": named})).unwrap();
    assert_eq!((t.eos_id(), t.chat_template()), (Some(0), Some("D")));
    assert!(load(json!({"eos_token": null})).unwrap().eos_id().is_none());
    let e = load(json!({"eos_token": "<nowhere>"})).unwrap_err().to_string();
    assert!(e.contains("`eos_token` is \"<nowhere>\""), "{e}");
    let e = load(json!({"eos_token": 7})).unwrap_err().to_string();
    assert!(e.contains("`eos_token` is 7, expected a string"), "{e}");
    assert!(load(json!([])).unwrap_err().to_string().contains("not a JSON object"));
    fs::write(dir.path().join("chat_template.jinja"), "J").unwrap();
    assert_eq!(load(json!({"chat_template": "C"})).unwrap().chat_template(), Some("J"));
}

/// Protects: a model folder whose control tokens would land on other embedding rows is refused, not loaded.
#[test]
fn contradicting_ids_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    small().save(dir.path()).unwrap();
    let path = dir.path().join("tokenizer.json");
    let original = fs::read_to_string(&path).unwrap();
    let mut json: Value = serde_json::from_str(&original).unwrap();
    json["added_tokens"][1]["id"] = json!(3);
    fs::write(&path, json.to_string()).unwrap();
    let e = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(e.contains("\"<|system|>\" is listed with the id 3"), "{e}");
    let mut json: Value = serde_json::from_str(&original).unwrap();
    json["model"]["vocab"]["huge"] = json!(u32::MAX);
    fs::write(&path, json.to_string()).unwrap();
    let e = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(e.contains("largest token id"), "{e}");
}

/// Protects: padding and truncation that somebody left in the file neither fill nor cut a text.
#[test]
fn padding_and_truncation_are_left_aside() {
    let dir = tempfile::tempdir().unwrap();
    small().save(dir.path()).unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json["truncation"] =
        json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|end|>"});
    fs::write(&path, json.to_string()).unwrap();
    let t = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(t.encode(TEXT).unwrap(), small().encode(TEXT).unwrap());
}

/// A tokenizer whose model, by its own rules, reaches a control token from plain text.
fn unigram() -> Tokenizer {
    let mut vocab: Vec<Value> = vec![json!(["<unk>", 0.0]), json!(["</s>", 0.0])];
    vocab.extend(["<", "/", "s", ">", "a", "b"].map(|t| json!([t, -3.0])));
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let json = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "</s>")],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false}});
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    Tokenizer::load(dir.path()).unwrap()
}

/// Protects: the promise about user text holds for models that spell control tokens by themselves, and text that
/// has no other spelling is an error rather than a control token.
#[test]
fn untrusted_text_in_a_unigram_model() {
    let t = unigram();
    assert_eq!(t.encode("a</s>b").unwrap(), [6, 1, 7]);
    assert_eq!(t.encode_untrusted("a</s>b").unwrap(), [6, 2, 3, 4, 5, 7]);
    let e = t.encode_untrusted("aéb").unwrap_err().to_string();
    assert!(e.contains("'é'"), "{e}");
}

/// Protects: batches equal single texts, on any number of threads.
#[test]
fn batches_equal_singles() {
    let t = small();
    let texts: Vec<String> = (0..37).map(|i| format!("{i} <think> the cat {i}")).collect();
    let single: Vec<Vec<u32>> = texts.iter().map(|x| t.encode_untrusted(x).unwrap()).collect();
    for threads in [0, 1, 2, 5, 64] {
        assert_eq!(t.encode_batch(&texts, Trust::None, threads).unwrap(), single);
    }
    assert!(t.encode_batch::<&str>(&[], Trust::Full, 2).unwrap().is_empty());
}

/// Protects: a damaged `tokenizer.json` gives an error or a usable tokenizer, never a panic or a giant allocation.
#[test]
fn damaged_files_do_not_panic() {
    let dir = tempfile::tempdir().unwrap();
    small().save(dir.path()).unwrap();
    let path = dir.path().join("tokenizer.json");
    let original = fs::read(&path).unwrap();
    let mut state = 1u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for round in 0..150 {
        let mut bytes = original.clone();
        match round % 3 {
            0 => bytes.truncate(random(original.len())),
            1 => {
                let at = random(bytes.len());
                bytes[at] ^= 1 << random(8);
            }
            _ => {
                let (at, from) = (random(bytes.len() - 64), random(original.len() - 64));
                let n = 1 + random(63);
                bytes[at..at + n].copy_from_slice(&original[from..from + n]);
            }
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(t) = Tokenizer::load(dir.path()) {
            let _ = t.encode_untrusted(TEXT).map(|ids| t.decode(&ids, true));
        }
    }
}

/// Protects: a whole text gets the ids around it that tokenizer.json and tokenizer_config.json ask for, parts of one do not.
#[test]
fn whole_texts_begin_as_the_post_processor_says() {
    let dir = tempfile::tempdir().unwrap();
    small().save(dir.path()).unwrap();
    let edit = |file: &str, key: &str, value: Value| {
        let path = dir.path().join(file);
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        json[key] = value;
        fs::write(&path, json.to_string()).unwrap();
        Tokenizer::load(dir.path()).unwrap()
    };
    let (begin, text) = (small().token_id("<|system|>").unwrap(), small().encode("The cat").unwrap());
    assert_eq!(small().encode_whole("The cat").unwrap(), text);
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let processor = json!({"type": "TemplateProcessing", "pair": [],
        "single": [special("<|system|>"), {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<|system|>": {"id": "<|system|>", "ids": [begin], "tokens": ["<|system|>"]}}});
    let t = edit("tokenizer.json", "post_processor", processor);
    assert_eq!(t.encode_whole("The cat").unwrap(), [&[begin], &text[..]].concat());
    assert_eq!((t.encode("The cat").unwrap(), t.beginning()), (text.clone(), &[begin][..]));
    edit("tokenizer_config.json", "bos_token", "<|system|>".into());
    let t = edit("tokenizer_config.json", "add_bos_token", false.into());
    assert_eq!(t.encode_whole("The cat").unwrap(), text);
    let t = edit("tokenizer_config.json", "add_eos_token", true.into());
    assert_eq!(t.encode_whole("The cat").unwrap(), [&text[..], &[t.eos_id().unwrap()]].concat());
}

/// Protects: tokens that were added beyond the model's rows are left alone, another model's vocabulary is refused.
#[test]
fn ids_without_a_row_are_neither_typed_nor_named() {
    let vocabulary = small().inner.get_vocab(false).into_values().max().unwrap() as usize + 1;
    let mut inner = small().inner.clone();
    inner.add_tokens([tokenizers::AddedToken::from("<more>", false)]).unwrap();
    let names = Names {
        eos: Some("<more>".to_owned()),
        bos: None,
        pad: None,
        chat_template: None,
        config: serde_json::Map::new(),
    };
    let t = Tokenizer::from_parts(inner, names).unwrap();
    let (t, beyond) = t.with_rows(vocabulary).unwrap();
    assert_eq!((beyond, t.eos_id(), t.token_id("<more>")), (vec!["<more>".to_owned()], None, None));
    assert_eq!(t.encode("The cat").unwrap(), small().encode("The cat").unwrap());
    assert_eq!(t.encode_untrusted("<more>").unwrap(), small().encode_untrusted("<more>").unwrap());
    let e = t.encode("a <more>").unwrap_err().to_string();
    assert!(e.contains("\"<more>\"") && e.contains("has no row"), "{e}");
    assert!(t.with_rows(vocabulary - 1).is_none());
}

/// Protects: a text without a blank trains in time that grows with its length, not with its square.
#[test]
fn a_word_without_end_is_trained_on_in_pieces() {
    let mut state = 1u64;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'a' + (state >> 33) as u8 % 26)
    };
    let word: String = (0..400_000).map(|_| letter()).collect();
    let begin = std::time::Instant::now();
    Tokenizer::train(std::iter::once(word), &TrainOptions::reasoning(1000)).unwrap();
    assert!(begin.elapsed() < std::time::Duration::from_secs(30), "{:?}", begin.elapsed());
}
