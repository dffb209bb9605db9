//! One piece of guest RAM: a file in memory, mapped once, with guards around it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use crate::address::GpaRange;
use crate::backing::{self, LargePages};
use crate::lost::Known;
use crate::numa;
use crate::placement::{Node, Pages, Placement};
use crate::pool::PoolError;

/// Nothing is mapped this far before and behind a segment, so a stray host access faults at once.
const GUARD: usize = 2 << 20;

/// Segments start at a multiple of this (or of their pages) in host memory, as they do in the guest, so that the kernel can use
/// large pages for both.
const ALIGNMENT: usize = 2 << 20;

/// Turns small pages into large ones at once (Linux 6.1; not in libc yet).
const MADV_COLLAPSE: libc::c_int = 25;

/// Why guest RAM could not be allocated.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// A segment does not start or end on a page.
    #[error(
        "guest RAM {range} does not begin and end on pages of {pages}{}",
        if pages.are_huge() { ". Give the VM a multiple of that (--memory), or smaller pages (--hugepages)" } else { "" }
    )]
    Unaligned {
        /// The segment asked for.
        range: GpaRange,
        /// The pages asked for.
        pages: Pages,
    },
    /// The host's pool of huge pages does not hold it.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// There is no such NUMA node.
    #[error(
        "this host has no NUMA node {node}; it has {}. Write one of these, or none (--node).",
        list(there)
    )]
    NoNode {
        /// The node asked for.
        node: Node,
        /// Those there are.
        there: Vec<Node>,
    },
    /// The kernel did not take RAM from one node only.
    #[error("cannot take guest RAM {range} from NUMA node {node}: {cause}. Leave the node out (--node).")]
    Bind {
        /// The segment.
        range: GpaRange,
        /// The node.
        node: Node,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// Two segments share addresses.
    #[error("guest RAM {one} overlaps guest RAM {other}")]
    Overlap {
        /// The segment asked for first.
        one: GpaRange,
        /// The one that collides with it.
        other: GpaRange,
    },
    /// All of it must be present, and the host has less.
    #[error(
        "the VM's RAM, {} MiB, must all be present (it is wired, or devices reach it), and {} has {} MiB for it. Give \
         the VM less memory (--memory), or free some on this host.",
        wanted.div_ceil(1 << 20),
        node.map_or("this host".to_owned(), |node| format!("NUMA node {node}")),
        available >> 20
    )]
    Unavailable {
        /// Bytes of RAM.
        wanted: u64,
        /// Bytes that are available.
        available: u64,
        /// The node that they must come from, if it must be one.
        node: Option<Node>,
    },
    /// It is more than all memory of the host.
    #[error(
        "the VM's RAM, {} MiB, is more than all memory and swap of this host, {} MiB. Give the VM less memory (--memory).",
        wanted.div_ceil(1 << 20),
        all >> 20
    )]
    MoreThanAll {
        /// Bytes of RAM.
        wanted: u64,
        /// Bytes of memory and swap that the host has.
        all: u64,
    },
    /// The kernel refused.
    #[error("cannot {what} {} MiB of guest RAM at {range}: {cause}. {hint}", range.len() >> 20)]
    System {
        /// What was tried: "allocate", "map", "wire" …
        what: &'static str,
        /// The segment.
        range: GpaRange,
        /// The kernel's answer.
        cause: io::Error,
        /// What a person can do.
        hint: &'static str,
    },
}

fn list(nodes: &[Node]) -> String {
    match nodes {
        [] => "no nodes that can be chosen".into(),
        _ => nodes.iter().map(Node::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// One piece of guest RAM: a range of guest addresses and the file in memory behind it, mapped shared.
#[derive(Debug)]
pub struct Segment {
    range: GpaRange,
    placement: Placement,
    file: File,
    large_pages: LargePages,
    host: NonNull<u8>,
    reserved: Reservation,
    /// Nothing reads it: it registers the segment with the handler of accesses that fail.
    known: Option<Known>,
}

/// Host addresses that hold the segment and its guards, for unmapping.
#[derive(Debug)]
struct Reservation {
    start: *mut libc::c_void,
    len: usize,
}

// SAFETY: the mapping is shared memory that lives as long as the segment; all access goes through volatile
// copies or atomics, so moving or sharing the segment between threads adds nothing.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Allocates RAM for `range`, which must begin and end on a page, where the placement says.
    ///
    /// Huge pages are reserved for it at once. But the kernel reserves them for the host as a whole: from one
    /// node they are certain only when they are present, so wire such RAM before a guest runs in it.
    pub fn placed(range: GpaRange, placement: &Placement) -> Result<Segment, RamError> {
        let placement = *placement;
        placement.check_alignment(range)?;
        let fail = |what, hint| move |cause| RamError::System { what, range, cause, hint };
        let smaller = match placement.pages.are_huge() {
            false => "Give the VM less memory (--memory), or free some on this host.",
            true => {
                "Set more huge pages aside (nr_hugepages), raise the limit of skep's cgroup on them (hugetlb.*.max), or give the \
                     VM less memory (--memory)."
            }
        };
        let (file, large_pages) =
            backing::file(range.len(), placement.pages).map_err(fail("allocate", smaller))?;
        let (host, reserved) = map(&file, range.len(), placement.pages).map_err(fail("map", smaller))?;
        let known = Known::new(host, range.len() as usize);
        let segment = Segment { range, placement, file, large_pages, host, reserved, known };
        if let Some(node) = placement.node {
            numa::bind(segment.host, range.len(), node).map_err(|cause| RamError::Bind {
                range,
                node,
                cause,
            })?;
        }
        Ok(segment)
    }

    /// What its pages are.
    pub fn pages(&self) -> Pages {
        self.placement.pages
    }

    /// The size in bytes that each of its pages has at least; ordinary memory may have larger ones.
    pub fn page_size(&self) -> u64 {
        self.placement.pages.bytes()
    }

    /// The NUMA node that it comes from, if it comes from one only.
    pub fn node(&self) -> Option<Node> {
        self.placement.node
    }

    /// The guest addresses of this segment.
    pub fn range(&self) -> GpaRange {
        self.range
    }

    /// The file behind it, a memfd or one on a tmpfs; the segment is the whole file, from offset 0.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The first piece of it, from the byte `from` and up to `end`, that may hold something: what the file does not say is
    /// a hole (`lseek(2)`, SEEK_DATA), which reads as zeroes. `None` when nothing of it does.
    pub(crate) fn present(&self, from: u64, end: u64) -> Option<Range<u64>> {
        let seek = |at: u64, whence| {
            // SAFETY: no memory is touched; nobody uses the place in the file, which this moves.
            let found = unsafe {
                libc::lseek(self.file.as_raw_fd(), i64::try_from(at).expect("no file is as long"), whence)
            };
            u64::try_from(found).ok()
        };
        if from >= end {
            return None;
        }
        let data = match seek(from, libc::SEEK_DATA) {
            Some(data) => data,
            None if io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => return None,
            // A file system that does not know its holes.
            None => return Some(from..end),
        };
        let hole = seek(data, libc::SEEK_HOLE).unwrap_or(end);
        (data < end).then_some(data..hole.min(end))
    }

    /// Where the segment lies in this process. The mapping lives as long as the segment.
    pub fn host_address(&self) -> NonNull<u8> {
        self.host
    }

    /// Makes the first `len` bytes come in pages of 2 MiB, as far as the kernel has them. Where they
    /// come by themselves, nothing is touched.
    pub(crate) fn enlarge_pages(&self, len: u64) -> Result<(), RamError> {
        if self.large_pages != LargePages::OnRequest {
            return Ok(());
        }
        let len = len.min(self.range.len()) as usize;
        for offset in (0..len).step_by(ALIGNMENT) {
            // Collapsing needs a first page to grow from; the rest of the 2 MiB it fills with zeroes itself.
            self.populate(offset as u64, 4096)?;
        }
        let start = self.host.as_ptr().cast::<libc::c_void>();
        let whole = len / ALIGNMENT * ALIGNMENT;
        // SAFETY: all three concern our own mapping of at least `len` bytes and keep its content. The first two
        // are wishes, and what they do not bring the third does.
        let populated = unsafe {
            libc::madvise(start, len, libc::MADV_HUGEPAGE);
            libc::madvise(start, whole, MADV_COLLAPSE);
            libc::madvise(start, len, libc::MADV_POPULATE_WRITE)
        };
        if populated == 0 {
            return Ok(());
        }
        Err(RamError::System {
            what: "populate",
            range: self.range,
            cause: io::Error::last_os_error(),
            hint: "Give the VM less memory (--memory), or free some on this host.",
        })
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.known = None;
        // SAFETY: this is the reservation made in `map`; nothing borrows from a segment beyond its life.
        unsafe { libc::munmap(self.reserved.start, self.reserved.len) };
    }
}

/// Reserves room for the file and guards around it, then maps the file into the middle.
fn map(file: &File, len: u64, pages: Pages) -> io::Result<(NonNull<u8>, Reservation)> {
    let len = usize::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
    let alignment = ALIGNMENT.max(pages.bytes() as usize);
    let reserve =
        len.checked_add(2 * GUARD + alignment).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous reservation without access, at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), reserve, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let inner = (start as usize + GUARD).next_multiple_of(alignment);
    // SAFETY: `inner..inner+len` lies inside the reservation just made (it is `2 * GUARD + alignment` larger
    // than `len`), so MAP_FIXED replaces nothing but that reservation.
    let host = unsafe {
        libc::mmap(
            inner as *mut libc::c_void,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
            file.as_raw_fd(),
            0,
        )
    };
    if host == libc::MAP_FAILED {
        let error = io::Error::last_os_error();
        // SAFETY: the reservation made above, which nobody uses yet.
        unsafe { libc::munmap(start, reserve) };
        return Err(error);
    }
    // SAFETY: as the first mmap: our own new mapping. Core files without guest RAM are what people want.
    unsafe { libc::madvise(host, len, libc::MADV_DONTDUMP) };
    let host = NonNull::new(host.cast()).expect("the place is above a guard, so never 0");
    Ok((host, Reservation { start, len: reserve }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Gpa, Ram};

    fn range(len: u64) -> GpaRange {
        GpaRange::new(Gpa(0), len).unwrap()
    }

    #[test]
    fn ordinary_segments_say_what_they_are_made_of() {
        let segment = Segment::placed(range(8 << 20), &Placement::default()).unwrap();
        assert_eq!((segment.page_size(), segment.node()), (4096, None));
        assert_eq!(segment.host_address().as_ptr() as usize % ALIGNMENT, 0);
    }

    #[test]
    fn ram_of_node_0_is_bound_to_it() {
        let placement = Placement { node: Some(Node(0)), ..Placement::default() };
        let segment = Segment::placed(range(4 << 20), &placement).unwrap();
        assert_eq!(segment.node(), Some(Node(0)));
        let maps = std::fs::read_to_string("/proc/self/numa_maps");
        // A kernel without NUMA has no such file, and needs none.
        if let Ok(maps) = maps {
            let start = format!("{:x} ", segment.host_address().as_ptr() as usize);
            let line = maps.lines().find(|line| line.starts_with(&start));
            assert!(line.is_some_and(|line| line.contains("bind:0")), "{line:?}");
        }
    }

    #[test]
    fn a_node_that_is_not_there_is_an_error_and_not_other_memory() {
        let placement = Placement { node: Some(Node(1000)), ..Placement::default() };
        let error = Segment::placed(range(4 << 20), &placement).unwrap_err();
        assert!(error.to_string().contains("NUMA node 1000"), "{error}");
    }

    #[test]
    #[ignore = "needs 8 free huge pages of 2 MiB, and no more than 1000: run it in the lab, skep lab exec --hugepages 16"]
    fn huge_pages_come_out_of_the_pool_and_go_back() {
        let free = || {
            let text =
                std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").unwrap();
            text.trim().parse::<u64>().unwrap()
        };
        let before = free();
        for node in [None, Some(Node(0))] {
            let placement = Placement { pages: Pages::Huge2M, node };
            let ram = Ram::placed(&[range(16 << 20)], &placement).unwrap();
            let mut told = 0;
            ram.wire_with(|done| told = done).unwrap();
            assert_eq!((told, free()), (16 << 20, before - 8));
            ram.write_obj(Gpa((16 << 20) - 8), &7u64).unwrap();
            assert_eq!(ram.read_obj::<u64>(Gpa((16 << 20) - 8)).unwrap(), 7);
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let start = format!("{:x}-", ram.segments()[0].host_address().as_ptr() as usize);
            let mapping = smaps.split(&start).nth(1).unwrap();
            let size = mapping.lines().find(|line| line.starts_with("KernelPageSize")).unwrap();
            assert!(size.contains(" 2048 kB"), "{size}");
            drop(ram);
            assert_eq!(free(), before);
        }
        let placement = Placement { pages: Pages::Huge2M, node: None };
        let error = Ram::placed(&[range(4 << 30)], &placement).unwrap_err().to_string();
        assert!(
            error.contains("takes 2048 huge pages of 2 MiB") && error.contains("echo 2048 > "),
            "{error}"
        );
    }

    #[test]
    fn huge_pages_that_the_pool_does_not_hold_are_an_error() {
        // More than any machine has.
        let placement = Placement { pages: Pages::Huge2M, node: None };
        let error = Segment::placed(range(1 << 46), &placement).unwrap_err();
        assert!(error.to_string().contains("nr_hugepages"), "{error}");
    }
}
