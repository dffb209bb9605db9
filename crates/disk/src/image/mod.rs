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
mod qcow2_header;
mod vmdk;
mod whole;

use std::path::Path;
use std::sync::Arc;

use imago::{FormatAccess, Mapping};
use memory::Buffers;

use crate::counters::Bounced;
use crate::crewed::CrewedDisk;
use crate::geometry::{
    Access, AfterDiscard, Discard, Geometry, SectorRange, Sectors, WriteCache, WriteZeroes,
};
use crate::kernel::{Handle, OpenError, PastEnd, Transfer, fill_with_zeroes, kind_of};
use crate::opening::{Found, failed, unseen};
use crate::options::{Changes, DiskOptions, Format};
use crate::request::{DiskError, Durability, Operation, Unmap};
use crate::threads::{Direct, Moved, Work};
use chain::Chain;
use extents::{Extent, Extents};
use layer::Layer;
use marks::Marks;
pub use names::Role;
pub(crate) use names::has_driver;

/// Longest range of zeroes or discards in one request: what a table of the default size covers.
const LONGEST_RANGE: u64 = 512 << 20;
/// Data in another form is brought into its own in portions of this size.
const PORTION: u64 = 1 << 20;

/// Opens an image, with those it stands on; changes may go to a temporary one on top.
pub(crate) fn open(path: &Path, format: Format, options: &DiskOptions) -> Result<Found, OpenError> {
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
            overlay::over(image, path, options.bounce, &mut chain).map_err(|cause| failed(options, cause))?;
        access = Access::ReadWrite;
    }
    let top = chain.top();
    let geometry = geometry(&image, &chain, access);
    if geometry.capacity.0 == 0 {
        return Err(chain::too_small(path, image.size(), geometry.logical_block));
    }
    let Chain { files, mut remarks, marks, raw_data, .. } = chain;
    remarks.extend(unseen(path, image.size(), geometry.logical_block));
    let work = Image {
        image,
        files: files.clone(),
        top,
        size: geometry.capacity.0 * Sectors::SIZE,
        extents: Extents::default(),
        marks,
        raw_data,
    };
    let name = options.source.to_string().into();
    let disk = CrewedDisk::with_ring(name, geometry, files, Arc::new(work));
    Ok(Found { backend: Box::new(disk.map_err(|cause| failed(options, cause))?), remarks })
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
    extents: Extents,
    /// Marks that the first change takes away.
    marks: Option<Marks>,
    /// The file that is to be a raw image of the disk at any time.
    raw_data: Option<Arc<Handle>>,
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

    fn write(
        &self,
        start: u64,
        durability: Durability,
        buffers: &Buffers,
        tally: &mut Moved,
    ) -> Result<(), DiskError> {
        let mut user = self.extents.share();
        let mut done = 0;
        while done < buffers.bytes() {
            let (offset, left) = (start + done, buffers.bytes() - done);
            let prepared = self.image.prepare_data_mapping(offset, left, true);
            let prepared = prepared.map_err(|error| kind_of(&error))?;
            let (storage, at, len) = (prepared.storage(), prepared.offset(), prepared.length().min(left));
            if len == 0 {
                return Err(DiskError::NoSpace);
            }
            let new = !prepared.is_nonblocking();
            let transfer = Transfer { at, buffers, from: done, len, write: Some(Durability::Cached) };
            storage.handle.transfer(transfer, PastEnd::IsAnError, tally)?;
            self.image.commit_data_mapping(prepared).map_err(|error| kind_of(&error))?;
            if new {
                user.moved(offset, len);
            }
            let extent = Extent { len, file: storage.number, at, writable: true };
            user.learn(offset, self.within_its_file(extent));
            done += len;
        }
        drop(user);
        match durability {
            Durability::Cached => Ok(()),
            Durability::Stable => self.flush(),
        }
    }

    /// As much of an extent as the file has: what lies behind its end the ring cannot read.
    fn within_its_file(&self, extent: Extent) -> Extent {
        let end = self.files[usize::from(extent.file)].bytes().unwrap_or(0);
        Extent { len: extent.len.min(end.saturating_sub(extent.at)), ..extent }
    }

    /// What comes before every change.
    fn change(&self) -> Result<(), DiskError> {
        self.marks.as_ref().map_or(Ok(()), Marks::clear)
    }

    /// A file that is a raw image of the disk has zeroes where the disk has them; the format would only note them down.
    fn zero_raw_data(&self, range: SectorRange) -> Result<(), DiskError> {
        let zeroes = Operation::WriteZeroes(range, Unmap::Allowed);
        self.raw_data.as_ref().map_or(Ok(()), |file| file.change_range(zeroes, range))
    }

    /// Tables first go to the file, then all of it to stable storage.
    fn flush(&self) -> Result<(), DiskError> {
        self.image.flush().and_then(|()| self.image.sync()).map_err(|error| kind_of(&error))
    }
}

impl Work for Image {
    fn execute(&self, operation: Operation, buffers: &Buffers, tally: &mut Moved) -> Result<(), DiskError> {
        match operation {
            Operation::Read { at } => self.read(at.0 * Sectors::SIZE, buffers, tally),
            Operation::Write { at, durability } => {
                self.change()?;
                self.write(at.0 * Sectors::SIZE, durability, buffers, tally)
            }
            Operation::Flush => self.flush(),
            Operation::Discard(range) => {
                self.change()?;
                let _alone = self.extents.alone();
                self.zero_raw_data(range)?;
                let (start, len) = (range.start.0 * Sectors::SIZE, range.count.0 * Sectors::SIZE);
                // SAFETY: nobody uses a place of the image's data now, and none is remembered.
                let done = unsafe { self.image.discard_to_zero_unsafe(start, len) };
                done.map_err(|error| kind_of(&error))
            }
            Operation::WriteZeroes(range, _) => {
                self.change()?;
                let _alone = self.extents.alone();
                self.zero_raw_data(range)?;
                let (start, len) = (range.start.0 * Sectors::SIZE, range.count.0 * Sectors::SIZE);
                self.image.write_zeroes(start, len).map_err(|error| kind_of(&error))
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
