//! What goes wrong, in the shape that clients expect.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

/// An answer that is an error, as OpenAI words them.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The field that is wrong.
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
    /// Seconds after which it may go better.
    pub(crate) retry_after: Option<u32>,
}

/// The result of anything that a client asked for.
pub(crate) type Answer<T> = Result<T, ApiError>;

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A request that is wrong in one field.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..ApiError::bad(message) }
    }

    /// A request that is wrong.
    pub(crate) fn bad(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// A request that is longer than the model's context.
    pub(crate) fn too_long(param: &str, message: String) -> ApiError {
        ApiError { code: Some("context_length_exceeded"), ..ApiError::field(param, message) }
    }

    /// No key, or a wrong one.
    pub(crate) fn unauthorized() -> ApiError {
        let message = "a valid API key is needed: send it as `Authorization: Bearer KEY`";
        ApiError { code: Some("invalid_api_key"), ..ApiError::new(StatusCode::UNAUTHORIZED, message) }
    }

    /// From where it may not come.
    pub(crate) fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, message)
    }

    /// No such address or model.
    pub(crate) fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, message)
    }

    /// An address that is used otherwise.
    pub(crate) fn method(allowed: &str) -> ApiError {
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("this address takes {allowed}"))
    }

    /// A model that has no such model.
    pub(crate) fn no_model(name: &str, known: &[&str]) -> ApiError {
        let message = format!("there is no model {name:?}: {} can be asked", known.join(", "));
        ApiError {
            param: Some("model".into()),
            code: Some("model_not_found"),
            ..ApiError::not_found(message)
        }
    }

    /// Something else is going on that it does not go with.
    pub(crate) fn conflict(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, message)
    }

    /// More bytes than a request may have.
    pub(crate) fn too_large(limit: usize) -> ApiError {
        let message = format!("the request is larger than {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// A request that did not arrive in time.
    pub(crate) fn too_slow() -> ApiError {
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time")
    }

    /// More work than there may be.
    pub(crate) fn busy(open: usize) -> ApiError {
        let message = format!("the server has {open} answers in work or waiting: try again in a moment");
        let code = Some("rate_limit_exceeded");
        ApiError { code, retry_after: Some(1), ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    /// A fault of the server.
    pub(crate) fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The kind, in OpenAI's words.
    pub(crate) fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `{"error": {"message", "type", "param", "code"}}`.
    pub(crate) fn to_json(&self) -> Value {
        let (message, kind) = (&self.message, self.kind());
        json!({"error": {"message": message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.status, &self.to_json());
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A response of one JSON value.
pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
