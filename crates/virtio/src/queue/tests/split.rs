//! What only split queues have.

use super::*;
use crate::driver::SplitDriver;

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
fn nonsense_is_an_error_of_its_kind() {
    let malformed = |features: Features, spoil: &dyn Fn(&mut SplitDriver)| {
        let (mut driver, mut queue) = pair(8, features);
        spoil(driver.split());
        driver.split().set_index(1);
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
    let backwards = |d: &mut SplitDriver| {
        d.describe(table, 0, ok, 2, Some(1));
        d.describe(table, 1, ok, 0, None);
    };
    assert!(matches!(malformed(EVENTS, &backwards), M::ReadableAfterWritable { head: 0 }));
    let indirect =
        |at: u64, len: u32, next| move |d: &mut SplitDriver| d.describe(table, 0, piece(at, len), 4, next);
    assert!(matches!(malformed(EVENTS, &indirect(0x4000, 17, None)), M::IndirectLength { len: 17, .. }));
    assert!(matches!(malformed(EVENTS, &indirect(0x4000, 0, None)), M::IndirectLength { .. }));
    assert!(matches!(malformed(EVENTS, &indirect(0x4000, 0x10000, None)), M::IndirectLength { .. }));
    assert!(matches!(malformed(EVENTS, &indirect(0xffff8, 16, None)), M::OutsideRam { .. }));
    assert!(matches!(malformed(EVENTS, &indirect(0x4000, 16, Some(1))), M::UnexpectedIndirect { .. }));
    assert!(matches!(
        malformed(Features::default(), &indirect(0x4000, 16, None)),
        M::UnexpectedIndirect { .. }
    ));
    let nested = |d: &mut SplitDriver| {
        d.describe(table, 0, piece(0x4000, 16), 4, None);
        d.describe(Gpa(0x4000), 0, piece(0x5000, 16), 4, None);
    };
    assert!(matches!(malformed(EVENTS, &nested), M::UnexpectedIndirect { .. }));
    let looping = |d: &mut SplitDriver| {
        d.describe(table, 0, piece(0x4000, 32), 4, None);
        d.describe(Gpa(0x4000), 0, ok, 0, Some(1));
        d.describe(Gpa(0x4000), 1, ok, 0, Some(0));
    };
    assert!(matches!(malformed(EVENTS, &looping), M::Loop { size: 2, .. }));

    let (mut driver, mut queue) = pair(8, EVENTS);
    driver.split().set_index(9);
    assert_eq!(queue.pop(&mut Chain::new()), Err(M::IndexJump { index: 9, next: 0, size: 8 }));
}

#[test]
fn a_driver_cannot_have_more_chains_under_way_than_descriptors() {
    let (mut driver, mut queue) = pair(4, EVENTS);
    driver.split().describe(BASE, 0, piece(0x4000, 16), 0, None);
    let mut heads = Vec::new();
    for index in 1..=4 {
        driver.split().set_index(index);
        heads.push(queue.pop(&mut Chain::new()).unwrap().unwrap());
    }
    driver.split().set_index(5);
    assert_eq!(queue.pop(&mut Chain::new()), Err(Malformed::TooManyChains { size: 4 }));
}
