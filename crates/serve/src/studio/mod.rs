//! The studio: runs as they go, and lessons, which teach a model a table.

mod lesson;
mod lessons;
mod runs;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{Answer, ApiError, json_response};

/// Bytes of a file that is read whole.
const MOST_WHOLE: u64 = 32 << 20;

/// The studio's addresses.
pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/studio", get(about)).merge(runs::routes()).merge(lessons::routes())
}

/// Which of the studio's pages there are, and where runs lie.
async fn about(State(app): State<Arc<App>>) -> Response {
    let (runs, teach) = (app.options.runs.is_some(), lessons::may(&app).is_ok());
    // Where runs lie is told to those who may begin some.
    let folder = app.options.runs.as_deref().filter(|_| teach).map(Path::to_string_lossy);
    json_response(StatusCode::OK, &json!({"runs": runs, "teach": teach, "folder": folder}))
}

/// The folder of runs.
fn folder(app: &App) -> Answer<&Path> {
    let none =
        || ApiError::not_found("this server was given no folder of runs: start it with `shoestring studio`");
    app.options.runs.as_deref().ok_or_else(none)
}

/// A file's text.
fn whole(path: &Path) -> Option<String> {
    let file = File::open(path).ok().filter(|f| f.metadata().is_ok_and(|m| m.len() <= MOST_WHOLE))?;
    let mut text = String::new();
    file.take(MOST_WHOLE).read_to_string(&mut text).ok()?;
    Some(text)
}

/// A file's JSON.
fn json_of(path: &Path) -> Option<Value> {
    serde_json::from_str(&whole(path)?).ok()
}
