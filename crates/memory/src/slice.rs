//! A piece of guest RAM in host memory, touched only by volatile copies and atomics.

use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32};

/// A piece of guest RAM. Its bytes may change at any moment: copy them once, then check the copy.
#[derive(Clone, Copy, Debug)]
pub struct GuestSlice<'ram> {
    start: NonNull<u8>,
    len: usize,
    ram: PhantomData<&'ram ()>,
}

// SAFETY: the memory is shared with the guest anyway; every access is volatile or atomic.
unsafe impl Send for GuestSlice<'_> {}
// SAFETY: as above.
unsafe impl Sync for GuestSlice<'_> {}

impl<'ram> GuestSlice<'ram> {
    /// # Safety
    /// `start` must point to `len` bytes of mapped, writable memory that stays mapped for `'ram` and is only
    /// accessed by volatile or atomic means.
    pub(crate) unsafe fn new(start: NonNull<u8>, len: usize) -> GuestSlice<'ram> {
        GuestSlice { start, len, ram: PhantomData }
    }

    /// Length in bytes.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// First byte in host memory, for the kernel and for devices. Valid for `'ram`.
    pub fn as_ptr(self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// `len` bytes from `offset` on, or `None` when they do not all lie in this slice.
    pub fn sub(self, offset: usize, len: usize) -> Option<GuestSlice<'ram>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: offset + len <= self.len, so the new slice lies inside this one.
        Some(unsafe { GuestSlice::new(self.start.add(offset), len) })
    }

    /// Copies into `bytes` as much as both hold; returns how much.
    pub fn read(self, bytes: &mut [u8]) -> usize {
        let len = self.len.min(bytes.len());
        // SAFETY: `len` bytes are valid at both ends: in the slice by its invariant, in `bytes` by its type.
        // They cannot overlap, for `bytes` is an exclusive Rust borrow.
        unsafe { volatile_copy(self.start.as_ptr(), bytes.as_mut_ptr(), len) };
        len
    }

    /// Copies `N` times eight bytes from `offset` on, as numbers of this machine; `None` when they do not all lie in
    /// this slice. Where they are aligned to eight, each of them is read in one step.
    pub fn read_words<const N: usize>(self, offset: usize) -> Option<[u64; N]> {
        let place = self.sub(offset, 8 * N)?.start.as_ptr().cast::<u64>();
        let mut words = [0; N];
        if place.is_aligned() {
            for (index, word) in words.iter_mut().enumerate() {
                // SAFETY: in bounds, as all of them are, and aligned.
                *word = unsafe { place.add(index).read_volatile() };
            }
        } else {
            // SAFETY: as many bytes are valid at both ends; `words` is ours alone.
            unsafe { volatile_copy(place.cast(), words.as_mut_ptr().cast(), 8 * N) };
        }
        Some(words)
    }

    /// Copies from `bytes` as much as both hold; returns how much.
    pub fn write(self, bytes: &[u8]) -> usize {
        let len = self.len.min(bytes.len());
        // SAFETY: as in `read`; `bytes` is a Rust borrow, which guest RAM never is.
        unsafe { volatile_copy(bytes.as_ptr(), self.start.as_ptr(), len) };
        len
    }

    /// Fills the slice with zeroes.
    pub fn zero(self) {
        for offset in (0..self.len).step_by(4096) {
            let piece = self.sub(offset, 4096.min(self.len - offset)).expect("inside by construction");
            piece.write(&[0; 4096]);
        }
    }

    /// The 16 bits at `offset` as an atomic, or `None` when they are outside or not aligned.
    pub fn atomic_u16(self, offset: usize) -> Option<&'ram AtomicU16> {
        let place = self.sub(offset, 2)?.start.cast::<AtomicU16>();
        if !place.is_aligned() {
            return None;
        }
        // SAFETY: in bounds and aligned; the memory lives for 'ram and is shared only by atomic or volatile
        // access.
        Some(unsafe { place.as_ref() })
    }

    /// The 32 bits at `offset` as an atomic, or `None` when they are outside or not aligned.
    pub fn atomic_u32(self, offset: usize) -> Option<&'ram AtomicU32> {
        let place = self.sub(offset, 4)?.start.cast::<AtomicU32>();
        if !place.is_aligned() {
            return None;
        }
        // SAFETY: as in `atomic_u16`.
        Some(unsafe { place.as_ref() })
    }

    /// Fills the slice from a reader by way of a bounded buffer; `next` gets the buffer and how many bytes
    /// are done. [`io::ErrorKind::UnexpectedEof`] when it ends too soon.
    pub(crate) fn fill_from(
        self,
        mut next: impl FnMut(&mut [u8], usize) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; self.len.min(1 << 20)];
        let mut done = 0;
        while done < self.len {
            let want = buffer.len().min(self.len - done);
            let got = match next(&mut buffer[..want], done) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.sub(done, got).expect("the reader got no more room than is left").write(&buffer[..got]);
            done += got;
        }
        Ok(())
    }
}

/// Copies with accesses that the compiler may neither split, merge nor repeat: eight bytes at a time where
/// both sides are aligned alike, else two or one.
///
/// # Safety
/// `from` and `to` must be valid for `len` bytes and not overlap.
#[inline]
unsafe fn volatile_copy(from: *const u8, to: *mut u8, len: usize) {
    let alike = (from as usize) % 8 == (to as usize) % 8;
    let head = if alike { from.align_offset(8).min(len) } else { len };
    let words = (len - head) / 8;
    let tail = head + 8 * words;
    // SAFETY: the three parts follow each other and end at `len`, for which the caller vouches; behind `head` both
    // sides are aligned to 8, as they are aligned alike.
    unsafe {
        volatile_copy_small(from, to, head);
        let (source, target) = (from.add(head).cast::<u64>(), to.add(head).cast::<u64>());
        for word in 0..words {
            target.add(word).write_volatile(source.add(word).read_volatile());
        }
        volatile_copy_small(from.add(tail), to.add(tail), len - tail);
    }
}

/// The same by two bytes and single ones.
///
/// # Safety
/// As for [`volatile_copy`].
#[inline]
unsafe fn volatile_copy_small(from: *const u8, to: *mut u8, len: usize) {
    let mut done = 0;
    while done < len {
        // SAFETY: `done` plus the width read and written never exceeds `len`, for which the caller vouches;
        // the wide access is made only where both pointers are aligned to 2.
        unsafe {
            let (source, target) = (from.add(done), to.add(done));
            if done + 2 <= len && (source as usize | target as usize).is_multiple_of(2) {
                target.cast::<u16>().write_volatile(source.cast::<u16>().read_volatile());
                done += 2;
            } else {
                target.write_volatile(source.read_volatile());
                done += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Gpa, GpaRange, Ram};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn copies_are_exact_at_every_alignment_and_touch_nothing_else(at in 0u64..64, len in 0usize..80, byte: u8) {
            let ram = Ram::new(&[GpaRange::new(Gpa(0), 4096).unwrap()]).unwrap();
            let bytes: Vec<u8> = (0..len).map(|i| byte.wrapping_add(i as u8)).collect();
            ram.write(Gpa(100 + at), &bytes).unwrap();
            let mut back = vec![0; len];
            ram.read(Gpa(100 + at), &mut back).unwrap();
            prop_assert_eq!(&back, &bytes);
            let mut all = [0; 4096];
            ram.read(Gpa(0), &mut all).unwrap();
            let from = 100 + at as usize;
            prop_assert!(all[..from].iter().chain(&all[from + len..]).all(|b| *b == 0));
        }
    }

    #[test]
    fn words_are_read_aligned_or_not_but_never_from_outside() {
        let ram = Ram::new(&[GpaRange::new(Gpa(0), 4096).unwrap()]).unwrap();
        let bytes: Vec<u8> = (0..=255).collect();
        ram.write(Gpa(0), &bytes).unwrap();
        let slice = ram.slice(Gpa(0), 4096).unwrap();
        for offset in 0..16 {
            let wanted: [u64; 2] =
                [0, 8].map(|at| u64::from_ne_bytes(bytes[offset + at..offset + at + 8].try_into().unwrap()));
            assert_eq!(slice.read_words::<2>(offset), Some(wanted));
        }
        assert_eq!(slice.read_words::<2>(4081), None);
        assert_eq!(slice.read_words::<2>(usize::MAX), None);
    }

    #[test]
    fn atomics_are_given_only_where_they_are_aligned_and_inside() {
        let ram = Ram::new(&[GpaRange::new(Gpa(0), 4096).unwrap()]).unwrap();
        let slice = ram.slice(Gpa(0), 4096).unwrap();
        assert!(slice.atomic_u16(4094).is_some());
        assert!(slice.atomic_u16(4095).is_none());
        assert!(slice.atomic_u16(1).is_none());
        assert!(slice.atomic_u32(4094).is_none());
    }
}
