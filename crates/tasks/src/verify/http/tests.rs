use super::*;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

/// A server that answers each request by what `reply` makes of its number and body, and counts them.
fn server(reply: impl Fn(u64, Value) -> Vec<u8> + Send + 'static) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/score", listener.local_addr().expect("an address"));
    let requests = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&requests);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut bytes = Vec::new();
            let body = loop {
                let mut part = [0; 4096];
                let n = stream.read(&mut part).unwrap_or(0);
                if n == 0 {
                    break None;
                }
                bytes.extend(&part[..n]);
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head
                    .lines()
                    .find_map(|l| l.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
                if length.and_then(|l| l.parse().ok()) == Some(body.len()) {
                    break Some(body.to_owned());
                }
            };
            // Whoever only looks whether somebody listens says nothing.
            if let Some(body) = body {
                let n = count.fetch_add(1, Relaxed);
                let _ = stream.write_all(&reply(n, serde_json::from_str(&body).expect("JSON")));
            }
        }
    });
    (url, requests)
}

fn answer(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
        .into_bytes()
}

fn verifier(url: &str) -> HttpVerifier {
    let (timeout, url) = (Duration::from_millis(2000), url.to_owned());
    HttpVerifier::open(Endpoint { url, timeout, retries: 2, batch: 2, workers: 2 }).expect("it listens")
}

fn problem(n: usize) -> Problem {
    serde_json::from_value(json!({"prompt": format!("p{n}"), "answer": n.to_string()})).expect("a problem")
}

/// Verdicts come back in order, whatever batch they were in.
#[test]
fn batches_are_judged_in_order() {
    let (url, requests) = server(|_, body| {
        let verdict =
            |item: &Value| json!({"score": f64::from(u8::from(item["answer"] == item["problem"]["answer"]))});
        let verdicts: Vec<Value> = body["items"].as_array().expect("items").iter().map(verdict).collect();
        answer("200 OK", &json!({"verdicts": verdicts}).to_string())
    });
    let v = verifier(&url);
    let problems: Vec<Problem> = (0..5).map(problem).collect();
    let completions: Vec<String> =
        (0..5).map(|i| format!("<think></think><answer>{}</answer>", i / 3 * 3)).collect();
    let items: Vec<(&Problem, &str)> = problems.iter().zip(completions.iter().map(String::as_str)).collect();
    let scores: Vec<f32> = v.score_batch(&items).iter().map(|v| v.score).collect();
    assert_eq!(scores, [1.0, 0.0, 0.0, 1.0, 0.0]);
    assert_eq!((requests.load(Relaxed), v.failures()), (3, None));
}

/// A server that is overloaded is asked again; one that talks nonsense is not, and what it leaves unjudged is counted.
#[test]
fn failures_are_repeated_or_counted() {
    let right = r#"{"verdicts": [{"score": 1}]}"#;
    let (url, requests) =
        server(move |n, _| if n < 2 { answer("503 Busy", "") } else { answer("200 OK", right) });
    let v = verifier(&url);
    assert_eq!((v.score(&problem(1), "x").score, requests.load(Relaxed), v.failures()), (1.0, 3, None));
    for (reply, asked, want) in [
        (answer("404 Not Found", ""), 1, "status 404"),
        (answer("302 Found\r\nlocation: http://example.invalid/", ""), 1, "status 302"),
        (answer("200 OK", "[]"), 1, "no list `verdicts`"),
        (answer("200 OK", r#"{"verdicts": []}"#), 1, "0 verdicts on 1"),
        (answer("200 OK", r#"{"verdicts": [{"score": 2}]}"#), 1, "score 2"),
        (answer("200 OK", &" ".repeat(1 << 20)), 1, "longer than"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_vec(), 3, ""),
    ] {
        let (url, requests) = server(move |_, _| reply.clone());
        let v = verifier(&url);
        let verdict = v.score(&problem(1), "x");
        assert!(verdict.score == 0.0 && verdict.reason.contains(want), "{verdict:?}");
        let (failed, words) = v.failures().expect("a failure");
        assert!(failed == 1 && words.contains(want), "{words}");
        assert_eq!(requests.load(Relaxed), asked, "{words}");
    }
}

#[test]
fn what_is_no_address_or_silent_is_refused() {
    let open = |url: &str| {
        let endpoint = Endpoint {
            url: url.to_owned(),
            timeout: Duration::from_secs(1),
            retries: 0,
            batch: 1,
            workers: 1,
        };
        HttpVerifier::open(endpoint).err().expect("refused").to_string()
    };
    for (url, want) in [
        ("https://localhost/x", "https is not spoken"),
        ("localhost:80", "expected http://"),
        ("http://a@b/", "expected http://"),
        ("http://local host/", "expected http://"),
        ("http:///x", "expected http://"),
        ("http://127.0.0.1:1/x", "nobody listens at 127.0.0.1:1"),
    ] {
        assert!(open(url).contains(want), "{url}: {}", open(url));
    }
    assert_eq!(host_of("http://[::1]/x").as_deref(), Ok("[::1]:80"));
}
