//! The pages, embedded in the binary.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::app::App;

/// Every file: its address, its kind, and what it holds.
const FILES: [(&str, &str, &str); 12] = [
    ("/", "text/html; charset=utf-8", include_str!("pages/index.html")),
    ("/runs", "text/html; charset=utf-8", include_str!("pages/runs.html")),
    ("/teach", "text/html; charset=utf-8", include_str!("pages/teach.html")),
    ("/app/teach.js", "text/javascript; charset=utf-8", include_str!("pages/teach.js")),
    ("/app/curves.js", "text/javascript; charset=utf-8", include_str!("pages/curves.js")),
    ("/app/nav.js", "text/javascript; charset=utf-8", include_str!("pages/nav.js")),
    ("/app/runs.js", "text/javascript; charset=utf-8", include_str!("pages/runs.js")),
    ("/openapi.json", "application/json", include_str!("openapi.json")),
    ("/app/style.css", "text/css; charset=utf-8", include_str!("pages/style.css")),
    ("/app/chat.js", "text/javascript; charset=utf-8", include_str!("pages/chat.js")),
    ("/app/api.js", "text/javascript; charset=utf-8", include_str!("pages/api.js")),
    ("/app/render.js", "text/javascript; charset=utf-8", include_str!("pages/render.js")),
];

/// What a page may do: nothing but talk to the server that it came from.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Whether an address is a page's, which holds no data.
pub(crate) fn is_page(path: &str) -> bool {
    FILES.iter().any(|(address, ..)| *address == path)
}

/// The pages' addresses.
pub(crate) fn routes() -> Router<Arc<App>> {
    FILES.iter().fold(Router::new(), |router, &(address, kind, text)| {
        router.route(address, get(move || async move { page(kind, text) }))
    })
}

fn page(kind: &'static str, text: &'static str) -> Response {
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
