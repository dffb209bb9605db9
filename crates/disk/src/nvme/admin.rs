//! The admin queues: one command at a time, each with a time-out; and abortions, which nobody waits for.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::Domain;
use vmm_sys_util::eventfd::EventFd;

use super::error::NvmeError;
use super::function::{Function, QueueMemory};
use super::meaning::Meaning;
use super::ring::{Place, Ring};
use nvme_spec::{Capabilities, Command, Completion, ControllerStatus, PAGE, register};

/// Entries of each admin queue.
const ENTRIES: u16 = 32;

/// Abortions that are under way at most: more than these few, many controllers refuse (ACL, identify controller).
const ABORTIONS: usize = 4;

/// An interrupt that got lost costs no more than this.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The admin queues and a page for data.
pub(super) struct Admin {
    memory: QueueMemory,
    ring: Ring,
    data: u64,
    next_id: u16,
    /// Abortions that are asked for and not answered.
    abortions: Vec<Abortion>,
}

struct Abortion {
    /// The identifier of the admin command.
    id: u16,
    of: Target,
    since: Instant,
}

/// A command of an I/O queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub queue: u16,
    pub id: u16,
}

impl Admin {
    pub fn new(device: &str, domain: &Arc<Domain>, capabilities: Capabilities) -> Result<Admin, NvmeError> {
        let (submissions, completions) = Place::sizes(ENTRIES);
        let data = submissions + completions;
        let memory = domain.map_own(&format!("admin queues of {device}"), data + PAGE)?;
        let place = Place {
            queue: 0,
            entries: ENTRIES,
            submissions: 0,
            completions: submissions,
            submission_doorbell: capabilities.doorbell(0),
            completion_doorbell: capabilities.doorbell(0) + capabilities.doorbell_stride(),
        };
        let memory = QueueMemory::new(memory);
        Ok(Admin { memory, ring: Ring::new(place), data, next_id: 0, abortions: Vec::new() })
    }

    /// Empties the queues and tells a disabled controller where they are.
    pub fn install(&mut self, function: &dyn Function) {
        self.ring.clear(&self.memory);
        self.abortions.clear();
        let size = u32::from(ENTRIES) - 1;
        function.write(register::AQA, size << 16 | size);
        for (at, offset) in
            [(register::ASQ, self.ring.place().submissions), (register::ACQ, self.ring.place().completions)]
        {
            let iova = self.memory.iova(offset);
            function.write(at, iova as u32);
            function.write(at + 4, (iova >> 32) as u32);
        }
    }

    /// Where a command puts or finds its page of data.
    pub fn page(&self) -> u64 {
        self.memory.iova(self.data)
    }

    /// What the last command put there.
    pub fn data(&self) -> Box<[u8; PAGE as usize]> {
        let mut data = Box::new([0; PAGE as usize]);
        self.memory.read(self.data, &mut data[..]);
        data
    }

    /// Runs one command and returns its result. `what` is it as a verb phrase. After a time-out the command is
    /// still the controller's; reset it.
    pub fn run(
        &mut self,
        function: &dyn Function,
        interrupt: &EventFd,
        limit: Duration,
        what: &'static str,
        command: &Command,
    ) -> Result<u32, NvmeError> {
        let device = || function.name().to_owned();
        let id = self.send(function, command);
        let begin = Instant::now();
        loop {
            for _ in 0..ENTRIES {
                let Some(completion) = self.take_completion(function) else { break };
                if completion.cid.get() == id {
                    let status = completion.status();
                    return match Meaning::of(status) {
                        Meaning::Success => Ok(completion.result.get()),
                        _ => Err(NvmeError::Refused { device: device(), what, status }),
                    };
                }
            }
            let status = ControllerStatus(function.read(register::CSTS));
            if status.is_gone() {
                return Err(NvmeError::Gone { device: device() });
            }
            if status.is_fatal() {
                return Err(NvmeError::Fatal { device: device(), what });
            }
            if begin.elapsed() >= limit {
                return Err(NvmeError::TimedOut { device: device(), what, after: limit });
            }
            sleep_until(interrupt, LOOK_AGAIN.min(limit));
        }
    }

    /// Asks for a command to be aborted. `false` when there are as many abortions under way as may be.
    pub fn abort(&mut self, function: &dyn Function, of: Target) -> bool {
        self.take_answers(function);
        let room = self.abortions.len() < ABORTIONS;
        if room {
            let id = self.send(function, &Command::abort(of.queue, of.id));
            self.abortions.push(Abortion { id, of, since: Instant::now() });
        }
        room
    }

    /// Whether an abortion is not answered in this time.
    pub fn is_late(&self, limit: Duration) -> bool {
        self.abortions.iter().any(|abortion| abortion.since.elapsed() > limit)
    }

    /// Whether the abortion of a command is not answered yet.
    pub fn is_aborting(&mut self, function: &dyn Function, of: Target) -> bool {
        self.take_answers(function);
        self.abortions.iter().any(|abortion| abortion.of == of)
    }

    fn send(&mut self, function: &dyn Function, command: &Command) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.ring.push(&self.memory, &Command { cid: self.next_id.into(), ..*command });
        self.ring.ring(function);
        self.next_id
    }

    fn take_completion(&mut self, function: &dyn Function) -> Option<Completion> {
        let completion = self.ring.pop(&self.memory)?;
        self.ring.acknowledge(function);
        self.abortions.retain(|abortion| abortion.id != completion.cid.get());
        Some(completion)
    }

    /// Takes the answers to abortions. What they say does not matter: a command that goes on has the controller reset.
    fn take_answers(&mut self, function: &dyn Function) {
        for _ in 0..ENTRIES {
            if self.take_completion(function).is_none() {
                return;
            }
        }
    }

    /// Keeps the memory for ever: the controller may still write to it.
    pub fn forget(self) {
        std::mem::forget(self.memory);
    }
}

/// Sleeps until the eventfd is written, or for so long.
fn sleep_until(eventfd: &EventFd, limit: Duration) {
    let mut poll = libc::pollfd { fd: eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, valid for the call.
    unsafe { libc::poll(&raw mut poll, 1, limit.as_millis().max(1) as libc::c_int) };
    // Empties it for the next sleep; there is nothing to do when it was empty.
    eventfd.read().ok();
}
