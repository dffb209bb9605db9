//! Commands end: by completion, by a reset of the controller, or with it.

use dma::{Iova, IovaRange};

use super::flight::{Data, Stage};
use super::{BOUNCE_SIZE, BOUNCES, NvmeQueue, TRIES, copy, create};
use crate::contract::{Bounced, DiskError, Event, Operation, Request};
use crate::nvme::error::NvmeError;
use crate::nvme::meaning::Meaning;
use crate::nvme::trouble::{Direction, TroubleKind};
use nvme_spec::{Completion, Status};

/// Completions for commands that are not under way, until the controller is reset.
const STRAYS: u32 = 16;

impl NvmeQueue {
    /// Takes all completions that are there, but no more than there can honestly be.
    pub(super) fn reap(&mut self, events: &mut Vec<Event>) {
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

    pub(super) fn complete(&mut self, completion: &Completion, events: &mut Vec<Event>) {
        let (id, status) = (completion.cid.get(), completion.status());
        let known = self.commands.get_mut(usize::from(id)).and_then(Option::as_mut);
        let Some(command) = known.filter(|command| !matches!(command.stage, Stage::Held(_))) else {
            return self.stray(id, status);
        };
        let cancelled = matches!(command.stage, Stage::Cancelled(_));
        let result = match Meaning::of(status) {
            Meaning::Success => Ok(()),
            // Aborted, as a rule; be it for another reason, it is not asked for again.
            Meaning::Passing(_) | Meaning::Failure(DiskError::TimedOut) if cancelled => {
                Err(DiskError::Cancelled)
            }
            Meaning::Passing(_) if command.tries < TRIES => {
                command.tries += 1;
                return self.hold(id);
            }
            Meaning::Passing(error) | Meaning::Failure(error) => Err(error),
            Meaning::BlockedDma => {
                let flight = self.flights[usize::from(command.flight)].as_ref();
                let first = command.command.dptr[0].get();
                let last = first.saturating_add(command.data.bytes().saturating_sub(1));
                if let (Some(flight), Some(range)) = (flight, IovaRange::inclusive(Iova(first), Iova(last))) {
                    self.report_blocked(flight.request.operation, range);
                }
                Err(DiskError::DmaBlocked)
            }
        };
        self.end_command(id, result, events);
    }

    pub(super) fn stray(&mut self, command: u16, status: Status) {
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
    pub(super) fn out_of_reach(&mut self, request: &Request) -> Option<IovaRange> {
        if !matches!(request.operation, Operation::Read { .. } | Operation::Write { .. }) {
            return None;
        }
        let mut ranges = (0..).map_while(|piece| request.buffers.range(piece)).map(IovaRange::identity);
        ranges.find(|range| !self.reach.covers(*range))
    }

    /// Tells of a transfer that was blocked, where it began or would have begun.
    pub(super) fn report_blocked(&self, operation: Operation, range: IovaRange) {
        let direction = match operation {
            Operation::Read { .. } => Direction::ToMemory,
            _ => Direction::FromMemory,
        };
        let (iova, bytes) = (range.first(), range.len());
        self.controller.report(TroubleKind::BlockedDma { iova, bytes, direction, operation });
    }

    /// A command is done; the request is when it was the last.
    pub(super) fn end_command(&mut self, id: u16, result: Result<(), DiskError>, events: &mut Vec<Event>) {
        // The number may be one that the controller made up.
        let Some(command) = self.commands.get_mut(usize::from(id)).and_then(Option::take) else { return };
        if !self.abortions.keeps(id) {
            self.free_commands.push(id);
        }
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

    /// The controller has forgotten this queue and everything in it: makes it anew and asks for all again, or ends
    /// all when the controller is lost.
    pub(super) fn rejoin(&mut self, events: &mut Vec<Event>) {
        for _ in 0..TRIES {
            self.generation = self.controller.generation();
            if self.controller.is_lost() {
                return self.end_all(events);
            }
            let memory = self.memory.as_ref().expect("there until dropped");
            match create(&self.controller, self.facts.poll, &mut self.ring, memory) {
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

    pub(super) fn ask_again(&mut self, events: &mut Vec<Event>) {
        self.held.clear();
        self.forget_abortions();
        for id in 0..self.commands.len() as u16 {
            let Some(command) = &mut self.commands[usize::from(id)] else { continue };
            if matches!(command.stage, Stage::Cancelled(_)) {
                self.end_command(id, Err(DiskError::Cancelled), events);
            } else if command.tries >= TRIES {
                self.end_command(id, Err(DiskError::TimedOut), events);
            } else {
                command.tries += 1;
                self.push(id);
            }
        }
    }

    /// The controller is lost, and has let go of everything unless nothing could stop it.
    pub(super) fn end_all(&mut self, events: &mut Vec<Event>) {
        // What it was not told of, it is not told of any more: it might do it, if nothing could stop it.
        let memory = self.memory.as_ref().expect("there until dropped");
        while self.ring.take_back(memory).is_some() {}
        self.waiting.clear();
        self.held.clear();
        self.forget_abortions();
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
}
