//! A device whose queues do not end what is under way.

use super::failing::on_a_machine;
use super::*;

/// A guest that uses both queues, whose threads do not end.
fn hung() -> Echoed {
    let guest = Echoed::new();
    let features = Features::VERSION_1 | Features::EVENT_IDX | Features::RING_RESET;
    guest.negotiate(features);
    let mut drivers = [0, 1].map(|index| guest.queue(index, features));
    guest.go();
    assert!(guest.echo(&mut drivers[0]));
    guest.hold.store(true, Ordering::SeqCst);
    guest
}

#[test]
fn the_end_waits_once_for_all_queues_that_hang_and_says_which_are_left_behind() {
    let guest = hung();
    let (hold, reports, ram) = (guest.hold.clone(), guest.reports.clone(), Arc::downgrade(&guest.ram));
    let begin = Instant::now();
    drop(guest);
    let took = begin.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(8)).contains(&took), "{took:?}");
    let reports = reports.lock().clone();
    assert!(reports[0].starts_with("virtio-echo e0: queues 0, 1 have not ended in 5 s"), "{reports:?}");
    assert!(ram.upgrade().is_some(), "those that are left have guest memory until they end");
    hold.store(false, Ordering::SeqCst);
    assert!(until(|| ram.upgrade().is_none().then_some(())).is_some());
}

#[test]
fn a_driver_that_does_not_wait_for_its_reset_is_held_up_for_a_moment_and_reaches_nothing() {
    let guest = hung();
    let begin = Instant::now();
    guest.write(COMMON + 20, [0]);
    for _ in 0..50 {
        guest.write(COMMON + 20, [1]);
        guest.write(COMMON + 8, 1u32.to_le_bytes());
        guest.write(DEVICE, *b"XX");
        guest.write(COMMON + 22, 1u16.to_le_bytes());
        guest.kick(1);
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!((guest.status(), guest.read::<2>(DEVICE)), (15, *b"ab"));
    assert_eq!(guest.resets.load(Ordering::SeqCst), 0);
    guest.hold.store(false, Ordering::SeqCst);
    assert!(until(|| (guest.status() == 0).then_some(())).is_some());
    assert_eq!(guest.read::<2>(COMMON + 22), [0, 0]);
    let mut driver = guest.start();
    assert!(guest.echo(&mut driver));
}

#[test]
fn a_driver_that_does_not_wait_finds_the_device_reset_when_its_queues_end_in_time() {
    let guest = hung();
    let hold = guest.hold.clone();
    guest.write(COMMON + 20, [0]);
    let end = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(10));
        hold.store(false, Ordering::SeqCst);
    });
    guest.write(COMMON + 20, [1]);
    assert_eq!((guest.status(), guest.resets.load(Ordering::SeqCst)), (1, 1));
    end.join().unwrap();
}

#[test]
fn a_machine_whose_queues_hang_is_not_reset_and_says_why() {
    let (_services, function, hold) = on_a_machine();
    let at = |offset: u64, data: &[u8]| function.write_bar(0, offset, data).unwrap();
    function.write_config(4, &[6, 0]).unwrap();
    for status in [1, 3] {
        at(20, &[status]);
    }
    at(8, &1u32.to_le_bytes());
    at(12, &1u32.to_le_bytes());
    at(20, &[11]);
    for (register, place) in [(32, 0x1000u64), (40, 0x2000), (48, 0x3000)] {
        at(register, &place.to_le_bytes());
    }
    at(28, &1u16.to_le_bytes());
    at(20, &[15]);
    hold.store(true, Ordering::SeqCst);
    let begin = Instant::now();
    let why = function.reset_within(Duration::from_millis(50)).unwrap_err().to_string();
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(why.contains("virtio-echo e0") && why.contains("queue 0 has not ended"), "{why}");
    hold.store(false, Ordering::SeqCst);
    function.reset_within(Duration::from_secs(10)).unwrap();
    let mut status = [0xff];
    function.read_bar(0, 20, &mut status);
    assert_eq!(status, [0]);
}
