#![allow(clippy::let_underscore_must_use)] // whether an interrupt is wanted does not matter everywhere

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use memory::{Gpa, GpaRange, Ram};
use proptest::prelude::*;

use super::*;
use crate::driver::{Driver, Layout};

const BASE: Gpa = Gpa(0x1000);
const EVENTS: Features = Features(Features::EVENT_IDX.0 | Features::INDIRECT_DESC.0);

fn ram() -> Arc<Ram> {
    Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap())
}

fn pair(size: u16, features: Features) -> (Driver, Queue) {
    let ram = ram();
    let driver = Driver::new(ram.clone(), BASE, size, features);
    let queue = Queue::new(ram, &driver.addresses(), features).unwrap();
    (driver, queue)
}

fn piece(gpa: u64, len: u32) -> Piece {
    Piece { gpa: Gpa(gpa), len }
}

#[test]
fn a_queue_is_refused_unless_its_parts_are_aligned_ram() {
    let ram = ram();
    let good = Driver::new(ram.clone(), BASE, 8, EVENTS).addresses();
    let refused = |at| Queue::new(ram.clone(), &at, EVENTS).err();
    assert_eq!(refused(good), None);
    assert_eq!(refused(QueueAddresses { size: 0, ..good }), Some(QueueRefused::Size(0)));
    assert_eq!(refused(QueueAddresses { size: 6, ..good }), Some(QueueRefused::Size(6)));
    let skewed = refused(QueueAddresses { device: Gpa(0x2002), ..good });
    assert!(matches!(skewed, Some(QueueRefused::Alignment { part: "used ring", .. })));
    let beyond = refused(QueueAddresses { descriptors: Gpa((1 << 20) - 16), ..good });
    assert!(matches!(beyond, Some(QueueRefused::OutsideRam { part: "descriptor table", len: 128, .. })));
    // The event index counts: without it the ring would just fit.
    let last = QueueAddresses { driver: Gpa((1 << 20) - 20), ..good };
    assert!(matches!(refused(last), Some(QueueRefused::OutsideRam { len: 22, .. })));
    assert!(Queue::new(ram.clone(), &last, Features::default()).is_ok());
    let wrapping = refused(QueueAddresses { driver: Gpa(u64::MAX - 1), ..good });
    assert!(matches!(wrapping, Some(QueueRefused::OutsideRam { .. })));
}

#[test]
fn a_chain_arrives_with_its_readable_and_writable_pieces() {
    for layout in [Layout::Direct, Layout::Indirect(Gpa(0x8003))] {
        let (mut driver, mut queue) = pair(8, EVENTS);
        let mut chain = Chain::new();
        assert_eq!(queue.pop(&mut chain), Ok(None));
        queue.ram().write(Gpa(0x4000), &[1, 2, 3, 4]).unwrap();
        queue.ram().write(Gpa(0x5000), &[5, 6, 7, 8]).unwrap();
        let head = driver.add(&[piece(0x4000, 4), piece(0x5000, 4)], &[piece(0x6000, 100)], layout).unwrap();
        let taken = queue.pop(&mut chain).unwrap().unwrap();
        assert_eq!(taken.index(), head);
        let mut readable = chain.readable();
        assert_eq!(readable.read::<[u8; 6]>(queue.ram()), Some([1, 2, 3, 4, 5, 6]));
        assert_eq!((readable.bytes(), readable.start()), (2, Some(Gpa(0x5002))));
        assert_eq!(readable.read::<u32>(queue.ram()), None);
        let mut writable = chain.writable();
        let end = writable.split_end(1).unwrap();
        assert_eq!((writable.bytes(), end.bytes(), end.start()), (99, 1, Some(Gpa(0x6063))));
        queue.push_used(taken, 42);
        assert_eq!(driver.take_used(), None, "not published yet");
        assert!(queue.publish());
        assert_eq!(driver.take_used(), Some((head, 42)));
    }
}

#[test]
fn nonsense_is_an_error_of_its_kind() {
    let malformed = |features: Features, spoil: &dyn Fn(&mut Driver)| {
        let (mut driver, mut queue) = pair(8, features);
        spoil(&mut driver);
        driver.set_index(1);
        queue.pop(&mut Chain::new()).unwrap_err()
    };
    let table = BASE;
    let ok = piece(0x4000, 16);
    type M = Malformed;
    assert!(matches!(
        malformed(EVENTS, &|d| d.describe(table, 0, piece(0x4000, 0), 0, None)),
        M::Empty { head: 0, at: Gpa(0x4000) }
    ));
    assert!(matches!(
        malformed(EVENTS, &|d| d.describe(table, 0, piece(0xfffff, 2), 0, None)),
        M::OutsideRam { len: 2, .. }
    ));
    assert!(matches!(
        malformed(EVENTS, &|d| d.describe(table, 0, piece(u64::MAX, 2), 0, None)),
        M::OutsideRam { .. }
    ));
    assert!(matches!(
        malformed(EVENTS, &|d| d.describe(table, 0, ok, 0, Some(0))),
        M::Loop { head: 0, size: 8 }
    ));
    assert!(matches!(
        malformed(EVENTS, &|d| d.describe(table, 0, ok, 0, Some(8))),
        M::NoSuchDescriptor { index: 8, size: 8, .. }
    ));
    let backwards = |d: &mut Driver| {
        d.describe(table, 0, ok, 2, Some(1));
        d.describe(table, 1, ok, 0, None);
    };
    assert!(matches!(malformed(EVENTS, &backwards), M::ReadableAfterWritable { head: 0 }));
    let indirect =
        |at: u64, len: u32, next| move |d: &mut Driver| d.describe(table, 0, piece(at, len), 4, next);
    assert!(matches!(malformed(EVENTS, &indirect(0x4000, 17, None)), M::IndirectLength { len: 17, .. }));
    assert!(matches!(malformed(EVENTS, &indirect(0x4000, 0, None)), M::IndirectLength { .. }));
    assert!(matches!(malformed(EVENTS, &indirect(0x4000, 0x10000, None)), M::IndirectLength { .. }));
    assert!(matches!(malformed(EVENTS, &indirect(0xffff8, 16, None)), M::OutsideRam { .. }));
    assert!(matches!(malformed(EVENTS, &indirect(0x4000, 16, Some(1))), M::UnexpectedIndirect { .. }));
    assert!(matches!(
        malformed(Features::default(), &indirect(0x4000, 16, None)),
        M::UnexpectedIndirect { .. }
    ));
    let nested = |d: &mut Driver| {
        d.describe(table, 0, piece(0x4000, 16), 4, None);
        d.describe(Gpa(0x4000), 0, piece(0x5000, 16), 4, None);
    };
    assert!(matches!(malformed(EVENTS, &nested), M::UnexpectedIndirect { .. }));
    let looping = |d: &mut Driver| {
        d.describe(table, 0, piece(0x4000, 32), 4, None);
        d.describe(Gpa(0x4000), 0, ok, 0, Some(1));
        d.describe(Gpa(0x4000), 1, ok, 0, Some(0));
    };
    assert!(matches!(malformed(EVENTS, &looping), M::Loop { size: 2, .. }));

    let (mut driver, mut queue) = pair(8, EVENTS);
    driver.set_index(9);
    assert_eq!(queue.pop(&mut Chain::new()), Err(M::IndexJump { index: 9, next: 0, size: 8 }));
}

#[test]
fn a_driver_cannot_have_more_chains_under_way_than_descriptors() {
    let (mut driver, mut queue) = pair(4, EVENTS);
    driver.describe(BASE, 0, piece(0x4000, 16), 0, None);
    let mut heads = Vec::new();
    for index in 1..=4 {
        driver.set_index(index);
        heads.push(queue.pop(&mut Chain::new()).unwrap().unwrap());
    }
    driver.set_index(5);
    assert_eq!(queue.pop(&mut Chain::new()), Err(Malformed::TooManyChains { size: 4 }));
}

#[test]
fn interrupts_come_when_the_driver_asked_for_them() {
    let (mut driver, mut queue) = pair(8, EVENTS);
    let mut chain = Chain::new();
    let mut complete = |driver: &mut Driver, queue: &mut Queue, count: u16| {
        for _ in 0..count {
            driver.add(&[piece(0x4000, 1)], &[], Layout::Direct).unwrap();
            let head = queue.pop(&mut chain).unwrap().unwrap();
            queue.push_used(head, 0);
        }
        let wanted = queue.publish();
        while driver.take_used().is_some() {}
        wanted
    };
    assert!(!queue.publish(), "nothing happened");
    driver.want_interrupt(2);
    assert!(!complete(&mut driver, &mut queue, 2));
    assert!(complete(&mut driver, &mut queue, 1));
    assert!(!complete(&mut driver, &mut queue, 3));
    driver.want_interrupt(0);
    assert!(complete(&mut driver, &mut queue, 2));

    let (mut driver, mut queue) = pair(8, Features::default());
    assert!(complete(&mut driver, &mut queue, 1));
    driver.set_flags(1);
    assert!(!complete(&mut driver, &mut queue, 1));
}

#[test]
fn kicks_are_asked_for_only_at_the_edge_of_sleep() {
    for features in [EVENTS, Features::default()] {
        let (mut driver, mut queue) = pair(8, features);
        let mut chain = Chain::new();
        let add = |driver: &mut Driver| {
            driver.add(&[piece(0x4000, 1)], &[], Layout::Direct).unwrap();
            driver.needs_kick()
        };
        assert!(!queue.arm().unwrap());
        assert!(add(&mut driver));
        queue.disarm();
        assert!(!add(&mut driver));
        assert!(queue.arm().unwrap(), "a chain came before the wish was out");
        queue.disarm();
        while let Some(head) = queue.pop(&mut chain).unwrap() {
            queue.push_used(head, 0);
        }
        assert!(!add(&mut driver), "the device is awake");
        let _ = queue.pop(&mut chain).unwrap();
        assert!(!queue.arm().unwrap());
        assert!(add(&mut driver));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(Vec<(u16, u8)>, Vec<(u16, u8)>, bool),
    Pop,
    Complete(usize),
    Publish,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pieces = || prop::collection::vec((any::<u16>(), 1u8..), 0..4);
    let step = prop_oneof![
        4 => (pieces(), pieces(), any::<bool>()).prop_map(|(r, w, i)| Step::Add(r, w, i)),
        4 => Just(Step::Pop),
        4 => any::<usize>().prop_map(Step::Complete),
        2 => Just(Step::Publish),
    ];
    prop::collection::vec(step, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Random traffic against a model: chains arrive in order with their pieces, and come back with their
    /// lengths, across the wrap of the 16-bit indices.
    #[test]
    fn every_chain_arrives_whole_and_in_order_and_comes_back_once(steps in steps(), size_bits in 1u32..5, warm in 0u32..2) {
        let (mut driver, mut queue) = pair(1 << size_bits, EVENTS);
        let mut chain = Chain::new();
        for _ in 0..warm * 65530 {
            driver.add(&[piece(0x4000, 1)], &[], Layout::Direct).unwrap();
            let head = queue.pop(&mut chain).unwrap().unwrap();
            queue.push_used(head, 7);
            let _ = queue.publish();
            driver.take_used().unwrap();
        }
        let mut waiting: VecDeque<(u16, Vec<Piece>, Vec<Piece>)> = VecDeque::new();
        let mut taken: Vec<Head> = Vec::new();
        let mut done: VecDeque<(u16, u32)> = VecDeque::new();
        let mut tables: HashMap<u16, Gpa> = HashMap::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Add(readable, writable, indirect) if !(readable.is_empty() && writable.is_empty()) => {
                    let place = |(at, len): &(u16, u8)| piece(0x10000 + u64::from(*at), u32::from(*len));
                    let readable: Vec<Piece> = readable.iter().map(place).collect();
                    let writable: Vec<Piece> = writable.iter().map(place).collect();
                    let table = Gpa(0x40000 + 0x100 * number as u64);
                    let layout = if indirect { Layout::Indirect(table) } else { Layout::Direct };
                    if let Some(head) = driver.add(&readable, &writable, layout) {
                        tables.insert(head, table);
                        waiting.push_back((head, readable, writable));
                    }
                }
                Step::Pop => {
                    let popped = queue.pop(&mut chain).unwrap();
                    match waiting.pop_front() {
                        None => prop_assert!(popped.is_none()),
                        Some((head, readable, writable)) => {
                            let popped = popped.unwrap();
                            prop_assert_eq!(popped.index(), head);
                            let all = |mut cursor: Cursor<'_>| {
                                let bytes = cursor.bytes();
                                cursor.take(bytes).unwrap().collect::<Vec<_>>()
                            };
                            prop_assert_eq!(all(chain.readable()), readable);
                            prop_assert_eq!(all(chain.writable()), writable);
                            taken.push(popped);
                        }
                    }
                }
                Step::Complete(which) if !taken.is_empty() => {
                    let head = taken.swap_remove(which % taken.len());
                    done.push_back((head.index(), number as u32));
                    queue.push_used(head, number as u32);
                }
                Step::Add(..) | Step::Complete(_) => {}
                Step::Publish => {
                    let _ = queue.publish();
                    while let Some(used) = driver.take_used() {
                        prop_assert_eq!(Some(used), done.pop_front());
                    }
                    prop_assert!(done.is_empty());
                }
            }
        }
    }

    /// Whatever lies in guest memory, taking chains ends, and neither panics nor allocates without bound.
    #[test]
    fn arbitrary_memory_is_survived(seed in prop::collection::vec(any::<u64>(), 1024), features in 0u64..4) {
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 8192).unwrap()]).unwrap());
        // Small numbers are more interesting than large ones.
        let bytes: Vec<u8> = seed.iter().flat_map(|word| (word >> (word % 61)).to_le_bytes()).collect();
        ram.write(Gpa(0), &bytes).unwrap();
        let at = QueueAddresses { size: 64, descriptors: Gpa(0), driver: Gpa(1024), device: Gpa(2048) };
        ram.write_obj(Gpa(1026), &64u16).unwrap();
        let mut queue = Queue::new(ram.clone(), &at, Features(features << 28)).unwrap();
        let mut chain = Chain::new();
        while let Ok(Some(head)) = queue.pop(&mut chain) {
            prop_assert!(chain.readable().bytes() + chain.writable().bytes() <= 1024 * 8192);
            queue.push_used(head, 0);
            let _ = queue.publish();
        }
    }
}

#[test]
fn whoever_looks_sees_chains_that_the_driver_did_not_kick_for() {
    for features in [EVENTS, Features::default()] {
        let (mut driver, mut queue) = pair(8, features);
        let mut chain = Chain::new();
        assert!(!queue.has_more());
        assert!(!queue.arm().unwrap());
        driver.add(&[piece(0x4000, 4)], &[], Layout::Direct).unwrap();
        assert!(driver.needs_kick());
        queue.disarm();
        for _ in 0..3 {
            assert!(queue.has_more());
            let head = queue.pop(&mut chain).unwrap().unwrap();
            queue.push_used(head, 0);
            let _ = queue.publish();
            driver.take_used().unwrap();
            assert!(!queue.has_more());
            driver.add(&[piece(0x4000, 4)], &[], Layout::Direct).unwrap();
            assert!(!driver.needs_kick(), "nobody sleeps");
        }
        let head = queue.pop(&mut chain).unwrap().unwrap();
        queue.push_used(head, 0);
        let _ = queue.publish();
        driver.take_used().unwrap();
        // Woken by something else than a kick, and looking again: the kick that was asked for is not wanted any more.
        assert!(!queue.arm().unwrap());
        queue.disarm();
        driver.add(&[piece(0x4000, 4)], &[], Layout::Direct).unwrap();
        assert!(!driver.needs_kick(), "nobody sleeps any more");
        assert!(queue.has_more());
        let gate = Gate::open();
        let queue = queue.behind(gate.clone());
        gate.set(false);
        assert!(!queue.has_more());
    }
}
