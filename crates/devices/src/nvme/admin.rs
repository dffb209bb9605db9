//! Admin commands (5).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use memory::{Buffers, Gpa};
use zerocopy::IntoBytes;

use super::abort::Wish;
use super::completion::{Answer, CompletionQueue};
use super::controller::{Live, MAX_ABORTS, MAX_EVENT_REQUESTS};
use super::data;
use super::doorbells::Shadow;
use super::identify;
use super::io::{IoQueue, Setup};
use super::registers::MAX_ENTRIES;
use super::ring::SubmissionQueue;
use super::spec::{Command, PAGE, Status, admin, feature, log_page};
use crate::durability::flush;

/// All namespaces at once.
pub(super) const BROADCAST: u32 = 0xffff_ffff;

/// Features that are only remembered, and those of the controller's thread.
#[derive(Clone, Copy)]
pub(super) struct Features {
    arbitration: u32,
    /// Over and under, for the one sensor (in Kelvin).
    temperature: [u16; 2],
    error_recovery: u32,
    atomicity: u32,
    /// Which events the driver wants to hear of.
    pub(super) events: u32,
}

impl Default for Features {
    fn default() -> Features {
        Features { arbitration: 7, temperature: [0x0157, 0], error_recovery: 0, atomicity: 0, events: 0 }
    }
}

/// What became of a command: a status, and dword 0 of the completion.
type Outcome = Result<u32, Status>;

impl Live {
    /// Executes a command. `None` when its answer comes later.
    pub(super) fn execute(&mut self, command: &Command) -> Option<Answer> {
        let cid = command.cid.get();
        let outcome = match command.opcode {
            // No fused operations, and data by PRPs only (figure 104).
            _ if command.flags != 0 => Err(Status::INVALID_FIELD),
            admin::DELETE_SQ => self.delete_sq(command),
            admin::CREATE_SQ => self.create_sq(command),
            admin::GET_LOG_PAGE => self.get_log_page(command),
            admin::DELETE_CQ => self.delete_cq(command),
            admin::CREATE_CQ => self.create_cq(command),
            admin::IDENTIFY => self.identify(command),
            admin::ABORT => match self.abort(command) {
                Ok(Some(result)) => Ok(result),
                Ok(None) => return None,
                Err(status) => Err(status),
            },
            admin::SET_FEATURES => self.set_features(command),
            admin::GET_FEATURES => self.get_features(command),
            admin::ASYNC_EVENT => {
                if self.event_requests.len() < MAX_EVENT_REQUESTS {
                    self.event_requests.push(cid);
                    return None;
                }
                Err(Status::ASYNC_EVENT_LIMIT)
            }
            admin::DOORBELL_BUFFER => self.set_doorbell_buffer(command),
            _ => Err(Status::INVALID_OPCODE),
        };
        Some(match outcome {
            Ok(result) => Answer { cid, status: Status::SUCCESS, result },
            Err(status) => Answer { cid, status, result: 0 },
        })
    }

    /// Writes an answer's data; what it is shorter than `len` is zeroes.
    fn reply(&self, command: &Command, bytes: &[u8], len: u64) -> Result<(), Status> {
        if len > data::MAX_TRANSFER {
            return Err(Status::INVALID_FIELD);
        }
        let mut buffers = Buffers::new(self.shared.ram.clone());
        data::gather(command, len, &self.shared.ram, &mut buffers)?;
        let mut done = buffers.write(bytes) as u64;
        while done < len {
            done += buffers.write_at(done, &[0; 512]) as u64;
        }
        Ok(())
    }

    fn queue_id(&self, id: u16) -> Result<u16, Status> {
        if id == 0 || id >= self.shared.doorbells.count() { Err(Status::QUEUE_ID) } else { Ok(id) }
    }

    /// The size and place that a command gives a new queue.
    fn queue_place(&self, command: &Command) -> Result<(u32, Gpa), Status> {
        let entries = (command.cdw10.get() >> 16) + 1;
        if !(2..=MAX_ENTRIES).contains(&entries) {
            return Err(Status::QUEUE_SIZE);
        }
        let at = command.dptr[0].get();
        // Contiguous queues only (CAP.CQR).
        if command.cdw11.get() & 1 == 0 || !self.shared.registers.entry_sizes_fit() {
            return Err(Status::INVALID_FIELD);
        }
        if at.is_multiple_of(PAGE) { Ok((entries, Gpa(at))) } else { Err(Status::PRP_OFFSET) }
    }

    fn create_cq(&mut self, command: &Command) -> Outcome {
        let id = self.queue_id(command.cdw10.get() as u16)?;
        let mut queues = self.shared.completion_queues.lock();
        if queues.contains_key(&id) {
            return Err(Status::QUEUE_ID);
        }
        let (entries, at) = self.queue_place(command)?;
        let vector = (command.cdw11.get() >> 16) as u16;
        let wants_interrupts = command.cdw11.get() & 2 != 0;
        if vector >= self.shared.interrupts.vectors() {
            return Err(Status::INTERRUPT_VECTOR);
        }
        if wants_interrupts && let Err(why) = self.shared.interrupts.route(vector) {
            self.shared.report(&why);
            return Err(Status::INTERNAL_ERROR);
        }
        let context = Live::context(&self.shared).map_err(|_| Status::INTERNAL_ERROR)?;
        let queue = CompletionQueue::new(
            id,
            &self.shared.ram,
            at,
            entries,
            wants_interrupts.then_some(vector),
            context,
        )
        .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        self.shared.doorbells.open_cq(id, entries);
        queues.insert(id, Arc::new(queue));
        Ok(0)
    }

    fn delete_cq(&mut self, command: &Command) -> Outcome {
        let id = self.queue_id(command.cdw10.get() as u16)?;
        if self.queues.values().any(|queue| queue.completions() == id) {
            return Err(Status::QUEUE_DELETION);
        }
        if self.shared.completion_queues.lock().remove(&id).is_none() {
            return Err(Status::QUEUE_ID);
        }
        self.shared.doorbells.close_cq(id);
        self.shared.interrupts.set_pin(id, || false);
        Ok(0)
    }

    fn create_sq(&mut self, command: &Command) -> Outcome {
        let id = self.queue_id(command.cdw10.get() as u16)?;
        if self.queues.contains_key(&id) {
            return Err(Status::QUEUE_ID);
        }
        let (entries, at) = self.queue_place(command)?;
        let completions = (command.cdw11.get() >> 16) as u16;
        let completions = match completions {
            0 => None,
            id => self.shared.completion_queues.lock().get(&id).cloned(),
        };
        let completions = completions.ok_or(Status::CQ_INVALID)?;
        self.shared.doorbells.open_sq(id, entries);
        let started = self.start_queue(id, at, entries, completions);
        match started {
            Ok(queue) => {
                self.queues.insert(id, queue);
                if self.shared.doorbells.shadow().1.is_some() {
                    self.wire(id);
                }
                Ok(0)
            }
            Err(status) => {
                self.shared.doorbells.close_sq(id);
                Err(status)
            }
        }
    }

    fn start_queue(
        &self,
        id: u16,
        at: Gpa,
        entries: u32,
        completions: Arc<CompletionQueue>,
    ) -> Result<IoQueue, Status> {
        let shared = &self.shared;
        let (doorbells, gate) = (shared.doorbells.clone(), shared.gate.clone());
        let queue = SubmissionQueue::new(id, &shared.ram, at, entries, doorbells, gate)
            .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        IoQueue::start(shared, Setup { id, queue, completions }).map_err(|why| {
            shared.report(&format_args!("queue {id} cannot start: {why}"));
            Status::INTERNAL_ERROR
        })
    }

    fn delete_sq(&mut self, command: &Command) -> Outcome {
        let id = self.queue_id(command.cdw10.get() as u16)?;
        let queue = self.queues.remove(&id).ok_or(Status::QUEUE_ID)?;
        if let Err(why) = self.shared.ioeventfds.remove(id) {
            self.shared.report(&why);
        }
        // While this thread waits it sends no interrupts that were held back. So none is: whoever has not seen the 0
        // has held the lock of its completion queue before, and is sent for.
        let coalescing = self.shared.interrupts.coalescing();
        self.shared.interrupts.set_coalescing(0);
        self.send_all_held();
        self.pass.outside(|| queue.finish());
        self.shared.interrupts.set_coalescing(coalescing);
        self.shared.doorbells.close_sq(id);
        Ok(0)
    }

    fn send_all_held(&self) {
        self.shared.completion_queues.lock().values().for_each(|queue| queue.send_held());
    }

    /// A doorbell without its wire serves as well, more slowly.
    fn wire(&self, id: u16) {
        if let Err(why) = self.shared.ioeventfds.add(id) {
            self.shared.report(&why);
        }
    }

    /// Takes back asynchronous event requests, and asks queues for other commands: `None` when a queue answers.
    fn abort(&mut self, command: &Command) -> Result<Option<u32>, Status> {
        let (sq, cid) = (command.cdw10.get() as u16, (command.cdw10.get() >> 16) as u16);
        if sq == 0
            && let Some(at) = self.event_requests.iter().position(|waiting| *waiting == cid)
        {
            self.event_requests.remove(at);
            self.answer_first(Answer { cid, status: Status::ABORT_REQUESTED, result: 0 });
            return Ok(Some(0));
        }
        let Some(queue) = self.queues.get(&sq) else { return Ok(Some(1)) };
        if self.aborts == MAX_ABORTS {
            return Err(Status::ABORT_LIMIT);
        }
        self.aborts += 1;
        queue.abort(Wish { cid, abort: command.cid.get() });
        Ok(None)
    }

    /// Doorbell buffer config (5.8).
    fn set_doorbell_buffer(&mut self, command: &Command) -> Outcome {
        let (doorbells, events) = (command.dptr[0].get(), command.dptr[1].get());
        if !doorbells.is_multiple_of(PAGE) || !events.is_multiple_of(PAGE) || doorbells == events {
            return Err(Status::INVALID_FIELD);
        }
        let shadow =
            Shadow::new(&self.shared.ram, Gpa(doorbells), Gpa(events)).map_err(|_| Status::INVALID_FIELD)?;
        self.shared.doorbells.set_shadow(Some(Arc::new(shadow)));
        self.queues.keys().for_each(|id| self.wire(*id));
        Ok(0)
    }

    fn identify(&self, command: &Command) -> Outcome {
        let page = identify::page(&self.shared, command)?;
        self.reply(command, &page, PAGE)?;
        Ok(0)
    }

    fn get_log_page(&self, command: &Command) -> Outcome {
        let (cdw10, cdw11) = (command.cdw10.get(), command.cdw11.get());
        let retain = cdw10 & 1 << 15 != 0;
        let dwords = u64::from(cdw11 & 0xffff) << 16 | u64::from(cdw10 >> 16);
        let len = (dwords + 1) * 4;
        let offset = u64::from(command.cdw13.get()) << 32 | u64::from(command.cdw12.get());
        let shared = &self.shared;
        let page = cdw10 as u8;
        let bytes = match page {
            log_page::SUPPORTED => identify::supported_log_pages(),
            log_page::ERROR => shared.log.lock().errors(),
            log_page::HEALTH => {
                if !matches!(command.nsid.get(), 0 | BROADCAST) {
                    // For the controller only (LPA, bit 0).
                    return Err(Status::INVALID_FIELD);
                }
                let counters = shared.namespaces.iter().map(|namespace| namespace.disk.counters());
                shared.log.lock().health(counters).as_bytes().to_vec()
            }
            log_page::FIRMWARE => identify::firmware_slots(),
            log_page::CHANGED_NAMESPACES => shared.log.lock().take_changed(!retain),
            log_page::COMMANDS => identify::commands(),
            _ => return Err(Status::LOG_PAGE),
        };
        if offset % 4 != 0 || offset > bytes.len() as u64 {
            return Err(Status::INVALID_FIELD);
        }
        self.reply(command, &bytes[offset as usize..][..len.min(bytes.len() as u64 - offset) as usize], len)?;
        if !retain {
            shared.events.read(page);
        }
        Ok(0)
    }

    fn get_features(&self, command: &Command) -> Outcome {
        let (id, select) = (command.cdw10.get() as u8, command.cdw10.get() >> 8 & 7);
        let value = match select {
            0 => self.feature(id, command.cdw11.get())?,
            // Defaults; nothing is saved, so the saved values are the same.
            1 | 2 => default_feature(self, id)?,
            // Whether it can be changed; none is saveable, none is a namespace's own.
            3 => {
                default_feature(self, id)?;
                if matches!(id, feature::POWER_MANAGEMENT | feature::QUEUES) { 0 } else { 4 }
            }
            _ => return Err(Status::INVALID_FIELD),
        };
        Ok(value)
    }

    fn feature(&self, id: u8, cdw11: u32) -> Outcome {
        let shared = &self.shared;
        Ok(match id {
            feature::ARBITRATION => self.features.arbitration,
            feature::POWER_MANAGEMENT => 0,
            feature::TEMPERATURE => {
                let kind = temperature_kind(cdw11)?;
                u32::from(self.features.temperature[kind])
            }
            feature::ERROR_RECOVERY => self.features.error_recovery,
            feature::WRITE_CACHE if identify::has_cache(shared) => {
                u32::from(shared.write_cache.load(Ordering::Relaxed))
            }
            feature::QUEUES => queues(self),
            feature::COALESCING => shared.interrupts.coalescing(),
            feature::VECTOR => {
                let vector = cdw11 as u16;
                let prompt = shared.interrupts.prompt(vector).ok_or(Status::INVALID_FIELD)?;
                u32::from(prompt.load(Ordering::Relaxed)) << 16 | u32::from(vector)
            }
            feature::ATOMICITY => self.features.atomicity,
            feature::ASYNC_EVENT => self.features.events,
            _ => return Err(Status::INVALID_FIELD),
        })
    }

    fn set_features(&mut self, command: &Command) -> Outcome {
        let (id, value) = (command.cdw10.get() as u8, command.cdw11.get());
        if command.cdw10.get() >> 31 != 0 {
            return Err(Status::NOT_SAVEABLE);
        }
        let features = &mut self.features;
        match id {
            feature::WRITE_CACHE if identify::has_cache(&self.shared) => {
                self.set_write_cache(value & 1 != 0)?;
            }
            feature::ARBITRATION => features.arbitration = value & 0xffff_ff07,
            // There is one power state.
            feature::POWER_MANAGEMENT if value & 0x1f == 0 => {}
            feature::TEMPERATURE => features.temperature[temperature_kind(value)?] = value as u16,
            feature::ERROR_RECOVERY => features.error_recovery = value & 0xffff,
            feature::QUEUES => {
                if value & 0xffff == 0xffff || value >> 16 == 0xffff {
                    return Err(Status::INVALID_FIELD);
                }
                // The number cannot change once there are queues (5.21.1.7).
                if !self.queues.is_empty() || self.shared.completion_queues.lock().len() > 1 {
                    return Err(Status::SEQUENCE_ERROR);
                }
                return Ok(queues(self));
            }
            feature::COALESCING => {
                self.shared.interrupts.set_coalescing(value);
                self.send_all_held();
            }
            feature::VECTOR => {
                let prompt = self.shared.interrupts.prompt(value as u16).ok_or(Status::INVALID_FIELD)?;
                prompt.store(value & 1 << 16 != 0, Ordering::Relaxed);
                self.send_all_held();
            }
            feature::ATOMICITY => features.atomicity = value & 1,
            feature::ASYNC_EVENT => features.events = value & identify::EVENTS,
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }
}

impl Live {
    /// Feature 06h (5.21.1.6). When the cache is switched off, what it holds goes to stable storage first. Writes that end
    /// meanwhile are flushed by their queues.
    fn set_write_cache(&self, on: bool) -> Result<(), Status> {
        let shared = &self.shared;
        let was_on = shared.write_cache.swap(on, Ordering::SeqCst);
        if on || !was_on {
            return Ok(());
        }
        for namespace in shared.namespaces.iter().filter(|namespace| namespace.caches()) {
            if let Err(why) = self.pass.outside(|| flush(&namespace.disk)) {
                shared.write_cache.store(true, Ordering::SeqCst);
                shared.report(&format_args!(
                    "disk {}: the flush failed with which the guest's write cache is switched off: {why}. The cache stays on.",
                    namespace.disk.name()
                ));
                return Err(Status::INTERNAL_ERROR);
            }
        }
        Ok(())
    }
}

/// Which threshold of the one sensor a command means: over or under.
fn temperature_kind(cdw11: u32) -> Result<usize, Status> {
    // The composite temperature, or (when setting) all sensors.
    let (sensor, kind) = (cdw11 >> 16 & 0xf, cdw11 >> 20 & 3);
    if matches!(sensor, 0 | 0xf) && kind < 2 { Ok(kind as usize) } else { Err(Status::INVALID_FIELD) }
}

/// How many I/O queues there may be, of both kinds, 0's based.
fn queues(live: &Live) -> u32 {
    let count = u32::from(live.shared.doorbells.count()) - 2;
    count << 16 | count
}

fn default_feature(live: &Live, id: u8) -> Outcome {
    let features = Features::default();
    Ok(match id {
        feature::ARBITRATION => features.arbitration,
        feature::TEMPERATURE => features.temperature[0].into(),
        feature::WRITE_CACHE if identify::has_cache(&live.shared) => 1,
        feature::QUEUES => queues(live),
        feature::POWER_MANAGEMENT
        | feature::ERROR_RECOVERY
        | feature::COALESCING
        | feature::VECTOR
        | feature::ATOMICITY
        | feature::ASYNC_EVENT => 0,
        _ => return Err(Status::INVALID_FIELD),
    })
}
