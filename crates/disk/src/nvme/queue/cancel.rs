//! Requests that nobody wants any more.

use super::NvmeQueue;
use super::flight::Stage;
use crate::contract::DiskError;

impl NvmeQueue {
    /// Ends at once what is not with the controller, and asks the controller to abort the rest. A command that it does
    /// not abort ends as it would have, but is not asked for again.
    pub(super) fn cancel_all(&mut self) {
        let mut ended = std::mem::take(&mut self.ended);
        for index in std::mem::take(&mut self.waiting) {
            let Some(flight) = &mut self.flights[usize::from(index)] else { continue };
            flight.fail(DiskError::Cancelled);
            if flight.open == 0
                && let Some(flight) = self.flights[usize::from(index)].take()
            {
                self.free_flights.push(index);
                ended.push(flight.done(Err(DiskError::Cancelled)));
            }
        }
        while let Some(id) = self.take_back() {
            self.end_command(id, Err(DiskError::Cancelled), &mut ended);
        }
        self.ended = ended;
        self.abort_sent();
    }

    /// The next command that the controller has not been told of, or that it is to be sent once more.
    fn take_back(&mut self) -> Option<u16> {
        let memory = self.memory.as_ref().expect("there until dropped");
        self.ring.take_back(memory).or_else(|| self.held.pop_front())
    }

    fn abort_sent(&mut self) {
        let now = self.clock.now;
        for (id, command) in (0..).zip(&mut self.commands) {
            if let Some(command) = command
                && matches!(command.stage, Stage::Sent | Stage::Aborted(_))
            {
                command.stage = Stage::Cancelled(now);
                self.abortions.want(id);
            }
        }
        self.look_at_abortions();
    }
}
