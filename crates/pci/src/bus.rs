//! The bus: finds functions, and keeps the map of what their BARs decode.

use std::collections::BTreeMap;
use std::sync::Arc;

use memory::{Gpa, GpaRange};
use parking_lot::{Mutex, RwLock};

use crate::address::Address;
use crate::bar::{BarSpec, Decoded, DecodedAt, Windows};
use crate::error::PciError;
use crate::function::{DeviceNumber, Function};
use crate::register;

/// One PCI bus with its functions. BAR accesses are served all at once. Writes to the configuration space of one function
/// are served one at a time. Such a write may wait for the function's disk. Accesses to other functions do not wait for it,
/// nor do BARs of theirs that move.
pub struct Bus {
    windows: Windows,
    slots: Mutex<BTreeMap<Address, Slot>>,
    claims: RwLock<Claims>,
}

struct Slot {
    function: Arc<dyn Function>,
    /// Held while configuration space is written. Never taken by a thread that holds the slots.
    writing: Arc<Mutex<()>>,
    /// What the function decoded after the last change of it. Kept, because a function that waits does not answer.
    decoded: Decoded,
    /// What the bus routes to the function now. Less than the function decodes where BARs collide.
    claimed: Decoded,
    /// Where its BARs were placed before the guest started.
    placed: Vec<(BarSpec, u64)>,
}

impl Slot {
    /// Asks the function what it decodes now. Returns whether that has changed.
    fn look_again(&mut self) -> bool {
        let decoded = self.function.decoded();
        std::mem::replace(&mut self.decoded, decoded) != decoded
    }
}

#[derive(Default)]
struct Claims {
    memory: BTreeMap<u64, Claim>,
    ports: BTreeMap<u64, Claim>,
}

#[derive(Clone)]
struct Claim {
    len: u64,
    function: Arc<dyn Function>,
    bar: usize,
}

impl Bus {
    /// An empty bus.
    pub fn new(windows: &Windows) -> Bus {
        Bus { windows: windows.clone(), slots: Mutex::default(), claims: RwLock::default() }
    }

    /// The windows in which BARs may decode.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// Puts a function on the bus.
    pub fn add(&self, address: Address, function: Arc<dyn Function>) -> Result<(), PciError> {
        let mut slots = self.slots();
        if slots.contains_key(&address) {
            return Err(PciError::Taken(address));
        }
        let first = address.function() == 0;
        if !first && (function.device_number() == DeviceNumber::Own || !room::shares(&slots, address)) {
            return Err(PciError::NoFunction0(address));
        }
        let (writing, decoded) = (Arc::default(), function.decoded());
        let (claimed, placed) = (Decoded::default(), Vec::new());
        slots.insert(address, Slot { function, writing, decoded, claimed, placed });
        PciError::all(self.settle(&mut slots))
    }

    /// Lets go of every function: for a bus that is not used any more, but that somebody may keep.
    pub fn clear(&self) {
        // They go when no lock is held: what they do then is theirs.
        let slots = std::mem::take(&mut *self.slots());
        let claims = std::mem::take(&mut *self.claims.write());
        drop((claims, slots));
    }

    /// The functions, by address.
    pub fn functions(&self) -> Vec<(Address, Arc<dyn Function>)> {
        self.slots().iter().map(|(address, slot)| (*address, slot.function.clone())).collect()
    }

    /// Reads configuration space; ones where there is no function.
    pub fn read_config(&self, address: Address, offset: u16, data: &mut [u8]) {
        let found = {
            let slots = self.slots();
            slots.get(&address).map(|slot| (slot.function.clone(), room::has_several(&slots, address)))
        };
        let Some((function, several)) = found.filter(|_| usize::from(offset) + data.len() <= 4096) else {
            data.fill(0xff);
            return;
        };
        function.read_config(offset, data);
        // Guests look for functions 1 to 7 where this bit is set (PCI Local Bus Specification 3.0, 6.2.1).
        if several
            && let Some(at) = register::HEADER_TYPE.checked_sub(offset)
            && let Some(header_type) = data.get_mut(usize::from(at))
        {
            *header_type |= register::HEADER_TYPE_SEVERAL;
        }
    }

    /// Writes configuration space, and moves what decodes elsewhere now. An error is news for the VM's owner;
    /// the guest's access is done in any case.
    pub fn write_config(&self, address: Address, offset: u16, data: &[u8]) -> Result<(), PciError> {
        let found = self.slots().get(&address).map(|slot| (slot.function.clone(), slot.writing.clone()));
        let Some((function, writing)) = found else { return Ok(()) };
        if usize::from(offset) + data.len() > 4096 {
            return Ok(());
        }
        let _others_wait = writing.lock();
        let mut errors = Vec::from_iter(function.write_config(offset, data).err());
        let mut slots = self.slots();
        if let Some(slot) = slots.get_mut(&address)
            && slot.look_again()
        {
            errors.extend(self.settle(&mut slots));
        }
        PciError::all(errors)
    }

    /// Reads memory space; `false`, and `data` untouched, when no BAR is there.
    pub fn read_memory(&self, at: Gpa, data: &mut [u8]) -> bool {
        self.find(|claims| &claims.memory, at.0, data.len())
            .map(|(claim, offset)| claim.function.read_bar(claim.bar, offset, data))
            .is_some()
    }

    /// Writes memory space; `None` when no BAR is there.
    pub fn write_memory(&self, at: Gpa, data: &[u8]) -> Option<Result<(), PciError>> {
        let (claim, offset) = self.find(|claims| &claims.memory, at.0, data.len())?;
        Some(claim.function.write_bar(claim.bar, offset, data))
    }

    /// Reads I/O ports; `false`, and `data` untouched, when no BAR is there.
    pub fn read_port(&self, port: u16, data: &mut [u8]) -> bool {
        self.find(|claims| &claims.ports, u64::from(port), data.len())
            .map(|(claim, offset)| claim.function.read_bar(claim.bar, offset, data))
            .is_some()
    }

    /// Writes I/O ports; `None` when no BAR is there.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<Result<(), PciError>> {
        let (claim, offset) = self.find(|claims| &claims.ports, u64::from(port), data.len())?;
        Some(claim.function.write_bar(claim.bar, offset, data))
    }

    /// Resets every function; BARs decode nowhere afterwards, and are where they were placed before the guest
    /// started. Goes on after a failure and returns all.
    pub fn reset(&self) -> Vec<PciError> {
        let mut slots = self.slots();
        let mut errors: Vec<PciError> = slots.values_mut().flat_map(|slot| self.reset_slot(slot)).collect();
        errors.extend(self.settle(&mut slots));
        errors
    }

    /// Resets the function at `at` alone, as [`Bus::reset`] does. Nothing happens where there is none.
    pub fn reset_function(&self, at: Address) -> Vec<PciError> {
        let mut slots = self.slots();
        let mut errors = slots.get_mut(&at).map_or_else(Vec::new, |slot| self.reset_slot(slot));
        errors.extend(self.settle(&mut slots));
        errors
    }

    fn reset_slot(&self, slot: &mut Slot) -> Vec<PciError> {
        let mut errors = Vec::new();
        for bar in 0..slot.claimed.len() {
            errors.extend(self.release(slot, bar).err());
        }
        errors.extend(slot.function.reset().err());
        errors.extend(place::write(&*slot.function, &slot.placed));
        slot.look_again();
        errors
    }

    fn slots(&self) -> parking_lot::MutexGuard<'_, BTreeMap<Address, Slot>> {
        self.slots.lock()
    }

    fn find(
        &self,
        which: impl Fn(&Claims) -> &BTreeMap<u64, Claim>,
        at: u64,
        len: usize,
    ) -> Option<(Claim, u64)> {
        let claims = self.claims.read();
        let (start, claim) = which(&claims).range(..=at).next_back()?;
        let offset = at - start;
        (offset.checked_add(len as u64)? <= claim.len).then(|| (claim.clone(), offset))
    }

    /// Makes the claims equal to what functions decode: first releases what moved, then claims what is free.
    /// Where two BARs collide the one that was there first stays; the other follows when it goes. Goes on after a
    /// failure and returns all.
    fn settle(&self, slots: &mut BTreeMap<Address, Slot>) -> Vec<PciError> {
        let mut errors = Vec::new();
        for slot in slots.values_mut() {
            for (bar, wanted) in slot.decoded.into_iter().enumerate() {
                if slot.claimed[bar].is_some() && slot.claimed[bar] != wanted {
                    errors.extend(self.release(slot, bar).err());
                }
            }
        }
        for slot in slots.values_mut() {
            for (bar, wanted) in slot.decoded.into_iter().enumerate() {
                let Some(wanted) = wanted else { continue };
                if slot.claimed[bar].is_none() && self.claim(slot, bar, wanted) {
                    errors.extend(slot.function.bar_moved(bar, Some(wanted)).err());
                }
            }
        }
        errors
    }

    fn release(&self, slot: &mut Slot, bar: usize) -> Result<(), PciError> {
        let Some(at) = slot.claimed[bar].take() else { return Ok(()) };
        {
            let mut claims = self.claims.write();
            match at {
                DecodedAt::Memory(range) => claims.memory.remove(&range.start().0),
                DecodedAt::Ports(first, _) => claims.ports.remove(&u64::from(first)),
            };
        }
        slot.function.bar_moved(bar, None)
    }

    fn claim(&self, slot: &mut Slot, bar: usize, at: DecodedAt) -> bool {
        let mut claims = self.claims.write();
        let (map, start, len) = match at {
            DecodedAt::Memory(range) => (&mut claims.memory, range.start().0, range.len()),
            DecodedAt::Ports(first, count) => (&mut claims.ports, u64::from(first), u64::from(count)),
        };
        let Some(wanted) = GpaRange::new(Gpa(start), len) else { return false };
        let below = map.range(..wanted.end().0).next_back();
        let free = below.is_none_or(|(other, claim)| other + claim.len <= start);
        if free {
            map.insert(start, Claim { len, function: slot.function.clone(), bar });
            slot.claimed[bar] = Some(at);
        }
        free
    }
}

mod place;
mod room;

pub use place::without_place;
pub use room::room_for;
#[cfg(test)]
mod tests;
