//! A queue of requests to a disk, as its user sees it.

mod spin;
#[cfg(test)]
mod tests;

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use memory::Buffers;
use vmm_sys_util::eventfd::EventFd;

use crate::contract::{
    Capacity, DiskError, Engine, Event, Geometry, Operation, Patience, Poll, QueueCounters, Request, check,
};
use crate::queue::spin::{Awaited, Spinner};

/// How often to look at memory until a look at the clock, which costs more.
const LOOKS_PER_CLOCK: u32 = 16;

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
