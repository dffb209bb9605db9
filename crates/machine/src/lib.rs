//! The machine: KVM, vCPUs, interrupt routing, the assembly of a VM from its description, and its life.
//!
//! [`Vm::build`] makes everything or nothing; [`Vm::run`] returns when the VM has ended, with the reason. In
//! between a [`Control`] presses the power button, stops the VM and types on its console.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod alarms;
mod assemble;
mod assigned;
mod board;
mod buffers;
mod check;
mod chips;
mod config_ports;
mod console;
mod cpu;
mod cpuid;
mod cpus;
mod disks;
mod driven;
mod ending;
mod error;
mod events;
mod failures;
mod faults;
mod firmware;
mod interrupts;
mod kept;
#[cfg(test)]
mod known;
mod kvm;
mod layout;
mod leftovers;
mod lost;
mod notice;
mod phase;
mod plan;
mod ports;
mod ram;
mod registers;
mod room;
mod services;
mod slots;
pub mod steps;
mod tpm;
mod uefi;
mod vm;

pub use check::Checked;
pub use devices::Press;
pub use disk::{Answer, Counters, Failure, Reading, Waiting};
pub use disks::{DriveError, DriveReading, Letting, PlugError, Plugged, TrayLock, UnplugError, Unplugged};
pub use error::StartError;
pub use kvm::{Hypervisor, KvmError};
pub use layout::{Layout, LayoutError};
pub use notice::{Life, Notice, Reporter};
pub use phase::Phase;
pub use vm::{Control, Ended, Outcome, Stopped, Vm};
