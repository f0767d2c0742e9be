//! Verifiers that answer over HTTP: a server of one's own, on this machine or another.
//!
//! Nothing is sent unless a recipe names the address. A request is one JSON object with a batch of completions, and so is its answer,
//! with a verdict for each, in order:
//!
//! ```text
//! POST → {"items": [{"problem": {"task": …, "prompt": …, "answer": …, "meta": …}, "completion": "…", "answer": "42"}, …]}
//! 200  ← {"verdicts": [{"score": 1.0, "reason": "right"}, …]}
//! ```
//!
//! `answer` is the completion's one answer, or null; `score` is from 0 to 1, `reason` optional. A server that cannot be reached, takes
//! too long or says that it is overloaded (429, 5xx) is asked again, a few times and after pauses that double. What is
//! not judged then scores zero and is counted in `HttpStats`; nothing that a server does ends a run.

use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Verdict, Verifier, answer_of};
use crate::{Error, Problem, Result};

/// The longest answer that is read, in bytes, for each item of a request, and as many more for what is around them.
const MOST_BYTES_AN_ITEM: u64 = 64 << 10;
/// The first pause before a request is repeated.
const PAUSE: Duration = Duration::from_millis(250);

/// A server that judges.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// `http://host:port/path`.
    pub url: String,
    /// For one request.
    pub timeout: Duration,
    /// How often a request is repeated that failed in passing.
    pub retries: u32,
    /// Completions of a request, at most.
    pub batch: usize,
    /// Requests side by side.
    pub workers: usize,
}

/// What went wrong so far.
#[derive(Debug, Default)]
struct HttpStats {
    /// Completions asked about, and those without a verdict.
    asked: AtomicU64,
    failed: AtomicU64,
    /// What the last failure was.
    last: Mutex<String>,
}

/// A verifier behind an address.
pub struct HttpVerifier {
    endpoint: Endpoint,
    agent: ureq::Agent,
    stats: HttpStats,
}

/// Why a request gave no verdicts.
enum Failure {
    /// It may go better the next time.
    Passing(String),
    /// It will not.
    Lasting(String),
}

impl HttpVerifier {
    /// Looks whether somebody listens at the address.
    ///
    /// # Errors
    /// An address of another kind than `http://host[:port][/path]`, and one that nobody listens at.
    pub fn open(endpoint: Endpoint) -> Result<HttpVerifier> {
        let fail = |what: String| Error::External { command: endpoint.url.clone(), what };
        let host = host_of(&endpoint.url).map_err(|what| fail(what.to_owned()))?;
        let mut places = host.to_socket_addrs().map_err(|e| fail(format!("{host} is not known: {e}")))?;
        let listens = places.any(|place| TcpStream::connect_timeout(&place, endpoint.timeout).is_ok());
        if !listens {
            return Err(fail(format!("nobody listens at {host}: start the server first")));
        }
        // No proxy from the environment, and no going on to where a server points.
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(endpoint.timeout))
            .max_redirects(0)
            .proxy(None)
            .http_status_as_error(false)
            .user_agent(concat!("shoestring/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(HttpVerifier { endpoint, agent: config.new_agent(), stats: HttpStats::default() })
    }

    fn request(&self, items: &[(&Problem, &str)]) -> std::result::Result<Vec<Verdict>, Failure> {
        let item = |(problem, completion): &(&Problem, &str)| json!({"problem": problem, "completion": completion, "answer": answer_of(completion)});
        let body = json!({"items": items.iter().map(item).collect::<Vec<_>>()}).to_string();
        let sent = self.agent.post(&self.endpoint.url).header("content-type", "application/json").send(&body);
        let mut response = sent.map_err(|e| Failure::Passing(e.to_string()))?;
        let status = response.status().as_u16();
        match status {
            200 => {}
            429 | 500.. => return Err(Failure::Passing(format!("status {status}"))),
            _ => return Err(Failure::Lasting(format!("status {status}"))),
        }
        let limit = MOST_BYTES_AN_ITEM * (items.len() as u64 + 1);
        let text = response.body_mut().with_config().limit(limit).read_to_vec();
        let text = text.map_err(|e| match e {
            ureq::Error::BodyExceedsLimit(_) => {
                Failure::Lasting(format!("its answer is longer than {limit} bytes"))
            }
            e => Failure::Passing(e.to_string()),
        })?;
        verdicts(&text, items.len()).map_err(Failure::Lasting)
    }

    /// One batch, asked until it is judged or there is no hope.
    fn judge(&self, items: &[(&Problem, &str)]) -> Vec<Verdict> {
        self.stats.asked.fetch_add(items.len() as u64, Relaxed);
        let mut pause = PAUSE;
        let mut left = self.endpoint.retries;
        let what = loop {
            match self.request(items) {
                Ok(verdicts) => return verdicts,
                Err(Failure::Lasting(what)) => break what,
                Err(Failure::Passing(what)) if left == 0 => break what,
                Err(Failure::Passing(_)) => {
                    left -= 1;
                    std::thread::sleep(pause);
                    pause *= 2;
                }
            }
        };
        self.stats.failed.fetch_add(items.len() as u64, Relaxed);
        *self.stats.last.lock().unwrap_or_else(PoisonError::into_inner) = what.clone();
        vec![Verdict::wrong(format!("not judged by {}: {what}", self.endpoint.url)); items.len()]
    }
}

/// The host of an address, with its port.
fn host_of(url: &str) -> std::result::Result<String, &'static str> {
    const EXPECTED: &str =
        "expected http://host:port/path (https is not spoken: put a proxy on this machine before it)";
    let rest = url.strip_prefix("http://").ok_or(EXPECTED)?;
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() || host.contains('@') || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(EXPECTED);
    }
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(if has_port { host.to_owned() } else { format!("{host}:80") })
}

fn verdicts(text: &[u8], count: usize) -> std::result::Result<Vec<Verdict>, String> {
    let reply: Value = serde_json::from_slice(text).map_err(|e| format!("its answer is not JSON: {e}"))?;
    let list = reply["verdicts"].as_array().ok_or("its answer has no list `verdicts`")?;
    if list.len() != count {
        return Err(format!("{} verdicts on {count} completions", list.len()));
    }
    let verdict = |v: &Value| match v["score"].as_f64() {
        Some(score) if (0.0..=1.0).contains(&score) => {
            Ok(Verdict { score: score as f32, reason: v["reason"].as_str().unwrap_or("").to_owned() })
        }
        _ => Err(format!("score {} is no number from 0 to 1", v["score"])),
    };
    list.iter().map(verdict).collect()
}

impl Verifier for HttpVerifier {
    fn score(&self, problem: &Problem, completion: &str) -> Verdict {
        self.judge(&[(problem, completion)]).pop().unwrap_or_else(|| Verdict::wrong("not judged"))
    }

    fn failures(&self) -> Option<(u64, String)> {
        let (failed, asked) = (self.stats.failed.load(Relaxed), self.stats.asked.load(Relaxed));
        let last = self.stats.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (failed > 0).then(|| (failed, format!("of {asked} asked of {}; the last: {last}", self.endpoint.url)))
    }

    /// In batches, some at a time; verdicts come back in the order of `items`.
    fn score_batch(&self, items: &[(&Problem, &str)]) -> Vec<Verdict> {
        let batches: Vec<&[(&Problem, &str)]> = items.chunks(self.endpoint.batch.max(1)).collect();
        let next = AtomicUsize::new(0);
        let done: Vec<Mutex<Vec<Verdict>>> = batches.iter().map(|_| Mutex::default()).collect();
        std::thread::scope(|scope| {
            for _ in 0..self.endpoint.workers.clamp(1, batches.len().max(1)) {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Relaxed);
                        let Some(batch) = batches.get(i) else { break };
                        *done[i].lock().unwrap_or_else(PoisonError::into_inner) = self.judge(batch);
                    }
                });
            }
        });
        done.into_iter().flat_map(|d| d.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
    }
}

#[cfg(test)]
mod tests;
