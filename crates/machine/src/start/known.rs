//! When each failure of a start is known: before anything is touched, or only later, and why. A change that adds a kind of
//! failure must add it here.

use assign::AssignError;
use boot::LoadError;
use config::{Description, Key};
use devices::ahci::AhciError;
use disk::nvme::{NvmeError, Refusal};
use dma::DomainError;
use host::{BindError, HostError};
use memory::RamError;
use pci::PciError;

use crate::error::StartError;
use crate::kvm::KvmError;
use crate::start::check::check;
use crate::tpm::TpmError;
use crate::uefi::{UefiError, VariablesError};

/// When a failure is known.
#[derive(Debug, PartialEq, Eq)]
enum Known {
    /// [`check`] finds it, by this part of it. A change between the check and the start may still cause it.
    Before(&'static str),
    /// It shows only when something is made or taken: why.
    Later(&'static str),
}

use Known::{Before, Later};

const KERNEL: Known = Later("the kernel's answer to a call that changes something");
const SHORTAGE: Known = Later("this host ran short of memory, threads or open files meanwhile");

fn start(error: &StartError) -> Known {
    match error {
        StartError::Kvm(error) => kvm(error),
        StartError::OverLimit(_) => Before("ram::check"),
        StartError::Layout(_) => Before("Layout::new"),
        StartError::Ram(error) => ram(error),
        StartError::Memory(_) | StartError::Introduce { .. } => KERNEL,
        StartError::Differs(_) => Later("a fault in skep or the kernel"),
        StartError::Kernel(_) | StartError::Initrd(_) => Before("opened there"),
        StartError::Uefi(error) => uefi(error),
        StartError::Tpm(error) => tpm(error),
        StartError::Load(error) => load(error),
        StartError::Disk(_) | StartError::DiskInFile(_) | StartError::Nbd(_) => {
            Before("disks::check opens them")
        }
        StartError::SameDisk { .. } => Before("disks::same_as"),
        StartError::DiskAndController { .. } => Before("disks::on_controllers"),
        StartError::Buffers(_) => {
            Before("registered::check tries a table; what of RAM is refused later is a shortage")
        }
        StartError::NoRing(_) => Before("registered::check"),
        StartError::DiskModel(_) | StartError::AtaText(_) => Before("disks::check makes the model"),
        StartError::NvmeModel(error) => nvme_model(error),
        StartError::Ahci(error) => ahci(error),
        StartError::Rom(_) => Before("domains::roms"),
        StartError::Assign(error) => assign(error),
        StartError::Pci(error) => pci(error),
        StartError::Address(_) => Before("domains::planned"),
        StartError::Nvme(error) => nvme(error),
        StartError::NotNvme(_) => Before("host_nvme::check"),
        StartError::Queues { .. } => Later("only its driver learns how many queues a controller grants"),
        StartError::System { .. } => SHORTAGE,
        StartError::GiveBack(_) => Later("it is about the end"),
        StartError::Cancelled | StartError::Injected(_) => Later("it is about the moment"),
    }
}

fn kvm(error: &KvmError) -> Known {
    match error {
        KvmError::Absent(_) | KvmError::Denied(_) | KvmError::Lacks(_) => Before("Hypervisor::open"),
        KvmError::Emulates { .. } => Before("Hypervisor::check_speed"),
        KvmError::TooManyCpus { .. } => Before("Hypervisor::check_cpus"),
        KvmError::NoNesting => Before("Hypervisor::check_nesting"),
        KvmError::Failed { .. } | KvmError::Register { .. } => KERNEL,
    }
}

fn ram(error: &RamError) -> Known {
    match error {
        RamError::Unaligned { .. } | RamError::Pool(_) | RamError::NoNode { .. } => {
            Before("Placement::check")
        }
        RamError::Unavailable { .. } => Before("Placement::check_available"),
        RamError::MoreThanAll { .. } => Before("Placement::check_possible"),
        RamError::Overlap { .. } => Later("a fault in skep: a layout has no overlaps"),
        RamError::Bind { .. } | RamError::System { .. } => SHORTAGE,
    }
}

fn load(error: &LoadError) -> Known {
    match error {
        LoadError::Kernel(_)
        | LoadError::Initrd(_)
        | LoadError::NoLowRam
        | LoadError::CommandLineTooLong { .. }
        | LoadError::CommandLineZero { .. } => Before("boot::check"),
        LoadError::Ram(_) => SHORTAGE,
        LoadError::Source(_) => Later("the file changed, or its disk failed, while it was read"),
        LoadError::Layout(_) | LoadError::MapTooLong { .. } | LoadError::OutsideRam(_) => {
            Later("a fault in skep: no layout is like that")
        }
        LoadError::TablesTooLarge { .. } => {
            Later("a fault in skep: there is room for the tables of 255 CPUs")
        }
    }
}

fn nvme_model(error: &devices::NvmeError) -> Known {
    match error {
        devices::NvmeError::Queues { .. } | devices::NvmeError::Block { .. } => Before("disks::check"),
        devices::NvmeError::Namespaces { .. } | devices::NvmeError::TooLong { .. } => {
            Before("config takes no more disks on a controller, and no longer texts")
        }
        devices::NvmeError::Service(_) => KERNEL,
    }
}

fn uefi(error: &UefiError) -> Known {
    match error {
        UefiError::Find(_)
        | UefiError::File(_)
        | UefiError::NoTemplate(_)
        | UefiError::NoTemplateWithKeys(_)
        | UefiError::NoKeys(_)
        | UefiError::TemplateWithoutKeys(_)
        | UefiError::DamagedKeys { .. } => Before("Firmware::check"),
        UefiError::TooLittleRam { .. } => Before("uefi::enough_ram"),
        UefiError::Kernel(_) | UefiError::Initrd(_) | UefiError::Part { .. } => Before("uefi::Kernel::check"),
        UefiError::Shown(_) | UefiError::Variables(VariablesError::Host { what: "repair", .. }) => KERNEL,
        UefiError::Variables(VariablesError::Changed(_)) => Later("only who writes the file meanwhile knows"),
        UefiError::Variables(_) => Before("Variables::there"),
        UefiError::Tables(error) => load(error),
        UefiError::Name(_) => Later("a fault in skep: the names are its own"),
        UefiError::Memory(_) | UefiError::Descriptor(_) => SHORTAGE,
    }
}

fn tpm(error: &TpmError) -> Known {
    match error {
        TpmError::Start { .. } => KERNEL,
        TpmError::NoSwtpm
        | TpmError::InUse(_)
        | TpmError::State { .. }
        | TpmError::NoDevice(_)
        | TpmError::Busy(_)
        | TpmError::Device { .. }
        | TpmError::NoTpm(_)
        | TpmError::Version { .. } => Before("CheckedTpm::check"),
        TpmError::StillInUse { .. } => Later("only time shows whether what a killed VM has left lets go"),
        TpmError::Refused { .. } => Later("only swtpm knows a good state"),
        TpmError::Silent { .. } => Later("only time shows whether swtpm answers"),
        TpmError::NotReady { .. } => Later("only the TPM knows whether it works"),
        TpmError::Thread(_) => SHORTAGE,
    }
}

fn ahci(error: &AhciError) -> Known {
    match error {
        AhciError::Ports { .. } => Before("config takes no more disks on a controller"),
        AhciError::Registers { .. } => SHORTAGE,
        _ => Later("it is about disks that come and go while the VM runs"),
    }
}

fn pci(error: &PciError) -> Known {
    match error {
        PciError::Full { .. } | PciError::NoRoom { .. } => Before("room::check"),
        PciError::Taken(_) | PciError::NoFunction0(_) => Later("a fault in skep: it takes free addresses"),
        PciError::Service(_) | PciError::Function { .. } => KERNEL,
        PciError::Several(errors) => worst(errors.iter().map(pci)),
    }
}

fn assign(error: &AssignError) -> Known {
    match error {
        AssignError::Host(error) => host(error),
        AssignError::Bind(error) => bind(error),
        AssignError::NotViable(_)
        | AssignError::Memlock(_)
        | AssignError::Unreachable(_)
        | AssignError::InUse { .. }
        | AssignError::Twice { .. }
        | AssignError::NoRemapping { .. }
        | AssignError::Split { .. } => Before("assign::check"),
        AssignError::Domain(error) => domain(error),
        AssignError::Change(_) | AssignError::Vfio(_) | AssignError::Service(_) => KERNEL,
        AssignError::Pci(error) => pci(error),
        AssignError::NotClaimed { .. } => Later("a fault in skep: what is opened was claimed"),
        AssignError::NotEndpoint { .. } => Before("device_in_use knows bridges by their class"),
        AssignError::Bar { .. } => Later("a broken device shows when VFIO has it"),
        AssignError::StillOpen { .. } => Later("it is about the end"),
        AssignError::Several(errors) => worst(errors.iter().map(assign)),
    }
}

fn host(error: &HostError) -> Known {
    match error {
        HostError::NoDevice { .. } | HostError::NoGroup { .. } | HostError::Read { .. } => {
            Before("assign::check")
        }
        HostError::NoCdev { .. } => Later("VFIO has a character device for it once it is bound"),
    }
}

fn bind(error: &BindError) -> Known {
    match error {
        BindError::Host(error) => host(error),
        BindError::InUse { .. } => Before("device_in_use"),
        BindError::Taken { .. } | BindError::NoVfio { .. } | BindError::Step { .. } => Before("cannot_take"),
        BindError::Record { .. } => Before("cannot_take reads it; that none can be written is a shortage"),
        BindError::Used { .. } | BindError::Records { .. } => {
            Later("it is about devices that killed VMs have left, which delay no start")
        }
        BindError::WrongDriver { .. } => Later("only a driver knows whether it takes a device"),
        BindError::Held { .. } => Later("another skep is at work at this moment"),
        BindError::Undo { .. } => Later("it is about the undo"),
    }
}

fn domain(error: &DomainError) -> Known {
    match error {
        DomainError::Memlock(_) | DomainError::NoP2pByIommufd => Before("assign::check"),
        DomainError::NoCdevs => Later("whether VFIO has character devices is known when it is loaded"),
        DomainError::Vfio(_) => {
            Before("DmaChoice::check opens /dev/iommu; the rest is the kernel's answer to changes")
        }
        DomainError::Misfits(_) => {
            Later("what type1 cannot map beyond sysfs's reserved regions, its container says")
        }
        DomainError::Memory(_) => SHORTAGE,
        DomainError::NoRoom { .. } => Later("how much room there is for queues, the domain says"),
        DomainError::Mappings { .. } | DomainError::Map { .. } | DomainError::Unmap { .. } => KERNEL,
        DomainError::NoP2p(_) => Later("whether devices reach each other shows on trial"),
    }
}

fn nvme(error: &NvmeError) -> Known {
    match error {
        NvmeError::Namespace { why: Refusal::Absent, .. } => {
            Before("host_nvme::check, where the kernel drives the controller")
        }
        NvmeError::Namespace { .. } => Later("the kernel does not say how a namespace is formatted in full"),
        NvmeError::Domain(error) => domain(error),
        NvmeError::Vfio(_) | NvmeError::Function(_) => KERNEL,
        NvmeError::System { .. } | NvmeError::NoQueue { .. } => SHORTAGE,
        NvmeError::Unfit { .. }
        | NvmeError::TimedOut { .. }
        | NvmeError::Gone { .. }
        | NvmeError::Fatal { .. }
        | NvmeError::Refused { .. }
        | NvmeError::NotShutDown { .. } => Later("only its driver learns it of the controller"),
    }
}

/// Of several failures, one that is known only later, if there is one.
fn worst(all: impl Iterator<Item = Known>) -> Known {
    let (before, later): (Vec<Known>, Vec<Known>) = all.partition(|known| matches!(known, Before(_)));
    later.into_iter().chain(before).next().unwrap_or(Before("nothing is wrong"))
}

#[test]
fn what_the_check_finds_is_known_before_and_one_finding_hides_no_other() {
    let flags = [
        (Key::Kernel, "/no/kernel"),
        (Key::Initrd, "/no/initrd"),
        (Key::Cpus, "1000"),
        (Key::Memory, "64T"),
        (Key::Node, "999"),
        (Key::Wire, "on"),
        (Key::Assign, "0000:77:00.0"),
        (Key::Disk, "nvme=0000:77:01.0"),
        (Key::Tpm, "passthrough=/dev/no-tpm7"),
        (Key::Disk, "/dev/nosuch"),
        (Key::Disk, "path=/dev/nosuch-either,buffers=registered"),
        (Key::Disk, "nbd=nbd+unix:///a"),
    ];
    let mut flags: Vec<(Key, String)> = flags.map(|(key, value)| (key, value.to_owned())).to_vec();
    flags.extend((0..240).map(|_| (Key::Disk, "ram=1M".to_owned())));
    let description = Description::read(None, &flags);
    assert!(description.wrong().is_empty(), "{:?}", description.wrong());
    let found = check(&description.draft, &mut || ()).err().unwrap();
    for error in &found {
        assert!(matches!(start(error), Before(_)), "{error}: {:?}", start(error));
    }
    let text = found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    for part in [
        "/no/kernel",
        "/no/initrd",
        "no NUMA node 999",
        "there is no TPM /dev/no-tpm7",
        "no PCI device 0000:77:00.0",
        "no PCI device 0000:77:01.0",
        "/dev/nosuch:",
        "/dev/nosuch-either",
        "needs socket=PATH",
        "must all be present",
        "bus is full",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}
