//! Server-sent events: a response that grows.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use http_body::Frame;
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Events that may wait for the client to read them.
const BUFFER: usize = 16;
/// How long a stream may be silent before a comment keeps it alive.
const SILENCE: Duration = Duration::from_secs(10);

struct Stream(Receiver<Bytes>);

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|b| Ok(Frame::data(b))))
    }
}

/// Where events are written.
pub(crate) struct Events(Sender<Bytes>);

/// The client has gone away.
pub(crate) struct Gone;

impl Events {
    /// An event stream, and the response that carries it.
    pub(crate) fn new() -> (Events, Response) {
        let (to, from) = channel(BUFFER);
        let mut response = Response::new(Body::new(Stream(from)));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        (Events(to), response)
    }

    async fn write(&self, text: String) -> Result<(), Gone> {
        self.0.send(Bytes::from(text)).await.map_err(|_| Gone)
    }

    /// An event of one value.
    pub(crate) async fn data(&self, value: &Value) -> Result<(), Gone> {
        self.write(format!("data: {value}\n\n")).await
    }

    /// An event of a name.
    pub(crate) async fn named(&self, name: &str, value: &Value) -> Result<(), Gone> {
        self.write(format!("event: {name}\ndata: {value}\n\n")).await
    }

    /// The end, in OpenAI's way.
    pub(crate) async fn done(&self) -> Result<(), Gone> {
        self.write("data: [DONE]\n\n".to_owned()).await
    }

    /// Keeps a silent stream alive for a while; fails once the client has gone away.
    pub(crate) async fn keep_alive(&self) -> Result<(), Gone> {
        tokio::select! {
            () = self.0.closed() => Err(Gone),
            () = tokio::time::sleep(SILENCE) => self.write(": keep-alive\n\n".to_owned()).await,
        }
    }

    /// What comes next from a channel; a comment keeps the stream alive meanwhile.
    pub(crate) async fn next<T>(&self, from: &mut Receiver<T>) -> Result<Option<T>, Gone> {
        loop {
            tokio::select! {
                next = from.recv() => return Ok(next),
                alive = self.keep_alive() => alive?,
            }
        }
    }
}
