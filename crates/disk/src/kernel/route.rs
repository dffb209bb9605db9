//! Whether a file's data goes past the host's page cache, and what it means where it does not.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::facts::Alignment;
use super::handle::CopyPolicy;
use crate::contract::Access;
use crate::options::Bounce;

/// `linux/magic.h`: file systems in memory, which libc has not all of.
const IN_MEMORY: [i64; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];

/// How the data of an open file goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Route {
    /// By direct I/O.
    Direct,
    /// Through the page cache, for the file system refuses direct I/O.
    DirectRefused,
    /// Through the page cache, for the image's format wants it.
    CacheChosen,
}

impl Route {
    pub(super) fn copies(self, bounce: Bounce, alignment: Alignment) -> CopyPolicy {
        match (self, bounce) {
            (Route::DirectRefused | Route::CacheChosen, _) => CopyPolicy::InPageCache,
            (Route::Direct, Bounce::Always) => CopyPolicy::Always(alignment),
            (Route::Direct, Bounce::WhenNeeded) => CopyPolicy::Unless(alignment),
        }
    }

    /// What a person should know of it: that a disk has no direct I/O where it could have, and that a wish is not
    /// fulfilled. A file in memory has nothing but the page cache.
    pub(super) fn remark(self, file: &File, path: &Path, access: Access, bounce: Bounce) -> Option<String> {
        let why = match (self, bounce) {
            (Route::Direct, _) | (Route::CacheChosen, Bounce::WhenNeeded) => return None,
            (Route::DirectRefused, Bounce::WhenNeeded) if is_in_memory(file) => return None,
            (Route::DirectRefused, _) => "its file system refuses direct I/O",
            (Route::CacheChosen, Bounce::Always) => "images of its format do without direct I/O",
        };
        let mut said =
            format!("disk {}: {why}, so its data is copied through the host's page cache", path.display());
        if access == Access::ReadWrite {
            said += ", and a flush that fails cannot be tried again";
        }
        if bounce == Bounce::Always {
            said += "; bounce=always changes nothing there";
        }
        if self == Route::DirectRefused {
            said += ". File systems such as ext4 and xfs have direct I/O";
        }
        Some(said)
    }
}

fn is_in_memory(file: &File) -> bool {
    // SAFETY: statfs is plain data, for which all zeroes are valid.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: our own descriptor, and room for the answer.
    let status = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut answer) };
    status == 0 && IN_MEMORY.contains(&answer.f_type)
}
