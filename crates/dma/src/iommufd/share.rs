//! IOASes that share what they pin.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::kernel::{IoasId, Kernel};
use crate::backend::Source;
use crate::iova::IovaRange;
use crate::ledger::Permission;
use parking_lot::{Mutex, MutexGuard};

/// How memory that has a file is named to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// By the file, independent of this process's addresses (IOMMU_IOAS_MAP_FILE, Linux 6.13).
    File,
    /// By its address in this process.
    Address,
}

/// All IOASes of one iommufd, and what each maps: so that a piece of memory that one of them maps already is copied
/// from there, which shares its pins, and is otherwise mapped afresh.
#[derive(Debug)]
pub(crate) struct Share<K> {
    pub kernel: K,
    pub naming: Naming,
    rows: Mutex<Vec<Row>>,
}

/// One mapping in one IOAS.
#[derive(Debug, Clone, Copy)]
struct Row {
    ioas: IoasId,
    iova: IovaRange,
    memory: Memory,
    permission: Permission,
}

/// What memory it is. Two that are equal are the same, by file and by address, as long as a row with it is there:
/// the domain that mapped it keeps both that long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Memory {
    host: NonNull<u8>,
    len: u64,
    file: Option<FilePart>,
}

// SAFETY: the address is only compared.
unsafe impl Send for Memory {}

/// Where in which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FilePart {
    device: u64,
    inode: u64,
    offset: u64,
}

impl<K: Kernel> Share<K> {
    pub fn new(kernel: K) -> Share<K> {
        let naming = if kernel.maps_files() { Naming::File } else { Naming::Address };
        Share { kernel, naming, rows: Mutex::new(Vec::new()) }
    }

    /// Bytes of memory that are mapped in any of them, counted once however many map them.
    pub fn bytes(&self) -> u64 {
        let rows = self.rows();
        let first =
            |(index, row): &(usize, &Row)| rows[..*index].iter().all(|other| other.memory != row.memory);
        rows.iter().enumerate().filter(first).map(|(_, row)| row.memory.len).sum()
    }

    /// The same, if this memory were mapped as well; and what of it is new.
    fn bytes_with(&self, source: &Source<'_>, len: u64) -> (u64, u64) {
        // Memory whose file cannot be examined counts as new; mapping it fails for the same reason.
        let file = source.file.map(part).and_then(Result::ok);
        let memory = Memory { host: source.host, len, file };
        let shared = file.is_some() && self.rows().iter().any(|row| row.memory == memory);
        let new = if shared { 0 } else { len };
        (self.bytes().saturating_add(new), new)
    }

    fn rows(&self) -> MutexGuard<'_, Vec<Row>> {
        self.rows.lock()
    }
}

/// One IOAS; it is removed when dropped, with all that it maps.
#[derive(Debug)]
pub(crate) struct Ioas<K: Kernel> {
    pub id: IoasId,
    share: Arc<Share<K>>,
}

impl<K: Kernel> Ioas<K> {
    pub fn new(share: &Arc<Share<K>>) -> io::Result<Ioas<K>> {
        Ok(Ioas { id: share.kernel.alloc()?, share: share.clone() })
    }

    /// What can be mapped, as of the devices attached now, and what mappings are aligned to.
    pub fn ranges(&self) -> io::Result<(Vec<IovaRange>, u64)> {
        self.share.kernel.ranges(self.id)
    }

    /// Bytes that are pinned when this memory is mapped here as well, and devices are attached: those of all IOASes of
    /// the iommufd, each counted once. The second number is what of them is new.
    pub fn pins_with(&self, source: &Source<'_>, len: u64) -> (u64, u64) {
        self.share.bytes_with(source, len)
    }

    /// Maps memory, or copies the mapping that another IOAS has of it.
    ///
    /// # Safety
    /// The memory must stay mapped in this process at the same address, and its file be the same, until it is
    /// unmapped here; and be of the sort that devices may change at any time.
    pub unsafe fn map(&self, iova: IovaRange, source: Source<'_>, permission: Permission) -> io::Result<()> {
        let memory = Memory { host: source.host, len: iova.len(), file: source.file.map(part).transpose()? };
        let kernel = &self.share.kernel;
        // Held over the call, so that what is copied is not unmapped meanwhile.
        let mut rows = self.share.rows();
        let same = rows.iter().find(|row| row.serves(&memory, permission));
        match (same, source.file, self.share.naming) {
            (Some(row), ..) => kernel.copy((self.id, iova), (row.ioas, row.iova), permission)?,
            (None, Some((file, start)), Naming::File) => {
                kernel.map_file(self.id, iova, file, start, permission)?;
            }
            // SAFETY: by this function's contract the memory stays while it is mapped here. Where it is copied, it is
            // mapped under the same contract from the same address, and stays for that.
            (None, ..) => unsafe { kernel.map_memory(self.id, iova, source.host, permission)? },
        }
        rows.push(Row { ioas: self.id, iova, memory, permission });
        Ok(())
    }

    /// Unmaps a range that was mapped by one call of `map`; returns how many bytes went.
    pub fn unmap(&self, iova: IovaRange) -> io::Result<u64> {
        let mut rows = self.share.rows();
        let bytes = self.share.kernel.unmap(self.id, iova)?;
        // Removed even if the kernel unmapped less than it should: a partial mapping must not be copied.
        rows.retain(|row| row.ioas != self.id || row.iova != iova);
        Ok(bytes)
    }
}

impl<K: Kernel> Drop for Ioas<K> {
    fn drop(&mut self) {
        let mut rows = self.share.rows();
        rows.retain(|row| row.ioas != self.id);
        if let Err(error) = self.share.kernel.destroy(self.id) {
            say::error(format_args!("/dev/iommu: cannot remove IOAS {}: {error}", self.id.0));
        }
    }
}

impl Row {
    /// Whether a mapping of this memory can be copied from here. Device memory has no file and is never shared.
    fn serves(&self, memory: &Memory, permission: Permission) -> bool {
        let permits = self.permission == permission || self.permission == Permission::ReadWrite;
        self.memory == *memory && memory.file.is_some() && permits
    }
}

fn part((file, offset): (BorrowedFd<'_>, u64)) -> io::Result<FilePart> {
    // SAFETY: `stat` is plain numbers, for which zero is a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is a valid place for the answer.
    match unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) } {
        0 => Ok(FilePart { device: stat.st_dev, inode: stat.st_ino, offset }),
        _ => Err(io::Error::last_os_error()),
    }
}
