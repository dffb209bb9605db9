//! The NVMe controller, driven through its registers and queues by a small driver.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::nvme::driver::{Guest, Queue, io};
use devices::nvme::spec::{self, Command, DatasetRange, SglDescriptor, admin, feature, log_page, register};
use devices::{Namespace, NvmeError, NvmeOptions};
use disk::{Disk, DiskOptions};
use memory::{Gpa, GpaRange, Ram};
use zerocopy::IntoBytes;

const RAM: u64 = 32 << 20;
const DISK: u64 = 16 << 20;
const BLOCKS: u64 = DISK / 512;

struct Fixture {
    guest: Guest,
    files: Vec<File>,
    disks: Vec<Arc<Disk>>,
}

fn disk_file() -> tempfile::NamedTempFile {
    // Beside this program, for where temporary files are kept there may be no direct I/O.
    let program = std::env::current_exe().unwrap();
    let file = tempfile::NamedTempFile::new_in(program.parent().unwrap()).unwrap();
    file.as_file().set_len(DISK).unwrap();
    file
}

fn fixture_with(disks: usize, options: &NvmeOptions) -> Fixture {
    let files: Vec<_> = (0..disks).map(|_| disk_file()).collect();
    let open = |file: &tempfile::NamedTempFile| Arc::new(Disk::open(&DiskOptions::new(file.path())).unwrap());
    let disks: Vec<_> = files.iter().map(open).collect();
    let namespaces = disks.iter().cloned().map(Namespace::new).collect();
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), RAM).unwrap()]).unwrap());
    let guest = Guest::new(namespaces, options, ram);
    Fixture { guest, files: files.into_iter().map(tempfile::NamedTempFile::into_file).collect(), disks }
}

fn fixture() -> Fixture {
    fixture_with(1, &NvmeOptions { queues: 8, ..NvmeOptions::new("disk0") })
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len as u64).map(|i| (i * 7 + i / 512 + u64::from(seed)) as u8).collect()
}

fn identify(guest: &Guest, queue: &mut Queue, cns: u32, nsid: u32) -> (u16, Vec<u8>) {
    let command =
        Command { opcode: admin::IDENTIFY, nsid: nsid.into(), cdw10: cns.into(), ..Command::default() };
    guest.ask(queue, command)
}

fn log(guest: &Guest, queue: &mut Queue, page: u8, dwords: u32, retain: bool) -> (u16, Vec<u8>) {
    let cdw10 = u32::from(page) | u32::from(retain) << 15 | (dwords - 1) << 16;
    let command = Command {
        opcode: admin::GET_LOG_PAGE,
        nsid: 0xffff_ffff.into(),
        cdw10: cdw10.into(),
        ..Command::default()
    };
    guest.ask(queue, command)
}

#[test]
fn the_controller_says_what_it_is_and_what_its_disks_are() {
    let Fixture { guest, .. } = fixture_with(3, &NvmeOptions::new("disk0"));
    assert_eq!(guest.get(register::VS), 0x10400);
    assert_eq!(guest.get(register::CAP) & 0xffff, 1023);
    let mut queue = guest.enable();
    let (status, page) = identify(&guest, &mut queue, 1, 0);
    assert_eq!(status, 0);
    assert_eq!(&page[4..24], b"skep-disk0          ");
    assert_eq!(page[77], 9);
    assert_eq!(u32::from_le_bytes(page[516..520].try_into().unwrap()), 3);
    let (status, page) = identify(&guest, &mut queue, 0, 2);
    assert_eq!((status, u64::from_le_bytes(page[..8].try_into().unwrap())), (0, BLOCKS));
    assert_eq!(page[130], 9, "blocks of 512 bytes");
    assert_eq!(identify(&guest, &mut queue, 0, 4).0, 0x0b);
    let (status, page) = identify(&guest, &mut queue, 2, 1);
    assert_eq!((status, &page[..12]), (0, &[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0][..]));
    let (_, one) = identify(&guest, &mut queue, 3, 1);
    let (status, two) = identify(&guest, &mut queue, 3, 2);
    assert_eq!((status, two[0], two[1], two[20]), (0, 3, 16, 0));
    assert_ne!(one[4..20], two[4..20], "every namespace has a UUID of its own");
    assert_eq!(identify(&guest, &mut queue, 6, 0).0, 0);
    assert_eq!(identify(&guest, &mut queue, 8, 1).0, 0x02);
    let (status, page) = log(&guest, &mut queue, log_page::COMMANDS, 1024, false);
    assert_eq!((status, page[4 * 6], page[1024 + 4], page[1024 + 4 * 4]), (0, 1, 3, 0));
    let (status, page) = log(&guest, &mut queue, log_page::FIRMWARE, 128, false);
    assert_eq!((status, page[0]), (0, 1));
    assert_eq!(log(&guest, &mut queue, 0x70, 4, false).0, 0x109);
    assert_eq!(guest.admin(&mut queue, 0x7f, 0, 0).0, 0x01);
    assert_eq!(guest.admin(&mut queue, admin::KEEP_ALIVE, 0, 0).0, 0x01);
}

#[test]
fn wrong_options_are_refused_by_name() {
    let open = || Namespace::new(Arc::new(Disk::open(&DiskOptions::new(disk_file().path())).unwrap()));
    let refused = |namespaces, options: &NvmeOptions| {
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap());
        let windows = pci::Windows {
            memory32: GpaRange::new(Gpa(0xc000_0000), 0x2000_0000).unwrap(),
            memory64: None,
            ports: (0xc000, 0xffff),
        };
        let services = Arc::new(pci::fake::FakeServices::default());
        let at = pci::Address::new(0, 1, 0).unwrap();
        devices::Nvme::new(namespaces, options, at, ram, services, &windows, Arc::new(|_| {})).err().unwrap()
    };
    let options = NvmeOptions::new("disk0");
    assert!(matches!(refused(vec![], &options), NvmeError::Namespaces { count: 0, .. }));
    let options = NvmeOptions { queues: 65, ..NvmeOptions::new("disk0") };
    assert_eq!(
        refused(vec![open()], &options).to_string(),
        "nvme disk0: 65 queues. Give it 1 to 64 queues (queues=1)."
    );
    let options = NvmeOptions { serial: Some("123456789012345678901".into()), ..NvmeOptions::new("disk0") };
    assert!(matches!(refused(vec![open()], &options), NvmeError::TooLong { what: "serial number", .. }));
}

/// A PRP list for the pages from `at` on, in page `list` and those behind it; returns the two PRPs.
fn prps(guest: &Guest, at: u64, bytes: u64, mut list: u64) -> [u64; 2] {
    let pages: Vec<u64> = (1..(at % 4096 + bytes).div_ceil(4096)).map(|n| (at / 4096 + n) * 4096).collect();
    if pages.len() < 2 {
        return [at, pages.first().copied().unwrap_or(0)];
    }
    let first = list;
    let mut left = &pages[..];
    while left.len() > 512 {
        guest.ram.write(Gpa(list), left[..511].as_bytes()).unwrap();
        guest.ram.write_obj(Gpa(list + 511 * 8), &(list + 4096)).unwrap();
        left = &left[511..];
        list += 4096;
    }
    guest.ram.write(Gpa(list), left.as_bytes()).unwrap();
    [at, first]
}

const LISTS: u64 = 0xa000;

#[test]
fn data_goes_both_ways_at_all_lengths_and_offsets_by_prps() {
    let Fixture { guest, files, disks } = fixture();
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 64, None).unwrap();
    for (n, (blocks, offset)) in
        [(1, 0), (8, 0), (9, 512), (16, 4), (17, 3584), (256, 0), (4096, 0), (4095, 512)]
            .into_iter()
            .enumerate()
    {
        let data = pattern(blocks as usize * 512, n as u8);
        let (from, to) = (Guest::DATA.0 + offset, Guest::DATA.0 + (8 << 20) + offset);
        guest.ram.write(Gpa(from), &data).unwrap();
        let lba = 100 * n as u64;
        let bytes = u64::from(blocks) * 512;
        let write = io(spec::io::WRITE, 1, lba, blocks, prps(&guest, from, bytes, LISTS));
        assert_eq!(guest.run(&mut queue, write).0, 0, "write of {blocks} blocks at {offset}");
        let mut there = vec![0; data.len()];
        files[0].read_exact_at(&mut there, lba * 512).unwrap();
        assert!(there == data, "the file holds what was written: {blocks} blocks at {offset}");
        let read = io(spec::io::READ, 1, lba, blocks, prps(&guest, to, bytes, LISTS));
        assert_eq!(guest.run(&mut queue, read).0, 0);
        guest.ram.read(Gpa(to), &mut there).unwrap();
        assert!(there == data, "what was read is what is there: {blocks} blocks at {offset}");
    }
    assert_eq!(disks[0].counters().errors, 0);
    assert_eq!(guest.nvme.copied(), 0);
    let write = io(spec::io::WRITE, 1, 0, 4097, prps(&guest, Guest::DATA.0, 4097 * 512, LISTS));
    assert_eq!(guest.run(&mut queue, write).0, 0x02, "more than MDTS");
}

#[test]
fn data_goes_both_ways_by_scatter_gather_lists() {
    let Fixture { guest, files, .. } = fixture();
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 64, None).unwrap();
    let data = pattern(8192, 3);
    let place = |n: u64| Guest::DATA.0 + n * 0x3000 + n;
    let mut at = 0;
    let mut list = Vec::new();
    for (n, len) in [1000, 0, 3096, 4000, 96].into_iter().enumerate() {
        guest.ram.write(Gpa(place(n as u64)), &data[at..at + len]).unwrap();
        list.push(SglDescriptor {
            address: place(n as u64).into(),
            length: (len as u32).into(),
            ..Default::default()
        });
        at += len;
    }
    guest.ram.write(Gpa(LISTS), list.as_slice().as_bytes()).unwrap();
    let last = SglDescriptor {
        address: LISTS.into(),
        length: (list.len() as u32 * 16).into(),
        kind: SglDescriptor::LAST_SEGMENT,
        ..Default::default()
    };
    let mut write = io(spec::io::WRITE, 1, 64, 16, [0, 0]);
    write.flags = 1 << 6;
    write.dptr.as_mut_bytes().copy_from_slice(last.as_bytes());
    assert_eq!(guest.run(&mut queue, write).0, 0);
    let mut there = vec![0; data.len()];
    files[0].read_exact_at(&mut there, 64 * 512).unwrap();
    assert!(there == data);
    write.cdw12 = 16.into();
    assert_eq!(guest.run(&mut queue, write).0, 0x0f, "a list shorter than the data");
    write.cdw12 = 14.into();
    assert_eq!(guest.run(&mut queue, write).0, 0x0f, "a list longer than the data");
}

#[test]
fn commands_outside_the_namespace_or_the_rules_are_refused_each_with_its_status() {
    let Fixture { guest, .. } = fixture();
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 64, None).unwrap();
    let data = Guest::DATA.0;
    let cases = [
        (io(spec::io::READ, 1, BLOCKS - 1, 1, [data, 0]), 0),
        (io(spec::io::READ, 1, BLOCKS, 1, [data, 0]), 0x80),
        (io(spec::io::READ, 1, BLOCKS - 1, 2, [data, 0]), 0x80),
        (io(spec::io::READ, 1, u64::MAX, 1, [data, 0]), 0x80),
        (io(spec::io::WRITE_ZEROES, 1, BLOCKS - 1, 2, [0, 0]), 0x80),
        (io(spec::io::READ, 2, 0, 1, [data, 0]), 0x0b),
        (io(spec::io::READ, 0, 0, 1, [data, 0]), 0x0b),
        (io(spec::io::FLUSH, 0xffff_ffff, 0, 1, [0, 0]), 0x0b),
        (io(0x04, 1, 0, 1, [data, 0]), 0x01),
        (io(0x7f, 1, 0, 1, [data, 0]), 0x01),
        (io(spec::io::READ, 1, 0, 1, [data + 2, 0]), 0x13),
        (io(spec::io::READ, 1, 0, 1, [RAM, 0]), 0x04),
        (io(spec::io::READ, 1, 0, 1, [u64::MAX - 3, 0]), 0x04),
        (Command { flags: 1, ..io(spec::io::READ, 1, 0, 1, [data, 0]) }, 0x02),
        (Command { flags: 3 << 6, ..io(spec::io::READ, 1, 0, 1, [data, 0]) }, 0x02),
    ];
    for (command, status) in cases {
        assert_eq!(guest.run(&mut queue, command).0, status, "{command:?}");
    }
}

#[test]
fn a_read_only_disk_refuses_changes_and_the_log_tells_of_it() {
    let file = disk_file();
    let disk = Arc::new(Disk::open(&DiskOptions::new(file.path()).read_only()).unwrap());
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), RAM).unwrap()]).unwrap());
    let guest = Guest::new(vec![Namespace::new(disk)], &NvmeOptions::new("disk0"), ram);
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 64, None).unwrap();
    assert_eq!(identify(&guest, &mut admin, 0, 1).1[99], 1);
    let write = io(spec::io::WRITE, 1, 7, 1, [Guest::DATA.0, 0]);
    assert_eq!(guest.run(&mut queue, write).0, 0x182);
    let (status, page) = log(&guest, &mut admin, log_page::ERROR, 16, false);
    assert_eq!((status, page[0], page[8], page[16]), (0, 1, 1, 7));
    assert_eq!(u16::from_le_bytes([page[12], page[13]]) >> 1 & 0x7ff, 0x182);
    assert_eq!(guest.reports(), [""; 0], "a guest's own mistakes are no events");
}

#[test]
fn compare_zeroes_flush_and_deallocate_do_what_they_say() {
    let Fixture { guest, files, disks } = fixture();
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 64, None).unwrap();
    let data = pattern(1 << 20, 1);
    guest.ram.write(Guest::DATA, &data).unwrap();
    files[0].write_all_at(&data, 0).unwrap();
    let by = |n: u32| prps(&guest, Guest::DATA.0, u64::from(n) * 512, LISTS);
    assert_eq!(guest.run(&mut queue, io(spec::io::COMPARE, 1, 0, 2048, by(2048))).0, 0);
    assert_eq!(guest.nvme.copied(), 1 << 20);
    guest.ram.write(Gpa(Guest::DATA.0 + 700_000), &[data[700_000] ^ 1]).unwrap();
    assert_eq!(guest.run(&mut queue, io(spec::io::COMPARE, 1, 0, 2048, by(2048))).0, 0x285);
    assert_eq!(guest.run(&mut queue, io(spec::io::COMPARE, 1, 0, 1024, by(1024))).0, 0);
    // Several at once share the memory that they compare through, one after the other.
    let cids: Vec<u16> =
        (0..8).map(|_| guest.submit(&mut queue, io(spec::io::COMPARE, 1, 0, 1024, by(1024)))).collect();
    for cid in cids {
        let completion = guest.wait(&mut queue);
        assert_eq!((completion.cid.get(), completion.status.get() >> 1), (cid, 0));
    }
    let zeroes = Command { cdw12: (1023 | 1 << 30).into(), ..io(spec::io::WRITE_ZEROES, 1, 8, 1, [0, 0]) };
    assert_eq!(guest.run(&mut queue, zeroes).0, 0);
    let mut there = vec![0; 1 << 20];
    files[0].read_exact_at(&mut there, 0).unwrap();
    assert!(there[8 * 512..1032 * 512].iter().all(|byte| *byte == 0));
    assert!(there[..8 * 512] == data[..8 * 512] && there[1032 * 512..] == data[1032 * 512..]);
    assert_eq!(guest.run(&mut queue, io(spec::io::FLUSH, 1, 0, 1, [0, 0])).0, 0);
    let counters = disks[0].counters();
    assert!(counters.flushes >= 1 && counters.discards >= 1, "{counters:?}");
    let ranges: Vec<DatasetRange> = [(0u64, 8u32), (9, 0), (1032, 16)]
        .into_iter()
        .map(|(lba, blocks)| DatasetRange { lba: lba.into(), blocks: blocks.into(), ..Default::default() })
        .collect();
    guest.ram.write(Guest::DATA, ranges.as_slice().as_bytes()).unwrap();
    let deallocate = |count: u32| Command {
        opcode: spec::io::DATASET_MANAGEMENT,
        nsid: 1.into(),
        dptr: [Guest::DATA.0.into(), 0.into()],
        cdw10: (count - 1).into(),
        cdw11: 4.into(),
        ..Command::default()
    };
    assert_eq!(guest.run(&mut queue, deallocate(3)).0, 0);
    files[0].read_exact_at(&mut there, 0).unwrap();
    assert!(there[..1048 * 512].iter().all(|byte| *byte == 0), "a hole reads as zeroes");
    guest.ram.write(Gpa(Guest::DATA.0 + 8), &BLOCKS.to_le_bytes()).unwrap();
    assert_eq!(guest.run(&mut queue, deallocate(1)).0, 0x80);
}

#[test]
fn every_namespace_is_its_own_disk_behind_the_same_queue() {
    let Fixture { guest, files, .. } =
        fixture_with(4, &NvmeOptions { queues: 2, ..NvmeOptions::new("disk0") });
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 64, None).unwrap();
    let mut cids = BTreeMap::new();
    for n in 0..60u32 {
        let (nsid, place) = (n % 4 + 1, Guest::DATA.0 + u64::from(n) * 4096);
        guest.ram.write(Gpa(place), &pattern(4096, n as u8)).unwrap();
        cids.insert(guest.submit(&mut queue, io(spec::io::WRITE, nsid, u64::from(n) * 8, 8, [place, 0])), n);
    }
    for _ in 0..60 {
        let completion = guest.wait(&mut queue);
        assert_eq!(completion.status.get() >> 1, 0);
        assert!(cids.remove(&completion.cid.get()).is_some(), "each answer once");
    }
    for n in 0..60u64 {
        let mut there = vec![0; 4096];
        files[(n % 4) as usize].read_exact_at(&mut there, n * 4096).unwrap();
        assert!(there == pattern(4096, n as u8), "write {n}");
    }
    // While commands are under way for all of them, the queue goes.
    for n in 0..40u32 {
        guest.submit(&mut queue, io(spec::io::READ, n % 4 + 1, 0, 8, [Guest::DATA.0, 0]));
    }
    assert_eq!(guest.admin(&mut admin, admin::DELETE_SQ, 1, 0).0, 0);
    assert_eq!(guest.admin(&mut admin, admin::DELETE_CQ, 1, 0).0, 0);
}

#[test]
fn events_are_told_when_they_are_asked_for_and_can_be_aborted() {
    let Fixture { guest, .. } = fixture();
    let mut admin = guest.enable();
    let (status, _) = guest.admin(&mut admin, admin::SET_FEATURES, feature::ASYNC_EVENT.into(), 0x100);
    assert_eq!(status, 0);
    assert_eq!(guest.admin(&mut admin, admin::GET_FEATURES, feature::ASYNC_EVENT.into(), 0), (0, 0x100));
    let event = Command { opcode: admin::ASYNC_EVENT, ..Command::default() };
    let requests: Vec<u16> = (0..4).map(|_| guest.submit(&mut admin, event)).collect();
    assert_eq!(guest.run(&mut admin, event).0, 0x105, "one request too many");
    guest.nvme.namespace_changed(1);
    guest.nvme.namespace_changed(1);
    guest.nvme.namespace_changed(7);
    let told = guest.wait(&mut admin);
    assert_eq!((told.cid.get(), told.result.get()), (requests[0], 0x0004_0002));
    std::thread::sleep(Duration::from_millis(20));
    assert!(guest.look(&admin).is_none(), "told again only after the page was read");
    let (status, page) = log(&guest, &mut admin, log_page::CHANGED_NAMESPACES, 1024, false);
    assert_eq!((status, page[0], page[4]), (0, 1, 0));
    guest.nvme.namespace_changed(1);
    assert_eq!(guest.wait(&mut admin).cid.get(), requests[1]);
    // A doorbell that does not exist.
    guest.set(register::DOORBELLS + 8 * 5, 1);
    let told = guest.wait(&mut admin);
    assert_eq!((told.cid.get(), told.result.get()), (requests[2], 0x0001_0000));
    let abort = guest.submit(
        &mut admin,
        Command { opcode: admin::ABORT, cdw10: (u32::from(requests[3]) << 16).into(), ..Command::default() },
    );
    let aborted = guest.wait(&mut admin);
    assert_eq!((aborted.cid.get(), aborted.status.get() >> 1 & 0x7ff), (requests[3], 0x07));
    let answer = guest.wait(&mut admin);
    assert_eq!((answer.cid.get(), answer.result.get()), (abort, 0));
    assert_eq!(guest.admin(&mut admin, admin::ABORT, 0x1234_0001, 0), (0, 1), "nothing to abort");
}

#[test]
fn features_are_kept_and_limits_are_told() {
    let Fixture { guest, .. } = fixture();
    let mut admin = guest.enable();
    let mut set = |id: u8, value| guest.admin(&mut admin, admin::SET_FEATURES, id.into(), value);
    assert_eq!(set(feature::QUEUES, 0x003f_003f), (0, 0x0007_0007));
    assert_eq!(set(feature::QUEUES, 0xffff), (0x02, 0));
    assert_eq!(set(feature::COALESCING, 0x0203).0, 0);
    assert_eq!(set(feature::VECTOR, 0x1_0002).0, 0);
    assert_eq!(set(feature::VECTOR, 9).0, 0x02);
    assert_eq!(set(feature::TEMPERATURE, 0x150).0, 0);
    assert_eq!(set(0x55, 0).0, 0x02);
    assert_eq!(guest.admin(&mut admin, admin::SET_FEATURES, 1 << 31 | 8, 0).0, 0x10d);
    let mut get = |id: u8, value| guest.admin(&mut admin, admin::GET_FEATURES, id.into(), value);
    assert_eq!(get(feature::COALESCING, 0), (0, 0x0203));
    assert_eq!(get(feature::VECTOR, 2), (0, 0x1_0002));
    assert_eq!(get(feature::TEMPERATURE, 0), (0, 0x150));
    assert_eq!(get(feature::WRITE_CACHE, 0), (0, 1));
    assert_eq!(guest.admin(&mut admin, admin::SET_FEATURES, feature::WRITE_CACHE.into(), 0).0, 0);
    assert_eq!(guest.admin(&mut admin, admin::GET_FEATURES, feature::WRITE_CACHE.into(), 0), (0, 0));
    let _ = guest.create_pair(&mut admin, 1, 8, None).unwrap();
    assert_eq!(guest.admin(&mut admin, admin::SET_FEATURES, feature::QUEUES.into(), 0).0, 0x0c);
    guest.disable();
    let mut admin = guest.enable();
    assert_eq!(guest.admin(&mut admin, admin::GET_FEATURES, feature::WRITE_CACHE.into(), 0), (0, 1));
    assert_eq!(guest.admin(&mut admin, admin::GET_FEATURES, feature::COALESCING.into(), 0), (0, 0));
}

#[test]
fn health_counts_what_went_through_the_disks() {
    let Fixture { guest, .. } = fixture();
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 64, None).unwrap();
    let list = prps(&guest, Guest::DATA.0, 2 << 20, LISTS);
    assert_eq!(guest.run(&mut queue, io(spec::io::READ, 1, 0, 4096, list)).0, 0);
    let (status, page) = log(&guest, &mut admin, log_page::HEALTH, 128, true);
    assert_eq!((status, page[0], page[1], page[2], page[3]), (0, 0, 44, 1, 100));
    assert_eq!((page[32], page[64], page[80]), (5, 1, 0));
}

#[test]
fn queues_are_created_and_deleted_only_as_the_rules_allow() {
    let Fixture { guest, .. } = fixture();
    let mut admin = guest.enable();
    assert_eq!(guest.create_pair(&mut admin, 9, 8, None).unwrap_err(), 0x101, "there are 8");
    assert_eq!(guest.create_pair(&mut admin, 1, 8, Some(9)).unwrap_err(), 0x108);
    let mut create = |opcode, cdw10, cdw11, at: u64| {
        let dptr = [at.into(), 0.into()];
        let (cdw10, cdw11) = (u32::into(cdw10), u32::into(cdw11));
        guest.run(&mut admin, Command { opcode, dptr, cdw10, cdw11, ..Command::default() }).0
    };
    assert_eq!(create(admin::CREATE_CQ, 0x0007_0000, 1, 0x10000), 0x101, "the admin queue's number");
    assert_eq!(create(admin::CREATE_CQ, 0x0000_0001, 1, 0x10000), 0x102, "too short");
    assert_eq!(create(admin::CREATE_CQ, 0x0400_0001, 1, 0x10000), 0x102, "too long");
    assert_eq!(create(admin::CREATE_CQ, 0x0007_0001, 0, 0x10000), 0x02, "not contiguous");
    assert_eq!(create(admin::CREATE_CQ, 0x0007_0001, 1, 0x10010), 0x13, "not on a page");
    assert_eq!(create(admin::CREATE_CQ, 0x0007_0001, 1, RAM), 0x04, "not in RAM");
    assert_eq!(create(admin::CREATE_SQ, 0x0007_0001, 0x0001_0001, 0x10000), 0x100, "no completion queue");
    assert_eq!(create(admin::CREATE_SQ, 0x0007_0001, 1, 0x10000), 0x100, "not the admin queue");
    assert_eq!(create(admin::CREATE_CQ, 0x0007_0001, 1, 0x10000), 0);
    assert_eq!(create(admin::CREATE_CQ, 0x0007_0001, 1, 0x10000), 0x101, "once only");
    assert_eq!(create(admin::CREATE_SQ, 0x0007_0001, 0x0001_0001, 0x11000), 0);
    assert_eq!(create(admin::CREATE_SQ, 0x0007_0002, 0x0001_0001, 0x12000), 0, "two share one");
    assert_eq!(create(admin::DELETE_CQ, 1, 0, 0), 0x10c);
    assert_eq!(create(admin::DELETE_SQ, 1, 0, 0), 0);
    assert_eq!(create(admin::DELETE_SQ, 1, 0, 0), 0x101);
    assert_eq!(create(admin::DELETE_CQ, 1, 0, 0), 0x10c);
    assert_eq!(create(admin::DELETE_SQ, 2, 0, 0), 0);
    assert_eq!(create(admin::DELETE_CQ, 1, 0, 0), 0);
}

#[test]
fn queues_go_in_any_order_with_commands_under_way() {
    let Fixture { guest, .. } = fixture();
    let mut admin = guest.enable();
    for round in 0..20u16 {
        let mut queues: Vec<Queue> =
            (1..=8).map(|id| guest.create_pair(&mut admin, id, 16, None).unwrap()).collect();
        for queue in &mut queues {
            for n in 0..15 {
                guest.submit(queue, io(spec::io::READ, 1, n * 8, 8, [Guest::DATA.0, 0]));
            }
        }
        for n in 0..8u16 {
            let id = (n * 3 + round) % 8 + 1;
            assert_eq!(guest.admin(&mut admin, admin::DELETE_SQ, id.into(), 0).0, 0);
            let queue = &mut queues[usize::from(id) - 1];
            while let Some(completion) = guest.take(queue) {
                assert_eq!(completion.status.get() >> 1, 0);
            }
            assert_eq!(guest.admin(&mut admin, admin::DELETE_CQ, id.into(), 0).0, 0);
        }
    }
}

#[test]
fn shadow_doorbells_spare_the_registers_and_lose_nothing() {
    let Fixture { guest, .. } = fixture();
    guest.enable_msix(9);
    let mut admin = guest.enable();
    let mut before = guest.create_pair(&mut admin, 1, 64, Some(1)).unwrap();
    assert_eq!(guest.services.doorbells(), []);
    let shadow = guest.share_doorbells(&mut admin);
    let mut after = guest.create_pair(&mut admin, 2, 64, Some(2)).unwrap();
    let wired: Vec<u64> = guest.services.doorbells().iter().map(|(at, _)| at.0 - Guest::BAR).collect();
    assert_eq!(wired, [0x1008, 0x1010], "the tails of both");
    for queue in [&mut before, &mut after] {
        queue.shadow = Some(shadow);
        let (mut submitted, mut done) = (0u64, 0u64);
        while done < 20_000 {
            while submitted < 20_000 && submitted - done < 32 {
                let read = io(spec::io::READ, 1, submitted % 1000 * 8, 8, [Guest::DATA.0, 0]);
                guest.submit(queue, read);
                submitted += 1;
            }
            let completion = guest.wait(queue);
            assert_eq!(completion.status.get() >> 1, 0);
            done += 1;
        }
        assert!(queue.rung < 20_000, "{} doorbells for 40000 moves", queue.rung);
        // One at a time the thread sleeps in between, and each needs a doorbell.
        for _ in 0..200 {
            assert_eq!(guest.run(queue, io(spec::io::READ, 1, 0, 8, [Guest::DATA.0, 0])).0, 0);
        }
    }
    // Nonsense in the shadow page is told, and survived.
    let event = guest.submit(&mut admin, Command { opcode: admin::ASYNC_EVENT, ..Command::default() });
    guest.ram.write_obj(Gpa(shadow.0.0 + 8), &0x1_0000u32).unwrap();
    guest.set(register::DOORBELLS + 8, 0);
    let told = guest.wait(&mut admin);
    assert_eq!((told.cid.get(), told.result.get()), (event, 0x0001_0100));
    guest.disable();
    assert_eq!(guest.services.doorbells(), []);
}

#[test]
fn a_driver_that_takes_no_completions_loses_none() {
    for shadow in [false, true] {
        let Fixture { guest, .. } = fixture_with(2, &NvmeOptions { queues: 2, ..NvmeOptions::new("disk0") });
        let mut admin = guest.enable();
        let pages = shadow.then(|| guest.share_doorbells(&mut admin));
        let mut queue = guest.create_pair(&mut admin, 1, 16, None).unwrap();
        queue.shadow = pages;
        // As many as fit into the submission queue, again and again, without taking an answer.
        let mut cids = BTreeMap::new();
        for n in 0..15u32 {
            cids.insert(guest.submit(&mut queue, io(spec::io::READ, n % 2 + 1, 0, 8, [Guest::DATA.0, 0])), n);
        }
        std::thread::sleep(Duration::from_millis(100));
        for n in 0..12u32 {
            cids.insert(guest.submit(&mut queue, io(spec::io::READ, n % 2 + 1, 0, 8, [Guest::DATA.0, 0])), n);
        }
        std::thread::sleep(Duration::from_millis(100));
        while !cids.is_empty() {
            let completion = guest.wait(&mut queue);
            assert_eq!(completion.status.get() >> 1, 0);
            assert!(cids.remove(&completion.cid.get()).is_some());
        }
        std::thread::sleep(Duration::from_millis(20));
        assert!(guest.look(&queue).is_none());
    }
}

#[test]
fn a_thousand_resets_under_load_leave_a_working_controller() {
    let Fixture { guest, disks, .. } =
        fixture_with(2, &NvmeOptions { queues: 2, ..NvmeOptions::new("disk0") });
    for round in 0..1000u64 {
        let mut admin = guest.enable();
        let pages = (round % 3 == 0).then(|| guest.share_doorbells(&mut admin));
        let mut queue = guest.create_pair(&mut admin, 1 + (round % 2) as u16, 32, None).unwrap();
        queue.shadow = pages;
        for n in 0..round % 31 {
            let nsid = 1 + (n % 2) as u32;
            guest.submit(&mut queue, io(spec::io::WRITE, nsid, n * 8, 8, [Guest::DATA.0, 0]));
        }
        if round % 5 == 0 {
            guest.bus.reset();
            guest.config_write(4, &[6, 0]);
        } else if round % 7 == 0 {
            // Off and on at once, as no driver should.
            guest.set(register::CC, 0);
        } else {
            guest.disable();
        }
        guest.await_bits(register::CSTS, 1, 0);
    }
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 32, None).unwrap();
    assert_eq!(guest.run(&mut queue, io(spec::io::READ, 2, 0, 8, [Guest::DATA.0, 0])).0, 0);
    assert_eq!(guest.reports(), [""; 0]);
    assert_eq!(disks[0].counters().errors, 0);
}

#[test]
fn a_shutdown_flushes_and_says_when_it_is_done() {
    let Fixture { guest, disks, .. } = fixture();
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 32, None).unwrap();
    guest.submit(&mut queue, io(spec::io::WRITE, 1, 0, 8, [Guest::DATA.0, 0]));
    guest.wait(&mut queue);
    guest.set(register::CC, 4 << 20 | 6 << 16 | 1 << 14 | 1);
    guest.await_bits(register::CSTS, 0xc, 8);
    assert_eq!((disks[0].counters().writes, disks[0].counters().flushes), (1, 1));
    guest.set(register::CC, 0);
    guest.await_bits(register::CSTS, 0xd, 0);
    let mut admin = guest.enable();
    assert_eq!(identify(&guest, &mut admin, 1, 0).0, 0);
}

#[test]
fn nothing_moves_while_bus_mastering_is_off() {
    let Fixture { guest, disks, .. } = fixture();
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 32, None).unwrap();
    guest.config_write(4, &[2, 0]);
    guest.submit(&mut queue, io(spec::io::READ, 1, 0, 8, [Guest::DATA.0, 0]));
    guest.submit(&mut admin, Command { opcode: admin::IDENTIFY, cdw10: 1.into(), ..Command::default() });
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(disks[0].counters().reads, 0);
    assert!(guest.look(&queue).is_none() && guest.look(&admin).is_none());
    guest.config_write(4, &[6, 0]);
    assert_eq!(guest.wait(&mut queue).status.get() >> 1, 0);
    guest.wait(&mut admin);
}

#[test]
fn a_controller_that_cannot_be_enabled_says_why_and_can_be_reset() {
    let Fixture { guest, .. } = fixture();
    guest.set(register::AQA, 0x001f_001f);
    guest.write(Guest::BAR + register::ASQ, RAM.to_le_bytes());
    guest.set(register::CC, 4 << 20 | 6 << 16 | 1);
    guest.await_bits(register::CSTS, 3, 2);
    assert!(guest.reports()[0].contains("not wholly inside guest RAM"), "{:?}", guest.reports());
    guest.disable();
    guest.await_bits(register::CSTS, 3, 0);
    guest.enable();
}

#[test]
fn interrupts_come_by_message_or_pin_once_for_a_batch() {
    let Fixture { guest, .. } = fixture();
    let mut admin = guest.enable();
    let line = guest.services.lines()[0].clone();
    let mut queue = guest.create_pair(&mut admin, 1, 32, Some(0)).unwrap();
    let asserted = |wanted: bool| {
        let start = Instant::now();
        while line.asserted() != wanted {
            assert!(start.elapsed() < Duration::from_secs(10), "the pin is never {wanted}");
            std::thread::yield_now();
        }
    };
    asserted(false);
    guest.submit(&mut queue, io(spec::io::READ, 1, 0, 8, [Guest::DATA.0, 0]));
    asserted(true);
    guest.set(register::INTMS, 1);
    asserted(false);
    assert_eq!(guest.get(register::INTMC), 1);
    guest.set(register::INTMC, 1);
    asserted(true);
    guest.wait(&mut queue);
    asserted(false);
    guest.disable();
    // By message; vectors are made in the order they are asked for: 0, then 1.
    guest.enable_msix(9);
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 128, Some(1)).unwrap();
    guest.services.messages();
    let raised = |n| (0..n).map(|vector| guest.services.raised(vector)).sum::<u64>();
    let vectors = guest.services.messages().len();
    raised(vectors);
    for _ in 0..100 {
        guest.submit(&mut queue, io(spec::io::READ, 1, 0, 8, [Guest::DATA.0, 0]));
    }
    for _ in 0..100 {
        guest.wait(&mut queue);
    }
    let interrupts = raised(vectors);
    assert!((1..=100).contains(&interrupts), "{interrupts}");
    assert!(!line.asserted());
    // With 100 entries, or after 25.5 ms, which begin with the answer to this very command.
    let start = Instant::now();
    let (status, _) = guest.admin(&mut admin, admin::SET_FEATURES, feature::COALESCING.into(), 0xff63);
    assert_eq!(status, 0);
    raised(vectors);
    guest.run(&mut queue, io(spec::io::READ, 1, 0, 8, [Guest::DATA.0, 0]));
    while raised(vectors) == 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "an interrupt that was held back for ever");
        std::thread::yield_now();
    }
    assert!(start.elapsed() >= Duration::from_millis(25), "{:?}", start.elapsed());
}

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
            self.seen.lock().unwrap().push(operation);
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
