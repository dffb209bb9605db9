//! What a client gets back.

use std::os::fd::OwnedFd;

use serde::Serialize;

use crate::api::Failed;

/// An answer: status, body, and file descriptors that go with it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: u16,
    pub allow: Option<&'static str>,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Reply {
    /// An answer in JSON, with a line feed behind it for those who read it on a terminal.
    pub fn json(status: u16, body: &impl Serialize) -> Reply {
        let mut text = serde_json::to_vec(body).expect("types of the API are JSON by construction");
        text.push(b'\n');
        Reply { status, allow: None, body: text, fds: Vec::new() }
    }

    /// An answer that says what is wrong.
    pub fn error(status: u16, error: impl Into<String>) -> Reply {
        Reply::json(status, &Failed { error: error.into() })
    }
}
