//! `/openapi.json` says what the server does: what it allows is taken up to the last value, what it forbids is refused from the first.

use crate::common::{post, send, start};
use serde_json::{Map, Value, json};
use serve::Options;

/// A body for each address that is in order, and what a field of it asks for beside itself.
fn bodies() -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": "What is 3 + 4?"}]);
    vec![
        ("/v1/chat/completions", json!({"model": "a", "messages": messages, "max_completion_tokens": 1})),
        ("/v1/completions", json!({"model": "a", "prompt": "3 + 4", "max_tokens": 1})),
        ("/v1/responses", json!({"model": "a", "input": "What is 3 + 4?", "max_output_tokens": 1})),
        ("/v1/messages", json!({"model": "a", "messages": messages, "max_tokens": 1})),
        ("/v1/messages/count_tokens", json!({"model": "a", "messages": messages})),
        ("/detokenize", json!({"model": "a", "tokens": [1]})),
    ]
}

fn beside(field: &str) -> Value {
    match field {
        "top_logprobs" => json!({"logprobs": true}),
        "min_agreement" => json!({"votes": 2}),
        _ => json!({}),
    }
}

/// A schema, or the one that it points to.
fn resolve<'d>(document: &'d Value, schema: &'d Value) -> &'d Value {
    match schema["$ref"].as_str() {
        Some(name) => document.pointer(&name[1..]).unwrap_or_else(|| panic!("{name} is not there")),
        None => schema,
    }
}

/// Values at the ends of what a field may be, and those next to them outside.
fn ends(schema: &Value) -> (Vec<Value>, Vec<Value>) {
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for (key, sign) in [("minimum", -1), ("maximum", 1)] {
        let Some(end) = schema.get(key) else { continue };
        inside.push(end.clone());
        match end.as_i64() {
            Some(end) => outside.extend(end.checked_add(sign).map(Value::from)),
            None => outside.push(json!(end.as_f64().expect("a number") + 0.001 * sign as f64)),
        }
    }
    if let Some(words) = schema["enum"].as_array() {
        inside.extend(words.iter().cloned());
        outside.push("no such word".into());
    }
    if let Some(most) = schema["maxItems"].as_u64() {
        outside.push(vec![json!({}); most as usize + 1].into());
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        kinds => kinds.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
    };
    if kinds.contains(&"null") {
        inside.push(Value::Null);
    }
    if !kinds.is_empty() && !kinds.contains(&"object") {
        outside.push(json!({"an": "object"}));
    }
    if !kinds.is_empty() && !kinds.contains(&"boolean") {
        outside.push(true.into());
    }
    (inside, outside)
}

#[test]
fn what_the_description_allows_is_taken_and_nothing_beyond() {
    let address = start(Options::default());
    let document = send(address, "GET", "/openapi.json", &[], "").json();
    let (mut taken, mut refused) = (0, 0);
    for (path, body) in bodies() {
        let schema = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(post(address, path, &body).status, 200, "{path}");
        for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let mut without = body.clone();
            without.as_object_mut().expect("an object").remove(field);
            assert_eq!(post(address, path, &without).status, 400, "{path} without {field}");
        }
        for (field, schema) in schema["properties"].as_object().expect("fields") {
            let ask = |value: &Value| {
                let mut body: Map<String, Value> = body.as_object().expect("an object").clone();
                body.extend(beside(field).as_object().expect("an object").clone());
                body.insert(field.clone(), value.clone());
                let response = post(address, path, &body.into());
                (response.status, response.body.chars().take(300).collect::<String>())
            };
            let (inside, outside) = ends(resolve(&document, schema));
            let needed = schema["required"].as_array().is_some_and(|r| r.contains(&json!(field)));
            for value in inside.iter().filter(|value| field != "model" && !(needed && value.is_null())) {
                let (status, text) = ask(value);
                assert_eq!(status, 200, "{path} with {field} {value}: {text}");
                taken += 1;
            }
            for value in &outside {
                let (status, text) = ask(value);
                assert!(
                    status == 400 && text.contains(field.as_str()),
                    "{path} with {field}: {status} {text}"
                );
                refused += 1;
            }
        }
    }
    assert!(taken > 80 && refused > 120, "{taken} taken, {refused} refused");
}

/// What fields ask of each other stands in `allOf`; each of these is against one line of it.
#[test]
fn fields_that_exclude_each_other_are_refused_together() {
    let address = start(Options::default());
    let bodies = bodies();
    for (at, more) in [
        (0, json!({"stream_options": {"include_usage": true}})),
        (0, json!({"top_logprobs": 1})),
        (0, json!({"min_agreement": 0.5})),
        (0, json!({"votes": 3, "n": 2})),
        (0, json!({"tool_choice": "required"})),
        (1, json!({"stream_options": {}, "stream": false})),
        (1, json!({"echo": true, "logprobs": 1})),
        (2, json!({"tool_choice": "required", "tools": []})),
    ] {
        let (path, body) = &bodies[at];
        let mut body = body.clone();
        more.as_object().expect("fields").iter().for_each(|(k, v)| body[k] = v.clone());
        assert_eq!(post(address, path, &body).status, 400, "{path}: {more}");
    }
}
