//! AMD's IOMMU: what its handler prints (drivers/iommu/amd/iommu.c).

use crate::fault::Direction;
use crate::line::{Line, Report, hex, reason, suppressed};
use crate::requester::Requester;
use dma::Iova;

/// Flags of an event (AMD I/O Virtualization Technology specification, 2.5.3): it was an interrupt, the page was
/// there, it was a write.
const INTERRUPT: u64 = 1 << 3;
const PRESENT: u64 = 1 << 4;
const WRITE: u64 = 1 << 5;

/// Reads a line: `vfio-pci 0000:02:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0010 address=0x64a7f000
/// flags=0x0020]`, or with `device=02:00.0` (since 6.0 with the segment) inside the brackets.
pub(super) fn parse(text: &str) -> Option<Line> {
    for caller in ["amd_iommu_report_page_fault", "amd_iommu_report_rmp_fault", "amd_iommu_int_thread"] {
        if let Some(reports) = suppressed(text, caller) {
            return Some(Line::AmdSuppressed(reports));
        }
    }
    let (before, after) = text.split_once("AMD-Vi: ")?;
    if after.starts_with("IOMMU event log overflow") || after.starts_with("IOMMU Event log restarting") {
        return Some(Line::AmdOverflow);
    }
    let event = after.strip_prefix("Event logged [")?;
    let event = event.strip_suffix(']').unwrap_or(event);
    let (name, pairs) = event.split_once(' ')?;
    let value = |wanted: &str| {
        let mut pairs = pairs.split([' ', ',']).filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == wanted).map(|(_, value)| value)
    };
    let device: Requester = match value("device") {
        Some(device) => device.parse().ok()?,
        // The device in whose name the line was printed: `driver address:`.
        None => before.trim_end().strip_suffix(':')?.rsplit(' ').next()?.parse().ok()?,
    };
    let flags = value("flags").and_then(hex).unwrap_or(0);
    let memory = matches!(name, "IO_PAGE_FAULT" | "RMP_PAGE_FAULT" | "INVALID_DEVICE_REQUEST");
    let memory = memory && flags & INTERRUPT == 0;
    // In an invalid request the bit is there but means something only for some of its kinds.
    let direction = (memory && name != "INVALID_DEVICE_REQUEST").then_some(match flags & WRITE {
        0 => Direction::Read,
        _ => Direction::Write,
    });
    let iova = value("address").or_else(|| value("gpa")).and_then(hex).map(Iova).filter(|_| memory);
    let pasid = value("pasid").and_then(hex).filter(|pasid| (1..1 << 20).contains(pasid));
    let why = match name {
        "IO_PAGE_FAULT" if flags & INTERRUPT != 0 => "interrupt blocked",
        "IO_PAGE_FAULT" if flags & PRESENT != 0 => "the page does not permit it",
        "IO_PAGE_FAULT" => "nothing is mapped there",
        "INVALID_DEVICE_REQUEST" => "the device may make no such request",
        "ILLEGAL_DEV_TABLE_ENTRY" => "the device's table entry is invalid",
        "RMP_PAGE_FAULT" => "the page belongs to a confidential guest",
        "IOTLB_INV_TIMEOUT" => "the device did not answer an invalidation",
        _ => "the IOMMU refused it",
    };
    let reason = reason(&format!("{why} ({name} flags={flags:#06x})"));
    Some(Line::Amd(Report { device, direction, iova, pasid: pasid.map(|pasid| pasid as u32), reason }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::parse_line;

    fn read(line: &str) -> Report {
        match parse_line(line.as_bytes()) {
            Some(Line::Amd(report)) => report,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn a_page_fault_names_its_device_before_or_inside_the_brackets() {
        for line in [
            "vfio-pci 0000:02:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0010 address=0x64a7f000 flags=0x0020]",
            "vfio-pci 0000:02:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0010 address=0x64a7f000 flags=0x0020 vflags=0x1]",
            "AMD-Vi: Event logged [IO_PAGE_FAULT device=02:00.0 domain=0x001d address=0x0000000064a7f000 flags=0x0020]",
            "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:02:00.0 domain=0x001d address=0x64a7f000 flags=0x0020]",
        ] {
            let report = read(line);
            assert!(report.device.may_be("0000:02:00.0".parse().unwrap()), "{line}");
            assert_eq!(report.direction, Some(Direction::Write));
            assert_eq!((report.iova, report.pasid), (Some(Iova(0x64a7_f000)), None));
        }
        let read_fault = "ahci 0000:28:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0035 address=0x7fffff00300 flags=0x0010]";
        assert_eq!(read(read_fault).direction, Some(Direction::Read));
        assert_eq!(read(read_fault).reason, "the page does not permit it (IO_PAGE_FAULT flags=0x0010)");
    }

    #[test]
    fn an_event_printed_in_the_iommus_name_is_the_devices_in_the_brackets() {
        let report = read(
            "pci 0000:00:00.2: AMD-Vi: Event logged [INVALID_DEVICE_REQUEST device=0000:43:00.0 pasid=0x00007 address=0xfffffffdf8000000 flags=0x0a00]",
        );
        assert_eq!(report.device, "0000:43:00.0".parse().unwrap());
        assert_eq!((report.direction, report.pasid), (None, Some(7)));
        let report = read(
            "AMD-Vi: Event logged [RMP_PAGE_FAULT device=02:00.0, vmg_tag=0x0000, gpa=0x1000, flags_rmp=0x0000, flags=0x0020]",
        );
        assert_eq!((report.iova, report.direction), (Some(Iova(0x1000)), Some(Direction::Write)));
        let report =
            read("AMD-Vi: Event logged [IOTLB_INV_TIMEOUT device=02:00.0 address=0x00000000fee01000]");
        assert_eq!((report.iova, report.direction), (None, None));
    }

    #[test]
    fn errors_of_the_iommu_itself_are_nobodys_and_withheld_reports_are_counted() {
        let read = |line: &str| parse_line(line.as_bytes());
        assert_eq!(read("AMD-Vi: Event logged [ILLEGAL_COMMAND_ERROR address=0x1000]"), None);
        let withheld = "amd_iommu_report_page_fault: 517 callbacks suppressed";
        assert_eq!(read(withheld), Some(Line::AmdSuppressed(517)));
        assert_eq!(read("AMD-Vi: IOMMU event log overflow"), Some(Line::AmdOverflow));
    }
}
