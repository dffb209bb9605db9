//! A submission queue and its completion queue in memory (NVM Express Base Specification 1.4, 4.1).

use super::function::{Function, QueueMemory};
use nvme_spec::{Command, Completion, PAGE};

const COMMAND: u64 = size_of::<Command>() as u64;
const COMPLETION: u64 = size_of::<Completion>() as u64;

/// Where a queue pair lies in its memory, and which it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Number of both queues; 0 are the admin queues.
    pub queue: u16,
    /// Entries of each, 2 to 65535.
    pub entries: u16,
    /// Offset of the submission queue, on a page.
    pub submissions: u64,
    /// Offset of the completion queue, on a page.
    pub completions: u64,
    /// The submission doorbell's register.
    pub submission_doorbell: u64,
    /// The completion doorbell's register.
    pub completion_doorbell: u64,
}

/// Both queues' positions. Whoever fills the submission queue has fewer commands under way than it has entries.
pub(super) struct Ring {
    place: Place,
    tail: u16,
    /// The tail that the controller was told.
    rung: u16,
    head: u16,
    /// The head that the controller was told.
    acknowledged: u16,
    /// Entries with this phase are new.
    phase: u16,
}

impl Place {
    /// Pages of memory, in bytes, for the submission queue and then the completion queue.
    pub fn sizes(entries: u16) -> (u64, u64) {
        let pages = |bytes: u64| bytes.next_multiple_of(PAGE);
        (pages(u64::from(entries) * COMMAND), pages(u64::from(entries) * COMPLETION))
    }
}

impl Ring {
    /// An empty pair over memory whose completion entries are zero.
    pub fn new(place: Place) -> Ring {
        Ring { place, tail: 0, rung: 0, head: 0, acknowledged: 0, phase: 1 }
    }

    /// Back to the beginning, for a controller that knows nothing of these queues.
    pub fn clear(&mut self, memory: &QueueMemory) {
        memory.zero(self.place.completions, u64::from(self.place.entries) * COMPLETION);
        *self = Ring::new(self.place);
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Puts a command into the submission queue; [`Ring::ring`] tells the controller.
    pub fn push(&mut self, memory: &QueueMemory, command: &Command) {
        memory.put(self.place.submissions + u64::from(self.tail) * COMMAND, command);
        self.tail = self.after(self.tail);
    }

    /// Takes back the last command that the controller was not told of; its identifier.
    pub fn take_back(&mut self, memory: &QueueMemory) -> Option<u16> {
        if self.tail == self.rung {
            return None;
        }
        self.tail = self.tail.checked_sub(1).unwrap_or(self.place.entries - 1);
        let command: Command = memory.get(self.place.submissions + u64::from(self.tail) * COMMAND);
        Some(command.cid.get())
    }

    /// Tells the controller of all commands pushed, by one write.
    pub fn ring(&mut self, function: &dyn Function) {
        if self.tail != self.rung {
            function.write(self.place.submission_doorbell, self.tail.into());
            self.rung = self.tail;
        }
    }

    /// Takes the next completion, if there is one.
    pub fn pop(&mut self, memory: &QueueMemory) -> Option<Completion> {
        let at = self.place.completions + u64::from(self.head) * COMPLETION;
        if memory.acquire_u16(at + 14) & 1 != self.phase {
            return None;
        }
        let completion = memory.get(at);
        self.head = self.after(self.head);
        if self.head == 0 {
            self.phase ^= 1;
        }
        Some(completion)
    }

    /// Whether the controller should learn how far completions were taken before the queue runs full.
    pub fn should_acknowledge(&self) -> bool {
        let taken = (self.head + self.place.entries - self.acknowledged) % self.place.entries;
        taken >= (self.place.entries / 4).max(1)
    }

    /// Tells the controller how far completions were taken.
    pub fn acknowledge(&mut self, function: &dyn Function) {
        if self.head != self.acknowledged {
            function.write(self.place.completion_doorbell, self.head.into());
            self.acknowledged = self.head;
        }
    }

    fn after(&self, index: u16) -> u16 {
        if index + 1 == self.place.entries { 0 } else { index + 1 }
    }
}
