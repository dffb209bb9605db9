//! Registers of a device model that a guest reads without leaving it.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use crate::address::GpaRange;
use crate::map::DeviceMemory;

/// Memory that a model keeps equal to its registers, and that a guest sees read-only: a read is a read of memory,
/// and only a write reaches the model. It is for registers whose reading does nothing.
#[derive(Debug)]
pub struct RegisterPages {
    host: NonNull<u32>,
    len: usize,
}

// SAFETY: the memory is only accessed by atomics, and lives as long as this.
unsafe impl Send for RegisterPages {}
// SAFETY: as above.
unsafe impl Sync for RegisterPages {}

impl RegisterPages {
    /// So many bytes of registers, a multiple of the page size, all zero.
    pub fn new(len: usize) -> io::Result<RegisterPages> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let host = unsafe { libc::mmap(ptr::null_mut(), len, access, kind | libc::MAP_POPULATE, -1, 0) };
        if host == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let host = NonNull::new(host.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(RegisterPages { host, len })
    }

    /// What the guest reads in the register at this offset in bytes, a multiple of four within the pages. What was
    /// stored before, the guest sees before.
    pub fn store(&self, offset: usize, value: u32) {
        self.register(offset).store(value, Ordering::Release);
    }

    /// What the guest reads in the register at an offset.
    pub fn load(&self, offset: usize) -> u32 {
        self.register(offset).load(Ordering::Acquire)
    }

    /// What the guest reads from an offset on, byte by byte. All of it lies within the pages.
    pub fn store_bytes(&self, offset: usize, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            self.byte_at(at).store(*byte, Ordering::Release);
        }
    }

    /// What the guest reads in the byte at an offset; ones behind the end.
    pub fn byte(&self, offset: usize) -> u8 {
        if offset < self.len { self.byte_at(offset).load(Ordering::Acquire) } else { 0xff }
    }

    fn byte_at(&self, offset: usize) -> &AtomicU8 {
        assert!(offset < self.len, "there is no byte at {offset:#x}");
        // SAFETY: as in `register`; a byte is always aligned.
        unsafe { AtomicU8::from_ptr(self.host.as_ptr().cast::<u8>().add(offset)) }
    }

    fn register(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset < self.len, "there is no register at {offset:#x}");
        // SAFETY: the offset is within the mapping, which is aligned, lives as long as `self`, and is only accessed
        // by atomics here; the guest's reads are not this process's.
        unsafe { AtomicU32::from_ptr(self.host.as_ptr().add(offset / 4)) }
    }

    /// Where they lie in this process.
    pub(crate) fn host_address(&self) -> NonNull<u8> {
        self.host.cast()
    }

    /// The pages as memory of `owner` ("ahci 00:03.0") at guest addresses; `None` unless the range is as long as they are.
    pub fn at(self: &std::sync::Arc<Self>, owner: &str, range: GpaRange) -> Option<DeviceMemory> {
        (range.len() == self.len as u64).then(|| DeviceMemory::of_registers(owner, range, self.clone()))
    }
}

impl PartialEq for RegisterPages {
    fn eq(&self, other: &RegisterPages) -> bool {
        ptr::eq(self, other)
    }
}

impl Eq for RegisterPages {}

impl Drop for RegisterPages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it any more: `DeviceMemory` keeps this alive.
        unsafe { libc::munmap(self.host.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Gpa;
    use std::sync::Arc;

    #[test]
    fn registers_hold_what_was_stored_and_are_device_memory_of_their_size_only() {
        let pages = Arc::new(RegisterPages::new(8192).unwrap());
        pages.store(8188, 7);
        assert_eq!((pages.load(8188), pages.load(8184)), (7, 0));
        let range = |len| GpaRange::new(Gpa(0xc000_0000), len).unwrap();
        assert!(pages.at("model", range(4096)).is_none());
        let memory = pages.at("model", range(8192)).unwrap();
        assert!(memory.is_read_only());
        drop(pages);
        // SAFETY: the memory keeps its pages.
        assert_eq!(unsafe { memory.host_address().cast::<u32>().add(2047).read_volatile() }, 7);
    }
}
