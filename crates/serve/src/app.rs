//! The server's state, and which address is answered by what.

use std::collections::HashSet;
use std::hash::RandomState;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use serde_json::json;

use crate::error::{Answer, ApiError, json_response};
use crate::fields::Fields;
use crate::metrics::Metrics;
use crate::options::{Options, Served};
use crate::shelf::Models;
use crate::{anthropic, guard, metrics, openai, pages, studio};

/// What all requests share.
pub(crate) struct App {
    pub(crate) models: Models,
    pub(crate) options: Options,
    pub(crate) metrics: Metrics,
    /// Seconds since 1970 at which the server started.
    pub(crate) started: u64,
    pub(crate) since: Instant,
    /// Names of fields that were ignored, each told once.
    ignored: Mutex<HashSet<String>>,
    /// Of this server alone: what tickets are made with.
    pub(crate) secret: RandomState,
    /// Held by whoever begins or ends a lesson.
    pub(crate) lessons: Mutex<()>,
}

/// Names of ignored fields that are remembered.
const MOST_IGNORED: usize = 200;

/// The time, in seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl App {
    pub(crate) fn new(models: Vec<Served>, options: Options) -> std::io::Result<App> {
        Ok(App {
            models: Models::new(models, &options)?,
            options,
            metrics: Metrics::default(),
            started: now(),
            since: Instant::now(),
            ignored: Mutex::default(),
            secret: RandomState::new(),
            lessons: Mutex::default(),
        })
    }

    /// Tells which fields of a request nobody asked for, once for each.
    pub(crate) fn note_ignored(&self, fields: &Fields) {
        self.note(fields.unknown());
    }

    /// Tells which of these were ignored, once for each.
    pub(crate) fn note(&self, ignored: Vec<String>) {
        let mut known = self.ignored.lock().expect("nothing panics under this lock");
        for name in ignored {
            if known.len() < MOST_IGNORED && known.insert(name.clone()) {
                tracing::warn!(field = name, "a field of a request means nothing here and is ignored");
            }
        }
    }
}

/// A request that was let in: its fields, and what stands for who sent it.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) fields: Fields,
    /// Of the key; answers to one key share no cache with those to another.
    pub(crate) salt: u64,
}

/// Reads the body of a request, within what it may have of size and time.
pub(crate) async fn read(app: Arc<App>, request: Request<Body>) -> Answer<Call> {
    let salt = guard::salt(&app, request.headers());
    let limit = app.options.body_bytes;
    let length = request.headers().get(header::CONTENT_LENGTH);
    if length.and_then(|v| v.to_str().ok()?.parse::<u64>().ok()).is_some_and(|n| n > limit as u64) {
        return Err(ApiError::too_large(limit));
    }
    let body = tokio::time::timeout(app.options.patience, to_bytes(request.into_body(), limit)).await;
    let body = body.map_err(|_| ApiError::too_slow())?.map_err(|_| ApiError::too_large(limit))?;
    if app.options.log_text {
        tracing::info!(body = %String::from_utf8_lossy(&body).escape_debug(), "asked");
    }
    Ok(Call { fields: Fields::parse(&body)?, app, salt })
}

/// The server's addresses.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", reads(get(health)))
        .route("/metrics", reads(get(metrics::show)))
        .route("/v1/models", reads(get(models)))
        .route("/v1/models/{*name}", reads(get(model)))
        .route("/v1/chat/completions", writes(post(openai::chat::answer)))
        .route("/v1/completions", writes(post(openai::completions::answer)))
        .route("/v1/responses", writes(post(openai::responses::answer)))
        .route("/v1/messages", writes(post(anthropic::answer)))
        .route("/v1/messages/count_tokens", writes(post(anthropic::count)))
        .route("/tokenize", writes(post(openai::tokens::tokenize)))
        .route("/detokenize", writes(post(openai::tokens::detokenize)))
        .merge(studio::routes())
        .merge(pages::routes())
        .fallback(nothing)
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

fn reads(routes: MethodRouter<Arc<App>>) -> MethodRouter<Arc<App>> {
    routes.fallback(|| async { ApiError::method("GET") })
}

fn writes(routes: MethodRouter<Arc<App>>) -> MethodRouter<Arc<App>> {
    routes.fallback(|| async { ApiError::method("POST with a JSON object") })
}

async fn nothing(request: Request<Body>) -> ApiError {
    let path: String = request.uri().path().chars().take(80).collect();
    ApiError::not_found(format!("there is nothing at {path}"))
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let alive = app.models.loaded().iter().all(|e| e.front.is_alive());
    let status = if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json_response(status, &json!({"status": if alive { "ok" } else { "a model's thread has ended" }}))
}

async fn models(State(app): State<Arc<App>>) -> Response {
    json_response(StatusCode::OK, &json!({"object": "list", "data": app.describe_all()}))
}

async fn model(
    State(app): State<Arc<App>>,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> Answer<Response> {
    let list = app.describe_all();
    let ids = || list.iter().filter_map(|m| m["id"].as_str()).collect::<Vec<_>>();
    let found = list.iter().find(|m| m["id"] == name.as_str());
    let found =
        found.ok_or_else(|| ApiError::no_model(&name.chars().take(80).collect::<String>(), &ids()))?;
    Ok(json_response(StatusCode::OK, found))
}

/// A header's text.
pub(crate) fn header_text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}
