//! The virtio block device, driven by a guest over a file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use devices::{SizeNotice, VirtioBlk, VirtioBlkOptions};
use disk::nvme::model::{Model, Namespace};
use disk::nvme::{NvmeController, NvmeOptions};
use disk::{Disk, DiskOptions, OnError, Poll};
use dma::Kind;
use dma::fake::FakeIommu;
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

#[test]
fn configuration_space_shows_the_disk_as_it_is() {
    let setup =
        Setup::with(DiskOptions::new, VirtioBlkOptions { queues: 4, ..VirtioBlkOptions::new("disk0") });
    let at = |offset| Guest::DEVICE + offset;
    assert_eq!(setup.guest.read::<8>(at(0)), (SIZE / 512).to_le_bytes());
    assert_eq!(setup.guest.read::<4>(at(12)), 254u32.to_le_bytes());
    assert_eq!(setup.guest.read::<4>(at(20)), setup.disk.geometry().logical_block.to_le_bytes());
    assert_eq!(setup.guest.read::<1>(at(32)), [1]);
    assert_eq!(setup.guest.read::<2>(at(34)), [4, 0]);
    assert_eq!(setup.guest.read::<2>(Guest::COMMON + 18), [4, 0]);
    setup.guest.write(at(32), [0]);
    assert_eq!(setup.guest.read::<1>(at(32)), [0]);
    setup.guest.write(at(32), [7]);
    setup.guest.write(at(0), [7]);
    assert_eq!(setup.guest.read::<8>(at(0)), (SIZE / 512).to_le_bytes());
    setup.guest.reset();
    assert_eq!(setup.guest.read::<1>(at(32)), [1], "a reset brings the disk's own mode back");
}

#[test]
fn another_size_of_the_disk_is_seen_and_told() {
    let setup = Setup::new();
    let generation = || setup.guest.read::<1>(Guest::COMMON + 21)[0];
    let before = generation();
    setup.file.set_len(2 * SIZE).unwrap();
    setup.disk.look_again().unwrap();
    setup.notice.send();
    assert_eq!(setup.guest.read::<8>(Guest::DEVICE), (2 * SIZE / 512).to_le_bytes());
    assert_eq!(generation(), before.wrapping_add(1));
}

#[test]
fn data_goes_to_the_disk_and_back_without_a_copy() {
    let setup = Setup::new();
    for (features, len) in [(ALL, 0x1000), (ALL, 0x100000), (Features::VERSION_1, 0x3000)] {
        let mut queue = setup.start(features);
        let data = pattern(&setup.guest, DATA, len, 7);
        assert_eq!(queue.run(1, 64, &[piece(DATA, len as u32)], &[]), (0, 1));
        assert_eq!(queue.run(4, 0, &[], &[]), (0, 1));
        assert!(setup.on_disk(64, len) == data);
        let room = [piece(DATA + 0x200000, 0x800), piece(DATA + 0x300800, len as u32 - 0x800)];
        assert_eq!(queue.run(0, 64, &[], &room), (0, len as u32 + 1));
        let back =
            [bytes(&setup.guest, DATA + 0x200000, 0x800), bytes(&setup.guest, DATA + 0x300800, len - 0x800)];
        assert!(back.concat() == data);
        setup.guest.reset();
    }
    let counters = setup.disk.counters();
    assert_eq!(counters.bytes_bounced(), 0);
    assert_eq!(counters.bytes_direct, 2 * (0x1000 + 0x100000 + 0x3000));
}

#[test]
fn headers_and_statuses_may_be_cut_anywhere() {
    let setup = Setup::new();
    let mut queue = setup.start(ALL);
    let ram = &setup.guest.ram;
    let data = pattern(&setup.guest, DATA + 13, 512, 3);
    // A write whose header and data share descriptors that are cut at odd places.
    ram.write_obj(Gpa(DATA), &[1u32, 0]).unwrap();
    ram.write_obj(Gpa(DATA + 0x1000), &5u64.to_le_bytes()[..5].try_into().unwrap_or([0u8; 5])).unwrap();
    let mut rest = vec![0u8; 3];
    rest.extend(&data);
    ram.write(Gpa(DATA + 0x2000), &rest).unwrap();
    let out = [piece(DATA, 8), piece(DATA + 0x1000, 5), piece(DATA + 0x2000, 515)];
    queue.ring.add(&out, &[piece(DATA + 0x4000, 1)], Layout::Indirect(Gpa(DATA + 0x5000))).unwrap();
    queue.kick();
    assert_eq!(queue.wait().1, 1);
    assert_eq!(bytes(&setup.guest, DATA + 0x4000, 1), [0]);
    assert_eq!(setup.on_disk(5, 512), data);
    assert_eq!(setup.disk.counters().bytes_bounced_alignment, 512);
    // A read whose status shares the last descriptor with the data.
    let header = HEADERS;
    ram.write_obj(Gpa(header), &[0u32, 0, 5, 0]).unwrap();
    queue.ring.add(&[piece(header, 16)], &[piece(DATA + 0x6000, 513)], Layout::Direct).unwrap();
    queue.kick();
    assert_eq!(queue.wait().1, 513);
    assert_eq!(bytes(&setup.guest, DATA + 0x6000, 513), [&data[..], &[0]].concat());
}

#[test]
fn zeroes_discards_and_the_serial_number_work() {
    let blk = VirtioBlkOptions { serial: Some("SKEP-1".to_owned()), ..VirtioBlkOptions::new("disk0") };
    let setup = Setup::with(DiskOptions::new, blk);
    let mut queue = setup.start(ALL | feature::DISCARD | feature::WRITE_ZEROES);
    let data = pattern(&setup.guest, DATA, 0x8000, 1);
    assert_eq!(queue.run(1, 0, &[piece(DATA, 0x8000)], &[]).0, 0);
    let range = |sector: u64, count: u32, flags: u32| {
        setup.guest.ram.write_obj(Gpa(DATA), &sector).unwrap();
        setup.guest.ram.write_obj(Gpa(DATA + 8), &[count, flags]).unwrap();
        [piece(DATA, 16)]
    };
    assert_eq!(queue.run(13, 0, &range(8, 8, 0), &[]).0, 0);
    assert_eq!(queue.run(13, 0, &range(24, 8, 1), &[]).0, 0);
    assert_eq!(queue.run(11, 0, &range(40, 8, 0), &[]).0, 0);
    assert_eq!(queue.run(11, 0, &range(40, 8, 1), &[]).0, 2, "unmap is not for discards");
    assert_eq!(queue.run(13, 0, &range(40, 8, 2), &[]).0, 2, "unknown flag");
    assert_eq!(queue.run(13, 0, &range(SIZE / 512, 8, 0), &[]).0, 1);
    assert_eq!(queue.run(13, 0, &range(0, u32::MAX, 0), &[]).0, 1);
    assert_eq!(queue.run(13, 0, &[piece(DATA, 32)], &[]).0, 1, "two ranges");
    assert_eq!(queue.run(13, 0, &[], &[]).0, 1, "no range");
    let after = setup.on_disk(0, 0x8000);
    for block in 0..8 {
        let here = &after[block * 4096..][..4096];
        if matches!(block, 1 | 3 | 5) {
            assert!(here.iter().all(|byte| *byte == 0), "block {block}");
        } else {
            assert!(here == &data[block * 4096..][..4096], "block {block}");
        }
    }
    assert_eq!(queue.run(8, 0, &[], &[piece(DATA, 20)]), (0, 21));
    assert_eq!(bytes(&setup.guest, DATA, 20), *b"SKEP-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(queue.run(8, 0, &[], &[piece(DATA, 30)]), (0, 20));
    assert_eq!(queue.run(8, 0, &[], &[piece(DATA, 4)]), (0, 5));
}

#[test]
fn what_the_disk_cannot_do_is_answered_with_its_status() {
    let setup = Setup::new();
    let mut queue = setup.start(ALL);
    let end = SIZE / 512;
    assert_eq!(queue.run(99, 0, &[], &[]), (2, 1));
    assert_eq!(queue.run(0, end, &[], &[piece(DATA, 4096)]), (1, 0));
    assert_eq!(queue.run(1, end - 1, &[piece(DATA, 4096)], &[]), (1, 1));
    assert_eq!(queue.run(0, u64::MAX, &[], &[piece(DATA, 4096)]), (1, 0));
    assert_eq!(queue.run(0, 0, &[], &[piece(DATA, 100)]), (1, 0));
    assert_eq!(queue.run(0, 0, &[], &[]), (1, 0));
    assert_eq!(queue.run(0, end - 8, &[], &[piece(DATA, 4096)]), (0, 4097));
    assert!(
        setup.guest.reports().is_empty(),
        "a guest's own mistakes are no events: {:?}",
        setup.guest.reports()
    );
}

#[test]
fn a_disk_that_fails_is_an_error_for_the_guest_whose_telling_is_the_disks_affair() {
    let setup = Setup::new();
    let mut queue = setup.start(ALL);
    setup.file.set_len(SIZE / 2).unwrap();
    for _ in 0..5 {
        assert_eq!(queue.run(0, SIZE / 512 - 8, &[], &[piece(DATA, 4096)]), (1, 0));
    }
    assert_eq!(setup.guest.reports(), [""; 0]);
}

#[test]
fn a_guest_waits_for_a_held_request_or_resets_the_device_that_has_it() {
    let setup = Setup::new();
    let (told, failures) = std::sync::mpsc::channel();
    let tell = move |failure| told.send(failure).unwrap();
    setup.disk.answer_failures(OnError::Pause.into(), Box::new(tell));
    let mut queue = setup.start(ALL);
    setup.file.set_len(SIZE / 2).unwrap();
    let last = SIZE / 512 - 8;
    let (head, status) = queue.send(0, last, &[], &[piece(DATA, 4096)], Layout::Direct).unwrap();
    queue.kick();
    let failure = failures.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!((failure.operation, failure.bytes), (disk::Operation::Read { at: disk::Sectors(last) }, 4096));
    // Others are not held up.
    assert_eq!(queue.run(0, 0, &[], &[piece(DATA, 4096)]), (0, 4097));
    setup.file.set_len(SIZE).unwrap();
    setup.disk.failures().retry();
    assert_eq!(queue.wait(), (head, 4097));
    assert_eq!(setup.guest.ram.read_obj::<u8>(status).unwrap(), 0);
    setup.file.set_len(SIZE / 2).unwrap();
    queue.send(0, last, &[], &[piece(DATA, 4096)], Layout::Direct).unwrap();
    queue.kick();
    failures.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(setup.disk.failures().waiting().is_some());
    setup.guest.reset();
    assert!(setup.disk.failures().waiting().is_none(), "a reset drops what is held");
    assert!(failures.try_recv().is_err());
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let setup = Setup::with(|path| DiskOptions::new(path).read_only(), VirtioBlkOptions::new("disk0"));
    assert_eq!(setup.guest.read::<4>(Guest::COMMON + 4)[0] & 0x20, 0x20);
    assert_eq!(setup.guest.read::<4>(Guest::COMMON + 4)[1] & 0x60, 0, "neither discard nor zeroes");
    let mut queue = setup.start(ALL | feature::RO);
    assert_eq!(queue.run(1, 0, &[piece(DATA, 4096)], &[]), (1, 1));
    assert_eq!(queue.run(0, 0, &[], &[piece(DATA, 4096)]), (0, 4097));
}

#[test]
fn a_chain_that_is_no_request_asks_for_a_reset() {
    let bad: [(&[Piece], &[Piece]); 3] = [
        (&[piece(HEADERS, 15)], &[piece(HEADERS + 16, 1)]),
        (&[piece(HEADERS, 16)], &[]),
        (&[], &[piece(HEADERS, 1)]),
    ];
    let setup = Setup::new();
    for (readable, writable) in bad {
        let mut queue = setup.start(ALL);
        queue.ring.add(readable, writable, Layout::Direct).unwrap();
        queue.kick();
        let start = Instant::now();
        while setup.guest.status() != 15 | 64 {
            assert!(start.elapsed() < Duration::from_secs(10));
        }
        setup.guest.reset();
    }
    assert_eq!(setup.guest.reports().len(), 3);
    let mut queue = setup.start(ALL);
    assert_eq!(queue.run(0, 0, &[], &[piece(DATA, 4096)]).0, 0);
}

#[test]
fn many_requests_at_once_all_come_back_with_the_right_data() {
    let setup = Setup::new();
    for layout in [Layout::Direct, Layout::Indirect(Gpa(0))] {
        let mut queue = setup.start(ALL);
        let data = pattern(&setup.guest, DATA, 64 * 4096, 21);
        for round in 0..20u64 {
            let mut statuses = Vec::new();
            for i in 0..64u64 {
                let layout = match layout {
                    Layout::Direct => Layout::Direct,
                    Layout::Indirect(_) => Layout::Indirect(Gpa(0x40000 + 64 * i)),
                };
                let (kind, block) = if round % 2 == 0 { (1, i) } else { (0, 63 - i) };
                let (out, room) = match kind {
                    1 => (vec![piece(DATA + block * 4096, 4096)], vec![]),
                    _ => (vec![], vec![piece(DATA + 0x400000 + block * 4096, 4096)]),
                };
                statuses.push(queue.send(kind, block * 8, &out, &room, layout).unwrap().1);
                if i % 7 == 0 {
                    queue.kick();
                }
            }
            queue.kick();
            for _ in 0..64 {
                queue.wait();
            }
            for status in statuses {
                assert_eq!(setup.guest.ram.read_obj::<u8>(status).unwrap(), 0);
            }
        }
        assert!(bytes(&setup.guest, DATA + 0x400000, 64 * 4096) == data);
        setup.guest.reset();
    }
}

#[test]
fn writes_last_when_the_driver_cannot_flush_or_wants_no_cache() {
    // What RWF_DSYNC does cannot be seen here; that both ways work can.
    let setup = Setup::new();
    let mut queue = setup.start(Features::VERSION_1);
    assert_eq!(queue.run(1, 0, &[piece(DATA, 4096)], &[]), (0, 1));
    setup.guest.reset();
    let mut queue = setup.start(ALL);
    setup.guest.write(Guest::DEVICE + 32, [0]);
    assert_eq!(queue.run(1, 0, &[piece(DATA, 4096)], &[]), (0, 1));
}

#[test]
fn a_reset_under_load_drains_and_leaves_the_guest_its_memory() {
    let setup = Setup::new();
    pattern(&setup.guest, DATA, 64 * 0x8000, 5);
    for round in 0..100u64 {
        let mut queue = setup.start(ALL);
        for i in 0..64u64 {
            // Some rounds go by way of bounce buffers.
            let at = piece(DATA + i * 0x8000 + u64::from(round % 10 == 0), 0x8000);
            let (out, room) = if i % 2 == 0 { (vec![at], vec![]) } else { (vec![], vec![at]) };
            queue.send((i + 1) as u32 % 2, i * 64, &out, &room, Layout::Direct).unwrap();
            if i == round % 64 {
                queue.kick();
            }
        }
        queue.kick();
        if round % 4 == 0 {
            queue.wait();
        }
        setup.guest.reset();
        // Nothing writes to the guest any more: what it puts there stays.
        let marker = pattern(&setup.guest, DATA, 0x8000, round);
        std::thread::yield_now();
        assert!(bytes(&setup.guest, DATA, 0x8000) == marker);
    }
    let mut queue = setup.start(ALL);
    assert_eq!(queue.run(0, 0, &[], &[piece(DATA, 4096)]).0, 0);
    assert!(setup.guest.reports().is_empty(), "{:?}", setup.guest.reports());
}

#[test]
fn a_guest_that_never_lets_the_ring_run_empty_cannot_hold_up_a_reset() {
    let setup = Setup::with(DiskOptions::new, VirtioBlkOptions::new("disk0"));
    let guest = &setup.guest;
    guest.negotiate(ALL);
    let mut ring = guest.add_queue(0, RING, 256, ALL);
    guest.go();
    let ram = guest.ram.clone();
    let status = |i: u64| Gpa(DATA + 0x40000 + i);
    // 128 requests that are answered at once, in the ring twice over. They are long, so that the device does not
    // get to the end of the ring while this thread waits for a processor.
    let readable = [&[piece(HEADERS, 16)], &[piece(HEADERS, 1); 400][..]].concat();
    ram.write_obj(Gpa(HEADERS), &[8u32.to_le(), 0, 0, 0]).unwrap();
    for i in 0..128 {
        ram.write_obj(status(i), &0xaau8).unwrap();
        let room = [piece(DATA, 20), piece(status(i).0, 1)];
        let table = Gpa(DATA + 0x100000 + 0x2000 * i);
        ring.add(&readable, &room, Layout::Indirect(table)).unwrap();
    }
    let avail = ring.addresses().driver;
    let heads: [u16; 128] = ram.read_obj(Gpa(avail.0 + 4)).unwrap();
    ram.write_obj(Gpa(avail.0 + 4 + 256), &heads).unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    let answered = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // One vCPU makes each request available again as soon as its status is written.
            for place in 0.. {
                while ram.read_obj::<u8>(status(place % 128)).unwrap() == 0xaa {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    std::hint::spin_loop();
                }
                ram.write_obj(status(place % 128), &0xaau8).unwrap();
                ram.write_obj(Gpa(avail.0 + 2), &(place as u16).wrapping_add(129).to_le()).unwrap();
                answered.store(place, Ordering::Relaxed);
            }
        });
        let start = Instant::now();
        while answered.load(Ordering::Relaxed) < 2_000 && start.elapsed() < Duration::from_secs(10) {
            // The device may have been faster for a moment, and have gone to sleep.
            guest.kick(0);
            std::thread::sleep(Duration::from_millis(1));
        }
        // Another vCPU resets the device.
        guest.write(Guest::COMMON + 20, [0]);
        let before = answered.load(Ordering::Relaxed);
        let start = Instant::now();
        while guest.status() != 0 && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        over.store(true, Ordering::Relaxed);
        let after = answered.load(Ordering::Relaxed) - before;
        assert!(before >= 2_000, "{before} requests were answered");
        // The rest of a round, and what was answered before and not seen yet.
        assert!(after <= 256 + 128, "{after} more requests were answered after the reset was asked for");
    });
    assert!(setup.guest.reports().is_empty(), "{:?}", setup.guest.reports());
}

#[test]
fn a_disk_without_bus_mastering_takes_nothing_until_it_has_it_again() {
    let setup = Setup::new();
    let mut queue = setup.start(ALL);
    assert_eq!(queue.run(0, 0, &[], &[piece(DATA, 4096)]).0, 0);
    setup.guest.config_write(4, &[2, 0]);
    let (head, status) = queue.send(0, 0, &[], &[piece(DATA, 4096)], Layout::Direct).unwrap();
    setup.guest.kick(0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(queue.ring.take_used(), None);
    assert_eq!(setup.guest.ram.read_obj::<u8>(status).unwrap(), 0xaa);
    setup.guest.config_write(4, &[6, 0]);
    assert_eq!(queue.wait(), (head, 4097));
    setup.guest.config_write(4, &[2, 0]);
    setup.guest.reset();
    setup.guest.config_write(4, &[6, 0]);
    let mut queue = setup.start(ALL);
    assert_eq!(queue.run(0, 0, &[], &[piece(DATA, 4096)]).0, 0);
}

#[test]
fn wrong_options_are_refused_by_name() {
    let setup = Setup::new();
    let refused = |options| VirtioBlk::new(setup.disk.clone(), options).err().map(|error| error.to_string());
    let blk = || VirtioBlkOptions::new("disk0");
    assert!(refused(blk()).is_none());
    assert!(refused(VirtioBlkOptions { queues: 0, ..blk() }).unwrap().contains("0 queues"));
    assert!(refused(VirtioBlkOptions { queue_size: 100, ..blk() }).unwrap().contains("100 descriptors"));
    let long = VirtioBlkOptions { serial: Some("x".repeat(21)), ..blk() };
    assert!(refused(long).unwrap().contains("longer than 20 bytes"));
}

#[test]
fn a_queue_over_a_driven_controller_serves_without_kicks_or_copies() {
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 16 << 20).unwrap()]).unwrap());
    let iommu = FakeIommu::new();
    let domain = iommu.domain("host", Kind::Host);
    MemoryMap::new(ram.clone()).attach(domain.clone()).unwrap();
    let model = Model::new(&iommu, vec![Namespace { bytes: SIZE, block: 512 }]);
    let options = NvmeOptions::new(Arc::new(|trouble| panic!("{trouble}")));
    let controller = NvmeController::over(model.function(), &domain, options).unwrap();
    let disk = Arc::new(Disk::new("nvme", Box::new(controller.namespace(1).unwrap().polled(Poll::On))));
    let device = VirtioBlk::new(disk.clone(), VirtioBlkOptions::new("disk0")).unwrap();
    let guest = Guest::new(Box::new(device), ram);
    for features in [ALL, Features::VERSION_1] {
        guest.negotiate(features);
        let ring = guest.add_queue(0, RING, 256, features);
        guest.go();
        let mut queue = Queued { guest: &guest, ring, next: 0 };
        let data = pattern(&guest, DATA, 0x1000, 7);
        assert_eq!(queue.run(1, 0, &[piece(DATA, 0x1000)], &[]), (0, 1));
        for _ in 0..50 {
            queue.send(0, 0, &[], &[piece(DATA + 0x1000, 0x1000)], Layout::Direct).unwrap();
            assert!(!queue.ring.needs_kick(), "the device looks by itself");
            assert_eq!(queue.wait().1, 0x1001);
        }
        assert!(bytes(&guest, DATA + 0x1000, 0x1000) == data);
        guest.reset();
    }
    assert_eq!(disk.counters().bytes_bounced(), 0);
}
