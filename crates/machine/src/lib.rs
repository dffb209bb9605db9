//! The machine: KVM, vCPUs, interrupt routing, the assembly of a VM from its description, and its life.
//!
//! [`Vm::build`] makes everything or nothing; [`Vm::run`] returns when the VM has ended, with the reason. In
//! between a [`Control`] presses the power button, stops the VM and types on its console.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod assigned;
mod board;
mod boot_plan;
mod control;
mod cpu;
mod disks;
mod error;
mod events;
mod kept;
mod kvm;
mod start;
mod tpm;
mod uefi;
mod vm;

pub use board::layout::{Layout, LayoutError};
pub use control::Control;
pub use devices::Press;
pub use disk::{Answer, Counters, Failure, Reading, Waiting};
pub use disks::{DriveError, DriveReading, Letting, PlugError, Plugged, TrayLock, UnplugError, Unplugged};
pub use error::StartError;
pub use events::notice::{Life, Notice, Reporter};
pub use events::phase::Phase;
pub use kept::is_kept;
pub use kvm::{Hypervisor, KvmError};
pub use start::{check::Checked, steps};
pub use uefi::{templates, variables_of};
pub use vm::{Ended, Outcome, Stopped, Vm};
