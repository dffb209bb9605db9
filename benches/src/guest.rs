//! The driver, the model and the disk.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use devices::{VirtioBlk, VirtioBlkOptions};
use disk::{Bounce, BufferTable, Counters, Disk, DiskOptions, Poll};
use memory::{Gpa, GpaRange, MemoryMap, Ram};
use virtio::driver::{Driver, Guest, Layout};
use virtio::{Features, Piece};

use crate::load::Load;

/// Bytes of the disk.
const DISK: u64 = 256 << 20;
const RAM: u64 = 64 << 20;
const RING: Gpa = Gpa(0x10000);
const HEADERS: u64 = 0x10_0000;
/// The indirect table of each slot has room for a request of 1 MiB in pieces of 8 KiB.
const TABLES: u64 = 0x20_0000;
const TABLE: u64 = 0x2000;
const DATA: u64 = 0x100_0000;
const QUEUE: u16 = 256;

/// How the kernel gets at guest RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// As ordinary memory.
    Plain,
    /// As registered buffers.
    Registered,
}

/// One of the ways that are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// How the kernel gets at guest RAM.
    pub memory: Memory,
    /// Whether everything is copied.
    pub bounce: Bounce,
    /// Whether the queue looks before it sleeps.
    pub poll: Poll,
}

/// A queue that sleeps at once, so that what a request costs is not mixed with what looking costs.
const PLAIN: Way = Way { memory: Memory::Plain, bounce: Bounce::WhenNeeded, poll: Poll::Off };

impl Way {
    /// The ways that are recorded, by name.
    pub const ALL: [(&'static str, Way); 4] = [
        ("plain", PLAIN),
        ("registered", Way { memory: Memory::Registered, ..PLAIN }),
        ("bounce=always", Way { bounce: Bounce::Always, ..PLAIN }),
        ("poll=adaptive", Way { poll: Poll::Adaptive, ..PLAIN }),
    ];

    /// The way with this name.
    pub fn named(name: &str) -> Result<Way> {
        let found = Way::ALL.into_iter().find(|(its, _)| *its == name);
        found.map(|(_, way)| way).with_context(|| format!("no way is called {name}"))
    }
}

/// A guest with a disk, whose queue runs.
pub struct Rig {
    driver: Driver,
    guest: Guest,
    disk: Arc<Disk>,
    /// Which request has which descriptors.
    slots: Vec<u16>,
    random: u64,
    next: u64,
    _map: MemoryMap,
}

impl Rig {
    /// Makes a file at `path` and starts a queue of a disk over it.
    pub fn new(path: &Path, way: Way) -> Result<Rig> {
        fill(path)?;
        let options = DiskOptions { bounce: way.bounce, poll: way.poll, ..DiskOptions::new(path) };
        let disk = Disk::open(&options)?;
        let disk = Arc::new(disk);
        let ram = Ram::new(&[GpaRange::new(Gpa(0), RAM).context("RAM has a size")?])?;
        // As of a guest that has used all of it.
        ram.populate_with(|_| {})?;
        let ram = Arc::new(ram);
        let map = MemoryMap::new(ram.clone());
        if way.memory == Memory::Registered {
            let table = Arc::new(BufferTable::new()?);
            map.attach(table.clone())?;
            ensure!(disk.use_buffers(&table), "this disk has no rings");
        }
        let options = VirtioBlkOptions { queue_size: QUEUE, ..VirtioBlkOptions::new("bench") };
        let guest = Guest::new(Box::new(VirtioBlk::new(disk.clone(), options)?), ram);
        let features = Features(Features::VERSION_1.0 | Features::EVENT_IDX.0 | Features::INDIRECT_DESC.0);
        guest.negotiate(features);
        let driver = guest.add_queue(0, RING, QUEUE, features);
        guest.go();
        ensure!(guest.status() == 15, "the device does not run: {:?}", guest.reports());
        Ok(Rig {
            driver,
            guest,
            disk,
            slots: vec![0; usize::from(QUEUE)],
            random: 0x9e37_79b9_7f4a_7c15,
            next: 0,
            _map: map,
        })
    }

    /// Has so many requests carried out.
    pub fn run(&mut self, load: Load, requests: u64) -> Result<()> {
        let mut left = requests;
        while left > 0 {
            let batch = left.min(u64::from(load.depth()));
            for slot in 0..batch as u16 {
                let place = self.place(load);
                self.send(load, slot, place)?;
            }
            if self.driver.needs_kick() {
                self.guest.kick(0);
            }
            for _ in 0..batch {
                self.finish(load)?;
            }
            left -= batch;
        }
        Ok(())
    }

    /// What went through the disk.
    pub fn counters(&self) -> Counters {
        self.disk.counters()
    }

    fn place(&mut self, load: Load) -> u64 {
        let places = DISK / load.bytes();
        let place = match load {
            Load::Random { .. } => {
                // xorshift64: the same places in every run.
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                self.random % places
            }
            Load::Sequential { .. } => {
                self.next += 1;
                self.next % places
            }
        };
        place * load.bytes() / 512
    }

    fn send(&mut self, load: Load, slot: u16, sector: u64) -> Result<()> {
        let header = Gpa(HEADERS + 32 * u64::from(slot));
        let (status, table) = (Gpa(header.0 + 16), Gpa(TABLES + TABLE * u64::from(slot)));
        let ram = &self.guest.ram;
        ram.write_obj(header, &[0u64, sector.to_le()])?;
        ram.write_obj(status, &0xffu8)?;
        // Every second piece of memory is left out, as the pages of a guest seldom lie one behind the other.
        let piece = load.bytes().min(8192);
        let pieces = load.bytes() / piece;
        let at = |index: u64| Gpa(DATA + 2 * piece * (u64::from(slot) * pieces + index));
        let mut writable: Vec<Piece> =
            (0..pieces).map(|index| Piece { gpa: at(index), len: piece as u32 }).collect();
        writable.push(Piece { gpa: status, len: 1 });
        let readable = [Piece { gpa: header, len: 16 }];
        let head = self.driver.add(&readable, &writable, Layout::Indirect(table));
        self.slots[usize::from(head.context("the queue is full")?)] = slot;
        Ok(())
    }

    fn finish(&mut self, load: Load) -> Result<()> {
        let (head, written) = loop {
            if let Some(used) = self.driver.take_used() {
                break used;
            }
            std::thread::yield_now();
        };
        let slot = self.slots[usize::from(head)];
        let status: u8 = self.guest.ram.read_obj(Gpa(HEADERS + 32 * u64::from(slot) + 16))?;
        if status != 0 || u64::from(written) != load.bytes() + 1 {
            bail!("a request ended with status {status} and {written} bytes: {:?}", self.guest.reports());
        }
        Ok(())
    }
}

/// A file whose every block is on its file system.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mebibyte = vec![0x5a; 1 << 20];
    for _ in 0..DISK >> 20 {
        file.write_all(&mebibyte).with_context(|| format!("cannot fill {}", path.display()))?;
    }
    Ok(())
}
