//! Why a VM could not start.

use std::io;

use assign::{AssignError, RomError};
use boot::{InitrdError, KernelError, LoadError};
use config::Syntax;
use devices::VirtioBlkError;
use devices::ahci::{AhciError, AtaTextError};
use disk::nvme::NvmeError;
use disk::{BadNbdUrl, OpenError};
use host::{OverLimit, PciAddress};
use memory::{ChangeError, Difference, RamError};
use pci::PciError;

use crate::board::layout::LayoutError;
use crate::kvm::KvmError;
use crate::tpm::TpmError;
use crate::uefi::UefiError;

/// Why a VM could not start. When one is returned, the host is as it was, but for what [`StartError::GiveBack`] names.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The guest's address space.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A cgroup whose limit is too low for the RAM.
    #[error(transparent)]
    OverLimit(#[from] OverLimit),
    /// A mirror of the memory map.
    #[error(transparent)]
    Memory(#[from] ChangeError),
    /// A mirror that differs from the memory map.
    #[error("{0}. This is a fault in skep or in the kernel; see the kernel's log (dmesg).")]
    Differs(#[from] Difference),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initrd.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The firmware.
    #[error(transparent)]
    Uefi(#[from] UefiError),
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// Loading them.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] OpenError),
    /// A disk that a file describes: what its hint says to add is written as it is there.
    #[error("{}", .0.with_settings(&|setting| Syntax::File.written(setting)))]
    DiskInFile(OpenError),
    /// Two disks that are the same by different names.
    #[error(
        "disk {again}: it is the same as disk {first}, under another name. Remove one of \
         the two."
    )]
    SameDisk {
        /// The one that comes second.
        again: String,
        /// The one that comes first.
        first: String,
    },
    /// A disk on a controller that the VM has as well.
    #[error(
        "disk {disk}: it is on controller {controller}, which the description gives to this VM as well, {how}. Remove one of the two."
    )]
    DiskAndController {
        /// The disk.
        disk: String,
        /// Its controller.
        controller: PciAddress,
        /// How the controller is given.
        how: &'static str,
    },
    /// RAM that disks reach as registered buffers.
    #[error(transparent)]
    Buffers(#[from] disk::BufferTableError),
    /// A disk without a ring.
    #[error(
        "disk {0}: io_uring is not allowed here, so guest RAM cannot be registered for it. Allow io_uring (sysctl \
         kernel.io_uring_disabled, or the container's seccomp profile), or remove `buffers`."
    )]
    NoRing(String),
    /// What the guest is to see of a disk.
    #[error(transparent)]
    DiskModel(#[from] VirtioBlkError),
    /// An NVMe controller that the guest is to see.
    #[error(transparent)]
    NvmeModel(#[from] devices::NvmeError),
    /// A SATA controller that the guest is to see.
    #[error(transparent)]
    Ahci(#[from] AhciError),
    /// A text that a SATA disk shows to the guest.
    #[error(transparent)]
    AtaText(#[from] AtaTextError),
    /// The address of a disk on a server.
    #[error(transparent)]
    Nbd(#[from] BadNbdUrl),
    /// An assigned device.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// What is to be an expansion ROM.
    #[error(transparent)]
    Rom(#[from] RomError),
    /// PCI.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// KVM and an assigned device, or its group.
    #[error("cannot register {name} with KVM: {cause}. The kernel's log (dmesg) may say more.")]
    Introduce {
        /// "IOMMU group 9", or the device's PCI address.
        name: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// An address that no device of a host has.
    #[error("{0} is no PCI address of a host. Use the form that `lspci -D` prints, such as 0000:01:00.0.")]
    Address(config::PciAddress),
    /// A disk on a controller that skep drives itself.
    #[error(transparent)]
    Nvme(#[from] NvmeError),
    /// A disk on something that is no NVMe controller.
    #[error(
        "{0}: that is no NVMe controller, so skep cannot drive it. Give its disks by path (--disk path=/dev/…); `skep \
         disks` lists them."
    )]
    NotNvme(String),
    /// An NVMe controller with too few queues.
    #[error(
        "NVMe controller {device} grants {granted} I/O queues, and its disks need at least {least}. Give them fewer \
         (`queues`)."
    )]
    Queues {
        /// PCI address.
        device: String,
        /// How many there are.
        granted: u16,
        /// How many would be enough.
        least: u32,
    },
    /// Threads and eventfds.
    #[error("cannot {what}: {cause}. This host is short of memory, threads or open files.")]
    System {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A VM that was built and not run could not be undone completely.
    #[error("{0}")]
    GiveBack(String),
    /// Somebody wanted the VM to end before it had started.
    #[error("the start was cut short, as asked")]
    Cancelled,
    /// A test wanted the start to fail here.
    #[error("this start fails before the step \"{0}\", as {variable} asks", variable = crate::start::steps::VARIABLE)]
    Injected(&'static str),
}

/// For `map_err`: what was tried.
pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |cause| StartError::System { what, cause }
}

/// The same address, as the host's crate has it.
pub(crate) fn host_address(address: config::PciAddress) -> Result<PciAddress, StartError> {
    address.to_string().parse().map_err(|_| StartError::Address(address))
}

impl StartError {
    /// What is wrong with a disk, in the words of its description.
    pub(crate) fn for_a_disk_in(self, syntax: Syntax) -> StartError {
        match (self, syntax) {
            (StartError::Disk(error), Syntax::File) => StartError::DiskInFile(error),
            (error, _) => error,
        }
    }
}
