//! One connection, and what the server owes on it.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::end::End;
use super::socket::{MayGoOn, Socket};
use super::under_way::UnderWay;
use super::wire::{self, Command};
use crate::contract::DiskError;
use parking_lot::{Condvar, Mutex, MutexGuard};

/// A server owes no more answers than this at once; what would be more waits.
const MOST_OWED: usize = 4096;
/// Who waits for room looks so often whether there is time left.
const TICK: Duration = Duration::from_millis(250);

/// What the server was asked for under one cookie: some bytes of a request.
pub(super) struct Part {
    pub(super) of: Arc<UnderWay>,
    /// First byte, in the request's memory.
    pub(super) from: u64,
    pub(super) len: u64,
}

/// How a part is put to the server.
#[derive(Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) command: Command,
    pub(super) flags: u16,
    /// First byte of the disk.
    pub(super) offset: u64,
    /// Memory that is sent along.
    pub(super) payload: &'a [libc::iovec],
}

/// A connection. What a server sends on it can only reach requests that were sent on it.
pub(super) struct Connection {
    pub(super) socket: Arc<Socket>,
    ledger: Mutex<Ledger>,
    /// There is room for another part again, or the connection is over.
    room: Condvar,
    /// One sends at a time.
    sending: Mutex<()>,
}

/// The parts that the server has and has not answered. An answer takes its part out before anything of it is moved, so
/// that another answer with the same cookie finds nothing.
#[derive(Default)]
struct Ledger {
    owed: HashMap<u64, Part>,
    /// Parts so far.
    count: u64,
    /// Makes cookies that a server cannot know before it has them.
    secret: RandomState,
    /// Why the connection is over.
    over: Option<Arc<End>>,
}

impl Ledger {
    /// Writes a part down; its cookie. A keyed hash of a running number: its next values cannot be told from those before
    /// (SipHash is made for that), and none that is in use comes again.
    fn write_down(&mut self, part: Part) -> u64 {
        loop {
            self.count += 1;
            let cookie = self.secret.hash_one(self.count);
            if let Entry::Vacant(free) = self.owed.entry(cookie) {
                free.insert(part);
                return cookie;
            }
        }
    }
}

impl Connection {
    pub(super) fn new(socket: Arc<Socket>) -> Connection {
        Connection { socket, ledger: Mutex::default(), room: Condvar::new(), sending: Mutex::default() }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    /// The right to send, for a whole request.
    pub(super) fn sender(&self) -> Sender<'_> {
        Sender { connection: self, _alone: self.sending.lock() }
    }

    /// The part that is answered under this cookie. From here on it is the receiver's alone.
    pub(super) fn answered(&self, cookie: u64) -> Option<Part> {
        let mut ledger = self.ledger();
        let full = ledger.owed.len() >= MOST_OWED;
        let part = ledger.owed.remove(&cookie);
        drop(ledger);
        if full {
            self.room.notify_one();
        }
        part
    }

    /// Fails once the server has not answered something in its time.
    pub(super) fn in_time(&self) -> io::Result<()> {
        self.ledger().owed.values().try_for_each(|part| part.of.in_time())
    }

    /// Ends the connection for both directions; the first reason is the one that counts, and is returned.
    pub(super) fn hang_up(&self, end: End) -> Arc<End> {
        let first = self.ledger().over.get_or_insert_with(|| Arc::new(end)).clone();
        self.socket.hang_up();
        self.room.notify_all();
        first
    }

    /// Why it ended, if it has.
    pub(super) fn over(&self) -> Option<Arc<End>> {
        self.ledger().over.clone()
    }

    /// A part whose answer broke off, on a connection that nothing more is received from: it fails with the others.
    pub(super) fn leave_owed(&self, cookie: u64, part: Part) {
        self.ledger().owed.insert(cookie, part);
    }

    /// What the server owes on a connection that is over fails. Only for the receiver, which receives no more.
    pub(super) fn fail_all(&self, error: DiskError) {
        let owed = std::mem::take(&mut self.ledger().owed);
        owed.into_values().for_each(|part| part.of.fail(error));
    }
}

/// The right to send on a connection.
pub(super) struct Sender<'a> {
    connection: &'a Connection,
    _alone: MutexGuard<'a, ()>,
}

impl Sender<'_> {
    /// Puts a part to the server. When that fails, the connection ends with it.
    pub(super) fn ask(&self, part: Part, question: Question<'_>) -> Result<(), DiskError> {
        let (of, len) = (part.of.clone(), part.len);
        let cookie = self.owe(part)?;
        let Question { command, flags, offset, payload } = question;
        // A part is no longer than the server's longest transfer, which has 32 bits.
        let mut header = wire::request(command, flags, cookie, offset, len as u32);
        let sent = self.connection.socket.send(&mut header, payload, &|| of.in_time());
        sent.map_err(|cause| self.connection.hang_up(cause.into()).error())
    }

    /// Says goodbye, if the server takes it.
    pub(super) fn disconnect(&self, may_go_on: MayGoOn<'_>) {
        let mut goodbye = wire::request(Command::Disconnect, 0, 0, 0, 0);
        // A server that cannot be told will notice.
        self.connection.socket.send(&mut goodbye, &[], may_go_on).unwrap_or_default();
    }

    /// Writes a part down as soon as the server does not owe too much.
    fn owe(&self, part: Part) -> Result<u64, DiskError> {
        let mut ledger = self.connection.ledger();
        loop {
            if let Some(over) = &ledger.over {
                return Err(over.error());
            }
            if ledger.owed.len() < MOST_OWED {
                return Ok(ledger.write_down(part));
            }
            if let Err(late) = part.of.in_time() {
                drop(ledger);
                return Err(self.connection.hang_up(late.into()).error());
            }
            self.connection.room.wait_for(&mut ledger, TICK);
        }
    }
}
