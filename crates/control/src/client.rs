//! The other end of the socket: what commands ask a running VM with.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use config::VmName;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{
    Dma, Done, Drive, Eject, Events, Failed, Info, Insert, Memory, Plug, Plugged, Stats, Unplug, Unplugged,
};
use crate::folder::Folder;
use crate::http;
use crate::unix;

/// How long an answer may take, beyond what it was asked to wait.
const PATIENCE: Duration = Duration::from_secs(10);
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

    /// The VM and its process.
    pub fn info(&mut self) -> Result<Info, ClientError> {
        self.get("/v1")
    }

    /// Its DMA domains.
    pub fn dma(&mut self) -> Result<Dma, ClientError> {
        self.get("/v1/dma")
    }

    /// Its memory map.
    pub fn memory(&mut self) -> Result<Memory, ClientError> {
        self.get("/v1/memory")
    }

    /// Its memory map, and the files of the segments in the same order.
    pub fn memory_fds(&mut self) -> Result<(Memory, Vec<OwnedFd>), ClientError> {
        let mut fds = Vec::new();
        let memory: Memory = self.ask("GET /v1/memory/fds", b"", PATIENCE, &mut fds)?;
        if memory.segments.len() == fds.len() {
            return Ok((memory, fds));
        }
        let why = format!("{} segments came with {} files", memory.segments.len(), fds.len());
        Err(self.strange(why))
    }

    /// Events after this number; if there are none, the first that come within `wait` (seconds count).
    pub fn events(&mut self, after: u64, wait: Duration) -> Result<Events, ClientError> {
        let seconds = wait.as_secs();
        let what = format!("GET /v1/events?after={after}&wait={seconds}");
        self.ask(&what, b"", wait + PATIENCE, &mut Vec::new())
    }

    /// What went through its disks.
    pub fn stats(&mut self) -> Result<Stats, ClientError> {
        self.get("/v1/stats")
    }

    /// Pauses it: its vCPUs stop.
    pub fn pause(&mut self) -> Result<Done, ClientError> {
        self.post("/v1/pause")
    }

    /// Makes its vCPUs run again.
    pub fn resume(&mut self) -> Result<Done, ClientError> {
        self.post("/v1/resume")
    }

    /// Puts a disc into one of its CD drives.
    pub fn insert(&mut self, insert: &Insert) -> Result<Drive, ClientError> {
        self.post_with("/v1/insert", insert)
    }

    /// Takes out what is in one of its CD drives.
    pub fn eject(&mut self, eject: &Eject) -> Result<Drive, ClientError> {
        self.post_with("/v1/eject", eject)
    }

    /// Plugs a disk into one of its SATA controllers.
    pub fn plug(&mut self, plug: &Plug) -> Result<Plugged, ClientError> {
        self.post_with("/v1/plug", plug)
    }

    /// Unplugs one of its SATA disks.
    pub fn unplug(&mut self, unplug: &Unplug) -> Result<Unplugged, ClientError> {
        self.post_with("/v1/unplug", unplug)
    }

    /// Presses its power button.
    pub fn press_power_button(&mut self) -> Result<Done, ClientError> {
        self.post("/v1/power")
    }

    /// Ends it now.
    pub fn stop(&mut self) -> Result<Done, ClientError> {
        self.post("/v1/stop")
    }

    fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ClientError> {
        self.ask(&format!("GET {path}"), b"", PATIENCE, &mut Vec::new())
    }

    fn post<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ClientError> {
        self.ask(&format!("POST {path}"), b"", PATIENCE, &mut Vec::new())
    }

    fn post_with<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).expect("types of the API are JSON by construction");
        self.ask(&format!("POST {path}"), &body, PATIENCE, &mut Vec::new())
    }

    /// Asks, and reads the whole answer.
    fn ask<T: DeserializeOwned>(
        &mut self,
        what: &str,
        body: &[u8],
        patience: Duration,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<T, ClientError> {
        let (status, body) = self.exchange(what, body, patience, fds)?;
        let strange = |why: serde_json::Error| self.strange(why.to_string());
        if (200..300).contains(&status) {
            return serde_json::from_slice(&body).map_err(strange);
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
