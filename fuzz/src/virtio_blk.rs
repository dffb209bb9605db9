//! A hostile driver against the virtio block device, through its registers and its queues. It must not panic or
//! hang, must answer what is made available or ask for a reset, and may write to RAM only what it was given.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use devices::{Rings, VirtioBlk, VirtioBlkOptions};
use disk::{Disk, DiskOptions};
use memory::{Gpa, GpaRange, Ram};
use virtio::driver::{Guest, Layout, PackedDriver};
use virtio::{Features, Piece};

use crate::steps::Steps;

const RAM: u64 = 512 << 10;
/// Two queues: tables, and behind each its rings.
const QUEUE: [u64; 2] = [0x1_0000, 0x1_8000];
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x5000;
/// Headers of requests; then tables of descriptors, 16 KiB for each queue.
const HEADERS: u64 = 0x2_0000;
const TABLES: u64 = 0x3_0000;
/// Where the device may write what it read: from here to the end of RAM, as far as it was told.
const DATA: u64 = 0x4_0000;
const DISK: u64 = 128 << 10;
/// What RAM holds where nobody wrote.
const UNTOUCHED: u8 = 0xa5;
const PATIENCE: Duration = Duration::from_secs(10);

/// The disk, for all inputs; and its file, to empty it.
fn disk() -> (Arc<Disk>, &'static File) {
    static SHARED: OnceLock<(Arc<Disk>, File)> = OnceLock::new();
    let make = || {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(DISK).expect("room for the disk");
        let disk = Disk::open(&DiskOptions::new(file.path())).expect("a raw disk");
        // The name goes at once, the disk stays open.
        (Arc::new(disk), file.into_file())
    };
    let (disk, file) = SHARED.get_or_init(make);
    file.write_all_at(&[0; DISK as usize], 0).expect("room for the disk");
    (disk.clone(), file)
}

/// A driver and what it knows of its device.
struct Driver {
    guest: Guest,
    ram: Arc<Ram>,
    size: u16,
    available: [u16; 2],
    /// Descriptors used so far, for requests: the next ones.
    next: [u16; 2],
    /// The queues, when they are packed.
    packed: Option<[Packed; 2]>,
    headers: u64,
    /// Set up as it should be and not meddled with since: it must answer.
    sane: bool,
    /// The device was told to write anywhere.
    wild: bool,
    /// Bytes from [`DATA`] on that the device may write.
    given: Vec<bool>,
}

/// A packed queue, and how many of its chains are under way.
struct Packed {
    ring: PackedDriver,
    under_way: usize,
}

impl Packed {
    /// Takes back what the device has answered.
    fn take_used(&mut self) {
        while self.ring.take_used().is_some() {
            self.under_way -= 1;
        }
    }
}

/// Runs one input.
pub fn run(input: &[u8]) {
    let mut steps = Steps::new(input);
    let (disk, _) = disk();
    let options = VirtioBlkOptions {
        queues: 2,
        queue_size: 64,
        rings: Rings::Packed,
        ..VirtioBlkOptions::new("disk0")
    };
    let device = VirtioBlk::new(disk, options).expect("possible options");
    let ram = Ram::new(&[GpaRange::new(Gpa(0), RAM).expect("not empty")]).expect("512 KiB");
    ram.write(Gpa(DATA), &vec![UNTOUCHED; (RAM - DATA) as usize]).expect("RAM");
    let ram = Arc::new(ram);
    let mut driver = Driver {
        guest: Guest::new(Box::new(device), ram.clone()),
        ram,
        size: 64,
        available: [0; 2],
        next: [0; 2],
        packed: None,
        headers: 0,
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

impl Driver {
    fn step(&mut self, step: u8, steps: &mut Steps<'_>) {
        let queue = usize::from(step >> 7);
        match step & 0x7f {
            0..24 => self.set_up(steps),
            24..64 => self.request(queue, steps),
            64..84 => self.kick(queue),
            84..92 => self.descriptor(queue, steps),
            92..100 if self.packed.is_some() => {
                // Wishes for events, the device's own among them.
                let at = self.packed.as_ref().map_or(0, |rings| rings[queue].ring.addresses().driver.0);
                self.put(at + u64::from(steps.u8() & 4), &steps.u32().to_le_bytes());
            }
            92..96 => {
                // An index from nowhere.
                self.available[queue] = steps.u16();
                self.put(QUEUE[queue] + AVAILABLE + 2, &self.available[queue].to_le_bytes());
            }
            96..100 => {
                let place = u64::from(steps.u16() % self.size);
                self.put(QUEUE[queue] + AVAILABLE + 4 + 2 * place, &steps.u16().to_le_bytes());
            }
            100..108 => {
                self.sane = false;
                let offset = u64::from(steps.u8());
                // The addresses of the queues.
                self.wild |= (24..60).contains(&offset);
                self.poke(Guest::COMMON + offset, steps.access());
            }
            108..112 => self.poke(Guest::DEVICE + u64::from(steps.u8()), steps.access()),
            112..116 => {
                // Vectors, and whatever else a BAR holds.
                let (bar, offset) = (steps.pick(&[Guest::MSIX, Guest::ISR, Guest::NOTIFY]), steps.u16());
                self.poke(bar + u64::from(offset % 0x1000), steps.access());
            }
            116..119 => {
                let (offset, data) = (steps.u16() % 0x200, steps.access());
                self.sane = false;
                self.wild |= offset >= 6 || usize::from(offset) + data.len() > 6;
                self.guest
                    .bus
                    .write_config(self.guest.address, offset, data)
                    .expect("the services never fail");
            }
            119..121 => {
                let bar = Guest::BAR + u64::from(steps.u16());
                let len = steps.access().len();
                self.guest.bus.read_memory(Gpa(bar), &mut [0; 8][..len]);
            }
            121..126 => {
                // Through 0, as drivers reset, without waiting.
                self.sane = false;
                self.poke(Guest::COMMON + 20, &[0]);
            }
            _ => {
                self.sane = false;
                let errors = self.guest.bus.reset();
                assert!(errors.is_empty(), "{errors:?}");
                self.guest.config_write(4, &[6, 0]);
            }
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.write(Gpa(at), bytes).expect("the places of this driver are RAM");
    }

    /// Writes to a BAR, if one is there.
    fn poke(&self, at: u64, data: &[u8]) {
        if let Some(Err(why)) = self.guest.bus.write_memory(Gpa(at), data) {
            panic!("a service failed that never does: {why}");
        }
    }

    /// Everything that a driver does first, as it should.
    fn set_up(&mut self, steps: &mut Steps<'_>) {
        let refused = u64::from(steps.u16());
        let shape = steps.u8();
        self.size = 1 << ((shape & 0x7f) % 7);
        let packed = shape & 0x80 != 0;
        self.poke(Guest::COMMON + 20, &[0]);
        self.poke(Guest::COMMON + 20, &[1]);
        self.poke(Guest::COMMON + 20, &[3]);
        let mut offered = 0;
        for half in 0..2u32 {
            self.poke(Guest::COMMON, &half.to_le_bytes());
            let mut word = [0; 4];
            self.guest.bus.read_memory(Gpa(Guest::COMMON + 4), &mut word);
            offered |= u64::from(u32::from_le_bytes(word)) << (32 * half);
        }
        // Of the device's own features, and of indirect tables and event indices, not all are taken.
        let split = if packed { 0 } else { Features::RING_PACKED.0 };
        let accepted = offered & !(refused & 0x3fff) & !(refused >> 14 << 28) & !split;
        for half in 0..2u32 {
            self.poke(Guest::COMMON + 8, &half.to_le_bytes());
            self.poke(Guest::COMMON + 12, &((accepted >> (32 * half)) as u32).to_le_bytes());
        }
        self.poke(Guest::COMMON + 20, &[11]);
        self.packed = None;
        for base in QUEUE {
            self.ram.zero(Gpa(base), 0x8000).expect("RAM");
        }
        if packed {
            let ring = |base| PackedDriver::new(self.ram.clone(), Gpa(base), self.size, Features(accepted));
            self.packed = Some(QUEUE.map(|base| Packed { ring: ring(base), under_way: 0 }));
        }
        for queue in 0..2u16 {
            let base = QUEUE[usize::from(queue)];
            let (driver, device) = match &self.packed {
                None => (base + AVAILABLE, base + USED),
                Some(rings) => {
                    let at = rings[usize::from(queue)].ring.addresses();
                    (at.driver.0, at.device.0)
                }
            };
            self.poke(Guest::COMMON + 22, &queue.to_le_bytes());
            self.poke(Guest::COMMON + 24, &self.size.to_le_bytes());
            for (register, at) in [(32, base), (40, driver), (48, device)] {
                self.poke(Guest::COMMON + register, &at.to_le_bytes());
            }
            self.poke(Guest::COMMON + 28, &1u16.to_le_bytes());
        }
        self.poke(Guest::COMMON + 20, &[15]);
        (self.available, self.next) = ([0; 2], [0; 2]);
        self.sane = !self.wild;
    }

    /// Makes a request available: mostly what the device expects.
    fn request(&mut self, queue: usize, steps: &mut Steps<'_>) {
        let kind = steps.pick(&[0u32, 1, 4, 8, 11, 13, 2, 0xffff_ffff]);
        let flags = steps.u8();
        let header = HEADERS + self.headers % 0x800 * 32;
        self.headers += 1;
        let sector = if flags & 1 == 0 { u64::from(steps.u8()) } else { steps.u64() };
        self.put(header, &kind.to_le_bytes());
        self.put(header + 8, &sector.to_le_bytes());
        let mut pieces = vec![(header, 16, false)];
        for _ in 0..flags >> 1 & 3 {
            let at = DATA + u64::from(steps.u16()) * 4;
            let len = if flags & 8 == 0 { 512 * u32::from(steps.u8() % 16) } else { steps.u16().into() };
            pieces.push((at, len, matches!(kind, 0 | 8)));
        }
        if matches!(kind, 11 | 13) {
            self.put(header + 16, &u64::from(steps.u8()).to_le_bytes());
            self.put(header + 24, &[steps.u8(), 0, 0, 0, steps.u8() & 3, 0, 0, 0]);
            pieces.push((header + 16, 16, false));
        }
        if flags & 0x10 == 0 {
            pieces.push((DATA + u64::from(steps.u16()) * 4, 1, true));
        }
        if self.packed.is_some() {
            let indirect = flags & 0x20 != 0;
            return self.add_packed(queue, &pieces, indirect);
        }
        let count = pieces.len() as u16;
        let (table, first) =
            if flags & 0x20 == 0 { (QUEUE[queue], self.next[queue]) } else { (self.table(queue), 0) };
        for (n, (at, len, write)) in (0..count).zip(pieces) {
            let wraps = if flags & 0x20 == 0 { self.size } else { u16::MAX };
            let (here, next) = ((first + n) % wraps, (first + n + 1) % wraps);
            let flags = u16::from(write) << 1 | u16::from(n + 1 < count);
            self.describe(table, here, (at, len, flags, next));
        }
        let head = self.next[queue];
        if flags & 0x20 != 0 {
            self.describe(QUEUE[queue], head, (table, u32::from(count) * 16, 4, 0));
            self.next[queue] = (head + 1) % self.size;
        } else {
            self.next[queue] = (head + count) % self.size;
        }
        let place = u64::from(self.available[queue] % self.size);
        self.put(QUEUE[queue] + AVAILABLE + 4 + 2 * place, &head.to_le_bytes());
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.put(QUEUE[queue] + AVAILABLE + 2, &self.available[queue].to_le_bytes());
    }

    /// Makes a request available in a packed queue, if it has room. A driver that has lost its way does not look at
    /// what comes back.
    fn add_packed(&mut self, queue: usize, pieces: &[(u64, u32, bool)], indirect: bool) {
        let table = Gpa(self.table(queue));
        let layout = if indirect { Layout::Indirect(table) } else { Layout::Direct };
        let of = |write| {
            let side = pieces.iter().filter(move |piece| piece.2 == write);
            side.map(|(at, len, _)| Piece { gpa: Gpa(*at), len: *len }).collect::<Vec<_>>()
        };
        let Some(rings) = &mut self.packed else { return };
        if self.sane && !self.wild {
            rings[queue].take_used();
        }
        if rings[queue].ring.add(&of(false), &of(true), layout).is_some() {
            rings[queue].under_way += 1;
            self.available[queue] = self.available[queue].wrapping_add(1);
            for (at, len, write) in pieces {
                self.grant(*at, *len, u16::from(*write) << 1);
            }
        }
    }

    /// A table of 64 descriptors for an indirect chain.
    fn table(&self, queue: usize) -> u64 {
        TABLES + 0x4000 * queue as u64 + 0x400 * u64::from(self.available[queue] % 16)
    }

    /// A descriptor as the input wants it.
    fn descriptor(&mut self, queue: usize, steps: &mut Steps<'_>) {
        let (table, size) =
            if steps.u8() & 1 == 0 { (QUEUE[queue], self.size) } else { (self.table(queue), 64) };
        let index = u16::from(steps.u8()) % size;
        // In a packed ring, what is available is not what the driver thinks any more.
        self.sane &= self.packed.is_none();
        let at = match steps.u8() % 8 {
            0..4 => DATA + u64::from(steps.u16()) * 4,
            4 => TABLES + u64::from(steps.u16() & 0x7ff0),
            5 => u64::from(steps.u32()),
            6 => RAM - u64::from(steps.u8()),
            _ => steps.u64(),
        };
        let (len, flags, next) = (steps.u32(), steps.u16(), steps.u16());
        self.describe(table, index, (at, len, flags, next));
    }

    fn describe(&mut self, table: u64, index: u16, (at, len, flags, next): (u64, u32, u16, u16)) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&at.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &raw);
        // Packed descriptors have their flags where split ones have the next index.
        self.grant(at, len, flags);
        if self.packed.is_some() {
            self.grant(at, len, next);
        }
    }

    /// Notes what a descriptor lets the device do.
    fn grant(&mut self, at: u64, len: u32, flags: u16) {
        if flags & 4 != 0 {
            // A table: its descriptors are known if it is one of ours.
            self.wild |= !(TABLES..DATA).contains(&at) || !at.is_multiple_of(16);
            self.wild |= at.saturating_add(len.into()) > DATA;
        }
        let end = at.saturating_add(len.into()).min(RAM);
        if flags & 2 != 0 && at < end {
            self.wild |= at < DATA;
            for byte in at.max(DATA)..end {
                self.given[(byte - DATA) as usize] = true;
            }
        }
    }

    /// Rings the doorbell. A device that was treated well answers everything, or says that it cannot go on.
    fn kick(&mut self, queue: usize) {
        self.poke(Guest::NOTIFY + 4 * queue as u64, &(queue as u16).to_le_bytes());
        if self.wild || !self.sane {
            return;
        }
        let start = Instant::now();
        while let Some(rings) = &mut self.packed {
            rings[queue].take_used();
            if rings[queue].under_way == 0 || self.guest.status() & 64 != 0 {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{} chains not answered", rings[queue].under_way);
            std::thread::yield_now();
        }
        loop {
            let used: u16 = self.ram.read_obj(Gpa(QUEUE[queue] + USED + 2)).expect("RAM");
            if used == self.available[queue] || self.guest.status() & 64 != 0 {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{used} of {} answered", self.available[queue]);
            std::thread::yield_now();
        }
    }

    /// Stops the device and looks at what it wrote.
    fn end(self) {
        let Driver { guest, ram, wild, given, .. } = self;
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
