//! An image's files, and the images that it stands on.

use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::format::builder::FormatDriverBuilder;
use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::vmdk::Vmdk;
use imago::{FormatAccess, StorageOpenOptions};

use super::counts::{self, Unfit};
use super::layer::Layer;
use super::tables::{Header, Tables};
use crate::geometry::{Access, Sectors};
use crate::kernel::{self, FileOptions, Handle, OpenError};
use crate::opening::below;
use crate::options::{DiskOptions, Format};

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
    /// The tables of an image that may be changed.
    pub(super) tables: Option<Arc<Tables>>,
    top: u16,
}

impl Default for Chain {
    fn default() -> Chain {
        let block = Sectors::SIZE as u32;
        Chain {
            files: Vec::new(),
            remarks: Vec::new(),
            logical_block: block,
            physical_block: block,
            tables: None,
            top: 0,
        }
    }
}

impl Chain {
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

    fn qcow2(&mut self, options: &FileOptions) -> Result<FormatAccess<Layer>, OpenError> {
        let path = &options.path;
        let direct = options.direct && !has_small_clusters(path);
        let mut layer = self.layer(&FileOptions { direct, ..options.clone() })?;
        if self.files.len() == 1 {
            self.top = layer.number;
        }
        let folder = layer.path.clone();
        let unreadable = |cause| unreadable(path, Format::Qcow2, &cause);
        let writable = options.access == Access::ReadWrite;
        let unfit = if writable { counts::unfit(&layer.handle.file).map_err(unreadable)? } else { None };
        if let Some(Unfit { what, hint }) = unfit {
            return Err(wrong(path, what, hint));
        }
        if writable && let Some(tables) = Tables::of(layer.handle.clone()).map_err(unreadable)? {
            let tables = Arc::new(tables);
            self.tables = Some(tables.clone());
            layer = layer.through(tables);
        }
        let mut image: Qcow2<Layer> = Qcow2::open_image(layer, writable).map_err(unreadable)?;
        if image.requires_external_data_file() {
            let Some(file) = image.implicit_external_data_file().cloned() else {
                let what = "its data is in another file, which its header does not name".to_owned();
                return Err(wrong(path, what, "Restore the image from a copy."));
            };
            let data = self.layer(&FileOptions { path: beside(&folder, &file), ..options.clone() })?;
            if self.files.len() == 2 {
                self.top = data.number;
            }
            image.set_data_file(Some(data));
        } else {
            image.set_data_file(None);
        }
        let backing = match (image.implicit_backing_file(), image.implicit_backing_format()) {
            (None, _) => None,
            (Some(file), format) => {
                let (file, format) = (beside(&folder, file), format.map(String::as_str));
                Some(self.backing(&FileOptions { path: file, ..below(options) }, format, path)?)
            }
        };
        image.set_backing(backing);
        Ok(FormatAccess::new(image))
    }

    /// The image that another one stands on, in the format that the other one's header names.
    fn backing(
        &mut self,
        options: &FileOptions,
        format: Option<&str>,
        of: &Path,
    ) -> Result<FormatAccess<Layer>, OpenError> {
        match format {
            Some("raw" | "file" | "host_device") => self.raw(options),
            Some("qcow2") => self.qcow2(options),
            other => {
                let below = options.path.display();
                let what = match other {
                    None => {
                        format!("it stands on {below}, but its header does not say which format that has")
                    }
                    Some(other) => format!("it stands on {below}, whose format {other:?} cannot be read"),
                };
                Err(wrong(
                    of,
                    what,
                    "Say so in its header with `qemu-img rebase -u -F FORMAT -b FILE IMAGE`.",
                ))
            }
        }
    }

    fn vmdk(&mut self, options: &FileOptions) -> Result<FormatAccess<Layer>, OpenError> {
        // Extents may start at any sector, which direct I/O need not allow.
        let options = FileOptions { direct: false, ..options.clone() };
        let layer = self.layer(&options)?;
        let mut failure = None;
        let gate = Gate { chain: self, options: &options, failure: &mut failure };
        let opened = Vmdk::<Layer>::builder(layer).open(gate);
        match (opened, failure) {
            (Ok(image), _) => Ok(FormatAccess::new(image)),
            (Err(_), Some(failure)) => Err(failure),
            (Err(cause), None) => Err(unreadable(&options.path, Format::Vmdk, &cause)),
        }
    }
}

/// Opens the extents that a vmdk descriptor names.
struct Gate<'a> {
    chain: &'a mut Chain,
    options: &'a FileOptions,
    failure: &'a mut Option<OpenError>,
}

impl ImplicitOpenGate<Layer> for Gate<'_> {
    fn open_format<F: FormatDriverBuilder<Layer>>(&mut self, _: F) -> std::io::Result<FormatAccess<Layer>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn open_storage(&mut self, asked: StorageOpenOptions) -> std::io::Result<Layer> {
        let path = asked.get_filename().ok_or(std::io::ErrorKind::NotFound)?.to_owned();
        self.chain.layer(&FileOptions { path, ..below(self.options) }).map_err(|error| {
            let cause = std::io::Error::other(error.to_string());
            *self.failure = Some(error);
            cause
        })
    }
}

/// Whether clusters are smaller than a block of direct I/O may be: two of them could then not be written apart.
fn has_small_clusters(path: &Path) -> bool {
    let is_disk = |facts: &std::fs::Metadata| facts.is_file() || facts.file_type().is_block_device();
    if !std::fs::metadata(path).is_ok_and(|facts| is_disk(&facts)) {
        return false;
    }
    let mut start = [0; 104];
    let read = std::fs::File::open(path).and_then(|file| file.read_exact_at(&mut start, 0));
    read.is_ok() && Header::parse(&start).is_some_and(|header| header.cluster < 4096)
}

/// A name in a header is relative to the folder of its file.
fn beside(file: &Path, name: &str) -> PathBuf {
    let home = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    home.parent().unwrap_or(Path::new("/")).join(name.strip_prefix("file:").unwrap_or(name))
}

fn unreadable(path: &Path, format: Format, cause: &std::io::Error) -> OpenError {
    wrong(
        path,
        format!("it cannot be used as a {format} image: {cause}"),
        "Check that format= is right, and the image with `qemu-img check`; convert one with features that are unknown here with `qemu-img convert`.",
    )
}

fn wrong(path: &Path, what: String, hint: &'static str) -> OpenError {
    OpenError::Format { path: path.to_owned(), what, hint }
}
