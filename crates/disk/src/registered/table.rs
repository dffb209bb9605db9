//! What is registered at one moment.

use std::sync::Arc;

use memory::Segment;

/// The kernel takes no more than this as one buffer.
pub(super) const LONGEST_BUFFER: usize = 1 << 30;

/// Places in a table. The kernel would have 16384, but each costs 8 bytes in the clone of every ring.
pub(super) const PLACES: u16 = 1 << 12;

/// One registered buffer.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Where it starts in this process.
    pub(super) start: usize,
    /// Bytes, at most [`LONGEST_BUFFER`].
    pub(super) len: usize,
    /// Its place in the kernel's table.
    pub(super) place: u16,
    /// Keeps the host addresses from being used for anything else while a ring may have the buffer.
    segment: Arc<Segment>,
}

/// Registered buffers, by rising address.
#[derive(Clone, Default, Debug)]
pub(super) struct Table {
    /// Counts changes, from an empty table on.
    pub(super) version: u64,
    entries: Vec<Entry>,
}

impl Table {
    /// An empty one, in place of that version.
    pub(super) fn empty(version: u64) -> Table {
        Table { version, entries: Vec::new() }
    }

    /// The same as that version.
    pub(super) fn numbered(self, version: u64) -> Table {
        Table { version, ..self }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.len as u64).sum()
    }

    /// The place of the buffer that holds all of `len` bytes at `start`, if one does.
    pub(super) fn find(&self, start: usize, len: usize) -> Option<u16> {
        let behind = self.entries.partition_point(|entry| entry.start <= start);
        let entry = &self.entries[behind.checked_sub(1)?];
        (len <= entry.len && start - entry.start <= entry.len - len).then_some(entry.place)
    }

    /// A segment cut into buffers, each at a free place; `None` when there are too few.
    pub(super) fn places_for(&self, segment: &Arc<Segment>) -> Option<Vec<Entry>> {
        let mut taken = vec![false; usize::from(PLACES)];
        self.entries.iter().for_each(|entry| taken[usize::from(entry.place)] = true);
        let mut free = (0..PLACES).filter(|place| !taken[usize::from(*place)]);
        let (start, len) = (segment.host_address().as_ptr() as usize, segment.range().len() as usize);
        let offsets = (0..len).step_by(LONGEST_BUFFER);
        let entry = |offset| {
            let len = LONGEST_BUFFER.min(len - offset);
            Some(Entry { start: start + offset, len, place: free.next()?, segment: segment.clone() })
        };
        offsets.map(entry).collect()
    }

    pub(super) fn with(&self, more: Vec<Entry>) -> Table {
        let mut table = self.clone();
        table.entries.extend(more);
        table.entries.sort_by_key(|entry| entry.start);
        table
    }

    /// The table without a segment, and what that leaves out.
    pub(super) fn without(&self, segment: &Arc<Segment>) -> (Table, Vec<Entry>) {
        let all = self.entries.iter().cloned();
        let (gone, entries) = all.partition(|entry| Arc::ptr_eq(&entry.segment, segment));
        (Table { version: self.version, entries }, gone)
    }

    /// How it differs from these segments, in words.
    pub(super) fn differences(&self, segments: &[Arc<Segment>]) -> Vec<String> {
        let of = |segment: &Arc<Segment>| -> usize {
            let its = self.entries.iter().filter(|entry| Arc::ptr_eq(&entry.segment, segment));
            its.map(|entry| entry.len).sum()
        };
        let missing = segments.iter().filter(|segment| of(segment) as u64 != segment.range().len());
        let other = self
            .entries
            .iter()
            .filter(|entry| !segments.iter().any(|segment| Arc::ptr_eq(&entry.segment, segment)));
        missing
            .map(|segment| format!("{} is not wholly there", segment.range()))
            .chain(other.map(|entry| format!("it has a part of {}, which is no RAM", entry.segment.range())))
            .collect()
    }
}
