//! Guest RAM that a request under way owns.

use std::sync::Arc;

use crate::address::{Gpa, GpaRange};
use crate::ram::{OutsideRam, Ram};

/// Pieces of guest RAM in order, as the kernel takes them (`iovec`), with a share in the RAM they lie in.
///
/// A request keeps its buffers until the kernel or the device has finished with them. The RAM stays mapped that
/// long, even if the guest resets the device. To keep the reference count local to a queue, share an
/// `Arc<Ram>` per queue.
pub struct Buffers {
    ram: Arc<Ram>,
    pieces: Vec<libc::iovec>,
    /// The guest address of each piece.
    starts: Vec<Gpa>,
    bytes: u64,
}

// SAFETY: the pointers lead to guest RAM, which `ram` keeps mapped and which is shared memory for every thread.
unsafe impl Send for Buffers {}
// SAFETY: as above; what needs no `&mut self` reads the pieces, or copies to and from guest RAM, which is volatile.
unsafe impl Sync for Buffers {}

impl Buffers {
    /// Room for so many pieces is kept for the next request, and what was needed beyond is given back. A guest chooses
    /// how many pieces its memory lies in, and must not thereby choose what the host keeps.
    pub const KEPT: usize = 128;

    /// Bytes of the host's memory that a piece costs.
    pub const PIECE: usize = size_of::<libc::iovec>() + size_of::<Gpa>();

    /// No piece yet.
    pub fn new(ram: Arc<Ram>) -> Buffers {
        Buffers { ram, pieces: Vec::new(), starts: Vec::new(), bytes: 0 }
    }

    /// Adds `len` bytes at `gpa`; pieces that touch become one. They touch in host memory only where they do in
    /// the guest as well: each segment has guards around it. Nothing is added on failure.
    pub fn push(&mut self, gpa: Gpa, len: u64) -> Result<(), OutsideRam> {
        let slice = self.ram.slice(gpa, len)?;
        self.bytes += len;
        if let Some(last) = self.pieces.last_mut()
            && last.iov_base as usize + last.iov_len == slice.as_ptr() as usize
        {
            last.iov_len += slice.len();
        } else if !slice.is_empty() {
            self.pieces.push(libc::iovec { iov_base: slice.as_ptr().cast(), iov_len: slice.len() });
            self.starts.push(gpa);
        }
        Ok(())
    }

    /// The pieces for the kernel. They stay valid as long as `self`.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.pieces
    }

    /// Where piece `index` lies in the guest, for devices that reach RAM by guest addresses; `None` behind the
    /// last one. The RAM stays that of these addresses as long as `self`.
    pub fn range(&self, index: usize) -> Option<GpaRange> {
        GpaRange::new(*self.starts.get(index)?, self.pieces[index].iov_len as u64)
    }

    /// Bytes in all pieces.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many pieces there is room for now, which costs the host [`PIECE`](Self::PIECE) bytes each.
    pub fn room(&self) -> usize {
        self.pieces.capacity()
    }

    /// Keeps the RAM for as long as this process lives: for a device that has the buffers' addresses and cannot be
    /// stopped.
    pub fn keep_ram_for_ever(&self) {
        std::mem::forget(self.ram.clone());
    }

    /// Forgets the pieces, and keeps room for [`KEPT`](Self::KEPT) new ones.
    pub fn clear(&mut self) {
        if self.pieces.capacity() > Self::KEPT {
            (self.pieces, self.starts) = (Vec::new(), Vec::new());
        }
        self.pieces.clear();
        self.starts.clear();
        self.bytes = 0;
    }

    /// Copies `bytes` into the pieces in order; returns how many fitted.
    pub fn write(&self, bytes: &[u8]) -> usize {
        self.write_at(0, bytes)
    }

    /// Copies out of the pieces in order into `bytes`; returns how many there were.
    pub fn read(&self, bytes: &mut [u8]) -> usize {
        self.read_at(0, bytes)
    }

    /// Copies `bytes` into the pieces behind their first `offset` bytes; returns how many fitted.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> usize {
        self.each(offset, bytes.len(), |slice, done| slice.write(&bytes[done..]))
    }

    /// Copies from behind the first `offset` bytes of the pieces into `bytes`; returns how many there were.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> usize {
        self.each(offset, bytes.len(), |slice, done| slice.read(&mut bytes[done..]))
    }

    fn each(
        &self,
        offset: u64,
        limit: usize,
        mut copy: impl FnMut(crate::GuestSlice<'_>, usize) -> usize,
    ) -> usize {
        let mut skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut done = 0;
        for piece in &self.pieces {
            if done == limit {
                break;
            }
            let start = std::ptr::NonNull::new(piece.iov_base.cast::<u8>()).expect("guest RAM is never at 0");
            // SAFETY: the piece came from `Ram::slice` on `self.ram`, which is still held.
            let slice = unsafe { crate::GuestSlice::new(start, piece.iov_len) };
            let skipped = skip.min(slice.len());
            skip -= skipped;
            if let Some(slice) = slice.sub(skipped, slice.len() - skipped) {
                done += copy(slice, done);
            }
        }
        done
    }
}

impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffers({} bytes in {} pieces)", self.bytes, self.pieces.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_piece_and_copies_run_across_pieces() {
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 0x4000).unwrap()]).unwrap());
        let mut buffers = Buffers::new(ram.clone());
        buffers.push(Gpa(0x1000), 0x1000).unwrap();
        buffers.push(Gpa(0x2000), 0x800).unwrap();
        buffers.push(Gpa(0), 0x10).unwrap();
        assert!(buffers.push(Gpa(0x3fff), 2).is_err());
        assert_eq!((buffers.iovecs().len(), buffers.bytes()), (2, 0x1810));
        let range = |start, len| GpaRange::new(Gpa(start), len);
        assert_eq!([0, 1, 2].map(|i| buffers.range(i)), [range(0x1000, 0x1800), range(0, 0x10), None]);
        let pattern: Vec<u8> = (0..0x1810u32).map(|i| i as u8).collect();
        assert_eq!(buffers.write(&pattern), 0x1810);
        let mut back = vec![0; 0x1810];
        assert_eq!(buffers.read(&mut back), 0x1810);
        assert_eq!(back, pattern);
        let mut tail = [0; 0x20];
        assert_eq!(buffers.read_at(0x17f8, &mut tail), 0x18);
        assert_eq!(tail[..0x18], pattern[0x17f8..]);
        assert_eq!(buffers.write_at(0x17ff, &[0xaa; 2]), 2);
        assert_eq!(ram.read_obj::<u8>(Gpa(0)).unwrap(), 0xaa);
        assert_eq!(buffers.write_at(0x1810, &[0xaa; 2]), 0);
        assert_eq!(buffers.write(&pattern), 0x1810);
        assert_eq!(ram.read_obj::<u8>(Gpa(0)).unwrap(), pattern[0x1800]);
    }

    #[test]
    fn room_for_usual_requests_is_kept_and_that_for_long_lists_is_not() {
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 0x1000).unwrap()]).unwrap());
        let mut buffers = Buffers::new(ram);
        for (pieces, kept) in [(Buffers::KEPT, Buffers::KEPT), (Buffers::KEPT + 1, 0), (1, 4)] {
            (0..pieces as u64).for_each(|n| buffers.push(Gpa(2 * n), 1).unwrap());
            assert_eq!(buffers.iovecs().len(), pieces);
            buffers.clear();
            assert_eq!((buffers.room(), buffers.starts.capacity()), (kept, kept));
            assert_eq!((buffers.bytes(), buffers.iovecs().len()), (0, 0));
        }
    }

    #[test]
    fn buffers_keep_the_ram_they_lie_in() {
        let ram = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), 0x1000).unwrap()]).unwrap());
        let mut buffers = Buffers::new(ram.clone());
        buffers.push(Gpa(0), 16).unwrap();
        drop(ram);
        assert_eq!(buffers.write(&[9; 16]), 16);
    }
}
