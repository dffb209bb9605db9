//! The engine: one queue pair of the controller for one queue of a device model.
//!
//! A request becomes one command, or several where it is longer than the controller takes or where pieces of it
//! have to be copied. Submitting writes entries to memory and, once for all of them, a doorbell; completions are
//! read from memory. The kernel is entered only to sleep.

mod abort;
mod begin;
mod cancel;
mod end;
mod flight;
mod late;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::Reach;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::controller::Controller;
use super::error::NvmeError;
use super::function::QueueMemory;
use super::ring::{Place, Ring};
use super::transfer::{LIST_SIZE, Limits};
use crate::contract::{DiskError, Engine, Event, Patience, Poll, QueueCounters, Request};
use abort::Abortions;
use flight::{Flight, UnderWay};
use late::Clock;

/// Bytes of a bounce buffer, and how many a queue has: a guest chooses how its memory lies, and must not thereby
/// choose how much the host spends. Commands that find none free wait for others to end.
pub(super) const BOUNCE_SIZE: u64 = 64 << 10;
const BOUNCES: u16 = 4;

/// Most entries of a queue: commands beyond wait here and not in the controller.
const MOST_ENTRIES: u16 = 1024;
/// Fewest entries: long requests are several commands.
const FEWEST_ENTRIES: u16 = 33;

/// How often a command is tried, whatever fails it for the moment.
const TRIES: u8 = 3;

/// How often polling looks at eventfds and at the clock: each costs more than a look at memory.
const EVENTFD_EVERY: u32 = 32;
const CLOCK_EVERY: u32 = 1024;

const WATCH: u64 = 0;
const INTERRUPT: u64 = 1;
const REMOVAL: u64 = 2;

/// What a queue has to know of its namespace.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// Its number.
    pub namespace: u32,
    /// Bytes of a logical block.
    pub block: u32,
    /// What commands may carry.
    pub limits: Limits,
    /// Whether queues look for completions before they sleep.
    pub poll: Poll,
}

pub(super) struct NvmeQueue {
    controller: Arc<Controller>,
    facts: Facts,
    counters: Arc<QueueCounters>,
    memory: Option<QueueMemory>,
    ring: Ring,
    /// Where the commands' lists begin in the memory, and behind them the bounce buffers.
    lists: u64,
    bounces: u64,
    /// By identifier.
    commands: Vec<Option<UnderWay>>,
    free_commands: Vec<u16>,
    flights: Vec<Option<Flight>>,
    free_flights: Vec<u16>,
    /// Flights of which not all commands could be begun, the first first.
    waiting: VecDeque<u16>,
    free_bounces: Vec<u16>,
    /// Commands that failed for the moment and are sent again, the first first.
    held: VecDeque<u16>,
    abortions: Abortions,
    /// The controller's generation that knows the queue.
    generation: u64,
    epoll: Epoll,
    watched: Option<EventFd>,
    /// What the controller reaches. It need not say when its DMA was blocked: what it would not reach is not begun.
    reach: Reach,
    /// Requests that have ended here, and are reported with the next look.
    ended: Vec<Event>,
    clock: Clock,
    polls: u32,
    strays: u32,
}

impl NvmeQueue {
    pub fn new(
        controller: &Arc<Controller>,
        facts: Facts,
        depth: u16,
        counters: Arc<QueueCounters>,
    ) -> Result<NvmeQueue, NvmeError> {
        let queue = controller.take_queue()?;
        let built = NvmeQueue::build(controller, facts, queue, depth, counters);
        built.inspect_err(|_| controller.return_queue(queue))
    }

    fn build(
        controller: &Arc<Controller>,
        facts: Facts,
        queue: u16,
        depth: u16,
        counters: Arc<QueueCounters>,
    ) -> Result<NvmeQueue, NvmeError> {
        let capabilities = controller.capabilities();
        let most = u16::try_from(capabilities.max_queue_entries()).unwrap_or(u16::MAX).min(MOST_ENTRIES);
        let entries = depth.saturating_add(1).max(FEWEST_ENTRIES).min(most);
        let (submissions, completions) = Place::sizes(entries);
        let lists = submissions + completions;
        let bounces = (lists + u64::from(entries) * LIST_SIZE).next_multiple_of(nvme_spec::PAGE);
        let what = format!("queue {queue} of {}", controller.name());
        let memory = controller.domain().map_own(&what, bounces + u64::from(BOUNCES) * BOUNCE_SIZE)?;
        let memory = QueueMemory::new(memory);
        let place = Place {
            queue,
            entries,
            submissions: 0,
            completions: submissions,
            submission_doorbell: capabilities.doorbell(queue),
            completion_doorbell: capabilities.doorbell(queue) + capabilities.doorbell_stride(),
        };
        let epoll = sleeper(controller, queue).map_err(|cause| NvmeError::System {
            device: controller.name().to_owned(),
            what: "wait for its interrupts",
            cause,
        })?;
        let clock = Clock::new(controller.options().io_timeout);
        let generation = controller.generation();
        let mut ring = Ring::new(place);
        if let Err(error) = create(controller, facts.poll, &mut ring, &memory) {
            if controller.holds_on() {
                std::mem::forget(memory);
            }
            return Err(error);
        }
        Ok(NvmeQueue {
            facts,
            counters,
            memory: Some(memory),
            ring,
            lists,
            bounces,
            commands: (1..entries).map(|_| None).collect(),
            free_commands: (0..entries - 1).rev().collect(),
            flights: (0..depth).map(|_| None).collect(),
            free_flights: (0..depth).rev().collect(),
            waiting: VecDeque::new(),
            free_bounces: (0..BOUNCES).collect(),
            held: VecDeque::new(),
            abortions: Abortions::default(),
            generation,
            epoll,
            watched: None,
            reach: Reach::of(controller.domain().clone()),
            ended: Vec::new(),
            clock,
            polls: 0,
            strays: 0,
            controller: controller.clone(),
        })
    }

    /// Sleeps until an eventfd is written or the clock is to be looked at; returns what the eventfds say.
    fn sleep(&mut self, limit: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        let mut ready = [EpollEvent::default(); 4];
        let limit = limit.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
        let count = self.epoll.wait(limit, &mut ready)?;
        for event in &ready[..count] {
            match event.data() {
                WATCH => events.push(Event::Wake),
                REMOVAL => self.controller.give_up("the host takes it away"),
                _ => {}
            }
        }
        Ok(())
    }

    /// How long to sleep at most.
    fn limit(&self) -> Option<Duration> {
        if self.free_commands.len() == self.commands.len() {
            return None;
        }
        let queue = self.ring.place().queue;
        let rest = self.next_due().map(|due| due.saturating_duration_since(Instant::now()));
        let interrupts = self.facts.poll != Poll::On && self.controller.vector(queue).is_some();
        // The answers to abortions interrupt others.
        let limit =
            if interrupts && self.abortions.is_empty() { self.clock.tick } else { Duration::from_millis(1) };
        Some(rest.map_or(limit, |rest| limit.min(rest.max(Duration::from_millis(1)))))
    }
}

impl Engine for NvmeQueue {
    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn watch(&mut self, eventfd: &EventFd) -> io::Result<()> {
        if let Some(before) = self.watched.take() {
            self.epoll.ctl(ControlOperation::Delete, before.as_raw_fd(), EpollEvent::default())?;
        }
        let own = eventfd.try_clone()?;
        listen(&self.epoll, &own, WATCH)?;
        self.watched = Some(own);
        Ok(())
    }

    fn submit(&mut self, request: Request) {
        if let Some(range) = self.out_of_reach(&request) {
            self.report_blocked(request.operation, range);
            return self.ended.push(Flight::new(request).done(Err(DiskError::DmaBlocked)));
        }
        let index = self.free_flights.pop().expect("never more requests than the depth");
        self.flights[usize::from(index)] = Some(Flight::new(request));
        if !self.waiting.is_empty() || !self.begin(index) {
            self.waiting.push_back(index);
        }
    }

    fn cancel(&mut self) -> io::Result<()> {
        self.cancel_all();
        Ok(())
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> io::Result<()> {
        let before = events.len();
        events.append(&mut self.ended);
        loop {
            if self.generation != self.controller.generation() || self.controller.is_lost() {
                self.rejoin(events);
            }
            self.send_rested();
            self.look_at_abortions();
            self.ring.ring(self.controller.function());
            self.reap(events);
            self.ring.ring(self.controller.function());
            if patience == Patience::Poll {
                self.polls = self.polls.wrapping_add(1);
                if self.polls.is_multiple_of(EVENTFD_EVERY) {
                    self.sleep(Some(Duration::ZERO), events).or_else(passing)?;
                }
                if self.polls.is_multiple_of(CLOCK_EVERY) {
                    self.look_at_the_clock();
                }
                return Ok(());
            }
            if events.len() > before {
                return Ok(());
            }
            self.ring.acknowledge(self.controller.function());
            match self.sleep(self.limit(), events) {
                Ok(()) => self.look_at_the_clock(),
                // For the caller to see.
                Err(error) => return passing(error),
            }
        }
    }
}

impl Drop for NvmeQueue {
    fn drop(&mut self) {
        // What the controller has not been asked for is not begun any more.
        self.waiting.clear();
        for index in 0..self.flights.len() as u16 {
            let Some(flight) = &mut self.flights[usize::from(index)] else { continue };
            flight.fail(DiskError::Gone);
            if flight.open == 0 {
                self.flights[usize::from(index)] = None;
            }
        }
        let mut events = Vec::new();
        while self.flights.iter().any(Option::is_some) {
            if let Err(error) = self.advance(Patience::Wait, &mut events) {
                self.controller.recover(self.generation, &error.to_string());
            }
            events.clear();
        }
        self.settle_abortions();
        let queue = self.ring.place().queue;
        if !self.controller.is_lost() && self.generation == self.controller.generation() {
            self.controller.delete(queue);
        }
        self.controller.return_queue(queue);
        if self.controller.holds_on() {
            std::mem::forget(self.memory.take());
        }
    }
}

/// Has the controller make a queue pair, which is empty.
fn create(
    controller: &Controller,
    poll: Poll,
    ring: &mut Ring,
    memory: &QueueMemory,
) -> Result<(), NvmeError> {
    ring.clear(memory);
    let vector = match poll {
        Poll::On => None,
        Poll::Off | Poll::Adaptive => controller.vector(ring.place().queue).map(|(vector, _)| vector),
    };
    controller.create(ring.place(), |offset| memory.iova(offset), vector)
}

/// What a queue sleeps on. Edges are what counts: the eventfds are never read.
fn sleeper(controller: &Controller, queue: u16) -> io::Result<Epoll> {
    let epoll = Epoll::new()?;
    listen(&epoll, controller.removal(), REMOVAL)?;
    if let Some((_, vector)) = controller.vector(queue) {
        listen(&epoll, vector, INTERRUPT)?;
    }
    Ok(epoll)
}

fn listen(epoll: &Epoll, eventfd: &EventFd, mark: u64) -> io::Result<()> {
    let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
    epoll.ctl(ControlOperation::Add, eventfd.as_raw_fd(), EpollEvent::new(edges, mark))
}

/// A signal is no failure.
fn passing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

/// Copies `bytes` bytes by way of a small buffer: `step` gets how many are done, and the buffer for the next.
fn copy(bytes: u64, mut step: impl FnMut(u64, &mut [u8])) {
    let mut buffer = [0; 4096];
    let mut done = 0;
    while done < bytes {
        let len = (bytes - done).min(4096);
        step(done, &mut buffer[..len as usize]);
        done += len;
    }
}
