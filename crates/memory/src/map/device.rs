//! Memory of a device in a VM's memory map.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::address::GpaRange;
use crate::registers::RegisterPages;

/// Memory of a device that the guest reaches directly: a BAR of an assigned function, or the part of one that can be
/// mapped; or registers of a model, which it can only read and other devices do not reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceMemory {
    owner: Arc<str>,
    range: GpaRange,
    host: NonNull<u8>,
    /// Kept as long as the map has them.
    registers: Option<Arc<RegisterPages>>,
}

// SAFETY: device memory is never accessed through this type, only handed on by address.
unsafe impl Send for DeviceMemory {}
// SAFETY: as above.
unsafe impl Sync for DeviceMemory {}

impl DeviceMemory {
    /// Memory of `owner` ("0000:01:00.0 BAR 0") at `range`, which lies at `host` in this process.
    ///
    /// # Safety
    /// `range.len()` bytes from `host` on must stay mapped until the memory is removed from the map it is added to,
    /// and must be of the sort that may change at any time.
    pub unsafe fn new(owner: impl Into<Arc<str>>, range: GpaRange, host: NonNull<u8>) -> DeviceMemory {
        DeviceMemory { owner: owner.into(), range, host, registers: None }
    }

    pub(crate) fn of_registers(owner: &str, range: GpaRange, pages: Arc<RegisterPages>) -> DeviceMemory {
        DeviceMemory { owner: owner.into(), range, host: pages.host_address(), registers: Some(pages) }
    }

    /// Whether these are a model's registers: the guest reads them as memory, and what it writes goes to the model.
    /// They are not mapped for DMA.
    pub fn is_read_only(&self) -> bool {
        self.registers.is_some()
    }

    /// Whose it is.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Where the guest sees it.
    pub fn range(&self) -> GpaRange {
        self.range
    }

    /// Where it lies in this process.
    pub fn host_address(&self) -> NonNull<u8> {
        self.host
    }
}
