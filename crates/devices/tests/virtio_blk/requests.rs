//! Requests and their answers.

use super::*;

#[test]
fn data_goes_to_the_disk_and_back_without_a_copy() {
    let setup = Setup::with(DiskOptions::new, packed_too());
    let lens = [
        (ALL, 0x1000),
        (ALL | Features::RING_PACKED, 0x100000),
        (Features::VERSION_1 | Features::RING_PACKED, 0x3000),
        (ALL, 0x100000),
        (Features::VERSION_1, 0x3000),
    ];
    for (features, len) in lens {
        let mut queue = setup.start(features);
        let data = pattern(&setup.guest, DATA, len, 7);
        assert_eq!(queue.run(1, 64, &[piece(DATA, len as u32)], &[]), (0, 1));
        assert_eq!(queue.run(4, 0, &[], &[]), (0, 1));
        assert!(setup.on_disk(64, len) == data);
        let room = [piece(DATA + 0x200000, 0x800), piece(DATA + 0x300800, len as u32 - 0x800)];
        assert_eq!(queue.run(0, 64, &[], &room), (0, len as u32 + 1));
        let back =
            [bytes(&setup.guest, DATA + 0x200000, 0x800), bytes(&setup.guest, DATA + 0x300800, len - 0x800)];
        assert!(back.concat() == data);
        setup.guest.reset();
    }
    let counters = setup.disk.counters();
    assert_eq!(counters.bytes_bounced(), 0);
    assert_eq!(counters.bytes_direct, 2 * (0x1000 + 2 * (0x100000 + 0x3000)));
}

#[test]
fn headers_and_statuses_may_be_cut_anywhere() {
    let setup = Setup::new();
    let mut queue = setup.start(ALL);
    let ram = &setup.guest.ram;
    let data = pattern(&setup.guest, DATA + 13, 512, 3);
    // A write whose header and data share descriptors that are cut at odd places.
    ram.write_obj(Gpa(DATA), &[1u32, 0]).unwrap();
    ram.write_obj(Gpa(DATA + 0x1000), &5u64.to_le_bytes()[..5].try_into().unwrap_or([0u8; 5])).unwrap();
    let mut rest = vec![0u8; 3];
    rest.extend(&data);
    ram.write(Gpa(DATA + 0x2000), &rest).unwrap();
    let out = [piece(DATA, 8), piece(DATA + 0x1000, 5), piece(DATA + 0x2000, 515)];
    queue.ring.add(&out, &[piece(DATA + 0x4000, 1)], Layout::Indirect(Gpa(DATA + 0x5000))).unwrap();
    queue.kick();
    assert_eq!(queue.wait().1, 1);
    assert_eq!(bytes(&setup.guest, DATA + 0x4000, 1), [0]);
    assert_eq!(setup.on_disk(5, 512), data);
    assert_eq!(setup.disk.counters().bytes_bounced_alignment, 512);
    // A read whose status shares the last descriptor with the data.
    let header = HEADERS;
    ram.write_obj(Gpa(header), &[0u32, 0, 5, 0]).unwrap();
    queue.ring.add(&[piece(header, 16)], &[piece(DATA + 0x6000, 513)], Layout::Direct).unwrap();
    queue.kick();
    assert_eq!(queue.wait().1, 513);
    assert_eq!(bytes(&setup.guest, DATA + 0x6000, 513), [&data[..], &[0]].concat());
}

#[test]
fn zeroes_discards_and_the_serial_number_work() {
    let blk = VirtioBlkOptions { serial: Some("SKEP-1".to_owned()), ..VirtioBlkOptions::new("disk0") };
    let setup = Setup::with(DiskOptions::new, blk);
    let mut queue = setup.start(ALL | feature::DISCARD | feature::WRITE_ZEROES);
    let data = pattern(&setup.guest, DATA, 0x8000, 1);
    assert_eq!(queue.run(1, 0, &[piece(DATA, 0x8000)], &[]).0, 0);
    let range = |sector: u64, count: u32, flags: u32| {
        setup.guest.ram.write_obj(Gpa(DATA), &sector).unwrap();
        setup.guest.ram.write_obj(Gpa(DATA + 8), &[count, flags]).unwrap();
        [piece(DATA, 16)]
    };
    assert_eq!(queue.run(13, 0, &range(8, 8, 0), &[]).0, 0);
    assert_eq!(queue.run(13, 0, &range(24, 8, 1), &[]).0, 0);
    assert_eq!(queue.run(11, 0, &range(40, 8, 0), &[]).0, 0);
    assert_eq!(queue.run(11, 0, &range(40, 8, 1), &[]).0, 2, "unmap is not for discards");
    assert_eq!(queue.run(13, 0, &range(40, 8, 2), &[]).0, 2, "unknown flag");
    assert_eq!(queue.run(13, 0, &range(SIZE / 512, 8, 0), &[]).0, 1);
    assert_eq!(queue.run(13, 0, &range(0, u32::MAX, 0), &[]).0, 1);
    assert_eq!(queue.run(13, 0, &[piece(DATA, 32)], &[]).0, 1, "two ranges");
    assert_eq!(queue.run(13, 0, &[], &[]).0, 1, "no range");
    let after = setup.on_disk(0, 0x8000);
    for block in 0..8 {
        let here = &after[block * 4096..][..4096];
        if matches!(block, 1 | 3 | 5) {
            assert!(here.iter().all(|byte| *byte == 0), "block {block}");
        } else {
            assert!(here == &data[block * 4096..][..4096], "block {block}");
        }
    }
    assert_eq!(queue.run(8, 0, &[], &[piece(DATA, 20)]), (0, 21));
    assert_eq!(bytes(&setup.guest, DATA, 20), *b"SKEP-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(queue.run(8, 0, &[], &[piece(DATA, 30)]), (0, 20));
    assert_eq!(queue.run(8, 0, &[], &[piece(DATA, 4)]), (0, 5));
}

#[test]
fn what_the_disk_cannot_do_is_answered_with_its_status() {
    let setup = Setup::new();
    let mut queue = setup.start(ALL);
    let end = SIZE / 512;
    assert_eq!(queue.run(99, 0, &[], &[]), (2, 1));
    assert_eq!(queue.run(0, end, &[], &[piece(DATA, 4096)]), (1, 0));
    assert_eq!(queue.run(1, end - 1, &[piece(DATA, 4096)], &[]), (1, 1));
    assert_eq!(queue.run(0, u64::MAX, &[], &[piece(DATA, 4096)]), (1, 0));
    assert_eq!(queue.run(0, 0, &[], &[piece(DATA, 100)]), (1, 0));
    assert_eq!(queue.run(0, 0, &[], &[]), (1, 0));
    assert_eq!(queue.run(0, end - 8, &[], &[piece(DATA, 4096)]), (0, 4097));
    assert!(
        setup.guest.reports().is_empty(),
        "a guest's own mistakes are no events: {:?}",
        setup.guest.reports()
    );
}

#[test]
fn a_disk_that_fails_is_an_error_for_the_guest_whose_telling_is_the_disks_affair() {
    let setup = Setup::new();
    let mut queue = setup.start(ALL);
    setup.file.set_len(SIZE / 2).unwrap();
    for _ in 0..5 {
        assert_eq!(queue.run(0, SIZE / 512 - 8, &[], &[piece(DATA, 4096)]), (1, 0));
    }
    assert_eq!(setup.guest.reports(), [""; 0]);
}

#[test]
fn a_guest_waits_for_a_held_request_or_resets_the_device_that_has_it() {
    let setup = Setup::new();
    let (told, failures) = std::sync::mpsc::channel();
    let tell = move |failure| told.send(failure).unwrap();
    setup.disk.answer_failures(OnError::Pause.into(), Box::new(tell));
    let mut queue = setup.start(ALL);
    setup.file.set_len(SIZE / 2).unwrap();
    let last = SIZE / 512 - 8;
    let (head, status) = queue.send(0, last, &[], &[piece(DATA, 4096)], Layout::Direct).unwrap();
    queue.kick();
    let failure = failures.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!((failure.operation, failure.bytes), (disk::Operation::Read { at: disk::Sectors(last) }, 4096));
    // Others are not held up.
    assert_eq!(queue.run(0, 0, &[], &[piece(DATA, 4096)]), (0, 4097));
    setup.file.set_len(SIZE).unwrap();
    setup.disk.failures().retry();
    assert_eq!(queue.wait(), (head, 4097));
    assert_eq!(setup.guest.ram.read_obj::<u8>(status).unwrap(), 0);
    setup.file.set_len(SIZE / 2).unwrap();
    queue.send(0, last, &[], &[piece(DATA, 4096)], Layout::Direct).unwrap();
    queue.kick();
    failures.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(setup.disk.failures().waiting().is_some());
    setup.guest.reset();
    assert!(setup.disk.failures().waiting().is_none(), "a reset drops what is held");
    // Nobody stood still for it, so it is told of as a failure like others.
    assert_eq!(failures.try_recv().unwrap().answer, Answer::Reported);
    assert!(failures.try_recv().is_err());
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let setup = Setup::with(|path| DiskOptions::new(path).read_only(), VirtioBlkOptions::new("disk0"));
    assert_eq!(setup.guest.read::<4>(Guest::COMMON + 4)[0] & 0x20, 0x20);
    assert_eq!(setup.guest.read::<4>(Guest::COMMON + 4)[1] & 0x60, 0, "neither discard nor zeroes");
    let mut queue = setup.start(ALL | feature::RO);
    assert_eq!(queue.run(1, 0, &[piece(DATA, 4096)], &[]), (1, 1));
    assert_eq!(queue.run(0, 0, &[], &[piece(DATA, 4096)]), (0, 4097));
}

#[test]
fn a_chain_that_is_no_request_asks_for_a_reset() {
    let bad: [(&[Piece], &[Piece]); 3] = [
        (&[piece(HEADERS, 15)], &[piece(HEADERS + 16, 1)]),
        (&[piece(HEADERS, 16)], &[]),
        (&[], &[piece(HEADERS, 1)]),
    ];
    let setup = Setup::new();
    for (readable, writable) in bad {
        let mut queue = setup.start(ALL);
        queue.ring.add(readable, writable, Layout::Direct).unwrap();
        queue.kick();
        let start = Instant::now();
        while setup.guest.status() != 15 | 64 {
            assert!(start.elapsed() < Duration::from_secs(10));
        }
        setup.guest.reset();
    }
    assert_eq!(setup.guest.reports().len(), 3);
    let mut queue = setup.start(ALL);
    assert_eq!(queue.run(0, 0, &[], &[piece(DATA, 4096)]).0, 0);
}

#[test]
fn many_requests_at_once_all_come_back_with_the_right_data() {
    let setup = Setup::with(DiskOptions::new, packed_too());
    let ways = [Layout::Direct, Layout::Indirect(Gpa(0))];
    let rings = [Features::default(), Features::RING_PACKED];
    for (layout, ring) in ways.into_iter().flat_map(|way| rings.map(|ring| (way, ring))) {
        let mut queue = setup.start(ALL | ring);
        let data = pattern(&setup.guest, DATA, 64 * 4096, 21);
        for round in 0..20u64 {
            let mut statuses = Vec::new();
            for i in 0..64u64 {
                let layout = match layout {
                    Layout::Direct => Layout::Direct,
                    Layout::Indirect(_) => Layout::Indirect(Gpa(0x40000 + 64 * i)),
                };
                let (kind, block) = if round % 2 == 0 { (1, i) } else { (0, 63 - i) };
                let (out, room) = match kind {
                    1 => (vec![piece(DATA + block * 4096, 4096)], vec![]),
                    _ => (vec![], vec![piece(DATA + 0x400000 + block * 4096, 4096)]),
                };
                statuses.push(queue.send(kind, block * 8, &out, &room, layout).unwrap().1);
                if i % 7 == 0 {
                    queue.kick();
                }
            }
            queue.kick();
            for _ in 0..64 {
                queue.wait();
            }
            for status in statuses {
                assert_eq!(setup.guest.ram.read_obj::<u8>(status).unwrap(), 0);
            }
        }
        assert!(bytes(&setup.guest, DATA + 0x400000, 64 * 4096) == data);
        setup.guest.reset();
    }
}

#[test]
fn a_queue_over_a_driven_controller_serves_without_kicks_or_copies() {
    let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 16 << 20).unwrap()]).unwrap());
    let iommu = FakeIommu::new();
    let domain = iommu.domain("host", Kind::Host);
    MemoryMap::new(ram.clone()).attach(domain.clone()).unwrap();
    let model = Model::new(&iommu, vec![Namespace { bytes: SIZE, block: 512 }]);
    let options = NvmeOptions::new(Arc::new(|trouble| panic!("{trouble}")));
    let controller = NvmeController::over(model.function(), &domain, options).unwrap();
    let disk = Arc::new(Disk::new("nvme", Box::new(controller.namespace(1).unwrap().polled(Poll::On))));
    let device = VirtioBlk::new(disk.clone(), packed_too()).unwrap();
    let guest = Guest::new(Box::new(device), ram);
    for features in [ALL, Features::VERSION_1, ALL | Features::RING_PACKED] {
        guest.negotiate(features);
        let ring = guest.add_queue(0, RING, 256, features);
        guest.go();
        let mut queue = Queued { guest: &guest, ring, next: 0 };
        let data = pattern(&guest, DATA, 0x1000, 7);
        assert_eq!(queue.run(1, 0, &[piece(DATA, 0x1000)], &[]), (0, 1));
        for _ in 0..50 {
            queue.send(0, 0, &[], &[piece(DATA + 0x1000, 0x1000)], Layout::Direct).unwrap();
            assert!(!queue.ring.needs_kick(), "the device looks by itself");
            assert_eq!(queue.wait().1, 0x1001);
        }
        assert!(bytes(&guest, DATA + 0x1000, 0x1000) == data);
        guest.reset();
    }
    assert_eq!(disk.counters().bytes_bounced(), 0);
}

#[test]
fn a_request_that_nobody_should_wait_for_is_refused() {
    let (guest, ledger) = watched(InitialCache::OfDisk);
    let mut queue = start(&guest, ALL);
    let mut write = |pieces| queue.run(1, 0, &vec![piece(0, 16 << 20); pieces], &[]);
    assert_eq!((write(64), ledger.take().len()), ((0, 1), 1), "1 GiB");
    assert_eq!((write(65), ledger.take().len()), ((1, 1), 0), "it would fit on the disk");
}
