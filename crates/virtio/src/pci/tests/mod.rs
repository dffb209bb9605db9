mod failing;
mod hung;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::pci::MsiMessage;
use memory::GpaRange;

use super::*;
use crate::device::{QueueSetup, StartError, Worker};
use crate::driver::{Driver, Guest, Layout};
use crate::queue::{Chain, Piece};

const BAR: u64 = Guest::BAR;
const COMMON: u64 = Guest::COMMON;
const ISR: u64 = Guest::ISR;
const DEVICE: u64 = Guest::DEVICE;
const NOTIFY: u64 = Guest::NOTIFY;

/// Gives every chain back with its number of bytes; while `hold` is set, its threads do not end.
struct Echo {
    hold: Arc<AtomicBool>,
    resets: Arc<AtomicU64>,
    change: Arc<Mutex<Option<ConfigChange>>>,
    config: [u8; 8],
}

impl VirtioDevice for Echo {
    fn name(&self) -> &'static str {
        "virtio-echo e0"
    }

    fn device_type(&self) -> u16 {
        42
    }

    fn class(&self) -> u32 {
        0xff_0000
    }

    fn features(&self) -> Features {
        Features::EVENT_IDX | Features::INDIRECT_DESC | Features::RING_PACKED | Features(1)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn attach(&mut self, change: ConfigChange) {
        *self.change.lock() = Some(change);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (byte, value) in data.iter_mut().zip(self.config.iter().skip(offset as usize)) {
            *byte = *value;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (value, byte) in self.config.iter_mut().skip(offset as usize).zip(data) {
            *value = *byte;
        }
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<Worker, StartError> {
        let QueueSetup { index, mut queue, kick, mut interrupt, pass, .. } = setup;
        let hold = self.hold.clone();
        let waiter = kick.try_clone()?;
        Ok(Worker::spawn(format!("vq-echo-{index}"), &kick, move |stop| {
            let mut chain = Chain::new();
            while !stop.requested() {
                if !pass.renew() {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                loop {
                    match queue.pop(&mut chain) {
                        Ok(None) => break,
                        Ok(Some(head)) => queue.push_used(head, chain.readable().bytes() as u32),
                        Err(why) => return interrupt.ask_for_reset(&why),
                    }
                }
                if queue.publish() {
                    interrupt.signal();
                }
                if !queue.arm().unwrap() && waiter.read().is_err() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            while hold.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        })?)
    }

    fn reset(&mut self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

/// A guest with an echo device.
struct Echoed {
    guest: Guest,
    hold: Arc<AtomicBool>,
    resets: Arc<AtomicU64>,
    change: Arc<Mutex<Option<ConfigChange>>>,
}

impl std::ops::Deref for Echoed {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl Echoed {
    fn new() -> Echoed {
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 1 << 20).unwrap()]).unwrap());
        let (hold, resets): (Arc<AtomicBool>, Arc<AtomicU64>) = Default::default();
        let change: Arc<Mutex<Option<ConfigChange>>> = Arc::default();
        let config = *b"abcdefgh";
        let echo = Echo { hold: hold.clone(), resets: resets.clone(), change: change.clone(), config };
        Echoed { guest: Guest::new(Box::new(echo), ram), hold, resets, change }
    }

    fn queue(&self, index: u16, features: Features) -> Driver {
        self.add_queue(index, Gpa(0x10000 * (u64::from(index) + 1)), 16, features)
    }

    fn start(&self) -> Driver {
        self.start_with(Features::default())
    }

    fn start_with(&self, more: Features) -> Driver {
        let features = Features::VERSION_1 | Features::EVENT_IDX | Features::RING_RESET | more;
        self.negotiate(features);
        let driver = self.queue(0, features);
        self.go();
        assert_eq!(self.status(), 15);
        driver
    }

    fn echo(&self, driver: &mut Driver) -> bool {
        driver.want_interrupt(0);
        let head = driver.add(&[Piece { gpa: Gpa(0x8000), len: 77 }], &[], Layout::Direct).unwrap();
        self.kick(0);
        until(|| driver.take_used()) == Some((head, 77))
    }
}

fn until<T>(mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        match ready() {
            None if start.elapsed() < Duration::from_secs(10) => std::thread::sleep(Duration::from_millis(1)),
            other => return other,
        }
    }
}

#[test]
fn a_driver_finds_the_windows_by_their_capabilities() {
    let guest = Echoed::new();
    assert_eq!(guest.config_read::<4>(0), [0xf4, 0x1a, 0x40 + 42, 0x10]);
    let found = capability::walk(|offset| guest.config_read::<1>(offset)[0]);
    let vendor: Vec<u16> =
        found.iter().filter(|(id, _)| *id == capability::VENDOR).map(|(_, at)| *at).collect();
    let kinds: Vec<u8> = vendor.iter().map(|at| guest.config_read::<1>(at + 3)[0]).collect();
    assert_eq!(kinds, [1, 2, 3, 4, 5]);
    assert_eq!(guest.config_read::<4>(vendor[1] + 8), 0x3000u32.to_le_bytes());
    assert_eq!(guest.config_read::<4>(vendor[1] + 16), 4u32.to_le_bytes());
    assert_eq!(guest.read::<2>(COMMON + 18), [2, 0]);
    assert_eq!(guest.read::<8>(DEVICE), *b"abcdefgh");
    assert_eq!(guest.read::<4>(DEVICE + 6), *b"gh\0\0");
    guest.write(DEVICE + 1, [b'X']);
    assert_eq!(guest.read::<4>(DEVICE), *b"aXcd");
    assert_eq!(guest.services.doorbells(), [(Gpa(NOTIFY), 2), (Gpa(NOTIFY + 4), 2)]);
}

#[test]
fn features_must_be_offered_and_include_version_1() {
    let guest = Echoed::new();
    guest.negotiate(Features(1));
    assert_eq!(guest.status(), 3, "no VERSION_1");
    guest.write(COMMON + 20, [0]);
    guest.negotiate(Features::VERSION_1 | Features(2));
    assert_eq!(guest.status(), 3, "never offered");
    guest.write(COMMON + 20, [15]);
    assert_eq!(guest.status(), 3 | 64, "went on nevertheless");
    assert!(guest.reports()[0].starts_with("virtio-echo e0: the driver went on"));
    guest.write(COMMON + 20, [0]);
    assert_eq!(guest.status(), 0);
    guest.negotiate(Features::VERSION_1 | Features(1));
    assert_eq!(guest.status(), 11);
    guest.write(COMMON + 8, 0u32.to_le_bytes());
    guest.write(COMMON + 12, 0u32.to_le_bytes());
    assert_eq!(guest.read::<4>(COMMON + 12), 1u32.to_le_bytes(), "fixed after FEATURES_OK");
}

#[test]
fn chains_are_served_and_interrupts_come_by_vector() {
    let guest = Echoed::new();
    let msix = capability::walk(|offset| guest.config_read::<1>(offset)[0])[0].1;
    guest.config_write(msix + 2, &0x8000u16.to_le_bytes());
    let table = BAR + 0x10000 + 16;
    guest.write(table, 0xfee0_0000u64.to_le_bytes());
    guest.write(table + 8, 0x31u32.to_le_bytes());
    guest.write(table + 12, 0u32.to_le_bytes());
    guest.write(COMMON + 22, 0u16.to_le_bytes());
    guest.write(COMMON + 26, 1u16.to_le_bytes());
    assert_eq!(guest.read::<2>(COMMON + 26), [1, 0]);
    guest.write(COMMON + 16, 9u16.to_le_bytes());
    assert_eq!(guest.read::<2>(COMMON + 16), [0xff, 0xff], "there is no vector 9");
    let mut driver = guest.start();
    for _ in 0..100 {
        assert!(guest.echo(&mut driver));
        assert!(until(|| (guest.services.raised(0) > 0).then_some(())).is_some());
    }
    assert_eq!(guest.services.messages(), [Some(MsiMessage { address: 0xfee0_0000, data: 0x31 })]);
    assert_eq!(guest.read::<1>(ISR), [0]);
}

#[test]
fn without_msix_the_pin_is_asserted_until_the_isr_is_read() {
    let guest = Echoed::new();
    let mut driver = guest.start();
    assert!(guest.echo(&mut driver));
    let line = guest.services.lines()[0].clone();
    assert!(until(|| line.asserted().then_some(())).is_some());
    assert_eq!(guest.config_read::<1>(6)[0] & 8, 8);
    guest.config_write(4, &[6, 4]);
    assert!(!line.asserted(), "disabled in the command register");
    guest.config_write(4, &[6, 0]);
    assert!(line.asserted());
    assert_eq!(guest.read::<1>(ISR), [1]);
    assert!(!line.asserted());
    assert_eq!(guest.read::<1>(ISR), [0]);
}

#[test]
fn with_msix_the_pin_stays_released_whatever_the_isr_says() {
    let guest = Echoed::new();
    let mut driver = guest.start();
    assert!(guest.echo(&mut driver));
    let line = guest.services.lines()[0].clone();
    assert!(until(|| line.asserted().then_some(())).is_some());
    let msix = capability::walk(|at| guest.config_read::<1>(at)[0]);
    let msix = msix.into_iter().find(|(id, _)| *id == capability::MSIX).unwrap().1;
    guest.config_write(msix + 2, &[0, 0x80]);
    assert!(!line.asserted(), "it was asserted before");
    guest.config_write(4, &[6, 0]);
    assert!(!line.asserted());
    assert_eq!(guest.config_read::<1>(6)[0] & 8, 0);
    guest.config_write(msix + 2, &[0, 0]);
    assert!(line.asserted(), "nobody has read the ISR status");
}

#[test]
fn the_status_reads_zero_only_when_the_queues_have_drained() {
    let guest = Echoed::new();
    let mut driver = guest.start();
    assert!(guest.echo(&mut driver));
    guest.hold.store(true, Ordering::SeqCst);
    guest.write(COMMON + 20, [0]);
    for _ in 0..20 {
        assert_eq!(guest.status(), 15);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(guest.resets.load(Ordering::SeqCst), 0);
    guest.hold.store(false, Ordering::SeqCst);
    assert!(until(|| (guest.status() == 0).then_some(())).is_some());
    assert_eq!(guest.resets.load(Ordering::SeqCst), 1);
    assert_eq!(guest.read::<2>(COMMON + 28), [0, 0]);
    let mut driver = guest.start();
    assert!(guest.echo(&mut driver));
}

#[test]
fn a_single_queue_can_be_reset_and_used_again() {
    let guest = Echoed::new();
    let mut driver = guest.start();
    assert!(guest.echo(&mut driver));
    guest.hold.store(true, Ordering::SeqCst);
    guest.write(COMMON + 58, 1u16.to_le_bytes());
    assert_eq!(guest.read::<2>(COMMON + 58), [1, 0]);
    guest.write(COMMON + 32, 0u64.to_le_bytes());
    guest.hold.store(false, Ordering::SeqCst);
    assert!(until(|| (guest.read::<2>(COMMON + 58) == [0, 0]).then_some(())).is_some());
    assert_eq!(guest.read::<2>(COMMON + 28), [0, 0]);
    assert_eq!(guest.read::<2>(COMMON + 24), [64, 0], "the longest size again");
    assert_eq!(guest.read::<2>(COMMON + 26), [0xff, 0xff], "no vector");
    assert_eq!(guest.read::<8>(COMMON + 32), [0; 8], "no place");
    let mut driver = guest.queue(0, Features::EVENT_IDX);
    assert_eq!(guest.read::<2>(COMMON + 28), [1, 0]);
    assert!(guest.echo(&mut driver));
    assert_eq!(guest.status(), 15);
}

#[test]
fn a_queue_that_was_only_enabled_is_off_at_once_after_its_reset() {
    let guest = Echoed::new();
    let features = Features::VERSION_1 | Features::RING_RESET;
    guest.negotiate(features);
    guest.queue(0, features);
    guest.write(COMMON + 58, 1u16.to_le_bytes());
    assert_eq!((guest.read::<2>(COMMON + 58), guest.read::<2>(COMMON + 28)), ([0, 0], [0, 0]));
    assert_eq!(guest.read::<8>(COMMON + 32), [0; 8]);
}

#[test]
fn packed_queues_are_served_whatever_their_size_and_reset_one_by_one() {
    let guest = Echoed::new();
    let mut driver = guest.start_with(Features::RING_PACKED);
    for size in [16u16, 7, 1, 64] {
        for _ in 0..100 {
            assert!(guest.echo(&mut driver));
        }
        guest.write(COMMON + 22, 0u16.to_le_bytes());
        guest.write(COMMON + 58, 1u16.to_le_bytes());
        assert!(until(|| (guest.read::<2>(COMMON + 58) == [0, 0]).then_some(())).is_some());
        driver = guest.add_queue(0, Gpa(0x10000), size, Features::RING_PACKED | Features::EVENT_IDX);
        assert_eq!(guest.read::<2>(COMMON + 24), size.to_le_bytes());
    }
    assert!(guest.echo(&mut driver));
    assert_eq!((guest.status(), guest.reports().len()), (15, 0));
    guest.write(COMMON + 24, 65u16.to_le_bytes());
    assert_eq!(guest.read::<2>(COMMON + 24), [64, 0]);
    guest.reset();
    assert!(guest.echo(&mut guest.start()), "and split again, for who wants that");
}

#[test]
fn nonsense_in_a_packed_queue_asks_for_a_reset_and_is_reported() {
    let guest = Echoed::new();
    let mut driver = guest.start_with(Features::RING_PACKED);
    driver.packed().describe_ring(0, Piece { gpa: Gpa(0x8000), len: 0 }, 0, 0);
    guest.kick(0);
    assert!(until(|| (guest.status() == 15 | 64).then_some(())).is_some());
    let report = &guest.reports()[0];
    assert!(report.starts_with("virtio-echo e0: queue 0: the chain at 0 holds an empty buffer"), "{report}");
}

#[test]
fn nonsense_in_a_queue_asks_for_a_reset_and_is_reported() {
    let guest = Echoed::new();
    let mut driver = guest.start();
    driver.split().set_index(999);
    guest.write(NOTIFY, [0, 0]);
    assert!(until(|| (guest.status() == 15 | 64).then_some(())).is_some());
    let report = &guest.reports()[0];
    assert!(report.starts_with("virtio-echo e0: queue 0: the available index 999"), "{report}");
    guest.write(COMMON + 20, [0]);
    assert!(until(|| (guest.status() == 0).then_some(())).is_some());
    let mut driver = guest.start();
    assert!(guest.echo(&mut driver));
}

#[test]
fn a_queue_outside_ram_asks_for_a_reset() {
    let guest = Echoed::new();
    let features = Features::VERSION_1;
    guest.negotiate(features);
    guest.queue(1, features);
    guest.write(COMMON + 22, 0u16.to_le_bytes());
    guest.write(COMMON + 32, 0xdead_0000u64.to_le_bytes());
    guest.write(COMMON + 28, 1u16.to_le_bytes());
    guest.write(COMMON + 20, [15]);
    assert_eq!(guest.status(), 15 | 64);
    assert!(guest.reports()[0].contains("descriptor table"));
}

#[test]
fn the_window_in_configuration_space_reaches_the_registers() {
    let guest = Echoed::new();
    let at = capability::walk(|offset| guest.config_read::<1>(offset)[0]).last().unwrap().1;
    guest.config_write(at + 8, &0x2000u32.to_le_bytes());
    guest.config_write(at + 12, &4u32.to_le_bytes());
    assert_eq!(guest.config_read::<4>(at + 16), *b"abcd");
    guest.config_write(at + 16, b"wxyz");
    assert_eq!(guest.read::<4>(DEVICE), *b"wxyz");
    for (offset, len) in [(0x3fffu32, 4u32), (0x2000, 3), (u32::MAX, 1), (0x2001, 2)] {
        guest.config_write(at + 8, &offset.to_le_bytes());
        guest.config_write(at + 12, &len.to_le_bytes());
        guest.config_write(at + 16, b"!!!!");
    }
    assert_eq!(guest.read::<4>(DEVICE), *b"wxyz");
    // Through the MSI-X BAR, and by way of the doorbell.
    guest.config_write(at + 4, &[2]);
    guest.config_write(at + 8, &8u32.to_le_bytes());
    guest.config_write(at + 12, &4u32.to_le_bytes());
    guest.config_write(at + 16, &7u32.to_le_bytes());
    assert_eq!(guest.read::<4>(BAR + 0x10008), 7u32.to_le_bytes());
}

#[test]
fn a_reset_of_the_machine_ends_everything() {
    let guest = Echoed::new();
    let mut driver = guest.start();
    assert!(guest.echo(&mut driver));
    assert!(guest.bus.reset().is_empty());
    assert_eq!(guest.resets.load(Ordering::SeqCst), 1);
    assert!(guest.services.doorbells().is_empty());
    guest.config_write(4, &[6, 0]);
    assert_eq!(guest.status(), 0);
    let mut driver = guest.start();
    assert!(guest.echo(&mut driver));
}

#[test]
fn without_bus_mastering_no_chain_is_taken_and_no_message_sent() {
    let guest = Echoed::new();
    let msix = capability::walk(|offset| guest.config_read::<1>(offset)[0])[0].1;
    guest.config_write(msix + 2, &0x8000u16.to_le_bytes());
    for vector in 0..2u64 {
        guest.write(Guest::MSIX + 16 * vector, 0xfee0_0000u64.to_le_bytes());
        guest.write(Guest::MSIX + 16 * vector + 12, 0u32.to_le_bytes());
    }
    guest.write(COMMON + 16, 0u16.to_le_bytes());
    guest.write(COMMON + 22, 0u16.to_le_bytes());
    guest.write(COMMON + 26, 1u16.to_le_bytes());
    let (config, queue) = (0, 1);
    let mut driver = guest.start();
    assert!(guest.echo(&mut driver));
    assert!(until(|| (guest.services.raised(queue) > 0).then_some(())).is_some());
    guest.config_write(4, &[2, 0]);
    driver.want_interrupt(0);
    let head = driver.add(&[Piece { gpa: Gpa(0x8000), len: 5 }], &[], Layout::Direct).unwrap();
    guest.kick(0);
    guest.change.lock().as_ref().unwrap().notify();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(driver.take_used(), None);
    assert_eq!((guest.services.messages(), guest.services.raised(queue)), (vec![None, None], 0));
    guest.config_write(4, &[6, 0]);
    assert!(guest.services.messages().iter().all(Option::is_some));
    assert_eq!(until(|| driver.take_used()), Some((head, 5)), "without a further kick");
    assert!(until(|| (guest.services.raised(queue) > 0).then_some(())).is_some());
    assert_eq!(guest.services.raised(config), 1, "what was to be told is told now");
    // The bit is written again and again, but there is nothing more to tell.
    guest.config_write(4, &[2, 0]);
    guest.config_write(4, &[6, 0]);
    assert_eq!(guest.services.raised(config), 0);
}

mod random {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn no_sequence_of_register_writes_harms(
            writes in prop::collection::vec((0u64..0x3010, any::<u64>(), 0usize..4, any::<bool>()), 1..200)
        ) {
            let guest = Echoed::new();
            for (at, value, width, shape) in writes {
                let len = 1 << width;
                // Half of the writes are aimed at the registers that steer.
                let at = if shape { at % 64 / len as u64 * len as u64 } else { at };
                let value = if shape { value % 16 } else { value };
                let mut data = vec![0; len];
                guest.bus.write_memory(Gpa(BAR + at), &value.to_le_bytes()[..len]).transpose().unwrap();
                guest.bus.read_memory(Gpa(BAR + at), &mut data);
            }
            guest.write(COMMON + 20, [0]);
            prop_assert!(until(|| (guest.status() == 0).then_some(())).is_some());
            let mut driver = guest.start();
            prop_assert!(guest.echo(&mut driver));
        }
    }
}
