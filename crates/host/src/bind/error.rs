//! Why a device could not be taken or given back.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

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
        "the kernel's vfio-pci driver is not there, and `modprobe vfio-pci` failed: {cause}. Load it as root, or \
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
    /// The kernel took the writes, and yet the wrong driver has the device.
    #[error(
        "PCI device {address} should be with driver {wanted} now but is with {}. See the kernel's log (`dmesg`) \
         for why {wanted} refused it",
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
    /// The record of what was bound could not be read or kept.
    #[error(
        "cannot keep the record of PCI device {address} in {}: {cause}. skep needs it to give the device back \
         after a crash; run as root, or make that folder writable",
        path.display()
    )]
    Record {
        /// The device.
        address: PciAddress,
        /// The record's file.
        path: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// Another skep has been binding or giving back for longer than that can take.
    #[error(
        "cannot wait any longer to take or give back PCI device {address}: {} held {} all the {} s. If that one is \
         stopped, let it go on (`kill -CONT`) or kill it, then try again",
        if by.is_empty() { "another process has".to_owned() } else { format!("{} has", by.join(", ")) },
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
    #[error("{failed} Undoing what was done before failed too: {undo}")]
    Undo {
        /// The first failure.
        failed: Box<BindError>,
        /// The failure while undoing.
        undo: Box<BindError>,
    },
}

fn list(reasons: &[Reason]) -> String {
    reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join("; ")
}
