//! A running VM's API: HTTP/1.1 with JSON on a Unix socket, and the client that speaks it.
//!
//! `docs/control.md` describes it for users. A VM claims its name ([`Folder::claim`]), which makes the socket, and
//! serves it ([`Server`]) from what it says about itself ([`Source`], [`Journal`]). What goes over the socket are the
//! types in [`api`], at both ends.
//!
//! Only the VM's user and root get an answer: by the socket's mode, by its folder's, and by who connects. What they
//! send may still be anything; it is bounded in size and time, and cannot make the VM fail.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod api;
mod client;
mod connection;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod folder;
pub mod http;
mod journal;
mod own_socket;
mod routes;
mod server;
mod source;
mod time;
mod unix;
pub mod view;

pub use client::{Client, ClientError};
pub use folder::{Claim, Folder, FolderError};
pub use journal::{Faults, Journal, KEPT};
pub use own_socket::{Callers, OwnSocket, SocketError};
pub use routes::LONGEST_WAIT;
pub use server::{MAX_CONNECTIONS, Server, Unanswered};
pub use source::{Refused, Source};
pub use time::rfc3339;
pub use unix::{MAX_FDS, Peer};
