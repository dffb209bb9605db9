//! What only packed queues have.

use super::*;
use crate::driver::PackedDriver;

const PACKED: Features = Features(EVENTS.0 | Features::RING_PACKED.0);
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

#[test]
fn a_ring_is_refused_unless_its_parts_are_aligned_ram() {
    let ram = ram();
    let good = Driver::new(ram.clone(), BASE, 7, PACKED).addresses();
    let refused = |at| Queue::new(ram.clone(), &at, PACKED).err();
    assert_eq!(refused(good), None, "any size does");
    assert_eq!(refused(QueueAddresses { size: 0, ..good }), Some(QueueRefused::PackedSize(0)));
    assert_eq!(refused(QueueAddresses { size: 32769, ..good }), Some(QueueRefused::PackedSize(32769)));
    let skewed = refused(QueueAddresses { driver: Gpa(0x2002), ..good });
    assert!(matches!(skewed, Some(QueueRefused::Alignment { alignment: 4, .. })));
    let skewed = refused(QueueAddresses { descriptors: Gpa(0x2008), ..good });
    assert!(matches!(skewed, Some(QueueRefused::Alignment { part: "descriptor ring", .. })));
    let beyond = refused(QueueAddresses { descriptors: Gpa((1 << 20) - 96), ..good });
    assert!(matches!(beyond, Some(QueueRefused::OutsideRam { part: "descriptor ring", len: 112, .. })));
    let beyond = refused(QueueAddresses { device: Gpa(1 << 20), ..good });
    assert!(matches!(beyond, Some(QueueRefused::OutsideRam { len: 4, .. })));
}

#[test]
fn nonsense_is_an_error_of_its_kind() {
    let malformed = |features: Features, spoil: &dyn Fn(&mut PackedDriver)| {
        let (mut driver, mut queue) = pair(8, features);
        spoil(driver.packed());
        queue.pop(&mut Chain::new()).unwrap_err()
    };
    let ok = piece(0x4000, 16);
    type M = Malformed;
    let first = |piece: Piece, flags: u16| move |d: &mut PackedDriver| d.describe_ring(0, piece, flags, 0);
    assert!(matches!(malformed(PACKED, &first(piece(0x4000, 0), 0)), M::Empty { head: 0, at: Gpa(0x4000) }));
    assert!(matches!(malformed(PACKED, &first(piece(0xfffff, 2), 0)), M::OutsideRam { len: 2, .. }));
    assert!(matches!(malformed(PACKED, &first(piece(u64::MAX, 2), 0)), M::OutsideRam { .. }));
    let endless = |d: &mut PackedDriver| (0..8).for_each(|at| d.describe_ring(at, ok, NEXT, 0));
    assert!(matches!(malformed(PACKED, &endless), M::Loop { head: 0, size: 8 }));
    let backwards = |d: &mut PackedDriver| {
        d.describe_ring(0, ok, WRITE | NEXT, 0);
        d.describe_ring(1, ok, 0, 0);
    };
    assert!(matches!(malformed(PACKED, &backwards), M::ReadableAfterWritable { head: 0 }));
    for len in [0, 17, 0x10000] {
        let indirect = first(piece(0x4000, len), INDIRECT);
        assert!(matches!(malformed(PACKED, &indirect), M::IndirectLength { .. }));
    }
    assert!(matches!(malformed(PACKED, &first(piece(0xffff8, 16), INDIRECT)), M::OutsideRam { .. }));
    assert!(matches!(malformed(PACKED, &first(ok, INDIRECT | NEXT)), M::UnexpectedIndirect { .. }));
    assert!(matches!(malformed(Features::RING_PACKED, &first(ok, INDIRECT)), M::UnexpectedIndirect { .. }));
}

#[test]
fn of_the_flags_in_an_indirect_table_only_the_one_for_writing_counts() {
    let (mut driver, mut queue) = pair(8, PACKED);
    let (driver, table) = (driver.packed(), Gpa(0x8000));
    driver.describe(table, 0, piece(0x4000, 16), INDIRECT, 99);
    driver.describe(table, 1, piece(0x5000, 16), WRITE | NEXT, 98);
    driver.describe_ring(0, piece(table.0, 32), INDIRECT, 5);
    let mut chain = Chain::new();
    let head = queue.pop(&mut chain).unwrap().unwrap();
    assert_eq!((head.id(), chain.readable().bytes(), chain.writable().bytes()), (5, 16, 16));
}

#[test]
fn descriptors_of_another_lap_are_not_there() {
    let (mut driver, mut queue) = pair(4, PACKED);
    let mut chain = Chain::new();
    driver.packed().describe_ring(4, piece(0x4000, 1), 0, 0);
    assert_eq!(queue.pop(&mut chain), Ok(None), "available on the second lap, and this is the first");
    assert!(!queue.has_more());
    for _ in 0..4 {
        driver.add(&[piece(0x4000, 1)], &[], Layout::Direct).unwrap();
        let head = queue.pop(&mut chain).unwrap().unwrap();
        queue.push_used(head, 0);
    }
    assert_eq!(queue.pop(&mut chain), Ok(None));
    assert!(queue.publish());
    assert_eq!(queue.pop(&mut chain), Ok(None), "what was just used is not available");
    driver.packed().describe_ring(8, piece(0x4000, 1), 0, 0);
    assert_eq!(queue.pop(&mut chain), Ok(None), "the first lap's flags again");
}

#[test]
fn a_driver_cannot_take_descriptors_back_that_it_was_not_given() {
    let (mut driver, mut queue) = pair(4, PACKED);
    let mut chain = Chain::new();
    let mut heads = Vec::new();
    for at in 0..4 {
        driver.packed().describe_ring(at, piece(0x4000, 1), 0, 0);
        heads.push(queue.pop(&mut chain).unwrap().unwrap());
    }
    driver.packed().describe_ring(4, piece(0x4000, 1), 0, 0);
    assert_eq!(queue.pop(&mut chain), Err(Malformed::TooManyChains { size: 4 }));

    // Not even what is noted as used and not shown yet.
    queue.push_used(heads.remove(0), 0);
    driver.packed().describe_ring(4, piece(0x4000, 1), 0, 0);
    assert_eq!(queue.pop(&mut chain), Err(Malformed::TooManyChains { size: 4 }));

    // A chain may not run into others either.
    let (mut driver, mut queue) = pair(4, PACKED);
    driver.packed().describe_ring(0, piece(0x4000, 1), 0, 0);
    let _under_way = queue.pop(&mut chain).unwrap().unwrap();
    (1..5).for_each(|at| driver.packed().describe_ring(at, piece(0x4000, 1), NEXT, 0));
    assert_eq!(queue.pop(&mut chain), Err(Malformed::Overrun { head: 1, size: 4 }));
}

#[test]
fn used_chains_appear_all_at_once() {
    let (mut driver, mut queue) = pair(8, PACKED);
    let mut chain = Chain::new();
    let mut heads: Vec<Head> = Vec::new();
    for count in 1..=3 {
        driver.add(&vec![piece(0x4000, 1); count], &[], Layout::Direct).unwrap();
        heads.push(queue.pop(&mut chain).unwrap().unwrap());
    }
    for head in heads.into_iter().rev() {
        queue.push_used(head, 9);
        assert_eq!(driver.take_used(), None);
    }
    let _ = queue.publish();
    assert_eq!(std::iter::from_fn(|| driver.take_used()).collect::<Vec<_>>(), [(2, 9), (1, 9), (0, 9)]);
    assert!(!queue.publish(), "there is nothing new");
}
