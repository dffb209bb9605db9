//! Over a disk that answers as it is told: errors, limits, aborts.

use super::*;

/// A disk in memory of nobody's that answers as it is told.
struct Scripted {
    geometry: disk::Geometry,
    answer: fn(disk::Operation) -> Result<(), disk::DiskError>,
    seen: Arc<std::sync::Mutex<Vec<disk::Operation>>>,
    /// How long each answer takes.
    delay: Duration,
    poll: disk::Poll,
}

struct ScriptedEngine {
    answer: fn(disk::Operation) -> Result<(), disk::DiskError>,
    seen: Arc<std::sync::Mutex<Vec<disk::Operation>>>,
    delay: Duration,
    noted: Vec<disk::Request>,
    watched: Option<vmm_sys_util::eventfd::EventFd>,
}

impl disk::Backend for Scripted {
    fn geometry(&self) -> &disk::Geometry {
        &self.geometry
    }

    fn poll(&self) -> disk::Poll {
        self.poll
    }

    fn engine(
        &self,
        _: u16,
        _: Arc<disk::QueueCounters>,
    ) -> Result<Box<dyn disk::Engine + Send>, disk::QueueError> {
        let (answer, seen, delay) = (self.answer, self.seen.clone(), self.delay);
        Ok(Box::new(ScriptedEngine { answer, seen, delay, noted: Vec::new(), watched: None }))
    }
}

impl disk::Engine for ScriptedEngine {
    fn start(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn watch(&mut self, eventfd: &vmm_sys_util::eventfd::EventFd) -> std::io::Result<()> {
        self.watched = Some(eventfd.try_clone()?);
        Ok(())
    }

    fn submit(&mut self, request: disk::Request) {
        self.seen.lock().unwrap().push(request.operation);
        self.noted.push(request);
    }

    fn advance(&mut self, patience: disk::Patience, events: &mut Vec<disk::Event>) -> std::io::Result<()> {
        // Nobody else reads it here.
        let rung = || self.watched.as_ref().is_some_and(|eventfd| eventfd.read().is_ok());
        if !self.noted.is_empty() {
            std::thread::sleep(self.delay);
        } else if patience == disk::Patience::Wait {
            while !rung() {
                std::thread::sleep(Duration::from_micros(50));
            }
            events.push(disk::Event::Wake);
        } else if rung() {
            events.push(disk::Event::Wake);
        }
        for disk::Request { tag, operation, buffers } in self.noted.drain(..) {
            events.push(disk::Event::Done { tag, operation, result: (self.answer)(operation), buffers });
        }
        Ok(())
    }
}

fn scripted(
    answer: fn(disk::Operation) -> Result<(), disk::DiskError>,
    delay: Duration,
    change: impl FnOnce(&mut disk::Geometry),
) -> (Guest, Arc<std::sync::Mutex<Vec<disk::Operation>>>) {
    scripted_and_polled(answer, delay, change, disk::Poll::Off)
}

fn scripted_and_polled(
    answer: fn(disk::Operation) -> Result<(), disk::DiskError>,
    delay: Duration,
    change: impl FnOnce(&mut disk::Geometry),
    poll: disk::Poll,
) -> (Guest, Arc<std::sync::Mutex<Vec<disk::Operation>>>) {
    let mut geometry = disk::Geometry {
        capacity: disk::Sectors(1 << 20),
        logical_block: 4096,
        physical_block: 4096,
        alignment_offset: 0,
        minimum_io: 4096,
        optimal_io: 0,
        access: disk::Access::ReadWrite,
        write_cache: disk::WriteCache::WriteBack,
        fua: false,
        rotational: false,
        discard: Some(disk::Discard {
            max: disk::Sectors(100),
            granularity: 4096,
            after: disk::AfterDiscard::Unspecified,
        }),
        write_zeroes: Some(disk::WriteZeroes { max: disk::Sectors(100) }),
        model: Some("A model".into()),
        serial: Some("A serial".into()),
    };
    change(&mut geometry);
    let seen: Arc<std::sync::Mutex<Vec<disk::Operation>>> = Arc::default();
    let backend = Scripted { geometry, answer, seen: seen.clone(), delay, poll };
    let disk = Arc::new(Disk::new("scripted", Box::new(backend)));
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), RAM).unwrap()]).unwrap());
    (Guest::new(vec![Namespace::new(disk)], &NvmeOptions::new("disk0"), ram), seen)
}

#[test]
fn two_disks_whose_long_serial_numbers_differ_in_the_end_are_two_for_the_guest() {
    let shown = |own: &str| {
        let own = own.to_owned();
        let (guest, _) = scripted(|_| Ok(()), Duration::ZERO, |geometry| geometry.serial = Some(own));
        let mut admin = guest.enable();
        let (_, controller) = identify(&guest, &mut admin, 1, 0);
        let (_, namespace) = identify(&guest, &mut admin, 3, 1);
        (controller[4..24].to_vec(), namespace[4..20].to_vec())
    };
    let (one, other) = (shown("SAME-FIRST-20-CHARACTERS-1"), shown("SAME-FIRST-20-CHARACTERS-2"));
    assert_ne!(one.0, other.0, "serial numbers");
    assert_ne!(one.1, other.1, "UUIDs");
    assert!(one.0.starts_with(b"SAME-FIRST-"), "{one:?}");
}

#[test]
fn every_kind_of_error_of_the_disk_has_its_status() {
    use disk::DiskError;
    // The place says what goes wrong.
    let (guest, _) = scripted(
        |operation| match operation {
            disk::Operation::Read { at } | disk::Operation::Write { at, .. } => match at.0 / 8 {
                1 => Err(DiskError::Media),
                2 => Err(DiskError::NoSpace),
                3 => Err(DiskError::Gone),
                4 => Err(DiskError::ReadOnly),
                5 => Err(DiskError::OutOfRange),
                6 => Err(DiskError::TimedOut),
                7 => Err(DiskError::Other(5)),
                _ => Ok(()),
            },
            _ => Err(DiskError::Media),
        },
        Duration::ZERO,
        |_| {},
    );
    let mut admin = guest.enable();
    let (_, page) = identify(&guest, &mut admin, 1, 0);
    assert_eq!((&page[4..12], &page[24..31]), (&b"A serial"[..], &b"A model"[..]));
    assert_eq!(identify(&guest, &mut admin, 0, 1).1[130], 12, "blocks of 4096 bytes");
    let (status, _) = guest.admin(&mut admin, admin::SET_FEATURES, feature::ASYNC_EVENT.into(), 4);
    assert_eq!(status, 0);
    let event = guest.submit(&mut admin, Command { opcode: admin::ASYNC_EVENT, ..Command::default() });
    let mut queue = guest.create_pair(&mut admin, 1, 32, None).unwrap();
    let mut run = |opcode, lba| guest.run(&mut queue, io(opcode, 1, lba, 1, [Guest::DATA.0, 0])).0;
    for (lba, read, write) in [
        (0, 0, 0),
        (1, 0x281, 0x280),
        (2, 0x81, 0x81),
        (3, 0x82, 0x82),
        (4, 0x182, 0x182),
        (5, 0x80, 0x80),
        (6, 0x06, 0x06),
        (7, 0x06, 0x06),
    ] {
        assert_eq!((run(spec::io::READ, lba), run(spec::io::WRITE, lba)), (read, write), "block {lba}");
    }
    assert_eq!(run(spec::io::FLUSH, 0), 0x280);
    assert_eq!(run(spec::io::WRITE_ZEROES, 0), 0x280);
    assert_eq!(run(spec::io::COMPARE, 1), 0x281);
    let told = guest.wait(&mut admin);
    assert_eq!((told.cid.get(), told.result.get()), (event, 0x0002_0001), "a lost disk is a warning");
    let (_, page) = log(&guest, &mut admin, log_page::HEALTH, 128, false);
    assert_eq!((page[0], page[160]), (4, 5));
}

#[test]
fn zeroes_and_discards_are_cut_to_the_disks_limits_or_written() {
    use disk::{Operation, SectorRange, Sectors};
    let (guest, seen) = scripted(|_| Ok(()), Duration::ZERO, |_| {});
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 32, None).unwrap();
    assert_eq!(guest.run(&mut queue, io(spec::io::WRITE_ZEROES, 1, 10, 25, [0, 0])).0, 0);
    let range = |start, count| SectorRange { start: Sectors(start), count: Sectors(count) };
    let keep = disk::Unmap::Forbidden;
    let zeroes = [(80, 96), (176, 96), (272, 8)].map(|(at, n)| Operation::WriteZeroes(range(at, n), keep));
    assert_eq!(*seen.lock().unwrap(), zeroes);
    // FUA, and a write cache that is switched off: nothing may stay in the disk's cache.
    seen.lock().unwrap().clear();
    let (status, _) = guest.admin(&mut admin, admin::SET_FEATURES, feature::WRITE_CACHE.into(), 0);
    assert_eq!(status, 0);
    assert_eq!(seen.lock().unwrap().pop(), Some(Operation::Flush), "what the cache held");
    assert_eq!(guest.run(&mut queue, io(spec::io::WRITE_ZEROES, 1, 0, 1, [0, 0])).0, 0);
    assert_eq!(guest.run(&mut queue, io(spec::io::WRITE, 1, 0, 1, [Guest::DATA.0, 0])).0, 0);
    let stable = Operation::Write { at: Sectors(0), durability: disk::Durability::Stable };
    assert_eq!(*seen.lock().unwrap(), [Operation::WriteZeroes(range(0, 8), keep), Operation::Flush, stable]);
    // A disk that says it can and cannot, and one that says it cannot.
    for says in [true, false] {
        let (guest, seen) = scripted(
            |operation| match operation {
                Operation::WriteZeroes(..) => Err(disk::DiskError::Unsupported),
                _ => Ok(()),
            },
            Duration::ZERO,
            |geometry| geometry.write_zeroes = geometry.write_zeroes.filter(|_| says),
        );
        let mut admin = guest.enable();
        let mut queue = guest.create_pair(&mut admin, 1, 32, None).unwrap();
        assert_eq!(guest.run(&mut queue, io(spec::io::WRITE_ZEROES, 1, 0, 40, [0, 0])).0, 0);
        let cached = |at| Operation::Write { at: Sectors(at), durability: disk::Durability::Cached };
        let seen = seen.lock().unwrap();
        assert_eq!(seen[usize::from(says)..], [cached(0), cached(128), cached(256)]);
        assert_eq!(guest.nvme.copied(), 40 * 4096);
    }
}

#[test]
fn deleting_a_queue_waits_for_what_is_under_way_and_answers_it() {
    let (guest, seen) = scripted(|_| Ok(()), Duration::from_millis(100), |_| {});
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 32, None).unwrap();
    let cid = guest.submit(&mut queue, io(spec::io::READ, 1, 0, 1, [Guest::DATA.0, 0]));
    while seen.lock().unwrap().is_empty() {
        // Its delay is over, or the deletion comes while it lasts: both must do.
        if guest.admin(&mut admin, admin::DELETE_SQ, 1, 0).0 == 0 {
            break;
        }
    }
    if let Some(completion) = guest.take(&mut queue) {
        assert_eq!((completion.cid.get(), completion.status.get() >> 1), (cid, 0));
        assert_eq!(seen.lock().unwrap().len(), 1);
    } else {
        assert!(seen.lock().unwrap().is_empty(), "a command that was done and not answered");
    }
    assert_eq!(guest.admin(&mut admin, admin::DELETE_CQ, 1, 0).0, 0);
}

#[test]
fn a_disk_that_is_looked_at_needs_no_doorbells_and_stops_when_told() {
    for poll in [disk::Poll::Adaptive, disk::Poll::On] {
        let (guest, _) = scripted_and_polled(|_| Ok(()), Duration::ZERO, |_| {}, poll);
        for shadow in [true, false] {
            let mut admin = guest.enable();
            let pages = shadow.then(|| guest.share_doorbells(&mut admin));
            let mut queue = guest.create_pair(&mut admin, 1, 32, None).unwrap();
            queue.shadow = pages;
            for lba in 0..500 {
                assert_eq!(guest.run(&mut queue, io(spec::io::READ, 1, lba, 1, [Guest::DATA.0, 0])).0, 0);
            }
            if shadow && poll == disk::Poll::On {
                assert!(queue.rung < 250, "{} doorbells for 1000 moves", queue.rung);
            }
            assert_eq!(guest.admin(&mut admin, admin::DELETE_SQ, 1, 0).0, 0);
            let _ = guest.create_pair(&mut admin, 2, 32, None).unwrap();
            guest.disable();
        }
    }
}

#[test]
fn a_command_of_many_steps_is_aborted_between_them_and_one_that_has_ended_is_not() {
    let (guest, seen) = scripted(|_| Ok(()), Duration::from_millis(5), |_| {});
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 8, None).unwrap();
    // Thousands of steps.
    let long = guest.submit(&mut queue, io(spec::io::WRITE_ZEROES, 1, 0, 1 << 16, [0, 0]));
    while seen.lock().unwrap().len() < 3 {
        std::thread::yield_now();
    }
    let abort = |cid: u16| 1 | u32::from(cid) << 16;
    assert_eq!(guest.admin(&mut admin, admin::ABORT, abort(long), 0), (0, 0), "it is aborted");
    let completion = guest.wait(&mut queue);
    assert_eq!((completion.cid.get(), completion.status.get() >> 1 & 0x7ff), (long, 0x07));
    assert!(seen.lock().unwrap().len() < 1000);
    let short = guest.submit(&mut queue, io(spec::io::READ, 1, 0, 1, [Guest::DATA.0, 0]));
    assert_eq!(guest.wait(&mut queue).cid.get(), short);
    assert_eq!(guest.admin(&mut admin, admin::ABORT, abort(short), 0), (0, 1), "it has ended");
    assert_eq!(guest.admin(&mut admin, admin::ABORT, 7, 0), (0, 1), "there is no such queue");
}

/// How often the disk was flushed, and what it saw last.
fn flushes(seen: &std::sync::Mutex<Vec<disk::Operation>>) -> (usize, Option<disk::Operation>) {
    let seen = seen.lock().unwrap();
    (seen.iter().filter(|operation| **operation == disk::Operation::Flush).count(), seen.last().copied())
}

#[test]
fn a_cache_that_is_switched_off_is_flushed_before_that_is_answered() {
    let (guest, seen) = scripted(|_| Ok(()), Duration::ZERO, |_| {});
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 32, None).unwrap();
    let set =
        |admin: &mut Queue, on| guest.admin(admin, admin::SET_FEATURES, feature::WRITE_CACHE.into(), on);
    assert_eq!(guest.run(&mut queue, io(spec::io::WRITE, 1, 0, 1, [Guest::DATA.0, 0])).0, 0);
    assert_eq!(set(&mut admin, 0), (0, 0));
    assert_eq!(flushes(&seen), (1, Some(disk::Operation::Flush)));
    // There is nothing in a cache that is off, nor does one that is on need it.
    for on in [0, 1, 1] {
        assert_eq!(set(&mut admin, on), (0, 0));
    }
    assert_eq!(flushes(&seen).0, 1);
}

#[test]
fn a_cache_that_cannot_be_flushed_stays_on() {
    let (guest, _) = scripted(
        |operation| if operation == disk::Operation::Flush { Err(disk::DiskError::Media) } else { Ok(()) },
        Duration::ZERO,
        |_| {},
    );
    let mut admin = guest.enable();
    let cache = u32::from(feature::WRITE_CACHE);
    assert_ne!(guest.admin(&mut admin, admin::SET_FEATURES, cache, 0).0, 0);
    assert_eq!(guest.admin(&mut admin, admin::GET_FEATURES, cache, 0), (0, 1));
    let reports = guest.reports();
    assert!(reports.len() == 1 && reports[0].contains("The cache stays on"), "{reports:?}");
}

#[test]
fn what_is_under_way_when_the_cache_is_switched_off_is_flushed_when_it_ends() {
    let long = io(spec::io::WRITE_ZEROES, 1, 0, 100, [0, 0]);
    for command in [io(spec::io::WRITE, 1, 0, 1, [Guest::DATA.0, 0]), long] {
        let (guest, seen) = scripted(|_| Ok(()), Duration::from_millis(300), |_| {});
        let mut admin = guest.enable();
        let mut queue = guest.create_pair(&mut admin, 1, 32, None).unwrap();
        guest.submit(&mut queue, command);
        while seen.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(guest.admin(&mut admin, admin::SET_FEATURES, feature::WRITE_CACHE.into(), 0), (0, 0));
        assert_eq!(guest.wait(&mut queue).status.get() >> 1, 0);
        assert_eq!(flushes(&seen), (2, Some(disk::Operation::Flush)));
    }
}
