//! An image's files, and the images that it stands on.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::format::builder::FormatDriverBuilder;
use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::vmdk::Vmdk;
use imago::{FormatAccess, StorageOpenOptions};

use super::layer::Layer;
use super::marks::Marks;
use super::names::{self, Found};
use super::qcow2_header::{self, BITMAPS, Backing, DATA_IS_RAW, DataFile, Header, Layout};
use super::tables::Tables;
use super::unfit::Unfit;
use super::{counts, vmdk, whole};
use crate::contract::{Access, Sectors};
use crate::kernel::{self, FileOptions, Handle};
use crate::options::{Allowed, Changes, Claim, DiskOptions, Format, OpenError, Role};

/// Images may stand on images this deep.
const DEEPEST: usize = 64;

/// All files that are open for an image, and what they have in common.
pub(super) struct Chain {
    pub(super) files: Vec<Arc<Handle>>,
    pub(super) remarks: Vec<String>,
    /// Smallest transfer in bytes that every file takes.
    pub(super) logical_block: u32,
    /// Largest of the files' blocks.
    pub(super) physical_block: u32,
    /// Marks of the image that is written to.
    pub(super) marks: Option<Marks>,
    /// The data file that is a raw image of the disk at any time.
    pub(super) raw_data: Option<Arc<Handle>>,
    /// The tables of an image that may be changed.
    pub(super) tables: Option<Arc<Tables>>,
    /// Which files may be opened because an image names them.
    allowed: Vec<Allowed>,
    /// What is done with an image of which a part is missing.
    parts_missing: PartsMissing,
    top: u16,
}

/// What is done with an image of which a part is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PartsMissing {
    /// It is refused: the guest would write on the strength of wrong data.
    Refused,
    /// A person is told.
    Said,
}

impl Chain {
    pub(super) fn new(options: &DiskOptions) -> Chain {
        let block = Sectors::SIZE as u32;
        let writes = options.access == Access::ReadWrite && options.changes == Changes::Kept;
        let refused = writes && options.claim == Claim::Exclusive;
        Chain {
            files: Vec::new(),
            remarks: Vec::new(),
            logical_block: block,
            physical_block: block,
            marks: None,
            raw_data: None,
            tables: None,
            allowed: options.chain.clone(),
            parts_missing: if refused { PartsMissing::Refused } else { PartsMissing::Said },
            top: 0,
        }
    }

    /// Opens the image at `path` and everything below it. Only the image itself may be opened for writing.
    pub(super) fn open(
        &mut self,
        path: &Path,
        format: Format,
        access: Access,
        options: &DiskOptions,
    ) -> Result<FormatAccess<Layer>, OpenError> {
        let files = FileOptions { access, ..FileOptions::new(path, options) };
        match format {
            Format::Raw => self.raw(&files),
            Format::Qcow2 => self.qcow2(&files),
            Format::Vmdk => self.vmdk(&files),
        }
    }

    /// The number of the file that new data goes to.
    pub(super) fn top(&self) -> u16 {
        self.top
    }

    /// Takes a file in that is open already, which new data goes to.
    pub(super) fn put_on_top(&mut self, handle: Arc<Handle>, path: PathBuf) -> Layer {
        let layer = self.take(handle, path);
        self.top = layer.number;
        layer
    }

    fn take(&mut self, handle: Arc<Handle>, path: PathBuf) -> Layer {
        let number = self.files.len() as u16;
        self.files.push(handle.clone());
        Layer::new(handle, number, path)
    }

    fn layer(&mut self, options: &FileOptions) -> Result<Layer, OpenError> {
        if self.files.len() >= DEEPEST {
            let what = format!("it stands on more than {DEEPEST} files");
            return Err(wrong(
                &options.path,
                what,
                "Merge some of them, for example with `qemu-img rebase`.",
            ));
        }
        let kernel::Opened { handle, geometry, remarks } = kernel::open(options)?;
        self.remarks.extend(remarks);
        self.logical_block = self.logical_block.max(geometry.logical_block);
        self.physical_block = self.physical_block.max(geometry.physical_block);
        Ok(self.take(handle, options.path.clone()))
    }

    fn raw(&mut self, options: &FileOptions) -> Result<FormatAccess<Layer>, OpenError> {
        let layer = self.layer(options)?;
        let raw = Raw::open_image(layer, options.access == Access::ReadWrite);
        Ok(FormatAccess::new(raw.map_err(|cause| unreadable(&options.path, Format::Raw, &cause))?))
    }

    /// Everything is judged, and everything below is open, before the library sees the image: it writes to those that it
    /// opens for writing.
    fn qcow2(&mut self, options: &FileOptions) -> Result<FormatAccess<Layer>, OpenError> {
        let path = &options.path;
        let direct = options.direct && !has_small_clusters(options);
        let mut layer = self.layer(&FileOptions { direct, ..options.clone() })?;
        let file = layer.handle.clone();
        let is_top = self.files.len() == 1;
        let unfit = |Unfit { what, hint }| wrong(path, what, hint);
        let unreadable = |cause| unreadable(path, Format::Qcow2, &cause);
        let header = qcow2_header::read(&file.file).map_err(unreadable)?.map_err(unfit)?;
        if header.size < Sectors::SIZE {
            return Err(too_small(path, header.size, Sectors::SIZE as u32));
        }
        let data = match &header.data_file {
            None => None,
            Some(DataFile { name: None, .. }) => {
                let what = "its data is in another file, which its header does not name".to_owned();
                let hint = "Write the name into it with `qemu-img amend -o data_file=FILE --image-opts \
                            driver=qcow2,file.filename=IMAGE,data-file.driver=file,data-file.filename=FILE`.";
                return Err(wrong(path, what, hint));
            }
            Some(DataFile { name: Some(name), .. }) => Some(self.data_file(options, name)?),
        };
        if is_top {
            self.top = data.as_ref().map_or(layer.number, |data| data.number);
        }
        let data_bytes = data.as_ref().map(|data| data.handle.bytes()).transpose().map_err(unreadable)?;
        if let Err(missing) = whole::missing(&file, &header, data_bytes).map_err(unreadable)? {
            self.part_is_missing(path, missing)?;
        }
        let writable = options.access == Access::ReadWrite;
        if writable && let Some(why) = counts::unfit(&file, &header).map_err(unreadable)? {
            return Err(unfit(why));
        }
        let backing = header.backing.as_ref().map(|backing| self.backing(options, backing)).transpose()?;
        if writable {
            let tables = Arc::new(Tables::of(file.clone(), &header).map_err(unreadable)?);
            self.tables = Some(tables.clone());
            self.keep_marks(path, &header, tables.clone(), data.as_ref());
            layer = layer.through(tables);
        }
        let mut image: Qcow2<Layer> = Qcow2::open_image(layer, writable).map_err(unreadable)?;
        image.set_data_file(data);
        image.set_backing(backing);
        Ok(FormatAccess::new(image))
    }

    /// Remembers what of the header a write makes untrue, and what is to stay true.
    fn keep_marks(&mut self, path: &Path, header: &Header, tables: Arc<Tables>, data: Option<&Layer>) {
        if header.marks & BITMAPS != 0 {
            self.remarks.push(format!(
                "disk {}: it has bitmaps of what has changed, for backups; they do not follow what the guest writes, and \
                 are marked as no longer right when it does",
                path.display()
            ));
        }
        let kept = header.marks & if data.is_some() { DATA_IS_RAW } else { 0 };
        if header.marks != kept {
            self.marks = Some(Marks::new(tables, kept));
        }
        if kept != 0 {
            self.raw_data = data.map(|data| data.handle.clone());
        }
    }

    fn part_is_missing(&mut self, path: &Path, Unfit { what, hint }: Unfit) -> Result<(), OpenError> {
        match self.parts_missing {
            PartsMissing::Refused => Err(wrong(path, what, hint)),
            PartsMissing::Said => {
                self.remarks.push(format!("disk {}: {what}. The guest reads zeroes there", path.display()));
                Ok(())
            }
        }
    }

    /// How to open a file that an image names, if that is allowed and the file is not open yet.
    fn named(&self, options: &FileOptions, name: &str, role: Role) -> Result<FileOptions, OpenError> {
        let image = &options.path;
        let Found { path, named } = names::find(image, name, role, &self.allowed)?;
        let facts = std::fs::metadata(&path).ok().map(|facts| (facts.dev(), facts.ino()));
        let is_it =
            |file: &Arc<Handle>| file.file.metadata().is_ok_and(|it| Some((it.dev(), it.ino())) == facts);
        // Extents may be parts of one file.
        if role != Role::Extent && self.files.iter().any(is_it) {
            return Err(OpenError::Loop { image: image.clone(), role, path });
        }
        Ok(FileOptions { path, named, ..options.clone() })
    }

    fn data_file(&mut self, options: &FileOptions, name: &str) -> Result<Layer, OpenError> {
        let data = self.named(options, name, Role::Data)?;
        self.layer(&data).map_err(|cause| wanted(&options.path, Role::Data, cause))
    }

    /// The image that another one stands on, in the format that the other one's header names.
    fn backing(&mut self, of: &FileOptions, backing: &Backing) -> Result<FormatAccess<Layer>, OpenError> {
        let Backing { name, format } = backing;
        let raw = match format.as_deref() {
            Some("raw" | "file" | "host_device") => true,
            Some("qcow2") => false,
            None => {
                let what =
                    format!("it stands on {name:?}, but its header does not say which format that has");
                let hint = "Say so in it with `qemu-img rebase -u -F FORMAT -b FILE IMAGE` (raw or qcow2).";
                return Err(wrong(&of.path, what, hint));
            }
            Some(other) => {
                let what = format!("it stands on {name:?}, whose format {other:?} cannot be read");
                let hint = "Copy all into one image with `qemu-img convert -O qcow2 IMAGE COPY`.";
                return Err(wrong(&of.path, what, hint));
            }
        };
        let options = self.named(of, name, Role::Backing)?.below();
        let opened = if raw { self.raw(&options) } else { self.qcow2(&options) };
        opened.map_err(|cause| wanted(&of.path, Role::Backing, cause))
    }

    fn vmdk(&mut self, options: &FileOptions) -> Result<FormatAccess<Layer>, OpenError> {
        // Extents may start at any sector, which direct I/O need not allow.
        let options = FileOptions { direct: false, ..options.clone() };
        let path = &options.path;
        let layer = self.layer(&options)?;
        let needed = vmdk::read(&layer.handle).map_err(|cause| unreadable(path, Format::Vmdk, &cause))?;
        let needed = needed.map_err(|Unfit { what, hint }| wrong(path, what, hint))?;
        let mut failure = None;
        let gate = Gate { chain: self, options: &options, failure: &mut failure };
        let opened = Vmdk::<Layer>::builder(layer).open(gate);
        let image = match (opened, failure) {
            (Ok(image), _) => image,
            (Err(_), Some(failure)) => return Err(failure),
            (Err(cause), None) => return Err(unreadable(path, Format::Vmdk, &cause)),
        };
        let short = self.files[1..]
            .iter()
            .zip(&needed)
            .find(|(file, needed)| file.bytes().is_ok_and(|bytes| bytes < **needed));
        if let Some((file, needed)) = short {
            let what = format!(
                "a part of it is missing: a file of its data has {} bytes, and the image refers to {needed} of it",
                file.bytes().unwrap_or(0)
            );
            self.part_is_missing(path, Unfit { what, hint: "Copy it again from where it came from." })?;
        }
        Ok(FormatAccess::new(image))
    }
}

/// Opens the extents that a vmdk descriptor names.
struct Gate<'a> {
    chain: &'a mut Chain,
    options: &'a FileOptions,
    failure: &'a mut Option<OpenError>,
}

impl Gate<'_> {
    fn extent(&mut self, path: &Path) -> Result<Layer, OpenError> {
        let Gate { chain, options, .. } = self;
        let extent = chain.named(options, &path.to_string_lossy(), Role::Extent)?;
        chain.layer(&extent.below()).map_err(|cause| wanted(&options.path, Role::Extent, cause))
    }
}

impl ImplicitOpenGate<Layer> for Gate<'_> {
    fn open_format<F: FormatDriverBuilder<Layer>>(&mut self, _: F) -> std::io::Result<FormatAccess<Layer>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn open_storage(&mut self, asked: StorageOpenOptions) -> std::io::Result<Layer> {
        let path = asked.get_filename().ok_or(std::io::ErrorKind::NotFound)?.to_owned();
        self.extent(&path).map_err(|error| {
            let cause = std::io::Error::other(error.to_string());
            *self.failure = Some(error);
            cause
        })
    }
}

/// Whether clusters are smaller than a block of direct I/O may be: two of them could then not be written apart.
fn has_small_clusters(options: &FileOptions) -> bool {
    let start = kernel::first_bytes::<{ Layout::BYTES }>(options);
    start.and_then(|start| Layout::parse(&start).ok()).is_some_and(|layout| layout.cluster() < 4096)
}

fn wanted(image: &Path, role: Role, cause: OpenError) -> OpenError {
    let image = image.to_owned();
    match cause {
        OpenError::NotFound { path } => OpenError::Lost { image, role, path },
        cause => OpenError::Wanted { image, role, cause: Box::new(cause) },
    }
}

fn unreadable(path: &Path, format: Format, cause: &std::io::Error) -> OpenError {
    wrong(
        path,
        format!("it cannot be used as a {format} image: {cause}"),
        "Check that `format` is right, and the image with `qemu-img check`; convert one with features that are unknown here with `qemu-img convert`.",
    )
}

/// An image is there, and the disk in it has no size.
pub(super) fn too_small(path: &Path, bytes: u64, block: u32) -> OpenError {
    let what = format!("the disk in it has {bytes} bytes, which is less than one block of {block}");
    wrong(path, what, "Give a qcow2 image a size with `qemu-img resize -f qcow2 IMAGE 10G`.")
}

fn wrong(path: &Path, what: String, hint: &'static str) -> OpenError {
    OpenError::Format { path: path.to_owned(), what, hint }
}
