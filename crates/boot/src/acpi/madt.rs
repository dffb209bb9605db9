//! MADT: CPUs and interrupt controllers. ACPI 6.5, 5.2.12.
//!
//! Written by hand: the library has no overrides, no NMI and no x2APIC entries, and cannot set flags.

use acpi_tables::sdt::Sdt;

use super::table;
use crate::platform::{Cpus, gsi, mmio};

/// That of ACPI 6.5, which the FADT names.
const REVISION: u8 = 6;

/// There are 8259s, to be masked before the APICs are used.
const PCAT_COMPAT: u32 = 1;
const ENABLED: u32 = 1;
/// APIC ids above this, and processor uids, need the x2APIC form. 255 is broadcast.
const LAST_XAPIC_ID: u32 = 254;

const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const OVERRIDE: u8 = 2;
const LOCAL_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;

/// Polarity and trigger as the bus has them; for ISA: edge, active high.
const AS_BUS: u16 = 0;
/// Active high (bits 0-1), level (bits 2-3).
const LEVEL_HIGH: u16 = 0b1101;

const IO_APIC_ID: u8 = 0;
const LINT1: u8 = 1;

pub(super) fn madt(cpus: Cpus) -> Sdt {
    let mut body = Vec::new();
    let mut put = |parts: &[&[u8]]| body.extend(parts.concat());
    put(&[&(mmio::LOCAL_APIC.0 as u32).to_le_bytes(), &PCAT_COMPAT.to_le_bytes()]);

    let mut wide = false;
    for (uid, id) in (0u32..).zip(cpus.apic_ids()) {
        if id > LAST_XAPIC_ID || uid > LAST_XAPIC_ID {
            wide = true;
            let words = [id, ENABLED, uid].map(u32::to_le_bytes);
            put(&[&[LOCAL_X2APIC, 16, 0, 0], words.as_flattened()]);
        } else {
            put(&[&[LOCAL_APIC, 8, uid as u8, id as u8], &ENABLED.to_le_bytes()]);
        }
    }
    let first_gsi = 0u32;
    let address = mmio::IO_APIC.0 as u32;
    put(&[&[IO_APIC, 12, IO_APIC_ID, 0], &address.to_le_bytes(), &first_gsi.to_le_bytes()]);
    for (irq, gsi, flags) in [(0, gsi::TIMER, AS_BUS), (gsi::SCI, gsi::SCI.into(), LEVEL_HIGH)] {
        put(&[&[OVERRIDE, 10, 0, irq], &gsi.to_le_bytes(), &flags.to_le_bytes()]);
    }
    // All CPUs take NMIs at LINT1.
    put(&[&[LOCAL_NMI, 6, 0xff], &AS_BUS.to_le_bytes(), &[LINT1]]);
    if wide {
        put(&[&[LOCAL_X2APIC_NMI, 12], &AS_BUS.to_le_bytes(), &u32::MAX.to_le_bytes(), &[LINT1, 0, 0, 0]]);
    }
    let mut madt = table(b"APIC", REVISION);
    madt.append_slice(&body);
    madt
}
