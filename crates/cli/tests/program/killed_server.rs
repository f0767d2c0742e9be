//! `kill -9` of a server and of the studio: clients hear of it, no file is damaged, and whoever starts next goes on.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{arg, puppet, tokenizer};
use model::{Model, ModelConfig};
use serde_json::{Value, json};

/// A server of the program, which is killed with the test.
struct Running {
    child: Child,
    address: String,
}

impl Running {
    fn start(args: &[&str]) -> Running {
        let mut child = Command::new(env!("CARGO_BIN_EXE_shoestring"))
            .args(args)
            .arg("--quiet")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.split_once("http://").and_then(|(_, rest)| rest.split_once('/'));
        let address = address.unwrap_or_else(|| panic!("{args:?} say no address: {line:?}")).0.to_owned();
        Running { child, address }
    }

    fn port(&self) -> &str {
        self.address.rsplit(':').next().expect("a port")
    }

    /// As `kill -9` does.
    fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("it has ended");
    }

    /// Sends a request.
    fn begin(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a time");
        let head = format!("host: {}\r\nconnection: close\r\ncontent-length: {}", self.address, body.len());
        write!(stream, "{method} {path} HTTP/1.1\r\n{head}\r\n\r\n{body}").expect("sent");
        stream
    }

    /// The JSON that answers a request.
    fn ask(&self, method: &str, path: &str, body: &str) -> Value {
        let mut text = String::new();
        self.begin(method, path, body).read_to_string(&mut text).expect("an answer");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        assert!(head.starts_with("HTTP/1.1 200"), "{text}");
        serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}"))
    }

    /// A greedy answer of so many tokens, however the model would end it.
    fn chat(&self, tokens: usize, stream: bool) -> TcpStream {
        self.begin("POST", "/v1/chat/completions", &chat(tokens, stream))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn chat(tokens: usize, stream: bool) -> String {
    json!({"messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0, "ignore_eos": true,
        "max_completion_tokens": tokens, "stream": stream})
    .to_string()
}

/// Every file below a folder and what it holds.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), std::fs::read(path).expect("a file"));
        }
    }
    found
}

/// Waits for what comes in time.
fn wait<T>(what: &str, get: impl Fn() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = get() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{what} does not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn clients_of_a_killed_server_get_errors_and_the_next_one_answers() {
    let dir = tempfile::tempdir().expect("a folder");
    let tokenizer = tokenizer();
    // Answers of this length take it many seconds.
    let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": tokenizer.vocab_size(),
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "initializer_range": 0.15, "tie_word_embeddings": true, "eos_token_id": tokenizer.eos_id()});
    Model::random(ModelConfig::from_value(&config).expect("a valid config"), 3)
        .save(dir.path())
        .expect("saved");
    tokenizer.save(dir.path()).expect("saved");
    let before = files(dir.path());

    let mut server = Running::start(&["serve", arg(dir.path()), "--port", "0"]);
    let answered = server.ask("POST", "/v1/chat/completions", &chat(24, false))["choices"][0].clone();
    let mut streams: Vec<_> = (0..4).map(|_| BufReader::new(server.chat(30_000, true))).collect();
    let whole = server.chat(30_000, false);
    for stream in &mut streams {
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            assert!(stream.read_line(&mut line).expect("a line") > 0, "the stream ended before it began");
        }
    }
    server.kill();
    for mut stream in streams {
        // The connection is reset, or it closes in the midst of a body whose end is marked by an empty chunk.
        let mut rest = Vec::new();
        let read = stream.read_to_end(&mut rest);
        let rest = String::from_utf8_lossy(&rest);
        assert!(read.is_err() || !rest.ends_with("\r\n0\r\n\r\n") && !rest.contains("[DONE]"), "{rest}");
    }
    let mut text = String::new();
    assert!(
        BufReader::new(whole).read_to_string(&mut text).is_err() || text.is_empty(),
        "half an answer: {text}"
    );
    assert!(TcpStream::connect(&server.address).is_err(), "nobody listens");
    assert!(files(dir.path()) == before, "the model's folder is as it was");

    let again = Running::start(&["serve", arg(dir.path()), "--port", server.port()]);
    assert_eq!(again.ask("POST", "/v1/chat/completions", &chat(24, false))["choices"][0], answered);
}

#[test]
fn what_is_taught_goes_on_without_the_studio_and_is_taken_up_where_it_was_killed_too() {
    let dir = tempfile::tempdir().expect("a folder");
    // It answers 34, whatever it is asked.
    let model = puppet(&tokenizer(), "<|assistant|>34");
    let original = files(model.path());
    let given = format!("puppet={}", arg(model.path()));
    let start = || Running::start(&["studio", arg(dir.path()), "--model", &given, "--port", "0"]);
    let mut studio = start();
    let row = |i: usize| format!("What is {i}?,{}\n", if i.is_multiple_of(2) { 34 } else { i });
    let table = "q,a\n".to_owned() + &(0..30).map(row).collect::<String>();
    let lesson = studio.ask("PUT", "/studio/lessons/sums.csv", &table);
    let at = format!("/studio/lessons/{}", lesson["name"].as_str().expect("a name"));
    let settings = json!({"model": "puppet", "minutes": 0.1, "max_new": 4}).to_string();
    studio.ask("POST", &format!("{at}/start"), &settings);
    studio.kill();

    // Nobody watches, and it begins to train.
    let run = dir.path().join("sums");
    let trained = |line: &str| line.contains("\"step\"");
    let metrics = run.join("metrics.jsonl");
    wait("a step", || std::fs::read_to_string(&metrics).ok().filter(|m| m.lines().any(trained)));
    let process = std::fs::read_to_string(dir.path().join("lessons/sums/process")).expect("its number");
    // It is not our child: its end shows in its lock, which the studio looks at.
    let killed = Command::new("kill").args(["-9", process.trim()]).status().expect("a signal");
    assert!(killed.success(), "teaching had ended before it was killed");
    let studio = start();
    let rests = || {
        wait("an end", || {
            let lesson = studio.ask("GET", &at, "");
            (lesson["state"] != "teaching").then_some(lesson)
        })
    };
    let stopped = rests();
    assert_eq!(stopped["state"], "stopped", "it was killed in the midst: {stopped}");
    let done_before: BTreeMap<_, _> =
        files(&run).into_iter().filter(|(path, _)| path.with_file_name("done.json").exists()).collect();
    studio.ask("POST", &format!("{at}/start"), &settings);
    let done = rests();
    assert_eq!(done["state"], "done", "{done}");
    assert!(done["outcome"]["gain"]["value"].is_number(), "{done}");
    let now = files(&run);
    for (path, content) in done_before {
        assert!(now.get(&path) == Some(&content), "{} of a stage that had ended was changed", path.display());
    }
    Model::load(&run.join("model")).expect("the taught model is whole");
    assert!(files(model.path()) == original, "the model that was given is as it was");
}
