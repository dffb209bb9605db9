//! The engine: one queue pair of the controller for one queue of a device model.
//!
//! A request becomes one command, or several where it is longer than the controller takes or where pieces of it
//! have to be copied. Submitting writes entries to memory and, once for all of them, a doorbell; completions are
//! read from memory. The kernel is entered only to sleep.

mod flight;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::{Iova, IovaRange, Reach};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::Facts;
use super::controller::Controller;
use super::error::NvmeError;
use super::function::QueueMemory;
use super::ring::{Place, Ring};
use super::spec::{Command, Completion, DeallocateRange, Meaning, Status};
use super::transfer::{LIST_ENTRIES, LIST_SIZE, Share, pages_of, prps};
use super::trouble::{Direction, TroubleKind};
use crate::backend::{Engine, Patience};
use crate::counters::{Bounced, QueueCounters};
use crate::geometry::Sectors;
use crate::queue::Event;
use crate::request::{DiskError, Durability, Operation, Request};
use crate::spin::Poll;
use flight::{Data, Flight, UnderWay};

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

/// Ticks in the time that a command has, and for its abortion.
const PATIENCE: u32 = 8;
const GRACE: u32 = 2;

/// Completions for commands that are not under way, until the controller is reset.
const STRAYS: u32 = 16;

/// How often polling looks at eventfds and at the clock: each costs more than a look at memory.
const EVENTFD_EVERY: u32 = 32;
const CLOCK_EVERY: u32 = 1024;

const WATCH: u64 = 0;
const INTERRUPT: u64 = 1;
const REMOVAL: u64 = 2;

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
    /// The controller's generation that knows the queue.
    generation: u64,
    epoll: Epoll,
    watched: Option<EventFd>,
    /// What the controller reaches. It need not say when its DMA was blocked: what it would not reach is not begun.
    reach: Reach,
    /// Requests that were not begun.
    unreached: Vec<Event>,
    clock: Clock,
    polls: u32,
    strays: u32,
}

/// Counts time in ticks, so that commands need not look at a clock, and a thread that was held up does not take the
/// controller to be late.
struct Clock {
    tick: Duration,
    next: Instant,
    now: u32,
}

impl NvmeQueue {
    pub fn new(
        controller: Arc<Controller>,
        facts: Facts,
        depth: u16,
        counters: Arc<QueueCounters>,
    ) -> Result<NvmeQueue, NvmeError> {
        let queue = controller.take_queue()?;
        let built = NvmeQueue::build(controller.clone(), facts, queue, depth, counters);
        built.inspect_err(|_| controller.return_queue(queue))
    }

    fn build(
        controller: Arc<Controller>,
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
        let bounces = (lists + u64::from(entries) * LIST_SIZE).next_multiple_of(super::spec::PAGE);
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
        let epoll = sleeper(&controller, queue).map_err(|cause| NvmeError::System {
            device: controller.name().to_owned(),
            what: "wait for its interrupts",
            cause,
        })?;
        let clock = Clock::new(controller.options().io_timeout);
        let generation = controller.generation();
        let mut made = NvmeQueue {
            facts,
            counters,
            memory: Some(memory),
            ring: Ring::new(place),
            lists,
            bounces,
            commands: (1..entries).map(|_| None).collect(),
            free_commands: (0..entries - 1).rev().collect(),
            flights: (0..depth).map(|_| None).collect(),
            free_flights: (0..depth).rev().collect(),
            waiting: VecDeque::new(),
            free_bounces: (0..BOUNCES).collect(),
            generation,
            epoll,
            watched: None,
            reach: Reach::of(controller.domain().clone()),
            unreached: Vec::new(),
            clock,
            polls: 0,
            strays: 0,
            controller,
        };
        if let Err(error) = made.create() {
            // The number goes back to the controller's list, once.
            made.generation = u64::MAX;
            return Err(error);
        }
        Ok(made)
    }

    /// Has the controller make the queue pair.
    fn create(&mut self) -> Result<(), NvmeError> {
        let memory = self.memory.as_ref().expect("there until dropped");
        self.ring.clear(memory);
        let queue = self.ring.place().queue;
        let vector = match self.facts.poll {
            Poll::On => None,
            Poll::Off | Poll::Adaptive => self.controller.vector(queue).map(|(vector, _)| vector),
        };
        self.controller.create(self.ring.place(), |offset| memory.iova(offset), vector)
    }

    /// The controller has forgotten this queue and everything in it: makes it anew and asks for all again, or ends
    /// all when the controller is lost.
    fn rejoin(&mut self, events: &mut Vec<Event>) {
        for _ in 0..TRIES {
            self.generation = self.controller.generation();
            if self.controller.is_lost() {
                return self.end_all(events);
            }
            match self.create() {
                Ok(()) if self.generation == self.controller.generation() => return self.ask_again(events),
                Err(error @ NvmeError::Refused { .. }) => self.controller.give_up(&error.to_string()),
                // Reset once more meanwhile.
                Ok(()) | Err(_) => {}
            }
        }
        self.controller.give_up("it needs one reset after the other");
        self.generation = self.controller.generation();
        self.end_all(events);
    }

    fn ask_again(&mut self, events: &mut Vec<Event>) {
        for id in 0..self.commands.len() as u16 {
            let Some(command) = &mut self.commands[usize::from(id)] else { continue };
            if command.tries >= TRIES {
                self.end_command(id, Err(DiskError::TimedOut), events);
            } else {
                command.tries += 1;
                self.push(id);
            }
        }
    }

    /// The controller is lost, and has let go of everything unless nothing could stop it.
    fn end_all(&mut self, events: &mut Vec<Event>) {
        self.waiting.clear();
        for id in 0..self.commands.len() as u16 {
            if self.commands[usize::from(id)].take().is_some() {
                self.free_commands.push(id);
            }
        }
        self.free_bounces = (0..BOUNCES).collect();
        let holds_on = self.controller.holds_on();
        for index in 0..self.flights.len() as u16 {
            if let Some(flight) = self.flights[usize::from(index)].take() {
                if holds_on {
                    flight.request.buffers.keep_ram_for_ever();
                }
                self.free_flights.push(index);
                events.push(flight.done(Err(DiskError::Gone)));
            }
        }
    }

    /// Begins as many commands of a flight as there is room for; returns whether these were all.
    fn begin(&mut self, index: u16) -> bool {
        while let Some((command, data)) = self.next_command(index) {
            let flight = self.flights[usize::from(index)].as_mut().expect("it is under way");
            let id = self.free_commands.pop().expect("`next_command` saw that there is one");
            flight.open += 1;
            let command = self.place_data(id, index, command, data);
            self.commands[usize::from(id)] = Some(UnderWay::new(index, command, data));
            self.push(id);
        }
        self.flights[usize::from(index)].as_ref().is_none_or(Flight::is_begun)
    }

    /// The next command of a flight, if there is more and room for it.
    fn next_command(&mut self, index: u16) -> Option<(Command, Data)> {
        let flight = self.flights[usize::from(index)].as_mut()?;
        if flight.is_begun() || self.free_commands.is_empty() {
            return None;
        }
        let Facts { namespace, block, limits, .. } = self.facts;
        let blocks = |sectors: Sectors| sectors.0 * Sectors::SIZE / u64::from(block);
        let Request { operation, buffers, .. } = &flight.request;
        let (at, transfer) = match *operation {
            Operation::Flush => (Sectors(0), Some(Command::flush(namespace))),
            Operation::Discard(range) => (range.start, Some(Command::deallocate(namespace, 0))),
            Operation::WriteZeroes(range, unmap) => {
                let count = blocks(range.count) as u32;
                (range.start, Some(Command::write_zeroes(namespace, blocks(range.start), count, unmap)))
            }
            Operation::Read { at } | Operation::Write { at, .. } => (at, None),
        };
        if let Some(command) = transfer {
            flight.begun();
            return Some((command, Data::None));
        }
        let from = flight.cursor;
        let data = match from.share(buffers, &limits) {
            Share::Direct(bytes) => Data::Direct { from, bytes },
            Share::Bounced(bytes) => Data::Bounced { from, bytes, buffer: self.free_bounces.pop()? },
        };
        flight.cursor = from.advance(buffers, data.bytes());
        let (first, count) =
            (blocks(at) + from.at / u64::from(block), (data.bytes() / u64::from(block)) as u32);
        let command = match *operation {
            Operation::Write { durability, .. } => {
                Command::write(namespace, first, count, durability == Durability::Stable)
            }
            _ => Command::read(namespace, first, count),
        };
        Some((command, data))
    }

    /// Tells a command where its data is, with its list filled and data to be written copied where it must be.
    fn place_data(&self, id: u16, index: u16, command: Command, data: Data) -> Command {
        let memory = self.memory.as_ref().expect("there until dropped");
        let request = &self.flights[usize::from(index)].as_ref().expect("it is under way").request;
        let at = self.lists + u64::from(id) * LIST_SIZE;
        let mut list = [0; LIST_ENTRIES];
        let list_at = memory.iova(at);
        let (prp1, prp2, entries) = match data {
            Data::None => {
                if let Operation::Discard(range) = request.operation {
                    let block = u64::from(self.facts.block) / Sectors::SIZE;
                    let (first, blocks) = (range.start.0 / block, (range.count.0 / block) as u32);
                    memory.put(at, &DeallocateRange { attributes: 0, blocks, at: first });
                    return Command { prp1: list_at, ..command };
                }
                return command;
            }
            Data::Direct { from, bytes } => prps(from.pages(&request.buffers, bytes), list_at, &mut list),
            Data::Bounced { from, bytes, buffer } => {
                let start = self.bounces + u64::from(buffer) * BOUNCE_SIZE;
                if let Operation::Write { .. } = request.operation {
                    copy(bytes, |done, piece| {
                        request.buffers.read_at(from.at + done, piece);
                        memory.write(start + done, piece);
                    });
                }
                prps(pages_of(memory.iova(start), bytes), list_at, &mut list)
            }
        };
        if entries > 0 {
            memory.put(at, &list[..entries]);
        }
        Command { prp1, prp2, ..command }
    }

    /// Puts a command into the ring.
    fn push(&mut self, id: u16) {
        let command = self.commands[usize::from(id)].as_mut().expect("it is under way");
        command.since = self.clock.now;
        command.aborted = None;
        let entry = Command { id, ..command.command };
        self.ring.push(self.memory.as_ref().expect("there until dropped"), &entry);
    }

    /// Takes all completions that are there, but no more than there can honestly be.
    fn reap(&mut self, events: &mut Vec<Event>) {
        for _ in 0..self.ring.place().entries {
            let memory = self.memory.as_ref().expect("there until dropped");
            let Some(completion) = self.ring.pop(memory) else { break };
            self.complete(&completion, events);
        }
        while let Some(index) = self.waiting.front().copied()
            && self.begin(index)
        {
            self.waiting.pop_front();
        }
        if self.ring.should_acknowledge() {
            self.ring.acknowledge(self.controller.function());
        }
    }

    fn complete(&mut self, completion: &Completion, events: &mut Vec<Event>) {
        let (id, status) = (completion.id, completion.status());
        let Some(Some(command)) = self.commands.get_mut(usize::from(id)) else {
            return self.stray(id, status);
        };
        let result = match status.meaning() {
            Meaning::Success => Ok(()),
            Meaning::Passing(_) if command.tries < TRIES => {
                command.tries += 1;
                return self.push(id);
            }
            Meaning::Passing(error) | Meaning::Failure(error) => Err(error),
            Meaning::BlockedDma => {
                let begins = IovaRange::inclusive(
                    Iova(command.command.prp1),
                    Iova(command.command.prp1.saturating_add(command.data.bytes().saturating_sub(1))),
                );
                let flight = self.flights[usize::from(command.flight)].as_ref();
                if let (Some(range), Some(flight)) = (begins, flight) {
                    self.report_blocked(flight.request.operation, range);
                }
                Err(DiskError::DmaBlocked)
            }
        };
        self.end_command(id, result, events);
    }

    fn stray(&mut self, command: u16, status: Status) {
        self.strays += 1;
        if self.strays > STRAYS {
            self.strays = 0;
            return self.controller.recover(self.generation, "it completes commands that are not under way");
        }
        self.controller.report(TroubleKind::StrayCompletion {
            queue: self.ring.place().queue,
            command,
            status,
        });
    }

    /// The first piece of a transfer's memory that the controller does not reach.
    fn out_of_reach(&mut self, request: &Request) -> Option<IovaRange> {
        if !matches!(request.operation, Operation::Read { .. } | Operation::Write { .. }) {
            return None;
        }
        let ranges = (0..).map_while(|piece| request.buffers.range(piece)).map(IovaRange::identity);
        ranges.into_iter().find(|range| !self.reach.covers(*range))
    }

    /// Tells of a transfer that was blocked, where it began or would have begun.
    fn report_blocked(&self, operation: Operation, range: IovaRange) {
        let direction = match operation {
            Operation::Read { .. } => Direction::ToMemory,
            _ => Direction::FromMemory,
        };
        let (iova, bytes) = (range.first(), range.len());
        self.controller.report(TroubleKind::BlockedDma { iova, bytes, direction, operation });
    }

    /// A command is done; the request is when it was the last.
    fn end_command(&mut self, id: u16, result: Result<(), DiskError>, events: &mut Vec<Event>) {
        let Some(command) = self.commands[usize::from(id)].take() else { return };
        self.free_commands.push(id);
        let flight = self.flights[usize::from(command.flight)].as_mut().expect("its command was under way");
        flight.open -= 1;
        let reading = matches!(flight.request.operation, Operation::Read { .. });
        match (command.data, result) {
            (Data::Bounced { from, bytes, buffer }, Ok(())) => {
                if reading {
                    let memory = self.memory.as_ref().expect("there until dropped");
                    let start = self.bounces + u64::from(buffer) * BOUNCE_SIZE;
                    copy(bytes, |done, piece| {
                        memory.read(start + done, piece);
                        flight.request.buffers.write_at(from.at + done, piece);
                    });
                }
                self.counters.moved(bytes, Some(Bounced::Alignment));
            }
            (Data::Direct { bytes, .. }, Ok(())) => self.counters.moved(bytes, None),
            (Data::None, Ok(())) => {}
            (_, Err(error)) => {
                flight.fail(error);
                self.waiting.retain(|index| *index != command.flight);
            }
        }
        if let Data::Bounced { buffer, .. } = command.data {
            self.free_bounces.push(buffer);
        }
        if flight.open == 0 && flight.is_begun() {
            let flight = self.flights[usize::from(command.flight)].take().expect("seen above");
            self.free_flights.push(command.flight);
            let result = flight.result();
            events.push(flight.done(result));
        }
    }

    /// Aborts the command that is late, and when that does not end it, resets the controller.
    fn look_at_the_clock(&mut self) {
        if !self.clock.ticked() {
            return;
        }
        let now = self.clock.now;
        let age = |command: &UnderWay| now.wrapping_sub(command.since);
        let oldest = (0..).zip(&self.commands).filter_map(|(id, command)| Some((id, command.as_ref()?)));
        let Some((id, command)) = oldest.max_by_key(|(_, command)| age(command)) else { return };
        let queue = self.ring.place().queue;
        if age(command) > 1
            && let Some(error) = self.controller.illness()
        {
            match error {
                NvmeError::Gone { .. } => self.controller.give_up(&error.to_string()),
                _ => self.controller.recover(self.generation, &error.to_string()),
            }
            return;
        }
        match command.aborted {
            Some(when) if now.wrapping_sub(when) > GRACE => {
                self.controller.recover(self.generation, "a command that was aborted did not end");
            }
            Some(_) => {}
            None if age(command) > PATIENCE => {
                let operation =
                    self.flights[usize::from(command.flight)].as_ref().map(|f| f.request.operation);
                self.controller.report(TroubleKind::TimedOut {
                    queue,
                    operation: operation.unwrap_or(Operation::Flush),
                    after: self.controller.options().io_timeout,
                    iova: dma::Iova(command.command.prp1),
                });
                let id: u16 = id;
                if let Some(command) = &mut self.commands[usize::from(id)] {
                    command.aborted = Some(now);
                }
                // A controller that does not even abort in time has been reset by this call.
                if let Err(error @ NvmeError::Refused { .. }) =
                    self.controller.run("abort a command", &Command::abort(queue, id))
                {
                    self.controller.recover(self.generation, &error.to_string());
                }
            }
            None => {}
        }
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
        let interrupts = self.facts.poll != Poll::On && self.controller.vector(queue).is_some();
        Some(if interrupts { self.clock.tick } else { Duration::from_millis(1) })
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
            return self.unreached.push(Flight::new(request).done(Err(DiskError::DmaBlocked)));
        }
        let index = self.free_flights.pop().expect("never more requests than the depth");
        self.flights[usize::from(index)] = Some(Flight::new(request));
        if !self.waiting.is_empty() || !self.begin(index) {
            self.waiting.push_back(index);
        }
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> io::Result<()> {
        let before = events.len();
        events.append(&mut self.unreached);
        loop {
            if self.generation != self.controller.generation() || self.controller.is_lost() {
                self.rejoin(events);
            }
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
        if self.generation == u64::MAX {
            return;
        }
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

impl Clock {
    fn new(limit: Duration) -> Clock {
        let tick = (limit / PATIENCE).clamp(Duration::from_millis(2), Duration::from_secs(60));
        Clock { tick, next: Instant::now() + tick, now: 0 }
    }

    /// Whether a tick is over.
    fn ticked(&mut self) -> bool {
        let now = Instant::now();
        let over = now >= self.next;
        if over {
            self.next = now + self.tick;
            self.now = self.now.wrapping_add(1);
        }
        over
    }
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
