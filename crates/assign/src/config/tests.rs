use super::capabilities::MsiLayout;
use super::*;
use memory::{Gpa, GpaRange};
use pci::fake::FakeServices;
use pci::{Address, BarKind, Msix, Pin, capability};
use proptest::prelude::*;
use std::convert::Infallible;
use std::sync::Arc;

/// A function's hardware: bytes of configuration space.
pub(crate) struct Fake(Vec<u8>);

impl Fake {
    fn new() -> Fake {
        let mut fake = Fake(vec![0; 4096]);
        fake.set(0x00, &[0x36, 0x1b, 0x10, 0x00, 0x06, 0x04, 0x10, 0x00, 0x02, 0x02, 0x08, 0x01]);
        fake.set(0x0e, &[0x80]);
        fake.set(0x2c, &[0xf4, 0x1a, 0x00, 0x11]);
        fake
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Chains capabilities given as (place, number, body).
    fn chain(&mut self, capabilities: &[(u8, u8, &[u8])]) {
        let mut link = 0x34;
        for (at, id, body) in capabilities {
            self.0[link] = *at;
            self.set(usize::from(*at), &[*id, 0]);
            self.set(usize::from(*at) + 2, body);
            link = usize::from(*at) + 1;
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::read(4096, |offset, data| {
            data.copy_from_slice(&self.0[usize::from(offset)..][..data.len()]);
            Ok::<_, Infallible>(())
        })
        .unwrap()
    }
}

fn windows() -> Windows {
    Windows {
        memory32: GpaRange::new(Gpa(0xc000_0000), 0x2000_0000).unwrap(),
        memory64: GpaRange::new(Gpa(0x40_0000_0000), 0x10_0000_0000),
        ports: (0xc000, 0xffff),
    }
}

fn bars() -> [BarSpec; 1] {
    [BarSpec::new(0, BarKind::Memory64 { prefetchable: false }, 0x4000).unwrap()]
}

pub(crate) fn config(fake: &Fake) -> Config {
    let (at, services) = (Address::new(0, 3, 0).unwrap(), Arc::new(FakeServices::default()));
    let hardware = fake.snapshot();
    let msi = msi(&hardware).map(|layout| Msi::new(at, services.clone(), layout.count, layout.maskable));
    let msix = msix(&hardware)
        .map(|layout| Msix::new(at, services, layout.count).capability(layout.table, layout.pending));
    let features = Features { msi: msi.as_ref(), msix, resettable: true, pin: Some(Pin::A) };
    Config::new(&hardware, &bars(), &windows(), &features)
}

/// The 32 bits the guest sees, with hardware that reads as its bytes are now.
fn see(config: &Config, fake: &Fake, at: u16) -> u32 {
    let mut bytes = [0; 4];
    let read = config.read(at, &mut bytes, |offset, data| {
        data.copy_from_slice(&fake.0[usize::from(offset)..][..data.len()]);
        Ok::<_, Infallible>(())
    });
    read.unwrap();
    u32::from_le_bytes(bytes)
}

fn seen(config: &Config, fake: &Fake) -> Vec<(u8, u16)> {
    capability::walk(|at| see(config, fake, at & !3).to_le_bytes()[usize::from(at & 3)])
}

/// An NVMe controller as QEMU makes it: MSI-X, PCI Express, power management.
pub(crate) fn nvme() -> Fake {
    let mut fake = Fake::new();
    let mut express = vec![0; 0x3a];
    express[0] = 0x02;
    express[5] = 0x80;
    express[6 - 1 + 1] = 0x10;
    express[2..6].copy_from_slice(&0x1000_8000u32.to_le_bytes());
    express[10..14].copy_from_slice(&0x0011_0c11u32.to_le_bytes());
    fake.chain(&[
        (0x40, capability::MSIX, &[0x40, 0x80, 0x00, 0x20, 0, 0, 0x00, 0x30, 0, 0]),
        (0x80, capability::EXPRESS, &express),
        (0x60, capability::POWER_MANAGEMENT, &[0xff, 0xff, 0x08, 0, 0, 0]),
    ]);
    fake
}

#[test]
fn the_guest_sees_who_the_device_is_and_what_is_allowed_of_it() {
    let fake = nvme();
    let config = config(&fake);
    assert_eq!(see(&config, &fake, 0), 0x0010_1b36);
    assert_eq!(see(&config, &fake, 8), 0x0108_0202);
    assert_eq!(see(&config, &fake, 0x0c), 0, "one function, whatever the hardware has");
    assert_eq!(see(&config, &fake, 0x2c), 0x1100_1af4);
    assert_eq!(see(&config, &fake, 0x3c), 0x0000_0100);
    assert_eq!(seen(&config, &fake), [(0x11, 0x40), (0x10, 0x80), (0x01, 0x60)]);
}

#[test]
fn on_the_root_bus_the_device_is_an_integrated_endpoint_without_a_link() {
    let fake = nvme();
    let config = config(&fake);
    assert_eq!(see(&config, &fake, 0x80) >> 16, 0x0092);
    assert_eq!(see(&config, &fake, 0x84), 0x1000_8000);
    assert_eq!(see(&config, &fake, 0x8c), 0, "link capabilities");
}

#[test]
fn power_states_are_for_show_and_nothing_is_passed_on() {
    let fake = nvme();
    let mut config = config(&fake);
    assert_eq!(see(&config, &fake, 0x60) >> 16, 7, "no PME, no D1 or D2");
    assert_eq!(config.write(0x64, &[0x03, 0x81]), []);
    assert_eq!(see(&config, &fake, 0x64), 0x0000_000b);
}

#[test]
fn of_the_command_register_only_harmless_bits_reach_the_hardware_which_decodes_always() {
    let fake = nvme();
    let mut config = config(&fake);
    assert_eq!(config.write(4, &[0x02, 0x00]), [], "decoding is the bus's");
    assert_eq!(config.write(4, &[0x06, 0x04]), [Effect::Command(0x0407)]);
    assert_eq!(config.write(4, &[0xff, 0xff]), [Effect::Command(0x0547)]);
    config.command_taken(0x0547);
    assert_eq!(config.write(4, &[0x00, 0x00]), [Effect::Command(0x0003)]);
}

#[test]
fn the_status_register_is_the_hardwares_and_its_errors_can_be_cleared() {
    let mut fake = nvme();
    let mut config = config(&fake);
    fake.set(6, &[0x08, 0x20]);
    assert_eq!(see(&config, &fake, 4), 0x2018_0000, "with a list of capabilities");
    assert_eq!(config.write(6, &[0xff, 0xff]), [Effect::ClearStatus(0xf900)]);
}

#[test]
fn function_level_reset_is_asked_for_in_device_control_and_not_by_other_bits() {
    let fake = nvme();
    let mut config = config(&fake);
    assert_eq!(config.write(0x88, &[0x1f, 0x20]), []);
    assert_eq!(see(&config, &fake, 0x88), 0x201f);
    assert_eq!(config.write(0x88, &[0x1f, 0xa0]), [Effect::Reset]);
    assert_eq!(config.write(0x89, &[0x80]), [Effect::Reset]);
    assert_eq!(see(&config, &fake, 0x88) & 0x8000, 0);
}

#[test]
fn msix_control_is_reported_and_the_rest_of_the_capability_is_fixed() {
    let fake = nvme();
    let mut config = config(&fake);
    assert_eq!(see(&config, &fake, 0x44), 0x2000);
    assert_eq!(config.write(0x40, &[0xff; 4]), [Effect::Msix(0xc040)]);
    assert_eq!(config.write(0x44, &[0xff; 8]), []);
    assert_eq!(see(&config, &fake, 0x48), 0x3000);
}

#[test]
fn a_32_bit_msi_that_has_no_room_to_grow_moves_to_a_gap() {
    let mut fake = Fake::new();
    fake.chain(&[
        (0x40, capability::MSI, &[0x80 & 0x7f, 0x00]),
        (0x4c, capability::POWER_MANAGEMENT, &[3, 0, 0, 0, 0, 0]),
    ]);
    let mut config = config(&fake);
    assert_eq!(msi(&fake.snapshot()), Some(MsiLayout { count: 1, maskable: false }));
    assert_eq!(seen(&config, &fake), [(0x05, 0x54), (0x01, 0x4c)]);
    assert_eq!(config.write(0x56, &[1, 0]), [Effect::Msi]);
    assert_eq!(config.msi_body()[0], 0x81);
}

#[test]
fn of_two_msi_capabilities_only_the_first_is_shown() {
    let mut fake = Fake::new();
    fake.chain(&[
        (0x40, capability::MSI, &[0, 0]),
        (0x4c, capability::POWER_MANAGEMENT, &[3, 0, 0, 0, 0, 0]),
        (0x58, capability::MSI, &[0x80, 0x01]),
    ]);
    let mut config = config(&fake);
    let before = seen(&config, &fake);
    assert_eq!(before, [(0x05, 0x54), (0x01, 0x4c)], "moved over the one that is not shown");
    for at in (0x40..0x100).step_by(4) {
        config.write(at, &[0xff; 4]);
    }
    assert_eq!(seen(&config, &fake), before);
}

#[test]
fn vital_product_data_can_be_read_and_never_written() {
    let mut fake = Fake::new();
    fake.chain(&[(0x40, capability::VPD, &[0, 0x80, 1, 2, 3, 4])]);
    let mut config = config(&fake);
    assert_eq!(see(&config, &fake, 0x44), 0x0403_0201);
    assert_eq!(config.write(0x42, &[0x10, 0x00]), [Effect::Vpd(0x42, 0x10)]);
    assert_eq!(config.write(0x42, &[0x10, 0x80]), []);
    assert_eq!(config.write(0x44, &[0xff; 4]), []);
}

#[test]
fn a_vendors_capability_is_read_from_the_hardware_and_unknown_ones_are_not_there() {
    let mut fake = Fake::new();
    fake.chain(&[
        (0x40, capability::VENDOR, &[8, 0xaa, 0xbb]),
        (0x50, 0x14, &[1, 2]),
        (0x60, capability::VENDOR, &[200]),
    ]);
    fake.set(0xa0, &[9]);
    let mut config = config(&fake);
    assert_eq!(seen(&config, &fake), [(0x09, 0x40), (0x09, 0x60)]);
    fake.set(0x43, &[0xcc]);
    assert_eq!(see(&config, &fake, 0x40), 0xcc08_6009);
    assert_eq!(config.write(0x43, &[0]), []);
    assert_eq!(see(&config, &fake, 0x50), 0);
    assert_eq!(see(&config, &fake, 0xa0), 9);
}

#[test]
fn a_chain_that_bites_its_tail_is_shown_once() {
    let mut fake = Fake::new();
    fake.chain(&[(0x40, capability::POWER_MANAGEMENT, &[3, 0]), (0x50, capability::VENDOR, &[4, 0])]);
    fake.set(0x51, &[0x40]);
    let config = config(&fake);
    assert_eq!(seen(&config, &fake), [(0x01, 0x40), (0x09, 0x50)]);
}

#[test]
fn of_the_extended_space_only_the_allowed_is_shown_in_a_chain_of_its_own() {
    let mut fake = nvme();
    fake.set(0x100, &0x1501_0010u32.to_le_bytes()); // SR-IOV first
    fake.set(0x150, &0x1681_0003u32.to_le_bytes()); // serial number
    fake.set(0x154, &[1, 2, 3, 4, 5, 6, 7, 8]);
    fake.set(0x168, &0x1a01_000fu32.to_le_bytes()); // ATS
    fake.set(0x1a0, &0x0002_0001u32.to_le_bytes()); // AER
    fake.set(0x1a4, &[0xff; 0x28]);
    let mut config = config(&fake);
    let chain = capability::walk_extended(|at| see(&config, &fake, at));
    assert_eq!(chain, [(0, 0, 0x100), (3, 1, 0x150), (1, 2, 0x1a0)]);
    assert_eq!(see(&config, &fake, 0x158), 0x0807_0605);
    assert_eq!((see(&config, &fake, 0x104), see(&config, &fake, 0x16c)), (0, 0));
    assert_eq!((see(&config, &fake, 0x1a4), see(&config, &fake, 0x1a8)), (0, u32::MAX));
    assert_eq!(config.write(0x1a4, &[0xff; 8]), []);
    assert_eq!(see(&config, &fake, 0x1a4), 0);
}

#[test]
fn without_extended_capabilities_to_show_the_space_is_empty() {
    let mut fake = nvme();
    fake.set(0x100, &0x1501_0010u32.to_le_bytes());
    let config = config(&fake);
    assert_eq!(see(&config, &fake, 0x100), 0);
}

proptest! {
    #[test]
    fn no_hardware_and_no_guest_makes_it_panic_and_only_allowed_writes_get_through(
        noise in prop::collection::vec(any::<u8>(), 4096),
        writes in prop::collection::vec((0u16..4096, prop::collection::vec(any::<u8>(), 1..9)), 0..32),
    ) {
        let mut fake = Fake(noise);
        fake.0[6] |= 0x10;
        let mut config = config(&fake);
        for (offset, data) in writes {
            for effect in config.write(offset, &data) {
                match effect {
                    Effect::Command(command) => prop_assert_eq!(command & !0x0547, 0),
                    Effect::ClearStatus(bits) => prop_assert_eq!(bits & !0xf900, 0),
                    Effect::Vpd(_, address) => prop_assert_eq!(address & 0x8000, 0),
                    Effect::Reset | Effect::Msi | Effect::Msix(_) => {}
                }
            }
            let offset = offset.min(4092);
            see(&config, &fake, offset);
        }
        seen(&config, &fake);
    }
}
