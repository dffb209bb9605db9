//! Making RAM present and keeping it so.
//!
//! The kernel clears every page that it gives away, which takes a CPU seconds for a few GiB; so several do it, each
//! one piece after another.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::address::GpaRange;
use crate::placement::Pages;
use crate::ram::Ram;
use crate::segment::{RamError, Segment};
use parking_lot::Mutex;

/// How much one thread makes present at a time, if a page is not larger.
const PIECE: u64 = 64 << 20;

/// More threads than this wait for each other in the kernel.
const THREADS: usize = 16;

/// Time between two reports of progress.
const TICK: Duration = Duration::from_millis(100);

impl Ram {
    /// Makes every page present and locks it, so that it neither moves to swap nor faults later; needed before
    /// devices may reach it by DMA. Calls `progress` with the bytes done about every 100 ms, and at the end.
    pub fn wire_with(&self, progress: impl FnMut(u64)) -> Result<(), RamError> {
        let segments: Vec<&Segment> = self.segments().iter().map(|segment| &**segment).collect();
        wire(&segments, progress)
    }

    /// Makes the pages of a range present, for a thread that is about to write there and cannot be stopped
    /// ([`crate::Losses`]). What is outside RAM is left alone.
    pub fn make_present(&self, range: GpaRange) -> Result<(), RamError> {
        for segment in self.segments() {
            let (own, page) = (segment.range(), segment.page_size());
            let first = range.start().max(own.start()).0.saturating_sub(own.start().0);
            let end = range.end().min(own.end()).0.saturating_sub(own.start().0);
            let first = first - first % page;
            if first < end {
                segment.populate(first, end.next_multiple_of(page) - first)?;
            }
        }
        Ok(())
    }

    /// Makes every page present, with the same reports, but locks none: for RAM that is mapped for devices next,
    /// which pins it.
    pub fn populate_with(&self, mut progress: impl FnMut(u64)) -> Result<(), RamError> {
        let segments: Vec<&Segment> = self.segments().iter().map(|segment| &**segment).collect();
        populate(&segments, &mut progress)
    }
}

impl Segment {
    /// The same for one segment, such as one that is added to a VM that runs.
    pub fn wire_with(&self, progress: impl FnMut(u64)) -> Result<(), RamError> {
        wire(&[self], progress)
    }
}

fn wire(segments: &[&Segment], mut progress: impl FnMut(u64)) -> Result<(), RamError> {
    // First, because a missing permission to lock shows at once, and making pages present takes long.
    segments.iter().try_for_each(|segment| segment.lock_on_touch())?;
    populate(segments, &mut progress)
}

/// A part of a segment that one thread makes present.
#[derive(Clone, Copy)]
struct Piece<'a> {
    segment: &'a Segment,
    offset: u64,
    len: u64,
}

/// Makes every page of the segments present.
fn populate(segments: &[&Segment], progress: &mut dyn FnMut(u64)) -> Result<(), RamError> {
    let pieces: Vec<Piece<'_>> = segments.iter().flat_map(|segment| pieces(segment)).collect();
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let next = AtomicUsize::new(0);
    let done = AtomicU64::new(0);
    let failed: Mutex<Option<RamError>> = Mutex::new(None);
    let work = || {
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            match piece.segment.populate(piece.offset, piece.len) {
                Ok(()) => drop(done.fetch_add(piece.len, Ordering::Relaxed)),
                Err(error) => {
                    next.store(pieces.len(), Ordering::Relaxed);
                    failed.lock().get_or_insert(error);
                }
            }
        }
    };
    let (alive, ended) = mpsc::channel::<()>();
    let work = &work;
    std::thread::scope(|scope| {
        let threads = 0..cpus.min(THREADS).min(pieces.len());
        let started = threads.map_while(|_| {
            let alive = alive.clone();
            let thread = std::thread::Builder::new().name("wire-ram".into());
            let thread = thread.spawn_scoped(scope, move || {
                work();
                drop(alive);
            });
            thread.ok()
        });
        // With fewer threads it only takes longer; this thread can do all of it.
        if started.count() == 0 {
            work();
        }
        drop(alive);
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(TICK) {
            progress(done.load(Ordering::Relaxed));
        }
    });
    match failed.into_inner() {
        Some(error) => Err(error),
        None => {
            progress(done.into_inner());
            Ok(())
        }
    }
}

fn pieces(segment: &Segment) -> impl Iterator<Item = Piece<'_>> {
    let len = segment.range().len();
    let step = PIECE.max(segment.page_size());
    (0..len).step_by(step as usize).map(move |offset| Piece { segment, offset, len: step.min(len - offset) })
}

impl Segment {
    /// Locks every page as soon as it is present, and those that are present already. Huge pages are never swapped.
    fn lock_on_touch(&self) -> Result<(), RamError> {
        if self.pages().are_huge() {
            return Ok(());
        }
        let flags = libc::MLOCK_ONFAULT as libc::c_uint;
        // SAFETY: the range is our own mapping of exactly this length; locking does not change its content.
        let locked =
            unsafe { libc::mlock2(self.host_address().as_ptr().cast(), self.range().len() as usize, flags) };
        if locked == 0 {
            return Ok(());
        }
        Err(RamError::System {
            what: "wire",
            range: self.range(),
            cause: io::Error::last_os_error(),
            hint: "Raise the limit of locked memory (ulimit -l unlimited, or LimitMEMLOCK=infinity in a unit), or run as root.",
        })
    }

    /// Makes the pages of a part present, which must be whole pages inside the segment.
    pub(crate) fn populate(&self, offset: u64, len: u64) -> Result<(), RamError> {
        debug_assert!(offset + len <= self.range().len());
        loop {
            // SAFETY: the part lies in our own mapping (see `pieces`); populating keeps its content.
            let populated = unsafe {
                let start = self.host_address().add(offset as usize);
                libc::madvise(start.as_ptr().cast(), len as usize, libc::MADV_POPULATE_WRITE)
            };
            if populated == 0 {
                return Ok(());
            }
            let cause = io::Error::last_os_error();
            if cause.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            // The kernel's "bad address" is that it has no page to put there (madvise(2)).
            let cause = match cause.raw_os_error() {
                Some(libc::EFAULT) => {
                    io::Error::new(io::ErrorKind::OutOfMemory, "the host has no page for it")
                }
                _ => cause,
            };
            let hint = match (self.pages(), self.node()) {
                (Pages::Default, None) => "Give the VM less memory (--memory), or free some on this host.",
                (Pages::Default, Some(_)) => {
                    "Give the VM less memory (--memory), or free some on that NUMA node, or leave the node out (--node)."
                }
                _ => {
                    "Another process has taken huge pages, or skep's cgroup limits them: reserve more (nr_hugepages), or raise \
                     the limit (hugetlb.*.max)."
                }
            };
            return Err(RamError::System { what: "populate", range: self.range(), cause, hint });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Gpa, Placement};

    fn range(start: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(start), len).unwrap()
    }

    #[test]
    fn pieces_cover_a_segment_exactly_once_and_in_order() {
        for len in [0x1000, PIECE - 0x1000, PIECE, PIECE + 0x1000, 3 * PIECE] {
            let segment = Segment::placed(range(0, len), &Placement::default()).unwrap();
            let end = pieces(&segment).fold(0, |at, piece| {
                assert_eq!((piece.offset, piece.len > 0), (at, true));
                at + piece.len
            });
            assert_eq!(end, len);
        }
    }

    #[test]
    fn populating_makes_every_page_present_keeps_what_is_there_and_tells_all_bytes_at_the_end() {
        let ram = Ram::new(&[range(0, 130 << 20), range(1 << 32, 2 << 20)]).unwrap();
        ram.write_obj(Gpa(0x1234), &0x55u8).unwrap();
        let mut told = Vec::new();
        ram.populate_with(|done| told.push(done)).unwrap();
        assert_eq!(told.last(), Some(&(132 << 20)), "{told:?}");
        assert!(told.is_sorted(), "{told:?}");
        assert_eq!(ram.read_obj::<u8>(Gpa(0x1234)).unwrap(), 0x55);
        for segment in ram.segments() {
            assert_eq!(present(segment), segment.range().len() / 4096);
        }
    }

    #[test]
    fn wired_ram_is_locked_whole() {
        let ram = Ram::new(&[range(0, 4 << 20)]).unwrap();
        let before = locked();
        ram.wire_with(|_| {}).unwrap();
        assert!(locked() >= before + (4 << 10), "{} KiB", locked());
        assert_eq!(present(&ram.segments()[0]), 1024);
    }

    #[test]
    fn only_the_pages_of_a_range_are_made_present_wherever_it_ends() {
        let ram = Ram::new(&[range(0, 32 << 20), range(1 << 32, 32 << 20)]).unwrap();
        let now = || ram.segments().iter().map(|segment| present(segment)).collect::<Vec<_>>();
        ram.make_present(range(0x20_0fff, 2)).unwrap();
        ram.make_present(range(64 << 20, 1 << 20)).unwrap();
        // One page, or the large page that it is part of.
        assert!(now()[0] >= 2 && now()[0] <= 512 && now()[1] == 0, "{:?}", now());
        ram.make_present(range((32 << 20) - 1, 1 << 32)).unwrap();
        assert!(now()[1] == 8192 && now()[0] <= 1024, "{:?}", now());
    }

    /// How many pages of 4 KiB of a segment are present.
    fn present(segment: &Segment) -> u64 {
        let mut pages = vec![0u8; (segment.range().len() / 4096) as usize];
        // SAFETY: asks about our own mapping, with one byte for each of its pages.
        let asked = unsafe {
            libc::mincore(
                segment.host_address().as_ptr().cast(),
                segment.range().len() as usize,
                pages.as_mut_ptr(),
            )
        };
        assert_eq!(asked, 0);
        pages.iter().filter(|page| **page & 1 != 0).count() as u64
    }

    /// How many KiB this process has locked.
    fn locked() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmLck:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}
