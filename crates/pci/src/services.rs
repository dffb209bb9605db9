//! What a function asks of the machine.

use std::io;
use std::sync::Arc;

use memory::{DeviceMemory, Gpa};
use vmm_sys_util::eventfd::EventFd;

use crate::address::{Address, Pin};

/// A message signalled interrupt: what the device would write where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsiMessage {
    /// The address written to.
    pub address: u64,
    /// The value written.
    pub data: u32,
}

/// The machine could not do what a function asked.
#[derive(Debug, thiserror::Error)]
#[error("{device}: cannot {what}: {cause}")]
pub struct ServiceError {
    /// The function in the guest.
    pub device: Address,
    /// What was asked, with its address or number: "map 0x4000 bytes at 0xc0000000".
    pub what: String,
    /// The kernel's answer.
    pub cause: io::Error,
}

/// One interrupt vector of a function. Whoever raises it writes to its eventfd; while the vector has a message
/// each write becomes that message, and while it has none, writes wait in the eventfd and become one message
/// when the vector gets one again. That is just how a masked vector with its pending bit behaves.
pub trait Vector: Send + Sync {
    /// The eventfd that raises the interrupt, for a device model, the kernel or VFIO.
    fn eventfd(&self) -> &EventFd;
    /// Sets the message, or none to hold interrupts back.
    fn set(&self, message: Option<MsiMessage>) -> Result<(), ServiceError>;
    /// Whether an interrupt is held back.
    fn pending(&self) -> bool;
}

/// The interrupt pin of a function, level triggered, for device models.
pub trait Line: Send + Sync {
    /// Asserts or releases the pin.
    fn set(&self, asserted: bool);
}

/// The interrupt pin of an assigned function: a write to `trigger` asserts the line, the guest's end of
/// interrupt releases it and writes to `resample`, whereupon the real line is to be unmasked.
#[derive(Debug)]
pub struct ResampledLine {
    /// Asserts the line.
    pub trigger: EventFd,
    /// Told when the guest is done.
    pub resample: EventFd,
}

/// What a machine does for its functions.
pub trait Services: Send + Sync {
    /// A new interrupt vector without a message.
    fn vector(&self, device: Address) -> Result<Arc<dyn Vector>, ServiceError>;
    /// The function's interrupt pin, for a device model.
    fn line(&self, device: Address, pin: Pin) -> Arc<dyn Line>;
    /// The function's interrupt pin, for an assigned device. It goes when [`Services::remove_resampled_line`] is
    /// called.
    fn resampled_line(&self, device: Address, pin: Pin) -> Result<Arc<ResampledLine>, ServiceError>;
    /// Takes the pin back.
    fn remove_resampled_line(
        &self,
        device: Address,
        pin: Pin,
        line: &ResampledLine,
    ) -> Result<(), ServiceError>;
    /// From now on a guest's write of `width` bytes (any value) at `at` signals the eventfd and goes nowhere else.
    fn add_doorbell(&self, device: Address, at: Gpa, width: u32, fd: &EventFd) -> Result<(), ServiceError>;
    /// Takes the doorbell back.
    fn remove_doorbell(&self, device: Address, at: Gpa, width: u32, fd: &EventFd)
    -> Result<(), ServiceError>;
    /// Makes memory of the function appear in the guest, in whole pages.
    fn add_memory(&self, device: Address, memory: &DeviceMemory) -> Result<(), ServiceError>;
    /// Takes the memory away again.
    fn remove_memory(&self, device: Address, memory: &DeviceMemory) -> Result<(), ServiceError>;
}
