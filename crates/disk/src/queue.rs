//! A queue of requests to a disk, as its user sees it.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use memory::Buffers;
use vmm_sys_util::eventfd::EventFd;

use crate::backend::{Engine, Patience};
use crate::capacity::Capacity;
use crate::counters::QueueCounters;
use crate::geometry::Geometry;
use crate::request::{DiskError, Operation, Request, check};
use crate::spin::{Awaited, Poll, Spinner};

/// How often to look at memory until a look at the clock, which costs more.
const LOOKS_PER_CLOCK: u32 = 16;

/// Something a queue's thread has to deal with.
#[derive(Debug)]
pub enum Event {
    /// A request is done; its buffers are the caller's again.
    Done {
        /// The request's own tag.
        tag: u64,
        /// What was asked for.
        operation: Operation,
        /// Success means all of it.
        result: Result<(), DiskError>,
        /// The request's buffers.
        buffers: Buffers,
    },
    /// The watched eventfd was written, once or more.
    Wake,
}

/// A request that was refused before it reached the disk.
#[derive(Debug, thiserror::Error)]
#[error("{operation} refused: {error}")]
pub struct Refused {
    /// Why.
    pub error: DiskError,
    /// What was asked for.
    pub operation: Operation,
    /// The request's buffers, back again.
    pub buffers: Buffers,
}

/// A queue can no longer be driven.
#[derive(Debug, thiserror::Error)]
#[error("disk {disk}: the queue stopped working: {cause}. Requests under way are lost; restart the VM.")]
pub struct WaitError {
    /// The disk's name.
    pub disk: Arc<str>,
    /// The kernel's answer.
    #[source]
    pub cause: io::Error,
}

/// A queue that is ready to run on whichever thread starts it.
pub struct PreparedQueue {
    pub(crate) disk: Arc<str>,
    pub(crate) geometry: Geometry,
    pub(crate) capacity: Arc<Capacity>,
    pub(crate) depth: u16,
    pub(crate) poll: Poll,
    pub(crate) counters: Arc<QueueCounters>,
    pub(crate) engine: Box<dyn Engine + Send>,
}

impl PreparedQueue {
    /// Starts the queue on this thread, where it stays.
    pub fn start(mut self) -> Result<DiskQueue, WaitError> {
        let started = self.engine.start();
        started.map_err(|cause| WaitError { disk: self.disk.clone(), cause })?;
        Ok(DiskQueue {
            disk: self.disk,
            geometry: self.geometry,
            capacity: self.capacity,
            depth: self.depth,
            under_way: 0,
            spinner: Spinner::new(self.poll),
            waiting: None,
            counters: self.counters,
            engine: self.engine,
            thread: PhantomData,
        })
    }
}

/// A queue of requests to a disk, bound to the thread that started it. Dropping it waits for everything under
/// way.
pub struct DiskQueue {
    disk: Arc<str>,
    geometry: Geometry,
    capacity: Arc<Capacity>,
    depth: u16,
    under_way: u16,
    spinner: Spinner,
    /// Since when looking has brought nothing.
    waiting: Option<Instant>,
    counters: Arc<QueueCounters>,
    engine: Box<dyn Engine>,
    /// Not `Send`: the kernel takes requests only from the thread that started the queue.
    thread: PhantomData<*const ()>,
}

impl DiskQueue {
    /// The disk's name.
    pub fn disk(&self) -> &str {
        &self.disk
    }

    /// Wakes this queue with [`Event::Wake`] whenever `eventfd` is written. The eventfd is
    /// never read, so it may have any number of watchers.
    pub fn watch(&mut self, eventfd: &EventFd) -> Result<(), WaitError> {
        self.engine.watch(eventfd).map_err(|cause| WaitError { disk: self.disk.clone(), cause })
    }

    /// Checks a request and notes it down. It begins with the next [`wait`](Self::wait) or
    /// [`poll`](Self::poll).
    pub fn submit(&mut self, request: Request) -> Result<(), Refused> {
        let verdict = if self.under_way == self.depth {
            Err(DiskError::QueueFull)
        } else {
            check(&self.geometry, self.capacity.get(), request.operation, request.buffers.bytes())
        };
        if let Err(error) = verdict {
            self.counters.error();
            return Err(Refused { error, operation: request.operation, buffers: request.buffers });
        }
        self.under_way += 1;
        self.engine.submit(request);
        Ok(())
    }

    /// Begins everything noted down, waits for at least one event and appends what there is to `events`. A
    /// signal may end the wait without any. Before it sleeps it looks, as far as the disk's [`Poll`] says.
    pub fn wait(&mut self, events: &mut Vec<Event>) -> Result<(), WaitError> {
        if self.look(events, || false)? { Ok(()) } else { self.sleep(events) }
    }

    /// Begins everything noted down and looks for events, and for whatever `other` looks for, until there is
    /// something or until looking does not pay any more; then it is time to [`sleep`](Self::sleep). Returns whether
    /// there is something. Without [`Poll`] it does not look.
    pub fn look(
        &mut self,
        events: &mut Vec<Event>,
        mut other: impl FnMut() -> bool,
    ) -> Result<bool, WaitError> {
        self.waiting = None;
        let before = events.len();
        let awaited = self.awaited();
        let window = self.spinner.window(awaited);
        if window.is_some_and(|window| window.is_zero()) {
            return Ok(false);
        }
        let begin = Instant::now();
        loop {
            for _ in 0..LOOKS_PER_CLOCK {
                self.poll(events)?;
                if events.len() > before || other() {
                    self.spinner.found(awaited, begin.elapsed());
                    self.gather(events, before)?;
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
            let took = begin.elapsed();
            if let Some(window) = window.filter(|window| took >= *window) {
                self.spinner.found_nothing(awaited, window, took);
                self.waiting = Some(begin);
                return Ok(false);
            }
        }
    }

    /// As [`wait`](Self::wait), but sleeps at once.
    pub fn sleep(&mut self, events: &mut Vec<Event>) -> Result<(), WaitError> {
        let begin = self.waiting.take().unwrap_or_else(Instant::now);
        let (awaited, before) = (self.awaited(), events.len());
        let outcome = self.advance(Patience::Wait, events);
        self.spinner.slept_since(begin, awaited);
        outcome?;
        self.gather(events, before)
    }

    /// What has ended goes to the guest with an interrupt. For no longer than that costs the guest, and until as many
    /// have ended as are still under way, this looks whether others end as well, to go with the same one.
    fn gather(&mut self, events: &mut Vec<Event>, before: usize) -> Result<(), WaitError> {
        let window = self.spinner.gathering();
        if window.is_zero() || events.len() == before {
            return Ok(());
        }
        let begin = Instant::now();
        loop {
            let came = &events[before..];
            let awaits_more = came.len() < usize::from(self.under_way);
            if !awaits_more
                || came.iter().any(|event| matches!(event, Event::Wake))
                || begin.elapsed() >= window
            {
                return Ok(());
            }
            for _ in 0..LOOKS_PER_CLOCK {
                self.poll(events)?;
                std::hint::spin_loop();
            }
        }
    }

    /// Begins everything noted down and appends to `events` what has happened already.
    pub fn poll(&mut self, events: &mut Vec<Event>) -> Result<(), WaitError> {
        self.advance(Patience::Poll, events)
    }

    /// Waits until nothing is under way, and appends what became of it to `events`. Wakes are among them. Requests that
    /// are held ([`crate::Answer::Held`]) are under way until somebody has them tried again or gives them up.
    pub fn drain(&mut self, events: &mut Vec<Event>) -> Result<(), WaitError> {
        while self.under_way > 0 {
            self.wait(events)?;
        }
        Ok(())
    }

    /// Asks for an early end of everything under way; each request still has its event. What could be cancelled
    /// ended with [`DiskError::Cancelled`].
    pub fn cancel(&mut self) -> Result<(), WaitError> {
        self.engine.cancel().map_err(|cause| WaitError { disk: self.disk.clone(), cause })
    }

    /// Requests submitted and not yet reported.
    pub fn under_way(&self) -> u16 {
        self.under_way
    }

    fn awaited(&self) -> Awaited {
        if self.under_way == 0 { Awaited::Requests } else { Awaited::Completions }
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> Result<(), WaitError> {
        let before = events.len();
        let outcome = self.engine.advance(patience, events);
        for event in &events[before..] {
            if let Event::Done { operation, result, buffers, .. } = event {
                self.under_way -= 1;
                match (operation, result) {
                    (_, Err(_)) => self.counters.error(),
                    (Operation::Read { .. }, Ok(())) => self.counters.read(buffers.bytes()),
                    (Operation::Write { .. }, Ok(())) => self.counters.write(buffers.bytes()),
                    (Operation::Flush, Ok(())) => self.counters.flush(),
                    (Operation::Discard(_) | Operation::WriteZeroes(..), Ok(())) => self.counters.discard(),
                }
            }
        }
        outcome.map_err(|cause| WaitError { disk: self.disk.clone(), cause })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use memory::{Gpa, GpaRange, Ram};

    use super::*;
    use crate::geometry::Sectors;
    use crate::options::{DiskOptions, Source};
    use crate::{Disk, Poll};

    /// Ends one request at each look, the last of them never; and is woken where it is told to be.
    #[derive(Default)]
    struct OneByOne {
        requests: VecDeque<Request>,
        wakes: bool,
    }

    impl Engine for OneByOne {
        fn start(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn watch(&mut self, _: &EventFd) -> io::Result<()> {
            Ok(())
        }

        fn submit(&mut self, request: Request) {
            self.requests.push_back(request);
        }

        fn advance(&mut self, _: Patience, events: &mut Vec<Event>) -> io::Result<()> {
            if self.requests.len() > 1
                && let Some(Request { tag, operation, buffers }) = self.requests.pop_front()
            {
                events.push(Event::Done { tag, operation, result: Ok(()), buffers });
            }
            if self.wakes {
                events.push(Event::Wake);
            }
            Ok(())
        }
    }

    /// A queue with so many reads under way, which gathers for so long.
    fn queue(reads: u64, poll: Poll, gathering: Duration, wakes: bool) -> DiskQueue {
        let disk = Disk::open(&DiskOptions::over(Source::Memory(Sectors::in_bytes(1 << 20)))).unwrap();
        let prepared = disk.prepare_queue(16).unwrap();
        let engine = Box::new(OneByOne { wakes, ..OneByOne::default() });
        let mut queue = PreparedQueue { engine, poll, ..prepared }.start().unwrap();
        queue.spinner = Spinner::gathering_for(poll, gathering);
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 4096).unwrap()]).unwrap());
        for tag in 0..reads {
            let mut buffers = Buffers::new(ram.clone());
            buffers.push(Gpa(0), 512).unwrap();
            queue.submit(Request { tag, operation: Operation::Read { at: Sectors(0) }, buffers }).unwrap();
        }
        queue
    }

    /// How many requests come with the first wait.
    fn first(mut queue: DiskQueue) -> usize {
        let mut events = Vec::new();
        queue.wait(&mut events).unwrap();
        events.iter().filter(|event| matches!(event, Event::Done { .. })).count()
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn what_ends_is_gathered_until_as_much_has_ended_as_is_under_way() {
        // At least, for it looks some times in a row.
        assert!((8..16).contains(&first(queue(16, Poll::Adaptive, LONG, false))));
        assert!((8..16).contains(&first(queue(16, Poll::On, LONG, false))));
        assert_eq!(
            first(queue(2, Poll::Adaptive, LONG, false)),
            1,
            "as many are under way: it comes at once"
        );
        assert_eq!(first(queue(16, Poll::Off, LONG, false)), 1, "a queue that does not look gathers nothing");
    }

    #[test]
    fn what_has_ended_waits_for_others_no_longer_than_an_interrupt_costs_nor_for_a_queue_that_is_woken() {
        assert_eq!(first(queue(16, Poll::Adaptive, Duration::from_nanos(1), false)), 1);
        assert_eq!(first(queue(16, Poll::Adaptive, LONG, true)), 1);
    }
}
