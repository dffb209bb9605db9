//! What the specification lays down: structures, opcodes, status codes (NVM Express Base Specification 1.4).
//!
//! Structures are as they lie in memory, little endian. Section numbers are those of that specification.

use zerocopy::{FromBytes, Immutable, IntoBytes, little_endian as le};

/// Bytes of a memory page; the only size that this controller has (CAP.MPSMIN = CAP.MPSMAX = 0).
pub const PAGE: u64 = 4096;

/// Controller registers (3.1), by offset.
pub mod register {
    /// Controller capabilities, 64 bits.
    pub const CAP: u64 = 0x00;
    /// Version.
    pub const VS: u64 = 0x08;
    /// Interrupt mask set.
    pub const INTMS: u64 = 0x0c;
    /// Interrupt mask clear.
    pub const INTMC: u64 = 0x10;
    /// Controller configuration.
    pub const CC: u64 = 0x14;
    /// Controller status.
    pub const CSTS: u64 = 0x1c;
    /// Admin queue attributes.
    pub const AQA: u64 = 0x24;
    /// Admin submission queue base address, 64 bits.
    pub const ASQ: u64 = 0x28;
    /// Admin completion queue base address, 64 bits.
    pub const ACQ: u64 = 0x30;
    /// The first doorbell; they lie four bytes apart (CAP.DSTRD = 0): tail of queue 0, head of queue 0, tail of
    /// queue 1 ...
    pub const DOORBELLS: u64 = 0x1000;
}

/// CC: the controller is enabled.
pub const CC_EN: u32 = 1;
/// CC: shutdown notification, two bits.
pub const CC_SHN: u32 = 3 << 14;
/// CSTS: ready.
pub const CSTS_RDY: u32 = 1;
/// CSTS: fatal status.
pub const CSTS_CFS: u32 = 2;
/// CSTS: shutdown is being processed.
pub const CSTS_SHST_BUSY: u32 = 1 << 2;
/// CSTS: shutdown is complete.
pub const CSTS_SHST_DONE: u32 = 2 << 2;
/// VS: version 1.4.
pub const VERSION: u32 = 0x0001_0400;

/// Admin commands (5).
pub mod admin {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const DELETE_SQ: u8 = 0x00;
    pub const CREATE_SQ: u8 = 0x01;
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const DELETE_CQ: u8 = 0x04;
    pub const CREATE_CQ: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const ASYNC_EVENT: u8 = 0x0c;
    pub const KEEP_ALIVE: u8 = 0x18;
    pub const DOORBELL_BUFFER: u8 = 0x7c;
    /// All that are implemented.
    pub const ALL: [u8; 11] = [
        DELETE_SQ,
        CREATE_SQ,
        GET_LOG_PAGE,
        DELETE_CQ,
        CREATE_CQ,
        IDENTIFY,
        ABORT,
        SET_FEATURES,
        GET_FEATURES,
        ASYNC_EVENT,
        DOORBELL_BUFFER,
    ];
}

/// Commands of the NVM command set (6).
pub mod io {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const COMPARE: u8 = 0x05;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// All that are implemented.
    pub const ALL: [u8; 6] = [FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DATASET_MANAGEMENT];
}

/// Features (5.21.1).
pub mod feature {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const ARBITRATION: u8 = 0x01;
    pub const POWER_MANAGEMENT: u8 = 0x02;
    pub const TEMPERATURE: u8 = 0x04;
    pub const ERROR_RECOVERY: u8 = 0x05;
    pub const WRITE_CACHE: u8 = 0x06;
    pub const QUEUES: u8 = 0x07;
    pub const COALESCING: u8 = 0x08;
    pub const VECTOR: u8 = 0x09;
    pub const ATOMICITY: u8 = 0x0a;
    pub const ASYNC_EVENT: u8 = 0x0b;
}

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

/// The status field of a completion (4.6.1): code, type, "more", "do not retry".
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

#[allow(missing_docs, reason = "the names are the specification's")]
impl Status {
    pub const SUCCESS: Status = Status(0);
    pub const INVALID_OPCODE: Status = Status(0x01).final_();
    pub const INVALID_FIELD: Status = Status(0x02).final_();
    pub const DATA_TRANSFER_ERROR: Status = Status(0x04).final_();
    pub const INTERNAL_ERROR: Status = Status(0x06);
    pub const ABORT_REQUESTED: Status = Status(0x07);
    pub const SQ_DELETED: Status = Status(0x08);
    pub const INVALID_NAMESPACE: Status = Status(0x0b).final_();
    pub const SEQUENCE_ERROR: Status = Status(0x0c).final_();
    pub const SGL_SEGMENT: Status = Status(0x0d).final_();
    pub const SGL_COUNT: Status = Status(0x0e).final_();
    pub const SGL_LENGTH: Status = Status(0x0f).final_();
    pub const SGL_TYPE: Status = Status(0x11).final_();
    pub const PRP_OFFSET: Status = Status(0x13).final_();
    pub const LBA_RANGE: Status = Status(0x80).final_();
    pub const CAPACITY_EXCEEDED: Status = Status(0x81);
    pub const NAMESPACE_NOT_READY: Status = Status(0x82).final_();
    pub const CQ_INVALID: Status = Status(0x100).final_();
    pub const QUEUE_ID: Status = Status(0x101).final_();
    pub const QUEUE_SIZE: Status = Status(0x102).final_();
    pub const ABORT_LIMIT: Status = Status(0x103).final_();
    pub const ASYNC_EVENT_LIMIT: Status = Status(0x105).final_();
    pub const INTERRUPT_VECTOR: Status = Status(0x108).final_();
    pub const LOG_PAGE: Status = Status(0x109).final_();
    pub const QUEUE_DELETION: Status = Status(0x10c).final_();
    pub const NOT_SAVEABLE: Status = Status(0x10d).final_();
    pub const NOT_CHANGEABLE: Status = Status(0x10e).final_();
    pub const READ_ONLY: Status = Status(0x182).final_();
    pub const WRITE_FAULT: Status = Status(0x280).final_();
    pub const READ_ERROR: Status = Status(0x281).final_();
    pub const COMPARE_FAILURE: Status = Status(0x285).final_();

    /// The same, and the driver need not try again.
    const fn final_(self) -> Status {
        Status(self.0 | 0x4000)
    }

    /// Without "more" and "do not retry".
    pub fn code(self) -> u16 {
        self.0 & 0x7ff
    }
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Status({:#x}{})", self.code(), if self.0 & 0x4000 == 0 { "" } else { ", final" })
    }
}

/// A submission queue entry (4.2).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct Command {
    pub opcode: u8,
    /// Fused operation in bits 1:0, PRP or SGL in bits 7:6.
    pub flags: u8,
    pub cid: le::U16,
    pub nsid: le::U32,
    pub cdw2: le::U32,
    pub cdw3: le::U32,
    pub mptr: le::U64,
    pub dptr: [le::U64; 2],
    pub cdw10: le::U32,
    pub cdw11: le::U32,
    pub cdw12: le::U32,
    pub cdw13: le::U32,
    pub cdw14: le::U32,
    pub cdw15: le::U32,
}

impl Command {
    /// Whether data is described by an SGL (PSDT); otherwise by PRPs.
    pub fn sgl(&self) -> bool {
        self.flags >> 6 != 0
    }

    /// The first logical block of a read, write, compare or write zeroes.
    pub fn lba(&self) -> u64 {
        u64::from(self.cdw11.get()) << 32 | u64::from(self.cdw10.get())
    }

    /// The number of logical blocks of such a command.
    pub fn blocks(&self) -> u64 {
        u64::from(self.cdw12.get() & 0xffff) + 1
    }
}

/// A completion queue entry (4.6).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct Completion {
    pub result: le::U32,
    pub reserved: le::U32,
    pub sq_head: le::U16,
    pub sq_id: le::U16,
    pub cid: le::U16,
    /// Phase in bit 0, status above.
    pub status: le::U16,
}

/// A scatter gather list descriptor (4.4).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct SglDescriptor {
    pub address: le::U64,
    pub length: le::U32,
    pub reserved: [u8; 3],
    /// Type in bits 7:4, subtype in bits 3:0.
    pub kind: u8,
}

impl SglDescriptor {
    /// Type: data.
    pub const DATA: u8 = 0x00;
    /// Type: more descriptors, among which another such may be the last.
    pub const SEGMENT: u8 = 0x20;
    /// Type: the last descriptors.
    pub const LAST_SEGMENT: u8 = 0x30;
}

/// A range of dataset management (6.7).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct DatasetRange {
    pub attributes: le::U32,
    pub blocks: le::U32,
    pub lba: le::U64,
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
    /// LBA formats: metadata size in bits 15:0, block size as a power of two in bits 23:16.
    pub lbaf: [le::U32; 16],
    pub reserved192: [u8; 3904],
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
    assert!(size_of::<Command>() == 64);
    assert!(size_of::<Completion>() == 16);
    assert!(size_of::<SglDescriptor>() == 16);
    assert!(size_of::<DatasetRange>() == 16);
    assert!(size_of::<IdentifyController>() == 4096);
    assert!(std::mem::offset_of!(IdentifyController, oacs) == 256);
    assert!(std::mem::offset_of!(IdentifyController, sqes) == 512);
    assert!(std::mem::offset_of!(IdentifyController, subnqn) == 768);
    assert!(std::mem::offset_of!(IdentifyController, psd0) == 2048);
    assert!(size_of::<IdentifyNamespace>() == 4096);
    assert!(std::mem::offset_of!(IdentifyNamespace, nguid) == 104);
    assert!(std::mem::offset_of!(IdentifyNamespace, lbaf) == 128);
    assert!(size_of::<ErrorEntry>() == 64);
    assert!(size_of::<Health>() == 512);
    assert!(std::mem::offset_of!(Health, units_read) == 32);
};
