//! Events.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Address;
use super::dma::Count;
use super::words::words;
use crate::endpoint::Ask;

/// Seconds that a request may wait for events at most.
const LONGEST_WAIT: u64 = 60;

/// Which events are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct After {
    /// The number of an event: those after it.
    pub after: u64,
    /// How many seconds to wait for one if there is none yet; more than 60 count as 60.
    pub wait: u64,
}

impl Ask for After {
    fn example() -> After {
        After { after: 7, wait: 30 }
    }

    fn wait(&self) -> Duration {
        Duration::from_secs(self.wait.min(LONGEST_WAIT))
    }
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

words! {
    /// What sort of event it is.
    pub enum EventKind {
        /// The VM's life: it runs, is paused, was reset, ends.
        Life = "life",
        /// DMA that failed, or a device's own alarm.
        Fault = "fault",
        /// This host failed a request of a disk.
        Disk = "disk",
        /// Something failed that the guest does not see.
        Trouble = "trouble",
    }
}

/// DMA that failed, once or in a burst. What the source did not say is null.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// What it did there.
    pub direction: Option<Direction>,
    /// The domain that the device is in.
    pub domain: Option<String>,
    /// What lies there in the VM's memory map.
    pub place: Option<Place>,
    /// Why, in the words of the source.
    pub reason: String,
    /// Who said so.
    pub source: FaultSource,
    /// How many there were in this burst up to now.
    pub count: Count,
}

words! {
    /// Which way the data of a DMA was to go.
    pub enum Direction {
        /// From memory to the device.
        Read = "read",
        /// From the device to memory.
        Write = "write",
    }
}

words! {
    /// What lies at an address in the VM's memory map.
    pub enum Place {
        /// RAM.
        Ram = "ram",
        /// Nothing, between pieces of RAM.
        Hole = "hole",
        /// Memory of a device (a BAR).
        Device = "device",
        /// Memory of a driver of skep's, such as its queues.
        Own = "own",
        /// Nothing, above all RAM.
        Beyond = "beyond",
    }
}

words! {
    /// Who reported a fault.
    pub enum FaultSource {
        /// The kernel's log.
        KernelLog = "kernel log",
        /// A probe on the kernel's fault handler.
        FaultRecords = "fault records",
        /// The kernel's tracepoint for page faults of IOMMUs.
        Tracepoint = "tracepoint",
        /// The count of the IOMMU's fault interrupts, which name no device.
        FaultInterrupts = "fault interrupts",
        /// VFIO's error interrupt.
        Vfio = "VFIO",
        /// A driver inside skep: its device's status, or a time-out.
        HostDriver = "host driver",
        /// A map or unmap that failed, or a ledger that is not the memory map.
        Ledger = "ledger",
    }
}

/// A request of a disk that this host failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DiskError {
    /// The disk.
    pub disk: String,
    /// What was asked for.
    pub operation: DiskOperation,
    /// Its first sector, in units of 512 bytes; a flush has none.
    pub sector: Option<u64>,
    /// Its length in bytes.
    pub bytes: u64,
    /// The kind of error, as the guest has it too.
    pub error: DiskErrorKind,
    /// The kernel's error number, where it was the kernel that failed it.
    pub errno: Option<i32>,
    /// What became of it.
    pub answer: DiskAnswer,
    /// How many more requests of the disk failed since its last event; these have no event of their own.
    pub more: u64,
}

words! {
    /// What a request asks of a disk.
    pub enum DiskOperation {
        /// Data from the disk.
        Read = "read",
        /// Data to the disk.
        Write = "write",
        /// That all that was written lasts.
        Flush = "flush",
        /// That a range of sectors is no longer needed.
        Discard = "discard",
        /// That a range of sectors reads as zeroes.
        WriteZeroes = "write zeroes",
    }
}

words! {
    /// The kind of a disk's error.
    pub enum DiskErrorKind {
        /// The disk ends before: it has become smaller.
        OutOfRange = "out-of-range",
        /// The request does not fit the disk's blocks.
        Unaligned = "unaligned",
        /// The request is longer than the disk takes.
        TooLong = "too-long",
        /// The disk is only read.
        ReadOnly = "read-only",
        /// The disk failed.
        Media = "media",
        /// There is no space left behind the disk.
        NoSpace = "no-space",
        /// The disk, or the way to it, is gone.
        Gone = "gone",
        /// It took too long.
        TimedOut = "timed-out",
        /// The disk's controller does not reach the guest's memory.
        DmaBlocked = "dma-blocked",
        /// The disk cannot do it.
        Unsupported = "unsupported",
        /// The request was cancelled.
        Cancelled = "cancelled",
        /// Too many requests were under way.
        QueueFull = "queue-full",
        /// Anything else; the kernel's number says more.
        Other = "other",
    }
}

words! {
    /// What became of a request that failed.
    pub enum DiskAnswer {
        /// The guest sees the error.
        Reported = "reported",
        /// The VM is paused, and `resume` tries it again.
        Held = "held",
        /// The guest gets a success.
        Ignored = "ignored",
    }
}
