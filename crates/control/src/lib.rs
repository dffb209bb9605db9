//! A running VM's API: HTTP/1.1 with JSON on a Unix socket, and the client that speaks it.
//!
//! `docs/control.md` describes it for users, `docs/openapi.json` for programs. A VM claims its name ([`Folder::claim`]),
//! which makes the socket, and serves it ([`Server`]) from what it says about itself ([`Source`], [`Journal`]). The module
//! [`api`] has the table of what can be asked, and the types that go over the socket, for both ends.
//!
//! Only the VM's user and root get an answer: by the socket's mode, by its folder's, and by who connects. What they
//! send may still be anything; it is bounded in size and time, and cannot make the VM fail.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod api;
mod client;
mod connection;
mod endpoint;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod folder;
pub mod http;
mod journal;
#[cfg(test)]
mod openapi;
mod own_socket;
mod reply;
mod routes;
mod server;
mod time;
mod unix;

pub use api::Source;
pub use client::{Client, ClientError};
pub use endpoint::{Answer, Ask, Refused};
pub use folder::{Claim, Folder, FolderError};
pub use journal::{Journal, KEPT};
pub use own_socket::{Callers, OwnSocket, SocketError};
pub use server::{MAX_CONNECTIONS, Server, Unanswered};
pub use time::rfc3339;
pub use unix::{MAX_FDS, Peer};
