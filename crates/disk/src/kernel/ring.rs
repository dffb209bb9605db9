//! The engine: one io_uring per queue.
//!
//! Everything goes through a single system call: `io_uring_enter` hands over what was noted down, lets the
//! kernel finish what completed (deferred to exactly this moment, so that no interrupt of the queue's thread is
//! needed), and waits for completions and for the watched eventfd alike.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use super::bounce::{BounceRoom, Loans};
use super::handle::Handle;
use super::slot::{Next, Slot, Start};
use crate::contract::{Engine, Event, Patience, QueueCounters, Request};
use crate::registered::{BufferTable, RingBuffers};

/// Marks answers that belong to no slot.
const CANCEL: u64 = u64::MAX;
/// The eventfd that the queue's user watches ...
const WATCH: u64 = u64::MAX - 1;
/// ... and the one by which other threads of the back end call.
const BELL: u64 = u64::MAX - 2;
/// That by which the table of registered buffers calls.
const BUFFERS: u64 = u64::MAX - 3;

pub(crate) struct Ring {
    ring: IoUring,
    handles: Vec<Arc<Handle>>,
    counters: Arc<QueueCounters>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Answers just taken; empty in between.
    answers: Vec<cqueue::Entry>,
    /// Bounce buffers. Requests that find no room wait for others to end.
    bounces: Loans,
    /// Slots that wait for a bounce buffer of so many bytes, the first first.
    waiting: VecDeque<(u16, usize)>,
    watched: Option<EventFd>,
    bell: Option<EventFd>,
    /// Where guest RAM is registered; the ring takes part in it from its start on.
    buffers: Option<Arc<BufferTable>>,
    registered: Option<RingBuffers>,
    /// The kernel refused to take entries, which are lost; the ring cannot go on.
    lost: Option<io::Error>,
    /// Numbers of the failures that were brought last, by tag.
    errnos: Vec<(u64, i32)>,
}

impl Ring {
    pub(crate) fn new(
        handles: Vec<Arc<Handle>>,
        depth: u16,
        counters: Arc<QueueCounters>,
        buffers: Option<Arc<BufferTable>>,
        bounces: Arc<BounceRoom>,
    ) -> io::Result<Ring> {
        // Room for one entry for each slot, beside one each for the watches and for cancelling; more are rare.
        let ring = build(u32::from(depth) + 4)?;
        let files: Vec<_> = handles.iter().map(|handle| handle.file.as_raw_fd()).collect();
        ring.submitter().register_files(&files)?;
        Ok(Ring {
            ring,
            handles,
            counters,
            slots: (0..depth).map(|_| Slot::default()).collect(),
            free: (0..depth).rev().collect(),
            answers: Vec::new(),
            bounces: Loans::new(bounces),
            waiting: VecDeque::new(),
            watched: None,
            bell: None,
            buffers,
            registered: None,
            lost: None,
            errnos: Vec::new(),
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

    /// Comes back from waiting whenever `bell` is written, without an event of its own.
    pub(crate) fn answer_to(&mut self, bell: &EventFd) -> io::Result<()> {
        self.bell = Some(bell.try_clone()?);
        self.start_watching(BELL);
        Ok(())
    }

    fn start_watching(&mut self, mark: u64) {
        let eventfd = match mark {
            WATCH => self.watched.as_ref(),
            BELL => self.bell.as_ref(),
            _ => self.registered.as_ref().map(RingBuffers::eventfd),
        };
        if let Some(eventfd) = eventfd {
            // Multishot: one answer for every write to the eventfd, which therefore nobody needs to read.
            let poll =
                opcode::PollAdd::new(types::Fd(eventfd.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
            self.push(&poll.user_data(mark));
        }
    }

    fn step(&mut self, index: u16, part: u16) {
        let slot = &mut self.slots[usize::from(index)];
        if let Some(entry) = slot.step(part, &self.handles[slot.file()], self.registered.as_ref()) {
            self.push(&entry.user_data(mark(index, part)));
        }
    }

    /// Takes the answers that are there. An answer for a slot is given to `done` when its request is.
    fn reap(&mut self, events: &mut Vec<Event>) {
        let mut woken = false;
        let mut answers = std::mem::take(&mut self.answers);
        answers.extend(self.ring.completion());
        for answer in answers.drain(..) {
            match answer.user_data() {
                CANCEL => {}
                watch @ (WATCH | BELL | BUFFERS) => {
                    woken |= watch == WATCH;
                    if !cqueue::more(answer.flags()) {
                        self.start_watching(watch);
                    }
                }
                mark => {
                    let (index, part) = unmark(mark);
                    let slot = &mut self.slots[usize::from(index)];
                    match slot.answer(part, answer.result(), &self.handles[slot.file()], &self.counters) {
                        Next::Step(part) => self.step(index, part),
                        Next::Wait => {}
                        Next::Done(result) => {
                            self.bounces.end(slot.lent());
                            let errno = slot.errno();
                            if let Some(Request { tag, operation, buffers }) = slot.finish() {
                                self.free.push(index);
                                self.errnos.extend(errno.map(|errno| (tag, errno)));
                                events.push(Event::Done { tag, operation, result, buffers });
                            }
                            if !self.waiting.is_empty() {
                                self.begin_waiting();
                            }
                        }
                    }
                }
            }
        }
        self.answers = answers;
        if woken {
            events.push(Event::Wake);
        }
    }

    /// Lends bounce buffers to those who wait for one, as far as there is room.
    fn begin_waiting(&mut self) {
        while let Some(&(index, size)) = self.waiting.front()
            && self.bounces.lend(size)
        {
            self.waiting.pop_front();
            let slot = &mut self.slots[usize::from(index)];
            slot.lend(size, &self.handles[slot.file()]);
            self.step(index, 0);
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

    /// Takes a change of the registered buffers. What is noted names places of the table that the ring still has, so
    /// it goes to the kernel first.
    fn follow(&mut self) -> io::Result<()> {
        if !self.ring.submission().is_empty() {
            self.enter(0)?;
        }
        let nothing_noted = self.ring.submission().is_empty();
        match &mut self.registered {
            Some(registered) if nothing_noted => registered.follow(&self.ring),
            // The kernel takes no more just now. Another time, which is soon.
            Some(registered) => registered.wake_again(),
            None => {}
        }
        Ok(())
    }

    /// Notes a request down that is for the file with this number.
    pub(crate) fn submit_to(&mut self, file: u16, request: Request) {
        let index = self.free.pop().expect("never more requests than the depth");
        let handle = &self.handles[usize::from(file)];
        match self.slots[usize::from(index)].begin(request, file, handle) {
            Start::Now(parts) => (0..parts).for_each(|part| self.step(index, part)),
            Start::OnceThereIsRoom(size) => {
                self.waiting.push_back((index, size));
                self.begin_waiting();
            }
        }
    }

    /// Asks the kernel to end every request early. The watches stay.
    fn cancel_all(&mut self) {
        for index in 0..self.slots.len() {
            for part in self.slots[index].parts_under_way() {
                let which = types::CancelBuilder::user_data(mark(index as u16, part)).all();
                self.push(&opcode::AsyncCancel2::new(which).build().user_data(CANCEL));
            }
        }
    }

    /// Cancels what can be cancelled and waits for all answers.
    fn drain(&mut self) -> io::Result<()> {
        if let Some(error) = self.lost.take() {
            return Err(error);
        }
        for (index, _) in self.waiting.drain(..) {
            self.slots[usize::from(index)].finish();
        }
        self.cancel_all();
        while self.slots.iter().any(Slot::is_busy) {
            self.enter(1)?;
            while let Some(answer) = self.next_answer() {
                if answer.user_data() < BUFFERS {
                    let (index, part) = unmark(answer.user_data());
                    self.slots[usize::from(index)].abandon(part, answer.result(), &self.counters);
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
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {}
            other => other?,
        }
        if let Some(buffers) = &self.buffers {
            self.registered = Some(RingBuffers::of(buffers, &self.ring)?);
            self.start_watching(BUFFERS);
        }
        Ok(())
    }

    fn watch(&mut self, eventfd: &EventFd) -> io::Result<()> {
        self.watched = Some(eventfd.try_clone()?);
        self.start_watching(WATCH);
        Ok(())
    }

    fn submit(&mut self, request: Request) {
        self.submit_to(0, request);
    }

    fn cancel(&mut self) -> io::Result<()> {
        self.cancel_all();
        Ok(())
    }

    fn errno(&self, tag: u64) -> Option<i32> {
        self.errnos.iter().find(|(other, _)| *other == tag).map(|(_, errno)| *errno)
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> io::Result<()> {
        if let Some(error) = &self.lost {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        if self.registered.as_ref().is_some_and(RingBuffers::is_behind) {
            self.follow()?;
        }
        let before = events.len();
        self.errnos.clear();
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

impl Ring {
    /// Ends everything that is under way and gives its memory back. Nothing may be submitted afterwards.
    pub(crate) fn end(&mut self) {
        if self.drain().is_err() {
            // The kernel may still write to these buffers, so they are never given back.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
        // The kernel tears rings down in its own time; the files, the locks on them and RAM are to be free now.
        if let Some(registered) = self.registered.take() {
            registered.leave(&self.ring);
        }
        self.ring.submitter().unregister_files().unwrap_or_default();
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.end();
    }
}

/// Marks a request of the kernel with the slot and the part that its answer is for.
fn mark(index: u16, part: u16) -> u64 {
    u64::from(part) << 16 | u64::from(index)
}

fn unmark(mark: u64) -> (u16, u16) {
    (mark as u16, (mark >> 16) as u16)
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

#[cfg(test)]
mod tests {
    use memory::{Buffers, Gpa, GpaRange, Ram};

    use super::super::file_options::FileOptions;
    use super::*;
    use crate::contract::{Durability, Operation, Sectors};
    use crate::options::DiskOptions;

    fn bounced(ring: &Ring) -> usize {
        ring.slots.iter().map(Slot::lent).sum()
    }

    /// Submits as many long misaligned writes as the ring holds.
    fn full(disk: &Arc<Handle>, ram: &Arc<Ram>, depth: u16, room: &Arc<BounceRoom>) -> Ring {
        let mut ring = Ring::new(vec![disk.clone()], depth, Arc::default(), None, room.clone()).unwrap();
        ring.start().unwrap();
        for tag in 0..u64::from(depth) {
            let mut buffers = Buffers::new(ram.clone());
            buffers.push(Gpa(1), 512 << 10).unwrap();
            let operation = Operation::Write { at: Sectors(tag * 1024), durability: Durability::Cached };
            ring.submit(Request { tag, operation, buffers });
        }
        ring
    }

    #[test]
    fn misaligned_requests_on_every_slot_of_every_queue_hold_no_more_than_the_room_of_the_disk() {
        // Beside this program, for where temporary files are kept there may be no direct I/O.
        let program = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::File::create(&path).unwrap().set_len(32 << 20).unwrap();
        // The user's wish makes copies even where the file system has no rule of alignment.
        let options = DiskOptions { bounce: crate::options::Bounce::Always, ..DiskOptions::new(&path) };
        let disk = super::super::open::open(&FileOptions::new(&path, &options)).unwrap().handle;
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap());
        let room = Arc::<BounceRoom>::default();
        let mut rings = [0; 4].map(|_| full(&disk, &ram, 20, &room));
        let all = |rings: &[Ring]| rings.iter().map(bounced).sum::<usize>();
        // 4 MiB for all, and one buffer of 256 KiB for each.
        let most = (4 << 20) + 4 * (256 << 10);
        assert_eq!(all(&rings), most);
        assert!(rings.iter().all(|ring| bounced(ring) > 0), "none waits for another queue");
        let (mut events, mut done) = (Vec::new(), 0);
        while done < 4 * 20 {
            for number in 0..rings.len() {
                let patience = if rings[number].slots.iter().any(Slot::is_busy) {
                    Patience::Wait
                } else {
                    Patience::Poll
                };
                rings[number].advance(patience, &mut events).unwrap();
                assert!(all(&rings) <= most);
            }
            for event in events.drain(..) {
                assert!(matches!(event, Event::Done { result: Ok(()), .. }), "{event:?}");
                done += 1;
            }
        }
        drop(rings);
        let mut again = full(&disk, &ram, 20, &room);
        assert_eq!(bounced(&again), (4 << 20) + (256 << 10), "all was given back");
        // Those that wait for room go with the ring, too.
        again.end();
        drop(again);
        assert_eq!(bounced(&full(&disk, &ram, 20, &room)), (4 << 20) + (256 << 10));
        assert_eq!(Arc::strong_count(&ram), 1);
    }
}
