//! The AHCI controller over a disk that is slow or fails on purpose.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::ahci::driver::{Ata, Guest, Port, reg, until};
use devices::ahci::{AhciDisk, AhciPort};
use disk::{
    Access, Backend, Disk, DiskError, Durability, Engine, Event, Geometry, Operation, Patience,
    QueueCounters, QueueError, Request, Sectors, WriteCache,
};
use memory::{Gpa, GpaRange, Ram};
use vmm_sys_util::eventfd::EventFd;

const DATA: u64 = 0x40_0000;
const READ_DMA_EXT: u8 = 0x25;
const READ_QUEUED: u8 = 0x60;

/// What the disk is told to do.
#[derive(Default)]
struct Orders {
    /// Requests stay under way while this is set.
    hold: AtomicBool,
    /// What becomes of requests; `None`: nothing happens to the data, and all is well.
    fail: Mutex<Option<DiskError>>,
    /// The queue breaks.
    broken: AtomicBool,
    under_way: AtomicU32,
    /// The queue has begun to go.
    going: AtomicBool,
    seen: Mutex<Vec<Operation>>,
}

struct Slow(Geometry, Arc<Orders>);

impl Backend for Slow {
    fn geometry(&self) -> &Geometry {
        &self.0
    }

    fn engine(&self, _: u16, _: Arc<QueueCounters>) -> Result<Box<dyn Engine + Send>, QueueError> {
        Ok(Box::new(SlowEngine { orders: self.1.clone(), requests: Vec::new() }))
    }
}

struct SlowEngine {
    orders: Arc<Orders>,
    requests: Vec<Request>,
}

impl Engine for SlowEngine {
    fn start(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn watch(&mut self, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn submit(&mut self, request: Request) {
        self.orders.seen.lock().unwrap().push(request.operation);
        self.orders.under_way.fetch_add(1, Ordering::SeqCst);
        self.requests.push(request);
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> io::Result<()> {
        if self.orders.broken.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        if !self.orders.hold.load(Ordering::SeqCst) {
            let fail = *self.orders.fail.lock().unwrap();
            for Request { tag, operation, buffers } in self.requests.drain(..) {
                self.orders.under_way.fetch_sub(1, Ordering::SeqCst);
                events.push(Event::Done { tag, operation, result: fail.map_or(Ok(()), Err), buffers });
            }
        }
        if patience == Patience::Wait && events.is_empty() {
            std::thread::sleep(Duration::from_micros(200));
            events.push(Event::Wake);
        }
        Ok(())
    }
}

/// As a queue that waits for its requests when it goes.
impl Drop for SlowEngine {
    fn drop(&mut self) {
        self.orders.going.store(true, Ordering::SeqCst);
        let broken = || self.orders.broken.load(Ordering::SeqCst);
        while self.orders.hold.load(Ordering::SeqCst) && !broken() && !self.requests.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A guest with two such disks.
fn guest(write_cache: WriteCache) -> (Guest, [Arc<Orders>; 2]) {
    let geometry = Geometry {
        capacity: Sectors(1 << 20),
        logical_block: 512,
        physical_block: 512,
        alignment_offset: 0,
        minimum_io: 512,
        optimal_io: 0,
        access: Access::ReadWrite,
        write_cache,
        fua: false,
        rotational: true,
        discard: None,
        write_zeroes: None,
        model: None,
        serial: None,
    };
    let orders: [Arc<Orders>; 2] = Default::default();
    let ports = orders.iter().enumerate().map(|(n, orders)| {
        let disk = Disk::new(format!("slow{n}"), Box::new(Slow(geometry.clone(), orders.clone())));
        AhciPort::Disk(AhciDisk::new(format!("disk{n}"), Arc::new(disk)))
    });
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 8 << 20).unwrap()]).unwrap());
    (Guest::new(ports.collect(), ram), orders)
}

fn start(guest: &Guest, index: u8) -> Port<'_> {
    let port = guest.port(index, Gpa(0x10_0000 * (1 + u64::from(index))));
    port.start();
    port
}

/// A queued read of a sector for each of the slots.
fn queue(port: &Port<'_>, slots: std::ops::Range<u8>) {
    for slot in slots {
        let command = Ata::queued(READ_QUEUED, slot.into(), 1, slot);
        port.issue_queued(slot, command, &[(DATA + 512 * u64::from(slot), 512)]);
    }
}

#[test]
fn every_kind_of_failure_has_its_bits() {
    let (guest, [orders, _]) = guest(WriteCache::WriteBack);
    let port = start(&guest, 0);
    for (kind, status, error, link) in [
        (DiskError::Media, 0x51, 0x40, 0),
        (DiskError::OutOfRange, 0x51, 0x10, 0),
        (DiskError::ReadOnly, 0x51, 0x04, 0),
        (DiskError::NoSpace, 0x71, 0x04, 0),
        (DiskError::Other(12), 0x71, 0x04, 0),
        (DiskError::TimedOut, 0x71, 0x04, 1 << 9),
        (DiskError::Gone, 0x71, 0x04, 1 << 9),
    ] {
        *orders.fail.lock().unwrap() = Some(kind);
        for queued in [false, true] {
            if queued {
                queue(&port, 3..4);
            } else {
                port.issue(3, Ata::at(READ_DMA_EXT, 9, 1), &[(DATA, 512)]);
            }
            let failed = port.wait(1 << 3).unwrap_err();
            assert_eq!((failed.status, failed.error), (status, error), "{kind:?}");
            assert_eq!(port.read(reg::SERR) & 0xffff, link, "{kind:?}");
            assert_eq!(port.read(reg::CMD) >> 8 & 0x1f, 3, "the current slot");
            port.recover();
        }
        *orders.fail.lock().unwrap() = None;
        assert_eq!(port.run(Ata::at(0x2f, 0x10, 1), &[(DATA, 512)]), Ok(512));
        let log: [u8; 4] = guest.ram.read_obj(Gpa(DATA)).unwrap();
        assert_eq!(log, [3, 0, status, error]);
    }
    port.run(Ata { features: 0xd0, lba: 0xc2_4f00, ..Ata::new(0xb0) }, &[(DATA, 512)]).unwrap();
    let page: [u8; 512] = guest.ram.read_obj(Gpa(DATA)).unwrap();
    assert_eq!((page[26], page[31]), (187, 2), "SMART counts failures of the medium");
}

#[test]
fn a_port_stops_only_when_the_disk_has_let_go() {
    let (guest, [orders, _]) = guest(WriteCache::WriteBack);
    let port = start(&guest, 0);
    orders.hold.store(true, Ordering::SeqCst);
    queue(&port, 0..32);
    until("all requests", || orders.under_way.load(Ordering::SeqCst) == 32);
    port.write(reg::CMD, 1 << 4);
    assert_eq!((port.read(reg::CI), port.read(reg::SACT)), (0, 0));
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(port.read(reg::CMD) & (1 << 15 | 1), 1 << 15, "still running");
    assert_eq!(guest.read(4) & 1, 0, "which is no reset of the controller");
    // A reset of the controller waits as well, and only this port's.
    guest.write(4, 1 << 31 | 1);
    assert_eq!(guest.read(4) & 1, 1);
    assert_eq!(port.read(reg::TFD) & 0x80, 0x80);
    orders.hold.store(false, Ordering::SeqCst);
    until("the reset", || guest.read(4) & 1 == 0);
    assert_eq!(orders.under_way.load(Ordering::SeqCst), 0);
    assert_eq!((port.read(reg::CMD) & 1 << 15, port.read(reg::TFD) & 0x80), (0, 0));
    assert_eq!(port.read(reg::IS) & 0xf, 0, "nobody hears of what was given up");
}

#[test]
fn a_slow_disk_holds_up_no_other_port() {
    let (guest, [orders, _]) = guest(WriteCache::WriteBack);
    let (slow, other) = (start(&guest, 0), start(&guest, 1));
    orders.hold.store(true, Ordering::SeqCst);
    queue(&slow, 0..32);
    for _ in 0..100 {
        assert_eq!(other.run(Ata::at(READ_DMA_EXT, 0, 8), &[(DATA, 4096)]), Ok(4096));
    }
    assert_eq!(slow.read(reg::SACT), u32::MAX);
    orders.hold.store(false, Ordering::SeqCst);
    slow.wait(u32::MAX).unwrap();
}

#[test]
fn after_a_failure_nothing_more_is_said_until_the_port_is_started_again() {
    let (guest, [orders, _]) = guest(WriteCache::WriteBack);
    let port = start(&guest, 0);
    orders.hold.store(true, Ordering::SeqCst);
    *orders.fail.lock().unwrap() = Some(DiskError::Media);
    queue(&port, 0..8);
    until("all requests", || orders.under_way.load(Ordering::SeqCst) == 8);
    orders.hold.store(false, Ordering::SeqCst);
    port.wait(0xff).unwrap_err();
    until("the end of the others", || orders.under_way.load(Ordering::SeqCst) == 0);
    assert_eq!(port.read(reg::SACT), 0xff, "which the device has given up");
    *orders.fail.lock().unwrap() = None;
    queue(&port, 8..9);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(port.read(reg::SACT), 0x1ff, "nothing is begun either");
    port.recover();
    queue(&port, 0..9);
    port.wait(0x1ff).unwrap();
}

#[test]
fn an_ordinary_command_begins_when_the_queued_ones_have_ended_and_holds_up_those_after_it() {
    let (guest, [orders, _]) = guest(WriteCache::WriteBack);
    let port = start(&guest, 0);
    orders.hold.store(true, Ordering::SeqCst);
    queue(&port, 0..4);
    until("all requests", || orders.under_way.load(Ordering::SeqCst) == 4);
    port.issue(4, Ata::new(0xea), &[]);
    queue(&port, 5..8);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(orders.seen.lock().unwrap().len(), 4);
    orders.hold.store(false, Ordering::SeqCst);
    port.wait(0xff).unwrap();
    let seen = orders.seen.lock().unwrap();
    assert_eq!((seen.len(), seen[4]), (8, Operation::Flush));
    // Given up while it waits, it never begins.
    drop(seen);
    orders.hold.store(true, Ordering::SeqCst);
    queue(&port, 0..4);
    until("all requests", || orders.under_way.load(Ordering::SeqCst) == 4);
    port.issue(4, Ata::new(0xea), &[]);
    std::thread::sleep(Duration::from_millis(5));
    port.write(reg::CMD, 1 << 4);
    orders.hold.store(false, Ordering::SeqCst);
    port.recover();
    assert_eq!(orders.seen.lock().unwrap().len(), 12);
    assert_eq!(port.run(Ata::new(0xe7), &[]), Ok(0));
}

#[test]
fn a_queue_that_breaks_is_a_device_that_is_gone() {
    let (guest, [orders, _]) = guest(WriteCache::WriteBack);
    let port = start(&guest, 0);
    orders.hold.store(true, Ordering::SeqCst);
    queue(&port, 0..4);
    until("all requests", || orders.under_way.load(Ordering::SeqCst) == 4);
    orders.broken.store(true, Ordering::SeqCst);
    until("the end of the device", || port.read(reg::SSTS) == 0);
    assert!(port.read(reg::IS) & 1 << 22 != 0);
    port.stop();
    let reports = guest.reports();
    assert!(reports[0].contains("disk slow0") && reports[0].ends_with("unplugged."), "{reports:?}");
    // It can be taken away, and the machine reset.
    assert!(guest.bus.reset().is_empty());
    guest.ahci.unplug(0).unwrap();
}

#[test]
fn writes_are_as_durable_as_their_command_and_the_cache_say() {
    let durability = |orders: &Orders| match orders.seen.lock().unwrap().last() {
        Some(Operation::Write { durability, .. }) => *durability,
        other => panic!("{other:?}"),
    };
    for (cache, without) in
        [(WriteCache::WriteBack, Durability::Stable), (WriteCache::WriteThrough, Durability::Cached)]
    {
        let (guest, [orders, _]) = guest(cache);
        let port = start(&guest, 0);
        let write = |command| port.run(Ata::at(command, 0, 1), &[(DATA, 512)]).unwrap();
        write(0x35);
        assert_eq!(durability(&orders), Durability::Cached);
        write(0x3d);
        assert_eq!(durability(&orders), Durability::Stable);
        let off = port.run(Ata { features: 0x82, ..Ata::new(0xef) }, &[]);
        assert_eq!(off, Ok(0));
        write(0x35);
        assert_eq!(durability(&orders), without, "with the cache off, if there is one");
        let flushes = orders.seen.lock().unwrap().iter().filter(|op| **op == Operation::Flush).count();
        assert_eq!(flushes, usize::from(cache == WriteCache::WriteBack));
    }
}

#[test]
fn a_disk_that_does_not_answer_holds_up_neither_its_unplugging_nor_the_end() {
    let (guest, [orders, _]) = guest(WriteCache::WriteBack);
    let port = start(&guest, 0);
    orders.hold.store(true, Ordering::SeqCst);
    queue(&port, 0..1);
    until("the command", || orders.under_way.load(Ordering::SeqCst) == 1);
    let begin = std::time::Instant::now();
    let why = guest.ahci.unplug(0).unwrap_err().to_string();
    assert!(begin.elapsed() < Duration::from_secs(10) && why.contains("port 0 does not end"), "{why}");
    assert_eq!(port.read(reg::SSTS), 0, "the guest sees no device");
    let disk = || {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        AhciDisk::new("other", Arc::new(Disk::open(&disk::DiskOptions::new(file.path())).unwrap()))
    };
    assert!(guest.ahci.plug_disk(0, disk()).unwrap_err().to_string().contains("does not end"));
    orders.hold.store(false, Ordering::SeqCst);
    until("the thread's end", || guest.ahci.plug_disk(0, disk()).is_ok());
    assert_eq!(port.read(reg::SSTS), 0x133);
}

#[test]
fn disks_that_do_not_answer_are_waited_for_together_when_their_controller_goes() {
    let (guest, orders) = guest(WriteCache::WriteBack);
    for (index, orders) in (0..).zip(&orders) {
        orders.hold.store(true, Ordering::SeqCst);
        queue(&start(&guest, index), 0..1);
        until("the command", || orders.under_way.load(Ordering::SeqCst) == 1);
    }
    let begin = std::time::Instant::now();
    let end = std::thread::spawn(move || drop(guest));
    until("both to be asked", || orders.iter().all(|orders| orders.going.load(Ordering::SeqCst)));
    assert!(!end.is_finished() && begin.elapsed() < Duration::from_secs(5), "while the first is waited for");
    end.join().unwrap();
    // One after the other would take twice five seconds.
    assert!(begin.elapsed() < Duration::from_secs(9), "{:?}", begin.elapsed());
    orders.iter().for_each(|orders| orders.hold.store(false, Ordering::SeqCst));
}

#[test]
fn a_verify_reads_the_whole_range_and_finds_what_cannot_be_read() {
    let (guest, [orders, _]) = guest(WriteCache::WriteBack);
    let port = start(&guest, 0);
    let before = guest.ram.read_obj::<[u8; 4096]>(Gpa(DATA)).unwrap();
    for (command, lba, count) in [(0x40, 8, 300u64), (0x42, 1000, 1 << 16)] {
        orders.seen.lock().unwrap().clear();
        // A count of 0 is the most there can be.
        let ata = Ata::at(command, lba, count as u16 & if command == 0x40 { 0xff } else { 0xffff });
        let count = if command == 0x40 { count & 0xff } else { count };
        port.run(ata, &[]).unwrap();
        let mut next = lba;
        for operation in orders.seen.lock().unwrap().iter() {
            let Operation::Read { at } = operation else { panic!("{operation:?}") };
            assert_eq!(at.0, next, "without a gap");
            next += (lba + count - next).min(128);
        }
        assert_eq!(next, lba + count, "to the end");
    }
    // The data is for nobody, and the memory it went to is not taken for the guest's afterwards.
    assert_eq!(guest.ram.read_obj::<[u8; 4096]>(Gpa(DATA)).unwrap(), before);
    assert_eq!(port.run(Ata::at(READ_DMA_EXT, 0, 1), &[(DATA, 512)]), Ok(512));
    *orders.fail.lock().unwrap() = Some(DiskError::Media);
    let failed = port.run(Ata::at(0x42, 8, 8), &[]).unwrap_err();
    assert_eq!((failed.status, failed.error), (0x51, 0x40));
}
