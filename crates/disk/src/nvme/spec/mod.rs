//! What the specifications lay down (NVM Express Base 1.4 and 2.0, NVM Command Set 1.0): registers, queue entries,
//! identify data and status codes, as far as they are used here.

mod entries;
mod identify;
mod registers;
mod status;

pub use entries::{Command, Completion, DeallocateRange};
#[cfg(any(test, feature = "fake"))]
pub use entries::{admin, io};
pub use identify::{ControllerData, NamespaceData, Refusal};
pub use registers::{Capabilities, Configuration, Status as ControllerStatus, register};
pub use status::{Meaning, Status};

/// Bytes of a page as this driver sets it (CC.MPS = 0); PRP entries are made of such pages.
pub const PAGE: u64 = 4096;
