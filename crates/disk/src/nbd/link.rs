//! One connection to a server, shared by any number of queues.
//!
//! Queues send their requests themselves, one after the other. A thread takes the answers, in whatever order, and
//! fills guest memory straight from the socket. When the connection ends, or the server takes too long, everything
//! under way fails, and the thread connects again; until then new requests fail at once.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::NbdError;
use super::socket::Socket;
use super::url::NbdUrl;
use super::wire::{self, Command, Export, FUA, NO_HOLE, flag};
use crate::counters::Bounced;
use crate::geometry::Sectors;
use crate::kernel::cut;
use crate::request::{DiskError, Durability, Operation, Request, Unmap};
use crate::threads::{Done, Job, Mailbox, Moved};

/// So often the thread looks at the clock while it waits for answers.
const TICK: Duration = Duration::from_millis(250);
/// Time from one attempt to connect to the next.
const AGAIN: Duration = Duration::from_secs(1);
/// Parts of one request have numbers below this; the rest of a cookie is the request's.
const PARTS: u64 = 1 << 20;

/// What completed writes and flushes say about what a server may lose, over all connections of a disk.
#[derive(Default)]
pub(super) struct Promises {
    /// Writes that completed.
    written: AtomicU64,
    /// As many of them were brought to stable storage.
    flushed: AtomicU64,
    /// A connection ended while some were not.
    broken: AtomicBool,
}

impl Promises {
    fn note_the_end(&self) {
        if self.written.load(Ordering::Acquire) > self.flushed.load(Ordering::Acquire) {
            self.broken.store(true, Ordering::Release);
        }
    }
}

/// A request that the server has.
struct Pending {
    request: Request,
    mailbox: Arc<Mailbox>,
    /// Parts that are not answered yet.
    parts: u32,
    result: Result<(), DiskError>,
    tally: Moved,
    since: Instant,
    /// Writes that had completed when a flush was sent.
    covers: u64,
    /// Somebody still sends it, and reads its memory.
    being_sent: bool,
}

#[derive(Default)]
struct State {
    socket: Option<Arc<Socket>>,
    pending: HashMap<u64, Pending>,
    next: u64,
    closing: bool,
}

struct Shared {
    url: NbdUrl,
    export: Export,
    promises: Arc<Promises>,
    state: Mutex<State>,
    /// One sends at a time.
    sending: Mutex<()>,
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
        let socket = Socket::connect(url)?;
        let export = wire::negotiate(socket.file(), url)?;
        let state = Mutex::new(State { socket: Some(Arc::new(socket)), ..State::default() });
        let shared = Arc::new(Shared {
            url: url.clone(),
            export,
            promises,
            state,
            sending: Mutex::default(),
            news: Condvar::new(),
        });
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
}

impl Drop for Link {
    fn drop(&mut self) {
        let socket = {
            let mut state = self.shared.lock();
            state.closing = true;
            state.socket.clone()
        };
        if let Some(socket) = socket {
            let _alone = self.shared.sending.lock().unwrap_or_else(PoisonError::into_inner);
            let mut goodbye = wire::request(Command::Disconnect, 0, 0, 0, 0);
            // A server that cannot be told will notice.
            socket.send(&mut goodbye, &[]).unwrap_or_default();
            socket.hang_up();
        }
        self.shared.news.notify_all();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so on its own.
            thread.join().unwrap_or_default();
        }
    }
}

/// How a request is said to the server: command, flags, first byte, length.
fn said(operation: Operation, bytes: u64) -> (Command, u16, u64, u64) {
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of each part of a request but the last.
    fn part(&self) -> u64 {
        u64::from(self.export.longest)
    }

    fn add(&self, Job { request, mailbox }: Job) {
        let (command, flags, start, len) = said(request.operation, request.buffers.bytes());
        let has = |flag| self.export.flags & flag != 0;
        if command == Command::Flush {
            // Once, as a file's fsync does: whoever relied on these writes learns of it.
            let lost = self.promises.broken.swap(false, Ordering::AcqRel);
            if lost || !has(flag::FLUSH) {
                let result = if lost { Err(DiskError::Gone) } else { Ok(()) };
                return mailbox.put(Done { request, result, tally: Moved::default() });
            }
        }
        let parts = len.div_ceil(self.part()).max(1);
        let mut pieces = Vec::new();
        let all = request.buffers.iovecs().to_vec();
        let (socket, id) = {
            let mut state = self.lock();
            let Some(socket) = state.socket.clone() else {
                drop(state);
                return mailbox.put(Done { request, result: Err(DiskError::Gone), tally: Moved::default() });
            };
            state.next += 1;
            let id = state.next;
            let pending = Pending {
                request,
                mailbox,
                parts: parts as u32,
                result: Ok(()),
                tally: Moved::default(),
                since: Instant::now(),
                covers: self.promises.written.load(Ordering::Acquire),
                being_sent: true,
            };
            state.pending.insert(id, pending);
            (socket, id)
        };
        // From here on the request is its answer's: should sending fail, the connection's end answers it. Its memory
        // stays as long as it is marked, or, once the connection has ended, as long as somebody sends.
        let _alone = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        for part in 0..parts {
            if !self.lock().pending.contains_key(&id) {
                return;
            }
            let from = part * self.part();
            let step = (len - from).min(self.part());
            if command == Command::Write {
                cut(&all, from, from + step, &mut pieces);
            }
            let mut header = wire::request(command, flags, id * PARTS + part, start + from, step as u32);
            if socket.send(&mut header, &pieces).is_err() {
                socket.hang_up();
                return;
            }
        }
        let mut state = self.lock();
        if let Some(pending) = state.pending.get_mut(&id) {
            pending.being_sent = false;
            self.finish(state, id);
        }
    }

    /// Answers a request if that is what remains to do for it.
    fn finish(&self, mut state: MutexGuard<'_, State>, id: u64) {
        let over = state.pending.get(&id).is_some_and(|pending| pending.parts == 0 && !pending.being_sent);
        let over = if over { state.pending.remove(&id) } else { None };
        drop(state);
        if let Some(Pending { request, mailbox, result, tally, covers, .. }) = over {
            self.note(request.operation, result, covers);
            mailbox.put(Done { request, result, tally });
        }
    }

    fn serve(&self) {
        loop {
            let socket = self.lock().socket.clone();
            if let Some(socket) = socket {
                let why = self.take_answers(&socket);
                socket.hang_up();
                self.promises.note_the_end();
                self.fail_everything(why);
            }
            if self.lock().closing || !self.wait_for_next_attempt() {
                return;
            }
            if let Some(socket) = self.connect_again() {
                self.lock().socket = Some(Arc::new(socket));
            }
        }
    }

    /// Takes answers until the connection ends, or takes too long; which of these.
    fn take_answers(&self, socket: &Socket) -> DiskError {
        let mut looked = Instant::now();
        loop {
            match socket.wait(TICK) {
                Ok(true) => match self.take_answer(socket) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return DiskError::TimedOut,
                    Err(_) => return DiskError::Gone,
                },
                Ok(false) => {}
                Err(_) => return DiskError::Gone,
            }
            if looked.elapsed() < TICK {
                continue;
            }
            looked = Instant::now();
            if self.lock().pending.values().any(|pending| pending.since.elapsed() > self.url.timeout) {
                return DiskError::TimedOut;
            }
        }
    }

    fn take_answer(&self, socket: &Socket) -> io::Result<()> {
        let mut header = [0; 16];
        let piece = libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() };
        socket.receive(&mut [piece])?;
        let odd = || io::Error::from(io::ErrorKind::InvalidData);
        let (error, cookie) = wire::reply(&header).ok_or_else(odd)?;
        let (id, part) = (cookie / PARTS, cookie % PARTS);
        let (operation, mut pieces, step) = {
            let state = self.lock();
            let pending = state.pending.get(&id).ok_or_else(odd)?;
            let operation = pending.request.operation;
            let (_, _, _, len) = said(operation, pending.request.buffers.bytes());
            let from = part * self.part();
            let step = len.checked_sub(from).ok_or_else(odd)?.min(self.part());
            let mut pieces = Vec::new();
            if error == 0 && matches!(operation, Operation::Read { .. }) {
                cut(pending.request.buffers.iovecs(), from, from + step, &mut pieces);
            }
            (operation, pieces, step)
        };
        // Nobody takes the request out before its last answer, so the memory stays.
        socket.receive(&mut pieces)?;
        let mut state = self.lock();
        let pending = state.pending.get_mut(&id).ok_or_else(odd)?;
        match (error, operation) {
            (0, Operation::Read { .. } | Operation::Write { .. }) => {
                pending.tally.moved(step, Some(Bounced::Transport));
            }
            (0, _) => {}
            (errno, _) => pending.result = Err(DiskError::from_errno(errno as i32)),
        }
        pending.parts = pending.parts.checked_sub(1).ok_or_else(odd)?;
        self.finish(state, id);
        Ok(())
    }

    /// What was written, and what of it will last.
    fn note(&self, operation: Operation, result: Result<(), DiskError>, covers: u64) {
        match operation {
            Operation::Write { durability: Durability::Stable, .. } => {}
            _ if result.is_err() => {}
            Operation::Flush => {
                self.promises.flushed.fetch_max(covers, Ordering::AcqRel);
            }
            changing if changing.changes_the_disk() => {
                self.promises.written.fetch_add(1, Ordering::AcqRel);
            }
            _ => {}
        }
    }

    fn fail_everything(&self, why: DiskError) {
        // Who sends now finds the connection ended and stops; then no memory is in use any more.
        self.lock().socket = None;
        let _alone = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = std::mem::take(&mut self.lock().pending);
        for Pending { request, mailbox, tally, .. } in pending.into_values() {
            mailbox.put(Done { request, result: Err(why), tally });
        }
    }

    /// False when there shall be no further attempt.
    fn wait_for_next_attempt(&self) -> bool {
        let waited = self.news.wait_timeout_while(self.lock(), AGAIN, |state| !state.closing);
        !waited.unwrap_or_else(PoisonError::into_inner).0.closing
    }

    /// A new connection to the same disk; another one that has its place is none.
    fn connect_again(&self) -> Option<Socket> {
        let socket = Socket::connect(&self.url).ok()?;
        let export = wire::negotiate(socket.file(), &self.url).ok()?;
        (export == self.export).then_some(socket)
    }
}
