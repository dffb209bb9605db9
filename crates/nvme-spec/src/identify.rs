//! Identify data (5.15.2).

use zerocopy::{FromBytes, Immutable, IntoBytes, little_endian as le};

/// Controller or namespace structure (CNS): what identify answers with (5.15.1).
pub mod cns {
    /// [`IdentifyNamespace`](super::IdentifyNamespace) of an active namespace.
    pub const NAMESPACE: u8 = 0x00;
    /// [`IdentifyController`](super::IdentifyController).
    pub const CONTROLLER: u8 = 0x01;
    /// The numbers of the active namespaces.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
}

/// Identify controller (5.15.2.2).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct IdentifyController {
    pub vid: le::U16,
    pub ssvid: le::U16,
    pub sn: [u8; 20],
    pub mn: [u8; 40],
    pub fr: [u8; 8],
    pub rab: u8,
    pub ieee: [u8; 3],
    pub cmic: u8,
    pub mdts: u8,
    pub cntlid: le::U16,
    pub ver: le::U32,
    pub rtd3r: le::U32,
    pub rtd3e: le::U32,
    pub oaes: le::U32,
    pub ctratt: le::U32,
    pub rrls: le::U16,
    pub reserved102: [u8; 9],
    pub cntrltype: u8,
    pub fguid: [u8; 16],
    pub crdt: [le::U16; 3],
    pub reserved134: [u8; 122],
    pub oacs: le::U16,
    pub acl: u8,
    pub aerl: u8,
    pub frmw: u8,
    pub lpa: u8,
    pub elpe: u8,
    pub npss: u8,
    pub avscc: u8,
    pub apsta: u8,
    pub wctemp: le::U16,
    pub cctemp: le::U16,
    pub reserved270: [u8; 242],
    pub sqes: u8,
    pub cqes: u8,
    pub maxcmd: le::U16,
    pub nn: le::U32,
    pub oncs: le::U16,
    pub fuses: le::U16,
    pub fna: u8,
    pub vwc: u8,
    pub awun: le::U16,
    pub awupf: le::U16,
    pub nvscc: u8,
    pub nwpc: u8,
    pub acwu: le::U16,
    pub reserved534: [u8; 2],
    pub sgls: le::U32,
    pub mnan: le::U32,
    pub reserved544: [u8; 224],
    pub subnqn: [u8; 256],
    pub reserved1024: [u8; 1024],
    /// Power state 0: maximum power in centiwatts, and zeroes.
    pub psd0: [u8; 32],
    pub reserved2080: [u8; 2016],
}

impl IdentifyController {
    /// OACS: doorbell buffer config.
    pub const DOORBELL_BUFFER: u16 = 1 << 8;
    /// ONCS: compare.
    pub const COMPARE: u16 = 1;
    /// ONCS: dataset management.
    pub const DATASET_MANAGEMENT: u16 = 1 << 2;
    /// ONCS: write zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// VWC: there is a volatile write cache.
    pub const WRITE_CACHE: u8 = 1;
}

/// Identify namespace (5.15.2.1).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct IdentifyNamespace {
    pub nsze: le::U64,
    pub ncap: le::U64,
    pub nuse: le::U64,
    pub nsfeat: u8,
    pub nlbaf: u8,
    pub flbas: u8,
    pub mc: u8,
    pub dpc: u8,
    pub dps: u8,
    pub nmic: u8,
    pub rescap: u8,
    pub fpi: u8,
    pub dlfeat: u8,
    pub nawun: le::U16,
    pub nawupf: le::U16,
    pub nacwu: le::U16,
    pub nabsn: le::U16,
    pub nabo: le::U16,
    pub nabspf: le::U16,
    pub noiob: le::U16,
    pub nvmcap: [u8; 16],
    pub npwg: le::U16,
    pub npwa: le::U16,
    pub npdg: le::U16,
    pub npda: le::U16,
    pub nows: le::U16,
    pub reserved74: [u8; 18],
    pub anagrpid: le::U32,
    pub reserved96: [u8; 3],
    pub nsattr: u8,
    pub nvmsetid: le::U16,
    pub endgid: le::U16,
    pub nguid: [u8; 16],
    pub eui64: [u8; 8],
    /// LBA formats: metadata size in bits 15:0, block size as a power of two in bits 23:16. Base 2.0 has more than 16.
    pub lbaf: [le::U32; 64],
    pub reserved384: [u8; 3712],
}

impl IdentifyNamespace {
    /// NSFEAT: NPWG, NPWA, NPDG, NPDA and NOWS hold something (OPTPERF).
    pub const PREFERRED_SIZES: u8 = 1 << 4;
    /// DLFEAT, bits 2:0: what deallocated blocks read as ...
    pub const DEALLOCATED: u8 = 7;
    /// ... which is zeroes.
    pub const DEALLOCATED_IS_ZEROES: u8 = 1;
    /// DLFEAT: write zeroes may deallocate.
    pub const WRITE_ZEROES_DEALLOCATES: u8 = 1 << 3;
    /// NSATTR: it is write protected.
    pub const WRITE_PROTECTED: u8 = 1;
}

const _: () = {
    assert!(size_of::<IdentifyController>() == 4096);
    assert!(std::mem::offset_of!(IdentifyController, oacs) == 256);
    assert!(std::mem::offset_of!(IdentifyController, sqes) == 512);
    assert!(std::mem::offset_of!(IdentifyController, subnqn) == 768);
    assert!(std::mem::offset_of!(IdentifyController, psd0) == 2048);
    assert!(size_of::<IdentifyNamespace>() == 4096);
    assert!(std::mem::offset_of!(IdentifyNamespace, nguid) == 104);
    assert!(std::mem::offset_of!(IdentifyNamespace, lbaf) == 128);
};
