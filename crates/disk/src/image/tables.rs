//! The tables of a qcow2 image on their way to the file, in an order that outlives a power cut.
//!
//! The library writes a table when its cache is full or when it is flushed, and a pointer to a new table at once. A
//! power cut may keep any of these writes and lose any other, so their order in the file matters: a cluster must be
//! counted before something points to it, and no longer pointed to before it is counted less or used again. So what
//! the library writes is held here in memory. Reads see it at once; the file gets it in [`Tables::bring_out`] alone,
//! in steps with a barrier between them. Until then the file keeps the state of the last time.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io;
use std::sync::Arc;

use imago::io_buffers::{IoBuffer, IoVector, IoVectorMut};
use parking_lot::{Mutex, MutexGuard};

use super::qcow2_header::{Header, Layout, MARKS};
use crate::kernel::Handle;

/// Bytes of tables that are held before they have to go to the file.
const MOST: u64 = 16 << 20;
/// What of an entry is a place. The bits around it are flags or reserved.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;

/// Where a table lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span {
    at: u64,
    len: u64,
}

impl Span {
    fn has(self, place: u64) -> bool {
        place >= self.at && place - self.at < self.len
    }
}

/// The places of tables, as a header says them.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Places {
    layout: Layout,
    /// The table of the first level, in whole clusters.
    l1: Span,
    /// The table of the blocks of counts.
    counts: Span,
}

impl Places {
    fn of(layout: Layout) -> Places {
        let Layout { clusters, counts, .. } = layout;
        let l1 = Span { at: clusters.at, len: clusters.bytes.next_multiple_of(layout.cluster()) };
        Places { layout, l1, counts: Span { at: counts.at, len: counts.bytes } }
    }

    /// `None` where there is no header.
    fn in_header(bytes: &[u8]) -> Option<Places> {
        Layout::parse(bytes).ok().map(Places::of)
    }
}

/// What the library has written to the tables and the file does not have yet.
pub(super) struct Tables {
    handle: Arc<Handle>,
    pub(super) cluster: u64,
    state: Mutex<State>,
}

struct State {
    /// Whole clusters, by their place in the file.
    held: BTreeMap<u64, Arc<IoBuffer>>,
    /// The header as the library sees it.
    header: Places,
    /// Marks in the file's header, which the library does not see: it would remove them all.
    marks: u64,
    /// Places of the blocks of counts that the file's table names.
    blocks: Arc<HashSet<u64>>,
    /// Something may be free for the library that the file's tables still point to.
    reusable: bool,
}

impl Tables {
    /// Takes over the tables of an image, which lie where its header says.
    ///
    /// # Errors
    ///
    /// Those of reading the file.
    pub(super) fn of(handle: Arc<Handle>, header: &Header) -> io::Result<Tables> {
        let (cluster, marks) = (header.layout.cluster(), header.marks);
        let header = Places::of(header.layout);
        let mut blocks = HashSet::new();
        let mut table = aligned(&handle, cluster)?;
        // A header may claim a table that is longer than the file.
        let end = handle.bytes()?;
        let within = |at: &u64| header.counts.has(*at) && *at < end;
        for place in (header.counts.at..).step_by(cluster as usize).take_while(within) {
            read(&handle, &mut table, place)?;
            blocks.extend(pointers(bytes_of(&table)));
        }
        let blocks = Arc::new(blocks);
        let state = State { held: BTreeMap::new(), header, marks, blocks, reusable: false };
        Ok(Tables { handle, cluster, state: Mutex::new(state) })
    }

    /// Reads what lies at `offset`, with what the file does not have yet.
    pub(super) fn read(&self, into: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        for mut buffer in into.into_inner() {
            let mut left: &mut [u8] = &mut buffer;
            while !left.is_empty() {
                let (place, skip) = (offset - offset % self.cluster, (offset % self.cluster) as usize);
                let (part, rest) = left.split_at_mut(left.len().min(self.cluster as usize - skip));
                let cluster = self.cluster_at(place)?;
                part.copy_from_slice(&bytes_of(&cluster)[skip..skip + part.len()]);
                offset += part.len() as u64;
                left = rest;
            }
        }
        Ok(())
    }

    /// Holds what is to lie at `offset`.
    pub(super) fn write(&self, from: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        for buffer in from.into_inner() {
            let mut left: &[u8] = &buffer;
            while !left.is_empty() {
                let (place, skip) = (offset - offset % self.cluster, (offset % self.cluster) as usize);
                let (part, rest) = left.split_at(left.len().min(self.cluster as usize - skip));
                let mut new = aligned(&self.handle, self.cluster)?;
                let old =
                    if (part.len() as u64) < self.cluster { Some(self.cluster_at(place)?) } else { None };
                let bytes = new.as_mut().into_slice();
                if let Some(old) = &old {
                    bytes.copy_from_slice(bytes_of(old));
                }
                bytes[skip..skip + part.len()].copy_from_slice(part);
                self.hold(place, new, old.as_deref());
                offset += part.len() as u64;
                left = rest;
            }
        }
        Ok(())
    }

    fn hold(&self, place: u64, new: IoBuffer, old: Option<&IoBuffer>) {
        let mut state = self.lock();
        let bytes = bytes_of(&new);
        if place == 0
            && let Some(header) = Places::in_header(bytes)
        {
            // A table that has moved leaves its old place free.
            state.reusable |= state.header != header;
            state.header = header;
        }
        // So does a table that another one takes the place of.
        if state.header.l1.has(place)
            && let Some(old) = old
        {
            let pairs = bytes_of(old).chunks_exact(8).zip(bytes.chunks_exact(8));
            state.reusable |= pairs.into_iter().any(|(old, new)| old != new && old != [0; 8]);
        }
        state.held.insert(place, Arc::new(new));
    }

    /// What is held for these places is tables no more, since data goes there.
    pub(super) fn forget(&self, at: u64, len: u64) {
        let mut state = self.lock();
        if !state.held.is_empty() {
            state.held.retain(|place, _| *place < at || *place - at >= len);
        }
    }

    /// The library may give away again what the file's tables still point to.
    pub(super) fn gave_up(&self) {
        self.lock().reusable = true;
    }

    /// Whether the tables have to go to the file before the library may take a new cluster.
    pub(super) fn are_due(&self) -> bool {
        let state = self.lock();
        state.reusable || state.held.len() as u64 * self.cluster >= MOST
    }

    /// The file that they are in.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The file's header has these marks now. The tables must not be on their way to the file meanwhile.
    pub(super) fn set_marks(&self, marks: u64) {
        self.lock().marks = marks;
    }

    /// Whether this is the file that they are in.
    pub(super) fn are_in(&self, handle: &Arc<Handle>) -> bool {
        Arc::ptr_eq(&self.handle, handle)
    }

    /// Whether the file has everything.
    pub(super) fn are_out(&self) -> bool {
        let state = self.lock();
        state.held.is_empty() && !state.reusable
    }

    /// Brings what is held to the file, and all of it with the data in `data` to stable storage. Nothing may change
    /// meanwhile, and the library must have written all that it has in its caches. After a failure everything is still
    /// held, and the file is as good as after a power cut.
    pub(super) fn bring_out(&self, data: &Handle) -> io::Result<()> {
        let (held, header, known) = {
            let state = self.lock();
            (state.held.clone(), state.header, state.blocks.clone())
        };
        let out = Out { handle: &self.handle, cluster: self.cluster };
        let start = held.get(&0).map(|start| self.with_marks(start)).transpose()?;
        let in_file = start.as_ref().map(|_| out.read(0)).transpose()?;
        let before = in_file.as_ref().and_then(|start| Places::in_header(bytes_of(start))).unwrap_or(header);
        let (counts_move, l1_moves) = (before.counts.at != header.counts.at, before.l1.at != header.l1.at);
        let within = |span: Span| held.range(span.at..).take_while(move |(place, _)| span.has(**place));
        let named = within(header.counts).flat_map(|(_, table)| pointers(bytes_of(table)));
        let fresh: HashSet<u64> = named.filter(|place| !known.contains(place)).collect();

        // 1. The data, and counts that are high enough for what is pointed to before and after; and a table of them that
        // nothing leads to yet.
        let mut last = Vec::new();
        for (place, block) in &held {
            if fresh.contains(place) {
                out.write(*place, block)?;
            } else if known.contains(place) {
                let mut most = aligned(&self.handle, self.cluster)?;
                most.as_mut().into_slice().copy_from_slice(bytes_of(block));
                raise(
                    most.as_mut().into_slice(),
                    bytes_of(&out.read(*place)?),
                    1 << header.layout.count_order,
                );
                out.write(*place, &most)?;
                if bytes_of(&most) != bytes_of(block) {
                    last.push((*place, block));
                }
            }
        }
        if counts_move {
            within(header.counts).try_for_each(|(place, table)| out.write(*place, table))?;
        }
        if !std::ptr::eq(data, &*self.handle) {
            data.sync()?;
        }
        self.handle.sync()?;
        if !fresh.is_empty() {
            // From here on the file may count by them, also if something fails.
            Arc::make_mut(&mut self.lock().blocks).extend(&fresh);
        }

        // 2. What leads to new blocks of counts, and all of the header but where the table of the first level is.
        if let (Some(start), Some(in_file)) = (&start, &in_file) {
            let mut between = aligned(&self.handle, self.cluster)?;
            let bytes = between.as_mut().into_slice();
            bytes.copy_from_slice(bytes_of(start));
            bytes[Layout::CLUSTERS].copy_from_slice(&bytes_of(in_file)[Layout::CLUSTERS]);
            let entries = within(header.counts).filter(|_| !counts_move);
            out.step(entries.map(|(place, table)| (*place, &**table)).chain([(0, &between)]))?;
        } else {
            out.step(within(header.counts).map(|(place, table)| (*place, &**table)))?;
        }
        let is_count = |place: u64| known.contains(&place) || fresh.contains(&place);
        let mut new_tables = HashSet::new();
        for (place, table) in within(header.l1) {
            let old = if l1_moves { None } else { Some(out.read(*place)?) };
            let old: HashSet<u64> = old.iter().flat_map(|old| pointers(bytes_of(old))).collect();
            new_tables.extend(pointers(bytes_of(table)).filter(|place| !old.contains(place)));
        }

        // 3. Tables of the second level: first those that are in use, because a new one may lie where one of these
        // pointed to.
        let elsewhere =
            |place: u64| place == 0 || is_count(place) || header.counts.has(place) || header.l1.has(place);
        let tables = |are_new: bool| {
            let tables = held.iter().filter(|(place, _)| !elsewhere(**place));
            let tables = tables.filter(|(place, _)| new_tables.contains(place) == are_new);
            tables.map(|(place, table)| (*place, &**table)).collect::<Vec<_>>()
        };
        out.step(tables(false))?;
        out.step(tables(true))?;

        // 4. What leads to them.
        out.step(within(header.l1).map(|(place, table)| (*place, &**table)))?;
        let l1_changes = before.layout.clusters != header.layout.clusters;
        out.step(start.as_ref().filter(|_| l1_changes).map(|start| (0, start)))?;

        // 5. Counts of what nothing points to any more. It does no harm if they come late.
        last.into_iter().try_for_each(|(place, block)| out.write(place, block))?;
        let mut state = self.lock();
        state.held.clear();
        state.reusable = false;
        Ok(())
    }

    fn cluster_at(&self, place: u64) -> io::Result<Arc<IoBuffer>> {
        if let Some(held) = self.lock().held.get(&place) {
            return Ok(held.clone());
        }
        let mut cluster = aligned(&self.handle, self.cluster)?;
        read(&self.handle, &mut cluster, place)?;
        if place == 0 && self.lock().marks != 0 {
            cluster.as_mut().into_slice()[MARKS].fill(0);
        }
        Ok(Arc::new(cluster))
    }

    /// The header as the file is to have it.
    fn with_marks(&self, start: &IoBuffer) -> io::Result<IoBuffer> {
        let mut header = aligned(&self.handle, self.cluster)?;
        header.as_mut().into_slice().copy_from_slice(bytes_of(start));
        let marks = self.lock().marks;
        if marks != 0 {
            header.as_mut().into_slice()[MARKS].copy_from_slice(&marks.to_be_bytes());
        }
        Ok(header)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tables({} clusters held)", self.lock().held.len())
    }
}

/// The file, whose clusters are read and written as they are.
struct Out<'a> {
    handle: &'a Handle,
    cluster: u64,
}

impl Out<'_> {
    fn read(&self, place: u64) -> io::Result<IoBuffer> {
        let mut cluster = aligned(self.handle, self.cluster)?;
        read(self.handle, &mut cluster, place)?;
        Ok(cluster)
    }

    fn write(&self, place: u64, cluster: &IoBuffer) -> io::Result<()> {
        self.handle.put(place, bytes_of(cluster))
    }

    /// Writes these, and has them on stable storage before anything else.
    fn step<'a>(&self, clusters: impl IntoIterator<Item = (u64, &'a IoBuffer)>) -> io::Result<()> {
        let mut clusters = clusters.into_iter().peekable();
        if clusters.peek().is_none() {
            return Ok(());
        }
        clusters.try_for_each(|(place, cluster)| self.write(place, cluster))?;
        self.handle.sync()
    }
}

/// Memory that the file's direct I/O takes.
pub(super) fn aligned(handle: &Handle, bytes: u64) -> io::Result<IoBuffer> {
    let alignment = handle.alignment().map_or(1, |alignment| alignment.address as usize);
    let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut buffer = IoBuffer::new(bytes, alignment)?;
    buffer.as_mut().into_slice().fill(0);
    Ok(buffer)
}

fn bytes_of(buffer: &IoBuffer) -> &[u8] {
    buffer.as_ref().into_slice()
}

/// Fills the buffer; behind the file's end there are zeroes.
fn read(handle: &Handle, into: &mut IoBuffer, at: u64) -> io::Result<()> {
    handle.get(at, into.as_mut().into_slice())
}

/// Places that a part of a table points to: of blocks of counts, or of tables of the second level.
fn pointers(table: &[u8]) -> impl Iterator<Item = u64> {
    let entries =
        table.chunks_exact(8).map(|entry| u64::from_be_bytes(entry.try_into().expect("eight bytes")));
    entries.map(|entry| entry & PLACE).filter(|place| *place != 0)
}

/// Raises every count in `to` to the one in `from`, if that is larger.
fn raise(to: &mut [u8], from: &[u8], bits: u32) {
    if to == from {
        return;
    }
    if bits >= 8 {
        let bytes = bits as usize / 8;
        for (to, from) in to.chunks_exact_mut(bytes).zip(from.chunks_exact(bytes)) {
            // Big-endian numbers compare as their bytes do.
            if *from > *to {
                to.copy_from_slice(from);
            }
        }
        return;
    }
    let mask = (1u8 << bits) - 1;
    for (to, from) in to.iter_mut().zip(from) {
        *to = (0..8)
            .step_by(bits as usize)
            .fold(0, |all, shift| all | (*to >> shift & mask).max(*from >> shift & mask) << shift);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_any_width_are_raised_and_never_lowered() {
        for (bits, to, from, expected) in [
            (1, vec![0b0101_0000], vec![0b0011_0001], vec![0b0111_0001]),
            (2, vec![0b0111_0010], vec![0b1000_0001], vec![0b1011_0010]),
            (4, vec![0x1f], vec![0x2e], vec![0x2f]),
            (8, vec![1, 9], vec![2, 8], vec![2, 9]),
            (16, vec![0, 255, 1, 0], vec![1, 0, 0, 255], vec![1, 0, 1, 0]),
            (64, vec![0, 0, 0, 0, 0, 0, 1, 0], vec![0, 0, 0, 0, 0, 0, 0, 255], vec![0, 0, 0, 0, 0, 0, 1, 0]),
        ] {
            let mut raised = to.clone();
            raise(&mut raised, &from, bits);
            assert_eq!(raised, expected, "{bits} bits");
        }
    }

    #[test]
    fn a_header_that_the_library_writes_keeps_the_marks_that_it_does_not_see() {
        let mut image = vec![0; 4 << 16];
        let fields: [(usize, &[u8]); 8] = [
            (0, b"QFI\xfb\0\0\0\x03"),
            (20, &16u32.to_be_bytes()),
            (24, &(1u64 << 20).to_be_bytes()),
            (36, &1u32.to_be_bytes()),
            (40, &(3u64 << 16).to_be_bytes()),
            (48, &(1u64 << 16).to_be_bytes()),
            (56, &1u32.to_be_bytes()),
            (88, &[0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 104]),
        ];
        fields.iter().for_each(|(at, bytes)| image[*at..][..bytes.len()].copy_from_slice(bytes));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &image).unwrap();
        let options = crate::options::DiskOptions::new(file.path());
        let options = crate::kernel::FileOptions::new(file.path(), &options);
        let handle = crate::kernel::open(&options).unwrap().handle;
        let header = super::super::qcow2_header::read(&handle.file).unwrap().unwrap();
        let tables = Tables::of(handle.clone(), &header).unwrap();
        let mut seen = [0xff; 104];
        tables.read(IoVectorMut::from(&mut seen[..]), 0).unwrap();
        assert_eq!(seen[MARKS], [0; 8]);
        // Another feature; the library writes its header whole.
        for (change, marks) in [(1, 3), (2, 2), (3, 0)] {
            tables.set_marks(marks);
            seen[87] = change;
            tables.write(IoVector::from(&seen[..]), 0).unwrap();
            tables.bring_out(&handle).unwrap();
            let written = std::fs::read(file.path()).unwrap();
            assert_eq!(written[87..96], [change, 0, 0, 0, 0, 0, 0, 0, marks as u8]);
            assert!(written[96..] == image[96..]);
        }
    }
}
