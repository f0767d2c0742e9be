//! The server and the studio as their clients have them.

mod common;
mod description;
mod http;
mod interfaces;
#[cfg(unix)]
mod lessons;
mod studio;
