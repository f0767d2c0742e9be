//! What the server has done, as Prometheus reads it.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::app::App;

/// Upper ends of the histograms' buckets, in seconds.
const BUCKETS: [f64; 10] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, f64::INFINITY];

/// Counts since the start.
#[derive(Default)]
pub(crate) struct Metrics {
    /// Responses by the first digit of their status.
    responses: [AtomicU64; 6],
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) cached_tokens: AtomicU64,
    pub(crate) completion_tokens: AtomicU64,
    pub(crate) first_token: Histogram,
    pub(crate) whole: Histogram,
}

/// Durations.
#[derive(Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    micros: AtomicU64,
}

impl Histogram {
    pub(crate) fn note(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let at = BUCKETS.iter().position(|&end| seconds <= end).unwrap_or(BUCKETS.len() - 1);
        self.buckets[at].fetch_add(1, Relaxed);
        self.micros.fetch_add(duration.as_micros() as u64, Relaxed);
    }

    fn show(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut sum = 0;
        for (end, count) in BUCKETS.iter().zip(&self.buckets) {
            sum += count.load(Relaxed);
            let end = if end.is_finite() { end.to_string() } else { "+Inf".to_owned() };
            let _ = writeln!(out, "{name}_bucket{{le=\"{end}\"}} {sum}");
        }
        let seconds = self.micros.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_sum {seconds}\n{name}_count {sum}");
    }
}

impl Metrics {
    /// Counts a response.
    pub(crate) fn count(&self, response: Response) -> Response {
        self.responses[usize::from(response.status().as_u16() / 100).min(5)].fetch_add(1, Relaxed);
        response
    }
}

/// Answers `/metrics`.
pub(crate) async fn show(State(app): State<Arc<App>>) -> Response {
    let mut out = String::new();
    let m = &app.metrics;
    let _ = writeln!(out, "# HELP shoestring_responses_total Responses by kind of status.");
    let _ = writeln!(out, "# TYPE shoestring_responses_total counter");
    for (digit, count) in m.responses.iter().enumerate().skip(1) {
        let _ = writeln!(out, "shoestring_responses_total{{status=\"{digit}xx\"}} {}", count.load(Relaxed));
    }
    for (name, help, count) in [
        ("prompt_tokens", "Tokens of prompts.", &m.prompt_tokens),
        ("cached_tokens", "Tokens of prompts that were found in the cache.", &m.cached_tokens),
        ("completion_tokens", "Tokens of answers.", &m.completion_tokens),
    ] {
        let name = format!("shoestring_{name}_total");
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {}", count.load(Relaxed));
    }
    m.first_token.show(&mut out, "shoestring_first_token_seconds", "From a request to its first token.");
    m.whole.show(&mut out, "shoestring_answer_seconds", "From a request to its end.");
    lanes(&app, &mut out);
    let mut response = (StatusCode::OK, out).into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// How every model's lane stands.
fn lanes(app: &App, out: &mut String) {
    type Read = fn(&crate::lanes::Standing) -> usize;
    let gauges: [(&str, &str, &str, Read); 11] = [
        ("running", "gauge", "Answers in work.", |s| s.running),
        ("waiting", "gauge", "Answers that wait for room.", |s| s.waiting),
        ("cache_pages", "gauge", "Pages that the cache may hold.", |s| s.pages),
        ("cache_used_pages", "gauge", "Pages that hold something.", |s| s.used_pages),
        ("cache_idle_pages", "gauge", "Pages kept for prompts to come.", |s| s.idle_pages),
        ("computed_tokens_total", "counter", "Tokens that went through the model.", |s| s.counts.computed),
        ("put_back_total", "counter", "Sequences that were put back for lack of pages.", |s| {
            s.counts.put_back
        }),
        ("guessed_tokens_total", "counter", "Tokens that were guessed ahead.", |s| s.counts.guessed),
        ("guessed_right_tokens_total", "counter", "Guesses that came true.", |s| s.counts.guessed_right),
        ("mtp_guessed_tokens_total", "counter", "Of the guesses, the MTP layer's.", |s| s.counts.mtp_guessed),
        ("mtp_guessed_right_tokens_total", "counter", "Guesses of the MTP layer that came true.", |s| {
            s.counts.mtp_guessed_right
        }),
    ];
    for (name, kind, help, read) in gauges {
        let _ = writeln!(out, "# HELP shoestring_{name} {help}\n# TYPE shoestring_{name} {kind}");
        for entry in app.models.loaded() {
            let model = entry.served.name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = writeln!(out, "shoestring_{name}{{model=\"{model}\"}} {}", read(&entry.front.standing()));
        }
    }
    let _ =
        writeln!(out, "# HELP shoestring_up_seconds Since the start.\n# TYPE shoestring_up_seconds gauge");
    let _ = writeln!(out, "shoestring_up_seconds {}", app.since.elapsed().as_secs());
}
