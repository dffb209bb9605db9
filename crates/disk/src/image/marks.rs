//! Marks in a qcow2 header that hold only until somebody writes who does not keep them true ("autoclear_features"):
//! that its bitmaps show what has changed, for one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::qcow2_header::{MARKS_AT, unaligned};
use crate::kernel::{Handle, kind_of};
use crate::request::DiskError;

/// The marks of an image that will be written to. They stay until the first change, so that an image which is opened
/// and not changed keeps them.
pub(super) struct Marks {
    image: Arc<Handle>,
    /// Marks that stay true.
    kept: u64,
    one_at_a_time: Mutex<()>,
    cleared: AtomicBool,
}

impl Marks {
    pub(super) fn new(image: Arc<Handle>, kept: u64) -> Marks {
        Marks { image, kept, one_at_a_time: Mutex::default(), cleared: AtomicBool::new(false) }
    }

    /// Whether the image may be changed.
    pub(super) fn are_cleared(&self) -> bool {
        self.cleared.load(Ordering::Acquire)
    }

    /// Takes the marks away that a change makes untrue, on stable storage, before the first one.
    pub(super) fn clear(&self) -> Result<(), DiskError> {
        if self.are_cleared() {
            return Ok(());
        }
        let _others_wait = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.are_cleared() {
            write(&self.image.file, self.kept).map_err(|error| kind_of(&error))?;
            self.cleared.store(true, Ordering::Release);
        }
        Ok(())
    }
}

/// Runs `open` while the image has no marks: the library takes all of them away when it opens an image for writing,
/// and writes the header anew.
pub(super) fn without<T>(image: &Handle, marks: u64, open: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if marks == 0 {
        return open();
    }
    write(&image.file, 0)?;
    let opened = open();
    write(&image.file, marks)?;
    opened
}

fn write(image: &File, marks: u64) -> io::Result<()> {
    let file = unaligned(image, File::options().write(true))?;
    file.write_all_at(&marks.to_be_bytes(), MARKS_AT)?;
    file.sync_data()
}
