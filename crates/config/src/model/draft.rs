//! A description of which something is wrong or missing.

use super::assign::Assign;
use super::boot::{Boot, Firmware, Linux};
use super::console::Console;
use super::disk::Disk;
use super::distinct::Distinct;
use super::dma::Dma;
use super::ram::Backing;
use super::tpm::Tpm;
use super::vm::Vm;
use crate::values::count::Cpus;
use crate::values::name::VmName;
use crate::values::path::HostPath;
use crate::values::size::MemorySize;
use crate::values::text::Cmdline;

/// What is right in a description, so that what else stands in the way of the VM can be found in the same go. It is never
/// run: a [`Vm`] is.
///
/// What was given and is wrong is `None`, or not in the lists; or it is the default where nothing would be said wrongly
/// for that. What was not given has its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What the VM is called.
    pub name: Option<VmName>,
    /// How many vCPUs it has.
    pub cpus: Cpus,
    /// Whether the guest can run VMs of its own.
    pub nested: bool,
    /// How much RAM it has.
    pub memory: Option<MemorySize>,
    /// What that RAM is made of.
    pub backing: Backing,
    /// The firmware, if it boots one.
    pub firmware: Option<Firmware>,
    /// The kernel; `None` also when none was given.
    pub kernel: Option<HostPath>,
    /// The initial RAM disk, if any.
    pub initrd: Option<HostPath>,
    /// The kernel's command line.
    pub cmdline: Option<Cmdline>,
    /// Its disks.
    pub disks: Distinct<Disk>,
    /// The PCI functions of the host that it gets for itself.
    pub assigned: Distinct<Assign>,
    /// Its TPM, if it has one.
    pub tpm: Option<Tpm>,
    /// How its devices reach memory.
    pub dma: Dma,
    /// Where its serial console goes.
    pub console: Option<Console>,
}

impl Draft {
    /// The kernel with what it is started with, if one is named.
    pub fn linux(&self) -> Option<Linux> {
        let (kernel, cmdline) = (self.kernel.clone()?, self.cmdline.clone()?);
        Some(Linux { kernel, initrd: self.initrd.clone(), cmdline })
    }

    /// The VM, if nothing is missing.
    pub(crate) fn finished(&self) -> Option<Vm> {
        let Draft {
            name,
            cpus,
            nested,
            memory,
            backing,
            firmware,
            kernel,
            initrd,
            cmdline,
            disks,
            assigned,
            tpm,
            dma,
            console,
        } = self.clone();
        let cmdline = cmdline?;
        let kernel = kernel.map(|kernel| Linux { kernel, initrd, cmdline });
        let boot = match firmware {
            Some(firmware) => Boot::Firmware { firmware, kernel },
            None => Boot::Kernel(kernel?),
        };
        let (name, memory, console) = (name?, memory?, console?);
        Some(Vm { name, cpus, nested, memory, backing, boot, disks, assigned, tpm, dma, console })
    }
}

impl From<&Vm> for Draft {
    fn from(vm: &Vm) -> Draft {
        let Vm { name, cpus, nested, memory, backing, boot, disks, assigned, tpm, dma, console } = vm.clone();
        let (firmware, kernel) = match boot {
            Boot::Kernel(linux) => (None, Some(linux)),
            Boot::Firmware { firmware, kernel } => (Some(firmware), kernel),
        };
        let (kernel, initrd, cmdline) = match kernel {
            Some(linux) => (Some(linux.kernel), linux.initrd, linux.cmdline),
            None => (None, None, Cmdline::default()),
        };
        Draft {
            name: Some(name),
            cpus,
            nested,
            memory: Some(memory),
            backing,
            firmware,
            kernel,
            initrd,
            cmdline: Some(cmdline),
            disks,
            assigned,
            tpm,
            dma,
            console: Some(console),
        }
    }
}
