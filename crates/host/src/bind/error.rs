//! Why a device could not be taken or given back.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use own::{OwnError, holders};

use crate::in_use::Reason;
use crate::{HostError, PciAddress};

/// Why a device could not be taken or given back.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The device itself could not be read.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The host uses it.
    #[error("PCI device {address} cannot be taken from this host: {}", list(reasons))]
    InUse {
        /// The device.
        address: PciAddress,
        /// All reasons.
        reasons: Vec<Reason>,
    },
    /// Another skep has it.
    #[error("PCI device {address} is in use by process {pid}. Stop that VM first, or assign another device")]
    Taken {
        /// The device.
        address: PciAddress,
        /// The other process.
        pid: u32,
    },
    /// The kernel has no vfio-pci, and it could not be loaded.
    #[error(
        "the kernel's vfio-pci driver is not loaded, and `modprobe vfio-pci` failed: {cause}. Load it as root, or \
         use a kernel with CONFIG_VFIO_PCI"
    )]
    NoVfio {
        /// What modprobe said.
        cause: io::Error,
    },
    /// A step of binding or unbinding failed.
    #[error("cannot {step} PCI device {address}: {cause} ({}). {hint}", path.display())]
    Step {
        /// What was tried: "unbind", "probe a driver for" …
        step: &'static str,
        /// The device.
        address: PciAddress,
        /// The attribute written.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
        /// What a person can do.
        hint: String,
    },
    /// The kernel accepted the writes, but the wrong driver has the device.
    #[error(
        "PCI device {address} should be bound to driver {wanted} now, but is bound to {}. The kernel's log (`dmesg`) \
         says why {wanted} refused it",
        found.as_deref().unwrap_or("none")
    )]
    WrongDriver {
        /// The device.
        address: PciAddress,
        /// The driver that should have it.
        wanted: String,
        /// The one that has.
        found: Option<String>,
    },
    /// A process has a leftover, or another device of its group, through VFIO.
    #[error(
        "PCI device {address}, which a killed VM (process {pid}) had left, is in use by {}, so it stays with vfio-pci. After \
         that process has ended, run: skep host give-back {address}",
        by.join(", ")
    )]
    Used {
        /// The device.
        address: PciAddress,
        /// The process that had bound it, and is gone.
        pid: u32,
        /// Who has it now.
        by: Vec<String>,
    },
    /// The records of what was bound could not be read.
    #[error("cannot read which devices killed VMs have left: {cause}{}", needs_root(cause))]
    Records {
        /// What went wrong.
        cause: OwnError,
    },
    /// The record of what was bound could not be read or kept.
    #[error(
        "cannot use the record of PCI device {address}, which is needed to give it back after a crash: {cause}{}",
        needs_root(cause)
    )]
    Record {
        /// The device.
        address: PciAddress,
        /// What went wrong.
        cause: OwnError,
    },
    /// Another skep has held the lock for longer than binding or giving back can take.
    #[error(
        "cannot take or give back PCI device {address}: {} held {} for all of {} s. If that process is \
         stopped, continue it (`kill -CONT`) or kill it, then try again",
        holders(by),
        path.display(),
        after.as_secs()
    )]
    Held {
        /// The device.
        address: PciAddress,
        /// The lock.
        path: PathBuf,
        /// How long it was waited for.
        after: Duration,
        /// Who holds it, as far as can be seen.
        by: Vec<String>,
    },
    /// A step failed, and so did undoing the steps before it.
    #[error("{failed} Undoing the steps before it failed too: {undo}")]
    Undo {
        /// The first failure.
        failed: Box<BindError>,
        /// The failure while undoing.
        undo: Box<BindError>,
    },
}

fn needs_root(cause: &OwnError) -> &'static str {
    if cause.is_denied() { ". This needs root" } else { "" }
}

fn list(reasons: &[Reason]) -> String {
    reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join("; ")
}
