//! The thread of a port: it takes commands, lets the device decode them, and moves data between the guest's memory
//! and the disk. One queue of the disk is its own.

mod obedience;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use disk::{DiskError, DiskQueue, Event, Operation, PreparedQueue, Request, Sectors, WaitError};
use memory::{Buffers, GpaRange};
use pci::Pass;
use virtio::Stop;

use super::{Ending, PortShared, PortState, Taken};
use crate::ahci::action::{Action, Change, Protocol};
use crate::ahci::ata::Fault;
use crate::ahci::atapi::Handling;
use crate::ahci::command::{Command, Unreadable};
use crate::ahci::device::Device;
use crate::aside::{self, Then};
use crate::scratch::Scratch;
use crate::stock::{Lent, Stock};

/// Command slots of a port.
const SLOTS: usize = 32;

/// How long the disk may take to end what is under way when its device goes, until it is asked to give it up.
const GRACE: Duration = Duration::from_secs(2);
/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(1);

/// A command that the disk works on.
struct UnderWay {
    command: Command,
    protocol: Protocol,
    /// What is left to do, the last first, of a command that moves no data of the guest's.
    rest: Option<Vec<Change>>,
    /// Where the disk may write.
    written: Option<GpaRange>,
}

impl UnderWay {
    /// The memory that what is left to do takes, as so many pieces of a list.
    fn room(&self) -> usize {
        let changes = self.rest.as_ref().map_or(0, Vec::capacity);
        (changes * size_of::<Change>()).div_ceil(Buffers::PIECE)
    }
}

/// How a round of taking commands ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    /// There is nothing to begin now.
    Idle,
    /// As many as there are slots were taken; there may be more.
    Full,
}

pub(super) struct PortEngine {
    port: Arc<PortShared>,
    device: Device,
    queue: Option<DiskQueue>,
    slots: [Option<(UnderWay, Lent)>; SLOTS],
    /// A command that was read and waits for others to end.
    parked: Option<(Taken, Command)>,
    /// Queued commands that have ended well and are told of together.
    ended: u32,
    /// The last reset that the device knows of.
    resets: u64,
    stock: Stock,
    events: Vec<Event>,
    /// What is verified is read into this.
    scratch: Scratch,
    stop: Stop,
}

impl PortEngine {
    /// Serves the port until it is asked to stop or the disk's queue breaks. Everything under way has ended when
    /// this returns.
    pub fn run(
        port: Arc<PortShared>,
        device: Device,
        prepared: Option<PreparedQueue>,
        stop: Stop,
        pass: &Pass,
    ) {
        let mut engine = PortEngine {
            device,
            queue: None,
            slots: [const { None }; SLOTS],
            parked: None,
            ended: 0,
            resets: 0,
            stock: Stock::new(port.hba().ram().clone(), port.hba().ports().into()),
            events: Vec::new(),
            scratch: Scratch::default(),
            stop,
            port,
        };
        let outcome = match prepared {
            None => Ok(()),
            Some(prepared) => engine.start(prepared),
        };
        let outcome = outcome.and_then(|()| engine.serve(pass));
        if outcome.is_err()
            && let Device::Cd(drive) = &mut engine.device
        {
            drive.fail();
        }
        engine.let_end();
        // Waits for everything under way.
        engine.queue = None;
        if let Err(why) = outcome {
            engine.port.hba().host_failed(&format_args!("{why} The guest sees the device as unplugged."));
            engine.port.change(|state, ram| state.plug(None, ram));
        }
        engine.port.change(PortState::release_all);
    }

    fn start(&mut self, prepared: PreparedQueue) -> Result<(), WaitError> {
        let mut queue = prepared.start()?;
        queue.watch(&self.port.kick)?;
        self.queue = Some(queue);
        Ok(())
    }

    fn serve(&mut self, pass: &Pass) -> Result<(), WaitError> {
        if !pass.is_valid() && aside::step_aside(self, pass)? == Then::End {
            return Ok(());
        }
        loop {
            self.look_at_the_tray();
            let round = self.take_a_round();
            self.tell();
            match round {
                Round::Idle => self.wait()?,
                Round::Full => self.poll()?,
            }
            if !pass.is_valid() && aside::step_aside(self, pass)? == Then::End || self.stop.requested() {
                return Ok(());
            }
            self.finish();
            self.tell();
        }
    }

    /// Gives the disk time to end what is under way, and then asks it to give that up.
    fn let_end(&mut self) {
        let Some(queue) = &mut self.queue else { return };
        let begin = Instant::now();
        while queue.under_way() > 0 {
            // A queue that is broken is waited for as well as can be.
            if begin.elapsed() >= GRACE || queue.poll(&mut self.events).is_err() {
                if let Err(why) = queue.cancel() {
                    self.port.hba().host_failed(&format_args!("{why}"));
                }
                return;
            }
            thread::sleep(LOOK);
        }
    }

    fn poll(&mut self) -> Result<(), WaitError> {
        self.queue.as_mut().map_or(Ok(()), |queue| queue.poll(&mut self.events))
    }

    /// Waits for the disk or the driver. The driver kicks only a thread that sleeps, so this looks once more
    /// before; but only where it could begin something.
    fn wait(&mut self) -> Result<(), WaitError> {
        let able = self.parked.is_none() && self.is_able();
        let port = &self.port;
        let work = || able && port.has_work();
        if let Some(queue) = &mut self.queue
            && queue.look(&mut self.events, work)?
        {
            return Ok(());
        }
        port.set_asleep(true);
        let outcome = match &mut self.queue {
            Some(queue) if work() => queue.poll(&mut self.events),
            Some(queue) => queue.sleep(&mut self.events),
            None if work() => Ok(()),
            // Interrupted or woken: all the same.
            None => {
                drop(port.kick.read());
                Ok(())
            }
        };
        port.set_asleep(false);
        outcome
    }

    /// Begins what the driver has issued, but no more than there are slots before looking at anything else.
    fn take_a_round(&mut self) -> Round {
        for _ in 0..SLOTS {
            if !self.is_able() {
                return Round::Idle;
            }
            let Some((taken, command)) = self.next() else { return Round::Idle };
            let queued = self.device.is_queued(&command);
            if !queued && self.slots.iter().any(Option::is_some) {
                self.parked = Some((taken, command));
                return Round::Idle;
            }
            // What has ended is told before anything begins that is not queued.
            if !queued {
                self.tell();
                // A command that came after a disc was changed finds it changed.
                self.look_at_the_tray();
            }
            self.begin(taken, command, queued);
        }
        Round::Full
    }

    /// Whether a command can begin: there is room for its list, and none is under way beside which there can be no other.
    fn is_able(&self) -> bool {
        self.stock.has_room()
            && self.slots.iter().flatten().all(|(work, _)| work.protocol == Protocol::Queued)
    }

    /// The next command, read once and for all.
    fn next(&mut self) -> Option<(Taken, Command)> {
        // A parked command that was given up meanwhile ends here.
        if let Some((taken, command)) = self.parked.take() {
            if self.port.change(|state, _| state.is_awaited(taken.slot)) {
                return Some((taken, command));
            }
            self.end(taken.slot, Ending::Silent);
        }
        // Each turn ends a command, which only the driver can issue again.
        loop {
            let taken = self.port.take()?;
            if taken.resets != self.resets {
                self.resets = taken.resets;
                self.device.reset();
            }
            match Command::read(self.port.hba().ram(), taken.header) {
                Ok(command) => return Some((taken, command)),
                Err(why) => self.refuse(taken.slot, why),
            }
        }
    }

    fn begin(&mut self, taken: Taken, command: Command, queued: bool) {
        let slot = taken.slot;
        if !queued {
            self.port.change(|state, _| state.set_busy(slot, true));
        }
        match self.device.execute(&command, slot) {
            Action::Done(taskfile) => {
                self.end(slot, Ending::Registers(taskfile));
                self.drop_an_ejected_disc();
            }
            Action::Signature(taskfile) => self.end(slot, Ending::Quiet(taskfile)),
            Action::Control { busy } => {
                let busy = busy && !command.clear_busy;
                self.port.change(|state, _| state.set_busy(slot, busy));
                self.end(slot, Ending::Silent);
            }
            Action::Send(data, protocol) => self.send(slot, &command, &data, protocol),
            Action::Transfer { operation, bytes, protocol } => {
                self.transfer(slot, command, operation, bytes, protocol);
            }
            Action::Trim { bytes, protocol } => self.trim(slot, command, bytes, protocol),
            Action::Series(rest) => {
                self.go_on(
                    slot,
                    UnderWay { command, protocol: Protocol::Dma, rest: Some(rest), written: None },
                );
            }
        }
    }

    /// Data from the device itself.
    fn send(&mut self, slot: u8, command: &Command, data: &[u8], protocol: Protocol) {
        match self.gather(command, data.len() as u64) {
            Err(why) => self.refuse(slot, why),
            Ok(buffers) => {
                let written = buffers.write(data);
                if written < data.len() {
                    self.port.change(|state, _| state.note_overflow(slot));
                }
                self.recycle(buffers);
                self.transferred(slot, command, protocol, written as u64);
            }
        }
    }

    /// Data between disk and guest.
    fn transfer(&mut self, slot: u8, command: Command, operation: Operation, bytes: u64, protocol: Protocol) {
        let buffers = match self.gather(&command, bytes) {
            Ok(buffers) => buffers,
            Err(why) => return self.refuse(slot, why),
        };
        if protocol == Protocol::Queued {
            self.port.change(|state, ram| state.accept(slot, ram));
        }
        if buffers.bytes() < bytes {
            self.recycle(buffers);
            self.port.change(|state, _| state.note_overflow(slot));
            return self.fail(slot, &command, protocol, DiskError::Unaligned);
        }
        let written = aside::written(operation, &buffers);
        self.submit(slot, operation, buffers, UnderWay { command, protocol, rest: None, written });
    }

    /// Data from the guest that says what to discard.
    fn trim(&mut self, slot: u8, command: Command, bytes: u64, protocol: Protocol) {
        let buffers = match self.gather(&command, bytes) {
            Ok(buffers) => buffers,
            Err(why) => return self.refuse(slot, why),
        };
        if protocol == Protocol::Queued {
            self.port.change(|state, ram| state.accept(slot, ram));
        }
        let mut data = vec![0; buffers.bytes() as usize];
        buffers.read(&mut data);
        self.recycle(buffers);
        if (data.len() as u64) < bytes {
            self.port.change(|state, _| state.note_overflow(slot));
            return self.fail(slot, &command, protocol, DiskError::Unaligned);
        }
        match self.device.trim(&command, &data, protocol, slot) {
            Err(fault) => self.fault(slot, fault, protocol),
            Ok(rest) => {
                if protocol != Protocol::Queued {
                    self.note_transferred(slot, &command, bytes);
                }
                self.go_on(slot, UnderWay { command, protocol, rest: Some(rest), written: None });
            }
        }
    }

    /// Begins what comes next of a command without data, or ends it.
    fn go_on(&mut self, slot: u8, mut work: UnderWay) {
        match work.rest.as_mut().and_then(|rest| self.device.next_change(rest)) {
            None if work.protocol == Protocol::Queued => self.ended |= 1 << slot,
            None => self.end(slot, Ending::Registers(self.device.good())),
            Some(Change::Verify(range)) => match self.scratch.lend(range.count.0 * Sectors::SIZE) {
                Ok(buffers) => self.submit(slot, Operation::Read { at: range.start }, buffers, work),
                Err(_) => self.fail(slot, &work.command, work.protocol, DiskError::Other(libc::ENOMEM)),
            },
            Some(change) => {
                let buffers = self.buffers();
                self.submit(slot, change.into(), buffers, work);
            }
        }
    }

    fn submit(&mut self, slot: u8, operation: Operation, buffers: Buffers, work: UnderWay) {
        let Some(queue) = &mut self.queue else {
            // The disc has gone since the command was decoded.
            self.recycle_of(&work, buffers);
            return self.fail(slot, &work.command, work.protocol, DiskError::Gone);
        };
        // The scratch's one piece counts as well.
        let room = buffers.room() + work.room();
        match queue.submit(Request { tag: u64::from(slot), operation, buffers }) {
            Ok(()) => self.slots[usize::from(slot)] = Some((work, self.stock.lend(room))),
            Err(refused) => {
                self.recycle_of(&work, refused.buffers);
                self.fail(slot, &work.command, work.protocol, refused.error);
            }
        }
    }

    /// Ends what the disk has completed.
    fn finish(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            let Event::Done { tag, result, buffers, .. } = event else { continue };
            let slot = tag as u8;
            let (work, lent) = self.slots[usize::from(slot)].take().expect("the disk returns each tag once");
            self.stock.end(lent);
            let bytes = buffers.bytes();
            self.recycle_of(&work, buffers);
            match result {
                Err(error) => self.fail(slot, &work.command, work.protocol, error),
                Ok(()) if work.rest.is_none() => {
                    self.transferred(slot, &work.command, work.protocol, bytes);
                }
                // A command that nobody waits for any more ends with what it has done so far.
                Ok(()) if self.port.change(|state, _| !state.is_awaited(slot)) => {
                    self.end(slot, Ending::Silent);
                }
                Ok(()) => self.go_on(slot, work),
            }
        }
        self.events = events;
    }

    /// All data of a command has been moved.
    fn transferred(&mut self, slot: u8, command: &Command, protocol: Protocol, bytes: u64) {
        if protocol == Protocol::Queued {
            self.ended |= 1 << slot;
            return;
        }
        self.note_transferred(slot, command, bytes);
        match protocol {
            Protocol::Pio => self.end(slot, Ending::Pio(u32::try_from(bytes).unwrap_or(u32::MAX))),
            _ => self.end(slot, Ending::Registers(self.device.good())),
        }
    }

    /// Says in the command's header how many bytes were transferred.
    fn note_transferred(&self, slot: u8, command: &Command, bytes: u64) {
        self.port.change(|state, ram| {
            if let Some(ram) = ram
                && command.set_transferred(ram, bytes).is_err()
            {
                state.refuse(slot, Unreadable::HostBus, Some(ram));
            }
        });
    }

    /// Tells the driver of all queued commands that have ended well.
    fn tell(&mut self) {
        let ended = std::mem::take(&mut self.ended);
        if ended != 0 {
            self.port.change(|state, ram| state.complete_queued(ended, ram));
        }
    }

    fn fail(&mut self, slot: u8, command: &Command, protocol: Protocol, why: DiskError) {
        let fault = self.device.failed(why, command, protocol, slot);
        self.fault(slot, fault, protocol);
    }

    fn fault(&mut self, slot: u8, fault: Fault, protocol: Protocol) {
        if protocol == Protocol::Queued {
            // Those that have ended before count as ended.
            self.tell();
            self.port.change(|state, ram| state.fail_queued(slot, fault.taskfile, fault.serror, ram));
        } else {
            let ending = Ending::Registers(fault.taskfile);
            self.port.change(|state, ram| state.complete(slot, ending, fault.serror, ram));
        }
    }

    fn refuse(&mut self, slot: u8, why: Unreadable) {
        self.tell();
        self.port.change(|state, ram| state.refuse(slot, why, ram));
    }

    fn end(&self, slot: u8, ending: Ending) {
        self.port.change(|state, ram| state.complete(slot, ending, 0, ram));
    }

    /// What host and guest have done with the disc. Never while a command is under way.
    fn look_at_the_tray(&mut self) {
        if self.slots.iter().any(Option::is_some) {
            return;
        }
        let Device::Cd(drive) = &mut self.device else { return };
        match drive.handling() {
            None => {}
            Some(Handling::EjectAsked) => drive.ask_to_eject(),
            Some(Handling::Removed) => {
                self.queue = None;
                drive.remove();
            }
            Some(Handling::Inserted(disc, prepared)) => {
                self.queue = None;
                drive.insert(disc.geometry());
                if let Err(why) = self.start(prepared) {
                    self.port.hba().host_failed(&why);
                    if let Device::Cd(drive) = &mut self.device {
                        drive.refuse();
                    }
                }
            }
        }
    }

    /// The guest may have ejected the disc, whose queue then goes.
    fn drop_an_ejected_disc(&mut self) {
        if let Device::Cd(drive) = &self.device
            && !drive.has_disc()
            && let Some(queue) = self.queue.take()
        {
            let (port, disc) = (self.port.index, queue.disk());
            self.port.hba().report(&format_args!("port {port}: the guest has ejected {disc}"));
        }
    }

    /// The first `bytes` bytes of the command's scatter list, or all of it.
    fn gather(&mut self, command: &Command, bytes: u64) -> Result<Buffers, Unreadable> {
        let mut buffers = self.buffers();
        match command.gather(self.port.hba().ram(), bytes, &mut buffers) {
            Ok(()) => Ok(buffers),
            Err(why) => {
                self.recycle(buffers);
                Err(why)
            }
        }
    }

    fn buffers(&mut self) -> Buffers {
        self.stock.take()
    }

    /// Those of commands that move none of the guest's data may lie in the scratch, and are not for others.
    fn recycle_of(&mut self, work: &UnderWay, buffers: Buffers) {
        if work.rest.is_none() {
            self.recycle(buffers);
        }
    }

    fn recycle(&mut self, buffers: Buffers) {
        self.stock.put_back(buffers);
    }
}
