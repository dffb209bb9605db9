//! What lists of data cost the host: a guest chooses how many pieces its memory lies in, on all queues at once, and the
//! host keeps no more of that than docs say when the requests have ended.

use std::alloc::{GlobalAlloc, Layout, System};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use devices::ahci::driver::reg;
use devices::ahci::{AhciDisk, AhciPort};
use devices::nvme::driver::{Queue, io};
use devices::nvme::spec::{self, Command, SglDescriptor, admin};
use devices::{Namespace, NvmeOptions, VirtioBlk, VirtioBlkOptions};
use disk::{Disk, Event, Patience, Request, Sectors};
use memory::{Buffers, Gpa, GpaRange, Ram};
use virtio::{Features, Piece};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::IntoBytes;

/// Counts what the program has allocated.
struct Counted;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is the system's allocator's own; the count changes nothing of it.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the one that is needed.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static HEAP: Counted = Counted;

fn allocated() -> usize {
    ALLOCATED.load(Ordering::Relaxed)
}

/// Bytes that the host needs for a piece of a list.
const PIECE: usize = size_of::<libc::iovec>() + size_of::<Gpa>();
/// What lists may take of the host at any time, over all queues of a device.
const DEVICE: usize = (1 << 19) * PIECE;
/// What else a queue may keep for each request that it has room for.
const BESIDE: usize = 512;
const RAM: u64 = 32 << 20;
const DATA: u64 = 0x180_0000;

/// A disk that answers everything, all that has come together, a moment later; and the most that was allocated then.
struct Late {
    geometry: disk::Geometry,
    most: Arc<AtomicUsize>,
}

struct LateQueue {
    noted: Vec<Request>,
    watched: Option<EventFd>,
    most: Arc<AtomicUsize>,
}

impl disk::Backend for Late {
    fn geometry(&self) -> &disk::Geometry {
        &self.geometry
    }

    fn engine(
        &self,
        _: u16,
        _: Arc<disk::QueueCounters>,
    ) -> Result<Box<dyn disk::Engine + Send>, disk::QueueError> {
        Ok(Box::new(LateQueue { noted: Vec::new(), watched: None, most: self.most.clone() }))
    }
}

impl disk::Engine for LateQueue {
    fn start(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn watch(&mut self, eventfd: &EventFd) -> std::io::Result<()> {
        self.watched = Some(eventfd.try_clone()?);
        Ok(())
    }

    fn submit(&mut self, request: Request) {
        self.noted.push(request);
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> std::io::Result<()> {
        let rung = || self.watched.as_ref().is_some_and(was_written);
        if !self.noted.is_empty() {
            std::thread::sleep(Duration::from_millis(50));
            self.most.fetch_max(allocated(), Ordering::Relaxed);
        } else if patience == Patience::Wait {
            while !rung() {
                std::thread::sleep(Duration::from_micros(50));
            }
            events.push(Event::Wake);
        } else if rung() {
            events.push(Event::Wake);
        }
        for Request { tag, operation, buffers } in self.noted.drain(..) {
            events.push(Event::Done { tag, operation, result: Ok(()), buffers });
        }
        Ok(())
    }
}

/// Reads the eventfd if it was written; a port's own would wait.
fn was_written(eventfd: &EventFd) -> bool {
    let mut poll = libc::pollfd { fd: eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd of ours.
    (unsafe { libc::poll(&raw mut poll, 1, 0) }) == 1 && eventfd.read().is_ok()
}

fn late() -> (Arc<Disk>, Arc<AtomicUsize>) {
    let memory = Disk::open(&disk::DiskOptions::over(disk::Source::Memory(Sectors(1 << 16)))).unwrap();
    let geometry = memory.geometry().clone();
    let most = Arc::new(AtomicUsize::new(0));
    (Arc::new(Disk::new("late", Box::new(Late { geometry, most: most.clone() }))), most)
}

fn ram() -> Arc<Ram> {
    Arc::new(Ram::new(&[GpaRange::new(Gpa(0), RAM).unwrap()]).unwrap())
}

/// Waits until what is allocated has come down to `most` more than before.
fn comes_down(what: &str, before: usize, most: usize) {
    let begin = Instant::now();
    loop {
        let grown = allocated().saturating_sub(before);
        if grown <= most {
            println!("{what}: {} KiB are kept, {} may be", grown >> 10, most >> 10);
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "{what}: {grown} bytes are kept, {most} may be");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// However many requests there are, and whatever is in their lists.
fn needed_at_once(most: &AtomicUsize, before: usize, bound: usize) {
    let needed = most.load(Ordering::Relaxed).saturating_sub(before);
    assert!(needed <= bound, "{needed} bytes were needed at once, {bound} may be");
}

#[test]
fn nvme_keeps_little_of_the_longest_lists_on_all_queues() {
    const ENTRIES: u32 = 1024;
    const QUEUES: u16 = 4;
    let (disk, most) = late();
    let options = NvmeOptions { queues: QUEUES, ..NvmeOptions::new("disk0") };
    let guest = devices::nvme::driver::Guest::new(vec![Namespace::new(disk)], &options, ram());
    let mut admin = guest.enable();
    let mut queues: Vec<Queue> = (1..=QUEUES)
        .map(|id| {
            let mut queue = Queue::at(id, ENTRIES);
            queue.submission = Gpa(0x100_0000 + 0x2_0000 * u64::from(id));
            queue.completion = Gpa(queue.submission.0 + 0x1_0000);
            guest.ram.zero(queue.submission, 0x2_0000).unwrap();
            for (opcode, at, flags) in [
                (admin::CREATE_CQ, queue.completion, 1),
                (admin::CREATE_SQ, queue.submission, u32::from(id) << 16 | 1),
            ] {
                let command = Command {
                    opcode,
                    dptr: [at.0.into(), 0.into()],
                    cdw10: (u32::from(id) | (ENTRIES - 1) << 16).into(),
                    cdw11: flags.into(),
                    ..Command::default()
                };
                assert_eq!(guest.run(&mut admin, command).0, 0);
            }
            queue
        })
        .collect();
    let before = allocated();
    let depth = ENTRIES as usize - 1;
    // The longest list that is allowed, and the longest whose room is kept.
    for (list, pieces) in [(0x20_0000, 1024), (0x21_0000, Buffers::KEPT as u64)] {
        let bytes = 4096 / pieces;
        for n in 0..pieces {
            let descriptor = SglDescriptor {
                address: (DATA + 2 * bytes * n).into(),
                length: (bytes as u32).into(),
                kind: SglDescriptor::DATA,
                ..SglDescriptor::default()
            };
            guest.ram.write(Gpa(list + 16 * n), descriptor.as_bytes()).unwrap();
        }
        let first = SglDescriptor {
            address: list.into(),
            length: (16 * pieces as u32).into(),
            kind: SglDescriptor::LAST_SEGMENT,
            ..SglDescriptor::default()
        };
        for queue in &mut queues {
            for _ in 0..depth {
                let mut command = io(spec::io::READ, 1, 0, 8, [0, 0]);
                command.flags = 1 << 6;
                command.dptr.as_mut_bytes().copy_from_slice(first.as_bytes());
                guest.submit(queue, command);
            }
        }
        for queue in &mut queues {
            (0..depth).for_each(|_| assert_eq!(guest.wait(queue).status.get() >> 1, 0));
        }
        let what = format!("nvme, lists of {pieces}");
        let kept = DEVICE.min(usize::from(QUEUES) * depth * Buffers::KEPT * PIECE);
        comes_down(&what, before, kept + usize::from(QUEUES) * ENTRIES as usize * BESIDE);
    }
    // A queue begins a command while its share is not used up, so the last one may go beyond.
    needed_at_once(&most, before, DEVICE + usize::from(QUEUES) * (1024 * PIECE + depth * BESIDE));
    // One more is refused before it costs anything.
    let first = SglDescriptor {
        address: 0x20_0000.into(),
        length: (16 * 1025).into(),
        kind: SglDescriptor::LAST_SEGMENT,
        ..SglDescriptor::default()
    };
    let mut command = io(spec::io::READ, 1, 0, 8, [0, 0]);
    command.flags = 1 << 6;
    command.dptr.as_mut_bytes().copy_from_slice(first.as_bytes());
    assert_ne!(guest.run(&mut queues[0], command).0, 0);
}

#[test]
fn virtio_blk_keeps_little_of_the_longest_lists_on_all_queues() {
    const SIZE: u16 = 1024;
    const QUEUES: u16 = 4;
    const HEADER: u64 = 0x10_0000;
    let (disk, most) = late();
    let blk = VirtioBlkOptions { queues: QUEUES, queue_size: SIZE, ..VirtioBlkOptions::new("disk0") };
    let device = VirtioBlk::new(disk, blk).unwrap();
    let guest = virtio::driver::Guest::new(Box::new(device), ram());
    let features = Features(Features::VERSION_1.0 | Features::INDIRECT_DESC.0);
    guest.negotiate(features);
    let ring = |index| guest.add_queue(index, Gpa(0x20_0000 + 0x1_0000 * u64::from(index)), SIZE, features);
    let mut rings: Vec<_> = (0..QUEUES).map(ring).collect();
    guest.go();
    assert_eq!(guest.status(), 15, "{:?}", guest.reports());
    guest.ram.write_obj(Gpa(HEADER), &[0u32; 4]).unwrap();
    let before = allocated();
    // Header and status take two of the descriptors that a table may have.
    for pieces in [1022, Buffers::KEPT as u64] {
        let header = [Piece { gpa: Gpa(HEADER), len: 16 }];
        let room: Vec<Piece> = (0..pieces)
            .map(|n| Piece { gpa: Gpa(DATA + 1024 * n), len: 512 })
            .chain([Piece { gpa: Gpa(HEADER + 64), len: 1 }])
            .collect();
        for (index, ring) in (0..).zip(&mut rings) {
            for _ in 0..SIZE {
                // All of them are the same table.
                ring.add(&header, &room, virtio::driver::Layout::Indirect(Gpa(0x30_0000))).unwrap();
            }
            guest.kick(index);
        }
        for ring in &mut rings {
            let begin = Instant::now();
            let mut left = SIZE;
            while left > 0 {
                left -= u16::from(ring.take_used().is_some());
                assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", guest.reports());
            }
        }
        let what = format!("virtio-blk, lists of {pieces}");
        let kept = DEVICE.min(usize::from(QUEUES * SIZE) * Buffers::KEPT * PIECE);
        comes_down(&what, before, kept + usize::from(QUEUES * SIZE) * BESIDE);
    }
    needed_at_once(
        &most,
        before,
        DEVICE + usize::from(QUEUES) * 1024 * PIECE + usize::from(QUEUES * SIZE) * BESIDE,
    );
}

#[test]
fn ahci_keeps_little_of_the_longest_lists_on_all_ports() {
    const SLOTS: u8 = 32;
    const PORTS: u8 = 8;
    /// A list of 8192 entries of two bytes, and 16 more that are not needed.
    const ENTRIES: u64 = 8192 + 16;
    let (disks, most): (Vec<_>, Vec<_>) = (0..PORTS).map(|_| late()).unzip();
    let ports = disks.into_iter().map(|disk| AhciPort::Disk(AhciDisk::new("disk", disk))).collect();
    let guest = devices::ahci::driver::Guest::new(ports, ram());
    let entries: Vec<u32> = (0..ENTRIES).flat_map(|n| [(DATA + 4 * n) as u32, 0, 0, 1]).collect();
    let before = allocated();
    let ports: Vec<_> = (0..PORTS)
        .map(|index| {
            let base = 0x10_0000 + 0x4_0000 * u64::from(index);
            let port = guest.port(index, Gpa(base));
            port.start();
            for slot in 0..SLOTS {
                // READ FPDMA QUEUED of 32 blocks. A slot's table is the same on all ports.
                let frame = [0x27, 0x80, 0x60, 32, 0, 0, 0, 0x40, 0, 0, 0, 0, slot << 3, 0, 0, 0, 0, 0, 0, 0];
                port.prepare(slot, &frame, &[], &[]);
                let table = 0x40_0000 + 0x2_1000 * u64::from(slot);
                guest.ram.write(Gpa(table), &frame).unwrap();
                guest.ram.write(Gpa(table + 0x80), entries.as_bytes()).unwrap();
                let header = base + 32 * u64::from(slot);
                guest.ram.write_obj(Gpa(header + 2), &(ENTRIES as u16).to_le()).unwrap();
                guest.ram.write_obj(Gpa(header + 8), &table.to_le()).unwrap();
            }
            port
        })
        .collect();
    for port in &ports {
        port.write(reg::SACT, u32::MAX);
        port.write(reg::CI, u32::MAX);
    }
    ports.iter().for_each(|port| port.wait(u32::MAX).unwrap());
    let beside = usize::from(PORTS) * usize::from(SLOTS) * BESIDE;
    comes_down("ahci", before, usize::from(PORTS) * usize::from(SLOTS) * Buffers::KEPT * PIECE + beside);
    // A list that grows has room for twice its pieces.
    let last = usize::from(PORTS) * 2 * 8192 * PIECE;
    most.iter().for_each(|most| needed_at_once(most, before, DEVICE + last + beside));
}
