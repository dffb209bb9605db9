//! Memory of this program whose place in physical memory is known.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

const PAGE: usize = 4096;

/// Locked memory, in whole pages.
pub struct Locked {
    start: NonNull<u64>,
    length: usize,
}

impl Locked {
    /// So many bytes, rounded up to pages.
    pub fn new(length: usize) -> Result<Locked, String> {
        let length = length.next_multiple_of(PAGE);
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, where the kernel likes it.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind, -1, 0) };
        // SAFETY: the mapping is as long as said, if there is one; locking changes nothing in it.
        if start == libc::MAP_FAILED || unsafe { libc::mlock(start, length) } != 0 {
            return Err(format!("cannot get {length} bytes of memory: {}", std::io::Error::last_os_error()));
        }
        let start = NonNull::new(start.cast()).ok_or("the memory is nowhere")?;
        Ok(Locked { start, length })
    }

    /// How many words of eight bytes there are.
    pub fn words(&self) -> usize {
        self.length / 8
    }

    /// Writes a word.
    pub fn set(&mut self, index: usize, value: u64) {
        assert!(index < self.words());
        // SAFETY: the word lies in the mapping; a device may change it at any time, so that it is volatile.
        unsafe { self.start.add(index).write_volatile(value) };
    }

    /// Reads a word.
    pub fn get(&self, index: usize) -> u64 {
        assert!(index < self.words());
        // SAFETY: as above.
        unsafe { self.start.add(index).read_volatile() }
    }

    /// Where its pages are in physical memory, in order (Documentation/admin-guide/mm/pagemap.rst).
    pub fn physical(&self) -> Result<Vec<u64>, String> {
        let first = self.start.as_ptr() as usize / PAGE;
        let mut entries = vec![0; self.length / PAGE * 8];
        let map = File::open("/proc/self/pagemap");
        let read = map.and_then(|map| map.read_exact_at(&mut entries, (first * 8) as u64));
        read.map_err(|e| format!("/proc/self/pagemap: {e}"))?;
        let frame = |entry: &[u8]| {
            entry.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)) & ((1 << 55) - 1)
        };
        let pages: Vec<u64> = entries.chunks_exact(8).map(|entry| frame(entry) * PAGE as u64).collect();
        if pages.contains(&0) { Err("only root sees physical addresses".into()) } else { Ok(pages) }
    }
}

/// One page for a device.
pub struct Page(Locked);

impl Page {
    /// A page.
    pub fn new() -> Result<Page, String> {
        Locked::new(PAGE).map(Page)
    }

    /// Fills it.
    pub fn fill(&mut self, byte: u8) {
        (0..self.0.words()).for_each(|index| self.0.set(index, u64::from_ne_bytes([byte; 8])));
    }

    /// Its first bytes.
    pub fn read(&self, length: u64) -> Vec<u8> {
        let bytes = (0..self.0.words()).flat_map(|index| self.0.get(index).to_ne_bytes());
        bytes.take(length as usize).collect()
    }

    /// Where it is in physical memory.
    pub fn physical(&self) -> Result<u64, String> {
        Ok(self.0.physical()?[0])
    }
}
