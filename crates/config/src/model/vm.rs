//! A VM as a whole.

use super::assign::Assign;
use super::boot::Boot;
use super::console::Console;
use super::disk::Disk;
use super::distinct::Distinct;
use super::dma::Dma;
use super::ram::Backing;
use super::tpm::Tpm;
use crate::values::count::Cpus;
use crate::values::name::VmName;
use crate::values::size::MemorySize;

/// A VM's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// What the VM is called.
    pub name: VmName,
    /// How many vCPUs it has.
    pub cpus: Cpus,
    /// Whether it can run VMs of its own: whether its vCPUs have SVM or VMX.
    pub nested: bool,
    /// How much RAM it has.
    pub memory: MemorySize,
    /// What that RAM is made of.
    pub backing: Backing,
    /// What it boots.
    pub boot: Boot,
    /// Its disks, in the order in which the guest finds them.
    pub disks: Distinct<Disk>,
    /// The PCI functions of the host that it gets for itself, in the order in which the guest finds them.
    pub assigned: Distinct<Assign>,
    /// Its TPM, if it has one.
    pub tpm: Option<Tpm>,
    /// How its devices reach memory.
    pub dma: Dma,
    /// Where its serial console goes.
    pub console: Console,
}
