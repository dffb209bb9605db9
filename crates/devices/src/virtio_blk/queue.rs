//! The thread of one queue.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use disk::{Disk, DiskQueue, Durability, Event, Operation, PreparedQueue, WriteCache};
use memory::{Buffers, Gpa, GpaRange, OutsideRam};
use pci::Pass;
use virtio::{Chain, Head, Interrupt, Malformed, Queue, QueueSetup, Stop};

use super::feature;
use super::request::{Command, NoRequest, Request, SERIAL_LENGTH, Status};
use crate::aside::{self, Obedient, Then};
use crate::stock::{Lent, Stock};

/// What ends a queue before its driver does.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(transparent)]
    Chain(#[from] Malformed),
    #[error(transparent)]
    Request(#[from] NoRequest),
    #[error(transparent)]
    Status(#[from] OutsideRam),
    #[error(transparent)]
    Disk(#[from] disk::WaitError),
}

/// A request under way: where its answer goes.
struct Slot {
    to: To,
    /// Where the disk may write.
    written: Option<GpaRange>,
    lent: Lent,
}

/// Where the answer to a chain goes.
struct To {
    head: Head,
    status: Gpa,
}

/// One queue of the device, on its thread. Nothing on the way of a request allocates or locks: requests under
/// way have numbered slots, and the buffers go round.
pub(super) struct BlockQueue {
    queue: Queue,
    interrupt: Interrupt,
    disk: DiskQueue,
    chain: Chain,
    slots: Vec<Option<Slot>>,
    free: Vec<u16>,
    stock: Stock,
    events: Vec<Event>,
    serial: [u8; SERIAL_LENGTH],
    cache: Cache,
    stop: Stop,
}

/// How a round of taking chains ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    /// There was no further chain.
    Empty,
    /// As many as the queue is long were taken; there may be more.
    Full,
    /// There may be more, but no room for their lists.
    NoRoom,
}

/// Whether writes must be on stable storage when they complete.
struct Cache {
    /// The disk has no volatile cache: nothing to do.
    disk: WriteCache,
    /// The driver can flush.
    flush: bool,
    /// The driver wants a cache.
    write_back: Arc<AtomicBool>,
}

impl Cache {
    fn durability(&self) -> Durability {
        let cached =
            self.disk == WriteCache::WriteThrough || self.flush && self.write_back.load(Ordering::Relaxed);
        if cached { Durability::Cached } else { Durability::Stable }
    }

    /// Whether what is done is not on stable storage yet and should be: zeroes, and writes during which the driver has
    /// switched the cache off. Other writes are that by themselves when they complete.
    fn flush_after(&self, operation: Operation) -> bool {
        let unsure = matches!(
            operation,
            Operation::WriteZeroes(..) | Operation::Write { durability: Durability::Cached, .. }
        );
        unsure && self.durability() == Durability::Stable
    }
}

impl BlockQueue {
    /// Serves the queue until it is asked to stop or breaks. Everything under way is waited for before this
    /// returns.
    pub(super) fn run(
        setup: QueueSetup,
        prepared: PreparedQueue,
        disk: &Disk,
        stock: Stock,
        serial: [u8; SERIAL_LENGTH],
        write_back: Arc<AtomicBool>,
        stop: Stop,
    ) {
        let QueueSetup { queue, kick, interrupt, features, pass, .. } = setup;
        let started = prepared.start().and_then(|mut started| {
            started.watch(&kick)?;
            Ok(started)
        });
        let started = match started {
            Ok(started) => started,
            Err(why) => return interrupt.host_failed(&why),
        };
        let size = queue.size();
        let mut served = BlockQueue {
            stock,
            slots: (0..size).map(|_| None).collect(),
            free: (0..size).rev().collect(),
            chain: Chain::new(),
            events: Vec::new(),
            serial,
            cache: Cache {
                disk: disk.geometry().write_cache,
                flush: features.contains(feature::FLUSH),
                write_back,
            },
            disk: started,
            interrupt,
            queue,
            stop,
        };
        match served.serve(&pass) {
            Ok(()) => {}
            Err(Broken::Disk(why)) => served.interrupt.host_failed(&why),
            Err(why) => served.interrupt.ask_for_reset(&why),
        }
    }

    fn serve(&mut self, pass: &Pass) -> Result<(), Broken> {
        if !pass.is_valid() && aside::step_aside(self, pass)? == Then::End {
            return Ok(());
        }
        loop {
            let round = self.take_a_round()?;
            self.publish();
            // Chains that are left, or came meanwhile, are no reason to sleep, but none either not to look at
            // `stop` and at what the disk has completed. While it pays to look at disk and ring, the driver need not
            // kick: it is asked to only before sleeping.
            if round == Round::Full {
                self.disk.poll(&mut self.events)?;
            } else if round == Round::NoRoom {
                self.disk.wait(&mut self.events)?;
            } else if !self.disk.look(&mut self.events, || self.queue.has_more())? {
                if self.queue.arm()? {
                    self.disk.poll(&mut self.events)?;
                } else {
                    self.disk.sleep(&mut self.events)?;
                }
            }
            if !pass.is_valid() && aside::step_aside(self, pass)? == Then::End {
                return Ok(());
            }
            self.queue.disarm();
            if self.stop.requested() {
                return Ok(());
            }
            self.finish()?;
            self.publish();
        }
    }

    /// Begins what the driver has made available, but no more than the queue is long: a driver may refill the
    /// ring as fast as it is emptied.
    fn take_a_round(&mut self) -> Result<Round, Broken> {
        for _ in 0..self.queue.size() {
            if !self.stock.has_room() {
                return Ok(Round::NoRoom);
            }
            let Some(head) = self.queue.pop(&mut self.chain)? else { return Ok(Round::Empty) };
            self.begin(head)?;
        }
        Ok(Round::Full)
    }

    /// Publishes what was answered, with an interrupt if the driver wants one.
    fn publish(&mut self) {
        if self.queue.publish() {
            self.interrupt.signal();
        }
    }

    /// Begins what the chain just taken asks for.
    fn begin(&mut self, head: Head) -> Result<(), Broken> {
        let mut buffers = self.stock.take();
        let request = Request::read(&self.chain, self.queue.ram(), &mut buffers)?;
        let to = To { head, status: request.status };
        let (status, written) = match request.command {
            Command::Disk(operation) => return self.submit(to, operation, buffers),
            Command::Refused(status) => (status, 1),
            Command::Identify => {
                let written = buffers.write(&self.serial) as u64;
                (Status::Ok, if written == buffers.bytes() { written + 1 } else { written })
            }
        };
        self.stock.put_back(buffers);
        self.answer(to, status, written)
    }

    fn submit(&mut self, to: To, operation: Operation, buffers: Buffers) -> Result<(), Broken> {
        let operation = match operation {
            Operation::Write { at, .. } => Operation::Write { at, durability: self.cache.durability() },
            other => other,
        };
        let index = self.free.pop().expect("the queue gives out no more heads than it is long");
        let (written, room) = (aside::written(operation, &buffers), buffers.room());
        match self.disk.submit(disk::Request { tag: u64::from(index), operation, buffers }) {
            Ok(()) => {
                self.slots[usize::from(index)] = Some(Slot { to, written, lent: self.stock.lend(room) });
                Ok(())
            }
            Err(refused) => {
                self.free.push(index);
                self.stock.put_back(refused.buffers);
                self.answer(to, refused.error.into(), written_by_failed(operation))
            }
        }
    }

    /// Answers what has completed.
    fn finish(&mut self) -> Result<(), Broken> {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            let Event::Done { tag, operation, result, buffers } = event else { continue };
            let Slot { to, lent, .. } =
                self.slots[tag as usize].take().expect("the disk returns each tag once");
            self.free.push(tag as u16);
            self.stock.end(lent);
            let bytes = buffers.bytes();
            self.stock.put_back(buffers);
            if result.is_ok() && self.cache.flush_after(operation) {
                let empty = self.stock.take();
                self.submit(to, Operation::Flush, empty)?;
                continue;
            }
            let (status, written) = match (result, operation) {
                (Ok(()), Operation::Read { .. }) => (Status::Ok, bytes + 1),
                (Ok(()), _) => (Status::Ok, 1),
                (Err(error), _) => (error.into(), written_by_failed(operation)),
            };
            self.answer(to, status, written)?;
        }
        self.events = events;
        Ok(())
    }

    /// Writes the status and gives the chain back, with the number of bytes written.
    fn answer(&mut self, to: To, status: Status, written: u64) -> Result<(), Broken> {
        self.queue.ram().write_obj(to.status, &(status as u8))?;
        self.queue.push_used(to.head, u32::try_from(written).unwrap_or(u32::MAX));
        Ok(())
    }
}

impl Obedient for BlockQueue {
    type Error = Broken;

    fn disk(&mut self) -> Option<(&mut DiskQueue, &mut Vec<Event>)> {
        Some((&mut self.disk, &mut self.events))
    }

    fn answer(&mut self) -> Result<(), Broken> {
        self.finish()?;
        self.publish();
        Ok(())
    }

    fn is_to_end(&self) -> bool {
        self.stop.requested()
    }

    fn reads(&self) -> Vec<GpaRange> {
        self.slots.iter().flatten().filter_map(|slot| slot.written).collect()
    }

    fn report(&self, what: &dyn fmt::Display) {
        self.interrupt.report(what);
    }
}

/// Bytes written count from the start of the room (2.7.8.2). The status lies behind the data, so without the
/// data it does not count.
fn written_by_failed(operation: Operation) -> u64 {
    u64::from(!matches!(operation, Operation::Read { .. }))
}
