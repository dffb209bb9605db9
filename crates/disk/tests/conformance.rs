//! What every back end must do, here over a raw file, where this may be tried a loop device, and a model of an NVMe
//! controller.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use disk::nvme::model::{self, Model};
use disk::nvme::{NvmeController, NvmeOptions};
use disk::{
    Access, Bounce, Disk, DiskError, DiskOptions, DiskQueue, Durability, Event, Operation, Request,
    SectorRange, Sectors, Unmap,
};
use dma::Kind;
use dma::fake::FakeIommu;
use memory::{Buffers, Gpa, GpaRange, MemoryMap, Ram};
use vmm_sys_util::eventfd::EventFd;

const SIZE: u64 = 16 << 20;

/// A loop device over a file, gone with the value.
struct Loop(PathBuf);

impl Loop {
    /// `None` where loop devices cannot be made, which is then said.
    fn over(file: &Path, block: u32) -> Option<Loop> {
        let made = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=off", "--sector-size", &block.to_string()])
            .arg(file)
            .output();
        match made {
            Ok(made) if made.status.success() => {
                Some(Loop(PathBuf::from(String::from_utf8(made.stdout).unwrap().trim())))
            }
            other => {
                eprintln!("skipped the loop device (run as root with losetup): {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(detached.is_ok_and(|status| status.success()), "loop device {} stays", self.0.display());
    }
}

fn image(folder: &Path) -> PathBuf {
    let path = folder.join("disk.raw");
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    path
}

/// What a disk is made over.
#[derive(Debug)]
enum Source<'a> {
    Path(&'a Path),
    /// A controller in software, with blocks of so many bytes.
    Nvme(u32),
}

/// Runs a test over a raw file, and over loop devices and NVMe namespaces with blocks of 512 and 4096 bytes.
fn over_every_disk(test: impl Fn(&Source<'_>)) {
    over_every_path(|path| test(&Source::Path(path)));
    for block in [512, 4096] {
        test(&Source::Nvme(block));
    }
}

/// Runs a test over a raw file and over loop devices with blocks of 512 and 4096 bytes.
fn over_every_path(test: impl Fn(&Path)) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    test(&image(folder.path()));
    for block in [512, 4096] {
        let path = image(folder.path());
        if let Some(device) = Loop::over(&path, block) {
            test(&device.0);
        }
    }
}

struct Bench {
    ram: Arc<Ram>,
    disk: Disk,
    queue: DiskQueue,
}

impl Source<'_> {
    /// Opens it, for the use with this RAM.
    fn open(&self, ram: &Arc<Ram>, access: Access) -> Disk {
        match self {
            Source::Path(path) => Disk::open(&DiskOptions { access, ..DiskOptions::new(path) }).unwrap(),
            Source::Nvme(block) => {
                let iommu = FakeIommu::new();
                let domain = iommu.domain("host", Kind::Host);
                MemoryMap::new(ram.clone()).attach(domain.clone()).unwrap();
                let model = Model::new(&iommu, vec![model::Namespace { bytes: SIZE, block: *block }]);
                let options = NvmeOptions::new(Arc::new(|trouble| panic!("{trouble}")));
                let controller = NvmeController::over(model.function(), &domain, options).unwrap();
                let namespace = controller.namespace(1).unwrap();
                let namespace = if access == Access::ReadOnly { namespace.read_only() } else { namespace };
                Disk::new("0000:aa:00.0", Box::new(namespace))
            }
        }
    }

    fn bench(&self) -> Bench {
        self.bench_with(Access::ReadWrite)
    }

    fn bench_with(&self, access: Access) -> Bench {
        let ram = ram(16 << 20);
        Bench::over(self.open(&ram, access), ram)
    }
}

fn ram(bytes: u64) -> Arc<Ram> {
    Arc::new(Ram::new(&[GpaRange::new(Gpa(0), bytes).unwrap()]).unwrap())
}

impl Bench {
    fn open(options: &DiskOptions) -> Bench {
        Bench::over(Disk::open(options).unwrap(), ram(16 << 20))
    }

    fn over(disk: Disk, ram: Arc<Ram>) -> Bench {
        let queue = disk.prepare_queue(32).unwrap().start().unwrap();
        Bench { ram, disk, queue }
    }

    fn buffers(&self, pieces: &[(u64, u64)]) -> Buffers {
        let mut buffers = Buffers::new(self.ram.clone());
        pieces.iter().for_each(|(gpa, len)| buffers.push(Gpa(*gpa), *len).unwrap());
        buffers
    }

    fn run(&mut self, operation: Operation, pieces: &[(u64, u64)]) -> Result<(), DiskError> {
        let buffers = self.buffers(pieces);
        if let Err(refused) = self.queue.submit(Request { tag: 7, operation, buffers }) {
            return Err(refused.error);
        }
        let mut events = Vec::new();
        while events.is_empty() {
            self.queue.wait(&mut events).unwrap();
        }
        match events.pop() {
            Some(Event::Done { tag: 7, result, .. }) => result,
            other => panic!("{other:?}"),
        }
    }

    fn fill(&self, gpa: u64, len: usize, seed: u8) -> Vec<u8> {
        let bytes: Vec<u8> = (0..len).map(|i| (i / 512 + i) as u8 ^ seed).collect();
        self.ram.write(Gpa(gpa), &bytes).unwrap();
        bytes
    }

    fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(Gpa(gpa), &mut bytes).unwrap();
        bytes
    }
}

fn read(at: u64) -> Operation {
    Operation::Read { at: Sectors(at) }
}

fn write(at: u64) -> Operation {
    Operation::Write { at: Sectors(at), durability: Durability::Cached }
}

#[test]
fn what_is_written_is_read_back_from_one_piece_and_from_many() {
    over_every_disk(|source| {
        let mut bench = source.bench();
        let bytes = bench.fill(0x10000, 0x3000, 1);
        bench.run(write(8), &[(0x10000, 0x3000)]).unwrap();
        bench.run(Operation::Flush, &[]).unwrap();
        let scattered = [(0x201000, 0x1000), (0x100000, 0x1000), (0x300000, 0x1000)];
        bench.run(read(8), &scattered).unwrap();
        let back: Vec<u8> =
            scattered.iter().flat_map(|(gpa, len)| bench.bytes(*gpa, *len as usize)).collect();
        assert_eq!(back, bytes);
        let stable = Operation::Write { at: Sectors(1000), durability: Durability::Stable };
        bench.run(stable, &scattered).unwrap();
        bench.run(read(1000), &[(0x400000, 0x3000)]).unwrap();
        assert_eq!(bench.bytes(0x400000, 0x3000), bytes);
        let counters = bench.disk.counters();
        assert_eq!((counters.bytes_direct, counters.bytes_bounced()), (0xc000, 0), "{source:?}");
        assert_eq!((counters.reads, counters.writes, counters.flushes, counters.errors), (2, 2, 1, 0));
    });
}

#[test]
fn a_large_transfer_of_many_pieces_is_whole() {
    over_every_disk(|source| {
        let mut bench = source.bench();
        // More pieces than the kernel takes at once, none touching the next.
        let pieces: Vec<(u64, u64)> = (0..1100).rev().map(|i| (i * 0x2000, 0x1000)).collect();
        let half = pieces.len() as u64 * 0x1000;
        let bytes = bench.fill(0, 16 << 20, 3);
        bench.run(write(0), &pieces).unwrap();
        bench.run(read(0), &[(0, half)]).unwrap();
        let expected: Vec<u8> =
            pieces.iter().flat_map(|(gpa, len)| bytes[*gpa as usize..][..*len as usize].to_vec()).collect();
        assert!(bench.bytes(0, half as usize) == expected);
    });
}

#[test]
fn memory_out_of_alignment_is_bounced_and_counted_with_its_reason() {
    over_every_disk(|source| {
        let mut bench = source.bench();
        // Odd addresses and odd pieces, longer than one bounce buffer.
        let (len, gpa) = (0x90000usize, 0x10001);
        let bytes = bench.fill(gpa, len, 5);
        bench.run(write(0), &[(gpa, 100), (gpa + 100, len as u64 - 100)]).unwrap();
        bench.run(read(0), &[(0x200001, 7), (0x300004, len as u64 - 7)]).unwrap();
        assert!(bench.bytes(0x300004, len - 7) == bytes[7..]);
        assert_eq!(bench.bytes(0x200001, 8), [&bytes[..7], &[0]].concat());
        let counters = bench.disk.counters();
        assert_eq!((counters.bytes_direct, counters.bytes_bounced_alignment), (0, 2 * len as u64));
    });
}

#[test]
fn copies_that_were_asked_for_are_made_and_counted() {
    over_every_path(|path| {
        let mut bench = Bench::open(&DiskOptions { bounce: Bounce::Always, ..DiskOptions::new(path) });
        let bytes = bench.fill(0, 0x2000, 9);
        bench.run(write(16), &[(0, 0x2000)]).unwrap();
        bench.run(read(16), &[(0x4000, 0x2000)]).unwrap();
        assert_eq!(bench.bytes(0x4000, 0x2000), bytes);
        assert_eq!(bench.disk.counters().bytes_bounced_asked, 0x4000);
    });
}

#[test]
fn what_lies_outside_or_splits_a_block_is_refused() {
    over_every_disk(|source| {
        let mut bench = source.bench();
        let end = SIZE / 512;
        assert_eq!(bench.disk.geometry().capacity, Sectors(end));
        bench.run(read(end - 8), &[(0, 4096)]).unwrap();
        assert_eq!(bench.run(read(end), &[(0, 4096)]), Err(DiskError::OutOfRange));
        assert_eq!(bench.run(write(end - 8), &[(0, 8192)]), Err(DiskError::OutOfRange));
        assert_eq!(bench.run(read(!7), &[(0, 4096)]), Err(DiskError::OutOfRange));
        assert_eq!(bench.run(read(0), &[(0, 100)]), Err(DiskError::Unaligned));
        assert_eq!(bench.run(read(0), &[]), Err(DiskError::Unaligned));
        if bench.disk.geometry().logical_block == 4096 {
            assert_eq!(bench.run(read(1), &[(0, 4096)]), Err(DiskError::Unaligned));
            assert_eq!(bench.run(read(0), &[(0, 512)]), Err(DiskError::Unaligned));
        }
    });
}

#[test]
fn a_disk_opened_for_reading_cannot_be_changed() {
    over_every_disk(|source| {
        let mut bench = source.bench_with(Access::ReadOnly);
        assert_eq!(bench.disk.geometry().access, Access::ReadOnly);
        let range = SectorRange { start: Sectors(0), count: Sectors(8) };
        assert_eq!(bench.run(write(0), &[(0, 4096)]), Err(DiskError::ReadOnly));
        assert_eq!(bench.run(Operation::Discard(range), &[]), Err(DiskError::ReadOnly));
        assert_eq!(bench.run(Operation::WriteZeroes(range, Unmap::Allowed), &[]), Err(DiskError::ReadOnly));
        bench.run(read(0), &[(0, 4096)]).unwrap();
        bench.run(Operation::Flush, &[]).unwrap();
    });
}

#[test]
fn zeroed_ranges_read_as_zeroes_and_discards_leave_the_rest() {
    over_every_disk(|source| {
        let mut bench = source.bench();
        let bytes = bench.fill(0, 0x40000, 11);
        bench.run(write(0), &[(0, 0x40000)]).unwrap();
        let range = |start| SectorRange { start: Sectors(start), count: Sectors(64) };
        bench.run(Operation::WriteZeroes(range(64), Unmap::Allowed), &[]).unwrap();
        bench.run(Operation::WriteZeroes(range(192), Unmap::Forbidden), &[]).unwrap();
        bench.run(Operation::Discard(range(320)), &[]).unwrap();
        bench.run(read(0), &[(0x100000, 0x40000)]).unwrap();
        let back = bench.bytes(0x100000, 0x40000);
        for (index, piece) in back.chunks(64 * 512).enumerate() {
            match index {
                1 | 3 => assert!(piece.iter().all(|b| *b == 0), "piece {index}"),
                5 => {}
                _ => assert_eq!(piece, &bytes[index * 64 * 512..][..64 * 512], "piece {index}"),
            }
        }
    });
}

#[test]
fn many_requests_complete_in_any_order_with_their_own_tags() {
    over_every_disk(|source| {
        let mut bench = source.bench();
        bench.fill(0, 32 * 4096, 13);
        for tag in 0..32 {
            let buffers = bench.buffers(&[(tag * 4096, 4096)]);
            bench.queue.submit(Request { tag, operation: write(tag * 8), buffers }).unwrap();
        }
        let extra = Request { tag: 99, operation: Operation::Flush, buffers: bench.buffers(&[]) };
        assert_eq!(bench.queue.submit(extra).unwrap_err().error, DiskError::QueueFull);
        let (mut events, mut tags) = (Vec::new(), Vec::new());
        while tags.len() < 32 {
            bench.queue.wait(&mut events).unwrap();
            for event in events.drain(..) {
                let Event::Done { tag, result, buffers, .. } = event else { panic!("{event:?}") };
                result.unwrap();
                assert_eq!(buffers.bytes(), 4096);
                tags.push(tag);
            }
        }
        tags.sort_unstable();
        assert_eq!(tags, (0..32).collect::<Vec<u64>>());
        assert_eq!(bench.queue.under_way(), 0);
    });
}

#[test]
fn a_write_to_the_watched_eventfd_ends_the_wait_every_time() {
    over_every_disk(|source| {
        let mut bench = source.bench();
        let kick = EventFd::new(0).unwrap();
        bench.queue.watch(&kick).unwrap();
        let mut events = Vec::new();
        bench.queue.poll(&mut events).unwrap();
        assert!(events.is_empty());
        for _ in 0..100 {
            kick.write(1).unwrap();
            bench.queue.wait(&mut events).unwrap();
            assert!(matches!(events[..], [Event::Wake]), "{events:?}");
            events.clear();
        }
        let remote = kick.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            remote.write(1).unwrap();
        });
        // What a ring that ended on this thread leaves to do may interrupt a wait, as a signal may.
        while events.is_empty() {
            bench.queue.wait(&mut events).unwrap();
        }
        assert!(matches!(events[..], [Event::Wake]), "{source:?}: {events:?}");
        thread.join().unwrap();
    });
}

#[test]
fn dropping_a_queue_waits_for_everything_under_way() {
    over_every_disk(|source| {
        let ram = ram(1 << 20);
        let disk = source.open(&ram, Access::ReadWrite);
        let shares = Arc::strong_count(&ram);
        for round in 0..50u64 {
            let mut queue = disk.prepare_queue(16).unwrap().start().unwrap();
            let kick = EventFd::new(0).unwrap();
            queue.watch(&kick).unwrap();
            for tag in 0..16 {
                let mut buffers = Buffers::new(ram.clone());
                buffers.push(Gpa(tag * 0x10000 + round % 2), 0x8000).unwrap();
                let operation = if tag % 3 == 0 { write(tag * 64) } else { read(tag * 64) };
                queue.submit(Request { tag, operation, buffers }).unwrap();
            }
            if round % 3 > 0 {
                queue.poll(&mut Vec::new()).unwrap();
            }
            drop(queue);
            assert_eq!(Arc::strong_count(&ram), shares, "a request still holds guest memory");
        }
    });
}

#[test]
fn what_a_dropped_queue_still_moved_is_counted() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = image(folder.path());
    let disk = Disk::open(&DiskOptions::new(&path)).unwrap();
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap());
    let mut written = 0;
    for round in 0..20u8 {
        ram.write(Gpa(0), &vec![round + 1; 1 << 20]).unwrap();
        let mut queue = disk.prepare_queue(16).unwrap().start().unwrap();
        for tag in 0..16 {
            let mut buffers = Buffers::new(ram.clone());
            // Every other round is bounced.
            buffers.push(Gpa(tag * 0x8000 + u64::from(round) % 2), 0x4000).unwrap();
            queue.submit(Request { tag, operation: write(tag * 32), buffers }).unwrap();
        }
        queue.poll(&mut Vec::new()).unwrap();
        drop(queue);
        let on_disk = &std::fs::read(&path).unwrap()[..16 * 0x4000];
        written += on_disk.iter().filter(|byte| **byte == round + 1).count() as u64;
    }
    let counters = disk.counters();
    assert_eq!(counters.bytes_direct + counters.bytes_bounced(), written);
}

#[test]
fn a_disk_in_use_is_refused_with_a_name() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = image(folder.path());
    let first = Disk::open(&DiskOptions::new(&path)).unwrap();
    let error = Disk::open(&DiskOptions::new(&path)).unwrap_err().to_string();
    assert!(error.contains("in use") && error.contains("disk.raw"), "{error}");
    drop(first);
    let readers =
        [Disk::open(&DiskOptions::new(&path).read_only()), Disk::open(&DiskOptions::new(&path).read_only())];
    assert!(readers.iter().all(Result::is_ok));
    drop(readers);
    if let Some(device) = Loop::over(&path, 512) {
        let _first = Disk::open(&DiskOptions::new(&device.0)).unwrap();
        let error = Disk::open(&DiskOptions::new(&device.0)).unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains("exclusively"), "{error}");
    }
}

#[test]
fn what_is_not_a_disk_is_refused_with_the_reason() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let refusal = |path: &Path| Disk::open(&DiskOptions::new(path)).unwrap_err().to_string();
    assert!(refusal(&folder.path().join("absent")).contains("no such file or device"));
    assert!(refusal(folder.path()).contains("a directory"));
    assert!(refusal(Path::new("/dev/null")).contains("a character device"));
    let empty = folder.path().join("empty");
    File::create(&empty).unwrap().set_len(511).unwrap();
    assert!(refusal(&empty).contains("511 bytes"), "{}", refusal(&empty));
}

#[test]
fn a_disk_that_shrinks_gives_an_error_and_never_success() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = image(folder.path());
    let mut bench = Bench::open(&DiskOptions::new(&path));
    File::options().write(true).open(&path).unwrap().set_len(SIZE / 2).unwrap();
    assert_eq!(bench.run(read(SIZE / 512 - 8), &[(0, 4096)]), Err(DiskError::OutOfRange));
    assert_eq!(bench.run(read(SIZE / 1024 - 8), &[(0, 8192)]), Err(DiskError::OutOfRange));
    assert_eq!(bench.disk.counters().errors, 2);
}

#[test]
fn counters_survive_their_queues_without_growing() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = Disk::open(&DiskOptions::new(image(folder.path()))).unwrap();
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap());
    for _ in 0..5 {
        let mut queue = disk.prepare_queue(1).unwrap().start().unwrap();
        let mut buffers = Buffers::new(ram.clone());
        buffers.push(Gpa(0), 512 * 8).unwrap();
        queue.submit(Request { tag: 0, operation: read(0), buffers }).unwrap();
        queue.wait(&mut Vec::new()).unwrap();
    }
    assert_eq!(disk.counters().reads, 5);
    assert_eq!(disk.counters().bytes_read, 5 * 4096);
}
