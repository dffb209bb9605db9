//! Reports of DMA that failed.

use std::fmt;
use std::time::SystemTime;

use crate::place::Place;
use crate::requester::Requester;
use dma::Iova;

/// Which way the data was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The device wanted to read memory.
    Read,
    /// The device wanted to write memory.
    Write,
}

/// Who reported it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// A line of the kernel's log.
    Log,
    /// The IOMMU's fault records, seen by a probe where the kernel's handler begins.
    Probe,
    /// The kernel's tracepoint `iommu:io_page_fault`.
    Tracepoint,
    /// The IOMMU's fault interrupts, which name no device.
    Interrupts,
    /// VFIO's error interrupt.
    Vfio,
    /// A driver inside skep: its device's status, or a time-out.
    HostDriver,
    /// A map or unmap that failed, or a ledger that is not the memory map.
    Ledger,
}

impl Source {
    /// Whether a count from this source is complete. An IOMMU drops faults that come while its records are full,
    /// or that resemble one it holds, so that its counts are never more than a lower bound.
    pub fn counts_all(self) -> bool {
        matches!(self, Source::Vfio | Source::HostDriver | Source::Ledger)
    }

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Source::Log => "kernel log",
            Source::Probe => "fault records",
            Source::Tracepoint => "tracepoint",
            Source::Interrupts => "fault interrupts",
            Source::Vfio => "VFIO",
            Source::HostDriver => "host driver",
            Source::Ledger => "ledger",
        }
    }
}

/// DMA that failed, or a change of a domain that did: once, or several times closely after each other.
///
/// Faults of one device in one direction that follow each other closely are one burst. It is reported at its first
/// fault and again, with the same number, as the count grows. The last report of a burst has its whole count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The burst's number, counted from 1; 0 for one that stands alone.
    pub burst: u64,
    /// When the first one happened: by the kernel's stamp where there is one, else when it was seen.
    pub time: SystemTime,
    /// The device, if it is known.
    pub device: Option<Requester>,
    /// Which way the data was to go, if that is known.
    pub direction: Option<Direction>,
    /// The address that the device used. An IOMMU may give only its page of 4 KiB.
    pub iova: Option<Iova>,
    /// The process address space that the request named, if it named one.
    pub pasid: Option<u32>,
    /// Why, in the words of the source.
    pub reason: String,
    /// Who reported it.
    pub source: Source,
    /// The domain by which the device translates, when the device is known.
    pub domain: Option<String>,
    /// What lies at the IOVA in the VM's memory map. RAM of the VM there means that its domain does not hold what
    /// it should, or not that way; a device's memory is reached only where devices may reach each other.
    pub place: Option<Place>,
    /// How many there were up to now.
    pub count: Count,
}

/// Faults that are alike, so that one of them can stand for all. What a device does has one sort for each direction;
/// changes of a domain that failed, and faults without a device, are distinguished by their words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sort {
    device: Option<Requester>,
    direction: Option<Direction>,
    source: Source,
    words: Option<String>,
}

impl Sort {
    pub fn of(fault: &Fault) -> Sort {
        let Fault { device, direction, source, .. } = *fault;
        let by_words = source.counts_all() && (source == Source::Ledger || device.is_none());
        // A driver and the IOMMU may both report one fault; all sources that give lower bounds count as one.
        let source = if source.counts_all() { source } else { Source::Log };
        Sort { device, direction, source, words: by_words.then(|| fault.reason.clone()) }
    }

    /// Whether there may be any number of such sorts.
    pub fn has_words(&self) -> bool {
        self.words.is_some()
    }
}

impl Fault {
    /// One that was seen just now, and of which nothing more is known.
    pub fn new(source: Source, reason: impl Into<String>) -> Fault {
        Fault {
            burst: 0,
            time: SystemTime::now(),
            device: None,
            direction: None,
            iova: None,
            pasid: None,
            reason: reason.into(),
            source,
            domain: None,
            place: None,
            count: Count { known: 1, unattributed: 0, complete: source.counts_all() },
        }
    }

    /// The fault without its details, for when there are too many kinds to list each.
    pub(crate) fn without_details(self) -> Fault {
        let reason = "too many kinds of faults at a time to list each; these are only counted".to_owned();
        let Fault { time, source, count, .. } = self;
        Fault { time, count, ..Fault::new(source, reason) }
    }
}

/// How many faults there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Known to be this device's.
    pub known: u64,
    /// Known to have happened in this host while this VM ran, and no more.
    pub unattributed: u64,
    /// Whether these are all there were. When not, there were at least so many.
    pub complete: bool,
}

/// No fault, and the count is complete.
impl Default for Count {
    fn default() -> Count {
        Count { known: 0, unattributed: 0, complete: true }
    }
}

impl Count {
    /// Both.
    pub fn plus(self, other: Count) -> Count {
        Count {
            known: self.known.saturating_add(other.known),
            unattributed: self.unattributed.saturating_add(other.unattributed),
            complete: self.complete && other.complete,
        }
    }

    /// What was added since the count was `before`.
    pub(crate) fn since(self, before: Count) -> Count {
        Count {
            known: self.known.saturating_sub(before.known),
            unattributed: self.unattributed.saturating_sub(before.unattributed),
            complete: self.complete,
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = if self.complete { "" } else { "at least " };
        let faults = |count| if count == 1 { "fault" } else { "faults" };
        match (self.known, self.unattributed) {
            (0, 0) => f.write_str("an unknown number of faults"),
            (known, 0) => write!(f, "{least}{known} {}", faults(known)),
            (0, unknown) => {
                write!(f, "{least}{unknown} {} in this host, of unknown devices", faults(unknown))
            }
            (known, unknown) => {
                write!(
                    f,
                    "{least}{known} {}, and {unknown} more in this host of unknown devices",
                    faults(known)
                )
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { device, direction, iova, pasid, reason, source, domain, place, count, .. } = self;
        match (device, source) {
            (Some(device), _) => write!(f, "{device}")?,
            (None, Source::Ledger) => write!(f, "DMA domain")?,
            (None, _) => write!(f, "an unknown device")?,
        }
        if let Some(domain) = domain {
            write!(f, " (DMA domain {domain})")?;
        }
        match (direction, iova) {
            (Some(Direction::Read), Some(iova)) => write!(f, " could not read IOVA {iova}")?,
            (Some(Direction::Write), Some(iova)) => write!(f, " could not write IOVA {iova}")?,
            (Some(Direction::Read), None) => write!(f, " could not read memory")?,
            (Some(Direction::Write), None) => write!(f, " could not write memory")?,
            (None, Some(iova)) => write!(f, " failed at IOVA {iova}")?,
            (None, None) => write!(f, " failed")?,
        }
        if let Some(pasid) = pasid {
            write!(f, " with PASID {pasid:#x}")?;
        }
        if let Some(place) = place {
            f.write_str(match place {
                Place::Ram => ", RAM of this VM",
                Place::Device => ", memory of a device (BAR)",
                Place::Own => ", memory of skep's own driver",
                Place::Hole => ", a hole in this VM's memory",
                Place::Beyond => ", beyond this VM's RAM",
            })?;
        }
        write!(f, ": {reason} ({}; {count})", source.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_device_domain_direction_address_place_cause_and_count() {
        let mut event = Fault {
            device: Some("0000:00:09.0".parse().unwrap()),
            direction: Some(Direction::Write),
            iova: Some(Iova(0xf00_0000)),
            domain: Some("guest".into()),
            place: Some(Place::Beyond),
            ..Fault::new(Source::Log, "PTE Write access is not set")
        };
        assert_eq!(
            event.to_string(),
            "0000:00:09.0 (DMA domain guest) could not write IOVA 0xf000000, beyond this VM's RAM: PTE Write \
             access is not set (kernel log; at least 1 fault)"
        );
        event.count.unattributed = 7;
        assert!(event.to_string().ends_with("at least 1 fault, and 7 more in this host of unknown devices)"));
    }
}
