//! What the three models of disks do when their driver switches bus mastering off, as a kernel does before it starts
//! another one: over a disk that is late, and a disk that gives up what it is asked to.

#[path = "../virtio_blk/late.rs"]
#[allow(dead_code, reason = "the tests of virtio-blk use all of it")]
mod late;
mod models;
mod willing;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use disk::Disk;
use late::{CONTENTS, Late};
use memory::Gpa;
use models::{BLOCK, DATA, Model, RAM};
use willing::Willing;

/// The whole of the guest's memory.
fn memory(model: &impl Model) -> Vec<u8> {
    let mut bytes = vec![0; RAM as usize];
    model.ram().read(Gpa(0), &mut bytes).unwrap();
    bytes
}

/// Where two images of memory differ first.
fn difference(before: &[u8], after: &[u8]) -> Option<Gpa> {
    if before == after {
        return None;
    }
    before.iter().zip(after).position(|(a, b)| a != b).map(|at| Gpa(at as u64))
}

/// Waits until the disk has so many requests.
fn reaches_the_disk(late: &late::Ledger, count: usize) {
    let begin = Instant::now();
    while late.begun() < count {
        assert!(begin.elapsed() < Duration::from_secs(10), "the reads do not begin");
        sleep(Duration::from_millis(1));
    }
}

fn is_there(model: &impl Model, block: u64) -> bool {
    let mut data = vec![0; BLOCK as usize];
    model.ram().read(Gpa(DATA + BLOCK * block), &mut data).unwrap();
    data.iter().all(|byte| *byte == CONTENTS)
}

fn answers<M: Model>(model: &mut M, count: usize) {
    let (begin, mut answered) = (Instant::now(), 0);
    while answered < count {
        answered += model.answered();
        assert!(begin.elapsed() < Duration::from_secs(20), "{answered} of {count}: {:?}", model.reports());
        sleep(Duration::from_micros(50));
    }
    assert_eq!(answered, count);
}

fn late<M: Model>(delay: Duration) -> (M, late::Ledger) {
    let late = Late::new(delay);
    let ledger = late.ledger();
    (M::new(Arc::new(Disk::new("late", Box::new(late)))), ledger)
}

fn nothing_is_written_once_the_command_is_answered<M: Model>() {
    let (mut model, ledger) = late::<M>(Duration::from_millis(150));
    for block in 0..4 {
        model.read(block);
    }
    reaches_the_disk(&ledger, 4);
    model.set_bus_master(false);
    assert_eq!(ledger.under_way(), 0, "the disk has guest memory");
    let before = memory(&model);
    let raised = model.raised();
    assert!(model.services().messages().iter().all(Option::is_none), "messages are writes to memory");
    sleep(Duration::from_millis(400));
    assert_eq!(difference(&before, &memory(&model)), None, "what had begun is written later");
    answers(&mut model, 4);
    assert!((0..4).all(|block| is_there(&model, block)), "what was under way was finished");
    assert!(raised > 0, "and told of");
    // What comes now waits.
    for block in 4..6 {
        model.read(block);
    }
    let before = memory(&model);
    sleep(Duration::from_millis(400));
    assert_eq!(difference(&before, &memory(&model)), None, "what came later is begun");
    assert_eq!((ledger.under_way(), model.raised()), (0, 0));
    model.set_bus_master(true);
    answers(&mut model, 2);
    assert!(is_there(&model, 4) && is_there(&model, 5));
    assert!(model.reports().is_empty(), "{:?}", model.reports());
}

fn a_driver_that_toggles_the_bit_under_load_loses_nothing<M: Model>() {
    let (mut model, ledger) = late::<M>(Duration::from_micros(300));
    for round in 0..150u64 {
        let count = 1 + round % 8;
        for block in 0..count {
            model.ram().zero(Gpa(DATA + BLOCK * block), BLOCK).unwrap();
            model.read(block);
        }
        sleep(Duration::from_micros(round * 37 % 2000));
        model.set_bus_master(false);
        assert_eq!(ledger.under_way(), 0);
        let before = memory(&model);
        if round % 25 == 0 {
            sleep(Duration::from_millis(5));
        }
        assert_eq!(difference(&before, &memory(&model)), None, "in round {round}");
        model.set_bus_master(true);
        answers(&mut model, count as usize);
        assert!((0..count).all(|block| is_there(&model, block)), "in round {round}");
    }
    assert!(model.reports().is_empty(), "{:?}", model.reports());
}

fn of_a_disk_that_hangs_people_learn_which_memory_it_may_write<M: Model>() {
    let (mut model, ledger) = late::<M>(Duration::from_secs(13));
    model.read(3);
    reaches_the_disk(&ledger, 1);
    let begin = Instant::now();
    model.set_bus_master(false);
    let took = begin.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(12)).contains(&took), "{took:?}");
    let reports = model.reports();
    let place = format!("{:#x}-{:#x}", DATA + 3 * BLOCK, DATA + 4 * BLOCK - 1);
    assert!(reports.len() == 1 && reports[0].contains(&place), "{reports:?}");
    assert!(reports[0].contains("has not ended 1 of its requests in 10 s"), "{reports:?}");
    let mut before = memory(&model);
    while ledger.under_way() > 0 {
        assert!(begin.elapsed() < Duration::from_secs(30));
        sleep(Duration::from_millis(5));
    }
    sleep(Duration::from_millis(200));
    // What the disk does cannot be helped; what the device does can.
    let place = (DATA + 3 * BLOCK) as usize..(DATA + 4 * BLOCK) as usize;
    before[place].fill(CONTENTS);
    assert_eq!(
        difference(&before, &memory(&model)),
        None,
        "the end of the read is told without being allowed to"
    );
    assert_eq!(model.answered(), 0);
    model.set_bus_master(true);
    answers(&mut model, 1);
}

fn what_a_disk_gives_up_is_asked_for_again<M: Model>() {
    let willing = Willing::new();
    let orders = willing.orders();
    let mut model = M::new(Arc::new(Disk::new("willing", Box::new(willing))));
    orders.hold.store(true, Ordering::SeqCst);
    for block in 0..3 {
        model.read(block);
    }
    orders.reaches(3);
    let begin = Instant::now();
    model.set_bus_master(false);
    let took = begin.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(9)).contains(&took), "{took:?}");
    assert!(model.reports().is_empty(), "nothing is left to write: {:?}", model.reports());
    assert_eq!((orders.under_way(), model.answered()), (0, 0));
    let before = memory(&model);
    orders.hold.store(false, Ordering::SeqCst);
    sleep(Duration::from_millis(50));
    assert_eq!(difference(&before, &memory(&model)), None);
    model.set_bus_master(true);
    answers(&mut model, 3);
    assert!((0..3).all(|block| is_there(&model, block)));
}

fn a_reset_of_the_machine_ends_what_is_under_way_and_tells_nobody<M: Model>() {
    let (mut model, ledger) = late::<M>(Duration::from_millis(100));
    for block in 0..4 {
        model.read(block);
    }
    reaches_the_disk(&ledger, 4);
    let begin = Instant::now();
    model.reset();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(ledger.under_way(), 0, "the disk has guest memory");
    let before = memory(&model);
    sleep(Duration::from_millis(200));
    assert_eq!(difference(&before, &memory(&model)), None);
    assert!(model.reports().is_empty(), "{:?}", model.reports());
}

fn a_reset_does_not_wait_for_bus_mastering<M: Model>() {
    let (mut model, ledger) = late::<M>(Duration::from_millis(1));
    model.read(0);
    answers(&mut model, 1);
    model.set_bus_master(false);
    // Left in memory, and never begun.
    model.read(1);
    let begin = Instant::now();
    model.reset();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!((ledger.under_way(), is_there(&model, 1)), (0, false));
}

macro_rules! tests {
    ($model:ident: $($test:ident)*) => {
        mod $model {
            $(
                #[test]
                fn $test() {
                    super::$test::<super::models::$model::Machine>();
                }
            )*
        }
    };
    ($($model:ident)*) => {
        $(
            tests! {
                $model:
                nothing_is_written_once_the_command_is_answered
                a_driver_that_toggles_the_bit_under_load_loses_nothing
                of_a_disk_that_hangs_people_learn_which_memory_it_may_write
                what_a_disk_gives_up_is_asked_for_again
                a_reset_of_the_machine_ends_what_is_under_way_and_tells_nobody
                a_reset_does_not_wait_for_bus_mastering
            }
        )*
    };
}

tests! { virtio_blk nvme ahci }
