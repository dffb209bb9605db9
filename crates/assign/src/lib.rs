//! PCI functions of the host, handed to a guest.
//!
//! [`Claim`] takes devices from the host for one VM: everything is checked first and reported at once, then they
//! are bound to vfio-pci and their groups put into DMA domains, into which the VM's RAM is mapped. From it
//! come [`Assigned`] functions for the guest's PCI bus: configuration space by allow-list, BARs as memory of
//! the guest, interrupts straight from the host's kernel into the guest's. At the end, for whatever
//! reason, the devices are given back to the drivers they had.
//!
//! Once a guest runs, its device's DMA and most of its registers and interrupts are carried by hardware and
//! kernel; code of this crate runs when the guest sets the device up.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod alarms;
mod assigned;
mod bars;
mod claim;
mod config;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod interrupts;
mod registers;
mod reset;
mod rom;

pub use alarms::{Alarms, Event, Report};
pub use assigned::Assigned;
pub use claim::{Claim, DomainPlan, RamPlan, check};
pub use error::AssignError;
pub use rom::{Rom, RomError, RomImage};
