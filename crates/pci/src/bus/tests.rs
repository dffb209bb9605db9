use std::sync::Mutex;

use super::*;
use crate::config_space::{ConfigSpace, Identity};
use proptest::prelude::*;

struct Probe {
    space: Mutex<ConfigSpace>,
    seen: Mutex<[Option<DecodedAt>; 7]>,
    tag: u8,
}

impl Function for Probe {
    fn name(&self) -> &str {
        "probe"
    }
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.space.lock().unwrap().read(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), PciError> {
        self.space.lock().unwrap().write(offset, data);
        Ok(())
    }
    fn decoded(&self) -> Decoded {
        self.space.lock().unwrap().decoded()
    }
    fn read_bar(&self, _: usize, offset: u64, data: &mut [u8]) {
        data.fill(self.tag.wrapping_add(offset as u8));
    }
    fn write_bar(&self, _: usize, _: u64, _: &[u8]) -> Result<(), PciError> {
        Ok(())
    }
    fn bar_moved(&self, bar: usize, at: Option<DecodedAt>) -> Result<(), PciError> {
        let mut seen = self.seen.lock().unwrap();
        assert!(seen[bar].is_none() || at.is_none(), "moved without being taken away first");
        seen[bar] = at;
        Ok(())
    }
    fn reset(&self) -> Result<(), PciError> {
        self.space.lock().unwrap().reset();
        Ok(())
    }
}

fn windows() -> Windows {
    Windows {
        memory32: GpaRange::new(Gpa(0xc000_0000), 0x10_0000).unwrap(),
        memory64: GpaRange::new(Gpa(0x10_0000_0000), 0x10_0000),
        ports: (0xc000, 0xc0ff),
    }
}

fn bus(count: u8) -> (Bus, Vec<(Address, Arc<Probe>)>) {
    let windows = windows();
    let bus = Bus::new(&windows);
    let probes = (0..count)
        .map(|tag| {
            let identity = Identity {
                vendor: 1,
                device: 2,
                subsystem_vendor: 0,
                subsystem: 0,
                class: 0xff_0000,
                revision: 0,
            };
            let bars = [
                BarSpec::new(0, BarKind::Memory64 { prefetchable: false }, 0x4000).unwrap(),
                BarSpec::new(2, BarKind::Memory32 { prefetchable: false }, 0x1000).unwrap(),
                BarSpec::new(3, BarKind::Io, 32).unwrap(),
            ];
            let mut space = ConfigSpace::new(identity, &bars, &windows);
            for bar in bars {
                space.place_bar(bar, bus.allocate("probe", bar).unwrap());
            }
            let probe = Arc::new(Probe { space: Mutex::new(space), seen: Mutex::default(), tag });
            let address = bus.free_address().unwrap();
            bus.add(address, probe.clone()).unwrap();
            (address, probe)
        })
        .collect();
    (bus, probes)
}

#[test]
fn a_bar_is_reached_where_it_decodes_and_only_while_it_does() {
    let (bus, probes) = bus(2);
    let mut data = [0; 4];
    let at = Gpa(0x10_0000_4000);
    assert!(!bus.read_memory(at, &mut data));
    bus.write_config(probes[1].0, 4, &[2, 0]).unwrap();
    assert!(bus.read_memory(Gpa(at.0 + 3), &mut data));
    assert_eq!(data, [4; 4]);
    assert!(!bus.read_memory(Gpa(at.0 + 0x3ffe), &mut data), "an access may not cross the end of a BAR");
    bus.write_config(probes[1].0, 4, &[0, 0]).unwrap();
    assert!(!bus.read_memory(at, &mut data));
}

#[test]
fn of_two_colliding_bars_the_first_stays_until_it_goes() {
    let (bus, probes) = bus(2);
    for (address, _) in &probes {
        bus.write_config(*address, 4, &[2, 0]).unwrap();
    }
    bus.write_config(probes[1].0, 0x10, &0u32.to_le_bytes()).unwrap();
    let mut data = [0; 1];
    assert!(bus.read_memory(Gpa(0x10_0000_0000), &mut data));
    assert_eq!(data, [0]);
    bus.write_config(probes[0].0, 4, &[0, 0]).unwrap();
    assert!(bus.read_memory(Gpa(0x10_0000_0000), &mut data));
    assert_eq!(data, [1]);
}

#[test]
fn bars_are_found_by_their_registers_and_placed_without_overlap() {
    let (bus, probes) = bus(2);
    for (address, probe) in &probes {
        bus.place_bars(*address).unwrap();
        let space = probe.space.lock().unwrap();
        let bars = space.bars();
        assert!(
            bars.iter().all(|bar| space.bar_address(*bar) != 0 && space.bar_address(*bar) % bar.size() == 0)
        );
        assert_eq!(space.command(), 0);
    }
    for (address, probe) in &probes {
        bus.write_config(*address, 4, &[3, 0]).unwrap();
        assert_eq!(probe.seen.lock().unwrap().iter().flatten().count(), 3);
    }
}

#[test]
fn absent_functions_read_as_ones() {
    let (bus, _) = bus(1);
    let mut data = [0; 4];
    bus.read_config(Address::new(0, 9, 0).unwrap(), 0, &mut data);
    assert_eq!(data, [0xff; 4]);
    bus.read_config(Address::new(0, 1, 0).unwrap(), 4094, &mut data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn after_a_reset_nothing_decodes() {
    let (bus, probes) = bus(2);
    bus.write_config(probes[0].0, 4, &[3, 0]).unwrap();
    assert!(bus.reset().is_empty());
    assert_eq!(*probes[0].1.seen.lock().unwrap(), Decoded::default());
    assert!(!bus.read_memory(Gpa(0x10_0000_0000), &mut [0]));
}

#[test]
fn a_bar_that_fits_nowhere_is_an_error_that_names_it() {
    let (bus, _) = bus(1);
    let huge = BarSpec::new(0, BarKind::Memory64 { prefetchable: true }, 1 << 40).unwrap();
    let error = bus.allocate("0000:01:00.0", huge).unwrap_err().to_string();
    assert!(error.contains("0000:01:00.0: BAR 0 of 0x10000000000 bytes"), "{error}");
}

proptest! {
    #[test]
    fn claims_never_overlap_never_leave_the_windows_and_match_what_functions_were_told(
        writes in prop::collection::vec(
            (0usize..3, prop::sample::select(vec![0x04u16, 0x10, 0x14, 0x18, 0x1c]),
             prop_oneof![any::<u32>(), 0xc000_0000u32..0xc010_0000, 0u32..0x10, 0xc000u32..0xc100]), 1..40)
    ) {
        let (bus, probes) = bus(3);
        for (which, offset, value) in writes {
            let value = if offset == 4 { value & 0x407 } else { value };
            bus.write_config(probes[which].0, offset, &value.to_le_bytes()[..if offset == 4 { 2 } else { 4 }]).unwrap();
            let claims = bus.claims.read().unwrap();
            for map in [&claims.memory, &claims.ports] {
                for ((start, claim), (next, _)) in map.iter().zip(map.iter().skip(1)) {
                    prop_assert!(start + claim.len <= *next);
                }
            }
            for (start, claim) in &claims.memory {
                prop_assert!(windows().memory(*start, claim.len).is_some());
            }
            let told: usize = probes.iter().map(|(_, p)| p.seen.lock().unwrap().iter().flatten().count()).sum();
            prop_assert_eq!(told, claims.memory.len() + claims.ports.len());
        }
    }
}
