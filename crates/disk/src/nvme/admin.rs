//! The admin queues: one command at a time, each with a time-out.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::Domain;
use vmm_sys_util::eventfd::EventFd;

use super::error::NvmeError;
use super::function::{Function, QueueMemory};
use super::ring::{Place, Ring};
use super::spec::{Capabilities, Command, ControllerStatus, Meaning, PAGE, register};

/// Entries of each admin queue.
const ENTRIES: u16 = 32;

/// An interrupt that got lost costs no more than this.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The admin queues and a page for data.
pub(super) struct Admin {
    memory: QueueMemory,
    ring: Ring,
    data: u64,
    next_id: u16,
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
        Ok(Admin { memory: QueueMemory::new(memory), ring: Ring::new(place), data, next_id: 0 })
    }

    /// Empties the queues and tells a disabled controller where they are.
    pub fn install(&mut self, function: &dyn Function) {
        self.ring.clear(&self.memory);
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
        self.next_id = self.next_id.wrapping_add(1);
        let id = self.next_id;
        self.ring.push(&self.memory, &Command { id, ..*command });
        self.ring.ring(function);
        let begin = Instant::now();
        loop {
            while let Some(completion) = self.ring.pop(&self.memory) {
                self.ring.acknowledge(function);
                if completion.id == id {
                    let status = completion.status();
                    return match status.meaning() {
                        Meaning::Success => Ok(completion.result),
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
