//! What the driver needs of a PCI function: registers and interrupts. Memory comes from the domain.
//!
//! [`super::vfio`] is the real one; [`super::model`] is a controller in software.

use std::error::Error;
use std::sync::atomic::Ordering;

use dma::OwnMemory;
use memory::GuestSlice;
use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Why something could not be had of the function; a whole sentence.
pub type FunctionError = Box<dyn Error + Send + Sync>;

/// An NVMe controller's PCI function.
pub trait Function: Send + Sync {
    /// Its PCI address, for people.
    fn name(&self) -> &str;

    /// Bytes of registers that can be reached.
    fn registers(&self) -> u64;

    /// Reads 32 bits of a register; all ones when the device is gone. `offset` is a multiple of 4 within
    /// [`registers`](Function::registers).
    fn read(&self, offset: u64) -> u32;

    /// Writes 32 bits of a register, after everything that was written to memory before.
    fn write(&self, offset: u64, value: u32);

    /// How many interrupt vectors (MSI-X) there are.
    fn vectors(&self) -> u16;

    /// Has the vectors from 0 on write to these eventfds, and enables them in the device.
    fn enable_interrupts(&self, vectors: &[EventFd]) -> Result<(), FunctionError>;

    /// Disables all vectors in the device.
    fn disable_interrupts(&self) -> Result<(), FunctionError>;

    /// Allows or forbids the device to do DMA and to send interrupts; an error unless it is then seen to be so.
    fn set_bus_master(&self, allowed: bool) -> Result<(), FunctionError>;

    /// Whether its configuration space, too, reads as all ones: it is not on the bus.
    fn is_absent(&self) -> bool;

    /// Resets the function; its interrupts must have been disabled.
    fn reset(&self) -> Result<(), FunctionError>;

    /// Has `eventfd` written when the host wants the device back or the device is being removed.
    fn announce_removal(&self, eventfd: &EventFd) -> Result<(), FunctionError>;
}

/// Memory for queues, with access by offset. The device may change it at any time.
pub(super) struct QueueMemory(OwnMemory);

impl QueueMemory {
    pub fn new(memory: OwnMemory) -> QueueMemory {
        QueueMemory(memory)
    }

    /// Where the device finds byte `offset`.
    pub fn iova(&self, offset: u64) -> u64 {
        self.0.iova().0 + offset
    }

    /// Writes a structure.
    pub fn put<T: IntoBytes + Immutable + ?Sized>(&self, offset: u64, value: &T) {
        self.write(offset, value.as_bytes());
    }

    /// Reads a structure.
    pub fn get<T: FromBytes + IntoBytes>(&self, offset: u64) -> T {
        let mut value = T::new_zeroed();
        self.read(offset, value.as_mut_bytes());
        value
    }

    /// The 16 bits at an even offset; what the device wrote before them is visible.
    pub fn acquire_u16(&self, offset: u64) -> u16 {
        let place = self.slice(offset, 2).atomic_u16(0).expect("the offset is even");
        u16::from_le(place.load(Ordering::Acquire))
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.slice(offset, bytes.len() as u64).write(bytes);
    }

    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.slice(offset, bytes.len() as u64).read(bytes);
    }

    pub fn zero(&self, offset: u64, len: u64) {
        self.slice(offset, len).zero();
    }

    /// Offsets come from the driver's own layout of the memory, never from the device.
    fn slice(&self, offset: u64, len: u64) -> GuestSlice<'_> {
        let place = memory::Gpa(self.iova(offset));
        self.0.ram().slice(place, len).expect("the layout lies inside the memory")
    }
}
