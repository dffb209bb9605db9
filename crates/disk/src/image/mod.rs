//! Disks in image files: qcow2 for reading and writing, vmdk for reading.
//!
//! A library knows the formats: it says where a part of the disk lies, and gives new parts a place. The data
//! itself never passes through it. What lies in one piece of a file, in a place already known, the queue's ring
//! reads and writes there; for the rest the disk's threads ask the library, and remember what they learn.

mod chain;
mod counts;
mod extents;
mod features;
mod layer;
mod marks;
mod names;
mod overlay;
#[cfg(test)]
mod power_cuts;
mod qcow2_header;
mod tables;
mod unfit;
mod vmdk;
mod whole;

use std::io;
use std::path::Path;
use std::sync::Arc;

use imago::{FormatAccess, Mapping};
use memory::Buffers;
use parking_lot::{Mutex, MutexGuard};

use crate::contract::{
    Access, AfterDiscard, Bounced, Discard, DiskError, Durability, Geometry, Operation, SectorRange, Sectors,
    Unmap, WriteCache, WriteZeroes,
};
use crate::kernel::{Handle, PastEnd, Transfer, fill_with_zeroes, kind_of};
use crate::options::{Changes, DiskOptions, Format, OpenError};
use crate::pooled::PooledDisk;
use crate::threads::{Direct, Moved, Work};
use chain::Chain;
use extents::{Extent, Extents, Shared};
use layer::Layer;
use marks::Marks;
pub(crate) use names::has_driver;
use tables::{Tables, aligned};

/// Longest range of zeroes or discards in one request: what a table of the default size covers.
const LONGEST_RANGE: u64 = 512 << 20;
/// Data in another form is brought into its own in portions of this size.
const PORTION: u64 = 1 << 20;

/// Opens an image, with those it stands on, and says what a person should know; changes may go to a temporary one on top.
pub(crate) fn open(
    path: &Path,
    format: Format,
    options: &DiskOptions,
) -> Result<(PooledDisk, Vec<String>), OpenError> {
    let (image, geometry, remarks) = prepare(path, format, options)?;
    let (name, files) = (options.source.to_string().into(), image.files.clone());
    let disk = PooledDisk::with_ring(name, geometry, files, Arc::new(image));
    Ok((disk.map_err(|cause| options.failed(cause))?, remarks))
}

/// An open image, what the guest sees of it, and remarks.
fn prepare(
    path: &Path,
    format: Format,
    options: &DiskOptions,
) -> Result<(Image, Geometry, Vec<String>), OpenError> {
    let mut chain = Chain::new(options);
    let access = match (options.changes, format) {
        (Changes::ThrownAway, _) => Access::ReadOnly,
        (Changes::Kept, Format::Vmdk) if options.access == Access::ReadWrite => {
            return Err(OpenError::Format {
                path: path.to_owned(),
                what: "vmdk images can only be read".to_owned(),
                hint: "Use readonly=on, or snapshot=on to throw the guest's changes away, or convert the image.",
            });
        }
        _ => options.access,
    };
    let mut image = chain.open(path, format, access, options)?;
    let mut access = access;
    if options.changes == Changes::ThrownAway && options.access == Access::ReadWrite {
        image =
            overlay::over(image, path, options.bounce, &mut chain).map_err(|cause| options.failed(cause))?;
        access = Access::ReadWrite;
    }
    let top = chain.top();
    let geometry = geometry(&image, &chain, access);
    if geometry.capacity.0 == 0 {
        return Err(chain::too_small(path, image.size(), geometry.logical_block));
    }
    let cluster = cluster(&image, &chain);
    let Chain { files, mut remarks, marks, raw_data, tables, .. } = chain;
    remarks.extend(geometry.unseen(path, image.size()));
    let image = Image {
        files,
        top,
        size: image.size(),
        cluster,
        extents: Extents::default(),
        changing: Mutex::default(),
        tables,
        marks,
        raw_data,
        image,
    };
    Ok((image, geometry, remarks))
}

/// Bytes of what gets a place of its own. Where that is not known it is what the library hands out at least.
fn cluster(image: &FormatAccess<Layer>, chain: &Chain) -> u64 {
    let known = chain.tables.as_ref().map(|tables| tables.cluster);
    known.or_else(|| image.inner().zero_granularity()).unwrap_or(Sectors::SIZE)
}

/// What the guest sees: an image has no properties of its own but its size, so the files decide.
fn geometry(image: &FormatAccess<Layer>, chain: &Chain, access: Access) -> Geometry {
    let logical_block = chain.logical_block;
    let cluster = image.inner().zero_granularity().and_then(|bytes| u32::try_from(bytes).ok());
    let bytes = image.size();
    Geometry {
        capacity: Sectors::in_bytes(bytes - bytes % u64::from(logical_block)),
        logical_block,
        physical_block: chain.physical_block,
        alignment_offset: 0,
        minimum_io: chain.physical_block,
        optimal_io: cluster.unwrap_or(0),
        access,
        write_cache: WriteCache::WriteBack,
        fua: false,
        rotational: false,
        // Formats without marks for zeroes cannot discard without old data coming back from below.
        discard: cluster.map(|granularity| Discard {
            max: Sectors::in_bytes(LONGEST_RANGE),
            granularity: granularity.max(logical_block),
            after: AfterDiscard::Zeroes,
        }),
        write_zeroes: Some(WriteZeroes { max: Sectors::in_bytes(LONGEST_RANGE >> cluster.map_or(4, |_| 0)) }),
        model: None,
        serial: None,
    }
}

/// An open image.
struct Image {
    image: FormatAccess<Layer>,
    files: Vec<Arc<Handle>>,
    /// The number of the file that new data goes to.
    top: u16,
    /// Bytes of the disk.
    size: u64,
    /// Bytes of what gets a place of its own.
    cluster: u64,
    extents: Extents,
    /// Held by who gives parts of the disk new places, or brings the tables to the file.
    changing: Mutex<()>,
    /// Where the tables wait for their turn; `None` where nothing of the image is to outlive this process.
    tables: Option<Arc<Tables>>,
    /// Marks that the first change takes away.
    marks: Option<Marks>,
    /// The file that is to be a raw image of the disk at any time.
    raw_data: Option<Arc<Handle>>,
}

/// What is written.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// The guest's data.
    Guest(&'a Buffers),
    Zeroes,
}

impl Image {
    fn read(&self, start: u64, buffers: &Buffers, tally: &mut Moved) -> Result<(), DiskError> {
        let user = self.extents.share();
        // Whoever writes there directly would not take the marks away.
        let may_change = self.marks.as_ref().is_none_or(Marks::are_cleared);
        let mut done = 0;
        while done < buffers.bytes() {
            let (offset, left) = (start + done, buffers.bytes() - done);
            // More than is needed is asked for, to be remembered.
            let found = self.image.get_mapping(offset, self.size - offset);
            let (mapping, known) = found.map_err(|error| kind_of(&error))?;
            let len = known.min(left);
            if len == 0 {
                return Err(DiskError::OutOfRange);
            }
            match mapping {
                Mapping::Raw { storage, offset: at, writable, .. } => {
                    let transfer = Transfer { at, buffers, from: done, len, write: None };
                    storage.handle.transfer(transfer, PastEnd::ReadsAsZeroes, tally)?;
                    // What can be neither written to nor lies below may be given to another part of the disk.
                    if writable || storage.number != self.top {
                        let writable = writable && may_change;
                        let extent = Extent { len: known, file: storage.number, at, writable };
                        user.learn(offset, self.within_its_file(extent));
                    }
                }
                Mapping::Zero { .. } => fill_with_zeroes(buffers, done, len, tally)?,
                _ => self.read_portions(offset, done, len, buffers, tally)?,
            }
            done += len;
        }
        Ok(())
    }

    /// Reads what the format keeps in another form.
    fn read_portions(
        &self,
        offset: u64,
        from: u64,
        len: u64,
        buffers: &Buffers,
        tally: &mut Moved,
    ) -> Result<(), DiskError> {
        let mut portion = vec![0; len.min(PORTION) as usize];
        let mut done = 0;
        while done < len {
            let portion = &mut portion[..(len - done).min(PORTION) as usize];
            self.image.read(&mut *portion, offset + done).map_err(|error| kind_of(&error))?;
            buffers.write_at(from + done, portion);
            done += portion.len() as u64;
        }
        tally.moved(len, Some(Bounced::ImageFormat));
        Ok(())
    }

    /// Writes `len` bytes at `start` of the disk.
    fn write(&self, source: Source<'_>, start: u64, len: u64, tally: &mut Moved) -> Result<(), DiskError> {
        let mut user = self.extents.share();
        let mut done = 0;
        while done < len {
            let offset = start + done;
            let part = Part { source, from: done, offset, len: len - done };
            let extent = match self.place_of(&part)? {
                Some(extent) => {
                    part.write(&self.files[usize::from(extent.file)], extent, tally)?;
                    extent
                }
                None => self.write_to_new_place(&part, &mut user, tally)?,
            };
            user.learn(offset, self.within_its_file(extent));
            done += extent.len;
        }
        Ok(())
    }

    /// Where a part may be written to at once; as much of it as lies in one piece.
    fn place_of(&self, part: &Part<'_>) -> Result<Option<Extent>, DiskError> {
        let found = self.image.get_mapping(part.offset, part.len);
        let (mapping, len) = found.map_err(|error| kind_of(&error))?;
        match mapping {
            _ if len == 0 => Err(DiskError::OutOfRange),
            Mapping::Raw { storage, offset: at, writable: true, .. } => {
                Ok(Some(Extent { len: len.min(part.len), file: storage.number, at, writable: true }))
            }
            _ => Ok(None),
        }
    }

    /// Gives as much of a part as it can a place of its own, in whole clusters, and writes it there.
    fn write_to_new_place(
        &self,
        part: &Part<'_>,
        user: &mut Shared<'_>,
        tally: &mut Moved,
    ) -> Result<Extent, DiskError> {
        let changing = self.change();
        let error = |error: io::Error| kind_of(&error);
        // Others may have been faster.
        if let Some(extent) = self.place_of(part)? {
            part.write(&self.files[usize::from(extent.file)], extent, tally)?;
            return Ok(extent);
        }
        self.tidy(&changing).map_err(error)?;
        let (mapping, known) = self.image.get_mapping(part.offset, part.len).map_err(error)?;
        let leaves = matches!(mapping, Mapping::Special { .. })
            || matches!(mapping, Mapping::Raw { storage, .. } if storage.number == self.top);
        let end = part.offset + known.min(part.len);
        let from = part.offset - part.offset % self.cluster;
        let to = end.next_multiple_of(self.cluster).min(self.size);
        // What is in the first and last cluster beside the part goes with it.
        let handle = &self.files[usize::from(self.top)];
        let mut edges = Vec::new();
        for start in [from, (to - 1) - (to - 1) % self.cluster] {
            let whole = part.offset <= start && end >= start + self.cluster;
            if !whole && edges.iter().all(|(other, _)| *other != start) {
                let mut edge = aligned(handle, self.cluster).map_err(error)?;
                let inside = self.cluster.min(self.size - start) as usize;
                self.image.read(edge.as_mut_range(0..inside), start).map_err(error)?;
                edges.push((start, edge));
            }
        }
        let prepared = self.image.prepare_data_mapping(from, to - from, true).map_err(error)?;
        let (file, at, len) =
            (prepared.storage().number, prepared.offset(), prepared.length().min(to - from));
        let until = end.min(from + len);
        if until <= part.offset {
            return Err(DiskError::NoSpace);
        }
        // The library may have moved a table meanwhile, whose old place this is.
        self.tidy(&changing).map_err(error)?;
        let ours = self.tables.as_ref().is_none_or(|tables| tables.are_in(handle));
        if let Some(tables) = self.tables.as_ref().filter(|_| ours) {
            tables.forget(at, len.next_multiple_of(self.cluster));
        }
        for (start, edge) in edges.iter().filter(|(start, _)| *start < from + len) {
            // A file for data alone ends with the disk, which need not be with a cluster.
            let room = if ours { self.cluster } else { self.cluster.min(self.size - start) };
            handle.put(at + (start - from), &edge.as_ref().into_slice()[..room as usize]).map_err(error)?;
        }
        let extent = Extent { len: until - part.offset, file, at: at + (part.offset - from), writable: true };
        part.write(handle, extent, tally)?;
        self.image.commit_data_mapping(prepared).map_err(error)?;
        if leaves && let Some(tables) = &self.tables {
            tables.gave_up();
        }
        user.moved(from, len);
        Ok(extent)
    }

    /// Zeroes what is no whole cluster; the library does the rest.
    fn write_zeroes(&self, start: u64, len: u64, discard: bool) -> Result<(), DiskError> {
        let end = start + len;
        let from = start.next_multiple_of(self.cluster).min(end);
        let to = if end == self.size { end } else { (end - end % self.cluster).max(from) };
        let in_clusters = self.image.inner().zero_granularity().is_some();
        if !in_clusters && discard {
            return Err(DiskError::Unsupported);
        }
        let (from, to) = if in_clusters { (from, to) } else { (end, end) };
        for (start, end) in [(start, from), (to, end)] {
            self.zero_part(start, end)?;
        }
        if from == to {
            return Ok(());
        }
        let _alone = self.extents.alone();
        let changing = self.change();
        self.tidy(&changing).map_err(|error| kind_of(&error))?;
        if let Some(tables) = &self.tables
            && self.gives_up(from, to, discard)?
        {
            tables.gave_up();
        }
        let done = if discard {
            // SAFETY: nobody uses a place of the image's data now, and none is remembered.
            unsafe { self.image.discard_to_zero_unsafe(from, to - from) }
        } else {
            self.image.write_zeroes(from, to - from)
        };
        done.map_err(|error| kind_of(&error))
    }

    /// Writes zeroes to what does not read as zeroes already.
    fn zero_part(&self, mut start: u64, end: u64) -> Result<(), DiskError> {
        while start < end {
            let found = self.image.get_mapping(start, end - start);
            let (mapping, len) = found.map_err(|error| kind_of(&error))?;
            let is_zero = matches!(mapping, Mapping::Zero { .. });
            let len = len.min(end - start);
            match len {
                0 => return Err(DiskError::OutOfRange),
                _ if is_zero => {}
                _ => self.write(Source::Zeroes, start, len, &mut Moved::default())?,
            }
            start += len;
        }
        Ok(())
    }

    /// Whether some of this range leaves its place when it becomes zeroes.
    fn gives_up(&self, mut start: u64, end: u64, discard: bool) -> Result<bool, DiskError> {
        while start < end {
            let found = self.image.get_mapping(start, end - start);
            let (mapping, len) = found.map_err(|error| kind_of(&error))?;
            match mapping {
                Mapping::Special { .. } => return Ok(true),
                // Zeroes may have kept a place, too.
                Mapping::Zero { explicit: true, .. } if discard => return Ok(true),
                Mapping::Raw { storage, writable, .. }
                    if storage.number == self.top && (discard || !writable) =>
                {
                    return Ok(true);
                }
                _ if len == 0 => return Err(DiskError::OutOfRange),
                _ => start += len,
            }
        }
        Ok(false)
    }

    /// What comes before every change.
    fn before_a_change(&self) -> Result<(), DiskError> {
        match &self.marks {
            Some(marks) if !marks.are_cleared() => marks.clear(&self.change()),
            _ => Ok(()),
        }
    }

    /// A file that is a raw image of the disk has zeroes where the disk has them; the format would only note them down.
    fn zero_raw_data(&self, range: SectorRange) -> Result<(), DiskError> {
        let Some(file) = &self.raw_data else { return Ok(()) };
        let _alone = self.extents.alone();
        file.change_range(Operation::WriteZeroes(range, Unmap::Allowed), range)
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    /// Brings the tables to the file if nothing may get a new place before that.
    fn tidy(&self, changing: &MutexGuard<'_, ()>) -> io::Result<()> {
        match &self.tables {
            Some(tables) if tables.are_due() => self.bring_out(tables, changing),
            _ => Ok(()),
        }
    }

    fn bring_out(&self, tables: &Tables, _changing: &MutexGuard<'_, ()>) -> io::Result<()> {
        self.image.flush()?;
        tables.bring_out(&self.files[usize::from(self.top)])
    }

    /// What a flush says: also what somebody was told since the last one who does not speak for what others wrote.
    fn flush(&self) -> Result<(), DiskError> {
        let done = self.bring_all();
        let untold = self.files.iter().filter(|file| file.take_untold()).count();
        done.and(if untold > 0 { Err(DiskError::Media) } else { Ok(()) })
    }

    /// Brings all that was written to stable storage.
    fn bring_all(&self) -> Result<(), DiskError> {
        let changing = self.change();
        let done = self.image.flush().and_then(|()| match &self.tables {
            Some(tables) if !tables.are_out() => tables.bring_out(&self.files[usize::from(self.top)]),
            _ => {
                drop(changing);
                self.image.sync()
            }
        });
        done.map_err(|error| kind_of(&error))
    }

    /// As much of an extent as the file has: what lies behind its end the ring cannot read.
    fn within_its_file(&self, extent: Extent) -> Extent {
        let end = self.files[usize::from(extent.file)].bytes().unwrap_or(0);
        Extent { len: extent.len.min(end.saturating_sub(extent.at)), ..extent }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // What the guest wanted to last it has flushed. The rest is brought out as a favour, and nobody is left to be
        // told if that fails.
        if self.tables.is_some() {
            self.bring_all().unwrap_or_default();
        }
    }
}

/// A part of a request to write.
struct Part<'a> {
    source: Source<'a>,
    /// The first byte of the source.
    from: u64,
    /// Where it goes on the disk, in bytes.
    offset: u64,
    len: u64,
}

impl Part<'_> {
    /// Writes as much of it as the place has room for.
    fn write(&self, file: &Handle, place: Extent, tally: &mut Moved) -> Result<(), DiskError> {
        match self.source {
            Source::Guest(buffers) => {
                let write = Some(Durability::Cached);
                let transfer = Transfer { at: place.at, buffers, from: self.from, len: place.len, write };
                file.transfer(transfer, PastEnd::IsAnError, tally)
            }
            Source::Zeroes => {
                let error = |error: io::Error| kind_of(&error);
                let zeroes = aligned(file, place.len.min(PORTION)).map_err(error)?;
                let mut done = 0;
                while done < place.len {
                    let zeroes = zeroes.as_ref().into_slice();
                    let step = (place.len - done).min(PORTION);
                    file.put(place.at + done, &zeroes[..step as usize]).map_err(error)?;
                    done += step;
                }
                Ok(())
            }
        }
    }
}

impl Work for Image {
    fn execute(&self, operation: Operation, buffers: &Buffers, tally: &mut Moved) -> Result<(), DiskError> {
        match operation {
            Operation::Read { at } => self.read(at.0 * Sectors::SIZE, buffers, tally),
            Operation::Write { at, durability } => {
                self.before_a_change()?;
                self.write(Source::Guest(buffers), at.0 * Sectors::SIZE, buffers.bytes(), tally)?;
                match durability {
                    Durability::Cached => Ok(()),
                    Durability::Stable => self.bring_all(),
                }
            }
            Operation::Flush => self.flush(),
            Operation::Discard(range) => {
                self.before_a_change()?;
                self.zero_raw_data(range)?;
                self.write_zeroes(range.start.0 * Sectors::SIZE, range.count.0 * Sectors::SIZE, true)
            }
            Operation::WriteZeroes(range, _) => {
                self.before_a_change()?;
                self.zero_raw_data(range)?;
                self.write_zeroes(range.start.0 * Sectors::SIZE, range.count.0 * Sectors::SIZE, false)
            }
        }
    }

    fn direct(&self, operation: Operation, bytes: u64) -> Option<Direct> {
        let (at, write) = match operation {
            Operation::Read { at } => (at, false),
            // A write that is to last needs the tables to last, too.
            Operation::Write { at, durability: Durability::Cached } => (at, true),
            _ => return None,
        };
        let (file, at) = self.extents.enter(at.0 * Sectors::SIZE, bytes, write)?;
        let block = self.files[usize::from(file)].alignment().map_or(Sectors::SIZE, |a| u64::from(a.length));
        if !at.is_multiple_of(block.max(Sectors::SIZE)) {
            self.extents.ended();
            return None;
        }
        Some(Direct { file, at: Sectors(at / Sectors::SIZE), ticket: 0 })
    }

    fn ended(&self, _: &Direct) {
        self.extents.ended();
    }
}
