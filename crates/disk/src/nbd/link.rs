//! A connection to a server that is made again when it ends, shared by any number of queues.
//!
//! Queues send their requests themselves, one after the other. A thread takes the answers, in whatever order, and
//! fills guest memory straight from the socket. When the connection ends, or the server takes too long, everything
//! under way fails, and the thread connects again; until then new requests fail at once. A new connection knows nothing
//! of what was asked on those before.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::connection::{Connection, Part, Question};
use super::end::End;
use super::error::NbdError;
use super::socket::{Socket, in_time};
use super::under_way::{Promises, UnderWay};
use super::url::NbdUrl;
use super::wire::{self, Command, Export, FUA, NO_HOLE, flag};
use crate::contract::{DiskError, Durability, Operation, Sectors, Unmap, cut};
use crate::threads::{Done, Job, Moved};
use parking_lot::{Condvar, Mutex, MutexGuard};

/// So often the thread looks whether the server is late, whatever arrives meanwhile.
const TICK: Duration = Duration::from_millis(250);
/// Time from one attempt to connect to the next.
const AGAIN: Duration = Duration::from_secs(1);
/// A server that does not take a goodbye in this time gets none.
const GOODBYE: Duration = Duration::from_millis(500);

/// What there is of a connection.
enum Phase {
    Connected(Arc<Connection>),
    /// The next attempt comes after [`AGAIN`].
    Waiting,
    /// Until the server accepts a connection, which only time ends.
    Connecting,
    Negotiating(Arc<Socket>),
}

struct State {
    phase: Phase,
    /// Why there was no connection last.
    why: Option<Arc<str>>,
    closing: bool,
}

struct Shared {
    url: NbdUrl,
    export: Export,
    promises: Arc<Promises>,
    state: Mutex<State>,
    news: Condvar,
}

/// The connection and its thread, which ends with it.
pub(super) struct Link {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// Connects.
    pub(super) fn new(url: &NbdUrl, promises: Arc<Promises>) -> Result<Link, NbdError> {
        let socket = Arc::new(Socket::connect(url)?);
        let export = wire::negotiate(&socket, url)?;
        let phase = Phase::Connected(Arc::new(Connection::new(socket)));
        let state = Mutex::new(State { phase, why: None, closing: false });
        let shared = Arc::new(Shared { url: url.clone(), export, promises, state, news: Condvar::new() });
        let ours = shared.clone();
        let thread = std::thread::Builder::new().name("nbd".to_owned()).spawn(move || ours.serve());
        let thread = thread.map_err(|cause| NbdError::Connection { url: url.clone(), cause })?;
        Ok(Link { shared, thread: Some(thread) })
    }

    pub(super) fn export(&self) -> Export {
        self.shared.export
    }

    /// Sends a request; its answer goes to the mailbox. It returns when the socket has taken the request.
    pub(super) fn add(&self, job: Job) {
        self.shared.add(job);
    }

    /// Why the last connection ended, or a new one could not be made, in the protocol's words.
    pub(super) fn last_end(&self) -> Option<Arc<str>> {
        let state = self.shared.lock();
        // One that is over may not have been left yet.
        let over = state.connection().and_then(|connection| connection.over());
        over.map(|end| end.to_string().into()).or_else(|| state.why.clone())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        match &state.phase {
            Phase::Connected(connection) => {
                let connection = connection.clone();
                drop(state);
                let deadline = Instant::now() + GOODBYE;
                connection.sender().disconnect(&|| in_time(deadline));
                connection.hang_up(End::Lost(io::ErrorKind::NotConnected.into()));
            }
            Phase::Negotiating(socket) => {
                socket.hang_up();
                drop(state);
            }
            Phase::Waiting => drop(state),
            // The thread has no request and ends with this attempt. Nobody waits for it.
            Phase::Connecting => return,
        }
        self.shared.news.notify_all();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so on its own.
            thread.join().unwrap_or_default();
        }
    }
}

impl State {
    fn connection(&self) -> Option<&Arc<Connection>> {
        match &self.phase {
            Phase::Connected(connection) => Some(connection),
            Phase::Waiting | Phase::Connecting | Phase::Negotiating(_) => None,
        }
    }
}

/// How a request is put to the server: command, flags, first byte, length.
fn question(operation: Operation, bytes: u64) -> (Command, u16, u64, u64) {
    let at = |at: Sectors| at.0 * Sectors::SIZE;
    match operation {
        Operation::Read { at: start } => (Command::Read, 0, at(start), bytes),
        Operation::Write { at: start, durability } => {
            let flags = if durability == Durability::Stable { FUA } else { 0 };
            (Command::Write, flags, at(start), bytes)
        }
        Operation::Flush => (Command::Flush, 0, 0, 0),
        Operation::Discard(range) => (Command::Trim, 0, at(range.start), at(range.count)),
        Operation::WriteZeroes(range, unmap) => {
            let flags = if unmap == Unmap::Forbidden { NO_HOLE } else { 0 };
            (Command::WriteZeroes, flags, at(range.start), at(range.count))
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn add(&self, Job { request, mailbox }: Job) {
        let (command, flags, start, len) = question(request.operation, request.buffers.bytes());
        let not_sent = |request, result| mailbox.put(Done { request, result, tally: Moved::default() });
        // Before the promises are looked at: a connection that is made after that look knows nothing of the writes.
        let connection = self.lock().connection().cloned();
        if command == Command::Flush {
            // Once, as a file's fsync does.
            if self.promises.take_broken() {
                return not_sent(request, Err(DiskError::Gone));
            }
            if self.export.flags & flag::FLUSH == 0 {
                return not_sent(request, Ok(()));
            }
        }
        let Some(connection) = connection else {
            return not_sent(request, Err(DiskError::Gone));
        };
        let longest = u64::from(self.export.longest);
        let parts = len.div_ceil(longest).max(1);
        let deadline = Instant::now() + self.url.timeout;
        let of = UnderWay::new(request, mailbox, self.promises.clone(), parts, deadline);
        let sender = connection.sender();
        let mut payload = Vec::new();
        for part in 0..parts {
            let from = part * longest;
            let step = (len - from).min(longest);
            if command == Command::Write {
                cut(of.buffers().iovecs(), from, from + step, &mut payload);
            }
            let part = Part { of: of.clone(), from, len: step };
            let question = Question { command, flags, offset: start + from, payload: &payload };
            if let Err(why) = sender.ask(part, question) {
                return of.fail(why);
            }
        }
    }

    fn serve(&self) {
        loop {
            let connection = self.lock().connection().cloned();
            if let Some(connection) = connection {
                let end = self.take_answers(&connection);
                let end = connection.hang_up(end);
                self.promises.note_the_end();
                {
                    let mut state = self.lock();
                    state.phase = Phase::Waiting;
                    state.why = Some(end.to_string().into());
                }
                connection.fail_all(end.error());
            }
            if !self.wait_for_next_attempt() {
                return;
            }
            let (phase, why) = match self.connect_again() {
                Ok(connection) => (Phase::Connected(connection), None),
                Err(why) => (Phase::Waiting, Some(why.into())),
            };
            let mut state = self.lock();
            state.phase = phase;
            state.why = why.or_else(|| state.why.take());
            if state.closing {
                return;
            }
        }
    }

    /// Takes answers until the connection ends; why it did.
    fn take_answers(&self, connection: &Connection) -> End {
        let looked = Cell::new(Instant::now());
        let in_time = || {
            let now = Instant::now();
            if now - looked.get() < TICK {
                return Ok(());
            }
            looked.set(now);
            connection.in_time()
        };
        loop {
            if let Err(end) = in_time().map_err(End::from).and_then(|()| take_answer(connection, &in_time)) {
                return end;
            }
        }
    }

    /// False when there shall be no further attempt.
    fn wait_for_next_attempt(&self) -> bool {
        let mut state = self.lock();
        self.news.wait_while_for(&mut state, |state| !state.closing, AGAIN);
        state.phase = Phase::Connecting;
        !state.closing
    }

    /// A new connection to the same disk; another one that has its place is none.
    fn connect_again(&self) -> Result<Arc<Connection>, String> {
        let socket = Arc::new(Socket::connect(&self.url).map_err(|error| error.to_string())?);
        {
            let mut state = self.lock();
            if state.closing {
                return Err("the disk is closed".to_owned());
            }
            state.phase = Phase::Negotiating(socket.clone());
        }
        match wire::negotiate(&socket, &self.url).map_err(|error| error.to_string())? {
            same if same == self.export => Ok(Arc::new(Connection::new(socket))),
            other => {
                Err(format!("the server has another disk there now: {other}, where it was {}", self.export))
            }
        }
    }
}

/// Takes one answer, and what it brings into the memory of the request that it is for.
fn take_answer(connection: &Connection, in_time: &dyn Fn() -> io::Result<()>) -> Result<(), End> {
    let mut header = [0; 16];
    connection.socket.receive_bytes(&mut header, in_time)?;
    let (answer, cookie) = wire::reply(&header).map_err(End::Broken)?;
    let part = connection.answered(cookie);
    let Part { of, from, len } = part.ok_or_else(|| {
        End::Broken(format!(
            "a reply with the cookie {cookie:#018x}, which no request has that waits for an answer"
        ))
    })?;
    if answer.is_ok() && matches!(of.operation(), Operation::Read { .. }) {
        let mut pieces = Vec::new();
        cut(of.buffers().iovecs(), from, from + len, &mut pieces);
        let arrived = connection.socket.receive(&mut pieces, &|| of.in_time().and_then(|()| in_time()));
        if let Err(cause) = arrived {
            // It ends with the others, when why the connection ended is known.
            connection.leave_owed(cookie, Part { of, from, len });
            return Err(End::from(cause));
        }
    }
    of.answered(len, answer);
    Ok(())
}
