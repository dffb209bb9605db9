//! A guest's AHCI driver, for tests of the model. Its methods panic when the machine does not do as it should.

mod drive;

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use memory::{Gpa, GpaRange, Ram};
use parking_lot::Mutex;
use pci::fake::FakeServices;
use pci::{Address, Bus, DeviceNumber, Windows};

use super::{Ahci, AhciPort};
pub use drive::{Answer, Drive};

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Bytes of a command table with room for its scatter list.
const TABLE: u64 = 0x1000;

/// A guest with one controller.
pub struct Guest {
    /// The bus with the controller on it.
    pub bus: Bus,
    /// The controller's address.
    pub address: Address,
    /// The controller, for what the host does with it.
    pub ahci: Arc<Ahci>,
    /// The guest's RAM.
    pub ram: Arc<Ram>,
    /// What the controller asked of the machine.
    pub services: Arc<FakeServices>,
    /// What was reported to people.
    pub reports: Arc<Mutex<Vec<String>>>,
}

impl Guest {
    /// Where the controller's registers are.
    pub const ABAR: u64 = 0xc000_0000;
    /// Offset of the MSI capability.
    pub const MSI: u16 = 0x80;

    /// Plugs the controller in, enables its BAR, bus mastering and interrupts on the line.
    pub fn new(ports: Vec<AhciPort>, ram: Arc<Ram>) -> Guest {
        let windows = Windows {
            memory32: GpaRange::new(Gpa(Self::ABAR), 0x2000_0000).expect("not empty"),
            memory64: None,
            ports: (0xc000, 0xffff),
        };
        let services = Arc::new(FakeServices::default());
        let reports: Arc<Mutex<Vec<String>>> = Arc::default();
        let sink = reports.clone();
        let report = Arc::new(move |report: virtio::Message| {
            sink.lock().push(report.to_string());
        });
        let bus = Bus::new(&windows);
        let address = bus.free_address(DeviceNumber::Shared).expect("the bus is empty");
        let ahci = Ahci::new(ports, address, ram.clone(), services.clone(), &windows, report);
        let ahci = Arc::new(ahci.unwrap_or_else(|why| panic!("{why}")));
        bus.add(address, ahci.clone()).expect("the address is free");
        let guest = Guest { bus, address, ahci, ram, services, reports };
        guest.enable();
        guest
    }

    /// Enables BAR, bus mastering and interrupts, as after a reset of the machine.
    pub fn enable(&self) {
        self.config_write(0x24, &(Self::ABAR as u32).to_le_bytes());
        self.config_write(4, &[6, 0]);
        self.write(0x04, 1 << 31 | 2);
    }

    /// Writes configuration space.
    pub fn config_write(&self, offset: u16, data: &[u8]) {
        self.bus.write_config(self.address, offset, data).expect("the services never fail");
    }

    /// Reads 32 bits of configuration space.
    pub fn config_read(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.bus.read_config(self.address, offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Switches interrupts over to messages.
    pub fn use_msi(&self) {
        self.config_write(Self::MSI + 4, &0xfee0_0000u32.to_le_bytes());
        self.config_write(Self::MSI + 12, &0x41u16.to_le_bytes());
        self.config_write(Self::MSI + 2, &[0x81, 0]);
    }

    /// Writes a register of the controller.
    pub fn write(&self, register: u64, value: u32) {
        let written = self.bus.write_memory(Gpa(Self::ABAR + register), &value.to_le_bytes());
        written.expect("the BAR is there").expect("writes never fail");
    }

    /// Reads a register of the controller.
    pub fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        assert!(self.bus.read_memory(Gpa(Self::ABAR + register), &mut data));
        u32::from_le_bytes(data)
    }

    /// Resets the controller and waits for it, as drivers do; interrupts are on again afterwards.
    pub fn reset_controller(&self) {
        self.write(0x04, 1 << 31 | 1);
        until("the controller's reset", || self.read(0x04) & 1 == 0);
        self.write(0x04, 1 << 31 | 2);
    }

    /// The driver of a port, with its lists from `base` on (0x22000 bytes, on a multiple of 4096). It is stopped.
    pub fn port(&self, index: u8, base: Gpa) -> Port<'_> {
        let port = Port { guest: self, index, base };
        port.set_up();
        port
    }

    /// What was reported to people so far.
    pub fn reports(&self) -> Vec<String> {
        self.reports.lock().clone()
    }
}

/// Waits for something that must happen soon.
pub fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < ANSWER_LIMIT, "{what} does not happen");
        sleep(Duration::from_micros(20));
    }
}

/// Registers of a port, from its first one.
pub mod reg {
    /// Command list; its upper half follows.
    pub const CLB: u64 = 0x00;
    /// Received FISes; the upper half follows.
    pub const FB: u64 = 0x08;
    /// Interrupt status.
    pub const IS: u64 = 0x10;
    /// Interrupt enable.
    pub const IE: u64 = 0x14;
    /// Command and status.
    pub const CMD: u64 = 0x18;
    /// Task file.
    pub const TFD: u64 = 0x20;
    /// Signature.
    pub const SIG: u64 = 0x24;
    /// SStatus.
    pub const SSTS: u64 = 0x28;
    /// SControl.
    pub const SCTL: u64 = 0x2c;
    /// SError.
    pub const SERR: u64 = 0x30;
    /// SActive.
    pub const SACT: u64 = 0x34;
    /// Commands issued.
    pub const CI: u64 = 0x38;
}

/// A piece of the guest's memory: address and bytes.
pub type Piece = (u64, u32);

/// An ATA command.
#[derive(Clone, Copy, Default, Debug)]
pub struct Ata {
    /// The command.
    pub command: u8,
    /// Features.
    pub features: u16,
    /// Address, 48 bits.
    pub lba: u64,
    /// Count.
    pub count: u16,
    /// Device; the bit for LBA is set by itself.
    pub device: u8,
    /// Of queued commands that carry others.
    pub auxiliary: u32,
}

impl Ata {
    /// A command without operands.
    pub fn new(command: u8) -> Ata {
        Ata { command, ..Ata::default() }
    }

    /// A command with an address and a count.
    pub fn at(command: u8, lba: u64, count: u16) -> Ata {
        Ata { command, lba, count, ..Ata::default() }
    }

    /// Queued, for a slot.
    pub fn queued(command: u8, lba: u64, count: u16, slot: u8) -> Ata {
        Ata { command, lba, features: count, count: u16::from(slot) << 3, ..Ata::default() }
    }

    fn frame(self) -> [u8; 20] {
        let [l0, l1, l2, l3, l4, l5, ..] = self.lba.to_le_bytes();
        let ([f0, f1], [c0, c1]) = (self.features.to_le_bytes(), self.count.to_le_bytes());
        let device = self.device | 0x40;
        let [a0, a1, a2, a3] = self.auxiliary.to_le_bytes();
        [0x27, 0x80, self.command, f0, l0, l1, l2, device, l3, l4, l5, f1, c0, c1, 0, 0, a0, a1, a2, a3]
    }
}

/// How a command failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failed {
    /// PxIS.
    pub interrupts: u32,
    /// Status of the device.
    pub status: u8,
    /// Error of the device.
    pub error: u8,
}

/// The driver of a port.
pub struct Port<'a> {
    guest: &'a Guest,
    index: u8,
    base: Gpa,
}

impl<'a> Port<'a> {
    /// A port that has been set up before, with its lists at `base`.
    pub fn at_work(guest: &'a Guest, index: u8, base: Gpa) -> Port<'a> {
        Port { guest, index, base }
    }

    /// Reads a register.
    pub fn read(&self, register: u64) -> u32 {
        self.guest.read(0x100 + 0x80 * u64::from(self.index) + register)
    }

    /// Writes a register.
    pub fn write(&self, register: u64, value: u32) {
        self.guest.write(0x100 + 0x80 * u64::from(self.index) + register, value);
    }

    /// Says where the lists are, and enables all interrupts.
    pub fn set_up(&self) {
        for (register, at) in [(reg::CLB, self.base.0), (reg::FB, self.base.0 + 0x400)] {
            self.write(register, at as u32);
            self.write(register + 4, (at >> 32) as u32);
        }
        self.write(reg::SERR, u32::MAX);
        self.write(reg::IS, u32::MAX);
        self.write(reg::IE, u32::MAX);
    }

    /// Starts the port.
    pub fn start(&self) {
        self.write(reg::CMD, 1 << 4);
        self.write(reg::CMD, 1 << 4 | 1);
    }

    /// Stops the port and waits until it has.
    pub fn stop(&self) {
        self.write(reg::CMD, 1 << 4);
        until("the port's stop", || self.read(reg::CMD) & 1 << 15 == 0);
    }

    /// Stops, forgets errors and starts, as drivers do after an error.
    pub fn recover(&self) {
        self.stop();
        self.write(reg::SERR, u32::MAX);
        self.write(reg::IS, u32::MAX);
        self.start();
    }

    /// Resets the link and waits for the device. The port is stopped before, or it is not.
    pub fn reset_link(&self) {
        self.write(reg::SCTL, 0x301);
        self.write(reg::SCTL, 0x300);
        until("the device's signature", || self.read(reg::TFD) & 0x88 == 0);
        assert_eq!(self.read(reg::SSTS), 0x133);
        self.write(reg::SERR, u32::MAX);
    }

    /// Where a slot's command table lies.
    pub fn table(&self, slot: u8) -> Gpa {
        Gpa(self.base.0 + 0x1000 + TABLE * u64::from(slot))
    }

    /// Puts a frame and a scatter list into a slot.
    pub fn prepare(&self, slot: u8, frame: &[u8], packet: &[u8], pieces: &[Piece]) {
        let (ram, table) = (&self.guest.ram, self.table(slot));
        let mut header = [0; 32];
        header[0] = 5 | if packet.is_empty() { 0 } else { 1 << 5 };
        header[2..4].copy_from_slice(&(pieces.len() as u16).to_le_bytes());
        header[8..16].copy_from_slice(&table.0.to_le_bytes());
        ram.write(Gpa(self.base.0 + 32 * u64::from(slot)), &header).expect("the list is RAM");
        ram.zero(table, 0x80).expect("the table is RAM");
        ram.write(table, frame).expect("the table is RAM");
        ram.write(Gpa(table.0 + 0x40), packet).expect("the table is RAM");
        for (n, (at, len)) in (0u64..).zip(pieces) {
            let entry = [*at as u32, (*at >> 32) as u32, 0, len.wrapping_sub(1)];
            ram.write_obj(Gpa(table.0 + 0x80 + 16 * n), &entry).expect("the table is RAM");
        }
    }

    /// Issues a command that is not queued.
    pub fn issue(&self, slot: u8, ata: Ata, pieces: &[Piece]) {
        self.prepare(slot, &ata.frame(), &[], pieces);
        self.write(reg::CI, 1 << slot);
    }

    /// Issues a queued command.
    pub fn issue_queued(&self, slot: u8, ata: Ata, pieces: &[Piece]) {
        self.prepare(slot, &ata.frame(), &[], pieces);
        self.write(reg::SACT, 1 << slot);
        self.write(reg::CI, 1 << slot);
    }

    /// Waits until the slots' commands have ended, or one has failed.
    pub fn wait(&self, slots: u32) -> Result<(), Failed> {
        let mut interrupts = 0;
        until("the end of a command", || {
            interrupts = self.read(reg::IS);
            interrupts & 0x7800_0000 != 0 || (self.read(reg::CI) | self.read(reg::SACT)) & slots == 0
        });
        interrupts = self.read(reg::IS);
        let [status, error, ..] = self.read(reg::TFD).to_le_bytes();
        if interrupts & 0x7800_0000 != 0 { Err(Failed { interrupts, status, error }) } else { Ok(()) }
    }

    /// One command from start to end; the port goes on after a failure. Returns the bytes transferred.
    pub fn run(&self, ata: Ata, pieces: &[Piece]) -> Result<u32, Failed> {
        self.issue(0, ata, pieces);
        self.outcome()
    }

    /// One packet command from start to end; the port goes on after a failure. Returns the bytes transferred.
    pub fn packet(&self, packet: &[u8], pieces: &[Piece]) -> Result<u32, Failed> {
        self.issue_packet(packet, pieces);
        self.outcome()
    }

    /// The same without waiting for it.
    pub fn issue_packet(&self, packet: &[u8], pieces: &[Piece]) {
        let mut cdb = [0; 12];
        cdb[..packet.len()].copy_from_slice(packet);
        let ata = Ata { features: 1, ..Ata::new(0xa0) };
        self.prepare(0, &ata.frame(), &cdb, pieces);
        self.write(reg::CI, 1);
    }

    /// A software reset: the control register with its bit set, then clear.
    pub fn software_reset(&self) {
        for control in [4, 0] {
            let mut frame = [0; 20];
            (frame[0], frame[15]) = (0x27, control);
            self.prepare(0, &frame, &[], &[]);
            self.write(reg::CI, 1);
            until("the end of a software reset", || self.read(reg::CI) & 1 == 0);
        }
    }

    /// A frame as received, by its place in the area for them.
    pub fn received<const N: usize>(&self, place: u64) -> [u8; N] {
        let mut frame = [0; N];
        self.guest.ram.read(Gpa(self.base.0 + 0x400 + place), &mut frame).expect("the area is RAM");
        frame
    }

    fn outcome(&self) -> Result<u32, Failed> {
        match self.wait(1) {
            Ok(()) => {
                self.write(reg::IS, u32::MAX);
                Ok(self.guest.ram.read_obj(Gpa(self.base.0 + 4)).expect("the list is RAM"))
            }
            Err(failed) => {
                self.recover();
                Err(failed)
            }
        }
    }
}
