//! A model of an IOMMU, for tests: it really translates, and keeps a record of what it refused.

use std::collections::BTreeMap;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::backend::{BackEnd, Backend, Source};
use crate::domain::{Domain, Kind};
use crate::iova::{Iova, IovaRange};
use crate::ledger::Permission;
use crate::limits::Limits;
use crate::members::Members;
use crate::memlock::MemlockError;
use parking_lot::{Mutex, MutexGuard};

/// Which way data went, or should have gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From memory to the device.
    Read,
    /// From the device to memory.
    Write,
}

/// A DMA that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Its first address that did not translate.
    pub iova: Iova,
    /// Which way.
    pub direction: Direction,
}

/// An IOMMU that translates for the devices of one domain.
#[derive(Clone, Default)]
pub struct FakeIommu(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    held: BTreeMap<u64, Entry>,
    calls: usize,
    fail: Vec<usize>,
    refused: Vec<Refused>,
}

#[derive(Clone, Copy)]
struct Entry {
    iova: IovaRange,
    host: NonNull<u8>,
    permission: Permission,
}

// SAFETY: the pointers are dereferenced only in `FakeIommu::dma`, under its lock, while the mapping is held.
unsafe impl Send for Table {}

impl FakeIommu {
    /// Nothing mapped.
    pub fn new() -> FakeIommu {
        FakeIommu::default()
    }

    /// Calls with these numbers, from 0 on, fail.
    pub fn failing(fail: &[usize]) -> FakeIommu {
        let iommu = FakeIommu::default();
        iommu.table().fail = fail.to_vec();
        iommu
    }

    /// A domain that is made with it.
    pub fn domain(&self, name: &str, kind: Kind) -> Arc<Domain> {
        Domain::over(name.into(), kind, Members::Groups(Vec::new()), Box::new(self.clone()))
    }

    /// What it holds, by rising address.
    pub fn held(&self) -> Vec<(IovaRange, Permission)> {
        self.table().held.values().map(|entry| (entry.iova, entry.permission)).collect()
    }

    /// Every DMA that was refused so far.
    pub fn refused(&self) -> Vec<Refused> {
        self.table().refused.clone()
    }

    /// A device reads memory. Bytes before the first that does not translate are read.
    pub fn read(&self, at: Iova, bytes: &mut [u8]) -> Result<(), Refused> {
        for (offset, byte) in (0..).zip(bytes) {
            self.dma(Iova(at.0.wrapping_add(offset)), Direction::Read, |host| {
                // SAFETY: `dma` gives a pointer into memory that is mapped; see there.
                *byte = unsafe { host.read_volatile() };
            })?;
        }
        Ok(())
    }

    /// A device writes memory.
    pub fn write(&self, at: Iova, bytes: &[u8]) -> Result<(), Refused> {
        for (offset, byte) in (0..).zip(bytes) {
            self.dma(Iova(at.0.wrapping_add(offset)), Direction::Write, |host| {
                // SAFETY: as in `read`.
                unsafe { host.write_volatile(*byte) };
            })?;
        }
        Ok(())
    }

    /// Calls `access` with the place that an address translates to; it stays mapped until `access` returns, for the
    /// lock is held that an unmapping needs, and who maps memory here keeps it until then (`Backend::map`).
    fn dma(&self, at: Iova, direction: Direction, access: impl FnOnce(*mut u8)) -> Result<(), Refused> {
        let mut table = self.table();
        let entry = table.held.range(..=at.0).next_back().map(|(_, entry)| *entry);
        let may = |entry: &Entry| direction == Direction::Read || entry.permission == Permission::ReadWrite;
        match entry.filter(|entry| entry.iova.last() >= at && may(entry)) {
            Some(entry) => {
                access(entry.host.as_ptr().wrapping_add((at.0 - entry.iova.first().0) as usize));
                Ok(())
            }
            None => {
                let refused = Refused { iova: at, direction };
                table.refused.push(refused);
                Err(refused)
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock()
    }
}

impl Table {
    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        if self.fail.contains(&(self.calls - 1)) {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        Ok(())
    }
}

impl Backend for FakeIommu {
    fn kind(&self) -> BackEnd {
        BackEnd::Fake
    }

    /// 39 bits, with the window for MSIs.
    fn limits(&self) -> io::Result<Limits> {
        let range = |first, last| IovaRange::inclusive(Iova(first), Iova(last));
        let ranges =
            [range(0, 0xfedf_ffff), range(0xfef0_0000, (1 << 39) - 1)].into_iter().flatten().collect();
        Ok(Limits { ranges, page_sizes: !0xfff, mappings_left: Some(65535) })
    }

    fn reserve(&self, _: &Source<'_>, _: u64) -> Result<(), MemlockError> {
        Ok(())
    }

    unsafe fn map(&mut self, iova: IovaRange, source: Source<'_>, permission: Permission) -> io::Result<()> {
        let mut table = self.table();
        table.call()?;
        if table.held.values().any(|entry| entry.iova.overlaps(iova)) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        table.held.insert(iova.first().0, Entry { iova, host: source.host, permission });
        Ok(())
    }

    fn unmap(&mut self, iova: IovaRange) -> io::Result<u64> {
        let mut table = self.table();
        table.call()?;
        match table.held.get(&iova.first().0) {
            Some(entry) if entry.iova == iova => {
                table.held.remove(&iova.first().0);
                Ok(iova.len())
            }
            _ => Ok(0),
        }
    }
}
