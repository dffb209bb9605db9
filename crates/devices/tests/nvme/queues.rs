//! Queues, doorbells, interrupts, resets and shutdowns.

use super::*;

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
fn nothing_moves_in_d3hot_although_the_driver_left_bus_mastering_on() {
    let Fixture { guest, disks, .. } = fixture();
    let mut admin = guest.enable();
    let mut queue = guest.create_pair(&mut admin, 1, 32, None).unwrap();
    let mut at = u16::from(guest.config_read::<1>(0x34)[0]);
    while guest.config_read::<1>(at)[0] != 1 {
        at = u16::from(guest.config_read::<1>(at + 1)[0]);
    }
    guest.config_write(at + 4, &[3, 0]);
    guest.submit(&mut queue, io(spec::io::READ, 1, 0, 8, [Guest::DATA.0, 0]));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(disks[0].counters().reads, 0);
    assert!(guest.look(&queue).is_none());
    guest.config_write(at + 4, &[0, 0]);
    assert_eq!(guest.wait(&mut queue).status.get() >> 1, 0);
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
