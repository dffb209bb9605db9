//! Memory of skep's own drivers in a domain.

use std::ptr::NonNull;
use std::sync::Arc;

use memory::{Gpa, GpaRange, Ram};

use crate::domain::Domain;
use crate::iova::{Iova, IovaRange};

/// Memory for a host driver's queues: mapped for the devices of one domain, at IOVAs where no guest RAM is, and seen
/// by nothing else. It is used as guest RAM is, by volatile access through [`OwnMemory::ram`], whose addresses are
/// the IOVAs. Dropping it unmaps it.
pub struct OwnMemory {
    domain: Arc<Domain>,
    iova: IovaRange,
    ram: Arc<Ram>,
}

impl OwnMemory {
    pub(crate) fn new(domain: Arc<Domain>, iova: IovaRange, ram: Arc<Ram>) -> OwnMemory {
        OwnMemory { domain, iova, ram }
    }

    /// Its first IOVA.
    pub fn iova(&self) -> Iova {
        self.iova.first()
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.iova.len()
    }

    /// Always false: it is at least a page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The memory, one segment whose addresses are its IOVAs.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// Where it lies in this process; valid as long as `self`. The device writes there at any time.
    pub fn start(&self) -> NonNull<u8> {
        self.ram.segments()[0].host_address()
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        if let Err(error) = self.domain.unmap_own(self.iova) {
            // The row stays in the ledger and keeps the memory, so that it is not used for anything else.
            say::error(error);
        }
    }
}

impl std::fmt::Debug for OwnMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OwnMemory({})", self.iova)
    }
}

/// The memory itself, at the addresses of `iova`. `None` where these are no guest addresses.
pub(crate) fn range(iova: IovaRange) -> Option<GpaRange> {
    GpaRange::new(Gpa(iova.first().0), iova.len())
}
