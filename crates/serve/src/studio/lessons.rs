//! The addresses of lessons: a table is dropped, looked at, taught, stopped, taught on.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path as Place, State};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Map, Value, json};

use super::folder;
use super::lesson::{Doing, Lesson};
use crate::app::{App, Call, read};
use crate::error::{Answer, ApiError, json_response};
use crate::fields::Fields;
use crate::options::Teacher;

/// Bytes of a table, and lessons, at most.
const MOST_TABLE: usize = 64 << 20;
const MOST_LESSONS: usize = 500;
/// Bytes of a column's name.
const MOST_COLUMN: usize = 200;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/studio/lessons", get(list))
        .route("/studio/lessons/{name}", get(one).put(create))
        .route("/studio/lessons/{name}/look", post(look))
        .route("/studio/lessons/{name}/start", post(start))
        .route("/studio/lessons/{name}/stop", post(stop))
}

/// What teaches, if this server may: strangers may not start programs.
pub(super) fn may(app: &App) -> Answer<&Teacher> {
    folder(app)?;
    let none = || ApiError::not_found("this server does not teach: start it with `shoestring studio`");
    let teacher = app.options.teacher.as_ref().ok_or_else(none)?;
    if !app.options.address.ip().is_loopback() && app.options.keys.is_empty() {
        return Err(ApiError::forbidden(
            "whoever reaches this server could teach: start it with --api-key-file",
        ));
    }
    Ok(teacher)
}

fn find(app: &App, name: &str) -> Answer<Lesson> {
    may(app)?;
    Lesson::find(folder(app)?, name).ok_or_else(|| ApiError::not_found("there is no such lesson"))
}

fn described(lesson: &Lesson) -> Response {
    json_response(StatusCode::OK, &lesson.describe())
}

async fn list(State(app): State<Arc<App>>) -> Answer<Response> {
    may(&app)?;
    let list: Vec<Value> = Lesson::all(folder(&app)?).iter().map(Lesson::brief).collect();
    Ok(json_response(StatusCode::OK, &json!({"lessons": list})))
}

async fn one(State(app): State<Arc<App>>, Place(name): Place<String>) -> Answer<Response> {
    Ok(described(&find(&app, &name)?))
}

/// Takes a table, whose file has this name.
async fn create(
    State(app): State<Arc<App>>,
    Place(file): Place<String>,
    request: Request<Body>,
) -> Answer<Response> {
    may(&app)?;
    let runs = folder(&app)?;
    if Lesson::all(runs).len() >= MOST_LESSONS {
        return Err(ApiError::conflict(format!(
            "there are {MOST_LESSONS} lessons: remove some of their folders"
        )));
    }
    let body = tokio::time::timeout(app.options.patience, to_bytes(request.into_body(), MOST_TABLE)).await;
    let table = body.map_err(|_| ApiError::too_slow())?.map_err(|_| ApiError::too_large(MOST_TABLE))?;
    if table.is_empty() {
        return Err(ApiError::bad("the table is empty"));
    }
    let broken = |e: std::io::Error| ApiError::internal(format!("the table cannot be kept: {e}"));
    Ok(described(&Lesson::create(runs, &file, &table).map_err(broken)?))
}

/// `model`, `minutes`, `question`, `answer`, `solution`, `max_new`.
fn settings(f: &mut Fields) -> Answer<Value> {
    let mut settings = Map::new();
    let model = f.text("model")?.ok_or_else(|| ApiError::field("model", "model is missing"))?;
    settings.insert("model".into(), model.into());
    let minutes = f.peek("minutes");
    f.number("minutes", 0.05..=10_000.0)?;
    settings.insert("minutes".into(), if minutes.is_null() { 30.into() } else { minutes });
    for column in ["question", "answer", "solution"] {
        let Some(name) = f.text(column)?.filter(|name| !name.is_empty()) else { continue };
        if name.len() > MOST_COLUMN || name.contains('\0') {
            return Err(ApiError::field(
                column,
                format!("{column} is no name of at most {MOST_COLUMN} bytes"),
            ));
        }
        settings.insert(column.into(), name.into());
    }
    if let Some(most) = f.count("max_new", 1..=1 << 20)? {
        settings.insert("max_new".into(), most.into());
    }
    Ok(Value::Object(settings))
}

async fn begin(app: Arc<App>, name: &str, doing: Doing, request: Request<Body>) -> Answer<Response> {
    let lesson = find(&app, name)?;
    let Call { app, fields: mut f, .. } = read(app, request).await?;
    let settings = settings(&mut f)?;
    app.note_ignored(&f);
    let shelf = app.shelf();
    let model = shelf.iter().find(|s| settings["model"] == s.name.as_str());
    let names = || shelf.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
    let model = model.ok_or_else(|| {
        ApiError::field("model", format!("model is none of those that can be taught: {}", names()))
    })?;
    let _turn = app.lessons.lock().expect("nothing panics under this lock");
    if let Some(other) = Lesson::all(folder(&app)?).iter().find(|l| l.is_at_work()) {
        return Err(ApiError::conflict(format!("{} is at work: wait for it or stop it", other.name)));
    }
    if doing == Doing::Look && lesson.has_begun() {
        return Err(ApiError::conflict("this lesson has begun: drop the table anew to begin another"));
    }
    lesson.begin(may(&app)?, doing, &model.path, settings)?;
    Ok(described(&lesson))
}

async fn look(
    State(app): State<Arc<App>>,
    Place(name): Place<String>,
    request: Request<Body>,
) -> Answer<Response> {
    begin(app, &name, Doing::Look, request).await
}

async fn start(
    State(app): State<Arc<App>>,
    Place(name): Place<String>,
    request: Request<Body>,
) -> Answer<Response> {
    begin(app, &name, Doing::Teach, request).await
}

async fn stop(State(app): State<Arc<App>>, Place(name): Place<String>) -> Answer<Response> {
    let lesson = find(&app, &name)?;
    let _turn = app.lessons.lock().expect("nothing panics under this lock");
    lesson.stop()?;
    Ok(described(&lesson))
}
