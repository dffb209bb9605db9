//! What goes over the socket, as JSON: written by the VM, read by [`crate::Client`].
//!
//! Addresses are strings of hexadecimal digits (`"0x100000000"`), because JSON's numbers are not exact beyond 2^53;
//! lengths and counts are numbers. Within version 1, fields and kinds may be added; none is removed or changes its meaning.

mod disks;

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use disks::{Copied, Disk, Drive, Eject, Insert, Plug, Plugged, Stats, Unplug, Unplugged};

/// The version in the paths of the API.
pub const VERSION: u32 = 1;

/// An address: of the guest (GPA), of a device (IOVA), or in a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Address(pub u64);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").unwrap_or_default();
        let address = u64::from_str_radix(digits, 16);
        address
            .map(Address)
            .map_err(|_| D::Error::custom(format!("{text:?} is not an address like \"0x1000\"")))
    }
}

/// A range of addresses, both ends in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Range {
    /// First address.
    pub first: Address,
    /// Last address.
    pub last: Address,
}

impl Range {
    /// Length in bytes; all 2^64 addresses count as one less.
    pub fn bytes(self) -> u64 {
        self.last.0.saturating_sub(self.first.0).saturating_add(1)
    }

    /// Whether the address lies in the range.
    pub fn contains(self, address: u64) -> bool {
        (self.first.0..=self.last.0).contains(&address)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// `GET /v1`: the VM and its process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Info {
    /// [`VERSION`].
    pub api: u32,
    /// The VM's name.
    pub name: String,
    /// The version of skep that runs it.
    pub version: String,
    /// What it does now.
    pub state: State,
    /// Why it is paused, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The process that runs it.
    pub pid: u32,
    /// When the process began to run it: RFC 3339, UTC.
    pub since: String,
    /// Whether the guest has enabled the power button's ACPI event, without which it notices no press.
    #[serde(default)]
    pub listens_to_button: bool,
}

/// What a VM does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is being put together.
    Starting,
    /// Its guest runs.
    Running,
    /// Its vCPUs are stopped; its devices may go on.
    Paused,
    /// It is ending.
    Ending,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Starting => "starting",
            State::Running => "running",
            State::Paused => "paused",
            State::Ending => "ending",
        })
    }
}

/// `GET /v1/dma`: what the VM's devices reach.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
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
pub struct Domain {
    /// Its name.
    pub name: String,
    /// For whom it is: `guest` (assigned devices) or `host` (devices that skep drives itself).
    pub kind: String,
    /// Through what it is mapped: `type1` or `iommufd`.
    pub back_end: String,
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

/// Whether the devices of a domain reach each other's memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
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

/// A row of a domain's ledger.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mapping {
    /// What devices say.
    pub iova: Range,
    /// What they reach.
    pub target: Target,
    /// Where in the target's file the mapping begins, in bytes.
    pub offset: Address,
    /// The pages of that memory, in bytes; none where it is not RAM.
    pub page_size: Option<u64>,
    /// What devices may do there: `read` or `read, write`.
    pub permission: String,
}

/// What a mapping leads to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Target {
    /// Guest RAM.
    Ram {
        /// Its guest addresses.
        gpa: Range,
        /// The segment's number in `GET /v1/memory`; none if the memory map does not have it.
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

/// How a comparison with the memory map came out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Audit {
    /// It is the same.
    Same,
    /// It is not.
    Differs {
        /// In what.
        how: String,
    },
}

/// How many faults there were.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
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

/// `GET /v1/memory`, and `GET /v1/memory/fds` with the segments' files: the memory map.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// RAM, by rising guest address. The file descriptors come in this order.
    pub segments: Vec<Segment>,
    /// Memory of devices that the guest reaches (BARs), by rising guest address.
    pub devices: Vec<DeviceMemory>,
    /// Everything that must hold the same (KVM's memory slots, DMA domains), compared just now.
    pub mirrors: Vec<Mirror>,
}

/// Something that must hold what the memory map says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mirror {
    /// What it is.
    pub name: String,
    /// How the comparison came out.
    pub audit: Audit,
}

/// A piece of guest RAM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Segment {
    /// Its guest addresses.
    pub gpa: Range,
    /// Where in its file it begins, in bytes.
    pub offset: Address,
    /// Its pages, in bytes.
    pub page_size: u64,
    /// The NUMA node it is bound to, if it is.
    pub node: Option<u32>,
}

/// Memory of a device that the guest reaches.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceMemory {
    /// The device.
    pub owner: String,
    /// Its guest addresses.
    pub gpa: Range,
}

/// `GET /v1/events`: what happened.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Events {
    /// Events by rising number.
    pub events: Vec<Event>,
    /// The number to ask after next.
    pub next_after: u64,
    /// Events after the number asked for that are no longer kept.
    pub lost: u64,
    /// Whether the VM has ended: nothing more will come.
    pub ended: bool,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Its number: 1 for the first of this VM, and each one more.
    pub number: u64,
    /// When: RFC 3339, UTC, with milliseconds.
    pub time: String,
    /// Of what sort.
    pub kind: EventKind,
    /// A sentence that says it.
    pub text: String,
    /// More about a fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// More about a disk's error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskError>,
}

/// What sort of event it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The VM's life: it runs, is paused, was reset, ends.
    Life,
    /// DMA that failed, or a device's own alarm.
    Fault,
    /// This host failed a request of a disk.
    Disk,
    /// Something failed that the guest does not see.
    Trouble,
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EventKind::Life => "life",
            EventKind::Fault => "fault",
            EventKind::Disk => "disk",
            EventKind::Trouble => "trouble",
        })
    }
}

/// DMA that failed, once or in a burst. What the source did not say is null.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Fault {
    /// The number of its burst: faults of one device in one direction that follow each other closely. A burst is reported
    /// at its first fault and again as its count grows; 0 for a fault that stands alone.
    pub burst: u64,
    /// When the first one happened: RFC 3339, UTC, with milliseconds.
    pub time: String,
    /// The device, by PCI address.
    pub device: Option<String>,
    /// The address it used.
    pub iova: Option<Address>,
    /// The process address space it named.
    pub pasid: Option<u32>,
    /// What it did there: `read` or `write`.
    pub direction: Option<String>,
    /// The domain that the device is in.
    pub domain: Option<String>,
    /// What lies there in the VM's memory map: `ram`, `hole`, `device`, `own` or `beyond`.
    pub place: Option<String>,
    /// Why, in the words of the source.
    pub reason: String,
    /// Who said so: `kernel log`, `fault records`, `tracepoint`, `fault interrupts`, `VFIO`, `host driver` or `ledger`.
    pub source: String,
    /// How many there were in this burst up to now.
    pub count: Count,
}

/// A request of a disk that this host failed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DiskError {
    /// The disk.
    pub disk: String,
    /// What was asked for: `read`, `write`, `flush`, `discard` or `write zeroes`.
    pub operation: String,
    /// Its first sector, in units of 512 bytes; a flush has none.
    pub sector: Option<u64>,
    /// Its length in bytes.
    pub bytes: u64,
    /// The kind of error, as the guest has it too: `media`, `no-space`, `gone`, `timed-out`, `read-only`, `out-of-range`,
    /// `dma-blocked`, `unsupported` or `other`.
    pub error: String,
    /// The kernel's error number, where it was the kernel that failed it.
    pub errno: Option<i32>,
    /// What became of it: `reported` (the guest sees the error), `held` (it waits to be tried again) or `ignored` (the
    /// guest gets a success).
    pub answer: String,
    /// How many more requests of the disk failed since its last event; these have no event of their own.
    pub more: u64,
}

/// The answer to something done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Done {
    /// The VM's state afterwards.
    pub state: State,
}

/// The answer to what could not be done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failed {
    /// Why, in a sentence.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_exact_strings_and_anything_else_is_refused() {
        let json = serde_json::to_string(&Address(u64::MAX)).unwrap();
        assert_eq!(json, "\"0xffffffffffffffff\"");
        assert_eq!(serde_json::from_str::<Address>(&json).unwrap(), Address(u64::MAX));
        for bad in ["\"4096\"", "\"0x\"", "\"0x10000000000000000\"", "4096", "\"0xg\""] {
            assert!(serde_json::from_str::<Address>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_field_that_is_not_known_yet_does_no_harm() {
        let info = r#"{"api":1,"name":"a","version":"0","state":"running","pid":1,"since":"","more":[]}"#;
        assert_eq!(serde_json::from_str::<Info>(info).unwrap().state, State::Running);
    }

    #[test]
    fn a_mapping_says_what_it_leads_to() {
        let range = Range { first: Address(0), last: Address(0xfff) };
        let target = Target::Ram { gpa: range, segment: Some(0) };
        let json = serde_json::to_string(&target).unwrap();
        assert_eq!(json, r#"{"kind":"ram","gpa":{"first":"0x0","last":"0xfff"},"segment":0}"#);
        assert_eq!(serde_json::from_str::<Target>(&json).unwrap(), target);
    }
}
