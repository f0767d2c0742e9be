//! A server of a tiny random model, and a client that speaks plain HTTP.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use data::{Tokenizer, TrainOptions};
use model::{Model, ModelConfig};
use serde_json::{Value, json};
use serve::{Options, Served, Server};

/// Positions of the tiny models.
pub const CONTEXT: usize = 1024;

/// A model of random weights that writes random text.
pub fn tiny(name: &str, seed: u64) -> Served {
    let texts = (0..40).map(|i| format!("<think>so {i} plus {i} is</think><answer>{}</answer>", 2 * i));
    let tokenizer = Tokenizer::train(texts, &TrainOptions::reasoning(300)).expect("a tokenizer");
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": tokenizer.vocab_size(), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "initializer_range": 0.3, "tie_word_embeddings": true});
    let model = Model::random(ModelConfig::from_value(&config).expect("a valid config"), seed);
    let stop_tokens = tokenizer.eos_id().into_iter().collect();
    Served {
        name: name.to_owned(),
        model,
        tokenizer,
        stop_tokens,
        examples: vec![format!("What is {seed}?")],
    }
}

/// Starts a server of `a` and of `b`, whose template opens the thought and knows tools, for as long as the test runs.
pub fn start(options: Options) -> SocketAddr {
    let mut opened = tiny("b", 2);
    let template = data::DEFAULT_TEMPLATE
        .replace("{{- '<|assistant|>' -}}", "{{- '<|assistant|><think>' -}}")
        .replace("'assistant']", "'assistant', 'tool']");
    let tools = "{%- if tools -%}{{- '<|system|>' + (tools | tojson) + '<|end|>' -}}{%- endif -%}";
    opened.tokenizer = opened.tokenizer.with_chat_template(format!("{tools}{template}"));
    serve_models(vec![tiny("a", 1), opened], options)
}

/// Starts a server of these models, for as long as the test runs.
pub fn serve_models(models: Vec<Served>, options: Options) -> SocketAddr {
    serve_at(models, Options { address: SocketAddr::from(([127, 0, 0, 1], 0)), ..options })
}

/// Starts a server of these models where the options say.
pub fn serve_at(models: Vec<Served>, options: Options) -> SocketAddr {
    let server = Server::bind(models, options).expect("it binds");
    let address = server.address().expect("it listens");
    std::thread::spawn(move || server.run());
    address
}

/// A response.
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    /// The values of an event stream, which ends as it should.
    pub fn events(&self) -> Vec<Value> {
        let data: Vec<&str> = self.body.split("\n\n").filter_map(|e| e.strip_prefix("data: ")).collect();
        let (last, rest) = data.split_last().expect("events");
        assert_eq!(*last, "[DONE]");
        rest.iter().map(|e| serde_json::from_str(e).expect("JSON")).collect()
    }
}

/// Sends bytes as they are, and reads what comes until the end of the connection; nothing if none came.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> Option<Response> {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
    // A server that has heard enough may close meanwhile.
    let _ = stream.write_all(bytes);
    read(BufReader::new(stream))
}

fn read(mut stream: impl BufRead) -> Option<Response> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        head += &line.to_lowercase();
    }
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut body = Vec::new();
    if head.contains("transfer-encoding: chunked") {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok()?;
            let length = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; length + 2];
            stream.read_exact(&mut chunk).ok()?;
            if length == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..length]);
        }
    } else {
        stream.read_to_end(&mut body).ok()?;
    }
    Some(Response { status, head, body: String::from_utf8(body).expect("UTF-8") })
}

/// A request with headers of one's own.
pub fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let mut text =
        format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| *name == "host") {
        text += &format!("host: {address}\r\n");
    }
    headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    raw(address, format!("{text}\r\n{body}").as_bytes()).expect("an answer")
}

/// Posts JSON.
pub fn post(address: SocketAddr, path: &str, body: &Value) -> Response {
    send(address, "POST", path, &[("content-type", "application/json")], &body.to_string())
}

/// A request of a chat, with more fields.
pub fn chat(more: Value) -> Value {
    let mut body = json!({"model": "a", "messages": [{"role": "user", "content": "What is 3 + 4?"}],
        "max_completion_tokens": 24});
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}
