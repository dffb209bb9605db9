//! Which addresses functions get, and for how many there is room.
//!
//! A function has a device number of its own as long as there is one. Those that come later are functions 1 to 7 beside
//! others (PCI Local Bus Specification 3.0, 3.2.2.3.4), of the last device first: guests find functions in the order of
//! their addresses, so the disks that come first keep their names. Nothing moves when a function is added, and none is
//! ever taken away, so function 0 of a device is always there.

use std::collections::BTreeMap;

use super::{Bus, Slot};
use crate::address::Address;
use crate::chipset::SOUTH_BRIDGE;
use crate::error::PciError;
use crate::function::DeviceNumber;

/// The first device number behind those of the chipset.
const FIRST: u8 = SOUTH_BRIDGE + 1;
/// Device numbers of a bus from that on.
const DEVICES: usize = 32 - FIRST as usize;
/// Functions of a device.
const FUNCTIONS: usize = 8;

/// Whether a bus has room for so many functions that have a device number of their own, and so many that share them.
pub fn room_for(own: usize, shared: usize) -> Result<(), PciError> {
    let room = own.saturating_add(shared.div_ceil(FUNCTIONS)) <= DEVICES;
    if room { Ok(()) } else { Err(PciError::Full { own, shared }) }
}

impl Bus {
    /// Where a function may be put next.
    pub fn free_address(&self, number: DeviceNumber) -> Result<Address, PciError> {
        let slots = self.slots();
        let free = |address: &Address| !slots.contains_key(address);
        let mut unused = (FIRST..32).filter_map(|device| Address::new(0, device, 0));
        let mut beside = (FIRST..32)
            .rev()
            .flat_map(|device| (1..8).filter_map(move |function| Address::new(0, device, function)))
            .filter(|address| shares(&slots, *address));
        let found = unused.find(free).or_else(|| match number {
            DeviceNumber::Own => None,
            DeviceNumber::Shared => beside.find(free),
        });
        found.ok_or_else(|| {
            let there = |kind| {
                let devices = slots.iter().filter(|(address, _)| address.device() >= FIRST);
                devices.filter(|(_, slot)| slot.function.device_number() == kind).count()
                    + usize::from(kind == number)
            };
            PciError::Full { own: there(DeviceNumber::Own), shared: there(DeviceNumber::Shared) }
        })
    }
}

/// Whether the device at this address has a function 0 that shares its number.
pub(super) fn shares(slots: &BTreeMap<Address, Slot>, address: Address) -> bool {
    let first = slots.get(&address.function_0());
    first.is_some_and(|slot| slot.function.device_number() == DeviceNumber::Shared)
}

/// Whether the device at this address has functions beside function 0.
pub(super) fn has_several(slots: &BTreeMap<Address, Slot>, address: Address) -> bool {
    let first = address.function_0();
    let next = slots.range(first..).nth(1);
    slots.contains_key(&first) && next.is_some_and(|(next, _)| next.function_0() == first)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::tests::{Probe, windows};
    use super::*;
    use crate::chipset::Chipset;
    use crate::register;

    /// A bus with a host bridge and, one after the other, such functions; and where they are.
    fn filled(numbers: &[DeviceNumber]) -> (Bus, Result<Vec<Address>, PciError>) {
        let bus = Bus::new(&windows());
        bus.add(Address::new(0, 0, 0).unwrap(), Arc::new(Chipset::host_bridge(&windows()))).unwrap();
        let place = |number: &DeviceNumber| {
            let address = bus.free_address(*number)?;
            bus.add(address, Arc::new(Probe::with_number(*number)))?;
            Ok(address)
        };
        let places = numbers.iter().map(place).collect();
        (bus, places)
    }

    /// What a guest finds that reads as Linux does: functions 1 to 7 only where function 0 says that there are several.
    /// And how many accesses to configuration space that took.
    fn found_by_a_guest(bus: &Bus) -> (BTreeSet<Address>, usize) {
        let (mut found, mut accesses) = (BTreeSet::new(), 0);
        let mut read = |address, register| {
            accesses += 1;
            let mut data = [0; 2];
            bus.read_config(address, register, &mut data);
            u16::from_le_bytes(data)
        };
        for device in 0..32 {
            for function in 0..8 {
                let address = Address::new(0, device, function).unwrap();
                let there = read(address, register::VENDOR_ID) != 0xffff;
                found.extend(there.then_some(address));
                let several = function > 0 || there && read(address, register::HEADER_TYPE) & 0x80 != 0;
                if !several {
                    break;
                }
            }
        }
        (found, accesses)
    }

    fn words(places: &[Address]) -> Vec<String> {
        places.iter().map(|address| address.to_string()[3..].to_owned()).collect()
    }

    #[test]
    fn the_31st_function_and_those_behind_it_share_the_last_numbers_and_the_first_30_stay() {
        let (_, places) = filled(&[DeviceNumber::Shared; 39]);
        let places = words(&places.unwrap());
        let first: Vec<String> = (2..32).map(|device| format!("{device:02x}.0")).collect();
        assert_eq!(places[..30], first);
        let rest = ["1f.1", "1f.2", "1f.3", "1f.4", "1f.5", "1f.6", "1f.7", "1e.1", "1e.2"];
        assert_eq!(places[30..], rest);
    }

    #[test]
    fn a_bus_has_room_for_240_functions_and_no_more() {
        let (bus, places) = filled(&[DeviceNumber::Shared; 240]);
        assert_eq!(places.unwrap().len(), 240);
        let said = bus.free_address(DeviceNumber::Shared).unwrap_err().to_string();
        assert_eq!(said, room_for(0, 241).unwrap_err().to_string());
        assert!(room_for(0, 240).is_ok() && said.contains("241"), "{said}");
    }

    #[test]
    fn a_guest_with_up_to_30_devices_looks_for_no_second_function() {
        let (bus, _) = filled(&[DeviceNumber::Shared; 30]);
        let (found, accesses) = found_by_a_guest(&bus);
        assert_eq!((found.len(), accesses), (31, 63));
        let (bus, _) = filled(&[DeviceNumber::Shared; 37]);
        assert_eq!(found_by_a_guest(&bus).1, 63 + 7, "one device has functions beside its first");
    }

    #[test]
    fn bit_7_of_the_header_type_is_there_by_whatever_width_it_is_read() {
        let (bus, places) = filled(&[DeviceNumber::Shared; 31]);
        for (address, bit) in [(places.as_ref().unwrap()[29], 0x80), (places.unwrap()[0], 0)] {
            for (offset, len, at) in [(0x0e, 1, 0), (0x0c, 4, 2), (0x0e, 2, 0), (0x08, 8, 6)] {
                let mut data = [0; 8];
                bus.read_config(address, offset, &mut data[..len]);
                assert_eq!(data[at], bit, "{address}, {len} bytes at {offset:#x}");
            }
            let mut beside = [0; 2];
            bus.read_config(address, 0x0f, &mut beside[..1]);
            bus.read_config(address, 0x0d, &mut beside[1..]);
            assert_eq!(beside, [0; 2]);
        }
    }

    #[test]
    fn no_function_is_put_where_a_guest_would_not_look_for_it_nor_beside_one_that_is_alone() {
        let (bus, places) = filled(&[DeviceNumber::Own, DeviceNumber::Shared]);
        assert_eq!(words(&places.unwrap()), ["02.0", "03.0"]);
        let put = |device, function, number| {
            bus.add(Address::new(0, device, function).unwrap(), Arc::new(Probe::with_number(number)))
        };
        for (device, number) in [
            (0, DeviceNumber::Shared),
            (2, DeviceNumber::Shared),
            (3, DeviceNumber::Own),
            (4, DeviceNumber::Shared),
        ] {
            let refused = put(device, 1, number);
            assert!(matches!(refused, Err(PciError::NoFunction0(_))), "{device}: {refused:?}");
        }
        put(3, 5, DeviceNumber::Shared).unwrap();
    }

    proptest! {
        // Each asks the bus some thousand times.
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_comes_in_whatever_order_a_guest_finds_all_of_it_where_it_was_before(
            numbers in prop::collection::vec(
                prop_oneof![1 => Just(DeviceNumber::Own), 6 => Just(DeviceNumber::Shared)], 0..260),
        ) {
            let (bus, places) = filled(&numbers);
            let count = |kind| numbers.iter().filter(|number| **number == kind).count();
            let own_first = numbers.is_sorted_by_key(|number| *number == DeviceNumber::Shared);
            if let Err(full) = &places {
                let is_full = matches!(full, PciError::Full { .. });
                prop_assert!(is_full);
                let room = room_for(count(DeviceNumber::Own), count(DeviceNumber::Shared));
                prop_assert!(!own_first || room.is_err(), "there was room");
                return Ok(());
            }
            let places = places.unwrap();
            prop_assert!(room_for(count(DeviceNumber::Own), count(DeviceNumber::Shared)).is_ok());
            let (found, _) = found_by_a_guest(&bus);
            let mut all: BTreeSet<Address> = places.iter().copied().collect();
            prop_assert_eq!(all.len(), places.len(), "no two are at one address");
            all.insert(Address::new(0, 0, 0).unwrap());
            prop_assert_eq!(&found, &all);
            for (place, number) in places.iter().zip(&numbers) {
                let others = all.iter().filter(|other| other.device() == place.device()).count();
                prop_assert!(*number == DeviceNumber::Shared || others == 1, "{} is alone", place);
            }
            // One less at the end, and the rest is where it was.
            let before = filled(&numbers[..numbers.len().saturating_sub(1)]).1.unwrap();
            prop_assert_eq!(&places[..before.len()], &before[..]);
        }
    }
}
