//! The control socket of a running VM: each client gets a thread, up to a limit.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::api::Source;
use crate::connection::{self, Patience};
use crate::folder::Claim;
use crate::own_socket::Callers;

/// Connections at a time at most.
pub const MAX_CONNECTIONS: usize = 16;
/// How long clients have to ask for the last events when the VM ends.
const LAST_QUESTIONS: Duration = Duration::from_millis(200);
/// How long answers that are under way may take when the VM ends.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long answers that need the VM may take when it is to be taken apart.
const VM_ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The control socket of a running VM, served by threads of its own.
///
/// Before the VM is taken apart, [`Server::retire`] it: it then asks the source for nothing that could keep parts of the
/// VM alive, and reports how it ends. Dropping it closes the journal, waits for answers that are under way (some seconds at
/// most), and removes the socket. After that nothing of it holds the source any more, but for calls of the [`Source`] that
/// have not returned in that time, whose threads are left behind.
pub struct Server {
    claim: Option<Claim>,
    source: Arc<dyn Source>,
    gate: Arc<Gate>,
    acceptor: Option<JoinHandle<()>>,
}

/// Open as long as the VM may be asked for what it has.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    traffic: Mutex<Traffic>,
    /// Notified when a client has passed.
    passed: Condvar,
}

#[derive(Debug, Default)]
struct Traffic {
    shut: bool,
    /// Answers under way.
    passing: usize,
}

/// An answer under way.
struct Passing<'a>(&'a Gate);

impl Drop for Passing<'_> {
    /// However it went.
    fn drop(&mut self) {
        self.0.traffic().passing -= 1;
        self.0.passed.notify_all();
    }
}

impl Gate {
    /// Answers while the gate is open; `None` once it is shut.
    pub fn pass<T>(&self, answer: impl FnOnce() -> T) -> Option<T> {
        let passing = {
            let mut traffic = self.traffic();
            if traffic.shut {
                return None;
            }
            traffic.passing += 1;
            Passing(self)
        };
        let answer = answer();
        drop(passing);
        Some(answer)
    }

    /// Shuts it, and waits for those that pass, but no longer than this. Returns how many have not passed then.
    fn shut(&self, patience: Duration) -> usize {
        let mut traffic = self.traffic();
        traffic.shut = true;
        self.passed.wait_while_for(&mut traffic, |traffic| traffic.passing > 0, patience);
        traffic.passing
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock()
    }
}

/// Answers to questions about a VM that is to be taken apart take too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the VM has not answered {requests} of the requests to its control socket in {} s, and ends without answering them. Perhaps a file or device that a request names does not answer: see the host's log.",
    VM_ANSWER_LIMIT.as_secs()
)]
pub struct Unanswered {
    /// How many.
    pub requests: usize,
}

impl Server {
    /// Begins to answer on the socket.
    pub fn start(claim: Claim, source: Arc<dyn Source>) -> io::Result<Server> {
        Server::with(claim, source, Patience::USUAL)
    }

    fn with(claim: Claim, source: Arc<dyn Source>, patience: Patience) -> io::Result<Server> {
        let (callers, gate) = (claim.socket.callers(), Arc::new(Gate::default()));
        let mut reception =
            Reception { source: source.clone(), patience, gate: gate.clone(), connections: Vec::new() };
        let acceptor =
            std::thread::Builder::new().name("control".into()).spawn(move || reception.receive(&callers))?;
        Ok(Server { claim: Some(claim), source, gate, acceptor: Some(acceptor) })
    }

    /// From now on only the VM's state and its events are to be had, for it is being taken apart. Waits for answers to
    /// other questions that are under way; after that nothing of it holds parts of the VM any more.
    ///
    /// # Errors
    ///
    /// There are answers that take longer than some seconds: whatever they hold of the VM they hold still. The VM's end
    /// is not to wait for them.
    pub fn retire(&self) -> Result<(), Unanswered> {
        self.retire_within(VM_ANSWER_LIMIT)
    }

    fn retire_within(&self, patience: Duration) -> Result<(), Unanswered> {
        match self.gate.shut(patience) {
            0 => Ok(()),
            requests => Err(Unanswered { requests }),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes those who wait for events.
        self.source.journal().close();
        // Removes the socket, and wakes the acceptor.
        drop(self.claim.take());
        if let Some(acceptor) = self.acceptor.take()
            && acceptor.join().is_err()
        {
            say::error("the control socket's thread had panicked. This is a fault in skep.");
        }
    }
}

/// Takes connections in.
struct Reception {
    source: Arc<dyn Source>,
    patience: Patience,
    gate: Arc<Gate>,
    connections: Vec<Connection>,
}

struct Connection {
    stream: Arc<UnixStream>,
    thread: JoinHandle<()>,
}

impl Reception {
    fn receive(&mut self, callers: &Callers) {
        while let Some(stream) = callers.next(connection::turn_away_a_stranger) {
            self.take_in(stream);
        }
        self.see_off();
    }

    fn take_in(&mut self, stream: UnixStream) {
        self.connections.retain(|connection| !connection.thread.is_finished());
        if self.connections.len() >= MAX_CONNECTIONS {
            let why =
                format!("this VM serves {MAX_CONNECTIONS} connections already. Close one, or try again");
            return connection::turn_away(&stream, 503, &why);
        }
        let stream = Arc::new(stream);
        let (own, source, patience) = (stream.clone(), self.source.clone(), self.patience);
        let gate = self.gate.clone();
        let serve = move || {
            connection::serve(&own, &*source, &gate, patience);
            // Others may hold the stream still; the peer is to see its end now.
            drop(own.shutdown(Shutdown::Both));
        };
        match std::thread::Builder::new().name("control-peer".into()).spawn(serve) {
            Ok(thread) => self.connections.push(Connection { stream, thread }),
            Err(cause) => {
                let why = format!("cannot start a thread: {cause}. Try again");
                connection::turn_away(&stream, 503, &why);
            }
        }
    }

    /// Lets clients ask for the last events, then answers that are under way go out, and waits for the threads. Those
    /// whose answer does not come are left behind, which [`Server::retire`] has reported.
    fn see_off(&mut self) {
        let each = |connections: &[Connection], how| {
            for connection in connections {
                // It fails on a connection that has ended, which is as good.
                drop(connection.stream.shutdown(how));
            }
        };
        self.wait(LAST_QUESTIONS);
        each(&self.connections, Shutdown::Read);
        self.wait(FAREWELL);
        each(&self.connections, Shutdown::Both);
        self.wait(FAREWELL);
        for connection in self.connections.drain(..).filter(|connection| connection.thread.is_finished()) {
            // A panic was printed by its thread, and concerned its peer alone.
            drop(connection.thread.join());
        }
    }

    /// Waits until all threads have finished, or so long.
    fn wait(&self, patience: Duration) {
        let until = Instant::now() + patience;
        while Instant::now() < until
            && self.connections.iter().any(|connection| !connection.thread.is_finished())
        {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests;
