//! Commands that move data, or change it where it lies.

use super::*;

/// A PRP list for the pages from `at` on, in page `list` and those behind it; returns the two PRPs.
pub(super) fn prps(guest: &Guest, at: u64, bytes: u64, mut list: u64) -> [u64; 2] {
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

pub(super) const LISTS: u64 = 0xa000;

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
