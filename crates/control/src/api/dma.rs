//! DMA domains.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::memory::Audit;
use super::words::words;
use super::{Address, Range};

/// What the VM's devices reach.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Dma {
    /// Its domains.
    pub domains: Vec<Domain>,
    /// Bytes of memory that are pinned for them: memory that several of them pin counts once.
    pub pinned: u64,
    /// Faults that are not known to be of one of these domains.
    pub other_faults: Count,
}

/// A DMA domain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// For whom it is.
    pub kind: DomainKind,
    /// Through what it is mapped.
    pub back_end: BackEnd,
    /// The IOMMU groups in it.
    pub groups: Vec<u32>,
    /// The devices in it that are open, by PCI address.
    pub devices: Vec<String>,
    /// Its ledger: every mapping, in the order in which they were made.
    pub mappings: Vec<Mapping>,
    /// Map calls so far.
    pub map_calls: u64,
    /// Unmap calls so far.
    pub unmap_calls: u64,
    /// Bytes of memory that are pinned for it.
    pub pinned: u64,
    /// Whether its devices reach each other's memory.
    pub p2p: P2p,
    /// Whether the ledger holds what the memory map says.
    pub audit: Audit,
    /// Faults known to be of devices in it.
    pub faults: Count,
}

words! {
    /// For whom a domain is.
    pub enum DomainKind {
        /// Devices that are assigned to the guest.
        Guest = "guest",
        /// Devices that skep drives itself.
        Host = "host",
    }
}

words! {
    /// Through what a domain is mapped.
    pub enum BackEnd {
        /// A VFIO container.
        Type1 = "type1",
        /// An IOAS of iommufd.
        Iommufd = "iommufd",
        /// A model of an IOMMU, in tests.
        Fake = "fake",
    }
}

/// Whether the devices of a domain reach each other's memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum P2p {
    /// Nobody asked for it.
    Off,
    /// It was asked for, and no memory of a device has shown yet whether it works.
    Asked {
        /// Whether the VM would not run without it.
        required: bool,
    },
    /// They do.
    Working {
        /// Whether the VM would not run without it.
        required: bool,
    },
    /// It was asked for, and they do not.
    Failed {
        /// Why.
        why: String,
    },
}

impl fmt::Display for P2p {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            P2p::Off => f.write_str("off"),
            P2p::Asked { required: false } => f.write_str("asked for, not tried yet"),
            P2p::Asked { required: true } => f.write_str("required, not tried yet"),
            P2p::Working { required: false } => f.write_str("working"),
            P2p::Working { required: true } => f.write_str("working, required"),
            P2p::Failed { why } => write!(f, "asked for, not working: {why}"),
        }
    }
}

words! {
    /// What devices may do with a mapping.
    pub enum Permission {
        /// Only read.
        Read = "read",
        /// Read and write.
        ReadWrite = "read, write",
    }
}

/// A row of a domain's ledger.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Mapping {
    /// What devices say.
    pub iova: Range,
    /// What they reach.
    pub target: Target,
    /// Where in the target's file the mapping begins, in bytes.
    pub offset: Address,
    /// The pages of that memory, in bytes; none where it is not RAM.
    pub page_size: Option<u64>,
    /// What devices may do there.
    pub permission: Permission,
}

/// What a mapping leads to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Target {
    /// Guest RAM.
    Ram {
        /// Its guest addresses.
        gpa: Range,
        /// The segment's number in the memory map; none if the memory map does not have it.
        segment: Option<usize>,
    },
    /// Memory of another device (a BAR), for P2P.
    Device {
        /// The device, by PCI address.
        owner: String,
        /// Its guest addresses.
        gpa: Range,
    },
    /// Memory of skep's own, such as a host driver's queues. No guest sees it.
    Own {
        /// What it is.
        what: String,
    },
}

/// How many faults there were.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Count {
    /// Known to be of a certain device or domain.
    pub known: u64,
    /// Known to have happened in this host while this VM ran; whose they are is not known.
    pub unattributed: u64,
    /// Whether these are all. If not, there were at least so many: an IOMMU drops what it has no room for.
    pub complete: bool,
}

/// No fault, and the count is complete.
impl Default for Count {
    fn default() -> Count {
        Count { known: 0, unattributed: 0, complete: true }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = if self.complete { "" } else { "at least " };
        match (self.known, self.unattributed) {
            (known, 0) => write!(f, "{least}{known}"),
            (0, others) => write!(f, "{least}{others}, in this host, of unknown devices"),
            (known, others) => write!(f, "{least}{known}, and {others} more in this host of unknown devices"),
        }
    }
}
