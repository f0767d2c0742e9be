//! Who is let in: from which page, under which name, with which key.

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::{App, header_text};
use crate::error::{Answer, ApiError};
use crate::{anthropic, pages};

/// Looks at every request before anything else does.
pub(crate) async fn guard(State(app): State<Arc<App>>, request: Request<Body>, next: Next) -> Response {
    let begun = Instant::now();
    let path: String = request.uri().path().chars().take(80).collect();
    let method = request.method().clone();
    let response = admit(&app, request, next).await;
    let (status, ms) = (response.status(), begun.elapsed().as_millis());
    // Pages ask for news every second: where that goes well, it would hide the lines that say something.
    let looks = method == Method::GET && status.is_success() && !path.starts_with("/v1/");
    let status = status.as_u16();
    if looks {
        tracing::debug!(%method, path, status, ms, "answered");
    } else {
        tracing::info!(%method, path, status, ms, "answered");
    }
    app.metrics.count(response)
}

async fn admit(app: &App, request: Request<Body>, next: Next) -> Response {
    let headers = request.headers();
    let allowed = match origin(app, headers) {
        Ok(allowed) => allowed,
        Err(refusal) => return refuse(&request, refusal),
    };
    // Clients send headers of their own: whoever may use the server may send any.
    let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let preflight =
        request.method() == Method::OPTIONS && headers.contains_key("access-control-request-method");
    let mut response = if preflight && allowed.is_some() {
        StatusCode::NO_CONTENT.into_response()
    } else {
        match host(app, &request).and_then(|()| key(app, &request)) {
            Ok(()) => next.run(request).await,
            Err(refusal) => refuse(&request, refusal),
        }
    };
    if let Some(origin) = allowed {
        allow(response.headers_mut(), origin, asked);
    }
    response
}

/// A refusal in the words of the interface that was asked.
fn refuse(request: &Request<Body>, refusal: ApiError) -> Response {
    if request.uri().path().starts_with("/v1/messages") {
        return anthropic::refusal(&refusal);
    }
    refusal.into_response()
}

/// Pages of other origins may not use the server, unless they were named: gives the origin that was.
fn origin(app: &App, headers: &HeaderMap) -> Answer<Option<HeaderValue>> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(None) };
    let text = origin.to_str().unwrap_or_default();
    if app.options.origins.iter().any(|o| o == text || o == "*") {
        return Ok(Some(origin.clone()));
    }
    let own = header_text(headers, "host");
    let authority = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    if authority.is_some() && authority == own {
        return Ok(None);
    }
    Err(ApiError::forbidden("pages of another origin may not use this server: see --allow-origin"))
}

fn allow(headers: &mut HeaderMap, origin: HeaderValue, asked: Option<HeaderValue>) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    if let Some(names) = asked {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
    }
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
}

/// A server on the loopback is called by a name of the loopback: a page that has its own name point here is refused.
fn host(app: &App, request: &Request<Body>) -> Answer<()> {
    if !app.options.address.ip().is_loopback() && app.options.hosts.is_empty() {
        return Ok(());
    }
    let host = header_text(request.headers(), "host").or_else(|| request.uri().host()).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let loopback = ["localhost", "127.0.0.1", "::1"].iter().any(|n| name.eq_ignore_ascii_case(n));
    if loopback || app.options.hosts.iter().any(|h| h.eq_ignore_ascii_case(name)) {
        return Ok(());
    }
    Err(ApiError::forbidden("the server is not known by that name: see --allow-host"))
}

/// The key that a request brings.
fn brought(headers: &HeaderMap) -> Option<&str> {
    let bearer = header_text(headers, "authorization").and_then(|v| {
        let (scheme, key) = v.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    bearer.or_else(|| header_text(headers, "x-api-key"))
}

fn key(app: &App, request: &Request<Body>) -> Answer<()> {
    // The page itself holds nothing; it asks for the key.
    let path = request.uri().path();
    let admitted = request.uri().query().is_some_and(|q| same(ticket(app, path).as_bytes(), q.as_bytes()));
    let open = path == "/health" || pages::is_page(path) || admitted;
    if app.options.keys.is_empty() || open {
        return Ok(());
    }
    let key = brought(request.headers()).unwrap_or_default().as_bytes();
    // Every key is looked at in full, so that the time tells nothing.
    let found = app.options.keys.iter().fold(false, |found, k| found | same(k.as_bytes(), key));
    if found { Ok(()) } else { Err(ApiError::unauthorized()) }
}

/// The query by which a link leads to one address without a key, for as long as this server runs: a browser that follows a link
/// brings none.
pub(crate) fn ticket(app: &App, path: &str) -> String {
    format!("ticket={:016x}", app.secret.hash_one(path))
}

fn same(a: &[u8], b: &[u8]) -> bool {
    let differ = a.iter().enumerate().fold(0u8, |d, (i, x)| d | (x ^ b.get(i).copied().unwrap_or(0)));
    differ == 0 && a.len() == b.len()
}

/// A number for the key of a request.
pub(crate) fn salt(app: &App, headers: &HeaderMap) -> u64 {
    if app.options.keys.is_empty() {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    brought(headers).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_compared_in_full() {
        assert!(same(b"abc", b"abc"));
        for other in ["", "ab", "abd", "abcd", "abc\0"] {
            assert!(!same(b"abc", other.as_bytes()), "{other:?}");
        }
    }
}
