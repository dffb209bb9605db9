//! Giving BARs their addresses before the guest starts, as firmware would: by asking the function's registers.

use std::cmp::Reverse;

use crate::address::Address;
use crate::bar::{BarKind, BarSpec, ROM, Windows};
use crate::bus::Bus;
use crate::error::PciError;
use crate::function::Function;
use crate::register;

impl Bus {
    /// Finds out which BARs the function at `address` has (PCI Local Bus Specification 3.0, 6.2.5.1: write ones,
    /// see which stay) and gives each a place, beside those of the other functions. BARs of 64 bits go above RAM when there is room, else below 4 GiB; a ROM for which there is no room goes without.
    pub fn place_bars(&self, address: Address) -> Result<(), PciError> {
        let bars = self.probe(address)?;
        let mut slots = self.slots();
        let Some(slot) = slots.get_mut(&address) else { return Ok(()) };
        slot.placed.clear();
        let function = slot.function.clone();
        let taken: Vec<_> = slots.values().flat_map(|slot| slot.placed.iter().copied()).collect();
        let placed = find_places(&self.windows, taken, bars, function.name())?;
        let mut errors = write(&*function, &placed);
        if let Some(slot) = slots.get_mut(&address) {
            slot.look_again();
            slot.placed = placed;
        }
        // A function that decodes already moves with its BARs.
        errors.extend(self.settle(&mut slots));
        PciError::all(errors)
    }

    fn probe(&self, address: Address) -> Result<Vec<BarSpec>, PciError> {
        let mut bars = Vec::new();
        let mut index = 0;
        while index < 6 {
            let low = self.ones_that_stay(address, register::BAR0 + 4 * index as u16)?;
            let memory64 = low & 0b111 == 0b100 && index < 5;
            let (kind, mask) = if low & 1 != 0 {
                // The upper half of a port number may be missing.
                (BarKind::Io, u64::from(low & !3 | 0xffff_0000) | !0xffff_ffff)
            } else if memory64 {
                let high = self.ones_that_stay(address, register::BAR0 + 4 * index as u16 + 4)?;
                (
                    BarKind::Memory64 { prefetchable: low & 8 != 0 },
                    u64::from(low & !0xf) | u64::from(high) << 32,
                )
            } else {
                (BarKind::Memory32 { prefetchable: low & 8 != 0 }, u64::from(low & !0xf) | !0xffff_ffff)
            };
            if low != 0 {
                bars.extend(BarSpec::new(index, kind, mask.wrapping_neg()));
            }
            index += if memory64 { 2 } else { 1 };
        }
        let rom = self.ones_that_stay(address, register::ROM_BAR)?;
        if rom != 0 {
            let size = (u64::from(rom & !0x7ff) | !0xffff_ffff).wrapping_neg();
            bars.extend(BarSpec::new(ROM, BarKind::Rom, size));
        }
        Ok(bars)
    }

    /// What a register reads as after ones were written to it; it is 0 (and its read-only bits) afterwards.
    fn ones_that_stay(&self, address: Address, register: u16) -> Result<u32, PciError> {
        // The ROM's enable bit stays 0, so that it does not decode meanwhile.
        let ones = if register == register::ROM_BAR { !1u32 } else { u32::MAX };
        self.write_config(address, register, &ones.to_le_bytes())?;
        let mut value = [0; 4];
        self.read_config(address, register, &mut value);
        self.write_config(address, register, &[0; 4])?;
        Ok(u32::from_le_bytes(value))
    }
}

/// Writes the registers of BARs, none of which decodes: their places. Goes on after a failure and returns all.
pub(super) fn write(function: &dyn Function, placed: &[(BarSpec, u64)]) -> Vec<PciError> {
    let mut errors = Vec::new();
    for (bar, place) in placed {
        errors.extend(function.write_config(bar.register(), &(*place as u32).to_le_bytes()).err());
        if let BarKind::Memory64 { .. } = bar.kind() {
            let upper = ((place >> 32) as u32).to_le_bytes();
            errors.extend(function.write_config(bar.register() + 4, &upper).err());
        }
    }
    errors
}

/// What finds no place in these windows when functions with such BARs come on a bus one after the other, each with its
/// name: what [`Bus::place_bars`] would say of each, before there is any.
pub fn without_place(windows: &Windows, functions: &[(String, Vec<BarSpec>)]) -> Vec<PciError> {
    let (mut taken, mut errors) = (Vec::new(), Vec::new());
    for (name, bars) in functions {
        match find_places(windows, taken.clone(), bars.clone(), name) {
            Ok(places) => taken.extend(places),
            Err(error) => errors.push(error),
        }
    }
    errors
}

/// Finds a place for each of a function's BARs beside those taken, the largest first, for these have the fewest
/// places to choose from. All that find none are named.
fn find_places(
    windows: &Windows,
    mut taken: Vec<(BarSpec, u64)>,
    mut bars: Vec<BarSpec>,
    function: &str,
) -> Result<Vec<(BarSpec, u64)>, PciError> {
    let others = taken.len();
    let mut errors = Vec::new();
    bars.sort_by_key(|bar| Reverse(bar.size()));
    for bar in bars {
        match find_place(windows, &taken, bar) {
            Some(place) => taken.push((bar, place)),
            None if bar.kind() == BarKind::Rom => {} // a guest can do without a ROM
            None => errors.push(no_room(bar, function)),
        }
    }
    PciError::all(errors).map(|()| taken.split_off(others))
}

fn no_room(bar: BarSpec, function: &str) -> PciError {
    let hint = match bar.kind() {
        BarKind::Memory64 { .. } => {
            "The window ends where this host's IOMMU and CPU end; give the VM less memory or fewer large devices."
        }
        _ => "Give the VM fewer devices.",
    };
    PciError::NoRoom { function: function.to_owned(), bar: bar.index(), size: bar.size(), hint }
}

fn find_place(windows: &Windows, taken: &[(BarSpec, u64)], bar: BarSpec) -> Option<u64> {
    let is_io = |bar: BarSpec| bar.kind() == BarKind::Io;
    let mut taken: Vec<(u64, u64)> = taken
        .iter()
        .filter(|(other, _)| is_io(*other) == is_io(bar))
        .map(|(other, place)| (*place, other.size()))
        .collect();
    taken.sort_unstable();
    let (first, last) = windows.ports;
    let low = (windows.memory32.start().0, windows.memory32.end().0);
    let high = windows.memory64.map(|window| (window.start().0, window.end().0));
    match bar.kind() {
        BarKind::Io => first_fit((first.into(), u64::from(last) + 1), &taken, bar.size()),
        BarKind::Memory64 { .. } => high
            .and_then(|window| first_fit(window, &taken, bar.size()))
            .or_else(|| first_fit(low, &taken, bar.size())),
        BarKind::Memory32 { .. } | BarKind::Rom => first_fit(low, &taken, bar.size()),
    }
}

/// The lowest multiple of `size` at which `size` bytes fit into the window (first address, and the one behind the
/// last) beside what is taken (start and bytes, by rising start, not overlapping).
fn first_fit(window: (u64, u64), taken: &[(u64, u64)], size: u64) -> Option<u64> {
    let mut at = window.0.checked_next_multiple_of(size)?;
    for (start, len) in taken {
        if at.checked_add(size)? <= *start {
            break;
        }
        at = at.max(start.checked_add(*len)?.checked_next_multiple_of(size)?);
    }
    (at.checked_add(size)? <= window.1).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::{Gpa, GpaRange};
    use proptest::prelude::*;

    fn kind() -> impl Strategy<Value = BarKind> {
        prop_oneof![
            Just(BarKind::Memory64 { prefetchable: true }),
            Just(BarKind::Memory32 { prefetchable: false }),
            Just(BarKind::Io),
        ]
    }

    /// Windows of odd bounds, so small that they fill up.
    fn windows() -> impl Strategy<Value = Windows> {
        let window = |base: u64| (0u64..16, 1u64..64).prop_map(move |(at, len)| (base + at * 16, len * 16));
        (window(0x1000), prop::option::of(window(0x10_0000)), 0u16..64, 1u16..256).prop_map(
            |(low, high, port, ports)| Windows {
                memory32: GpaRange::new(Gpa(low.0), low.1).unwrap(),
                memory64: high.and_then(|(at, len)| GpaRange::new(Gpa(at), len)),
                ports: (0xc000 + port, 0xc000 + port + ports - 1),
            },
        )
    }

    proptest! {
        #[test]
        fn no_bars_overlap_or_leave_their_window_and_none_is_refused_while_a_gap_fits(
            windows in windows(),
            functions in prop::collection::vec(prop::collection::vec((kind(), 2u32..9), 1..4), 1..12),
            gone in any::<prop::sample::Index>(),
        ) {
            let mut taken: Vec<(BarSpec, u64)> = Vec::new();
            for (number, bars) in functions.into_iter().enumerate() {
                let bars: Vec<BarSpec> = bars.into_iter().enumerate()
                    .filter_map(|(index, (kind, log))| BarSpec::new(2 * index, kind, 1 << log)).collect();
                let Ok(placed) = find_places(&windows, taken.clone(), bars.clone(), "a") else {
                    // The function as a whole was refused; then there is a BAR of it that fits nowhere.
                    let mut beside = taken.clone();
                    let mut bars = bars;
                    bars.sort_by_key(|bar| Reverse(bar.size()));
                    let mut refused = 0;
                    for bar in bars {
                        match lowest(&windows, &beside, bar) {
                            Some(place) => beside.push((bar, place)),
                            None => refused += 1,
                        }
                    }
                    prop_assert!(refused > 0);
                    continue;
                };
                prop_assert_eq!(placed.len(), bars.len());
                for (bar, place) in placed {
                    prop_assert_eq!(Some(place), lowest(&windows, &taken, bar));
                    taken.push((bar, place));
                }
                if number % 3 == 2 && !taken.is_empty() {
                    taken.remove(gone.index(taken.len()));
                }
            }
        }
    }

    /// The lowest place by trying all: inside a window, aligned, over nothing that is taken.
    fn lowest(windows: &Windows, taken: &[(BarSpec, u64)], bar: BarSpec) -> Option<u64> {
        let io = bar.kind() == BarKind::Io;
        let free = |at: &u64| {
            taken
                .iter()
                .filter(|(other, _)| (other.kind() == BarKind::Io) == io)
                .all(|(other, place)| at + bar.size() <= *place || place + other.size() <= *at)
        };
        let inside = |at: &u64| {
            if io { windows.io(*at, bar.size()).is_some() } else { windows.memory(*at, bar.size()).is_some() }
        };
        let try_all = |from: u64, to: u64| {
            let fits = |at: &u64| at.is_multiple_of(bar.size()) && inside(at) && free(at);
            (from..to).step_by(4).find(fits)
        };
        match bar.kind() {
            BarKind::Io => try_all(0xc000, 0xd000),
            BarKind::Memory64 { .. } => try_all(0x10_0000, 0x11_0000).or_else(|| try_all(0x1000, 0x2000)),
            _ => try_all(0x1000, 0x2000),
        }
    }
}
