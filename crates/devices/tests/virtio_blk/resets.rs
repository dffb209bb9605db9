//! Resets, and other ways to stop a device under load.

use super::*;

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

/// Every request that is under way when the driver resets the device keeps its memory until the disk is done, and the
/// reset is not over before; every one that was answered before was done.
#[test]
fn a_thousand_resets_under_load_lose_nothing_on_a_disk_that_is_late() {
    let late = Late::new(Duration::from_micros(20));
    let ledger = late.ledger();
    let disk = Arc::new(Disk::new("late", Box::new(late)));
    let options = VirtioBlkOptions { rings: Rings::Packed, queues: 2, ..VirtioBlkOptions::new("disk0") };
    let device = VirtioBlk::new(disk, options).unwrap();
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 16 << 20).unwrap()]).unwrap());
    let guest = Guest::new(Box::new(device), ram.clone());
    const REQUESTS: u64 = 8;
    for round in 0..1000u64 {
        let kind = if round % 2 == 0 { Features::RING_PACKED } else { Features::default() };
        guest.negotiate(ALL | kind);
        let mut rings = [0, 1]
            .map(|index| guest.add_queue(index, Gpa(RING.0 + u64::from(index) * 0x4000), 64, ALL | kind));
        guest.go();
        let header = |queue: u64, i: u64| HEADERS + 0x1000 * queue + 32 * i;
        for (queue, ring) in (0u64..).zip(&mut rings) {
            for i in 0..REQUESTS {
                let at = header(queue, i);
                // Reads and writes by turns, each of a sector of its own.
                ram.write_obj(Gpa(at), &[(i as u32 % 2).to_le(), 0, (queue * 100 + i) as u32, 0]).unwrap();
                ram.write_obj(Gpa(at + 16), &0xaau8).unwrap();
                let data = piece(DATA + 0x10000 * queue + 512 * i, 512);
                let status = piece(at + 16, 1);
                let (out, room) =
                    if i % 2 == 1 { (vec![data], vec![status]) } else { (vec![], vec![data, status]) };
                let readable = [&[piece(at, 16)], &out[..]].concat();
                ring.add(&readable, &room, Layout::Direct).unwrap();
            }
            guest.kick(queue as u16);
        }
        // Some are answered, others are not.
        let mut answered = 0;
        let start = Instant::now();
        while answered < round % REQUESTS {
            answered += u64::from(rings.iter_mut().any(|ring| ring.take_used().is_some()));
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", guest.reports());
        }
        guest.reset();
        assert_eq!(ledger.under_way(), 0, "the reset is over, and the disk has guest memory");
        let done = ledger.take();
        let told = (0..2).flat_map(|queue| (0..REQUESTS).map(move |i| (queue, i)));
        for (queue, i) in
            told.filter(|(queue, i)| ram.read_obj::<u8>(Gpa(header(*queue, *i) + 16)).unwrap() == 0)
        {
            let at = Sectors(queue * 100 + i);
            let of = |operation: &Operation| match operation {
                Operation::Read { at } | Operation::Write { at, .. } => Some(*at),
                _ => None,
            };
            assert!(done.iter().any(|operation| of(operation) == Some(at)), "answered and not done");
        }
        // What the guest puts there now stays.
        let marker = pattern(&guest, DATA, 0x1000, round);
        if round % 50 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(bytes(&guest, DATA, 0x1000) == marker);
    }
    assert!(guest.reports().is_empty(), "{:?}", guest.reports());
    let weak = Arc::downgrade(&ram);
    drop(ram);
    drop(guest);
    assert!(weak.upgrade().is_none(), "somebody still has guest memory");
}

/// A guest that has a read under way in each of three queues of a disk that answers only after this time.
fn with_reads_under_way(delay: Duration) -> (Guest, Ledger) {
    let late = Late::new(delay);
    let ledger = late.ledger();
    let disk = Arc::new(Disk::new("late", Box::new(late)));
    let device = VirtioBlk::new(disk, VirtioBlkOptions { queues: 3, ..VirtioBlkOptions::new("disk0") });
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 16 << 20).unwrap()]).unwrap());
    let guest = Guest::new(Box::new(device.unwrap()), ram);
    guest.negotiate(ALL);
    let rings =
        [0, 1, 2].map(|index| guest.add_queue(index, Gpa(RING.0 + 0x4000 * u64::from(index)), 64, ALL));
    guest.go();
    for (index, mut ring) in (0u16..).zip(rings) {
        let at = HEADERS + 32 * u64::from(index);
        guest.ram.write_obj(Gpa(at), &[0u64; 2]).unwrap();
        ring.add(&[piece(at, 16)], &[piece(DATA, 512), piece(at + 16, 1)], Layout::Direct).unwrap();
        guest.kick(index);
    }
    let begin = Instant::now();
    while ledger.begun() < 3 {
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", guest.reports());
        std::thread::sleep(Duration::from_millis(1));
    }
    (guest, ledger)
}

#[test]
fn a_disk_that_does_not_answer_holds_up_its_device_for_seconds_whatever_the_number_of_queues() {
    let (guest, ledger) = with_reads_under_way(Duration::from_secs(7));
    let (reports, ram) = (guest.reports.clone(), Arc::downgrade(&guest.ram));
    let begin = Instant::now();
    drop(guest);
    let took = begin.elapsed();
    assert!(took < Duration::from_millis(6500), "{took:?}");
    assert_eq!(ledger.under_way(), 3);
    assert!(ram.upgrade().is_some(), "the disk has the guest's memory still");
    let reports = reports.lock().clone();
    let wanted = "virtio-blk disk0: queues 0, 1, 2 have not ended in 5 s what is under way";
    assert!(reports.len() == 1 && reports[0].starts_with(wanted), "{reports:?}");
    while ram.upgrade().is_some() {
        assert!(begin.elapsed() < Duration::from_secs(20), "those that are left behind end with the disk");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(ledger.under_way(), 0);
}
