//! The pages, embedded in the binary.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::app::App;

/// What all pages stand in: `{title}`, `{script}` and `{page}` are a page's own.
const FRAME: &str = include_str!("pages/frame.html");

/// Every page: its address, its title, its script, and what it holds from the rest of its header on.
const PAGES: [(&str, &str, &str, &str); 3] = [
    ("/", "Shoestring", "chat", include_str!("pages/chat.html")),
    ("/runs", "Runs · Shoestring", "runs", include_str!("pages/runs.html")),
    ("/teach", "Teach · Shoestring", "teach", include_str!("pages/teach.html")),
];

/// Every other file: its address, its kind, and what it holds.
const FILES: [(&str, &str, &str); 9] = [
    ("/app/teach.js", SCRIPT, include_str!("pages/teach.js")),
    ("/app/curves.js", SCRIPT, include_str!("pages/curves.js")),
    ("/app/nav.js", SCRIPT, include_str!("pages/nav.js")),
    ("/app/runs.js", SCRIPT, include_str!("pages/runs.js")),
    ("/openapi.json", "application/json", include_str!("openapi.json")),
    ("/app/style.css", "text/css; charset=utf-8", include_str!("pages/style.css")),
    ("/app/chat.js", SCRIPT, include_str!("pages/chat.js")),
    ("/app/api.js", SCRIPT, include_str!("pages/api.js")),
    ("/app/render.js", SCRIPT, include_str!("pages/render.js")),
];

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// What a page may do: nothing but talk to the server that it came from.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Whether an address is a page's, which holds no data.
pub(crate) fn is_page(path: &str) -> bool {
    let pages = PAGES.iter().map(|(address, ..)| *address);
    pages.chain(FILES.iter().map(|(address, ..)| *address)).any(|address| address == path)
}

/// The pages' addresses.
pub(crate) fn routes() -> Router<Arc<App>> {
    let pages = PAGES.iter().map(|&(address, title, script, page)| {
        let whole = FRAME.replace("{title}", title).replace("{script}", script).replace("{page}", page);
        (address, "text/html; charset=utf-8", Bytes::from(whole))
    });
    let files =
        FILES.iter().map(|&(address, kind, text)| (address, kind, Bytes::from_static(text.as_bytes())));
    pages.chain(files).fold(Router::new(), |router, (address, kind, bytes)| {
        router.route(address, get(move || async move { page(kind, bytes) }))
    })
}

fn page(kind: &'static str, bytes: Bytes) -> Response {
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
