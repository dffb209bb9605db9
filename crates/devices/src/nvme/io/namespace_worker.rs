//! A thread for one further namespace of a queue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use disk::{PreparedQueue, WaitError};
use parking_lot::{Mutex, MutexGuard};
use pci::Pass;

use super::executor::{Answers, Executor};
use super::queue::Stop;
use crate::aside::Then;
use crate::nvme::namespace::Attached;
use crate::nvme::shared::Shared;
use crate::nvme::spec::Command;
use crate::nvme::waker::Waker;

/// What the queue's thread and the worker's share.
struct Between {
    /// Commands for the worker.
    inbox: Mutex<Vec<Command>>,
    /// Commands handed over whose completion is not posted.
    load: AtomicUsize,
    /// The queue's thread waits for the load to shrink.
    awaited: AtomicBool,
    /// Completions wait for room: whoever wakes the queue's thread wakes the worker by it.
    stuck: AtomicBool,
    stop: Arc<Stop>,
}

/// A worker, as the queue's thread sees it. Dropped, it ends as the queue's [`Stop`] says.
pub(super) struct NamespaceWorker {
    between: Arc<Between>,
    waker: Waker,
    depth: usize,
    thread: Option<JoinHandle<()>>,
}

impl NamespaceWorker {
    pub(super) fn start(
        shared: Arc<Shared>,
        namespace: Arc<Attached>,
        prepared: PreparedQueue,
        depth: u16,
        to: Answers,
        stop: Arc<Stop>,
    ) -> io::Result<NamespaceWorker> {
        let between = Arc::new(Between {
            inbox: Mutex::default(),
            load: AtomicUsize::new(0),
            awaited: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            stop,
        });
        let waker = Waker::new()?;
        let name = format!("nvme-{}-{}.{}", shared.short, to.sq, namespace.nsid);
        let (theirs, wake, pass) = (between.clone(), waker.another()?, shared.gate.pass(waker.eventfd())?);
        let thread = thread::Builder::new().name(name).spawn(move || {
            let end = Executor::start(shared.clone(), namespace, prepared, depth, to.clone(), wake.eventfd())
                .and_then(|executor| theirs.serve(executor, &shared, to.sq, &pass));
            if let Err(why) = end {
                shared.fatal(&why);
            }
        })?;
        Ok(NamespaceWorker { between, waker, depth: depth.into(), thread: Some(thread) })
    }

    /// Hands a command over, unless the worker has as many as it takes: then the queue is woken when it has not.
    pub(super) fn send(&self, command: &Command) -> bool {
        let full = || self.between.load.load(Ordering::SeqCst) >= self.depth;
        if full() {
            self.between.awaited.store(true, Ordering::SeqCst);
            if full() {
                return false;
            }
        }
        self.between.load.fetch_add(1, Ordering::SeqCst);
        self.between.inbox().push(*command);
        self.waker.wake();
        true
    }

    /// Takes back a command that the worker has not begun; whether there was one.
    pub(super) fn take_back(&self, cid: u16) -> bool {
        let mut inbox = self.between.inbox();
        let Some(at) = inbox.iter().position(|command| command.cid.get() == cid) else { return false };
        inbox.remove(at);
        self.between.load.fetch_sub(1, Ordering::SeqCst);
        true
    }

    /// Has the worker look how the queue ends.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// Wakes the worker if it has something to post that it could not.
    pub(super) fn pass_on(&self) {
        if self.between.stuck.load(Ordering::SeqCst) && self.between.stuck.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
    }
}

impl Drop for NamespaceWorker {
    fn drop(&mut self) {
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has ended, and said so.
            thread.join().ok();
        }
    }
}

impl Between {
    fn serve(&self, mut executor: Executor, shared: &Shared, sq: u16, pass: &Pass) -> Result<(), WaitError> {
        let mut commands = Vec::new();
        let mut begun = 0;
        loop {
            if !pass.is_valid() && executor.step_aside(&self.stop, pass)? == Then::End {
                return Ok(());
            }
            executor.reap();
            begun += self.begin_what_came(&mut executor, &mut commands);
            executor.post();
            let before = std::mem::replace(&mut begun, executor.unanswered());
            if before > begun {
                self.load.fetch_sub(before - begun, Ordering::SeqCst);
                if self.awaited.swap(false, Ordering::SeqCst) {
                    shared.doorbells.waker(sq).wake();
                }
            }
            if self.stop.abandons() || self.stop.finishes() && executor.under_way() == 0 && self.is_empty() {
                return Ok(());
            }
            if executor.is_stuck() && !self.stuck.swap(true, Ordering::SeqCst) {
                // Room may have come before the mark was there: once more, and then sleep.
                continue;
            }
            executor.wait()?;
        }
    }

    /// Begins what there is room for, and returns how many that were. The rest stays in the inbox, from which it may be
    /// taken back; a command under way then makes room. `commands` is empty.
    fn begin_what_came(&self, executor: &mut Executor, commands: &mut Vec<Command>) -> usize {
        std::mem::swap(&mut *self.inbox(), commands);
        let begin = |command: &&Command| {
            let room = executor.has_room();
            if room {
                executor.begin(command);
            }
            room
        };
        let begun = commands.iter().take_while(begin).count();
        if begun < commands.len() {
            self.inbox().splice(..0, commands.drain(begun..));
        }
        commands.clear();
        begun
    }

    fn inbox(&self) -> MutexGuard<'_, Vec<Command>> {
        self.inbox.lock()
    }

    fn is_empty(&self) -> bool {
        self.inbox().is_empty()
    }
}
