//! The keys of a VM.

use super::{AssignKey, DiskKey, Example, FwCfgKey, Keyed, Kind, Row, TpmKey, keys};
use crate::model::{DmaBackEnd, HostDomain, HugePages, OnFault, Once, P2p, Wire};

impl Key {
    /// All keys, in the order in which people read of them.
    pub const ALL: &'static [Key] = <Key as Keyed>::ALL;

    /// All about this one.
    pub fn row(self) -> &'static Row {
        Keyed::row(self)
    }

    /// The key in a file.
    pub fn name(self) -> &'static str {
        self.row().name
    }
}

keys! {
    /// What can be said about a VM: a key of the file, and a flag of the same name.
    pub enum Key {
        Name {
            name: "name", since: "0.1", help: "What the VM is called",
            kind: Kind::Text("NAME"), default: "vm",
            more: "1 to 64 of A-Z a-z 0-9 . _ -, beginning with neither . nor -.",
            example: Example::Lines(r#"name = "storage""#),
        }
        Cpus {
            name: "cpus", since: "0.1", help: "How many vCPUs it has",
            kind: Kind::Number("N"), default: "1",
            more: "1 to 1024, and no more than this host's KVM allows.",
            example: Example::Lines("cpus = 2"),
        }
        Nested {
            name: "nested", since: "0.1",
            help: "Let the guest run VMs of its own: its vCPUs have SVM or VMX, if this host's KVM offers it",
            kind: Kind::Switch, default: "off",
            more: "KVM offers it by the `nested` parameter of its module. Most guests do not need it, and it exposes much code \
                   of the host's kernel to the guest.",
            example: Example::Lines("nested = false"),
        }
        Memory {
            name: "memory", since: "0.1", help: "How much RAM it has: 512M, 6G, 1GiB; a bare number counts MiB",
            kind: Kind::Size, default: "256M",
            more: "A multiple of 2 MiB, at least 16 MiB. Units are B, K, M, G and T in steps of 1024 (KiB, MiB … mean the \
                   same).",
            example: Example::Lines(r#"memory = "6G""#),
        }
        Hugepages {
            name: "hugepages", since: "0.1", help: "Take the RAM from this host's pool of huge pages",
            kind: Kind::Text(HugePages::CHOICE), default: "ordinary memory",
            more: "The memory must be a multiple of a page. Without the key the kernel gives large pages where it has them. \
                   The start says so when the pool is short, and how to fill it.",
            example: Example::Lines(r#"hugepages = "2M""#),
        }
        Node {
            name: "node", since: "0.1", help: "Take the RAM from this NUMA node of the host",
            kind: Kind::Number("N"), default: "any",
            example: Example::Lines("node = 0"),
        }
        Wire {
            name: "wire", since: "0.1", help: "Make all RAM present and lock it before the guest runs",
            kind: Kind::Text(Wire::CHOICE), default: "auto, which is on with assigned devices",
            more: "RAM that is not present is only promised. When the host has no huge page left for it (others took them, or a \
                   cgroup's limit was lowered), the VM is stopped with status 4 and says what it lacks. When ordinary memory \
                   runs out, in the host or in skep's cgroup (memory.max), the kernel's OOM killer chooses a process and ends \
                   it without a word: if that is skep, its status is 137. Limits that are too low at the start are found \
                   there.",
            example: Example::Lines(r#"wire = "auto""#),
        }
        Firmware {
            name: "firmware", since: "0.1",
            help: "UEFI firmware, which boots what is installed on the disks: auto (what this host has installed), none, or a \
                   file with its code [,vars=FILE that new variables are made from]",
            kind: Kind::Text("auto|none|PATH"), default: "auto without a kernel, none with one",
            more: "auto is found by QEMU's descriptors in /usr/share/qemu/firmware, or in the usual places (Debian's package \
                   ovmf). Without \",vars=FILE\" it is the file beside the code that has VARS in its name for CODE, or vars for \
                   code. It is only read; the VM's own variables are firmware-vars. With firmware and a kernel, the firmware starts the kernel, which must be a program for UEFI then (Debian's are).",
            example: Example::Lines(r#"# firmware = "/usr/share/OVMF/OVMF_CODE_4M.fd""#),
        }
        FirmwareVars {
            name: "firmware-vars", since: "0.1",
            help: "The file of the firmware's variables, made at the first start",
            kind: Kind::Text("PATH"), default: "firmware-vars.fd in the VM's folder below /var/lib/skep",
            more: "They say, among other things, what it boots, in which order. The start that makes it says where it is. A VM with \
                   another name has a folder of its own, so rename that as well (it also has the TPM's state). Only one VM \
                   at a time can use it. Each change is on the disk before the guest goes on.",
            example: Example::Lines(r#"# firmware-vars = "/var/lib/skep/vm/firmware-vars.fd""#),
        }
        SecureBoot {
            name: "secure-boot", since: "0.1",
            help: "Start only what is signed by the keys that the firmware's variables have from the start (Microsoft's, \
                   which Debian's shim is signed by)",
            kind: Kind::Switch, default: "off",
            more: "This is Secure Boot. The keys are in the VM's variables, which its first start copies from a template with keys \
                   (of Debian's package ovmf: OVMF_VARS_4M.ms.fd; of a firmware of your own: OVMF_VARS.ms.fd beside OVMF_CODE.fd, or \
                   what \",vars=FILE\" names). Whether a firmware does Secure Boot is said by its variables alone: off does not \
                   turn it off, and lets a start go on without it. A start says so if the owner's key is one that was published for \
                   tests (Debian's OVMF_VARS_4M.snakeoil.fd has such a one). A kernel \
                   that the description names is started in any case (Debian's OVMF does not look at its signature). skep has no SMM: \
                   Secure Boot keeps what is not signed \
                   from being started, and does not keep a kernel that runs from changing those variables.",
            example: Example::Lines("# secure-boot = true"),
        }
        Boot {
            name: "boot", since: "0.1",
            help: "What the firmware boots before everything else, until the guest is reset: the discs in CD drives",
            kind: Kind::Text(Once::CHOICE), default: "",
            more: "It is for installers, in a flag: --boot once:cd. If nothing else is said, the firmware boots the disks in \
                   their order here, then what assigned devices have. `bootindex` of disks and of assigned devices gives \
                   another order: lower ones come first, and those without one behind them. Entries that the guest's boot \
                   loader wrote keep their order for each disk.",
            example: Example::Lines(r#"# boot = "once:cd""#),
        }
        BootMenu {
            name: "boot-menu", since: "0.1", help: "Have the firmware show its menu for five seconds before it boots",
            kind: Kind::Switch, default: "off",
            example: Example::Lines("# boot-menu = true"),
        }
        FwCfg {
            name: "fw-cfg", since: "0.1",
            help: "A file for the guest, in its firmware's configuration (Linux: /sys/firmware/qemu_fw_cfg/by_name)",
            kind: Kind::Tables("SPEC", FwCfgKey::ROWS), default: "",
            more: "Each is a [[fw-cfg]], or all are in one line as here. As a flag: --fw-cfg opt/NAME,string=TEXT",
            example: Example::Lines(r#"# fw-cfg = [{ name = "opt/org.example/config", string = "a=1" }]"#),
        }
        Kernel {
            name: "kernel", since: "0.1",
            help: "The kernel to boot: a bzImage, or an ELF vmlinux with a PVH entry, also compressed",
            kind: Kind::Text("PATH"), default: "",
            more: "A bzImage is of Linux 2.6.24 or later, of 64 or 32 bits (memtest86+ is one, too). An ELF file may be \
                   compressed with gzip, xz or zstd.",
            example: Example::Lines(r#"kernel = "/lab/guest/vmlinux""#),
        }
        Initrd {
            name: "initrd", since: "0.1", help: "The initial RAM disk",
            kind: Kind::Text("PATH"), default: "",
            more: "It is for kernels that need one.",
            example: Example::Lines(r#"initrd = "/lab/guest/initrd""#),
        }
        Cmdline {
            name: "cmdline", since: "0.1", help: "The kernel's command line",
            kind: Kind::Line("WORDS"), default: "console=ttyS0",
            example: Example::Lines(r#"cmdline = "console=ttyS0 quiet""#),
        }
        Console {
            name: "console", since: "0.1", help: "Where the serial console goes",
            kind: Kind::Text("stdio|file:PATH|socket:PATH"), default: "stdio",
            more: "A file gets output only. A socket is for this user and root.",
            example: Example::Lines(r#"console = "stdio""#),
        }
        Dma {
            name: "dma", since: "0.1", help: "How devices reach memory",
            kind: Kind::Text(DmaBackEnd::CHOICE), default: "auto, which is iommufd where this host has it",
            more: "Elsewhere, auto is type1.",
            example: Example::Lines(r#"dma = "auto""#),
        }
        HostDomain {
            name: "host-domain", since: "0.1",
            help: "How much guest RAM the devices that skep itself drives reach: always all of it (shared), or, for study, \
                   none of it once a device is assigned (exclusive, only with i-know)",
            kind: Kind::Text(HostDomain::CHOICE), default: "shared",
            more: "Those devices are named by nvme = … below. With exclusive, the guest's RAM leaves their domain when a device \
                   is assigned, as it did in bhyve until 2022, and what skep's own drivers then read or write for the guest \
                   fails with I/O errors.",
            example: Example::Lines(r#"host-domain = "shared""#),
        }
        IKnow {
            name: "i-know", since: "0.1", help: "Confirm a dangerous choice",
            kind: Kind::Switch, default: "off",
            more: "An exclusive host domain is refused without it.",
            example: Example::Lines("# i-know = true"),
        }
        OnFault {
            name: "on-fault", since: "0.1",
            help: "What happens, besides an event, when a device's DMA fails, and again if it still fails a second after a \
                   reset or resume. Pausing the VM does not stop the DMA of assigned devices",
            kind: Kind::Text(OnFault::CHOICE), default: "report",
            more: "report is nothing more than the event; pause and stop are of the VM, reset is of the device. Pausing a VM \
                   stops only its vCPUs: assigned devices go on, so that the guest finds them as it left them. A device that \
                   can only be reset with its bus takes the VM's others on that bus along, which is told.",
            example: Example::Lines(r#"on-fault = "report""#),
        }
        P2p {
            name: "p2p", since: "0.1", help: "Whether assigned devices reach each other's BARs",
            kind: Kind::Text(P2p::CHOICE), default: "off",
            more: "on is where this host can; required is the same, or no start.",
            example: Example::Lines(r#"p2p = "off""#),
        }
        Tpm {
            name: "tpm", since: "0.1", help: "A TPM 2.0, emulated by swtpm or one of this host",
            kind: Kind::SwitchOrTable(TpmKey::ROWS), default: "off",
            in_flag: "on-error is what happens, besides an event, when it fails.",
            more: "swtpm is in Debian's package of that name; what it must not forget lies in /var/lib/skep/NAME/tpm2, and who \
                   copies that has the guest's secrets. As a flag: --tpm on,on-error=stop, or --tpm passthrough=/dev/tpm0.",
            example: Example::Lines(r#"tpm = { on-error = "pause" }"#),
        }
        Assign {
            name: "assign", since: "0.1",
            help: "A PCI device of the host for the guest alone, as lspci -D prints it",
            kind: Kind::Tables("ADDRESS", AssignKey::ROWS), default: "",
            in_flag: "Devices of the same domain [default: guest] share their view of memory. on-request is what happens when \
                      this host asks for the device back; it gets it only when the VM ends [default: report]. rom is which \
                      option ROM firmware finds at it.",
            more: "As a flag:\n  --assign 0000:02:00.0,domain=nic,on-fault=reset,on-request=stop",
            example: Example::Lines(r#"assign = [
    "0000:01:00.0",
    { address = "0000:02:00.0", domain = "nic", on-fault = "reset", on-request = "stop" },
]"#),
        }
        Disk {
            name: "disk", since: "0.1", help: "A disk for the guest",
            kind: Kind::Tables("SPEC", DiskKey::ROWS), default: "",
            in_flag: "Lone text is a path: /dev/sda means path=/dev/sda. Disks that name one controller share it. The firmware boots lower numbers of bootindex first, then the rest in \
                      its order here. chain is said once for each other file that an image may open (follow: any in its \
                      folder). Write a comma within a value twice. docs/vm.toml explains each.",
            more: "The guest finds disks in their order here (of up to 38 devices; docs/pc.md, \"PCI bus 0\"). In a flag, a comma \
                   within a value is written twice, and true and false may be on and off:\n  \
                   --disk path=/dev/disk/by-id/ata-WD-1234,readonly=on,queues=2",
        }
    }
}
