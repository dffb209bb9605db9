//! Marks in a qcow2 header that hold only until a program writes that does not keep them true ("autoclear_features"):
//! that its bitmaps show what has changed, for one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::MutexGuard;

use super::qcow2_header::{MARKS, unaligned};
use super::tables::Tables;
use crate::contract::DiskError;
use crate::kernel::kind_of;

/// The marks of an image that will be written to. They stay until the first change, so that an image which is opened
/// and not changed keeps them: the library does not see them ([`Tables`]), and one write changes them in the file.
pub(super) struct Marks {
    tables: Arc<Tables>,
    /// Marks that stay true.
    kept: u64,
    cleared: AtomicBool,
}

impl Marks {
    pub(super) fn new(tables: Arc<Tables>, kept: u64) -> Marks {
        Marks { tables, kept, cleared: AtomicBool::new(false) }
    }

    /// Whether the image may be changed.
    pub(super) fn are_cleared(&self) -> bool {
        self.cleared.load(Ordering::Acquire)
    }

    /// Removes the marks that a change makes untrue, on stable storage, before the first one. Nobody else may change the
    /// header meanwhile.
    pub(super) fn clear(&self, _changing: &MutexGuard<'_, ()>) -> Result<(), DiskError> {
        if !self.are_cleared() {
            write(&self.tables.handle().file, self.kept).map_err(|error| kind_of(&error))?;
            self.tables.set_marks(self.kept);
            self.cleared.store(true, Ordering::Release);
        }
        Ok(())
    }
}

fn write(image: &File, marks: u64) -> io::Result<()> {
    let file = unaligned(image, File::options().write(true))?;
    file.write_all_at(&marks.to_be_bytes(), MARKS.start as u64)?;
    file.sync_data()
}
