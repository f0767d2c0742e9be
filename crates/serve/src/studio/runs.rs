//! Runs, as they go: read from their folders, whoever performs them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::Router;
use axum::extract::{Path as Place, RawQuery, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};

use super::{folder, json_of, whole};
use crate::app::App;
use crate::error::{Answer, ApiError, json_response};
use crate::guard;

/// Runs that are listed at most, and bytes of a file that are read at once.
const MOST_RUNS: usize = 500;
const MOST_BYTES: u64 = 1 << 20;
/// What a report may do: show itself, and values under the pointer; it is of an origin of its own and reaches nothing.
const REPORT_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; sandbox allow-scripts";

/// The addresses of runs.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/studio/runs", get(list))
        .route("/studio/runs/{name}", get(one))
        .route("/studio/runs/{name}/metrics", get(metrics))
        .route("/studio/runs/{name}/samples", get(samples))
        .route("/studio/runs/{name}/report", get(report))
}

/// The folder of a run. A name is one of those that are listed, so that it leads nowhere else.
fn run(app: &App, name: &str) -> Answer<PathBuf> {
    let found = runs(folder(app)?).into_iter().find(|path| path.file_name().is_some_and(|n| n == name));
    found.ok_or_else(|| ApiError::not_found("there is no such run"))
}

fn runs(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let run = |path: &PathBuf| path.join("recipe.toml").is_file();
    let mut found: Vec<PathBuf> = entries.map(|e| e.path()).filter(run).take(MOST_RUNS).collect();
    found.sort();
    found
}

/// When a run last wrote a line, in seconds since 1970.
fn written(run: &Path) -> Option<u64> {
    let time = fs::metadata(run.join("metrics.jsonl")).and_then(|m| m.modified()).ok()?;
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

async fn list(State(app): State<Arc<App>>) -> Answer<Response> {
    let list: Vec<Value> = runs(folder(&app)?)
        .iter()
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            json!({"name": name, "written": written(path), "report": path.join("report.html").is_file()})
        })
        .collect();
    Ok(json_response(StatusCode::OK, &json!({"runs": list})))
}

/// A run's recipe, the stages that it plans, and what those cost that have ended, in that order.
async fn one(State(app): State<Arc<App>>, Place(name): Place<String>, uri: Uri) -> Answer<Response> {
    let path = run(&app, &name)?;
    let recipe = whole(&path.join("recipe.toml"));
    let planned = planned(recipe.as_deref().unwrap_or_default());
    let mut stages = Vec::new();
    for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
        let Some(done) = json_of(&entry.path().join("done.json")) else { continue };
        let stage = entry.file_name().to_string_lossy().into_owned();
        stages.push(
            json!({"name": stage, "kind": done["kind"], "cost": done["cost"], "summary": done["summary"]}),
        );
    }
    let place = |stage: &Value| planned.iter().position(|name| stage["name"] == *name).unwrap_or(usize::MAX);
    stages.sort_by_key(|stage| (place(stage), stage["name"].as_str().unwrap_or_default().to_owned()));
    let value = json!({
        "name": name,
        "written": written(&path),
        "report": path.join("report.html").is_file().then(|| link(&app, &format!("{}/report", uri.path()))),
        "recipe": recipe,
        "planned": planned,
        "stages": stages,
    });
    Ok(json_response(StatusCode::OK, &value))
}

/// An address as a link leads to it.
fn link(app: &App, path: &str) -> String {
    if app.options.keys.is_empty() { path.to_owned() } else { format!("{path}?{}", guard::ticket(app, path)) }
}

/// The stages of a recipe as a run writes it, in the order in which they are performed.
fn planned(recipe: &str) -> Vec<&str> {
    let stages = recipe.split("[[stage]]").skip(1);
    let names = stages.filter_map(|stage| stage.lines().find_map(|line| line.strip_prefix("name = ")));
    names.map(|name| name.trim().trim_matches('"')).collect()
}

async fn metrics(
    State(app): State<Arc<App>>,
    Place(name): Place<String>,
    RawQuery(q): RawQuery,
) -> Answer<Response> {
    tail(&run(&app, &name)?.join("metrics.jsonl"), q)
}

async fn samples(
    State(app): State<Arc<App>>,
    Place(name): Place<String>,
    RawQuery(q): RawQuery,
) -> Answer<Response> {
    tail(&run(&app, &name)?.join("samples.jsonl"), q)
}

async fn report(State(app): State<Arc<App>>, Place(name): Place<String>) -> Answer<Response> {
    let text = whole(&run(&app, &name)?.join("report.html"));
    let mut response = text.ok_or_else(|| ApiError::not_found("this run has no report yet"))?.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(REPORT_POLICY));
    Ok(response)
}

/// The whole lines of a file from `?from=BYTES` on: `{"next", "lines"}`. A file that became shorter is told from its start.
fn tail(path: &Path, query: Option<String>) -> Answer<Response> {
    let query = query.unwrap_or_default();
    let from = query.strip_prefix("from=").unwrap_or("0");
    let wrong = || ApiError::field("from", "from is no number of bytes");
    let mut from: u64 = from.parse().map_err(|_| wrong())?;
    let mut lines = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let length = file.metadata().map_or(0, |m| m.len());
        if from > length {
            from = 0;
        }
        let mut bytes = Vec::new();
        let read =
            file.seek(SeekFrom::Start(from)).and_then(|_| file.take(MOST_BYTES).read_to_end(&mut bytes));
        if read.is_ok() {
            let end = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
            from += end as u64;
            let text = String::from_utf8_lossy(&bytes[..end]);
            lines = text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).collect();
        }
    }
    Ok(json_response(StatusCode::OK, &json!({"next": from, "lines": lines})))
}
