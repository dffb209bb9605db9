//! What is particular to one back end.

mod subjects;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use disk::{
    Access, Allocation, Allowed, Bounce, Claim, Disk, DiskError, DiskOptions, DiskQueue, Durability, Event,
    Format, Operation, Request, SectorRange, Sectors, Source, Unmap,
};
use memory::{Buffers, Gpa, GpaRange, Ram};
use subjects::nbd_server::{EVERYTHING, LITTLE, Server};
use subjects::{Loop, SIZE, image, qcow2, without_direct_io, without_io_uring, without_locks};

struct Bench {
    ram: Arc<Ram>,
    disk: Disk,
    queue: DiskQueue,
}

impl Bench {
    fn open(options: &DiskOptions) -> Bench {
        let disk = Disk::open(options).unwrap();
        let queue = disk.prepare_queue(32).unwrap().start().unwrap();
        Bench { ram: Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap()), disk, queue }
    }

    fn submit(&mut self, operation: Operation, gpa: u64, len: u64) {
        let mut buffers = Buffers::new(self.ram.clone());
        buffers.push(Gpa(gpa), len).unwrap();
        self.queue.submit(Request { tag: 0, operation, buffers }).unwrap();
    }

    fn run(&mut self, operation: Operation, len: u64) -> Result<(), DiskError> {
        self.submit(operation, 0, len);
        let mut events = Vec::new();
        self.queue.drain(&mut events).unwrap();
        match events.pop() {
            Some(Event::Done { result, .. }) => result,
            other => panic!("{other:?}"),
        }
    }

    fn write(&mut self, at: u64, byte: u8, len: usize) {
        self.ram.write(Gpa(0), &vec![byte; len]).unwrap();
        self.run(write(at), len as u64).unwrap();
    }

    fn read(&mut self, at: u64, len: usize) -> Vec<u8> {
        self.run(Operation::Read { at: Sectors(at) }, len as u64).unwrap();
        let mut bytes = vec![0; len];
        self.ram.read(Gpa(0), &mut bytes).unwrap();
        bytes
    }
}

fn write(at: u64) -> Operation {
    Operation::Write { at: Sectors(at), durability: Durability::Cached }
}

fn refusal(options: &DiskOptions) -> String {
    Disk::open(options).unwrap_err().to_string()
}

fn nbd(server: &Server) -> DiskOptions {
    DiskOptions::over(Source::Nbd(server.url().parse().unwrap()))
}

fn again<T>(mut what: impl FnMut() -> Result<T, DiskError>) -> T {
    let since = Instant::now();
    loop {
        match what() {
            Ok(done) => return done,
            Err(error) => assert!(since.elapsed() < Duration::from_secs(10), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_server_that_hangs_up_is_gone_until_it_is_back_and_the_next_flush_tells() {
    let folder = subjects::folder();
    let server = Server::new(folder.path(), SIZE as usize, EVERYTHING);
    let mut bench = Bench::open(&nbd(&server));
    bench.write(8, 5, 4096);
    server.behaviour.hangs_up.store(true, SeqCst);
    assert_eq!(bench.run(Operation::Read { at: Sectors(0) }, 4096), Err(DiskError::Gone));
    assert_eq!(bench.run(Operation::Read { at: Sectors(0) }, 4096), Err(DiskError::Gone), "at once");
    server.behaviour.hangs_up.store(false, SeqCst);
    again(|| bench.run(Operation::Read { at: Sectors(0) }, 4096));
    assert_eq!(bench.read(8, 4096), [5; 4096]);
    // The server that is back may be one that has forgotten the write, which nobody had flushed.
    assert_eq!(bench.run(Operation::Flush, 0), Err(DiskError::Gone));
    bench.run(Operation::Flush, 0).unwrap();
    bench.write(8, 6, 4096);
    bench.run(Operation::Flush, 0).unwrap();
    server.behaviour.hangs_up.store(true, SeqCst);
    assert_eq!(bench.run(Operation::Read { at: Sectors(0) }, 4096), Err(DiskError::Gone));
    server.behaviour.hangs_up.store(false, SeqCst);
    again(|| bench.run(Operation::Read { at: Sectors(0) }, 4096));
    bench.run(Operation::Flush, 0).unwrap();
}

#[test]
fn a_server_that_does_not_answer_is_given_up_in_time_with_everything_under_way() {
    let folder = subjects::folder();
    let server = Server::new(folder.path(), SIZE as usize, EVERYTHING);
    let mut bench = Bench::open(&nbd(&server));
    server.behaviour.silent.store(true, SeqCst);
    let since = Instant::now();
    (0..8).for_each(|_| bench.submit(write(0), 0, 0x40000));
    let mut events = Vec::new();
    bench.queue.drain(&mut events).unwrap();
    assert!(since.elapsed() < Duration::from_secs(5));
    assert_eq!(events.len(), 8);
    for event in events {
        assert!(matches!(event, Event::Done { result: Err(DiskError::TimedOut), .. }), "{event:?}");
    }
    // Dropping a queue does not wait longer either.
    server.behaviour.silent.store(false, SeqCst);
    again(|| bench.run(Operation::Flush, 0));
    server.behaviour.silent.store(true, SeqCst);
    bench.submit(write(0), 0, 4096);
    bench.queue.poll(&mut Vec::new()).unwrap();
    let Bench { ram, queue, .. } = bench;
    drop(queue);
    assert_eq!(Arc::strong_count(&ram), 1);
}

#[test]
fn errors_of_a_server_keep_their_kind() {
    let folder = subjects::folder();
    let server = Server::new(folder.path(), SIZE as usize, EVERYTHING);
    let mut bench = Bench::open(&nbd(&server));
    for (errno, kind) in
        [(5, DiskError::Media), (28, DiskError::NoSpace), (1, DiskError::ReadOnly), (108, DiskError::Gone)]
    {
        server.behaviour.error.store(errno, SeqCst);
        assert_eq!(bench.run(write(0), 4096), Err(kind));
        assert_eq!(bench.run(write(0), 0x30000), Err(kind), "in parts");
    }
    server.behaviour.error.store(0, SeqCst);
    bench.run(write(0), 0x30000).unwrap();
    assert_eq!(bench.disk.counters().bytes_bounced_transport, 0x30000);
}

#[test]
fn without_fua_a_durable_write_is_followed_by_a_flush() {
    let folder = subjects::folder();
    let server = Server::new(folder.path(), SIZE as usize, LITTLE);
    let mut bench = Bench::open(&nbd(&server));
    assert!(!bench.disk.geometry().fua);
    bench.run(Operation::Write { at: Sectors(0), durability: Durability::Stable }, 4096).unwrap();
    assert_eq!(server.behaviour.flushes.load(SeqCst), 1);
    bench.write(0, 1, 4096);
    assert_eq!(server.behaviour.flushes.load(SeqCst), 1);
}

#[test]
fn queues_have_connections_of_their_own_where_the_server_allows_it() {
    let folder = subjects::folder();
    for (flags, expected) in [(EVERYTHING, 3), (LITTLE, 1)] {
        let server = Server::new(folder.path(), SIZE as usize, flags);
        let disk = Disk::open(&nbd(&server)).unwrap();
        let queues: Vec<_> = (0..3).map(|_| disk.prepare_queue(8).unwrap()).collect();
        assert_eq!(server.behaviour.connections.load(SeqCst), expected);
        drop(queues);
    }
}

#[test]
fn a_server_that_has_no_such_disk_or_is_not_there_is_named() {
    let folder = subjects::folder();
    let server = Server::new(folder.path(), SIZE as usize, EVERYTHING);
    let url = server.url().replace("/vm?", "/other?");
    let error = refusal(&DiskOptions::over(Source::Nbd(url.parse().unwrap())));
    assert!(error.contains("no such disk (only vm is here)") && error.contains("nbdinfo"), "{error}");
    let error = refusal(&DiskOptions::over(Source::Nbd("nbd+unix:///x?socket=/nowhere".parse().unwrap())));
    assert!(error.contains("cannot talk to the server: No such file"), "{error}");
}

#[test]
fn an_image_that_was_shrunk_is_only_read_and_said_to_be_sound() {
    let folder = subjects::folder();
    let path = folder.path().join("disk.qcow2");
    qcow2(&path, None);
    // The third block of counts is there and the second is not, as `qemu-img resize --shrink` may leave it.
    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let word = |at| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, at).unwrap();
        word
    };
    let table = u64::from_be_bytes(word(48));
    file.write_all_at(&word(table), table + 16).unwrap();
    assert_eq!(word(table + 8), [0; 8]);
    let error = refusal(&DiskOptions::new(&path).format(Format::Qcow2));
    assert!(error.contains("no block 1") && error.contains("`qemu-img convert -O qcow2"), "{error}");
    assert!(!error.contains("check -r"), "there is nothing to mend: {error}");
    Disk::open(&DiskOptions::new(&path).format(Format::Qcow2).read_only()).unwrap();
}

#[test]
fn a_file_that_looks_like_an_image_is_neither_taken_for_it_nor_for_a_raw_one() {
    let folder = subjects::folder();
    let path = folder.path().join("disk.img");
    qcow2(&path, None);
    let error = refusal(&DiskOptions::new(&path));
    assert!(error.contains("looks like a qcow2 image") && error.contains("format=raw"), "{error}");
    Disk::open(&DiskOptions::new(&path).format(Format::Raw)).unwrap();
    Disk::open(&DiskOptions::new(&path).format(Format::Qcow2)).unwrap();
    let error = refusal(&DiskOptions::new(image(folder.path())).format(Format::Qcow2));
    assert!(
        error.contains("cannot be used as a qcow2 image") && error.contains("Say with `format`"),
        "{error}"
    );
}

#[test]
fn an_image_on_another_has_its_data_and_leaves_it_alone() {
    let folder = subjects::folder();
    let (below, top) = (image(folder.path()), folder.path().join("top.qcow2"));
    Bench::open(&DiskOptions::new(&below)).write(0, 7, 0x20000);
    qcow2(&top, Some((&below, Format::Raw)));
    let before = std::fs::read(&below).unwrap();
    let mut bench = Bench::open(&DiskOptions::new(&top).format(Format::Qcow2).chain([Allowed::SameFolder]));
    assert_eq!(bench.read(0, 0x20000), [7; 0x20000]);
    // Again, now that it is known where it lies.
    assert_eq!(bench.read(0, 0x20000), [7; 0x20000]);
    // A part of a cluster: the rest of it comes from below.
    bench.write(8, 9, 4096);
    let expected = [vec![7; 4096], vec![9; 4096], vec![7; 0x20000 - 8192]].concat();
    assert!(bench.read(0, 0x20000) == expected);
    bench.run(Operation::Discard(SectorRange { start: Sectors(128), count: Sectors(128) }), 0).unwrap();
    assert!(bench.read(128, 0x10000) == [0; 0x10000], "and not what lies below");
    assert_eq!(bench.disk.counters().bytes_bounced(), 0);
    drop(bench);
    assert!(std::fs::read(&below).unwrap() == before);
    let mut bench = Bench::open(&DiskOptions::new(&top).format(Format::Qcow2).chain([Allowed::SameFolder]));
    assert!(bench.read(0, 0x10000) == expected[..0x10000]);
    let error = refusal(&DiskOptions::new(&below));
    assert!(error.contains("in use"), "what lies below must not change: {error}");
}

#[test]
fn changes_that_are_thrown_away_are_gone_and_readers_may_share_the_disk() {
    let folder = subjects::folder();
    let path = image(folder.path());
    Bench::open(&DiskOptions::new(&path)).write(0, 1, 0x10000);
    let options = DiskOptions::new(&path).throw_away();
    let (mut one, mut other) = (Bench::open(&options), Bench::open(&options));
    one.write(0, 2, 4096);
    one.run(Operation::Flush, 0).unwrap();
    assert_eq!((one.read(0, 512)[0], other.read(0, 512)[0]), (2, 1));
    drop((one, other));
    assert_eq!(Bench::open(&options).read(0, 0x10000), [1; 0x10000]);
}

#[test]
fn an_image_whose_header_does_not_say_what_it_stands_on_is_refused() {
    let folder = subjects::folder();
    let (below, top) = (image(folder.path()), folder.path().join("top.qcow2"));
    qcow2(&top, Some((&below, Format::Raw)));
    // Takes the header's extension with the format away: its type becomes "end of extensions".
    let mut bytes = std::fs::read(&top).unwrap();
    let at = bytes.windows(4).position(|word| word == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    bytes[at..at + 8].fill(0);
    std::fs::write(&top, bytes).unwrap();
    let error = refusal(&DiskOptions::new(&top).format(Format::Qcow2));
    assert!(error.contains("does not say which format") && error.contains("qemu-img rebase"), "{error}");
}

#[test]
fn a_flat_vmdk_is_read_and_not_written() {
    let folder = subjects::folder();
    Bench::open(&DiskOptions::new(image(folder.path()))).write(16, 3, 4096);
    let path = folder.path().join("disk.vmdk");
    let sectors = SIZE / 512;
    std::fs::write(
        &path,
        format!(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n\
             # Extent description\nRW {} FLAT \"disk.raw\" 8\nRW 8 ZERO\n\n\
             # The Disk Data Base\nddb.adapterType = \"ide\"\n",
            sectors - 8
        ),
    )
    .unwrap();
    let options = DiskOptions::new(&path).format(Format::Vmdk).chain([Allowed::SameFolder]);
    assert!(refusal(&options).contains("vmdk images can only be read"));
    let mut bench = Bench::open(&options.clone().read_only());
    assert_eq!(bench.disk.capacity(), Sectors(sectors));
    for _ in 0..2 {
        assert_eq!(bench.read(8, 4096), [3; 4096]);
        assert_eq!(bench.read(sectors - 8, 4096), [0; 4096]);
    }
    let mut bench = Bench::open(&options.throw_away());
    bench.write(8, 4, 512);
    assert_eq!(bench.read(8, 1024), [[4; 512], [3; 512]].concat());
}

#[test]
fn compressed_clusters_are_read_with_a_copy_that_is_counted() {
    let folder = subjects::folder();
    let (raw, packed) = (image(folder.path()), folder.path().join("packed.qcow2"));
    Bench::open(&DiskOptions::new(&raw)).write(0, 7, 0x20000);
    let made =
        Command::new("qemu-img").args(["convert", "-c", "-O", "qcow2"]).arg(&raw).arg(&packed).status();
    if !made.is_ok_and(|made| made.success()) {
        return eprintln!("skipped: there is no qemu-img");
    }
    let mut bench = Bench::open(&DiskOptions::new(&packed).format(Format::Qcow2));
    assert_eq!(bench.read(0, 0x20000), [7; 0x20000]);
    assert_eq!(bench.disk.counters().bytes_bounced_image_format, 0x20000);
    bench.write(8, 8, 512);
    assert_eq!(bench.read(8, 1024), [[8; 512], [7; 512]].concat());
    drop(bench);
    assert!(Command::new("qemu-img").arg("check").arg(&packed).status().unwrap().success());
}

#[test]
fn an_image_is_sound_after_all_that_was_done_to_it() {
    let folder = subjects::folder();
    let path = folder.path().join("disk.qcow2");
    qcow2(&path, None);
    let mut bench = Bench::open(&DiskOptions::new(&path).format(Format::Qcow2));
    let mut at = 1;
    for round in 0..300u64 {
        at = at * 1103515245 % 32000 + round % 3;
        let range = SectorRange { start: Sectors(at), count: Sectors(200) };
        match round % 5 {
            0 => bench.run(Operation::Discard(range), 0).unwrap(),
            1 => bench.run(Operation::WriteZeroes(range, Unmap::Allowed), 0).unwrap(),
            _ => bench.write(at, round as u8, 0x15000),
        }
    }
    drop(bench);
    match Command::new("qemu-img").arg("check").arg(&path).output() {
        Ok(checked) => assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout)),
        Err(_) => eprintln!("skipped: there is no qemu-img"),
    }
}

#[test]
fn a_file_in_use_is_refused_with_its_user_and_force_says_what_it_overrides() {
    let folder = subjects::folder();
    let path = image(folder.path());
    let first = Disk::open(&DiskOptions::new(&path)).unwrap();
    assert_eq!(first.remarks(), [""; 0]);
    let error = refusal(&DiskOptions::new(&path));
    assert!(error.contains("this process itself") && error.contains("given twice"), "{error}");
    let options = DiskOptions { claim: Claim::Forced, ..DiskOptions::new(&path) };
    let forced = Disk::open(&options).unwrap();
    assert!(forced.remarks()[0].contains("force=on overrides"), "{:?}", forced.remarks());
    if let Some(device) = Loop::over(&path, 512) {
        let options = DiskOptions { claim: Claim::Forced, ..DiskOptions::new(&device.0) };
        let first = Disk::open(&options).unwrap();
        assert_eq!(first.remarks(), [""; 0], "nobody had it");
        let second = Disk::open(&options).unwrap();
        let said = &second.remarks()[0];
        assert!(said.contains("for exclusive use by") && said.contains("this process itself"), "{said}");
        // Where the guest has made a pool of it, the mark alone does not say who has it.
        let file = File::options().write(true).open(&device.0).unwrap();
        file.write_all_at(&[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], 128 << 10).unwrap();
        file.sync_all().unwrap();
        let error = refusal(&DiskOptions::new(&device.0));
        assert!(error.contains("this process itself") && error.contains("a ZFS pool"), "{error}");
    }
}

#[test]
fn a_file_that_cannot_be_locked_is_used_and_that_is_said_to_who_writes_it() {
    let folder = subjects::folder();
    let path = image(folder.path());
    without_locks(|| {
        let disk = Disk::open(&DiskOptions::new(&path)).unwrap();
        assert!(disk.remarks().iter().any(|said| said.contains("disk.raw: it cannot be locked")));
        assert_eq!(disk.remarks().len(), 1, "{:?}", disk.remarks());
        for reader in [DiskOptions::new(&path).read_only(), DiskOptions::new(&path).throw_away()] {
            assert_eq!(Disk::open(&reader).unwrap().remarks(), [""; 0]);
        }
    });
}

#[test]
fn that_a_file_system_refuses_direct_io_is_said_unless_it_is_in_memory() {
    let folder = subjects::folder();
    let path = image(folder.path());
    let always = |options: DiskOptions| DiskOptions { bounce: Bounce::Always, ..options };
    let remarks = |options: &DiskOptions| Disk::open(options).unwrap().remarks().to_vec();
    assert_eq!(remarks(&always(DiskOptions::new(&path))), [""; 0]);
    without_direct_io(|| {
        let said = remarks(&DiskOptions::new(&path));
        let [one] = &said[..] else { panic!("{said:?}") };
        assert!(one.contains("disk.raw: its file system refuses direct I/O"), "{one}");
        assert!(one.contains("page cache") && one.contains("flush") && !one.contains("bounce"), "{one}");
        let said = remarks(&always(DiskOptions::new(&path).read_only()));
        let [one] = &said[..] else { panic!("{said:?}") };
        assert!(one.contains("bounce=always changes nothing") && !one.contains("flush"), "{one}");

        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = image(memory.path());
        assert_eq!(remarks(&DiskOptions::new(&path)), [""; 0]);
        assert!(remarks(&always(DiskOptions::new(&path)))[0].contains("bounce=always changes nothing"));
    });
    assert_eq!(remarks(&DiskOptions::over(Source::Memory(Sectors(2048)))), [""; 0]);
}

#[test]
fn a_preallocated_file_has_its_room_and_punching_gives_it_back() {
    let folder = subjects::folder();
    let path = image(folder.path());
    let blocks = || std::fs::metadata(&path).unwrap().blocks();
    assert!(blocks() < 64);
    let options = DiskOptions { allocation: Allocation::AtOnce, ..DiskOptions::new(&path) };
    let mut bench = Bench::open(&options);
    assert!(blocks() >= SIZE / 512);
    bench.run(Operation::Discard(SectorRange { start: Sectors(0), count: Sectors(8192) }), 0).unwrap();
    assert!(blocks() <= SIZE / 512 - 8192 + 64);
}

#[test]
fn room_for_an_empty_file_is_not_asked_for_but_a_size() {
    let folder = subjects::folder();
    let path = folder.path().join("empty");
    let options = DiskOptions { allocation: Allocation::AtOnce, ..DiskOptions::new(&path) };
    for bytes in [0, 100] {
        File::create(&path).unwrap().set_len(bytes).unwrap();
        let error = refusal(&options);
        assert!(error.contains(&format!("it has {bytes} bytes")) && error.contains("truncate -s"), "{error}");
    }
}

#[test]
fn small_writes_of_many_queues_to_one_block_are_all_there() {
    let folder = subjects::folder();
    let Some(device) = Loop::over(&image(folder.path()), 4096) else { return };
    let options = DiskOptions { logical_block: Some(512), ..DiskOptions::new(&device.0) };
    let disk = Disk::open(&options).unwrap();
    assert_eq!((disk.geometry().logical_block, disk.geometry().physical_block), (512, 4096));
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap());
    std::thread::scope(|scope| {
        for sector in 0..8u64 {
            let (prepared, ram) = (disk.prepare_queue(8).unwrap(), ram.clone());
            scope.spawn(move || {
                let mut queue = prepared.start().unwrap();
                for round in 1..=20 {
                    ram.write(Gpa(sector * 4096), &[round * 8 + sector as u8; 512]).unwrap();
                    let mut buffers = Buffers::new(ram.clone());
                    buffers.push(Gpa(sector * 4096), 512).unwrap();
                    queue.submit(Request { tag: 0, operation: write(80 + sector), buffers }).unwrap();
                    let mut events = Vec::new();
                    queue.drain(&mut events).unwrap();
                    assert!(matches!(events[..], [Event::Done { result: Ok(()), .. }]), "{events:?}");
                }
            });
        }
    });
    let counters = disk.counters();
    assert_eq!((counters.read_modify_writes, counters.bytes_bounced_sector_emulation), (160, 160 * 512));
    drop(disk);
    let block = Bench::open(&options).read(80, 4096);
    for (sector, bytes) in block.chunks(512).enumerate() {
        assert_eq!(bytes, [160 + sector as u8; 512]);
    }
}

#[test]
fn options_that_do_not_fit_are_refused_with_the_option() {
    let folder = subjects::folder();
    let path = image(folder.path());
    let memory = DiskOptions::over(Source::Memory(Sectors(2048)));
    assert!(refusal(&memory.clone().throw_away()).contains("(`snapshot`)"));
    assert!(refusal(&memory.format(Format::Qcow2)).contains("(`format`)"));
    let options = DiskOptions { logical_block: Some(4096), ..DiskOptions::new(&path) };
    assert!(refusal(&options).contains("blocks of 4096 bytes (`logical`)"));
    assert!("vhd".parse::<Format>().unwrap_err().to_string().contains("raw, qcow2 or vmdk"));
}

#[test]
fn where_io_uring_is_forbidden_threads_do_the_work_and_that_is_said_once() {
    let folder = subjects::folder();
    let path = image(folder.path());
    without_io_uring(|| {
        let mut bench = Bench::open(&DiskOptions::new(&path));
        let remarks = bench.disk.remarks().to_vec();
        assert!(matches!(&remarks[..], [one] if one.contains("io_uring cannot be used")), "{remarks:?}");
        bench.write(0, 1, 4096);
        assert_eq!(bench.read(0, 4096), [1; 4096]);
        assert_eq!(bench.disk.geometry().access, Access::ReadWrite);
    });
    assert_eq!(Disk::open(&DiskOptions::new(Path::new(&path))).unwrap().remarks(), [""; 0]);
}
