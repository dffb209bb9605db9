//! Whether writes last.

use super::*;

#[test]
fn a_real_disk_takes_stable_writes_of_a_driver_that_cannot_flush_and_of_one_that_wants_no_cache() {
    // That they are asked to last is shown below; here, that the host's kernel carries them out so.
    let setup = Setup::new();
    let mut queue = setup.start(Features::VERSION_1);
    setup.guest.ram.write_obj(Gpa(DATA), &[0x11u8; 4096]).unwrap();
    assert_eq!(queue.run(1, 0, &[piece(DATA, 4096)], &[]), (0, 1));
    assert_eq!(setup.on_disk(0, 4096), [0x11; 4096]);
    setup.guest.reset();
    let mut queue = setup.start(ALL);
    setup.guest.write(Guest::DEVICE + 32, [0]);
    setup.guest.ram.write_obj(Gpa(DATA), &[0x22u8; 4096]).unwrap();
    assert_eq!(queue.run(1, 0, &[piece(DATA, 4096)], &[]), (0, 1));
    assert_eq!(setup.on_disk(0, 4096), [0x22; 4096]);
}

/// What a write and a range of zeroes become on the disk.
fn becomes(queue: &mut Queued<'_>, ledger: &Ledger) -> Vec<Operation> {
    queue.guest.ram.write_obj(Gpa(DATA), &[8u64, 8]).unwrap();
    assert_eq!(queue.run(1, 0, &[piece(DATA, 4096)], &[]), (0, 1));
    assert_eq!(queue.run(13, 0, &[piece(DATA, 16)], &[]), (0, 1));
    ledger.take()
}

const ZEROES: Operation =
    Operation::WriteZeroes(SectorRange { start: Sectors(8), count: Sectors(8) }, Unmap::Forbidden);

fn write(durability: Durability) -> Operation {
    Operation::Write { at: Sectors(0), durability }
}

fn cached() -> Vec<Operation> {
    vec![write(Durability::Cached), ZEROES]
}

fn lasting() -> Vec<Operation> {
    vec![write(Durability::Stable), ZEROES, Operation::Flush]
}

#[test]
fn without_a_cache_writes_are_stable_and_zeroes_are_flushed_before_they_are_answered() {
    let (guest, ledger) = watched(InitialCache::OfDisk);
    let all = ALL | feature::WRITE_ZEROES;
    let mut queue = start(&guest, all);
    assert_eq!(becomes(&mut queue, &ledger), cached());
    guest.write(Guest::DEVICE + 32, [0]);
    assert_eq!(ledger.take(), [Operation::Flush], "what the cache held");
    assert_eq!(becomes(&mut queue, &ledger), lasting());
    guest.write(Guest::DEVICE + 32, [1]);
    assert_eq!(becomes(&mut queue, &ledger), cached());
    guest.reset();
    let mut queue = start(&guest, Features::VERSION_1 | feature::WRITE_ZEROES);
    assert_eq!(becomes(&mut queue, &ledger), lasting(), "a driver that does not flush");
}

#[test]
fn a_cache_is_off_from_the_start_when_asked_or_when_the_driver_does_not_flush() {
    let (guest, ledger) = watched(InitialCache::Off);
    let all = ALL | feature::WRITE_ZEROES;
    for _ in 0..2 {
        let mut queue = start(&guest, all);
        assert_eq!(guest.read::<1>(Guest::DEVICE + 32), [0]);
        assert_eq!(becomes(&mut queue, &ledger), lasting());
        guest.write(Guest::DEVICE + 32, [1]);
        assert_eq!(becomes(&mut queue, &ledger), cached(), "the driver may choose");
        guest.reset();
    }
    let (guest, _) = watched(InitialCache::OfDisk);
    start(&guest, all);
    assert_eq!(guest.read::<1>(Guest::DEVICE + 32), [1]);
    guest.reset();
    start(&guest, Features::VERSION_1 | feature::CONFIG_WCE);
    assert_eq!(guest.read::<1>(Guest::DEVICE + 32), [0], "without FLUSH");
}

/// A driver that switches the cache off sends no flushes any more: what was written before is stable when it reads 0.
#[test]
fn a_cache_that_is_switched_off_is_flushed_first_and_what_is_under_way_when_it_ends() {
    let late = Late::new(Duration::from_millis(150));
    let ledger = late.ledger();
    let disk = Arc::new(Disk::new("late", Box::new(late)));
    let device = VirtioBlk::new(disk, VirtioBlkOptions::new("disk0")).unwrap();
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 16 << 20).unwrap()]).unwrap());
    let guest = Guest::new(Box::new(device), ram);
    let mut queue = start(&guest, ALL);
    let (head, _) = queue.send(1, 0, &[piece(DATA, 4096)], &[], Layout::Direct).unwrap();
    queue.kick();
    let begin = Instant::now();
    while ledger.begun() == 0 {
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
    guest.write(Guest::DEVICE + 32, [0]);
    assert_eq!(guest.read::<1>(Guest::DEVICE + 32), [0]);
    assert!(ledger.take().contains(&Operation::Flush));
    assert_eq!(queue.wait(), (head, 1));
    assert_eq!(ledger.take().last(), Some(&Operation::Flush), "the write was answered without being stable");
    assert!(guest.reports().is_empty(), "{:?}", guest.reports());
}

#[test]
fn a_cache_that_cannot_be_flushed_stays_on_and_the_driver_reads_so() {
    let disk = Arc::new(Disk::new("late", Box::new(Late::new(Duration::from_secs(7)))));
    let device = VirtioBlk::new(disk, VirtioBlkOptions::new("disk0")).unwrap();
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 16 << 20).unwrap()]).unwrap());
    let guest = Guest::new(Box::new(device), ram);
    guest.negotiate(ALL);
    let begin = Instant::now();
    guest.write(Guest::DEVICE + 32, [0]);
    assert!((Duration::from_secs(4)..Duration::from_millis(6900)).contains(&begin.elapsed()));
    assert_eq!(guest.read::<1>(Guest::DEVICE + 32), [1]);
    let reports = guest.reports();
    assert!(reports.len() == 1 && reports[0].contains("timed out. The cache stays on."), "{reports:?}");
    // The flush is under way still: no second one is begun, and nobody waits.
    let begin = Instant::now();
    guest.write(Guest::DEVICE + 32, [0]);
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert_eq!(guest.read::<1>(Guest::DEVICE + 32), [1]);
}
