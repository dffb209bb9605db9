#![allow(clippy::let_underscore_must_use)] // whether an interrupt is wanted does not matter everywhere

mod packed;
mod random;
mod split;

use std::sync::Arc;

use memory::{Gpa, GpaRange, Ram};

use super::*;
use crate::driver::{Driver, Layout};

const BASE: Gpa = Gpa(0x1000);
const EVENTS: Features = Features(Features::EVENT_IDX.0 | Features::INDIRECT_DESC.0);
/// Split and packed.
const RINGS: [Features; 2] = [Features(0), Features::RING_PACKED];
/// With all that concerns the queue, and with none of it.
const KINDS: [Features; 4] =
    [EVENTS, Features(0), Features(EVENTS.0 | Features::RING_PACKED.0), Features::RING_PACKED];

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
fn a_chain_arrives_with_its_readable_and_writable_pieces() {
    for (layout, kind) in [Layout::Direct, Layout::Indirect(Gpa(0x8003))]
        .into_iter()
        .flat_map(|layout| RINGS.map(|kind| (layout, kind)))
    {
        let (mut driver, mut queue) = pair(8, EVENTS | kind);
        let mut chain = Chain::new();
        assert_eq!(queue.pop(&mut chain), Ok(None));
        queue.ram().write(Gpa(0x4000), &[1, 2, 3, 4]).unwrap();
        queue.ram().write(Gpa(0x5000), &[5, 6, 7, 8]).unwrap();
        let head = driver.add(&[piece(0x4000, 4), piece(0x5000, 4)], &[piece(0x6000, 100)], layout).unwrap();
        let taken = queue.pop(&mut chain).unwrap().unwrap();
        assert_eq!(taken.id(), head);
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
fn interrupts_come_when_the_driver_asked_for_them() {
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
    for kind in RINGS {
        let (mut driver, mut queue) = pair(8, EVENTS | kind);
        assert!(!queue.publish(), "nothing happened");
        // Twice round the ring and more, so that every place is asked for on both laps.
        for _ in 0..7 {
            driver.want_interrupt(2);
            assert!(!complete(&mut driver, &mut queue, 2));
            assert!(complete(&mut driver, &mut queue, 1));
            driver.want_interrupt(1);
            assert!(complete(&mut driver, &mut queue, 3));
            driver.want_interrupt(0);
            assert!(complete(&mut driver, &mut queue, 2));
            assert!(!complete(&mut driver, &mut queue, 3));
        }

        let (mut driver, mut queue) = pair(8, kind);
        assert!(complete(&mut driver, &mut queue, 1));
        driver.want_no_interrupts();
        assert!(!complete(&mut driver, &mut queue, 1));
    }
}

#[test]
fn kicks_are_asked_for_only_at_the_edge_of_sleep() {
    for features in KINDS {
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

#[test]
fn whoever_looks_sees_chains_that_the_driver_did_not_kick_for() {
    for features in KINDS {
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
    }
}
