//! What every back end must do.

mod subjects;

use std::sync::Arc;

use disk::{
    Access, AfterDiscard, Bounce, DiskError, DiskOptions, Durability, Event, Operation, Request, SectorRange,
    Sectors, Unmap,
};
use memory::{Buffers, Gpa};
use subjects::bench::{Bench, ram, read, write};
use subjects::{SIZE, over_every_disk};
use vmm_sys_util::eventfd::EventFd;

#[test]
fn what_is_written_is_read_back_from_one_piece_and_from_many() {
    over_every_disk(|subject| {
        let mut bench = subject.bench();
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
        assert_eq!(counters.bytes_direct + counters.bytes_bounced(), 0xc000);
        assert!(counters.bytes_bounced() == 0 || !subject.direct, "{counters:?}");
        assert_eq!((counters.reads, counters.writes, counters.flushes, counters.errors), (2, 2, 1, 0));
    });
}

#[test]
fn a_large_transfer_of_many_pieces_is_whole() {
    over_every_disk(|subject| {
        let mut bench = subject.bench();
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
    over_every_disk(|subject| {
        let mut bench = subject.bench();
        // Odd addresses and odd pieces, longer than one bounce buffer.
        let (len, gpa) = (0x90000usize, 0x10001);
        let bytes = bench.fill(gpa, len, 5);
        bench.run(write(0), &[(gpa, 100), (gpa + 100, len as u64 - 100)]).unwrap();
        bench.run(read(0), &[(0x200001, 7), (0x300004, len as u64 - 7)]).unwrap();
        assert!(bench.bytes(0x300004, len - 7) == bytes[7..]);
        assert_eq!(bench.bytes(0x200001, 8), [&bytes[..7], &[0]].concat());
        let counters = bench.disk.counters();
        if subject.bounces {
            assert_eq!((counters.bytes_direct, counters.bytes_bounced_alignment), (0, 2 * len as u64));
        }
    });
}

#[test]
fn copies_that_were_asked_for_are_made_and_counted() {
    over_every_disk(|subject| {
        if !subject.bounces || subject.options().is_none() {
            return;
        }
        let options = subject.options().expect("only disks of the kernel bounce");
        let mut bench = Bench::open(&DiskOptions { bounce: Bounce::Always, ..options.clone() });
        let bytes = bench.fill(0, 0x2000, 9);
        bench.run(write(16), &[(0, 0x2000)]).unwrap();
        bench.run(read(16), &[(0x4000, 0x2000)]).unwrap();
        assert_eq!(bench.bytes(0x4000, 0x2000), bytes);
        assert_eq!(bench.disk.counters().bytes_bounced_asked, 0x4000);
    });
}

#[test]
fn what_lies_outside_or_splits_a_block_is_refused() {
    over_every_disk(|subject| {
        let mut bench = subject.bench();
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
    over_every_disk(|subject| {
        let mut bench = subject.bench_with(Access::ReadOnly);
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
    over_every_disk(|subject| {
        let mut bench = subject.bench();
        let bytes = bench.fill(0, 0x40000, 11);
        bench.run(write(0), &[(0, 0x40000)]).unwrap();
        let range = |start| SectorRange { start: Sectors(start), count: Sectors(64) };
        let zeroes = bench.disk.geometry().write_zeroes.is_some();
        let discards = bench.disk.geometry().discard.is_some();
        let answer = |able| if able { Ok(()) } else { Err(DiskError::Unsupported) };
        assert_eq!(bench.run(Operation::WriteZeroes(range(64), Unmap::Allowed), &[]), answer(zeroes));
        assert_eq!(bench.run(Operation::WriteZeroes(range(192), Unmap::Forbidden), &[]), answer(zeroes));
        assert_eq!(bench.run(Operation::Discard(range(320)), &[]), answer(discards));
        bench.run(read(0), &[(0x100000, 0x40000)]).unwrap();
        let back = bench.bytes(0x100000, 0x40000);
        for (index, piece) in back.chunks(64 * 512).enumerate() {
            match index {
                1 | 3 if zeroes => assert!(piece.iter().all(|b| *b == 0), "piece {index}"),
                5 => {}
                _ => assert_eq!(piece, &bytes[index * 64 * 512..][..64 * 512], "piece {index}"),
            }
        }
    });
}

#[test]
fn many_requests_complete_in_any_order_with_their_own_tags() {
    over_every_disk(|subject| {
        let mut bench = subject.bench();
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
    over_every_disk(|subject| {
        let mut bench = subject.bench();
        let kick = EventFd::new(0).unwrap();
        bench.queue.watch(&kick).unwrap();
        let mut events = Vec::new();
        bench.queue.poll(&mut events).unwrap();
        assert!(events.is_empty());
        for _ in 0..100 {
            kick.write(1).unwrap();
            bench.wait(&mut events);
            assert!(matches!(events[..], [Event::Wake]), "{events:?}");
            events.clear();
        }
        let remote = kick.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            remote.write(1).unwrap();
        });
        bench.wait(&mut events);
        assert!(matches!(events[..], [Event::Wake]), "{events:?}");
        thread.join().unwrap();
    });
}

#[test]
fn dropping_a_queue_waits_for_everything_under_way() {
    over_every_disk(|subject| {
        let ram = ram(1 << 20);
        let disk = subject.open(&ram, Access::ReadWrite);
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
fn a_random_sequence_leaves_what_a_plain_array_would_have() {
    over_every_disk(|subject| {
        let ram = ram(4 << 20);
        let disk = subject.open(&ram, Access::ReadWrite);
        let queues = [0, 1].map(|_| disk.prepare_queue(8).unwrap().start().unwrap());
        let mut benches = queues.map(|queue| (queue, ram.clone()));
        let geometry = disk.geometry().clone();
        let block = u64::from(geometry.logical_block) / 512;
        let mut model = vec![0u8; SIZE as usize];
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let mut run = |which: usize, operation, len: u64| {
            let (queue, ram) = &mut benches[which];
            let mut buffers = Buffers::new(ram.clone());
            buffers.push(Gpa(0), len).unwrap();
            queue.submit(Request { tag: 1, operation, buffers }).unwrap();
            let mut events = Vec::new();
            queue.drain(&mut events).unwrap();
            match events.pop() {
                Some(Event::Done { tag: 1, result, .. }) => result.unwrap(),
                other => panic!("{other:?}"),
            }
        };
        // What is there from earlier tests goes first.
        ram.write(Gpa(0), &vec![0; 1 << 20]).unwrap();
        (0..SIZE >> 20).for_each(|part| run(0, write(part << 11), 1 << 20));
        for round in 0..150u64 {
            let which = random(2) as usize;
            let count = (random(64) + 1) * block;
            let start = random((SIZE / 512 - count) / block + 1) * block;
            let range = SectorRange { start: Sectors(start), count: Sectors(count) };
            let (from, len) = (start as usize * 512, count as usize * 512);
            match random(10) {
                0 if geometry.write_zeroes.is_some() => {
                    let unmap = if round % 2 == 0 { Unmap::Allowed } else { Unmap::Forbidden };
                    run(which, Operation::WriteZeroes(range, unmap), 0);
                    model[from..from + len].fill(0);
                }
                1 if geometry.discard.is_some_and(|discard| discard.after == AfterDiscard::Zeroes) => {
                    run(which, Operation::Discard(range), 0);
                    // Some may be left as it was; what it is now is what it has to stay.
                    run(which, read(start), len as u64);
                    let mut now = vec![0; len];
                    ram.read(Gpa(0), &mut now).unwrap();
                    for (now, before) in now.iter().zip(&model[from..from + len]) {
                        assert!(*now == 0 || now == before);
                    }
                    model[from..from + len].copy_from_slice(&now);
                }
                2 => run(which, Operation::Flush, 0),
                3..6 => {
                    run(which, read(start), len as u64);
                    let mut back = vec![0; len];
                    ram.read(Gpa(0), &mut back).unwrap();
                    assert!(back == model[from..from + len], "round {round}: {range}");
                }
                _ => {
                    let bytes: Vec<u8> = (0..len).map(|i| (i as u64 * 7 + round) as u8).collect();
                    ram.write(Gpa(0), &bytes).unwrap();
                    let durability = if round % 9 == 0 { Durability::Stable } else { Durability::Cached };
                    run(which, Operation::Write { at: Sectors(start), durability }, len as u64);
                    model[from..from + len].copy_from_slice(&bytes);
                }
            }
        }
        drop(benches);
        drop(disk);
        if subject.is_forgotten() {
            return;
        }
        // What was written is there for the next one who opens it.
        let mut bench = subject.bench();
        for part in 0..SIZE >> 20 {
            bench.run(read(part << 11), &[(0, 1 << 20)]).unwrap();
            assert!(bench.bytes(0, 1 << 20) == model[(part << 20) as usize..][..1 << 20], "part {part}");
        }
    });
}

#[test]
fn cancelled_requests_are_all_reported() {
    over_every_disk(|subject| {
        let mut bench = subject.bench();
        for tag in 0..32 {
            let buffers = bench.buffers(&[(tag * 0x10000, 0x8000)]);
            bench.queue.submit(Request { tag, operation: read(tag * 64), buffers }).unwrap();
        }
        bench.queue.cancel().unwrap();
        let mut events = Vec::new();
        bench.queue.drain(&mut events).unwrap();
        assert_eq!(events.len(), 32);
        for event in events {
            let Event::Done { result, .. } = event else { panic!("{event:?}") };
            assert!(matches!(result, Ok(()) | Err(DiskError::Cancelled)), "{result:?}");
        }
    });
}
