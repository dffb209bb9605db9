//! SRAT: which memory and which CPUs are near each other; here all of them are. ACPI 6.5, 5.2.16.
//!
//! With it a guest knows that there is one node, and does not look for the northbridges of old AMD machines.

use acpi_tables::sdt::Sdt;
use memory::{GpaRange, Ram};

use super::table;
use crate::platform::Cpus;

/// Revision of the table's own format, in a field that must be 1.
const TABLE_REVISION: u32 = 1;
const ENABLED: u32 = 1;
/// The one node.
const NODE: u32 = 0;

const MEMORY: u8 = 1;
const LOCAL_X2APIC: u8 = 2;

pub(super) fn srat(cpus: Cpus, ram: &Ram) -> Sdt {
    let mut body = [&TABLE_REVISION.to_le_bytes()[..], &[0; 8]].concat();
    for id in cpus.apic_ids() {
        let words = [NODE, id, ENABLED, NODE, 0].map(u32::to_le_bytes);
        body.extend([&[LOCAL_X2APIC, 24, 0, 0][..], words.as_flattened()].concat());
    }
    for range in ram.segments().iter().map(|segment| segment.range()) {
        body.extend(memory(range));
    }
    let mut srat = table(b"SRAT", 3);
    srat.append_slice(&body);
    srat
}

fn memory(range: GpaRange) -> [u8; 40] {
    let mut entry = [0; 40];
    entry[..2].copy_from_slice(&[MEMORY, 40]);
    entry[2..6].copy_from_slice(&NODE.to_le_bytes());
    entry[8..16].copy_from_slice(&range.start().0.to_le_bytes());
    entry[16..24].copy_from_slice(&range.len().to_le_bytes());
    entry[28..32].copy_from_slice(&ENABLED.to_le_bytes());
    entry
}
