//! VT-d: what its handler prints (drivers/iommu/intel/dmar.c), and its fault records.

use crate::fault::Direction;
use crate::line::{Line, Report, hex, reason, suppressed};
use crate::requester::Requester;
use dma::Iova;

/// Primary fault overflow, in the fault status register (VT-d specification, 11.4.7.1).
const OVERFLOW: u64 = 1;

/// Reads a line. Kernels have printed a fault as
///
/// - `[DMA Write] Request device [00:02.0] fault addr 6df084000 [fault reason 05] PTE Write access is not set`,
///   before 4.7 with the reason in a line of its own,
/// - `[DMA Write] Request device [00:02.0] PASID ffffffff fault addr …` from 5.7 on,
/// - `[DMA Write NO_PASID] Request device [0x00:0x02.0] fault addr 0x6df084000 [fault reason 0x05] …` in 5.14,
/// - `[DMA Write PASID 0x1] Request device [00:02.0] fault addr 0x6df084000 [fault reason 0x05] …` since.
pub(super) fn parse(text: &str) -> Option<Line> {
    let text = text.strip_prefix("DMAR:").or_else(|| text.strip_prefix("dmar:")).unwrap_or_else(|| {
        // The kernel reports suppressed calls by the function's name, without the prefix.
        if text.starts_with("dmar_fault") { text } else { "" }
    });
    let text = text.trim_start();
    if let Some(calls) = suppressed(text, "dmar_fault") {
        return Some(Line::IntelSuppressed(calls));
    }
    if let Some((_, status)) = text.split_once("handling fault status reg ") {
        let status = hex(status.trim())?;
        return Some(Line::Handling { overflow: status & OVERFLOW != 0 });
    }
    fault(text).map(Line::Intel)
}

fn fault(text: &str) -> Option<Report> {
    let (kind, rest) = text.strip_prefix('[')?.split_once(']')?;
    let (device, rest) = rest.trim_start().strip_prefix("Request device [")?.split_once(']')?;
    let device: Requester = device.parse().ok()?;
    let why = |rest: &str| {
        let (_, why) = rest.split_once("[fault reason ")?;
        let (code, words) = why.split_once(']')?;
        Some(format!("{} (reason {})", words.trim(), code.trim()))
    };
    let why = why(rest).map_or_else(|| "the log does not say why".to_owned(), |why| reason(&why));
    if kind.starts_with("INTR-REMAP") {
        let reason = reason(&format!("interrupt blocked: {why}"));
        return Some(Report { device, direction: None, iova: None, pasid: None, reason });
    }
    let direction = match kind.get(..8)? {
        "DMA Read" => Direction::Read,
        "DMA Writ" => Direction::Write,
        _ => return None,
    };
    let (before, address) = rest.split_once("fault addr ")?;
    let iova = hex(address.split_whitespace().next()?)?;
    // In the first or the second place, and all ones when there is none.
    let pasid = [kind, before].into_iter().find_map(|text| text.split_once("PASID ")?.1.split(' ').next());
    let pasid = pasid.and_then(hex).filter(|pasid| *pasid < 1 << 20).map(|pasid| pasid as u32);
    Some(Report { device, direction: Some(direction), iova: Some(Iova(iova)), pasid, reason: why })
}

/// A fault recording register, 128 bits (VT-d specification, 11.4.14). `None` when it holds no fault.
pub(super) fn record(low: u64, high: u64) -> Option<Report> {
    const FAULT: u64 = 1 << 63;
    const READ: u64 = 1 << 62;
    const PASID_PRESENT: u64 = 1 << 31;
    if high & FAULT == 0 {
        return None;
    }
    let device = Requester::new(None, high as u16);
    let code = (high >> 32) as u8;
    // Codes from 20h to 26h concern interrupts, whose index is where the address else is.
    if (0x20..0x30).contains(&code) {
        let reason = format!("interrupt blocked: {} (reason {code:#04x})", words(code));
        return Some(Report { device, direction: None, iova: None, pasid: None, reason });
    }
    Some(Report {
        device,
        direction: Some(if high & READ != 0 { Direction::Read } else { Direction::Write }),
        iova: Some(Iova(low & !0xfff)),
        pasid: (high & PASID_PRESENT != 0).then_some((high >> 40) as u32 & 0xf_ffff),
        reason: format!("{} (reason {code:#04x})", words(code)),
    })
}

/// Offset of the first fault recording register and how many there are, from the capability register
/// (VT-d specification, 11.4.2).
pub(super) fn records(capabilities: u64) -> (u64, u64) {
    ((capabilities >> 24 & 0x3ff) * 16, (capabilities >> 40 & 0xff) + 1)
}

/// VT-d specification, 7.1.3 and 5.1.4.1.
fn words(code: u8) -> &'static str {
    match code {
        0x01 => "the root entry is not present",
        0x02 => "the device has no context entry",
        0x03 => "the device's context entry is invalid",
        0x04 => "the address is beyond what the IOMMU translates",
        0x05 => "no write permission there",
        0x06 => "no read permission there",
        0x07 => "the next page table cannot be read",
        0x08 => "the root table cannot be read",
        0x09 => "the context table cannot be read",
        0x0a..=0x0c => "reserved bits are set in a table",
        0x0d => "the device may make no such request",
        0x25 => "it is not remappable",
        0x26 => "the device may not use this interrupt",
        0x20..=0x2f => "its remapping entry forbids it",
        0x58..=0x5f | 0x80..=0x88 => "the scalable-mode tables forbid it",
        _ => "the IOMMU refused it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::parse_line;

    fn read(line: &str) -> Report {
        match parse_line(line.as_bytes()) {
            Some(Line::Intel(report)) => report,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn every_kernels_form_names_device_direction_address_and_reason() {
        let device = "00:09.0".parse().unwrap();
        for line in [
            "DMAR: [DMA Write NO_PASID] Request device [00:09.0] fault addr 0x200000 [fault reason 0x05] PTE Write access is not set",
            "DMAR: [DMA Write NO_PASID] Request device [0x00:0x09.0] fault addr 0x200000 [fault reason 0x05] PTE Write access is not set",
            "DMAR: [DMA Write] Request device [00:09.0] PASID ffffffff fault addr 200000 [fault reason 05] PTE Write access is not set",
            "DMAR: [DMA Write] Request device [00:09.0] fault addr 200000 [fault reason 05] PTE Write access is not set",
        ] {
            let report = read(line);
            assert_eq!(report.device, device, "{line}");
            assert_eq!(report.direction, Some(Direction::Write));
            assert_eq!((report.iova, report.pasid), (Some(Iova(0x20_0000)), None));
            assert!(report.reason.starts_with("PTE Write access is not set (reason 0"), "{}", report.reason);
        }
        let report = read(
            "DMAR:[DMA Read] Request device [0001:3a:1f.7] fault addr ffffffffffff000 \nDMAR:[fault rea",
        );
        assert_eq!(report.device, "0001:3a:1f.7".parse().unwrap());
        assert_eq!(
            (report.direction, report.iova),
            (Some(Direction::Read), Some(Iova(0xfff_ffff_ffff_f000)))
        );
    }

    #[test]
    fn a_pasid_is_read_in_both_places() {
        let new =
            "DMAR: [DMA Read PASID 0x3] Request device [00:09.0] fault addr 0x1000 [fault reason 0x06] x";
        let old = "DMAR: [DMA Read] Request device [00:09.0] PASID 3 fault addr 1000 [fault reason 06] x";
        assert_eq!((read(new).pasid, read(old).pasid), (Some(3), Some(3)));
    }

    #[test]
    fn a_blocked_interrupt_is_a_fault_without_address() {
        let report = read(
            "DMAR: [INTR-REMAP] Request device [f0:1f.7] fault index 0x0 [fault reason 0x25] Blocked a compatibility format interrupt request",
        );
        assert_eq!((report.iova, report.direction), (None, None));
        assert!(report.reason.starts_with("interrupt blocked: Blocked a comp"), "{}", report.reason);
    }

    #[test]
    fn status_and_withheld_lines_are_read() {
        let read = |line: &str| parse_line(line.as_bytes());
        assert_eq!(read("DMAR: DRHD: handling fault status reg 2"), Some(Line::Handling { overflow: false }));
        assert_eq!(
            read("DMAR: DRHD: handling fault status reg 103"),
            Some(Line::Handling { overflow: true })
        );
        assert_eq!(read("dmar_fault: 23 callbacks suppressed"), Some(Line::IntelSuppressed(23)));
        assert_eq!(read("dmar_fault: 99999999999999999999999 callbacks suppressed"), None);
    }

    #[test]
    fn a_fault_record_is_read_as_the_kernel_reads_it() {
        // As QEMU's VT-d leaves them for a write and a read by 00:04.0.
        let write = record(0x20_0000, 0x80ff_ff05_0000_0020).unwrap();
        assert_eq!(write.device, "00:04.0".parse().unwrap());
        assert_eq!((write.direction, write.iova), (Some(Direction::Write), Some(Iova(0x20_0000))));
        assert_eq!((write.pasid, write.reason.as_str()), (None, "no write permission there (reason 0x05)"));
        let read = record(0x30_0123, 0xc000_0306_8000_ff12).unwrap();
        assert_eq!((read.direction, read.iova), (Some(Direction::Read), Some(Iova(0x30_0000))));
        assert_eq!((read.pasid, read.device), (Some(3), "ff:02.2".parse().unwrap()));
        assert_eq!(record(0x20_0000, 0x00ff_ff05_0000_0020), None);
        assert_eq!(records(0x00d2_008c_2226_0206), (0x220, 1));
    }
}
