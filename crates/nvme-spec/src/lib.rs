//! What NVM Express lays down (Base Specification 1.4; NVM Command Set Specification 1.0): registers, queue entries,
//! identify data, log pages and status codes, as far as the controller that guests see or the driver of the host's
//! controllers uses them.
//!
//! Structures are as they lie in memory, little endian. Numbers in parentheses are sections of the Base Specification.

mod entries;
mod identify;
mod log;
mod registers;
mod status;

pub use entries::{Command, Completion, DatasetRange, SglDescriptor, admin, feature, io};
pub use identify::{IdentifyController, IdentifyNamespace, cns};
pub use log::{ErrorEntry, Health, log_page};
pub use registers::{Capabilities, Configuration, ControllerStatus, register};
pub use status::Status;

/// Bytes of the smallest memory page (CC.MPS = 0), which is the only size in use here; PRP entries are made of such pages.
pub const PAGE: u64 = 4096;
