//! The values of a description. Each checks itself once, when it is made, and is right from then on.

pub(crate) mod address;
pub(crate) mod count;
pub(crate) mod name;
pub(crate) mod nbd;
pub(crate) mod path;
pub(crate) mod size;
pub(crate) mod text;

use crate::nearest::nearest;
use size::{ByteSize, MemorySize};

/// Why a value is not one of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not a VM name.
    #[error(
        "{text:?} is not a VM name. A name has 1 to 64 of the characters A-Z a-z 0-9 . _ - and begins with \
         neither '.' nor '-'."
    )]
    Name {
        /// What was written.
        text: String,
    },
    /// Not a size.
    #[error(
        "{text:?} is not a size. Write a whole number and a unit, as in 512M, 6G or 1GiB; without a unit it \
         counts MiB."
    )]
    Size {
        /// What was written.
        text: String,
    },
    /// A unit that some read as 1000 and some as 1024.
    #[error(
        "{text:?} could mean units of 1000 or of 1024. Write {suggestion}, which counts in units of 1024."
    )]
    AmbiguousUnit {
        /// What was written.
        text: String,
        /// The same with a clear unit.
        suggestion: String,
    },
    /// A size that no 64-bit number of bytes holds.
    #[error("{text:?} is more than 64 bits of bytes. Write a smaller size.")]
    SizeTooLarge {
        /// What was written.
        text: String,
    },
    /// Memory outside what a VM can have.
    #[error(
        "{size} of memory is outside what a VM can have. Give it at least {} and at most {}.",
        MemorySize::MIN,
        MemorySize::MAX
    )]
    MemoryOutOfRange {
        /// The size asked for.
        size: ByteSize,
    },
    /// Memory that large pages do not divide.
    #[error("{size} of memory is not a multiple of 2 MiB, the size of a large page. Give the VM {} or {}.",
        ByteSize::from_bytes(size.bytes() / MemorySize::GRAIN * MemorySize::GRAIN),
        ByteSize::from_bytes((size.bytes() / MemorySize::GRAIN + 1) * MemorySize::GRAIN))]
    MemoryMisaligned {
        /// The size asked for.
        size: ByteSize,
    },
    /// Too few or too many vCPUs.
    #[error("a VM cannot have {count} vCPUs. Give it 1 to {}.", count::Cpus::MAX)]
    Cpus {
        /// The number asked for.
        count: i64,
    },
    /// Too few or too many queues.
    #[error(
        "a disk cannot have {count} queues. Give it 1 to {}, or none for one per vCPU.",
        count::Queues::MAX
    )]
    Queues {
        /// The number asked for.
        count: i64,
    },
    /// No path.
    #[error("the path is empty. Write the path of a file or device of this host.")]
    EmptyPath,
    /// A path no system call takes.
    #[error("the path {text:?} contains a NUL character. Write it without.")]
    NulInPath {
        /// What was written.
        text: String,
    },
    /// A socket path that the kernel's address structure does not hold.
    #[error(
        "the socket path {text:?} has {} bytes; the kernel takes at most {}. Write a shorter one.",
        text.len(), path::SocketPath::MAX
    )]
    SocketPathTooLong {
        /// What was written.
        text: String,
    },
    /// A kernel command line longer than Linux reads.
    #[error(
        "the kernel command line has {len} bytes; Linux reads at most {}. Shorten it.",
        text::Cmdline::MAX
    )]
    CmdlineTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A kernel command line that is more than a line.
    #[error(
        "the kernel command line contains {character:?}. Write it as one line without control characters."
    )]
    CmdlineControl {
        /// The first character that does not belong.
        character: char,
    },
    /// Not a serial number.
    #[error(
        "{text:?} is not a disk's serial number. Write 1 to {} printable ASCII characters.",
        text::Serial::MAX
    )]
    Serial {
        /// What was written.
        text: String,
    },
    /// Not a text that a disk can show.
    #[error("{text:?} cannot be a disk's `{key}`. Write 1 to {max} printable ASCII characters.")]
    Shown {
        /// The key: product or firmware.
        key: &'static str,
        /// What was written.
        text: String,
        /// The longest there can be.
        max: usize,
    },
    /// Not the name of a disk controller.
    #[error(
        "{text:?} is not the name of a disk controller. A name has 1 to {} of the characters A-Z a-z 0-9 . _ - and \
         begins with neither '.' nor '-'.",
        name::ControllerName::MAX
    )]
    Controller {
        /// What was written.
        text: String,
    },
    /// No such word among a few.
    #[error("{text:?} is not {what}. {}Write {}.", meant(text, valid), valid.join(" or "))]
    Word {
        /// What it should be.
        what: &'static str,
        /// What was written.
        text: String,
        /// The words there are.
        valid: &'static [&'static str],
    },
    /// An answer that is not built yet.
    #[error(
        "skep cannot take an assigned device out of a guest that runs yet, so \"unplug\" is no answer to a request for \
         it. Write stop, which ends the VM and so gives the device back, or report."
    )]
    Unplug,
    /// Memory that the huge pages asked for do not divide.
    #[error(
        "{size} of memory is not a multiple of huge pages of {page}. Give the VM {} of memory, or pages of 2M.",
        ByteSize::from_bytes(size.bytes().div_ceil(page.bytes()) * page.bytes())
    )]
    MemoryNotInPages {
        /// The memory asked for.
        size: ByteSize,
        /// The page.
        page: ByteSize,
    },
    /// No NUMA node.
    #[error(
        "a host has no NUMA node {number}. Write 0 to {}; `numactl -H` lists those of this host.",
        count::NodeId::MAX
    )]
    Node {
        /// The number asked for.
        number: i64,
    },
    /// No NVMe namespace.
    #[error(
        "an NVMe controller has no namespace {number}. Write 1 to {}; most controllers have only 1.",
        count::Namespace::MAX
    )]
    Namespace {
        /// The number asked for.
        number: i64,
    },
    /// Not a name of a file in a firmware's configuration.
    #[error(
        "{text:?} cannot be the name of a fw-cfg file. Write opt/ and up to {} printable characters behind it, without spaces, \
         as in opt/org.example/config; opt/ovmf/X-PciMmio64Mb is skep's own.",
        text::FwCfgName::MAX - 4
    )]
    FwCfgName {
        /// What was given.
        text: String,
    },
    /// Not a place in the boot order.
    #[error("{number} is no place in the boot order. Write 0 to 65535; lower ones come first.")]
    BootIndex {
        /// The number asked for.
        number: i64,
    },
    /// Not a domain name.
    #[error(
        "{text:?} is not the name of a domain. A name has 1 to {} of the characters A-Z a-z 0-9 . _ - and begins \
         with neither '.' nor '-'.",
        name::DomainName::MAX
    )]
    Domain {
        /// What was written.
        text: String,
    },
    /// The name of the domain that no assigned device is in.
    #[error(
        "the domain \"{}\" is that of the devices that skep itself drives; no assigned device can be in it. Use \
         another name, or leave it out for \"guest\".",
        name::DomainName::HOST
    )]
    HostDomain,
    /// Not a PCI address.
    #[error(
        "{text:?} is not a PCI address. Write it as lspci -D prints it, segment:bus:device.function in \
         hexadecimal: 0000:01:00.0 (0000: may be left out; device at most 1f, function at most 7)."
    )]
    PciAddress {
        /// What was written.
        text: String,
    },
    /// No size for a disk in memory.
    #[error(
        "a disk in memory cannot have {size}. Give it a multiple of 4 KiB, at most {}.",
        size::DiskSize::MAX
    )]
    DiskSize {
        /// The size asked for.
        size: ByteSize,
    },
    /// No blocks that a guest can be shown in the place of a disk's own.
    #[error("a disk cannot be shown with blocks of {bytes} bytes. Write 512, or nothing for the disk's own.")]
    LogicalBlock {
        /// The size asked for.
        bytes: i64,
    },
    /// Not the address of a disk on a server.
    #[error(
        "{text:?} is no address of an NBD server. Write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH."
    )]
    NbdAddress {
        /// What was written.
        text: String,
    },
    /// Neither one of a few words nor a path.
    #[error(
        "{text:?} is {not}. {}Write {} or a path; a file here is ./{}.",
        meant(text, words), words.join(", "), text.escape_debug()
    )]
    WordOrPath {
        /// What was written.
        text: String,
        /// What it is not.
        not: &'static str,
        /// The words there are.
        words: &'static [&'static str],
    },
    /// No word for a TPM, in a flag.
    #[error(
        "{text:?} is no word for a TPM. {}Write --tpm on, --tpm off or --tpm passthrough=/dev/tpm0.",
        meant(text, &["on", "off", "passthrough", "on-error"])
    )]
    Tpm {
        /// What was written.
        text: String,
    },
    /// Variables for a firmware that is not named.
    #[error(
        "`vars` goes with a code's path and not with {word}: PATH,vars=PATH. The VM's own variables are `firmware-vars`."
    )]
    FirmwareVars {
        /// What stands in the path's place.
        word: String,
    },
    /// A firmware with a key that it does not have.
    #[error(
        "a firmware has no key `{key}`. Write PATH[,vars=PATH]; the VM's own variables are `firmware-vars`."
    )]
    FirmwareKey {
        /// The key.
        key: String,
    },
    /// No such console.
    #[error("{text:?} is not a console. {}Write stdio, file:PATH or socket:PATH.", meant(text, &["stdio"]))]
    Console {
        /// What was written.
        text: String,
    },
    /// The value makes no sense beside another one.
    #[error(transparent)]
    Repeated(#[from] Repeated),
}

/// The question whether another word was meant, if one looks much like this one.
fn meant(text: &str, valid: &'static [&'static str]) -> String {
    nearest(text, valid.iter().copied()).map_or(String::new(), |word| format!("Did you mean {word}? "))
}

/// Two entries of a list are the same thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is given twice. Remove one of them.")]
pub struct Repeated {
    /// The thing, as in "disk /dev/sda".
    pub what: String,
}
