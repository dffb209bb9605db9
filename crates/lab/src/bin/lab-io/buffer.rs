//! Memory for O_DIRECT: whole pages, in order or scattered.

use std::io;

/// The size of a page in bytes.
pub const PAGE: usize = 4096;

/// Anonymous pages of our own, unmapped when dropped.
pub struct Pages {
    start: *mut u8,
    length: usize,
}

impl Pages {
    /// Enough pages for `length` bytes, present from the start.
    pub fn new(length: usize) -> io::Result<Pages> {
        let length = length.next_multiple_of(PAGE);
        // SAFETY: a fresh anonymous mapping touches no memory that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
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

    /// Pieces that together hold `length` bytes and of which no two that follow each other are neighbours in
    /// memory: the even pages first, then the odd ones. Piece `n` of a page's size holds page `order(n)`.
    pub fn scattered(&self, length: usize) -> Vec<libc::iovec> {
        scattered_pages(length)
            .map(|(page, length)| libc::iovec {
                // The page lies inside the mapping, for `length` is at most the mapping's.
                iov_base: self.start.wrapping_add(page * PAGE).cast(),
                iov_len: length,
            })
            .collect()
    }
}

/// Which page of the buffer holds which piece, and how long the piece is.
pub fn scattered_pages(length: usize) -> impl Iterator<Item = (usize, usize)> {
    let pages = length.div_ceil(PAGE);
    let order = (0..pages).step_by(2).chain((1..pages).step_by(2));
    order.enumerate().map(move |(piece, page)| (page, PAGE.min(length - piece * PAGE)))
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nobody can reach it any more.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}
