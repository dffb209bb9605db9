//! From what the user asks for to the back end that does it.

use std::path::Path;
use std::sync::Arc;

use crate::contract::{Backend, Sectors};
use crate::kernel::{self, DiscardsByThreads, FileOptions, KernelDisk, Opened};
use crate::nbd::NbdDisk;
use crate::options::{Allocation, Changes, DiskOptions, Format, OpenError, Source};
use crate::pooled::{Emulation, PooledDisk};
use crate::uring::{hint_after, ring_is_refused};
use crate::{image, signature};

/// A back end, and what a person should know about it.
pub(crate) struct Found {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) remarks: Vec<String>,
}

/// Opens what is asked for.
pub(crate) fn open(options: &DiskOptions) -> Result<Found, OpenError> {
    match &options.source {
        Source::Path(path) => open_path(path, options),
        Source::Memory(size) => {
            plain(options)?;
            in_memory(*size, options)
        }
        Source::Nbd(url) => {
            plain(options)?;
            let disk = NbdDisk::open(url, options.access)?;
            let remarks = disk.geometry().unseen(Path::new(&url.to_string()), disk.bytes());
            Ok(Found { backend: Box::new(disk), remarks: remarks.into_iter().collect() })
        }
    }
}

fn open_path(path: &Path, options: &DiskOptions) -> Result<Found, OpenError> {
    let text = path.to_string_lossy();
    if image::has_driver(&text) && !path.exists() {
        return Err(OpenError::Options {
            disk: text.into_owned(),
            what: "there is no such file, and addresses of drivers of QEMU (json:, nbd: and the like) are not known here"
                .to_owned(),
            hint: "Give the path of a file or device, or nbd=nbd://HOST/EXPORT for a disk on a server.",
        });
    }
    let format = match options.format {
        Some(format) => format,
        None => {
            refuse_to_guess(path)?;
            Format::Raw
        }
    };
    if format != Format::Raw || options.changes == Changes::ThrownAway {
        if options.logical_block.is_some() {
            return Err(options.unfit("other blocks than its own (`logical`) as an image or snapshot"));
        }
        if options.allocation == Allocation::AtOnce {
            return Err(options.unfit("room for an image's whole disk at once (`preallocate`)"));
        }
        let (disk, remarks) = image::open(path, format, options)?;
        return Ok(Found { backend: Box::new(disk), remarks });
    }
    let mut opened = kernel::open(&FileOptions::new(path, options))?;
    if opened.geometry.capacity.0 == 0 {
        let (path, block) = (path.to_owned(), opened.geometry.logical_block);
        let bytes = std::fs::metadata(&path).map_or(0, |facts| facts.len());
        return Err(OpenError::Empty { path, bytes, block });
    }
    let bytes = opened.handle.bytes().map_err(|cause| options.failed(cause))?;
    opened.remarks.extend(opened.geometry.unseen(path, bytes));
    match options.logical_block {
        Some(block) if block != opened.geometry.logical_block => emulated(block, opened, options),
        _ => as_it_is(opened, options),
    }
}

/// A device or raw file, by io_uring or, where that is forbidden or cannot do it all, by threads.
fn as_it_is(opened: Opened, options: &DiskOptions) -> Result<Found, OpenError> {
    let Opened { handle, geometry, mut remarks } = opened;
    let name: Arc<str> = options.source.to_string().into();
    let failed = |cause| options.failed(cause);
    let (file, block) = (handle.clone(), geometry.logical_block);
    let size = move || file.capacity(block);
    let backend: Box<dyn Backend> = match ring_is_refused() {
        None => match DiscardsByThreads::where_needed(&handle, &geometry).map_err(failed)? {
            None => Box::new(KernelDisk::new(name, handle, geometry, options.poll)),
            Some(work) => {
                let disk = PooledDisk::with_ring(name, geometry, vec![handle], Arc::new(work));
                Box::new(disk.map_err(failed)?.sized_by(size).polling(options.poll))
            }
        },
        Some(cause) => {
            remarks.push(format!(
                "disk {name}: io_uring cannot be used ({cause}); threads do its work. {}",
                hint_after(&cause)
            ));
            let disk = PooledDisk::without_ring(name, geometry, handle);
            Box::new(disk.map_err(failed)?.sized_by(size))
        }
    };
    Ok(Found { backend, remarks })
}

fn emulated(block: u32, opened: Opened, options: &DiskOptions) -> Result<Found, OpenError> {
    let Opened { handle, geometry, remarks } = opened;
    let real = geometry.logical_block;
    if block != Sectors::SIZE as u32 || block > real {
        let what = format!("blocks of {block} bytes (`logical`), as its own have {real}");
        return Err(options.unfit(&what));
    }
    let (work, geometry) = Emulation::over(handle.clone(), geometry, block);
    let name = options.source.to_string().into();
    let disk = PooledDisk::with_ring(name, geometry, vec![handle.clone()], Arc::new(work));
    let disk = disk.map_err(|cause| options.failed(cause))?.sized_by(move || handle.capacity(real));
    Ok(Found { backend: Box::new(disk), remarks })
}

fn in_memory(size: Sectors, options: &DiskOptions) -> Result<Found, OpenError> {
    if size.0 == 0 {
        return Err(options.unfit("a disk in memory without a size"));
    }
    let (handle, mut geometry) = kernel::in_memory(size).map_err(|cause| options.failed(cause))?;
    geometry.access = options.access;
    as_it_is(Opened { handle, geometry, remarks: Vec::new() }, options)
}

/// Options that only files and devices have.
fn plain(options: &DiskOptions) -> Result<(), OpenError> {
    let asked = match options {
        DiskOptions { format: Some(Format::Qcow2 | Format::Vmdk), .. } => "a format of images (`format`)",
        DiskOptions { changes: Changes::ThrownAway, .. } => "changes that are thrown away (`snapshot`)",
        DiskOptions { allocation: Allocation::AtOnce, .. } => "room at once (`preallocate`)",
        DiskOptions { logical_block: Some(_), .. } => "other blocks than its own (`logical`)",
        _ => return Ok(()),
    };
    Err(options.unfit(asked))
}

/// A file that looks like an image of some format is not taken for a raw one: what the guest writes would destroy
/// it. And since guests write what they like into raw disks, it is not taken for that format either.
fn refuse_to_guess(path: &Path) -> Result<(), OpenError> {
    let Some(known) = signature::of(path) else { return Ok(()) };
    Err(OpenError::Unsaid { path: path.to_owned(), looks: known.name, hint: known.hint })
}
