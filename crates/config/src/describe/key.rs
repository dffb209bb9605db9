//! The keys there are.

/// What can be said about a VM: a key of the file, and a flag of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key {
    /// `name`, `--name`: see [`crate::VmName`].
    Name,
    /// `cpus`, `--cpus`: see [`crate::Cpus`].
    Cpus,
    /// `nested`, `--nested`: whether the guest can run VMs of its own.
    Nested,
    /// `memory`, `--memory`: see [`crate::MemorySize`].
    Memory,
    /// `hugepages`, `--hugepages`: see [`crate::HugePages`].
    Hugepages,
    /// `node`, `--node`: see [`crate::NodeId`].
    Node,
    /// `wire`, `--wire`: see [`crate::Wire`].
    Wire,
    /// `firmware`, `--firmware`: see [`crate::FirmwareChoice`].
    Firmware,
    /// `firmware-vars`, `--firmware-vars`: the file of the firmware's variables.
    FirmwareVars,
    /// `secure-boot`, `--secure-boot`: whether the firmware starts only what is signed.
    SecureBoot,
    /// `boot`, `--boot`: see [`crate::Once`].
    Boot,
    /// `boot-menu`, `--boot-menu`: whether the firmware shows its menu.
    BootMenu,
    /// `fw-cfg`, `--fw-cfg`: see [`crate::FwCfgFile`]. There may be several.
    FwCfg,
    /// `kernel`, `--kernel`: see [`crate::Linux`].
    Kernel,
    /// `initrd`, `--initrd`: see [`crate::Linux`].
    Initrd,
    /// `cmdline`, `--cmdline`: see [`crate::Cmdline`].
    Cmdline,
    /// `console`, `--console`: see [`crate::Console`].
    Console,
    /// `dma`, `--dma`: see [`crate::DmaBackEnd`].
    Dma,
    /// `host-domain`, `--host-domain`: see [`crate::HostDomain`].
    HostDomain,
    /// `i-know`, `--i-know`: that a dangerous choice is meant as it is written.
    IKnow,
    /// `on-fault`, `--on-fault`: see [`crate::OnFault`].
    OnFault,
    /// `p2p`, `--p2p`: see [`crate::P2p`].
    P2p,
    /// `tpm`, `--tpm`: see [`crate::Tpm`].
    Tpm,
    /// `assign`, `--assign`: see [`crate::Assign`]. There may be several.
    Assign,
    /// `disk`, `--disk`: see [`crate::Disk`]. There may be several.
    Disk,
}

impl Key {
    /// All keys.
    pub const ALL: [Key; 25] = [
        Key::Name,
        Key::Cpus,
        Key::Nested,
        Key::Memory,
        Key::Hugepages,
        Key::Node,
        Key::Wire,
        Key::Firmware,
        Key::FirmwareVars,
        Key::SecureBoot,
        Key::Boot,
        Key::BootMenu,
        Key::FwCfg,
        Key::Kernel,
        Key::Initrd,
        Key::Cmdline,
        Key::Console,
        Key::Dma,
        Key::HostDomain,
        Key::IKnow,
        Key::OnFault,
        Key::P2p,
        Key::Tpm,
        Key::Assign,
        Key::Disk,
    ];

    /// The flag, with its dashes.
    pub fn flag(self) -> &'static str {
        match self {
            Key::Name => "--name",
            Key::Cpus => "--cpus",
            Key::Nested => "--nested",
            Key::Memory => "--memory",
            Key::Hugepages => "--hugepages",
            Key::Node => "--node",
            Key::Wire => "--wire",
            Key::Firmware => "--firmware",
            Key::FirmwareVars => "--firmware-vars",
            Key::SecureBoot => "--secure-boot",
            Key::Boot => "--boot",
            Key::BootMenu => "--boot-menu",
            Key::FwCfg => "--fw-cfg",
            Key::Kernel => "--kernel",
            Key::Initrd => "--initrd",
            Key::Cmdline => "--cmdline",
            Key::Console => "--console",
            Key::Dma => "--dma",
            Key::HostDomain => "--host-domain",
            Key::IKnow => "--i-know",
            Key::OnFault => "--on-fault",
            Key::P2p => "--p2p",
            Key::Tpm => "--tpm",
            Key::Assign => "--assign",
            Key::Disk => "--disk",
        }
    }

    /// The key in a file.
    pub fn name(self) -> &'static str {
        self.flag().trim_start_matches('-')
    }
}

/// The keys of a VM.
pub(super) const VM: &[&str] = &[
    "name",
    "cpus",
    "nested",
    "memory",
    "hugepages",
    "node",
    "wire",
    "firmware",
    "firmware-vars",
    "secure-boot",
    "boot",
    "boot-menu",
    "fw-cfg",
    "kernel",
    "initrd",
    "cmdline",
    "console",
    "dma",
    "host-domain",
    "i-know",
    "on-fault",
    "p2p",
    "tpm",
    "assign",
    "disk",
];
/// The keys of a disk.
pub(super) const DISK: &[&str] = &[
    "path",
    "nvme",
    "nbd",
    "ram",
    "format",
    "chain",
    "logical",
    "preallocate",
    "bounce",
    "buffers",
    "force",
    "namespace",
    "poll",
    "model",
    "controller",
    "queues",
    "packed",
    "write-cache",
    "readonly",
    "snapshot",
    "serial",
    "product",
    "firmware",
    "on-error",
    "bootindex",
];
/// The keys of a disk that are on or off.
pub(crate) const SWITCHES: &[&str] =
    &["preallocate", "force", "packed", "write-cache", "readonly", "snapshot"];
/// The keys of a disk that may be there several times in a flag, and have a list in a file.
pub(super) const SEVERAL: &[&str] = &["chain"];
/// The keys of a file in a firmware's configuration.
pub(super) const FW_CFG: &[&str] = &["name", "string", "file"];
/// The keys of an assigned device.
pub(super) const ASSIGN: &[&str] = &["address", "domain", "on-fault", "on-request", "bootindex", "rom"];
/// The keys of a TPM.
pub(super) const TPM: &[&str] = &["passthrough", "on-error"];
