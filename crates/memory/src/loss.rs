//! The message to a VM's owner about guest RAM that is lost.

use std::fmt;
use std::io;

use crate::address::{Gpa, GpaRange};
use crate::lost::Touch;
use crate::placement::Pages;
use crate::ram::Ram;
use crate::segment::Segment;

/// A piece of guest RAM that this host can no longer provide, or has lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The address of its page.
    pub gpa: Gpa,
    /// The segment that it is in.
    pub segment: GpaRange,
    /// Why.
    pub cause: Cause,
}

/// Why guest RAM is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The host's memory has an error that cannot be corrected.
    MemoryError,
    /// The file behind it is shorter than the segment: bytes that it has.
    Shortened(u64),
    /// The host has no such page left.
    NoPage(Pages),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Loss { gpa, segment, cause } = self;
        match cause {
            Cause::MemoryError => write!(
                f,
                "guest RAM at {gpa} (segment {segment}) is lost: this host's memory has an error there that cannot be \
                 corrected. The host's log (dmesg) says which module has it; have it replaced"
            ),
            Cause::Shortened(bytes) => write!(
                f,
                "guest RAM at {gpa} (segment {segment}) is lost: another process made the file behind the segment \
                 shorter, to {bytes} of {} bytes. Find out what has the files of skep open",
                segment.len()
            ),
            Cause::NoPage(pages) if pages.are_huge() => write!(
                f,
                "this host has no huge page of {pages} left for guest RAM at {gpa} (segment {segment}): others took them, \
                 or the limit of skep's cgroup is reached (hugetlb.*.max). Set more aside (nr_hugepages) or raise the \
                 limit; with --wire on all pages are there before the guest runs"
            ),
            Cause::NoPage(_) => write!(
                f,
                "this host has no memory left for guest RAM at {gpa} (segment {segment}), or cannot read it from its swap. \
                 Give the VM less memory (--memory), or free some on this host; with --wire on all of it is there before \
                 the guest runs"
            ),
        }
    }
}

impl Ram {
    /// What an access that failed means; `None` when it was in no segment of this RAM.
    pub fn loss_of(&self, touch: Touch) -> Option<Loss> {
        self.segments().iter().find_map(|segment| {
            let offset = touch.place.checked_sub(segment.host_address().as_ptr() as usize)? as u64;
            (offset < segment.range().len()).then(|| segment.loss(offset, touch.memory_error))
        })
    }

    /// Which RAM the host cannot provide, for a failure that does not name the place: the first page in it that is not
    /// present and cannot be allocated. `near` is tried first. Asks the host for one page of each segment at most.
    pub fn find_loss(&self, near: Option<Gpa>) -> Option<Loss> {
        let near = near.and_then(|gpa| {
            let segment = self.segments().iter().find(|segment| segment.range().contains(gpa))?;
            segment.try_page(gpa.0 - segment.range().start().0)
        });
        near.or_else(|| self.segments().iter().find_map(|segment| segment.first_loss()))
    }
}

impl Segment {
    /// Why the page at `offset` is lost.
    fn loss(&self, offset: u64, memory_error: bool) -> Loss {
        let page = offset - offset % self.page_size();
        let cause = match self.shortened() {
            _ if memory_error => Cause::MemoryError,
            Some(bytes) => Cause::Shortened(bytes),
            None => Cause::NoPage(self.pages()),
        };
        Loss { gpa: Gpa(self.range().start().0 + page), segment: self.range(), cause }
    }

    /// The length of the file behind it, if that is less than it should be.
    fn shortened(&self) -> Option<u64> {
        self.file().metadata().ok().map(|data| data.len()).filter(|len| *len < self.range().len())
    }

    /// The first page that cannot be allocated, as far as one try shows.
    fn first_loss(&self) -> Option<Loss> {
        match self.shortened() {
            Some(len) => Some(self.loss(len, false)),
            None => self.try_page(self.first_absent()?),
        }
    }

    /// Asks for the page at `offset`; what is lost if the host does not give it.
    fn try_page(&self, offset: u64) -> Option<Loss> {
        let page = offset - offset % self.page_size();
        // SAFETY: a page of our own mapping; reading it keeps its content.
        let read = unsafe {
            let place = self.host_address().add(page as usize).as_ptr();
            libc::madvise(place.cast(), self.page_size() as usize, libc::MADV_POPULATE_READ)
        };
        let error = io::Error::last_os_error().raw_os_error();
        let refused = read != 0 && matches!(error, Some(libc::EFAULT | libc::ENOMEM | libc::EHWPOISON));
        refused.then(|| self.loss(page, error == Some(libc::EHWPOISON)))
    }

    /// The first page of 4 KiB that is not in memory.
    fn first_absent(&self) -> Option<u64> {
        const STEP: u64 = 64 << 20;
        let len = self.range().len();
        (0..len).step_by(STEP as usize).find_map(|start| {
            let mut pages = vec![1u8; (STEP.min(len - start) / 4096) as usize];
            // SAFETY: asks about our own mapping, with one byte for each of its pages.
            let asked = unsafe {
                let place = self.host_address().add(start as usize).as_ptr();
                libc::mincore(place.cast(), pages.len() * 4096, pages.as_mut_ptr())
            };
            let absent = pages.iter().position(|page| page & 1 == 0).filter(|_| asked == 0)?;
            Some(start + 4096 * absent as u64)
        })
    }
}
