//! PCI as a guest sees it: functions with a configuration space, BARs that decode where the guest puts them,
//! and interrupts as messages or on a line.
//!
//! A device is a [`Function`]; the [`Bus`] finds it by its [`Address`], carries configuration accesses to it
//! and keeps the map of what its BARs decode. What a function needs from the machine (interrupt vectors,
//! doorbells, memory in the guest's address space) it asks of [`Services`].
//!
//! Register names and offsets are those of the PCI Local Bus Specification 3.0, chapter 6, and the PCI Express
//! Base Specification, chapter 7.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod address;
mod bar;
mod bus;
pub mod capability;
mod chipset;
mod config_space;
mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod function;
mod gate;
mod msi;
mod msix;
pub mod register;
mod services;

pub use address::{Address, Pin};
pub use bar::{BarKind, BarSpec, Decoded, DecodedAt, ROM, Windows};
pub use bus::{Bus, room_for, without_place};
pub use chipset::{Chipset, SOUTH_BRIDGE};
pub use config_space::{ConfigSpace, Identity};
pub use error::PciError;
pub use function::{DeviceNumber, Function};
pub use gate::{Gate, Pass};
pub use msi::Msi;
pub use msix::{MSIX_ENTRY_SIZE, Msix};
pub use services::{Line, MsiMessage, ResampledLine, ServiceError, Services, Vector};
