//! Bus mastering, as the threads of a function obey it.
//!
//! A function has one [`Gate`], and each of its threads that touches guest memory has a [`Pass`]. When the driver clears
//! the bit, [`Gate::close`] wakes all threads and waits: each ends what it has under way, tells the driver of it and
//! steps out. Only then is the write to configuration space answered, and from then on the function writes nothing to
//! guest memory. When the bit is set again, threads step in and go on where they were.
//!
//! A thread that works pays one atomic load for each batch of requests ([`Pass::is_valid`]).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use vmm_sys_util::eventfd::EventFd;

/// Threads work.
const OPEN: u8 = 0;
/// Threads end what they have under way, and begin nothing.
const CLOSING: u8 = 1;
/// Nobody touches guest memory.
const SHUT: u8 = 2;

/// How much longer than [`Gate::CLOSE_LIMIT`] a vCPU waits: threads keep that time themselves, unless they hang in the host's
/// kernel.
const MARGIN: Duration = Duration::from_secs(1);

/// Whether a function may touch guest memory (PCI Local Bus Specification 3.0, 6.2.2: bit 2 of the command register).
#[derive(Clone, Debug)]
pub struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Changes only under the lock of `threads`.
    phase: AtomicU8,
    threads: Mutex<Threads>,
    /// A thread has stepped out, or has ended.
    stepped_out: Condvar,
}

#[derive(Debug, Default)]
struct Threads {
    next: u64,
    all: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    number: u64,
    wake: EventFd,
    inside: bool,
}

impl Threads {
    fn inside(&self) -> usize {
        self.all.iter().filter(|thread| thread.inside).count()
    }

    fn wake(&self) {
        // The only failure is a counter at its limit, which wakes the thread as well.
        self.all.iter().for_each(|thread| drop(thread.wake.write(1)));
    }

    fn find(&mut self, number: u64) -> &mut Thread {
        let found = self.all.iter_mut().find(|thread| thread.number == number);
        found.expect("a thread is listed as long as it has its pass")
    }
}

impl Gate {
    /// How long a thread waits for a disk to end what is under way when the gate closes. A vCPU waits for it, so it is
    /// shorter than the time after which guests report a vCPU that hangs (20 s in Linux).
    pub const CLOSE_LIMIT: Duration = Duration::from_secs(10);

    /// A gate that is shut, as after power-on.
    pub fn shut() -> Gate {
        let (phase, threads, stepped_out) = (AtomicU8::new(SHUT), Mutex::default(), Condvar::new());
        Gate(Arc::new(Shared { phase, threads, stepped_out }))
    }

    /// The driver sets the bit: threads wake and go on.
    pub fn open(&self) {
        let threads = self.lock();
        if self.phase() != OPEN {
            self.set(OPEN);
            threads.wake();
        }
    }

    /// The driver clears the bit: waits until all threads have stepped out. Returns how many have not, because they hang;
    /// what such a thread does later still finds the gate shut.
    #[must_use]
    pub fn close(&self) -> usize {
        self.close_within(Gate::CLOSE_LIMIT + MARGIN)
    }

    /// Shuts the gate without waiting, for a reset, which waits for the threads in its own way.
    pub fn slam(&self) {
        let threads = self.lock();
        self.set(SHUT);
        threads.wake();
    }

    fn close_within(&self, patience: Duration) -> usize {
        let mut threads = self.lock();
        if self.phase() == OPEN {
            self.set(CLOSING);
            threads.wake();
        }
        self.0.stepped_out.wait_while_for(&mut threads, |threads| threads.inside() > 0, patience);
        self.set(SHUT);
        threads.inside()
    }

    /// Whether new requests may be taken.
    pub fn is_open(&self) -> bool {
        self.phase() == OPEN
    }

    /// Whether guest memory may not be touched at all. While the gate closes, it may be, to end what is under way.
    pub fn is_shut(&self) -> bool {
        self.phase() == SHUT
    }

    /// A pass for a thread, which steps in at once if the gate is open. Writes to `wake` make it look at the gate.
    pub fn pass(&self, wake: &EventFd) -> io::Result<Pass> {
        let wake = wake.try_clone()?;
        let mut threads = self.lock();
        let (number, inside) = (threads.next, self.is_open());
        threads.next += 1;
        threads.all.push(Thread { number, wake, inside });
        Ok(Pass { gate: self.clone(), number, inside: AtomicBool::new(inside) })
    }

    fn phase(&self) -> u8 {
        self.0.phase.load(Ordering::Acquire)
    }

    fn set(&self, phase: u8) {
        self.0.phase.store(phase, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Threads> {
        self.0.threads.lock()
    }
}

/// A thread's right to touch guest memory, while it is inside the gate. Dropped, the thread is outside for good.
#[derive(Debug)]
pub struct Pass {
    gate: Gate,
    number: u64,
    /// The thread's own copy of what the gate has noted.
    inside: AtomicBool,
}

impl Pass {
    /// Whether the thread is inside and the gate is open. Ask it after each wait: a thread that is inside is waited for,
    /// so it need not ask again before it waits the next time.
    pub fn is_valid(&self) -> bool {
        self.gate.is_open() && self.inside.load(Ordering::Relaxed)
    }

    /// Steps out if the gate is not open, and in if it is. Returns whether the thread is inside now.
    pub fn renew(&self) -> bool {
        self.is_valid() || {
            let mut threads = self.gate.lock();
            let inside = self.gate.is_open();
            threads.find(self.number).inside = inside;
            self.inside.store(inside, Ordering::Relaxed);
            self.gate.0.stepped_out.notify_all();
            inside
        }
    }

    /// Does what ends requests under way, unless the gate is shut already or the thread is outside. The gate does not shut
    /// meanwhile, so this is not to wait for anything.
    pub fn finish<R>(&self, work: impl FnOnce() -> R) -> Option<R> {
        let threads = self.gate.lock();
        let allowed = !self.gate.is_shut() && self.inside.load(Ordering::Relaxed);
        let result = allowed.then(work);
        drop(threads);
        result
    }

    /// Waits for something that touches no guest memory, outside: nobody waits for the thread meanwhile. Step in again by
    /// [`Pass::renew`] before guest memory is touched.
    pub fn outside<R>(&self, wait: impl FnOnce() -> R) -> R {
        self.step_out();
        wait()
    }

    /// Steps out, whether or not the gate is open.
    pub fn step_out(&self) {
        self.gate.lock().find(self.number).inside = false;
        self.inside.store(false, Ordering::Relaxed);
        self.gate.0.stepped_out.notify_all();
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.lock().all.retain(|thread| thread.number != self.number);
        self.gate.0.stepped_out.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::thread;
    use std::time::Instant;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn bell() -> EventFd {
        EventFd::new(EFD_NONBLOCK).unwrap()
    }

    #[test]
    fn a_gate_shuts_when_the_last_thread_has_stepped_out_and_they_go_on_when_it_opens() {
        let gate = Gate::shut();
        gate.open();
        let (written, rounds) = (AtomicU32::new(0), AtomicU32::new(0));
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                let pass = gate.pass(&bell()).unwrap();
                let (written, rounds, over) = (&written, &rounds, &over);
                scope.spawn(move || {
                    while !over.load(Ordering::SeqCst) {
                        if pass.renew() {
                            // What a thread does between two looks at the gate.
                            for _ in 0..100 {
                                written.fetch_add(1, Ordering::SeqCst);
                                thread::yield_now();
                            }
                            rounds.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
            for _ in 0..200 {
                assert_eq!(gate.close(), 0);
                let before = written.load(Ordering::SeqCst);
                thread::yield_now();
                assert_eq!(written.load(Ordering::SeqCst), before);
                assert_eq!(before % 100, 0, "a thread was in the middle of its work");
                let seen = rounds.load(Ordering::SeqCst);
                gate.open();
                while rounds.load(Ordering::SeqCst) == seen {
                    thread::yield_now();
                }
            }
            over.store(true, Ordering::SeqCst);
        });
    }

    #[test]
    fn a_thread_that_hangs_is_counted_and_finds_the_gate_shut() {
        let gate = Gate::shut();
        gate.open();
        let wake = bell();
        let pass = gate.pass(&wake).unwrap();
        let begin = Instant::now();
        assert_eq!(gate.close_within(Duration::from_millis(30)), 1);
        assert!(begin.elapsed() >= Duration::from_millis(30));
        assert_eq!(wake.read().unwrap(), 1, "it was woken");
        assert!(!pass.is_valid() && pass.finish(|| ()).is_none());
        gate.open();
        assert!(pass.is_valid());
        pass.outside(|| assert_eq!(gate.close_within(Duration::ZERO), 0, "it waits outside"));
        assert!(!pass.renew());
        drop(pass);
        gate.open();
        assert_eq!(gate.close(), 0);
    }

    #[test]
    fn what_is_under_way_may_be_ended_while_a_gate_closes() {
        let gate = Gate::shut();
        gate.open();
        let pass = gate.pass(&bell()).unwrap();
        let closer = gate.clone();
        let closes = thread::spawn(move || closer.close());
        while gate.is_open() {
            thread::yield_now();
        }
        assert!(!pass.is_valid() && !gate.is_shut());
        assert_eq!(pass.finish(|| 7), Some(7));
        assert!(!pass.renew());
        assert_eq!(closes.join().unwrap(), 0);
        assert_eq!(pass.finish(|| 7), None);
    }
}
