//! The control socket of a running VM: whoever may connect gets a thread, up to a bound.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::connection::{self, Patience};
use crate::folder::Claim;
use crate::source::Source;

/// Connections at a time at most.
pub const MAX_CONNECTIONS: usize = 16;
/// How long to wait with the next connection after one could not be taken.
const RESPITE: Duration = Duration::from_millis(100);
/// How long clients have to ask for the last events when the VM ends.
const LAST_QUESTIONS: Duration = Duration::from_millis(200);
/// How long answers that are under way may take when the VM ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// The control socket of a running VM, served by threads of its own.
///
/// Before the VM is taken apart, [`Server::retire`] it: it then asks the source for nothing that could keep parts of the
/// VM alive, and tells how it ends. Dropping it closes the journal, waits for answers that are under way (a second at most, beyond what the
/// [`Source`] takes), and removes the socket. After that nothing of it holds the source any more.
pub struct Server {
    claim: Option<Claim>,
    source: Arc<dyn Source>,
    ending: Arc<AtomicBool>,
    gate: Arc<Gate>,
    acceptor: Option<JoinHandle<()>>,
}

/// Open as long as the VM may be asked for what it has.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    shut: RwLock<bool>,
}

impl Gate {
    /// Answers while the gate is open, and stays open for so long; `None` once it is shut.
    pub fn pass<T>(&self, answer: impl FnOnce() -> T) -> Option<T> {
        // Whoever panicked behind it has changed nothing of it.
        let shut = self.shut.read().unwrap_or_else(PoisonError::into_inner);
        (!*shut).then(answer)
    }

    /// Shuts it, once all that pass have passed.
    fn shut(&self) {
        *self.shut.write().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

impl Server {
    /// Begins to answer on the socket.
    pub fn start(claim: Claim, source: Arc<dyn Source>) -> io::Result<Server> {
        Server::with(claim, source, Patience::USUAL)
    }

    fn with(claim: Claim, source: Arc<dyn Source>, patience: Patience) -> io::Result<Server> {
        let listener = claim.listener.try_clone()?;
        let (ending, gate) = (Arc::new(AtomicBool::new(false)), Arc::new(Gate::default()));
        let mut reception = Reception {
            source: source.clone(),
            patience,
            ending: ending.clone(),
            gate: gate.clone(),
            connections: Vec::new(),
        };
        let acceptor =
            std::thread::Builder::new().name("control".into()).spawn(move || reception.receive(&listener))?;
        Ok(Server { claim: Some(claim), source, ending, gate, acceptor: Some(acceptor) })
    }

    /// From now on only the VM's state and its events are to be had, for it is being taken apart. Waits for answers to
    /// other questions that are under way; after that nothing of it holds parts of the VM any more.
    pub fn retire(&self) {
        self.gate.shut();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        // Wakes those who wait for events.
        self.source.journal().close();
        // Removes the socket, and wakes the acceptor.
        drop(self.claim.take());
        if let Some(acceptor) = self.acceptor.take()
            && acceptor.join().is_err()
        {
            eprintln!("skep: the control socket's thread had panicked. This is a fault in skep.");
        }
    }
}

/// Takes connections in.
struct Reception {
    source: Arc<dyn Source>,
    patience: Patience,
    ending: Arc<AtomicBool>,
    gate: Arc<Gate>,
    connections: Vec<Connection>,
}

struct Connection {
    stream: Arc<UnixStream>,
    thread: JoinHandle<()>,
}

impl Reception {
    fn receive(&mut self, listener: &UnixListener) {
        while !self.ending.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((stream, _)) => self.take_in(stream),
                // Out of file descriptors or memory, as a rule: others will give some back.
                Err(_) if self.ending.load(Ordering::SeqCst) => {}
                Err(_) => std::thread::sleep(RESPITE),
            }
        }
        self.see_off();
    }

    fn take_in(&mut self, stream: UnixStream) {
        self.connections.retain(|connection| !connection.thread.is_finished());
        if !connection::is_allowed(&stream) {
            return;
        }
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

    /// Lets clients ask for the last events, then answers that are under way go out, and waits for the threads.
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
        for connection in self.connections.drain(..) {
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
