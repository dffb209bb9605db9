//! Log pages (5.14.1).

use zerocopy::{FromBytes, Immutable, IntoBytes, little_endian as le};

/// Log pages (5.14.1).
pub mod log_page {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const SUPPORTED: u8 = 0x00;
    pub const ERROR: u8 = 0x01;
    pub const HEALTH: u8 = 0x02;
    pub const FIRMWARE: u8 = 0x03;
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    pub const COMMANDS: u8 = 0x05;
}

/// An entry of the error log (5.14.1.1).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct ErrorEntry {
    pub count: le::U64,
    pub sq_id: le::U16,
    pub cid: le::U16,
    /// Phase in bit 0, status above.
    pub status: le::U16,
    pub location: le::U16,
    pub lba: le::U64,
    pub nsid: le::U32,
    pub vendor: u8,
    pub reserved: [u8; 35],
}

/// SMART / health information (5.14.1.2).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct Health {
    pub critical_warning: u8,
    /// Kelvin.
    pub temperature: le::U16,
    pub spare: u8,
    pub spare_threshold: u8,
    pub used: u8,
    pub reserved6: [u8; 26],
    /// In units of 1000 times 512 bytes.
    pub units_read: le::U128,
    pub units_written: le::U128,
    pub read_commands: le::U128,
    pub write_commands: le::U128,
    /// In minutes.
    pub busy_time: le::U128,
    pub power_cycles: le::U128,
    pub power_on_hours: le::U128,
    pub unsafe_shutdowns: le::U128,
    pub media_errors: le::U128,
    pub error_entries: le::U128,
    pub reserved192: [u8; 320],
}

const _: () = {
    assert!(size_of::<ErrorEntry>() == 64);
    assert!(size_of::<Health>() == 512);
    assert!(std::mem::offset_of!(Health, units_read) == 32);
};
