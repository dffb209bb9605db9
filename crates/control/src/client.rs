//! The other end of the socket: what commands ask a running VM with.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use config::VmName;
use serde_json::Value;

use crate::api::Failed;
use crate::endpoint::{Answer, Ask};
use crate::folder::Folder;
use crate::http::{self, Method};
use crate::unix;

/// How long an answer may take, beyond what it was asked to wait.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of an answer at most.
const MAX_ANSWER: usize = 64 << 20;

/// Why a VM could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is none of that name.
    #[error(
        "no VM called {name} runs: no process listens on {}. `skep list` shows the VMs that run; only the user who \
         started a VM sees it",
        path.display()
    )]
    NoVm {
        /// The name.
        name: VmName,
        /// Where its socket would be.
        path: PathBuf,
    },
    /// It ended, or broke off.
    #[error("the VM {name} has ended, or closed the connection")]
    Gone {
        /// The name.
        name: VmName,
    },
    /// The socket cannot be used.
    #[error("cannot talk to the VM {name} over {}: {cause}. {hint}", path.display())]
    Socket {
        /// The name.
        name: VmName,
        /// Its socket.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
        /// What a person can do.
        hint: &'static str,
    },
    /// It answered something that is no answer of this version of the API.
    #[error(
        "the VM {name} answered something that this skep does not understand: {why}. It may run another version of skep"
    )]
    Strange {
        /// The name.
        name: VmName,
        /// What is wrong with it.
        why: String,
    },
    /// It refused.
    #[error("the VM {name} refused: {why}")]
    Refused {
        /// The name.
        name: VmName,
        /// The status of its answer.
        status: u16,
        /// Its reason.
        why: String,
    },
}

impl ClientError {
    /// Whether there is no VM to ask, or none any more.
    pub fn is_gone(&self) -> bool {
        matches!(self, ClientError::NoVm { .. } | ClientError::Gone { .. })
    }
}

/// A connection to a running VM.
#[derive(Debug)]
pub struct Client {
    name: VmName,
    path: PathBuf,
    stream: UnixStream,
}

impl Client {
    /// Connects to the VM of this name.
    pub fn connect(folder: &Folder, name: &VmName) -> Result<Client, ClientError> {
        let (name, path) = (name.clone(), folder.socket(name));
        match unix::connect(&path) {
            Ok(stream) => Ok(Client { name, path, stream }),
            Err(cause) => Err(match cause.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::NoVm { name, path }
                }
                io::ErrorKind::PermissionDenied => ClientError::Socket {
                    name,
                    path,
                    cause,
                    hint: "It belongs to another user; ask as that user, or as root.",
                },
                io::ErrorKind::WouldBlock => ClientError::Socket {
                    name,
                    path,
                    cause,
                    hint: "It does not take connections; is its process stopped?",
                },
                _ => ClientError::Socket { name, path, cause, hint: "Check its folder." },
            }),
        }
    }

    /// Asks, and reads the whole answer.
    pub(crate) fn ask<A: Answer>(
        &mut self,
        method: Method,
        path: &str,
        request: &impl Ask,
    ) -> Result<A, ClientError> {
        let said = serde_json::to_value(request).expect("types of the API are JSON by construction");
        let (line, body) = match method {
            Method::Get => (format!("GET {path}{}", query(&said)), String::new()),
            Method::Post | Method::Other => (format!("POST {path}"), said.to_string()),
        };
        let mut files = Vec::new();
        let patience = ANSWER_LIMIT + request.wait();
        let (status, body) = self.exchange(&line, body.as_bytes(), patience, &mut files)?;
        let strange = |why: serde_json::Error| self.strange(why.to_string());
        if (200..300).contains(&status) {
            let body = serde_json::from_slice(&body).map_err(strange)?;
            return A::from_parts(body, files).map_err(|why| self.strange(why));
        }
        let Failed { error } = serde_json::from_slice(&body).map_err(strange)?;
        Err(ClientError::Refused { name: self.name.clone(), status, why: error })
    }

    fn exchange(
        &mut self,
        what: &str,
        body: &[u8],
        patience: Duration,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<(u16, Vec<u8>), ClientError> {
        let until = Instant::now() + patience;
        // An error in sending may be the end of a peer that said why before: its answer is looked for all the same.
        let head = format!("{what} HTTP/1.1\r\nHost: vm\r\nContent-Length: {}\r\n\r\n", body.len());
        let sent = self.stream.write_all(&[head.as_bytes(), body].concat());
        let (mut bytes, mut buffer) = (Vec::new(), [0; 16 << 10]);
        loop {
            let head = http::parse_answer(&bytes).map_err(|bad| self.strange(bad.to_string()))?;
            if let Some((status, length, used)) = head {
                if length > MAX_ANSWER {
                    return Err(self.strange(format!("it is {length} bytes long")));
                }
                if let Some(body) = bytes.get(used..used + length) {
                    return Ok((status, body.to_vec()));
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.failed(io::ErrorKind::TimedOut.into()));
            }
            self.stream.set_read_timeout(Some(left)).map_err(|cause| self.failed(cause))?;
            match unix::receive(&self.stream, &mut buffer, fds) {
                Ok(0) => return Err(self.gone()),
                Ok(got) => bytes.extend_from_slice(&buffer[..got]),
                Err(cause) => match cause.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {}
                    io::ErrorKind::ConnectionReset => return Err(self.gone()),
                    _ => return Err(sent.map_or_else(|_| self.gone(), |()| self.failed(cause))),
                },
            }
        }
    }

    fn gone(&self) -> ClientError {
        ClientError::Gone { name: self.name.clone() }
    }

    fn strange(&self, why: String) -> ClientError {
        ClientError::Strange { name: self.name.clone(), why }
    }

    fn failed(&self, cause: io::Error) -> ClientError {
        let hint = "Is its process stopped, or very busy?";
        ClientError::Socket { name: self.name.clone(), path: self.path.clone(), cause, hint }
    }
}

/// The query that says this: `?after=7&wait=30`.
pub(crate) fn query(said: &Value) -> String {
    let keys = said.as_object().into_iter().flatten();
    let pairs: Vec<String> = keys.map(|(key, value)| format!("{key}={value}")).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}
