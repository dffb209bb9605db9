//! A port's registers, and what may become of them (AHCI 1.3.1, sections 3.3 and 5.3).
//!
//! Nothing here waits or looks at a disk. vCPUs write registers and a port's thread reports what became of
//! commands, each under the port's lock and for a moment only.
//!
//! A command that the thread has taken is *held* until the thread is done with it, whatever the driver does. When
//! the driver stops the port or resets anything, held commands become *stale*: they run to their end, and nobody
//! learns of it. Until the last one has ended PxCMD.CR stays set, a device after a reset stays busy, and no
//! further command is taken.

use memory::{Gpa, Ram};

use crate::ahci::command::{HEADER_SIZE, Unreadable};
use crate::ahci::fis::{Signature, Taskfile, place, set_bits};
use crate::ahci::registers::{port as reg, status};

/// The processing of commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Engine {
    Stopped,
    Running,
    /// After an error; only stopping goes on from here (6.2.2).
    Halted,
}

/// The link to a device that is plugged in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    /// SCTL holds it in reset or offline.
    Down,
    /// The device has been reset and is busy until stale commands have ended.
    Starting,
    Ready,
}

/// A command that the port's thread has taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::ahci) struct Taken {
    pub slot: u8,
    /// Where its header lies.
    pub header: Gpa,
    /// How often the device had been reset by then.
    pub resets: u64,
}

/// How a command ended for its driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::ahci) enum Ending {
    /// With the device's registers, whether well or not.
    Registers(Taskfile),
    /// With so many bytes of data by PIO.
    Pio(u32),
    /// With new registers and no interrupt: after a software reset.
    Quiet(Taskfile),
    /// Without a word from the device: the control register was written.
    Silent,
}

pub(in crate::ahci) struct PortState {
    command_list: u64,
    received: u64,
    interrupts: u32,
    enabled: u32,
    receive: bool,
    scratch: u32,
    engine: Engine,
    status: u8,
    error: u8,
    signature: u32,
    control: u32,
    serror: u32,
    active: u32,
    issued: u32,
    /// CCS: the command taken last, since the port was started.
    current: u8,
    /// The slot before the next one to look at.
    last: u8,
    device: Option<(Signature, Link)>,
    held: u32,
    /// A part of `held`.
    stale: u32,
    /// A part of `stale`: those that a reset of the controller waits for.
    in_reset: u32,
    resets: u64,
}

/// What TFD shows without a device.
const NO_DEVICE: u8 = 0x7f;

impl PortState {
    pub fn new() -> PortState {
        PortState {
            command_list: 0,
            received: 0,
            interrupts: 0,
            enabled: 0,
            receive: false,
            scratch: 0,
            engine: Engine::Stopped,
            status: NO_DEVICE,
            error: 0,
            signature: u32::MAX,
            control: 0,
            serror: 0,
            active: 0,
            issued: 0,
            current: 0,
            last: 31,
            device: None,
            held: 0,
            stale: 0,
            in_reset: 0,
            resets: 0,
        }
    }

    /// IS, with the two bits that mirror SERR.
    fn interrupts(&self) -> u32 {
        let mirror = |bit: u32, shown: u32| if self.serror & bit != 0 { shown } else { 0 };
        self.interrupts | mirror(reg::SERR_EXCHANGED, reg::IS_CONNECT) | mirror(reg::SERR_PHY, reg::IS_PHY)
    }

    /// Whether the port wants an interrupt.
    pub fn wants_interrupt(&self) -> bool {
        self.interrupts() & self.enabled != 0
    }

    /// Whether the thread has nothing of this port in its hands.
    pub fn is_idle(&self) -> bool {
        self.held == 0
    }

    /// Whether a reset of the controller waits for stale commands.
    pub fn is_resetting(&self) -> bool {
        self.in_reset != 0
    }

    /// The registers, in an order in which the cause of an interrupt is there before the interrupt is.
    pub const REGISTERS: [u64; 14] = [
        reg::CLB,
        reg::CLBU,
        reg::FB,
        reg::FBU,
        reg::IE,
        reg::CMD,
        reg::TFD,
        reg::SIG,
        reg::SSTS,
        reg::SCTL,
        reg::SERR,
        reg::SACT,
        reg::CI,
        reg::IS,
    ];

    /// What a driver reads.
    pub fn read(&self, register: u64) -> u32 {
        match register {
            reg::CLB => self.command_list as u32,
            reg::CLBU => (self.command_list >> 32) as u32,
            reg::FB => self.received as u32,
            reg::FBU => (self.received >> 32) as u32,
            reg::IS => self.interrupts(),
            reg::IE => self.enabled,
            reg::CMD => self.command(),
            reg::TFD => u32::from(self.error) << 8 | u32::from(self.status),
            reg::SIG => self.signature,
            reg::SSTS => self.link_status(),
            reg::SCTL => self.control,
            reg::SERR => self.serror,
            reg::SACT => self.active,
            reg::CI => self.issued,
            _ => 0,
        }
    }

    fn command(&self) -> u32 {
        let when = |condition: bool, bits: u32| if condition { bits } else { 0 };
        let started = self.engine != Engine::Stopped;
        reg::CMD_SPIN_UP
            | reg::CMD_POWER_ON
            | reg::CMD_HOT_PLUG
            | self.scratch
            | when(started, reg::CMD_START)
            | when(started || self.held != 0, reg::CMD_RUNNING)
            | when(self.receive, reg::CMD_RECEIVE | reg::CMD_RECEIVING)
            | u32::from(self.current) << 8
    }

    /// SSTS: detection, speed and power state of the link.
    fn link_status(&self) -> u32 {
        match self.device {
            _ if self.control & 0xf == reg::DET_OFFLINE => 4,
            Some((_, Link::Starting | Link::Ready)) => {
                let limit = self.control >> 4 & 0xf;
                let speed = if (1..3).contains(&limit) { limit } else { 3 };
                1 << 8 | speed << 4 | 3
            }
            Some((_, Link::Down)) | None => 0,
        }
    }

    /// The driver writes a register. Frames that come of it go to `ram`, if the controller may reach it.
    pub fn write(&mut self, register: u64, value: u32, ram: Option<&Ram>) {
        let low = |old: u64, mask: u32| old & !0xffff_ffff | u64::from(value & mask);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match register {
            reg::CLB => self.command_list = low(self.command_list, !0x3ff),
            reg::CLBU => self.command_list = high(self.command_list),
            reg::FB => self.received = low(self.received, !0xff),
            reg::FBU => self.received = high(self.received),
            reg::IS => self.interrupts &= !value,
            reg::IE => self.enabled = value & reg::IE_MASK,
            reg::CMD => self.write_command(value),
            reg::SCTL => self.write_control(value & 0xfff, ram),
            reg::SERR => self.serror &= !value,
            // Both only take new commands, and only while the port runs (3.3.13, 3.3.14).
            reg::SACT if self.engine != Engine::Stopped => self.active |= value,
            reg::CI if self.engine != Engine::Stopped => self.issued |= value,
            _ => {}
        }
    }

    fn write_command(&mut self, value: u32) {
        self.receive = value & reg::CMD_RECEIVE != 0;
        self.scratch = value & reg::CMD_SCRATCH;
        if value & reg::CMD_OVERRIDE != 0 && self.engine == Engine::Stopped {
            self.status &= !(status::BUSY | status::DATA);
        }
        match (value & reg::CMD_START != 0, self.engine) {
            (true, Engine::Stopped) => self.engine = Engine::Running,
            (false, Engine::Running | Engine::Halted) => {
                self.engine = Engine::Stopped;
                (self.current, self.last) = (0, 31);
                self.abandon();
            }
            _ => {}
        }
    }

    fn write_control(&mut self, value: u32, ram: Option<&Ram>) {
        self.control = value;
        let Some((_, link)) = &mut self.device else { return };
        match (value & 0xf, *link) {
            (reg::DET_NONE, Link::Down) => self.start_link(ram),
            (reg::DET_NONE, _) => {}
            (_, _) => {
                *link = Link::Down;
                self.reset_device();
            }
        }
    }

    /// Nobody waits for the commands under way any more.
    fn abandon(&mut self) {
        self.issued = 0;
        self.active = 0;
        self.stale = self.held;
    }

    fn reset_device(&mut self) {
        self.abandon();
        self.resets += 1;
        self.status = NO_DEVICE;
        self.error = 0;
        self.signature = u32::MAX;
    }

    /// The link comes up, and the device reports as soon as it has nothing under way.
    fn start_link(&mut self, ram: Option<&Ram>) {
        let Some((_, link)) = &mut self.device else { return };
        *link = Link::Starting;
        self.status = status::BUSY;
        self.serror |= reg::SERR_EXCHANGED | reg::SERR_PHY;
        self.settle(ram);
    }

    fn settle(&mut self, ram: Option<&Ram>) {
        if self.held == 0
            && let Some((signature, link @ Link::Starting)) = &mut self.device
        {
            *link = Link::Ready;
            let signature = *signature;
            self.signature = signature.register();
            self.show(signature.taskfile());
            self.receive(place::D2H, &signature.taskfile().d2h(false), ram);
        }
    }

    /// The whole port, as the controller's reset leaves it: addresses stay (10.4.3).
    pub fn reset(&mut self, ram: Option<&Ram>) {
        let device = self.device.map(|(signature, _)| (signature, Link::Down));
        *self = PortState {
            command_list: self.command_list,
            received: self.received,
            device,
            held: self.held,
            stale: self.held,
            in_reset: self.held,
            resets: self.resets + 1,
            ..PortState::new()
        };
        self.start_link(ram);
    }

    /// The port as after power-on, for which nothing may be held.
    pub fn power_on(&mut self) {
        let (device, resets) = (self.device, self.resets);
        *self = PortState { device, resets, ..PortState::new() };
        self.reset(None);
    }

    /// A device is plugged in, or away. Nothing of the one before is held any more, or it is stale from now on.
    pub fn plug(&mut self, signature: Option<Signature>, ram: Option<&Ram>) {
        self.reset_device();
        self.device = signature.map(|signature| (signature, Link::Down));
        self.serror |= reg::SERR_PHY;
        if self.control & 0xf == reg::DET_NONE {
            self.start_link(ram);
        }
    }

    /// Commands that can be taken.
    fn waiting(&self) -> u32 {
        let ready = matches!(self.device, Some((_, Link::Ready)));
        if self.engine == Engine::Running && ready && self.stale == 0 { self.issued & !self.held } else { 0 }
    }

    /// Whether there is a command to take.
    pub fn has_work(&self) -> bool {
        self.waiting() != 0
    }

    /// The next command to carry out, in turn after the last one.
    pub fn take(&mut self) -> Option<Taken> {
        let waiting = self.waiting();
        if waiting == 0 {
            return None;
        }
        let first = u32::from(self.last) + 1;
        let slot = ((waiting.rotate_right(first & 31).trailing_zeros() + first) & 31) as u8;
        self.held |= 1 << slot;
        (self.current, self.last) = (slot, slot);
        let header = Gpa(self.command_list.wrapping_add(HEADER_SIZE * u64::from(slot)));
        Some(Taken { slot, header, resets: self.resets })
    }

    /// Whether anybody still waits for a held command.
    pub fn is_awaited(&self, slot: u8) -> bool {
        self.stale & 1 << slot == 0 && self.engine == Engine::Running
    }

    /// Whether the device is busy with a command that is not queued.
    pub fn set_busy(&mut self, slot: u8, busy: bool) {
        if self.is_awaited(slot) {
            self.status = if busy { status::BUSY | status::READY } else { status::GOOD };
        }
    }

    /// The device has accepted a queued command and can take others (SATA 3.x, 13.6.4.1).
    pub fn accept(&mut self, slot: u8, ram: Option<&Ram>) {
        if self.is_awaited(slot) {
            self.issued &= !(1 << slot);
            self.show(Taskfile::good());
            self.receive(place::D2H, &Taskfile::good().d2h(false), ram);
        }
    }

    /// Queued commands have ended well.
    pub fn complete_queued(&mut self, slots: u32, ram: Option<&Ram>) {
        let ended = self.release(slots, ram);
        if ended != 0 {
            self.active &= !ended;
            self.interrupts |= reg::IS_SDB;
            self.show(Taskfile::good());
            self.receive(place::SET_BITS, &set_bits(status::GOOD, 0, ended), ram);
        }
    }

    /// A queued command has failed, and with it the device gives up all others.
    pub fn fail_queued(&mut self, slot: u8, taskfile: Taskfile, serror: u32, ram: Option<&Ram>) {
        if self.release(1 << slot, ram) != 0 {
            self.halt(reg::IS_TASK_FILE | reg::IS_SDB, serror);
            self.show(taskfile);
            self.receive(place::SET_BITS, &set_bits(taskfile.status, taskfile.error, 0), ram);
        }
    }

    /// Any other command has ended.
    pub fn complete(&mut self, slot: u8, ending: Ending, serror: u32, ram: Option<&Ram>) {
        let bit = 1 << slot;
        if self.release(bit, ram) == 0 {
            return;
        }
        match ending {
            Ending::Registers(taskfile) => {
                self.show(taskfile);
                self.receive(place::D2H, &taskfile.d2h(true), ram);
                self.interrupts |= reg::IS_D2H;
                if taskfile.is_failure() {
                    return self.halt(reg::IS_TASK_FILE, serror);
                }
            }
            Ending::Pio(bytes) => {
                let taskfile = Taskfile::good();
                self.show(taskfile);
                self.receive(place::PIO_SETUP, &taskfile.pio_setup(bytes), ram);
                self.interrupts |= reg::IS_PIO;
            }
            Ending::Quiet(taskfile) => {
                self.show(taskfile);
                self.signature = self.device.map_or(u32::MAX, |(signature, _)| signature.register());
                self.receive(place::D2H, &taskfile.d2h(false), ram);
            }
            Ending::Silent => {}
        }
        self.issued &= !bit;
    }

    /// A command could not be carried out as it lies in memory.
    pub fn refuse(&mut self, slot: u8, why: Unreadable, ram: Option<&Ram>) {
        if self.release(1 << slot, ram) != 0 {
            match why {
                Unreadable::HostBus => self.halt(reg::IS_HOST_BUS, 0),
                Unreadable::Interface => self.halt(reg::IS_INTERFACE, reg::SERR_PROTOCOL),
            }
        }
    }

    /// There was more data than room; whatever else happens, the driver learns of it.
    pub fn note_overflow(&mut self, slot: u8) {
        if self.is_awaited(slot) {
            self.interrupts |= reg::IS_OVERFLOW;
        }
    }

    /// The thread is done with these slots; returns those that somebody waits for.
    fn release(&mut self, slots: u32, ram: Option<&Ram>) -> u32 {
        let ended = slots & self.held & !self.stale;
        self.held &= !slots;
        self.stale &= !slots;
        self.in_reset &= !slots;
        self.settle(ram);
        if self.engine == Engine::Running { ended } else { 0 }
    }

    /// The thread has given up everything.
    pub fn release_all(&mut self, ram: Option<&Ram>) {
        self.release(u32::MAX, ram);
    }

    fn halt(&mut self, interrupts: u32, serror: u32) {
        self.engine = Engine::Halted;
        self.interrupts |= interrupts;
        self.serror |= serror;
    }

    fn show(&mut self, taskfile: Taskfile) {
        self.status = taskfile.status;
        self.error = taskfile.error;
    }

    /// Puts a frame where the driver wants to find it.
    fn receive(&mut self, at: u64, frame: &[u8], ram: Option<&Ram>) {
        let (true, Some(ram)) = (self.receive, ram) else { return };
        // The area is 256 bytes on a multiple of 256, so the sum does not overflow.
        if ram.write(Gpa(self.received + at), frame).is_err() {
            self.interrupts |= reg::IS_HOST_BUS;
            if self.engine == Engine::Running {
                self.engine = Engine::Halted;
            }
        }
    }
}

#[cfg(test)]
mod tests;
