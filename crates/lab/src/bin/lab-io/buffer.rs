//! Memory for O_DIRECT: whole pages, in order or scattered.

use std::io;

/// The size of a page in bytes.
pub const PAGE: usize = 4096;

/// The size of a huge page in bytes.
const HUGE: usize = 2 << 20;

/// Anonymous pages of our own, unmapped when dropped.
pub struct Pages {
    start: *mut u8,
    length: usize,
}

impl Pages {
    /// Enough pages for `length` bytes, present from the start.
    pub fn new(length: usize) -> io::Result<Pages> {
        Pages::map(length.next_multiple_of(PAGE), 0)
    }

    /// One huge page, whose bytes are neighbours in memory.
    pub fn whole(length: usize) -> io::Result<Pages> {
        if length > HUGE {
            return Err(io::Error::other(format!("{length} bytes are more than a huge page has")));
        }
        Pages::map(HUGE, libc::MAP_HUGETLB)
    }

    fn map(length: usize, flags: libc::c_int) -> io::Result<Pages> {
        // SAFETY: a fresh anonymous mapping touches no memory that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | flags,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Huge pages would put side by side what is to be scattered.
        // SAFETY: advice about our own mapping.
        unsafe { libc::madvise(start, length, libc::MADV_NOHUGEPAGE) };
        Ok(Pages { start: start.cast(), length })
    }

    /// Where they are.
    pub fn address(&self) -> *mut u8 {
        self.start
    }

    /// The bytes. No transfer may be under way.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as self, is readable, and the kernel writes to it only during
        // transfers, none of which is under way.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }

    /// The bytes, to change them. No transfer may be under way.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and we hold the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }

    /// The pieces of a layout, as the kernel takes them. No piece may lie outside the pages.
    pub fn pieces(&self, layout: impl Iterator<Item = (usize, usize)>) -> Vec<libc::iovec> {
        let piece = |(start, length): (usize, usize)| {
            assert!(start + length <= self.length, "a piece lies outside the buffer");
            libc::iovec { iov_base: self.start.wrapping_add(start).cast(), iov_len: length }
        };
        layout.map(piece).collect()
    }
}

/// How the bytes of one transfer lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// In pages of which no two that follow each other are neighbours: the even ones first, then the odd ones.
    Scattered,
    /// In one piece.
    Whole,
}

impl Layout {
    /// The pieces that together hold `length` bytes: where in the buffer each starts, and how long it is.
    pub fn pieces(self, length: usize) -> Box<dyn Iterator<Item = (usize, usize)>> {
        if self == Layout::Whole {
            return Box::new(std::iter::once((0, length)));
        }
        let pages = length.div_ceil(PAGE);
        let order = (0..pages).step_by(2).chain((1..pages).step_by(2));
        Box::new(order.enumerate().map(move |(piece, page)| (page * PAGE, PAGE.min(length - piece * PAGE))))
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nobody can reach it any more.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}
