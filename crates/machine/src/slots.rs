//! Memory in the guest's address space: KVM's memory slots.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use memory::{Gpa, Ram};
use pci::{HostMemory, MemorySlot};

/// The memory slots of a VM.
pub struct Slots {
    vm: Arc<VmFd>,
    limit: u32,
    used: Mutex<BTreeSet<u32>>,
    /// Kept mapped as long as KVM may use it.
    _ram: Arc<Ram>,
}

impl Slots {
    /// Makes all RAM appear in the guest.
    pub fn new(vm: Arc<VmFd>, limit: usize, ram: &Arc<Ram>) -> io::Result<Slots> {
        let slots = Slots { vm, limit: limit.min(1 << 15) as u32, used: Mutex::default(), _ram: ram.clone() };
        for segment in ram.segments() {
            let memory = HostMemory { start: segment.host_address(), len: segment.range().len() as usize };
            // SAFETY: the segment stays mapped as long as `_ram` is held, and KVM's slots go with the VM before.
            unsafe { slots.add(segment.range().start(), memory)? };
        }
        Ok(slots)
    }

    /// Makes memory of this process appear at `at`.
    ///
    /// # Safety
    /// It must stay mapped until the slot is removed or the VM is gone.
    pub unsafe fn add(&self, at: Gpa, memory: HostMemory) -> io::Result<MemorySlot> {
        let mut used = self.used.lock().expect("no code panics with this lock held");
        let slot = (0..self.limit).find(|slot| !used.contains(slot));
        let slot = slot.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        // SAFETY: passed on to our caller; see above.
        unsafe { self.set(slot, at, memory.start.as_ptr() as u64, memory.len as u64)? };
        used.insert(slot);
        Ok(MemorySlot(slot))
    }

    /// Takes memory away again.
    pub fn remove(&self, MemorySlot(slot): MemorySlot) -> io::Result<()> {
        let mut used = self.used.lock().expect("no code panics with this lock held");
        // SAFETY: size 0 removes the slot; no memory is involved.
        unsafe { self.set(slot, Gpa(0), 0, 0)? };
        used.remove(&slot);
        Ok(())
    }

    /// # Safety
    /// `host` must be `len` bytes of mapped memory that stays mapped while the slot exists.
    unsafe fn set(&self, slot: u32, at: Gpa, host: u64, len: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: at.0,
            memory_size: len,
            userspace_addr: host,
        };
        // SAFETY: by this function's contract.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(io::Error::from)
    }
}
