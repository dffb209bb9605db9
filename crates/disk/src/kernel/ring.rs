//! The engine: one io_uring per queue.
//!
//! Everything goes through a single system call: `io_uring_enter` hands over what was noted down, lets the
//! kernel finish what completed (deferred to exactly this moment, so that no interrupt of the queue's thread is
//! needed), and waits for completions and for the watched eventfd alike.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use crate::backend::{Engine, Patience};
use crate::counters::QueueCounters;
use crate::kernel::Handle;
use crate::kernel::slot::{Next, Slot};
use crate::queue::Event;
use crate::request::Request;

/// Marks answers that belong to no slot.
const WATCH: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;

pub(super) struct Ring {
    ring: IoUring,
    handle: Arc<Handle>,
    counters: Arc<QueueCounters>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    watched: Option<EventFd>,
    /// The kernel refused to take entries, which are lost; the ring cannot go on.
    lost: Option<io::Error>,
}

impl Ring {
    pub(super) fn new(handle: Arc<Handle>, depth: u16, counters: Arc<QueueCounters>) -> io::Result<Ring> {
        // Room for one entry for each slot, beside one each for the watch and for cancelling; more are rare.
        let ring = build(u32::from(depth) + 2)?;
        ring.submitter().register_files(&[handle.file.as_raw_fd()])?;
        Ok(Ring {
            ring,
            handle,
            counters,
            slots: (0..depth).map(|_| Slot::default()).collect(),
            free: (0..depth).rev().collect(),
            watched: None,
            lost: None,
        })
    }

    fn push(&mut self, entry: &squeue::Entry) {
        for _ in 0..64 {
            // SAFETY: every entry points to memory of a slot (or to none). A slot gives its memory back only
            // when the kernel has answered, and `drop` waits for all answers.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full: the kernel takes what is in it.
            if let Err(error) = self.enter(0) {
                self.lost.get_or_insert(error);
                return;
            }
        }
        self.lost.get_or_insert_with(|| io::Error::from_raw_os_error(libc::EBUSY));
    }

    fn start_watching(&mut self) {
        if let Some(eventfd) = &self.watched {
            // Multishot: one answer for every write to the eventfd, which therefore nobody needs to read.
            let poll =
                opcode::PollAdd::new(types::Fd(eventfd.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
            self.push(&poll.user_data(WATCH));
        }
    }

    fn step(&mut self, index: u16, part: u16) {
        if let Some(entry) = self.slots[usize::from(index)].step(part, &self.handle) {
            self.push(&entry.user_data(u64::from(part) << 16 | u64::from(index)));
        }
    }

    /// Takes all answers that are there. An answer for a slot is given to `done` when its request is.
    fn reap(&mut self, events: &mut Vec<Event>) {
        let mut woken = false;
        while let Some(answer) = self.next_answer() {
            match answer.user_data() {
                CANCEL => {}
                WATCH => {
                    woken = true;
                    if !cqueue::more(answer.flags()) {
                        self.start_watching();
                    }
                }
                mark => {
                    let (index, part) = (mark as u16, (mark >> 16) as u16);
                    let slot = &mut self.slots[usize::from(index)];
                    match slot.answer(part, answer.result(), &self.handle, &self.counters) {
                        Next::Step(part) => self.step(index, part),
                        Next::Wait => {}
                        Next::Done(result) => {
                            if let Some(Request { tag, operation, buffers }) = slot.finish() {
                                self.free.push(index);
                                events.push(Event::Done { tag, operation, result, buffers });
                            }
                        }
                    }
                }
            }
        }
        if woken {
            events.push(Event::Wake);
        }
    }

    fn next_answer(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    /// Enters the kernel, and waits there for `want` answers.
    fn enter(&mut self, want: usize) -> io::Result<()> {
        match self.ring.submitter().submit_and_wait(want) {
            Ok(_) => Ok(()),
            // Interrupted, or the kernel wants answers taken first or is short of memory for a moment: the
            // entries that it did not take are still queued, and the next round hands them over.
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Cancels what can be cancelled and waits for all answers.
    fn drain(&mut self) -> io::Result<()> {
        if let Some(error) = self.lost.take() {
            return Err(error);
        }
        if self.slots.iter().any(Slot::is_busy) {
            let everything = types::CancelBuilder::any();
            self.push(&opcode::AsyncCancel2::new(everything).build().user_data(CANCEL));
        }
        while self.slots.iter().any(Slot::is_busy) {
            self.enter(1)?;
            while let Some(answer) = self.next_answer() {
                if answer.user_data() < CANCEL {
                    self.slots[usize::from(answer.user_data() as u16)].abandon();
                }
            }
        }
        Ok(())
    }
}

impl Engine for Ring {
    fn start(&mut self) -> io::Result<()> {
        match self.ring.submitter().register_enable_rings() {
            // A ring of an older kernel was never disabled.
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => Ok(()),
            other => other,
        }
    }

    fn watch(&mut self, eventfd: &EventFd) -> io::Result<()> {
        self.watched = Some(eventfd.try_clone()?);
        self.start_watching();
        Ok(())
    }

    fn submit(&mut self, request: Request) {
        let index = self.free.pop().expect("never more requests than the depth");
        let parts = self.slots[usize::from(index)].begin(request, &self.handle);
        (0..parts).for_each(|part| self.step(index, part));
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> io::Result<()> {
        if let Some(error) = &self.lost {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        let before = events.len();
        self.reap(events);
        let waiting_for = usize::from(patience == Patience::Wait && events.len() == before);
        let (noted, unfinished) = {
            let queue = self.ring.submission();
            (!queue.is_empty(), queue.taskrun() || queue.cq_overflow())
        };
        if waiting_for > 0 || noted || unfinished {
            self.enter(waiting_for)?;
            self.reap(events);
        }
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.drain().is_err() {
            // The kernel may still write to these buffers, so they are never given back.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// A ring that is disabled until its thread enables it, with the modes that save the most work; without them
/// on kernels before 6.1.
fn build(entries: u32) -> io::Result<IoUring> {
    let best = IoUring::builder()
        .dontfork()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .build(entries);
    match best {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().dontfork().build(entries)
        }
        other => other,
    }
}
