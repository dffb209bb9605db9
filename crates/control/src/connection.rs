//! One connection, from its first request to its end.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::api::Source;
use crate::http::{self, MAX_BODY, MAX_HEAD, Parsed, Request};
use crate::reply::Reply;
use crate::routes;
use crate::server::Gate;
use crate::unix;

/// How long a connection and its peer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Without a request.
    pub idle: Duration,
    /// From a request's first byte to its last.
    pub request: Duration,
    /// To take an answer.
    pub answer: Duration,
}

impl Patience {
    pub const USUAL: Patience = Patience {
        idle: Duration::from_secs(60),
        request: Duration::from_secs(10),
        answer: Duration::from_secs(10),
    };
}

/// Refuses this peer in one answer, and closes the connection.
pub(crate) fn turn_away(stream: &UnixStream, status: u16, why: &str) {
    // A client that does not read it does not get it; nothing waits for the client.
    drop(stream.set_nonblocking(true));
    drop(send(stream, &Reply::error(status, why), false, Duration::ZERO));
}

/// Refuses users other than the VM's and root, whatever the socket's mode says.
pub(crate) fn turn_away_a_stranger(stream: &UnixStream) {
    turn_away(stream, 403, "this VM belongs to another user. Its owner and root may use its socket");
}

/// Answers requests until the peer closes the connection, is silent for too long, or sends something wrong.
pub(crate) fn serve(stream: &UnixStream, source: &dyn Source, gate: &Gate, patience: Patience) {
    let mut waiting = Vec::new();
    // An error in reading or writing ends the connection. It cannot be reported to the client.
    while let Ok(Some(request)) = next_request(stream, &mut waiting, patience) {
        let answer = || routes::answer(source, &request, &|| unix::is_gone(stream));
        let reply = if routes::outlives_the_vm(&request) {
            answer()
        } else {
            let apart = || Reply::error(409, "the VM is ending. Only /v1 and /v1/events still answer");
            gate.pass(answer).unwrap_or_else(|| Some(apart()))
        };
        let Some(reply) = reply else { return };
        if send(stream, &reply, request.keep_alive, patience.answer).is_err() || !request.keep_alive {
            return;
        }
    }
}

/// The next request; what came behind it stays in `waiting`. `None` at the end.
fn next_request(
    mut stream: &UnixStream,
    waiting: &mut Vec<u8>,
    patience: Patience,
) -> io::Result<Option<Request>> {
    let mut until = Instant::now() + if waiting.is_empty() { patience.idle } else { patience.request };
    loop {
        match http::parse(waiting) {
            Ok(Parsed::Whole { request, used }) => {
                waiting.drain(..used);
                return Ok(Some(request));
            }
            Ok(Parsed::Partial) => {}
            Err(bad) => {
                send(stream, &Reply::error(bad.status(), bad.to_string()), false, patience.answer)?;
                return Ok(None);
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            if !waiting.is_empty() {
                let late = format!("the request did not come within {} s", patience.request.as_secs());
                send(stream, &Reply::error(408, late), false, patience.answer)?;
            }
            return Ok(None);
        }
        stream.set_read_timeout(Some(left))?;
        // The parser refuses what is longer than a head and a body, so this bounds what waits.
        let mut buffer = [0; 4096];
        debug_assert!(waiting.len() <= MAX_HEAD + MAX_BODY + buffer.len());
        let got = match stream.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(got) => got,
            Err(error) if is_time_out(&error) => continue,
            Err(error) => return Err(error),
        };
        if waiting.is_empty() {
            until = Instant::now() + patience.request;
        }
        waiting.extend_from_slice(&buffer[..got]);
    }
}

/// Sends an answer within the time given; with none left, what can be sent at once.
fn send(mut stream: &UnixStream, reply: &Reply, keep_alive: bool, patience: Duration) -> io::Result<()> {
    let bytes = http::answer(reply.status, reply.allow, &reply.body, keep_alive);
    let until = Instant::now() + patience;
    let fds: Vec<_> = reply.fds.iter().map(AsFd::as_fd).collect();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_write_timeout(Some(left))?;
        let sent =
            if rest.len() == bytes.len() { unix::send(stream, rest, &fds)? } else { stream.write(rest)? };
        rest = &rest[sent..];
        if left <= Duration::from_millis(1) && !rest.is_empty() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

fn is_time_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}
