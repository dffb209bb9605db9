//! virtio as a guest sees it: queues, and devices that appear on the PCI bus.
//!
//! Section numbers are those of the "Virtual I/O Device (VIRTIO)" specification, version 1.2.
//!
//! A guest is never trusted. A queue checks once, when it is made, where its rings lie, and from then on works
//! on pointers whose lengths it keeps beside them; it reads every descriptor once, into types of its own, and
//! reports nonsense as a [`Malformed`] chain, upon which its device asks to be reset.
//!
//! A driver that clears bus mastering (a kernel about to start another one does) closes the device's [gate](::pci::Gate): the
//! threads of its queues end what is under way and step out, and then the write to the command register is answered. No
//! chain is taken, nothing is written to guest memory and no message is sent until bus mastering is allowed again.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod device;
#[cfg(any(test, feature = "driver"))]
pub mod driver;
mod features;
mod interrupt;
mod pci;
mod queue;
mod reports;

pub use crate::pci::VirtioPci;
pub use device::{QueueSetup, StartError, Stop, VirtioDevice, Worker};
pub use features::Features;
pub use interrupt::{ConfigChange, Interrupt};
pub use queue::{
    Chain, Cursor, DESCRIPTOR_SIZE, Head, MAX_QUEUE_SIZE, Malformed, Piece, Queue, QueueAddresses,
    QueueRefused,
};
pub use reports::{Message, Report, Reports};
