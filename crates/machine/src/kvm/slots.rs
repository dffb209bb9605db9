//! Memory in the guest's address space: KVM's memory slots, a mirror of the memory map.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use memory::{Change, Contents, Difference, GpaRange, Mirror, MirrorError, Segment};
use parking_lot::{Mutex, MutexGuard};

/// The memory slots of a VM.
pub struct Slots {
    vm: Arc<VmFd>,
    limit: u32,
    used: Mutex<BTreeMap<u32, Slot>>,
}

/// What KVM has in a slot.
struct Slot {
    range: GpaRange,
    host: u64,
    /// What the guest writes is for the device's model.
    read_only: bool,
    /// RAM is kept mapped as long as KVM may use it.
    _ram: Option<Arc<Segment>>,
}

/// What an audit compares of a slot: where it is, the host address of its memory, and whether it is read-only.
type Held = (GpaRange, u64, bool);

/// How what KVM has differs from what it should have, in words.
fn differences(contents: &Contents, held: &[Held]) -> Vec<String> {
    let ram = contents.ram.segments().iter();
    let ram = ram.map(|segment| (segment.range(), segment.host_address().as_ptr() as u64, false));
    let devices = contents.devices.iter();
    let devices =
        devices.map(|device| (device.range(), device.host_address().as_ptr() as u64, device.is_read_only()));
    let wanted: Vec<Held> = ram.chain(devices).collect();
    let missing = wanted.iter().filter(|one| !held.contains(one));
    let wrong = held.iter().filter(|one| !wanted.contains(one));
    missing
        .map(|(range, ..)| format!("{range} is missing"))
        .chain(wrong.map(|(range, ..)| format!("it has something else at {range}")))
        .collect()
}

impl Slots {
    /// No memory yet; KVM takes `limit` slots.
    pub fn new(vm: Arc<VmFd>, limit: usize) -> Slots {
        Slots { vm, limit: limit.min(1 << 15) as u32, used: Mutex::default() }
    }

    fn add(&self, slot: Slot) -> io::Result<()> {
        let mut used = self.used();
        let number = (0..self.limit).find(|number| !used.contains_key(number));
        let number = number.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        // SAFETY: the slot keeps RAM, and the maker of the `DeviceMemory` keeps a device's memory, until it is
        // removed from the map and so from here, or the VM is gone.
        unsafe { self.set(number, slot.range, slot.host, slot.read_only)? };
        used.insert(number, slot);
        Ok(())
    }

    fn remove(&self, range: GpaRange) -> io::Result<()> {
        let mut used = self.used();
        let number = used.iter().find(|(_, slot)| slot.range == range).map(|(number, _)| *number);
        let number = number.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        let gone = kvm_userspace_memory_region { slot: number, ..Default::default() };
        // SAFETY: size 0 removes the slot; no memory is involved.
        unsafe { self.vm.set_user_memory_region(gone) }.map_err(io::Error::from)?;
        used.remove(&number);
        Ok(())
    }

    fn used(&self) -> MutexGuard<'_, BTreeMap<u32, Slot>> {
        self.used.lock()
    }

    /// # Safety
    /// `host` must be as many bytes of mapped memory, which stays mapped while the slot exists.
    unsafe fn set(&self, slot: u32, range: GpaRange, host: u64, read_only: bool) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: if read_only { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: range.start().0,
            memory_size: range.len(),
            userspace_addr: host,
        };
        // SAFETY: by this function's contract.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(io::Error::from)
    }
}

impl Mirror for Slots {
    fn name(&self) -> String {
        "KVM".to_owned()
    }

    fn prepare(&self, change: &Change) -> Result<(), MirrorError> {
        let range = change.range();
        match change {
            Change::AddRam(segment) => {
                let host = segment.host_address().as_ptr() as u64;
                self.add(Slot { range, host, read_only: false, _ram: Some(segment.clone()) })?;
            }
            Change::AddDevice(device) => {
                let host = device.host_address().as_ptr() as u64;
                self.add(Slot { range, host, read_only: device.is_read_only(), _ram: None })?;
            }
            Change::RemoveRam(_) | Change::RemoveDevice(_) => self.remove(range)?,
        }
        Ok(())
    }

    fn audit(&self, contents: &Contents) -> Result<(), Difference> {
        let held: Vec<Held> =
            self.used().values().map(|slot| (slot.range, slot.host, slot.read_only)).collect();
        let differences = differences(contents, &held);
        if differences.is_empty() { Ok(()) } else { Err(Difference { mirror: self.name(), differences }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::{Gpa, Ram, RegisterPages};

    #[test]
    fn registers_that_kvm_lets_the_guest_write_to_are_a_difference_and_so_is_ram_that_it_does_not() {
        let range = |start| GpaRange::new(Gpa(start), 4096).unwrap();
        let ram = Arc::new(Ram::new(&[range(0)]).unwrap());
        let registers = Arc::new(RegisterPages::new(4096).unwrap()).at("registers", range(1 << 20)).unwrap();
        let of_ram = ram.segments()[0].host_address().as_ptr() as u64;
        let of_registers = registers.host_address().as_ptr() as u64;
        let contents = Contents { ram, devices: vec![registers] };
        let found = |ram_is, registers_are| {
            let held = [(range(0), of_ram, ram_is), (range(1 << 20), of_registers, registers_are)];
            differences(&contents, &held)
        };
        assert_eq!(found(false, true), [""; 0]);
        let both = |at| [format!("{at} is missing"), format!("it has something else at {at}")];
        assert_eq!(found(false, false), both(range(1 << 20)));
        assert_eq!(found(true, true), both(range(0)));
        assert_eq!(differences(&contents, &[]).len(), 2);
    }
}
