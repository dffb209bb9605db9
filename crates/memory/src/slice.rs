//! A piece of guest RAM in host memory, touched only by volatile copies and atomics.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32};

use zerocopy::IntoBytes;

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
    #[inline]
    pub fn sub(self, offset: usize, len: usize) -> Option<GuestSlice<'ram>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: offset + len <= self.len, so the new slice lies inside this one.
        Some(unsafe { GuestSlice::new(self.start.add(offset), len) })
    }

    /// Copies into `bytes` as much as both hold; returns how much.
    #[inline]
    pub fn read(self, bytes: &mut [u8]) -> usize {
        let len = self.len.min(bytes.len());
        // SAFETY: `len` bytes are valid in the slice, by its invariant.
        unsafe { copy_out(self.start.as_ptr(), &mut bytes[..len]) };
        len
    }

    /// Copies `N` times eight bytes from `offset` on, as numbers of this machine; `None` when they do not all lie in
    /// this slice. Where they are aligned to eight, each of them is read in one step.
    #[inline]
    pub fn read_words<const N: usize>(self, offset: usize) -> Option<[u64; N]> {
        let place = self.sub(offset, 8 * N)?.start.as_ptr().cast::<u64>();
        let mut words = [0; N];
        if place.is_aligned() {
            for (index, word) in words.iter_mut().enumerate() {
                // SAFETY: in bounds, as all of them are, and aligned.
                *word = unsafe { place.add(index).read_volatile() };
            }
        } else {
            // SAFETY: in bounds.
            unsafe { copy_out(place.cast(), words.as_mut_bytes()) };
        }
        Some(words)
    }

    /// Copies from `bytes` as much as both hold; returns how much.
    #[inline]
    pub fn write(self, bytes: &[u8]) -> usize {
        let len = self.len.min(bytes.len());
        // SAFETY: as in `read`.
        unsafe { copy_in(&bytes[..len], self.start.as_ptr()) };
        len
    }

    /// Fills the slice with zeroes.
    pub fn zero(self) {
        let head = self.start.as_ptr().align_offset(8).min(self.len);
        let words = (self.len - head) / 8;
        // SAFETY: the three parts follow each other and end at `len`, and so lie in the slice; behind `head` it is
        // aligned to 8.
        unsafe {
            let start = self.start.as_ptr();
            copy_in(&[0; 8][..head], start);
            let middle = start.add(head).cast::<u64>();
            for word in 0..words {
                middle.add(word).write_volatile(0);
            }
            copy_in(&[0; 8][..self.len - head - 8 * words], middle.add(words).cast());
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

    /// Lets the kernel read the file, from `offset` on, directly into the slice. [`io::ErrorKind::UnexpectedEof`] when the
    /// file ends too soon.
    pub(crate) fn read_file(self, file: &File, offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < self.len {
            let at = i64::try_from(offset).ok().and_then(|offset| offset.checked_add_unsigned(done as u64));
            let at = at.ok_or(io::ErrorKind::UnexpectedEof)?;
            // SAFETY: `done` is below the length, and so many bytes from there on are in the slice. The kernel writes
            // them, as the guest could.
            let got =
                unsafe { libc::pread(file.as_raw_fd(), self.as_ptr().add(done).cast(), self.len - done, at) };
            match usize::try_from(got) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => done += got,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }
}

/// Copies guest RAM with accesses that the compiler may neither split, merge nor repeat, each as wide as the place in guest
/// RAM is aligned, up to eight bytes.
///
/// # Safety
/// `guest` must be valid for as many bytes as `bytes` has, and only be accessed by volatile or atomic means.
#[inline]
unsafe fn copy_out(guest: *const u8, bytes: &mut [u8]) {
    let head = guest.align_offset(8).min(bytes.len());
    let (head, rest) = bytes.split_at_mut(head);
    let (words, tail) = rest.as_chunks_mut::<8>();
    // SAFETY: the three parts follow each other and are as long as `bytes`, for which the caller vouches; behind `head`
    // the guest's side is aligned to 8.
    unsafe {
        copy_out_small(guest, head);
        let middle = guest.add(head.len()).cast::<u64>();
        for (at, word) in words.iter_mut().enumerate() {
            *word = middle.add(at).read_volatile().to_ne_bytes();
        }
        copy_out_small(middle.add(words.len()).cast(), tail);
    }
}

/// The same by four bytes, two, and single ones.
///
/// # Safety
/// As for [`copy_out`].
#[inline]
unsafe fn copy_out_small(guest: *const u8, mut bytes: &mut [u8]) {
    let mut place = guest;
    while !bytes.is_empty() {
        let width = width(place, bytes.len());
        let (now, rest) = bytes.split_at_mut(width);
        // SAFETY: `width` bytes are left, and the place is aligned to as many.
        unsafe {
            match width {
                4 => now.copy_from_slice(&place.cast::<u32>().read_volatile().to_ne_bytes()),
                2 => now.copy_from_slice(&place.cast::<u16>().read_volatile().to_ne_bytes()),
                _ => now[0] = place.read_volatile(),
            }
            place = place.add(width);
        }
        bytes = rest;
    }
}

/// As [`copy_out`], into guest RAM.
///
/// # Safety
/// As for [`copy_out`].
#[inline]
unsafe fn copy_in(bytes: &[u8], guest: *mut u8) {
    let head = guest.align_offset(8).min(bytes.len());
    let (head, rest) = bytes.split_at(head);
    let (words, tail) = rest.as_chunks::<8>();
    // SAFETY: as in `copy_out`.
    unsafe {
        copy_in_small(head, guest);
        let middle = guest.add(head.len()).cast::<u64>();
        for (at, word) in words.iter().enumerate() {
            middle.add(at).write_volatile(u64::from_ne_bytes(*word));
        }
        copy_in_small(tail, middle.add(words.len()).cast());
    }
}

/// As [`copy_out_small`], into guest RAM.
///
/// # Safety
/// As for [`copy_out`].
#[inline]
unsafe fn copy_in_small(mut bytes: &[u8], guest: *mut u8) {
    let mut place = guest;
    while !bytes.is_empty() {
        let width = width(place, bytes.len());
        let (now, rest) = bytes.split_at(width);
        // SAFETY: as in `copy_out_small`.
        unsafe {
            match *now {
                [a, b, c, d] => place.cast::<u32>().write_volatile(u32::from_ne_bytes([a, b, c, d])),
                [a, b] => place.cast::<u16>().write_volatile(u16::from_ne_bytes([a, b])),
                _ => place.write_volatile(now[0]),
            }
            place = place.add(width);
        }
        bytes = rest;
    }
}

/// How many of the bytes that are left, of at least one, go in one access: 4, 2 or 1.
#[inline]
fn width(place: *const u8, left: usize) -> usize {
    match place as usize {
        at if left >= 4 && at.is_multiple_of(4) => 4,
        at if left >= 2 && at.is_multiple_of(2) => 2,
        _ => 1,
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

    proptest! {
        #[test]
        fn zeroes_fill_the_slice_and_touch_nothing_else(at in 0usize..24, len in 0usize..80) {
            let ram = Ram::new(&[GpaRange::new(Gpa(0), 4096).unwrap()]).unwrap();
            ram.write(Gpa(0), &[7; 128]).unwrap();
            ram.slice(Gpa(0), 4096).unwrap().sub(at, len).unwrap().zero();
            let mut all = [0; 128];
            ram.read(Gpa(0), &mut all).unwrap();
            for (index, byte) in all.into_iter().enumerate() {
                prop_assert_eq!(byte, if (at..at + len).contains(&index) { 0 } else { 7 });
            }
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
