//! Guest RAM as registered buffers of io_uring: a mirror of the memory map.
//!
//! For ordinary memory the kernel looks every page of a request up, pins it, and lets it go again when the request is
//! done. Registered memory was pinned once. That makes all of it present and keeps it so: it suits RAM that is wired or
//! pinned for devices anyway, and takes from other RAM that the host could use for something else what the guest never
//! touched. Nothing may punch holes into RAM that is registered, for the kernel would go on using the old pages.
//!
//! RAM is registered with one ring, the master, which never carries a request out. The rings of queues have clones of
//! its table (Linux 6.12), so RAM is pinned, and counted against the limit on locked memory, once, however many queues
//! and disks there are. A ring takes its clone on its own thread, for the kernel lets no other change anything about it;
//! it is woken for that, and a change waits for all rings to have followed.

mod error;
mod master_ring;
mod ring_buffers;
mod table;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use memory::{Change, Contents, Difference, Mirror, MirrorError, Segment};
use parking_lot::{Condvar, Mutex, MutexGuard};

pub use error::BufferTableError;
use error::FOLLOW_LIMIT;
use master_ring::MasterRing;
pub(crate) use ring_buffers::RingBuffers;
use ring_buffers::RingState;
use table::Table;

/// Guest RAM that the kernel has pinned for disks. Attach it to a VM's [`memory::MemoryMap`], and give it to disks
/// ([`crate::Disk::use_buffers`]).
pub struct BufferTable {
    master: MasterRing,
    state: Mutex<State>,
    /// A ring has followed.
    followed: Condvar,
    /// The version of what the master has, for rings to see without a lock that they are behind.
    version: AtomicU64,
}

struct State {
    table: Arc<Table>,
    rings: Vec<Weak<RingState>>,
}

impl BufferTable {
    /// A table without any RAM yet.
    pub fn new() -> Result<BufferTable, BufferTableError> {
        let master = MasterRing::new()?;
        let state = State { table: Arc::default(), rings: Vec::new() };
        Ok(BufferTable {
            master,
            state: Mutex::new(state),
            followed: Condvar::new(),
            version: AtomicU64::new(0),
        })
    }

    /// Bytes of RAM that are registered, and so pinned.
    pub fn bytes(&self) -> u64 {
        self.state().table.bytes()
    }

    fn add(&self, segment: &Arc<Segment>) -> Result<(), BufferTableError> {
        let mut state = self.state();
        let entries = state.table.places_for(segment).ok_or(BufferTableError::Full)?;
        for (done, entry) in entries.iter().enumerate() {
            if let Err(cause) = self.master.set(entry) {
                entries[..done].iter().for_each(|entry| self.master.clear(entry));
                let offset = entry.start as u64 - segment.host_address().as_ptr() as u64;
                let at = memory::Gpa(segment.range().start().0 + offset);
                return Err(BufferTableError::Refused { at, bytes: entry.len as u64, cause });
            }
        }
        let next = state.table.with(entries);
        self.publish(&mut state, next);
        // A ring that is late uses the new RAM as ordinary memory.
        drop(self.wait(state));
        Ok(())
    }

    fn remove(&self, segment: &Arc<Segment>) -> Result<(), BufferTableError> {
        let mut state = self.state();
        let (next, gone) = state.table.without(segment);
        // First, for rings take all that the master has.
        gone.iter().for_each(|entry| self.master.clear(entry));
        self.publish(&mut state, next);
        let mut state = self.wait(state);
        if state.late().next().is_none() {
            return Ok(());
        }
        // What cannot be had again is missing, which an audit shows; nothing uses it.
        let back = gone.into_iter().filter(|entry| self.master.set(entry).is_ok()).collect();
        let next = state.table.with(back);
        self.publish(&mut state, next);
        Err(BufferTableError::Stuck)
    }

    fn publish(&self, state: &mut State, next: Table) {
        let next = next.numbered(state.table.version + 1);
        self.version.store(next.version, Ordering::Release);
        state.table = Arc::new(next);
        state.rings.retain(|ring| ring.strong_count() > 0);
        state.rings().for_each(|ring| ring.wake());
    }

    /// Waits until all rings have followed, or have had time enough.
    fn wait<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let end = Instant::now() + FOLLOW_LIMIT;
        while state.late().next().is_some()
            && let Some(left) = end.checked_duration_since(Instant::now())
        {
            self.followed.wait_for(&mut state, left);
        }
        state
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn rings(&self) -> impl Iterator<Item = Arc<RingState>> {
        self.rings.iter().filter_map(Weak::upgrade)
    }

    /// Rings that hold another version.
    fn late(&self) -> impl Iterator<Item = Arc<RingState>> {
        let version = self.table.version;
        self.rings().filter(move |ring| ring.version() != version)
    }
}

impl Mirror for BufferTable {
    fn name(&self) -> String {
        "io_uring's registered buffers".to_owned()
    }

    fn prepare(&self, change: &Change) -> Result<(), MirrorError> {
        match change {
            Change::AddRam(segment) => self.add(segment)?,
            Change::RemoveRam(segment) => self.remove(segment)?,
            // Disks never reach the memory of devices.
            Change::AddDevice(_) | Change::RemoveDevice(_) => {}
        }
        Ok(())
    }

    fn audit(&self, contents: &Contents) -> Result<(), Difference> {
        let state = self.state();
        let mut differences = state.table.differences(contents.ram.segments());
        let late = state.late().count();
        if late > 0 {
            differences.push(format!("{late} queues of disks hold an older table"));
        }
        differences.extend(state.rings().filter_map(|ring| ring.refusal()));
        if differences.is_empty() { Ok(()) } else { Err(Difference { mirror: self.name(), differences }) }
    }
}

impl std::fmt::Debug for BufferTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufferTable").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}
