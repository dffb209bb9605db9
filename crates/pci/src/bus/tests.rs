use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use super::*;
use crate::bar::{BarKind, ROM};
use crate::config_space::{ConfigSpace, Identity};
use crate::register;
use parking_lot::Mutex;
use proptest::prelude::*;

pub(super) struct Probe {
    space: Mutex<ConfigSpace>,
    seen: Mutex<[Option<DecodedAt>; 7]>,
    tag: u8,
    number: DeviceNumber,
    /// Whether it fails at all that can fail.
    broken: Mutex<bool>,
    /// Held by a test that makes writes to the command register come late.
    late: Mutex<()>,
    /// Held by a test that makes such writes wait, as for a disk: with the function's own lock held.
    slow: Mutex<()>,
    /// How many reads and writes of configuration space have begun.
    reads: AtomicU32,
    writes: AtomicU32,
}

impl Probe {
    fn new(bars: &[BarSpec], windows: &Windows, tag: u8) -> Arc<Probe> {
        Arc::new(Probe { tag, ..Probe::of(bars, windows, DeviceNumber::Shared) })
    }

    /// One without BARs.
    pub(super) fn with_number(number: DeviceNumber) -> Probe {
        Probe::of(&[], &windows(), number)
    }

    fn of(bars: &[BarSpec], windows: &Windows, number: DeviceNumber) -> Probe {
        let identity = Identity {
            vendor: 1,
            device: 2,
            subsystem_vendor: 0,
            subsystem: 0,
            class: 0xff_0000,
            revision: 0,
        };
        let space = Mutex::new(ConfigSpace::new(identity, bars, windows));
        Probe {
            space,
            seen: Mutex::default(),
            tag: 0,
            number,
            broken: Mutex::new(false),
            late: Mutex::default(),
            slow: Mutex::default(),
            reads: AtomicU32::new(0),
            writes: AtomicU32::new(0),
        }
    }

    /// Where its BARs are, decoding or not.
    fn places(&self) -> Vec<u64> {
        let space = self.space.lock();
        space.bars().iter().map(|bar| space.bar_address(*bar)).collect()
    }

    fn outcome(&self, what: &str) -> Result<(), PciError> {
        let broken = *self.broken.lock();
        let error = || PciError::Function { function: format!("probe {}", self.tag), what: what.to_owned() };
        if broken { Err(error()) } else { Ok(()) }
    }
}

impl Function for Probe {
    fn name(&self) -> &str {
        "probe"
    }
    fn device_number(&self) -> DeviceNumber {
        self.number
    }
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.space.lock().read(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), PciError> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        if offset == register::COMMAND {
            drop(self.late.lock());
        }
        let mut space = self.space.lock();
        let _wait = self.slow.lock();
        space.write(offset, data);
        self.outcome("write")
    }
    fn decoded(&self) -> Decoded {
        self.space.lock().decoded()
    }
    fn read_bar(&self, _: usize, offset: u64, data: &mut [u8]) {
        data.fill(self.tag.wrapping_add(offset as u8));
    }
    fn write_bar(&self, _: usize, _: u64, _: &[u8]) -> Result<(), PciError> {
        Ok(())
    }
    fn bar_moved(&self, bar: usize, at: Option<DecodedAt>) -> Result<(), PciError> {
        let mut seen = self.seen.lock();
        assert!(seen[bar].is_none() || at.is_none(), "moved without being taken away first");
        seen[bar] = at;
        self.outcome("move")
    }
    fn reset(&self) -> Result<(), PciError> {
        self.space.lock().reset();
        Ok(())
    }
}

pub(super) fn windows() -> Windows {
    Windows {
        memory32: GpaRange::new(Gpa(0xc000_0000), 0x10_0000).unwrap(),
        memory64: GpaRange::new(Gpa(0x10_0000_0000), 0x10_0000),
        ports: (0xc000, 0xc0ff),
    }
}

fn memory64(index: usize, size: u64) -> BarSpec {
    BarSpec::new(index, BarKind::Memory64 { prefetchable: false }, size).unwrap()
}

fn memory32(index: usize, size: u64) -> BarSpec {
    BarSpec::new(index, BarKind::Memory32 { prefetchable: false }, size).unwrap()
}

/// Puts a function with these BARs on the bus.
fn add(bus: &Bus, bars: &[BarSpec], tag: u8) -> (Address, Arc<Probe>) {
    let probe = Probe::new(bars, bus.windows(), tag);
    let address = bus.free_address(DeviceNumber::Shared).unwrap();
    bus.add(address, probe.clone()).unwrap();
    (address, probe)
}

fn bus(count: u8) -> (Bus, Vec<(Address, Arc<Probe>)>) {
    let bus = Bus::new(&windows());
    let bars = [memory64(0, 0x4000), memory32(2, 0x1000), BarSpec::new(3, BarKind::Io, 32).unwrap()];
    let probes: Vec<_> = (0..count).map(|tag| add(&bus, &bars, tag)).collect();
    for (address, _) in &probes {
        bus.place_bars(*address).unwrap();
    }
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
fn a_bus_that_is_cleared_keeps_no_function() {
    let (bus, functions) = bus(2);
    let (at, probe) = functions[0].clone();
    bus.write_config(at, 4, &[2]).unwrap();
    drop(functions);
    bus.clear();
    assert_eq!((Arc::strong_count(&probe), bus.functions().len()), (1, 0));
    assert!(!bus.read_memory(Gpa(probe.places()[0]), &mut [0]));
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
        let space = probe.space.lock();
        let bars = space.bars();
        assert!(
            bars.iter().all(|bar| space.bar_address(*bar) != 0 && space.bar_address(*bar) % bar.size() == 0)
        );
        assert_eq!(space.command(), 0);
    }
    for (address, probe) in &probes {
        bus.write_config(*address, 4, &[3, 0]).unwrap();
        assert_eq!(probe.seen.lock().iter().flatten().count(), 3);
    }
}

#[test]
fn bars_that_decode_while_they_are_placed_are_reached_at_their_new_places() {
    let (bus, probes) = bus(1);
    bus.write_config(probes[0].0, 4, &[3, 0]).unwrap();
    bus.place_bars(probes[0].0).unwrap();
    assert_eq!(*probes[0].1.seen.lock(), probes[0].1.decoded());
    assert_eq!(probes[0].1.decoded().iter().flatten().count(), 3);
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
    assert_eq!(*probes[0].1.seen.lock(), Decoded::default());
    assert!(!bus.read_memory(Gpa(0x10_0000_0000), &mut [0]));
}

#[test]
fn bars_that_fit_nowhere_are_all_named() {
    let (bus, _) = bus(1);
    let (address, probe) = add(&bus, &[memory64(0, 1 << 40), memory64(2, 0x1000), memory32(4, 1 << 30)], 1);
    let error = bus.place_bars(address).unwrap_err().to_string();
    assert!(error.contains("probe: BAR 0 of 0x10000000000 bytes"), "{error}");
    assert!(error.contains("probe: BAR 4 of 0x40000000 bytes"), "{error}");
    assert_eq!(probe.places(), [0, 0, 0]);
}

#[test]
fn a_rom_that_fits_nowhere_is_no_error_for_a_guest_can_do_without() {
    let bus = Bus::new(&windows());
    let rom = BarSpec::new(ROM, BarKind::Rom, 1 << 24).unwrap();
    let (address, probe) = add(&bus, &[memory32(0, 0x1000), rom], 0);
    bus.place_bars(address).unwrap();
    assert_eq!(probe.places(), [0xc000_0000, 0]);
}

#[test]
fn the_gap_that_a_large_bar_leaves_goes_to_smaller_ones() {
    let bus = Bus::new(&windows());
    let small = add(&bus, &[memory64(0, 0x1000)], 0);
    let half = add(&bus, &[memory64(0, 0x8_0000)], 1);
    let quarter = add(&bus, &[memory64(0, 0x4_0000)], 2);
    for (address, _) in [&small, &half, &quarter] {
        bus.place_bars(*address).unwrap();
    }
    assert_eq!(half.1.places(), [0x10_0008_0000]);
    assert_eq!(quarter.1.places(), [0x10_0004_0000]);
}

#[test]
fn bars_of_64_bits_go_below_4_gib_when_there_is_no_room_above_ram() {
    let bus = Bus::new(&windows());
    let full = add(&bus, &[memory64(0, 0x10_0000), memory64(2, 0x1000)], 0);
    bus.place_bars(full.0).unwrap();
    assert_eq!(full.1.places(), [0x10_0000_0000, 0xc000_0000]);
    let bus = Bus::new(&Windows { memory64: None, ..windows() });
    let none = add(&bus, &[memory64(0, 0x1000)], 0);
    bus.place_bars(none.0).unwrap();
    assert_eq!(none.1.places(), [0xc000_0000]);
}

#[test]
fn after_a_reset_bars_are_where_they_were_placed_whatever_the_guest_did() {
    let (bus, probes) = bus(1);
    let placed = probes[0].1.places();
    bus.write_config(probes[0].0, 0x10, &[0xff; 8]).unwrap();
    assert!(bus.reset().is_empty());
    assert_eq!(probes[0].1.places(), placed);
}

#[test]
fn of_many_failures_of_one_write_none_is_lost() {
    let (bus, probes) = bus(2);
    *probes[0].1.broken.lock() = true;
    let error = bus.write_config(probes[0].0, 4, &[3, 0]).unwrap_err().to_string();
    assert_eq!(error, "probe 0: write\nprobe 0: move\nprobe 0: move\nprobe 0: move");
    assert!(bus.read_memory(Gpa(0x10_0000_0000), &mut [0]), "a failure keeps no BAR from its claim");
    assert_eq!(bus.reset().len(), 3 + 4, "three BARs taken away, four registers written");
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
            let claims = bus.claims.read();
            for map in [&claims.memory, &claims.ports] {
                for ((start, claim), (next, _)) in map.iter().zip(map.iter().skip(1)) {
                    prop_assert!(start + claim.len <= *next);
                }
            }
            for (start, claim) in &claims.memory {
                prop_assert!(windows().memory(*start, claim.len).is_some());
            }
            let told: usize = probes.iter().map(|(_, p)| p.seen.lock().iter().flatten().count()).sum();
            prop_assert_eq!(told, claims.memory.len() + claims.ports.len());
        }
    }
}

#[test]
fn what_finds_no_place_is_known_without_a_bus_and_is_what_the_bus_says() {
    let windows = windows();
    let bar = |size| BarSpec::new(0, BarKind::Memory64 { prefetchable: true }, size).unwrap();
    let largest = windows.memory64.map_or(1 << 30, GpaRange::len).next_power_of_two() << 1;
    let functions: Vec<(String, Vec<BarSpec>)> =
        [0x1000, largest, 0x1000].map(|size| ("probe".to_owned(), vec![bar(size)])).into();
    let found: Vec<String> = without_place(&windows, &functions).iter().map(ToString::to_string).collect();
    let bus = Bus::new(&windows);
    let mut said = Vec::new();
    for (_, bars) in &functions {
        let at = bus.free_address(DeviceNumber::Shared).unwrap();
        bus.add(at, Probe::new(bars, &windows, 0)).unwrap();
        said.extend(bus.place_bars(at).err().map(|error| error.to_string()));
    }
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found, said);
}

#[test]
fn a_function_whose_write_takes_long_holds_up_no_other_function_whatever_becomes_of_both() {
    let (bus, probes) = bus(2);
    let [(slow, probe), (other, _)] = &probes[..] else { panic!("two functions") };
    let waits = probe.slow.lock();
    let reads = probe.reads.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        let bus = &bus;
        let writer = scope.spawn(|| bus.write_config(*slow, register::COMMAND, &[3, 0]));
        scope.spawn(|| {
            // Until that write is under way.
            while probe.space.try_lock().is_some() {
                std::thread::yield_now();
            }
            bus.read_config(*slow, 0, &mut [0; 4]);
        });
        let (done, answered) = channel();
        scope.spawn(move || {
            // Until somebody waits to read of it.
            while probe.reads.load(Ordering::SeqCst) == reads {
                std::thread::yield_now();
            }
            bus.read_config(*other, 0, &mut [0; 4]);
            // BARs of the other one appear.
            bus.write_config(*other, register::COMMAND, &[3, 0]).unwrap();
            done.send(()).unwrap();
        });
        let outcome = answered.recv_timeout(Duration::from_secs(10));
        assert!(!writer.is_finished(), "the write waits still");
        drop(waits);
        assert_eq!(outcome, Ok(()), "the other function was reached");
        writer.join().unwrap().unwrap();
    });
    for (at, _) in &probes {
        assert!(bus.slots()[at].claimed.iter().any(Option::is_some), "{at} decodes");
    }
}

#[test]
fn a_reset_that_overtakes_a_write_leaves_the_bus_with_what_the_function_decodes() {
    let (bus, probes) = bus(1);
    let [(at, probe)] = &probes[..] else { panic!("one function") };
    bus.write_config(*at, register::COMMAND, &[3, 0]).unwrap();
    let writes = probe.writes.load(Ordering::SeqCst);
    let waits = probe.late.lock();
    std::thread::scope(|scope| {
        // It decodes already, and would have been left alone.
        let writer = scope.spawn(|| bus.write_config(*at, register::COMMAND, &[3, 0]));
        while probe.writes.load(Ordering::SeqCst) == writes {
            std::thread::yield_now();
        }
        assert!(bus.reset_function(*at).is_empty());
        assert_eq!(probe.decoded(), Decoded::default());
        drop(waits);
        writer.join().unwrap().unwrap();
    });
    assert_ne!(probe.decoded(), Decoded::default());
    assert_eq!(bus.slots()[at].claimed, probe.decoded());
}
