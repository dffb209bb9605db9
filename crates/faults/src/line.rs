//! What a line of the kernel's log says of an IOMMU.

use crate::fault::{Direction, Fault, Source};
use crate::requester::Requester;
use crate::{amd, intel};
use dma::Iova;
use std::time::SystemTime;

/// Reasons are cut to so many characters.
const REASON: usize = 160;

/// A line of the kernel's log that concerns an IOMMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// VT-d: its fault interrupt is being handled. Reports of the faults follow, unless they are withheld.
    Handling {
        /// The IOMMU met more faults than it can record.
        overflow: bool,
    },
    /// VT-d reports a fault.
    Intel(Report),
    /// AMD's IOMMU reports a fault.
    Amd(Report),
    /// VT-d: so many calls of the log were withheld; each fault makes up to three.
    IntelSuppressed(u64),
    /// AMD: so many reports of faults were withheld.
    AmdSuppressed(u64),
    /// AMD: events were lost, since the IOMMU's log of them was full.
    AmdOverflow,
}

/// A fault as the log reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The device.
    pub device: Requester,
    /// Which way, unless it was no access to memory or the report does not say.
    pub direction: Option<Direction>,
    /// Where, unless it was no access to memory.
    pub iova: Option<Iova>,
    /// The process address space that the request named.
    pub pasid: Option<u32>,
    /// The IOMMU's reason.
    pub reason: String,
}

impl Report {
    /// The fault that it reports.
    pub fn fault(self, time: SystemTime, source: Source) -> Fault {
        let Report { device, direction, iova, pasid, reason } = self;
        Fault { time, device: Some(device), direction, iova, pasid, ..Fault::new(source, reason) }
    }
}

/// Reads a line of the kernel's log, without its stamp. `None` when it does not concern an IOMMU's faults. Any
/// bytes are allowed.
pub fn parse_line(line: &[u8]) -> Option<Line> {
    let text = String::from_utf8_lossy(line);
    let text = text.trim();
    intel::parse(text).or_else(|| amd::parse(text))
}

/// The number in `[CALLER]: N callbacks suppressed`.
pub(super) fn suppressed(text: &str, caller: &str) -> Option<u64> {
    let rest = text.strip_prefix(caller)?.trim_start_matches(':').trim_start();
    let (number, rest) = rest.split_once(' ')?;
    rest.starts_with("callbacks suppressed").then(|| number.parse().ok())?
}

/// A hexadecimal number, with or without 0x.
pub(super) fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

/// A reason of bounded length.
pub(super) fn reason(text: &str) -> String {
    text.trim().chars().take(REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_lines_are_none_of_ours() {
        for text in [
            "",
            "DMAR: Host address width 39",
            "DMAR: DRHD base: 0x000000fed90000 flags: 0x0",
            "AMD-Vi: Interrupt remapping enabled",
            "vfio-pci 0000:00:04.0: enabling device (0000 -> 0002)",
            "net_ratelimit: 12 callbacks suppressed",
            "[DMA Write NO_PASID] Request device [00:04.0] fault addr 0x200000 [fault reason 0x05] x",
        ] {
            assert_eq!(parse_line(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _line = parse_line(&bytes);
        }

        /// Pieces of real lines in any order reach every branch.
        #[test]
        fn no_mixture_of_pieces_makes_it_panic(pieces in prop::collection::vec(prop::sample::select(vec![
            "DMAR:", " ", "[DMA Write", "[DMA Read", " NO_PASID]", " PASID 0x", "ffffffffffffffffffff", "]",
            "Request device [", "00:09.0", "fault addr ", "0x", "[fault reason ", "05] ", "é", "AMD-Vi: ",
            "Event logged [", "IO_PAGE_FAULT", "device=", "domain=0x1", "address=", "flags=", "vfio-pci ",
            "0000:02:00.0: ", "dmar_fault: ", "99999999999999999999", " callbacks suppressed", "[INTR-REMAP] ",
            "DRHD: handling fault status reg ", "=", ",", "\0",
        ]), 0..14)) {
            let line = parse_line(pieces.concat().as_bytes());
            if let Some(Line::Intel(report) | Line::Amd(report)) = line {
                prop_assert!(report.reason.chars().count() <= REASON);
            }
        }
    }
}
