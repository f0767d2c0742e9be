//! What clients may count on, over plain HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::common::{chat, post, raw, send, start};
use serde_json::{Value, json};
use serve::Options;

const CHAT: &str = "/v1/chat/completions";

/// The text that a chat gives, thinking and answer.
fn said(value: &Value) -> (String, String) {
    let message = &value["choices"][0]["message"];
    let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
    (text("reasoning"), text("content"))
}

/// The same request and seed give the same text: alone, beside others, and as a stream.
#[test]
fn an_answer_does_not_depend_on_who_else_asks() {
    let address = start(Options::default());
    let ask = |i: u64| {
        let (temperature, model) = (i % 2, if i % 3 == 2 { "b" } else { "a" });
        chat(json!({"seed": i, "temperature": temperature, "model": model}))
    };
    let alone: Vec<_> = (0..8).map(|i| said(&post(address, CHAT, &ask(i)).json())).collect();
    std::thread::scope(|s| {
        let all: Vec<_> = (0..24).map(|i| s.spawn(move || post(address, CHAT, &ask(i % 8)).json())).collect();
        for (i, one) in all.into_iter().enumerate() {
            assert_eq!(said(&one.join().expect("an answer")), alone[i % 8], "request {i}");
        }
    });
    for (i, whole) in alone.iter().enumerate() {
        let mut body = ask(i as u64);
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let events = post(address, CHAT, &body).events();
        let (last, chunks) = events.split_last().expect("chunks");
        assert_eq!((last["choices"].clone(), chunks[0]["usage"].clone()), (json!([]), Value::Null));
        assert!(last["usage"]["completion_tokens"].as_u64().is_some_and(|n| n > 0));
        let (end, before) = chunks.split_last().expect("chunks");
        assert!(end["choices"][0]["finish_reason"].is_string());
        let (mut thought, mut text) = (String::new(), String::new());
        for (n, chunk) in before.iter().enumerate() {
            let choice = &chunk["choices"][0];
            assert!(choice["finish_reason"].is_null());
            assert_eq!(choice["delta"].get("role").is_some(), n == 0, "the role comes first and once");
            assert_eq!(choice["delta"]["reasoning"], choice["delta"]["reasoning_content"]);
            thought += choice["delta"]["reasoning"].as_str().unwrap_or_default();
            text += choice["delta"]["content"].as_str().unwrap_or_default();
        }
        assert_eq!(&(thought, text), whole);
    }
}

/// What is wrong is told with the field's name, and never as a fault of the server.
#[test]
fn what_is_wrong_is_told_by_its_name() {
    let address = start(Options::default());
    let many: Vec<String> = (0..17).map(|i| i.to_string()).collect();
    for (more, param) in [
        (json!({"model": "nobody"}), "model"),
        (json!({"model": 3}), "model"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": ["hello"]}), "messages[0]"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content[0].type",
        ),
        (json!({"messages": [{"role": "user", "content": "long ".repeat(600)}]}), "messages"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": "ENDLESS"}), "temperature"),
        (json!({"top_p": 1.1}), "top_p"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"n": 1.5}), "n"),
        (json!({"seed": 1e30}), "seed"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"stop": many}), "stop"),
        (json!({"stop": [""]}), "stop"),
        (json!({"stop": {"a": 1}}), "stop"),
        (json!({"logit_bias": {"99999": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"chat_template_kwargs": [1]}), "chat_template_kwargs"),
        (json!({"audio": {"voice": "x"}}), "audio"),
    ] {
        // What a JSON value cannot hold.
        let text = chat(more).to_string().replace("\"ENDLESS\"", "1e999");
        let response = send(address, "POST", CHAT, &[], &text);
        let known = if param == "model" && text.contains("nobody") { 404 } else { 400 };
        assert_eq!(response.status, known, "{text}: {}", response.body);
        if !text.contains("1e999") {
            assert_eq!(response.json()["error"]["param"], param, "{}", response.body);
        }
    }
    assert_eq!(post(address, CHAT, &chat(json!({}))).status, 200, "and it goes on");
}

#[test]
fn answers_end_where_they_are_told_to() {
    let address = start(Options::default());
    let whole = post(
        address,
        "/v1/completions",
        &json!({"model": "a", "prompt": "1 + 1", "max_tokens": 40, "temperature": 0, "ignore_eos": true}),
    )
    .json();
    let text = whole["choices"][0]["text"].as_str().expect("a text").to_owned();
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 40);
    let middle: String = text.chars().skip(10).take(3).collect();
    let cut = post(
        address,
        "/v1/completions",
        &json!({"model": "a", "prompt": "1 + 1", "max_tokens": 40, "temperature": 0, "ignore_eos": true,
        "stop": ["never comes", middle]}),
    )
    .json();
    let at = text.find(&middle).expect("it is there");
    assert_eq!(
        (cut["choices"][0]["text"].as_str(), &cut["choices"][0]["finish_reason"]),
        (Some(&text[..at]), &json!("stop"))
    );
    assert!(cut["usage"]["completion_tokens"].as_u64().is_some_and(|n| n < 40));
    // Several prompts, several samples: each in its place, those of one prompt unlike each other.
    let many = post(
        address,
        "/v1/completions",
        &json!({"model": "b", "prompt": ["1", [40, 41]], "n": 2, "max_tokens": 9, "seed": 3, "echo": true}),
    )
    .json();
    let indices: Vec<_> =
        many["choices"].as_array().expect("choices").iter().map(|c| c["index"].as_u64()).collect();
    assert_eq!(indices, [Some(0), Some(1), Some(2), Some(3)]);
    assert!(many["choices"][1]["text"].as_str().is_some_and(|t| t.starts_with('1')));
    assert_ne!(many["choices"][0]["text"], many["choices"][1]["text"]);
}

/// The log-probabilities are of the tokens that were drawn, the most likely ones first, with their bytes.
#[test]
fn log_probabilities_are_told() {
    let address = start(Options::default());
    let body =
        chat(json!({"logprobs": true, "top_logprobs": 3, "temperature": 0, "max_completion_tokens": 6}));
    let value = post(address, CHAT, &body).json();
    let told = value["choices"][0]["logprobs"]["content"].as_array().expect("tokens").clone();
    assert_eq!(told.len() as u64, value["usage"]["completion_tokens"].as_u64().expect("a count"));
    for token in told {
        assert_eq!(token["top_logprobs"][0]["logprob"], token["logprob"], "greedily the most likely one");
        let tops = token["top_logprobs"].as_array().expect("three").iter().map(|t| t["logprob"].as_f64());
        let tops: Vec<f64> = tops.flatten().collect();
        assert!(tops.len() == 3 && tops.is_sorted_by(|a, b| a >= b) && tops.iter().all(|p| *p <= 0.0));
        assert!(token["bytes"].is_array());
    }
}

#[test]
fn strangers_are_kept_out() {
    let key = "a-long-secret".to_owned();
    let address = start(Options {
        keys: vec![key.clone()],
        origins: vec!["https://friend.example".into()],
        hosts: vec!["models.example".into()],
        ..Options::default()
    });
    let get = |headers: &[(&str, &str)]| send(address, "GET", "/v1/models", headers, "").status;
    let bearer = format!("Bearer {key}");
    assert_eq!(get(&[]), 401);
    assert_eq!(get(&[("authorization", "Bearer a-long-secre")]), 401);
    assert_eq!(get(&[("authorization", &bearer)]), 200);
    assert_eq!(get(&[("x-api-key", &key)]), 200);
    assert_eq!(get(&[("x-api-key", &key), ("host", "evil.example")]), 403);
    assert_eq!(get(&[("x-api-key", &key), ("host", "models.example:80")]), 200);
    assert_eq!(get(&[("x-api-key", &key), ("origin", "https://evil.example")]), 403);
    assert_eq!(get(&[("x-api-key", &key), ("origin", "null")]), 403);
    assert_eq!(get(&[("x-api-key", &key), ("origin", &format!("http://{address}"))]), 200);
    let friend = send(
        address,
        "OPTIONS",
        CHAT,
        &[
            ("origin", "https://friend.example"),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,x-stainless-os"),
        ],
        "",
    );
    assert_eq!(friend.status, 204);
    for line in ["origin: https://friend.example", "headers: authorization,x-stainless-os"] {
        assert!(friend.head.contains(&format!("access-control-allow-{line}")), "{}", friend.head);
    }
    let shaped = send(address, "POST", "/v1/messages", &[], "{}");
    assert_eq!((shaped.status, &shaped.json()["type"]), (401, &serde_json::json!("error")));
    for (path, status) in [("/health", 200), ("/", 200), ("/metrics", 401), ("/nothing", 401)] {
        assert_eq!(send(address, "GET", path, &[], "").status, status, "{path}");
    }
}

/// Who comes when the queue is full is told to come back; who goes away makes room.
#[test]
fn a_full_queue_says_when_to_come_back() {
    let address = start(Options { queue: 2, ..Options::default() });
    let long =
        chat(json!({"n": 2, "max_completion_tokens": 400, "stream": true, "logit_bias": {"256": -100}}));
    let (body, mut stream) = (long.to_string(), TcpStream::connect(address).expect("it listens"));
    write!(stream, "POST {CHAT} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .expect("sent");
    stream.read_exact(&mut [0; 300]).expect("it has begun");
    let refused = post(address, CHAT, &chat(json!({})));
    // The two may have come to their end already.
    if refused.status != 200 {
        assert_eq!(refused.status, 429, "{}", refused.body);
        assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    }
    drop(stream);
    let begun = Instant::now();
    while post(address, CHAT, &chat(json!({}))).status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(20), "room is made");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Requests that no client means well: each is answered with a 4xx or not at all, and the server goes on.
#[test]
fn hostile_requests_do_no_harm() {
    let address =
        start(Options { body_bytes: 10_000, patience: Duration::from_millis(400), ..Options::default() });
    let post_raw = |head: &str, body: &[u8]| {
        let mut bytes = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{head}\r\n")
            .into_bytes();
        bytes.extend_from_slice(body);
        raw(address, &bytes)
    };
    let sized = |body: &[u8]| post_raw(&format!("content-length: {}\r\n", body.len()), body);
    let deep = format!("{{\"messages\": {}", "[".repeat(9000));
    let nested = format!(
        "{{\"model\":\"a\",\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}],\"metadata\":{}{}}}",
        "[".repeat(200),
        "]".repeat(200)
    );
    let utf16: Vec<u8> = "{\"model\":\"a\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let bodies: [&[u8]; 12] = [
        b"", b"{", b"null", b"[]", b"\0\0\0", b"{\"messages\": \"\\ud800\"}", b"\xff\xfe", &utf16, deep.as_bytes(), nested.as_bytes(),
        b"{\"model\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"\\u0000<|end|>\"}],\"max_tokens\":99999999999999999999}",
        &[b' '; 20_000],
    ];
    for body in bodies {
        let status = sized(body).map_or(0, |r| r.status);
        assert!(
            (400..500).contains(&status),
            "{status} for {:?}",
            String::from_utf8_lossy(&body[..body.len().min(60)])
        );
    }
    for (head, body) in [
        ("content-length: 999999999999\r\n", "{}"),
        ("content-length: -1\r\n", "{}"),
        ("content-length: 2\r\ncontent-length: 3\r\n", "{}"),
        ("content-length: 500\r\n", "{\"model\":"),
        ("transfer-encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked\r\n", "5\r\n{}"),
    ] {
        let status = post_raw(head, body.as_bytes()).map_or(0, |r| r.status);
        assert!(status == 0 || (400..500).contains(&status), "{status} for {head:?}");
    }
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET",
        b"GET / HTTP/9.9\r\n\r\n",
        &[b'A'; 100_000],
    ] {
        let status = raw(address, bytes).map_or(0, |r| r.status);
        assert!(status == 0 || (400..500).contains(&status), "{status}");
    }
    assert_eq!(send(address, "GET", "/../../etc/passwd", &[], "").status, 404);
    assert_eq!(send(address, "DELETE", CHAT, &[], "").status, 405);
    assert_eq!(post(address, CHAT, &chat(json!({}))).status, 200, "and it goes on");
    assert_eq!(send(address, "GET", "/health", &[], "").status, 200);
}

/// Who reads nothing of a stream is left after a while.
#[test]
fn a_client_that_does_not_read_is_left() {
    let address = start(Options { patience: Duration::from_millis(500), ..Options::default() });
    // More than what lies on the way to a reader holds.
    let long = chat(
        json!({"n": 16, "max_completion_tokens": 900, "stream": true, "logprobs": true, "top_logprobs": 20,
        "ignore_eos": true, "logit_bias": {"256": -100}}),
    );
    let (body, mut stream) = (long.to_string(), TcpStream::connect(address).expect("it listens"));
    write!(stream, "POST {CHAT} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .expect("sent");
    let running = || {
        let told = send(address, "GET", "/metrics", &[], "").body;
        let line = told.lines().find(|l| l.starts_with("shoestring_running{model=\"a\"}"));
        line.and_then(|l| l.rsplit(' ').next()?.parse::<u32>().ok())
    };
    let begun = Instant::now();
    let wait = |for_none: bool| {
        while (running() == Some(0)) != for_none {
            assert!(begun.elapsed() < Duration::from_secs(60), "running: {:?}", running());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait(false);
    wait(true);
    std::thread::sleep(Duration::from_secs(2));
    let mut read = Vec::new();
    let _ = stream.read_to_end(&mut read);
    assert!(!String::from_utf8_lossy(&read).contains("[DONE]"), "{} bytes came to the end", read.len());
}
