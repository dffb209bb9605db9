//! A TPM 2.0 on the memory bus, behind a command response buffer.
//!
//! A command may take seconds, so a thread of its own carries it to what executes it; no vCPU waits, drivers poll the registers.

mod crb;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memory::{Gpa, GpaRange};
use parking_lot::{Condvar, Mutex, MutexGuard};

pub use crb::{BUFFER, Crb, HEADER};

/// So long a command may go on after the machine was reset or switched off.
const FINISH_LIMIT: Duration = Duration::from_secs(3);
/// So long what executes commands may take to be switched on again, or to let go: longer than swtpm may (30 s), whose
/// supervisor then says why.
const OBEY_LIMIT: Duration = Duration::from_secs(35);

/// What executes commands. Whoever makes one is told by it what goes wrong; its TPM only knows that something did.
pub trait TpmBackEnd: Send + Sync {
    /// Switches it on, or off and on again.
    fn power_on(&self) -> Result<(), TpmFailed>;

    /// Executes a command and returns its response. This may take long.
    fn execute(&self, command: &[u8]) -> Result<Vec<u8>, TpmFailed>;

    /// Ends an execution under way by force, if it can. Until it is switched on, it executes nothing. It waits for nobody who
    /// waits for the TPM.
    fn abort(&self);
}

/// A TPM executes nothing until it is switched on again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TpmFailed;

/// What its thread does, or is to do next.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Rest,
    Execute(Vec<u8>),
    PowerOn,
    Work,
    /// Its owner has given up waiting: what it still does counts for nothing.
    Abandoned,
    Quit,
    Gone,
}

struct Desk {
    crb: Crb,
    turn: Turn,
}

struct Shared {
    range: GpaRange,
    desk: Mutex<Desk>,
    changed: Condvar,
    back_end: Arc<dyn TpmBackEnd>,
}

/// A TPM. When it is dropped, a command under way is ended.
pub struct Tpm {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Tpm {
    /// How much of the memory bus is a TPM's: five localities, of which this one has the first.
    pub const LEN: u64 = 0x5000;

    /// Puts one to this guest address, with a back end that is switched on.
    pub fn new(at: Gpa, back_end: Arc<dyn TpmBackEnd>) -> io::Result<Tpm> {
        let range = GpaRange::new(at, Tpm::LEN).expect("a TPM lies below 4 GiB");
        let desk = Mutex::new(Desk { crb: Crb::new(at.0), turn: Turn::Rest });
        let shared = Arc::new(Shared { range, desk, changed: Condvar::new(), back_end });
        let worker = shared.clone();
        let thread = std::thread::Builder::new().name("tpm".into()).spawn(move || worker.work())?;
        Ok(Tpm { shared, thread: Some(thread) })
    }

    /// Where it lies.
    pub fn range(&self) -> GpaRange {
        self.shared.range
    }

    /// Reads; what is not there stays all ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.shared.desk().crb.read(offset, data);
    }

    /// Writes.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut desk = self.shared.desk();
        if let Some(command) = desk.crb.write(offset, data) {
            desk.turn = Turn::Execute(command);
            self.shared.changed.notify_all();
        }
    }

    /// Switches it off and on. Returns whether it works then.
    pub fn reset(&self) -> Result<(), TpmFailed> {
        let shared = &self.shared;
        shared.turn_to(Turn::PowerOn);
        let mut desk = shared.settled(shared.desk(), OBEY_LIMIT, Turn::at_rest);
        if desk.turn == Turn::Rest && desk.crb == Crb::new(shared.range.start().0) {
            return Ok(());
        }
        shared.give_up(&mut desk);
        Err(TpmFailed)
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.turn_to(Turn::Quit);
        let gone = shared.settled(shared.desk(), OBEY_LIMIT, |turn| *turn == Turn::Gone).turn == Turn::Gone;
        // A thread that the kernel does not let go of is left behind.
        if let Some(thread) = self.thread.take().filter(|_| gone) {
            drop(thread.join());
        }
    }
}

impl Turn {
    fn at_rest(&self) -> bool {
        *self == Turn::Rest
    }
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock()
    }

    /// Has the thread do this next. A command under way has some time to end, and then is ended by force.
    fn turn_to(&self, next: Turn) {
        let mut desk = self.settled(self.desk(), FINISH_LIMIT, Turn::at_rest);
        if let Turn::Work | Turn::Abandoned = desk.turn {
            // With the desk, so that the thread does not begin meanwhile what comes next, which this would end.
            self.back_end.abort();
        }
        desk.turn = next;
        self.changed.notify_all();
    }

    /// Waits until the thread's turn is so, but no longer than this.
    fn settled<'a>(
        &self,
        mut desk: MutexGuard<'a, Desk>,
        patience: Duration,
        so: fn(&Turn) -> bool,
    ) -> MutexGuard<'a, Desk> {
        let deadline = Instant::now() + patience;
        while !so(&desk.turn) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.changed.wait_for(&mut desk, left);
        }
        desk
    }

    /// It is broken from now on. What is still under way must not bring it to life under a guest that runs: nothing was measured into it.
    fn give_up(&self, desk: &mut Desk) {
        if desk.turn != Turn::Rest {
            desk.turn = Turn::Abandoned;
        }
        desk.crb = Crb::broken(self.range.start().0);
    }

    fn work(&self) {
        let mut desk = self.desk();
        loop {
            match std::mem::replace(&mut desk.turn, Turn::Work) {
                Turn::Execute(command) => {
                    drop(desk);
                    let response = self.back_end.execute(&command);
                    desk = self.desk();
                    self.rest(&mut desk, |crb| crb.complete(response.as_deref().ok()));
                }
                Turn::PowerOn => {
                    drop(desk);
                    let on = self.back_end.power_on();
                    desk = self.desk();
                    let at = self.range.start().0;
                    self.rest(&mut desk, |crb| *crb = on.map_or(Crb::broken(at), |()| Crb::new(at)));
                }
                Turn::Abandoned => {
                    desk.turn = Turn::Rest;
                    self.changed.notify_all();
                }
                Turn::Quit => {
                    desk.turn = Turn::Gone;
                    self.changed.notify_all();
                    return;
                }
                other => {
                    desk.turn = other;
                    self.changed.wait(&mut desk);
                }
            }
        }
    }

    /// The work is done. If something else is to be done by now, its result is nobody's.
    fn rest(&self, desk: &mut Desk, done: impl FnOnce(&mut Crb)) {
        if desk.turn == Turn::Work {
            done(&mut desk.crb);
            desk.turn = Turn::Rest;
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests;
