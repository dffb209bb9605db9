use std::io;

use super::*;

use memory::{Buffers, Gpa, GpaRange, MemoryMap, Ram};

use crate::{Disk, DiskOptions, DiskQueue, Durability, Event, Operation, Request, Sectors, Source};

const MIB: u64 = 1 << 20;

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

fn segment(start: u64, len: u64) -> Arc<Segment> {
    Ram::new(&[range(start, len)]).unwrap().segments()[0].clone()
}

/// A VM's memory with a table attached; `None` where the kernel has no clones of tables.
fn mirrored() -> Option<(MemoryMap, Arc<BufferTable>)> {
    let table = match BufferTable::new() {
        Err(BufferTableError::NoClones(_)) => return None,
        other => Arc::new(other.unwrap()),
    };
    let map = MemoryMap::new(Arc::new(Ram::new(&[range(0, 4 * MIB), range(1 << 32, 2 * MIB)]).unwrap()));
    map.attach(table.clone()).unwrap();
    Some((map, table))
}

/// A file with direct I/O whose queues use the table, and one of them.
fn disk(table: &Arc<BufferTable>) -> (Disk, DiskQueue) {
    // Beside this program, for where temporary files are kept there may be no direct I/O.
    let program = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(program.parent().unwrap()).unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(8 * MIB).unwrap();
    queue_of(Disk::open(&DiskOptions::new(&path)).unwrap(), table)
}

fn queue_of(disk: Disk, table: &Arc<BufferTable>) -> (Disk, DiskQueue) {
    assert!(disk.use_buffers(table));
    let queue = disk.prepare_queue(4).unwrap().start().unwrap();
    (disk, queue)
}

/// Writes these pieces to the disk, reads them back elsewhere, and compares.
fn round_trip(queue: &mut DiskQueue, ram: &Arc<Ram>, pieces: &[GpaRange]) {
    let mut buffers = Buffers::new(ram.clone());
    pieces.iter().for_each(|piece| buffers.push(piece.start(), piece.len()).unwrap());
    let pattern: Vec<u8> = (0..buffers.bytes()).map(|i| (i % 251) as u8 + 1).collect();
    buffers.write(&pattern);
    let write = Operation::Write { at: Sectors(16), durability: Durability::Cached };
    let buffers = carry_out(queue, write, buffers);
    buffers.write(&vec![0; pattern.len()]);
    let buffers = carry_out(queue, Operation::Read { at: Sectors(16) }, buffers);
    let mut back = vec![0; pattern.len()];
    buffers.read(&mut back);
    assert_eq!(back, pattern);
}

fn carry_out(queue: &mut DiskQueue, operation: Operation, buffers: Buffers) -> Buffers {
    queue.submit(Request { tag: 1, operation, buffers }).unwrap();
    let mut events = Vec::new();
    queue.drain(&mut events).unwrap();
    match events.pop() {
        Some(Event::Done { result: Ok(()), buffers, .. }) => buffers,
        other => panic!("{other:?}"),
    }
}

fn audit(map: &MemoryMap) -> Vec<String> {
    map.audit().into_iter().filter_map(|(_, same)| same.err()).map(|error| error.to_string()).collect()
}

#[test]
fn requests_go_by_registered_buffers_and_bring_the_right_bytes() {
    let Some((map, table)) = mirrored() else { return };
    assert_eq!((table.bytes(), audit(&map)), (6 * MIB, vec![]));
    let (disk, mut queue) = disk(&table);
    round_trip(&mut queue, &map.ram(), &[range(0x3000, 0x10000)]);
    round_trip(&mut queue, &map.ram(), &[range((1 << 32) + 0x1000, 0x1000)]);
    assert_eq!(disk.counters().bytes_registered, 2 * 0x11000);
    // Pieces of two buffers are no request of one.
    round_trip(&mut queue, &map.ram(), &[range(0, 0x1000), range(1 << 32, 0x1000)]);
    assert_eq!(disk.counters().bytes_registered, 2 * 0x11000);
    assert_eq!(audit(&map), [""; 0]);
}

#[test]
fn bytes_that_the_page_cache_copied_are_none_that_went_by_registered_buffers() {
    let Some((map, table)) = mirrored() else { return };
    let memory = Disk::open(&DiskOptions::over(Source::Memory(Sectors::in_bytes(8 * MIB)))).unwrap();
    let (disk, mut queue) = queue_of(memory, &table);
    round_trip(&mut queue, &map.ram(), &[range(0x3000, 0x1000)]);
    let counters = disk.counters();
    assert_eq!((counters.bytes_bounced_page_cache, counters.bytes_direct), (0x2000, 0));
    assert_eq!(counters.bytes_registered, 0);
}

#[test]
fn a_request_that_was_noted_before_its_ram_went_is_carried_out() {
    let Some((map, table)) = mirrored() else { return };
    let more = segment(2 << 32, MIB);
    map.apply(&Change::AddRam(more.clone())).unwrap();
    let (disk, queue) = disk(&table);
    drop(queue);
    let (prepared, ram) = (disk.prepare_queue(4).unwrap(), map.ram());
    std::thread::scope(|scope| {
        let (version, table) = (table.state().table.version, &table);
        let (noted, is_noted) = std::sync::mpsc::channel();
        scope.spawn(move || {
            let mut queue = prepared.start().unwrap();
            let mut buffers = Buffers::new(ram);
            buffers.push(Gpa(2 << 32), 0x1000).unwrap();
            let operation = Operation::Read { at: Sectors(0) };
            queue.submit(Request { tag: 1, operation, buffers }).unwrap();
            noted.send(()).unwrap();
            while table.version.load(Ordering::Relaxed) == version {
                std::thread::yield_now();
            }
            let mut events = Vec::new();
            queue.drain(&mut events).unwrap();
            assert!(matches!(events[..], [Event::Done { result: Ok(()), .. }]), "{events:?}");
        });
        is_noted.recv().unwrap();
        map.apply(&Change::RemoveRam(more)).unwrap();
    });
    assert_eq!(disk.counters().bytes_registered, 0x1000);
}

#[test]
fn a_ring_that_could_not_follow_is_rung_again() {
    let Some((_map, table)) = mirrored() else { return };
    let ring = io_uring::IoUring::builder().setup_single_issuer().build(2).unwrap();
    let mut buffers = RingBuffers::of(&table, &ring).unwrap();
    assert!(buffers.eventfd().read().is_err());
    // The kernel lets no other thread change anything about such a ring.
    std::thread::scope(|scope| scope.spawn(|| buffers.follow(&ring)).join().unwrap());
    assert_eq!(buffers.eventfd().read().unwrap(), 1);
}

#[test]
fn rings_follow_what_appears_and_goes_and_let_go_of_it() {
    let Some((map, table)) = mirrored() else { return };
    let (disk, queue) = disk(&table);
    // A queue lives on its thread, which sleeps in it.
    let stop = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    let (tell, told) = std::sync::mpsc::channel::<Arc<Ram>>();
    drop(queue);
    let prepared = disk.prepare_queue(4).unwrap();
    std::thread::scope(|scope| {
        let (stop, table) = (&stop, &table);
        let (ready, is_ready) = std::sync::mpsc::channel();
        scope.spawn(move || {
            let mut queue = prepared.start().unwrap();
            queue.watch(stop).unwrap();
            ready.send(()).unwrap();
            let mut events = Vec::new();
            while !events.iter().any(|event| matches!(event, Event::Wake)) {
                queue.wait(&mut events).unwrap();
            }
            for ram in told {
                round_trip(&mut queue, &ram, &[range(2 << 32, 0x2000)]);
            }
        });
        is_ready.recv().unwrap();
        let (early, more) = (segment(3 << 32, MIB), segment(2 << 32, MIB));
        map.apply(&Change::AddRam(early.clone())).unwrap();
        map.apply(&Change::AddRam(more)).unwrap();
        assert_eq!((table.bytes(), audit(&map)), (8 * MIB, vec![]));
        map.apply(&Change::RemoveRam(early.clone())).unwrap();
        assert_eq!((table.bytes(), audit(&map)), (7 * MIB, vec![]));
        assert_eq!(Arc::strong_count(&early), 1, "nobody holds what went");
        stop.write(1).unwrap();
        tell.send(map.ram()).unwrap();
        drop(tell);
    });
    assert_eq!(disk.counters().bytes_registered, 2 * 0x2000);
}

#[test]
fn a_ring_that_does_not_follow_keeps_ram_from_going_and_an_audit_names_it() {
    let Some((map, table)) = mirrored() else { return };
    let more = segment(2 << 32, MIB);
    map.apply(&Change::AddRam(more.clone())).unwrap();
    // Nobody is in this queue.
    let (_disk, mut queue) = disk(&table);
    let error = map.apply(&Change::RemoveRam(more.clone())).unwrap_err().to_string();
    assert!(error.contains("did not let go"), "{error}");
    assert!(map.ram().segments().iter().any(|segment| Arc::ptr_eq(segment, &more)));
    assert!(audit(&map)[0].contains("1 queues of disks hold an older table"), "{:?}", audit(&map));
    queue.poll(&mut Vec::new()).unwrap();
    assert_eq!(audit(&map), [""; 0]);
}

#[test]
fn ram_that_is_longer_than_a_buffer_may_be_is_cut_and_a_request_across_the_cut_is_an_ordinary_one() {
    // Cut only, for the pages of all of it would have to be there.
    let long = segment(0, (1 << 30) + MIB);
    let start = long.host_address().as_ptr() as usize;
    let entries = Table::default().places_for(&long).unwrap();
    assert_eq!(entries.iter().map(|entry| entry.len).collect::<Vec<_>>(), [1 << 30, 1 << 20]);
    let cut = Table::default().with(entries);
    assert_eq!(cut.find(start + (1 << 30) - 0x1000, 0x1000), Some(0));
    assert_eq!(cut.find(start + (1 << 30), 0x1000), Some(1));
    assert_eq!(cut.find(start + (1 << 30) - 0x1000, 0x2000), None);
    assert_eq!(cut.find(start - 1, 1), None);
    assert_eq!(cut.find(start + (1 << 30) + MIB as usize, 1), None);
    assert_eq!(cut.differences(std::slice::from_ref(&long)), [""; 0]);
    assert_eq!(cut.differences(&[]).len(), 2);
    assert_eq!(Table::default().differences(&[long]).len(), 1);
}

#[test]
fn a_refusal_says_what_it_was_and_both_ways_out() {
    let cause = io::Error::from_raw_os_error(libc::ENOMEM);
    let said = BufferTableError::Refused { at: Gpa(0x1000), bytes: 4096, cause }.to_string();
    for word in ["4096 bytes", "0x1000", "ulimit -l", "`buffers` of the disks to plain"] {
        assert!(said.contains(word), "{said}");
    }
}
