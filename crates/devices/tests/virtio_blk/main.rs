//! The virtio block device, driven by a guest over a file, and over a disk that is late.

mod cache;
mod late;
mod options;
mod requests;
mod resets;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use devices::{InitialCache, Rings, SizeNotice, VirtioBlk, VirtioBlkOptions};
use disk::nvme::model::{Model, Namespace};
use disk::nvme::{NvmeController, NvmeOptions};
use disk::{Answer, Disk, DiskOptions, Durability, OnError, Operation, Poll, SectorRange, Sectors, Unmap};
use dma::Kind;
use dma::fake::FakeIommu;
use late::{Late, Ledger};
use memory::{Gpa, GpaRange, MemoryMap, Ram};
use tempfile::TempDir;
use virtio::driver::{Driver, Guest, Layout};
use virtio::{Features, Piece};

/// Feature bits of block devices (5.2.3).
mod feature {
    use virtio::Features;

    pub const RO: Features = Features(1 << 5);
    pub const FLUSH: Features = Features(1 << 9);
    pub const CONFIG_WCE: Features = Features(1 << 11);
    pub const DISCARD: Features = Features(1 << 13);
    pub const WRITE_ZEROES: Features = Features(1 << 14);
}

const SIZE: u64 = 8 << 20;
const RING: Gpa = Gpa(0x10000);
const HEADERS: u64 = 0x20000;
const DATA: u64 = 0x10_0000;
const ALL: Features = Features(
    Features::VERSION_1.0
        | Features::EVENT_IDX.0
        | Features::INDIRECT_DESC.0
        | feature::FLUSH.0
        | feature::CONFIG_WCE.0,
);

/// A guest with a disk over a file.
struct Setup {
    guest: Guest,
    disk: Arc<Disk>,
    file: File,
    notice: SizeNotice,
    _folder: TempDir,
}

impl Setup {
    fn new() -> Setup {
        Setup::with(DiskOptions::new, VirtioBlkOptions::new("disk0"))
    }

    fn with(options: impl FnOnce(PathBuf) -> DiskOptions, blk: VirtioBlkOptions) -> Setup {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("disk.raw");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(SIZE).unwrap();
        let disk = Arc::new(Disk::open(&options(path)).unwrap());
        let device = VirtioBlk::new(disk.clone(), blk).unwrap();
        let notice = device.size_notice();
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 16 << 20).unwrap()]).unwrap());
        Setup { guest: Guest::new(Box::new(device), ram), disk, file, notice, _folder: folder }
    }

    fn start(&self, features: Features) -> Queued<'_> {
        self.guest.negotiate(features);
        let ring = self.guest.add_queue(0, RING, 256, features);
        self.guest.go();
        assert_eq!(self.guest.status(), 15, "{:?}", self.guest.reports());
        Queued { guest: &self.guest, ring, next: 0 }
    }

    fn on_disk(&self, sector: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, sector * 512).unwrap();
        bytes
    }
}

/// Queue 0 as a driver uses it.
struct Queued<'a> {
    guest: &'a Guest,
    ring: Driver,
    next: u64,
}

impl Queued<'_> {
    /// Makes a request available; returns its head and where its status will be.
    fn send(
        &mut self,
        kind: u32,
        sector: u64,
        out: &[Piece],
        room: &[Piece],
        layout: Layout,
    ) -> Option<(u16, Gpa)> {
        let header = HEADERS + 32 * (self.next % 1024);
        self.next += 1;
        let status = Gpa(header + 16);
        let ram = &self.guest.ram;
        ram.write_obj(Gpa(header), &[kind.to_le(), 0]).unwrap();
        ram.write_obj(Gpa(header + 8), &sector.to_le()).unwrap();
        ram.write_obj(status, &0xaau8).unwrap();
        let readable = [&[Piece { gpa: Gpa(header), len: 16 }], out].concat();
        let writable = [room, &[Piece { gpa: status, len: 1 }]].concat();
        let head = self.ring.add(&readable, &writable, layout)?;
        Some((head, status))
    }

    fn kick(&mut self) {
        if self.ring.needs_kick() {
            self.guest.kick(0);
        }
    }

    /// Waits for the next chain that comes back.
    fn wait(&mut self) -> (u16, u32) {
        let start = Instant::now();
        loop {
            if let Some(used) = self.ring.take_used() {
                return used;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "no answer: {:?}", self.guest.reports());
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// One request from start to end: its status and the bytes written.
    fn run(&mut self, kind: u32, sector: u64, out: &[Piece], room: &[Piece]) -> (u8, u32) {
        let (head, status) = self.send(kind, sector, out, room, Layout::Direct).unwrap();
        self.kick();
        let (used, written) = self.wait();
        assert_eq!(used, head);
        (self.guest.ram.read_obj(status).unwrap(), written)
    }
}

fn piece(gpa: u64, len: u32) -> Piece {
    Piece { gpa: Gpa(gpa), len }
}

fn pattern(guest: &Guest, gpa: u64, len: usize, seed: u64) -> Vec<u8> {
    let bytes: Vec<u8> =
        (0..len as u64).map(|i| ((i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    guest.ram.write(Gpa(gpa), &bytes).unwrap();
    bytes
}

fn bytes(guest: &Guest, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    guest.ram.read(Gpa(gpa), &mut bytes).unwrap();
    bytes
}

fn packed_too() -> VirtioBlkOptions {
    VirtioBlkOptions { rings: Rings::Packed, ..VirtioBlkOptions::new("disk0") }
}

/// A guest over a disk that says what it was asked to do.
fn watched(write_cache: InitialCache) -> (Guest, Ledger) {
    let late = Late::new(Duration::ZERO);
    let ledger = late.ledger();
    let disk = Arc::new(Disk::new("late", Box::new(late)));
    let device = VirtioBlk::new(disk, VirtioBlkOptions { write_cache, ..VirtioBlkOptions::new("disk0") });
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 16 << 20).unwrap()]).unwrap());
    (Guest::new(Box::new(device.unwrap()), ram), ledger)
}

fn start(guest: &Guest, features: Features) -> Queued<'_> {
    guest.negotiate(features);
    let ring = guest.add_queue(0, RING, 256, features);
    guest.go();
    assert_eq!(guest.status(), 15, "{:?}", guest.reports());
    Queued { guest, ring, next: 0 }
}
