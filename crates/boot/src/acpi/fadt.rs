//! FADT: the fixed registers. ACPI 6.5, 5.2.9.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use memory::Gpa;

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::platform::{Platform, RESET_VALUE, gsi, port};

/// There are devices on the ISA bus that need a driver: the serial port.
const BOOT_LEGACY_DEVICES: u16 = 1 << 0;
const BOOT_8042: u16 = 1 << 1;
const BOOT_NO_VGA: u16 = 1 << 2;

/// No such CPU state: latencies above these say so.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

pub(super) fn fadt(platform: &Platform, dsdt: Gpa, facs: Gpa) -> FADT {
    // There are no general-purpose events: no block of them, and no device of the DSDT that would raise one.
    // Power button: fixed (flag clear). Sleep button: none (flag set). The clock cannot wake the machine by
    // the fixed registers (FixRtc set). The timer has 24 bits (TmrValExt clear).
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.dsdt = (dsdt.0 as u32).into();
    fadt.x_dsdt = dsdt.0.into();
    fadt.firmware_ctrl = (facs.0 as u32).into();
    fadt.sci_int = u16::from(gsi::SCI).into();

    fadt.pm1a_evt_blk = u32::from(port::PM1A_EVENT).into();
    fadt.pm1_evt_len = port::PM1A_EVENT_LEN;
    fadt.x_pm1a_evt_blk = io(port::PM1A_EVENT, port::PM1A_EVENT_LEN, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(port::PM1A_CONTROL).into();
    fadt.pm1_cnt_len = port::PM1A_CONTROL_LEN;
    fadt.x_pm1a_cnt_blk = io(port::PM1A_CONTROL, port::PM1A_CONTROL_LEN, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(port::PM_TIMER).into();
    fadt.pm_tmr_len = port::PM_TIMER_LEN;
    fadt.x_pm_tmr_blk = io(port::PM_TIMER, port::PM_TIMER_LEN, AccessSize::DwordAccess);
    fadt.reset_reg = io(port::RESET, 1, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;

    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    let keyboard = if platform.i8042 { BOOT_8042 } else { 0 };
    let screen = if platform.vga { 0 } else { BOOT_NO_VGA };
    fadt.iapc_boot_arch = (BOOT_LEGACY_DEVICES | keyboard | screen).into();
    fadt.century = port::RTC_CENTURY;
    fadt.finalize()
}

fn io(port: u16, len: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, len * 8, 0, access, port.into())
}
