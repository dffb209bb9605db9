//! A hostile driver against the AHCI controller with a disk and a CD drive, through its registers and its command
//! lists. It must not panic or hang, must answer what is issued to a port that was treated well, must stop when it
//! is told to, and may write to RAM only what it was given.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use devices::ahci::driver::{Guest, Port, reg, until};
use devices::ahci::{AhciCd, AhciDisk, AhciPort};
use disk::{Disk, DiskOptions};
use memory::{Gpa, GpaRange, Ram};

use crate::steps::Steps;

const RAM: u64 = 1 << 20;
/// Lists and tables of the two ports.
const LISTS: [u64; 2] = [0x1_0000, 0x4_0000];
/// Where the devices may write what they read: from here to the end of RAM, as far as they were told.
const DATA: u64 = 0x8_0000;
const DISK: u64 = 128 << 10;
/// What RAM holds where nobody wrote.
const UNTOUCHED: u8 = 0xa5;

/// The disk and the disc, for all inputs; and the disk's file, to empty it.
fn disks() -> (Arc<Disk>, Arc<Disk>) {
    static SHARED: OnceLock<(Arc<Disk>, Arc<Disk>, File)> = OnceLock::new();
    let make = || {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(DISK).expect("room for the disk");
        let disk = Disk::open(&DiskOptions::new(file.path())).expect("a raw disk");
        let image = tempfile::NamedTempFile::new().expect("a temporary file");
        image.as_file().set_len(DISK).expect("room for the disc");
        let disc = Disk::open(&DiskOptions::new(image.path()).read_only()).expect("a raw disk");
        // The names go at once, the disks stay open.
        (Arc::new(disk), Arc::new(disc), file.into_file())
    };
    let (disk, disc, file) = SHARED.get_or_init(make);
    file.write_all_at(&[0; DISK as usize], 0).expect("room for the disk");
    (disk.clone(), disc.clone())
}

/// A driver and what it knows of its controller.
struct Driver {
    guest: Guest,
    ram: Arc<Ram>,
    disk: Arc<Disk>,
    disc: Arc<Disk>,
    /// Set up as it should be and not meddled with since: it must answer.
    sane: bool,
    /// A device was told to write anywhere.
    wild: bool,
    /// Bytes from [`DATA`] on that the devices may write.
    given: Vec<bool>,
}

/// Runs one input.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let (disk, disc) = disks();
    let ram = Ram::new(&[GpaRange::new(Gpa(0), RAM).expect("not empty")]).expect("1 MiB");
    ram.write(Gpa(DATA), &vec![UNTOUCHED; (RAM - DATA) as usize]).expect("RAM");
    let ram = Arc::new(ram);
    let ports = vec![
        AhciPort::Disk(AhciDisk::new("disk0", disk.clone())),
        AhciPort::Cd(AhciCd::new("cd0", usable(&disc))),
        AhciPort::Empty,
    ];
    let mut driver = Driver {
        guest: Guest::new(ports, ram.clone()),
        ram,
        disk,
        disc,
        sane: false,
        wild: false,
        given: vec![false; (RAM - DATA) as usize],
    };
    // Each step may cost a system call or a thread.
    let mut left = 200;
    while let Some(step) = steps.next_step() {
        driver.step(step, &mut steps);
        left -= 1;
        if left == 0 {
            break;
        }
    }
    driver.end();
}

/// Not every file system can be read in blocks as small as a CD's.
fn usable(disc: &Arc<Disk>) -> Option<Arc<Disk>> {
    (disc.geometry().logical_block <= 2048).then(|| disc.clone())
}

impl Driver {
    fn step(&mut self, step: u8, steps: &mut Steps<'_>) {
        let port = step >> 7;
        match step & 0x7f {
            0..16 => self.set_up(),
            16..56 => self.disk_command(steps),
            56..76 => self.packet(steps),
            76..84 => self.raw_table(port, steps),
            84..88 => self.raw_scatter(port, steps),
            88..98 => {
                // Any register of any port, or of the controller.
                let offset = u64::from(steps.u16() % 0x240) & !3;
                self.sane = false;
                self.wild |= offset >= 0x100 && offset % 0x80 < 0x10;
                self.poke(offset, steps.access());
            }
            98..104 => {
                // Commands that nobody prepared, or once more.
                self.sane = false;
                let register = steps.pick(&[reg::CI, reg::SACT, reg::CMD, reg::SCTL, reg::IS]);
                self.poke(0x100 + 0x80 * u64::from(port) + register, &steps.u32().to_le_bytes());
            }
            104..107 => {
                let offset = u64::from(steps.u16() % 0x2000);
                let len = steps.access().len();
                self.guest.bus.read_memory(Gpa(Guest::ABAR + offset), &mut [0; 8][..len]);
            }
            107..110 => {
                self.sane = false;
                let (offset, data) = (steps.u16() % 0x200, steps.access());
                let written = self.guest.bus.write_config(self.guest.address, offset, data);
                written.expect("the services never fail");
            }
            110..114 => {
                self.sane = false;
                self.poke(0x04, &[steps.u8() & 3, 0, 0, 0x80]);
            }
            114..118 => self.replug(steps.u8()),
            118..122 => self.change_disc(steps.u8()),
            122..126 => self.stop(port),
            _ => {
                self.sane = false;
                let errors = self.guest.bus.reset();
                assert!(errors.is_empty(), "{errors:?}");
                self.guest.enable();
            }
        }
    }

    /// Writes to the BAR, if it is there.
    fn poke(&self, offset: u64, data: &[u8]) {
        if let Some(Err(why)) = self.guest.bus.write_memory(Gpa(Guest::ABAR + offset), data) {
            panic!("a service failed that never does: {why}");
        }
    }

    fn port(&self, index: u8) -> Port<'_> {
        self.guest.port(index, Gpa(LISTS[usize::from(index)]))
    }

    /// Everything that a driver does first, as it should.
    fn set_up(&mut self) {
        self.guest.enable();
        self.guest.reset_controller();
        for index in 0..2 {
            self.port(index).start();
        }
        self.sane = !self.wild;
    }

    /// Stops a port, which then has nothing under way.
    fn stop(&mut self, index: u8) {
        self.guest.enable();
        self.port(index).stop();
        self.sane = false;
    }

    /// A command for the disk: mostly one that it knows.
    fn disk_command(&mut self, steps: &mut Steps<'_>) {
        let command = match steps.u8() {
            known @ 0..192 => {
                let known = usize::from(known) % KNOWN.len();
                KNOWN[known]
            }
            _ => steps.u8(),
        };
        let (flags, slot) = (steps.u8(), steps.u8() % 32);
        let lba = match command {
            0xb0 => 0xc2_4f00 | u64::from(steps.u8()),
            _ if flags & 1 == 0 => u64::from(steps.u8()),
            _ => steps.u64(),
        };
        let (features, count) = (u16::from(steps.u8()), u16::from(steps.u8()));
        // Every so often the control register is written instead, for which SActive is not set.
        let is_command = flags & 0xc0 != 0xc0;
        let queued = is_command && matches!(command, 0x60 | 0x61);
        let (features, count) = if queued { (count, u16::from(slot) << 3) } else { (features, count & 0xff) };
        let [l0, l1, l2, l3, l4, l5, ..] = lba.to_le_bytes();
        let [f0, f1] = features.to_le_bytes();
        let control = if is_command { 0 } else { steps.u8() };
        let kind = u8::from(is_command) << 7;
        let frame = [0x27, kind, command, f0, l0, l1, l2, 0x40, l3, l4, l5, f1, count as u8, 0, 0, control];
        let reads =
            !matches!(command, 0x30 | 0x31 | 0x34 | 0x35 | 0x39 | 0x3d | 0x61 | 0xc5 | 0xca | 0xce | 0x06);
        let pieces = self.pieces(flags >> 1 & 3, reads, steps);
        self.port_quietly(0, slot, &frame, &[], &pieces);
        self.issue(0, slot, queued);
    }

    /// A packet command for the drive.
    fn packet(&mut self, steps: &mut Steps<'_>) {
        let command = match steps.u8() {
            known @ 0..224 => PACKETS[usize::from(known) % PACKETS.len()],
            _ => steps.u8(),
        };
        let flags = steps.u8();
        let mut packet = [0; 12];
        let operands = steps.bytes(usize::from(flags & 0xf).min(11));
        packet[0] = command;
        packet[1..=operands.len()].copy_from_slice(operands);
        let frame = [0x27, 0x80, 0xa0, flags & 1, 0, 0, 0, 0x40];
        let pieces = self.pieces(flags >> 4 & 3, true, steps);
        self.port_quietly(1, flags & 31, &frame, &packet, &pieces);
        self.issue(1, flags & 31, false);
    }

    fn port_quietly(&self, port: u8, slot: u8, frame: &[u8], packet: &[u8], pieces: &[(u64, u32)]) {
        // `Guest::port` sets registers, which a driver that is at work must not.
        Port::at_work(&self.guest, port, Gpa(LISTS[usize::from(port)])).prepare(slot, frame, packet, pieces);
    }

    fn pieces(&mut self, count: u8, reads: bool, steps: &mut Steps<'_>) -> Vec<(u64, u32)> {
        let mut pieces = Vec::new();
        for _ in 0..count {
            let at = DATA + u64::from(steps.u16()) * 8;
            let len = match steps.u8() {
                blocks @ 0..240 => 512 * (1 + u32::from(blocks % 32)),
                _ => 1 + u32::from(steps.u16()),
            };
            if reads {
                self.give(at, len);
            }
            pieces.push((at, len));
        }
        pieces
    }

    fn give(&mut self, at: u64, len: u32) {
        let end = at.saturating_add(len.into()).min(RAM);
        for byte in at.max(DATA)..end {
            self.given[(byte - DATA) as usize] = true;
        }
        self.wild |= at < DATA;
    }

    /// Issues a command. A port that was treated well answers.
    fn issue(&mut self, index: u8, slot: u8, queued: bool) {
        let bit = 1u32 << slot;
        let port = Port::at_work(&self.guest, index, Gpa(LISTS[usize::from(index)]));
        if !self.sane || port.read(reg::SSTS) & 0xf != 3 {
            if queued {
                self.poke(0x100 + 0x80 * u64::from(index) + reg::SACT, &bit.to_le_bytes());
            }
            return self.poke(0x100 + 0x80 * u64::from(index) + reg::CI, &bit.to_le_bytes());
        }
        if queued {
            port.write(reg::SACT, bit);
        }
        port.write(reg::CI, bit);
        if port.wait(bit).is_err() {
            port.recover();
        }
    }

    /// Anything in place of a command header or table.
    fn raw_table(&mut self, port: u8, steps: &mut Steps<'_>) {
        let lists = LISTS[usize::from(port)];
        let (slot, offset) = (u64::from(steps.u8() % 32), u64::from(steps.u8() % 0x50));
        let at = if steps.u8() & 1 == 0 {
            lists + 32 * slot + offset % 32
        } else {
            lists + 0x1000 + 0x1000 * slot + offset
        };
        let data = steps.access();
        // Another command for memory that was meant for the one before, or another place of it.
        self.wild = true;
        self.ram.write(Gpa(at), data).expect("the lists are RAM");
        self.sane = false;
    }

    /// Anything in a scatter list.
    fn raw_scatter(&mut self, port: u8, steps: &mut Steps<'_>) {
        let slot = u64::from(steps.u8() % 32);
        let at = LISTS[usize::from(port)] + 0x1080 + 0x1000 * slot + 16 * u64::from(steps.u8() % 8);
        let (address, count) = (steps.u64(), steps.u32());
        self.give(address, (count & 0x3f_ffff) + 1);
        let entry = [address as u32, (address >> 32) as u32, 0, count];
        self.ram.write_obj(Gpa(at), &entry).expect("the tables are RAM");
    }

    fn replug(&mut self, what: u8) {
        self.sane = false;
        let ahci = &self.guest.ahci;
        let index = what % 4;
        if what & 0x80 == 0 {
            ahci.unplug(index).ok();
        } else if what & 0x40 == 0 {
            ahci.plug_disk(index, AhciDisk::new("again", self.disk.clone())).ok();
        } else {
            ahci.plug_cd(index, AhciCd::new("again", usable(&self.disc))).ok();
        }
    }

    fn change_disc(&mut self, what: u8) {
        let ahci = &self.guest.ahci;
        if what & 1 == 0 {
            ahci.eject_disc(1, what & 2 != 0).ok();
        } else if let Some(disc) = usable(&self.disc) {
            ahci.insert_disc(1, disc, what & 2 != 0).ok();
        }
    }

    /// Stops the controller, which it must, and looks at what it wrote.
    fn end(self) {
        let Driver { guest, ram, wild, given, .. } = self;
        guest.config_write(4, &[0, 0]);
        guest.enable();
        for index in 0..3u64 {
            let command = 0x100 + 0x80 * index + reg::CMD;
            guest.write(command, 0);
            until("the port's stop", || guest.read(command) & 1 << 15 == 0);
        }
        drop(guest);
        if wild {
            return;
        }
        let mut all = vec![0; given.len()];
        ram.read(Gpa(DATA), &mut all).expect("RAM");
        let stray = all.iter().zip(&given).position(|(byte, given)| !given && *byte != UNTOUCHED);
        assert_eq!(stray.map(|at| Gpa(DATA + at as u64)), None, "written without having been given");
    }
}

/// Commands that a disk knows, the frequent ones more than once.
const KNOWN: [u8; 40] = [
    0x60, 0x61, 0x60, 0x61, 0x25, 0x35, 0xc8, 0xca, 0x20, 0x30, 0x24, 0x34, 0x29, 0x39, 0xc4, 0xc5, 0xc6,
    0x3d, 0xce, 0x06, 0x06, 0x2f, 0x47, 0x40, 0x42, 0xb0, 0xb0, 0xec, 0xef, 0xe0, 0xe1, 0xe2, 0xe3, 0xe5,
    0xe6, 0xe7, 0xea, 0x90, 0x91, 0x10,
];

/// Packet commands that a drive knows.
const PACKETS: [u8; 20] = [
    0x00, 0x03, 0x12, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x2b, 0x35, 0x43, 0x46, 0x4a, 0x51, 0x52, 0x5a, 0xa8,
    0xbd, 0xbe, 0x28,
];
