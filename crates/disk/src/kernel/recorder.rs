//! What this thread writes to files and brings to stable storage, for tests that cut the power in between.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

/// What was done to a file, which is known by its inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Deed {
    Wrote { inode: u64, at: u64, bytes: Vec<u8> },
    Synced { inode: u64 },
}

thread_local! {
    static DEEDS: RefCell<Option<Vec<Deed>>> = const { RefCell::new(None) };
}

thread_local! {
    static SYNCS_TO_FAIL: Cell<u32> = const { Cell::new(0) };
}

/// So many times from now on, nothing can be brought to stable storage. The kernel has told of it then.
pub(crate) fn fail_syncs(count: u32) {
    SYNCS_TO_FAIL.set(count);
}

pub(super) fn may_sync() -> io::Result<()> {
    let left = SYNCS_TO_FAIL.get();
    SYNCS_TO_FAIL.set(left.saturating_sub(1));
    if left == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EIO)) }
}

/// From now on deeds are recorded; what was recorded before is forgotten.
pub(crate) fn start() {
    DEEDS.set(Some(Vec::new()));
}

/// How many deeds there are so far.
pub(crate) fn count() -> usize {
    DEEDS.with_borrow(|deeds| deeds.as_ref().map_or(0, Vec::len))
}

/// All deeds since the start; no more are recorded.
pub(crate) fn stop() -> Vec<Deed> {
    DEEDS.take().unwrap_or_default()
}

pub(super) fn wrote(file: &File, at: u64, len: u64) {
    DEEDS.with_borrow_mut(|deeds| {
        let Some(deeds) = deeds else { return };
        // The file may be open for direct I/O, which would have to be aligned.
        let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, at).unwrap();
        deeds.push(Deed::Wrote { inode: file.metadata().unwrap().ino(), at, bytes });
    });
}

pub(super) fn synced(file: &File) {
    DEEDS.with_borrow_mut(|deeds| {
        let Some(deeds) = deeds else { return };
        deeds.push(Deed::Synced { inode: file.metadata().unwrap().ino() });
    });
}
