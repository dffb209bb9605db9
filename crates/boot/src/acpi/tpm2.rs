//! TPM2: how to reach the TPM. TCG ACPI Specification 1.4, 7.3.
//!
//! It names no area for an event log. Without firmware nobody measures. OVMF does, and gives its log by its own protocol; an
//! area here it would leave empty, and Linux before 5.15 would take that for the log.

use acpi_tables::sdt::Sdt;

use super::table;
use crate::platform::mmio;

const REVISION: u8 = 4;
const CLASS_CLIENT: u16 = 0;
/// Commands are started by the registers of a command response buffer alone.
const START_BY_CRB: u32 = 7;
/// Where those registers begin that a driver starts commands with.
const CONTROL_AREA: u64 = 0x40;

pub(super) fn tpm2() -> Sdt {
    let mut tpm2 = table(b"TPM2", REVISION);
    for field in [
        &CLASS_CLIENT.to_le_bytes()[..],
        &[0; 2],
        &(mmio::TPM.0 + CONTROL_AREA).to_le_bytes(),
        &START_BY_CRB.to_le_bytes(),
    ] {
        tpm2.append_slice(field);
    }
    tpm2
}
