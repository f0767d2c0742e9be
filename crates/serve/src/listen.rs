//! Connections: accepted, kept within time, and closed in good order.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep};

use crate::app::{self, App};
use crate::options::{Options, Served};

/// Connections at once.
const MOST_CONNECTIONS: usize = 4096;
/// Bytes of a request's head.
const MOST_HEAD: usize = 64 << 10;

/// Why a server does not run.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Two models of one name.
    #[error("two models are called {0:?}: give one of them another name, as NAME=FOLDER")]
    SameName(String),
    /// The address is taken or not the machine's.
    #[error("cannot listen on {address}: {source}; name another with --host and --port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's word.
        source: io::Error,
    },
    /// The system refuses threads.
    #[error("cannot start the server: {0}")]
    Start(#[from] io::Error),
}

/// A server that listens.
pub struct Server {
    runtime: tokio::runtime::Runtime,
    listener: TcpListener,
    app: Arc<App>,
}

impl Server {
    /// Starts the models' lanes and listens.
    ///
    /// # Errors
    /// Two models of one name, an address that cannot be had, and a system that refuses threads.
    pub fn bind(models: Vec<Served>, options: Options) -> Result<Server, ServeError> {
        for (i, served) in models.iter().enumerate() {
            if models[..i].iter().any(|other| other.name == served.name) {
                return Err(ServeError::SameName(served.name.clone()));
            }
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let address = options.address;
        let listener = runtime
            .block_on(TcpListener::bind(address))
            .map_err(|source| ServeError::Listen { address, source })?;
        let app = Arc::new(App::new(models, options)?);
        Ok(Server { runtime, listener, app })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// As the system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until the process is told to end (Ctrl-C, or a signal to terminate); then takes no more, and lets answers in
    /// work come to their end for as long as the options say. A second signal ends it at once. Says whether all came to
    /// their end.
    pub fn run(self) -> bool {
        let Server { runtime, listener, app } = self;
        let done = runtime.block_on(serve(listener, app));
        runtime.shutdown_timeout(Duration::from_millis(100));
        done
    }
}

/// Resolves when the process is told to end.
async fn told_to_end() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => tokio::select! {
                _ = interrupt => {}
                _ = terminate.recv() => {}
            },
            Err(_) => drop(interrupt.await),
        }
    }
    #[cfg(not(unix))]
    drop(interrupt.await);
}

async fn serve(listener: TcpListener, app: Arc<App>) -> bool {
    let (patience, grace) = (app.options.patience, app.options.grace);
    let router = app::router(app);
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut end = std::pin::pin!(told_to_end());
    loop {
        let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut end => break,
        };
        // Too many open files, say: what is there goes on, and the next one is waited for.
        let Ok((stream, _)) = accepted else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let connection = graceful.watch(connection(stream, router.clone(), patience));
        tokio::spawn(async move {
            let _ = connection.await;
            drop(permit);
        });
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => true,
        () = sleep(grace) => false,
        () = told_to_end() => false,
    }
}

type Connection = http1::Connection<TokioIo<Patient>, TowerToHyperService<Router>>;

fn connection(stream: TcpStream, router: Router, patience: Duration) -> Connection {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(MOST_HEAD)
        .half_close(false)
        .serve_connection(TokioIo::new(Patient::new(stream, patience)), TowerToHyperService::new(router))
}

/// A stream whose reader may not keep it waiting for ever.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    sleep: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Patient {
    fn new(stream: TcpStream, patience: Duration) -> Patient {
        Patient { stream, patience, sleep: Box::pin(sleep(patience)), waiting: false }
    }

    /// A write's outcome, or an error where none came for too long.
    fn within<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.waiting = false;
            return outcome;
        }
        if !std::mem::replace(&mut self.waiting, true) {
            self.sleep.as_mut().reset(Instant::now() + self.patience);
        }
        match self.sleep.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.within(cx, outcome)
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.within(cx, outcome)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_flush(cx);
        this.within(cx, outcome)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
