//! Commands that are not answered in time.

use std::time::{Duration, Instant};

use super::NvmeQueue;
use super::flight::{Stage, UnderWay};
use crate::contract::Operation;
use crate::nvme::error::NvmeError;
use crate::nvme::trouble::TroubleKind;

/// Ticks in the time that a command has, and for its abortion.
const IO_TICKS: u32 = 8;
const ABORT_TICKS: u32 = 2;

/// How long a command rests at most before it is sent again.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// Counts time in ticks, so that commands need not look at a clock, and a thread that was held up does not take the
/// controller to be late.
pub(super) struct Clock {
    pub tick: Duration,
    next: Instant,
    pub now: u32,
}

impl Clock {
    pub(super) fn new(limit: Duration) -> Clock {
        let tick = (limit / IO_TICKS).clamp(Duration::from_millis(2), Duration::from_secs(60));
        Clock { tick, next: Instant::now() + tick, now: 0 }
    }

    /// How long a command rests that failed for the moment: a tick, but none that a guest would call a standstill.
    pub(super) fn rest(&self) -> Duration {
        self.tick.min(LONGEST_REST)
    }

    /// Whether a tick is over.
    pub(super) fn ticked(&mut self) -> bool {
        let now = Instant::now();
        let over = now >= self.next;
        if over {
            self.next = now + self.tick;
            self.now = self.now.wrapping_add(1);
        }
        over
    }
}

impl NvmeQueue {
    /// Puts a command aside that failed for the moment.
    pub(super) fn hold(&mut self, id: u16) {
        let due = Instant::now() + self.clock.rest();
        if let Some(command) = &mut self.commands[usize::from(id)] {
            command.stage = Stage::Held(due);
            self.held.push_back(id);
        }
    }

    /// When the next command that was put aside is to be sent again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        // All rest equally long, so the first is the next.
        match self.commands[usize::from(*self.held.front()?)].as_ref()?.stage {
            Stage::Held(due) => Some(due),
            Stage::Sent | Stage::Aborted(_) | Stage::Cancelled(_) => None,
        }
    }

    /// Sends again what has rested.
    pub(super) fn send_rested(&mut self) {
        while let Some(due) = self.next_due()
            && due <= Instant::now()
            // The answer to its abortion is still to come, and would be for what is sent now.
            && !self.held.front().is_some_and(|id| self.abortions.keeps(*id))
            && let Some(id) = self.held.pop_front()
        {
            self.push(id);
        }
    }

    /// Aborts the command that is late, and when that does not end it, resets the controller.
    pub(super) fn look_at_the_clock(&mut self) {
        if !self.clock.ticked() {
            return;
        }
        let now = self.clock.now;
        let age = |command: &UnderWay| now.wrapping_sub(command.since);
        let sent = |command: &&UnderWay| !matches!(command.stage, Stage::Held(_));
        let oldest = (0..).zip(&self.commands);
        let oldest = oldest.filter_map(|(id, command)| Some((id, command.as_ref().filter(sent)?)));
        let Some((id, command)) = oldest.max_by_key(|(_, command)| age(command)) else { return };
        let queue = self.ring.place().queue;
        if age(command) > 1
            && let Some(error) = self.controller.illness()
        {
            match error {
                NvmeError::Gone { .. } => self.controller.give_up(&error.to_string()),
                _ => self.controller.recover_if_free(self.generation, &error.to_string()),
            }
            return;
        }
        match command.stage {
            Stage::Aborted(when) if now.wrapping_sub(when) > ABORT_TICKS => {
                self.controller.recover_if_free(self.generation, "a command that was aborted did not end");
            }
            Stage::Cancelled(when) if now.wrapping_sub(when) > IO_TICKS => {
                self.controller.recover_if_free(self.generation, "a command that was cancelled did not end");
            }
            Stage::Sent if age(command) > IO_TICKS => {
                let operation =
                    self.flights[usize::from(command.flight)].as_ref().map(|f| f.request.operation);
                self.controller.report(TroubleKind::TimedOut {
                    queue,
                    operation: operation.unwrap_or(Operation::Flush),
                    after: self.controller.options().io_timeout,
                    iova: dma::Iova(command.command.dptr[0].get()),
                });
                let id: u16 = id;
                if let Some(command) = &mut self.commands[usize::from(id)] {
                    command.stage = Stage::Aborted(now);
                }
                self.abortions.want(id);
            }
            _ => {}
        }
    }
}
