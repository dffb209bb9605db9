//! Kernel images: telling what a file is, and where its parts go in guest RAM.
//!
//! Everything in an image is hostile: each offset and size is checked against the file and against RAM
//! before anything is written, and the work is bounded by the size of RAM.

mod bzimage;
mod elf;
mod multiboot;
mod other;
mod packed;

use std::path::{Path, PathBuf};

use memory::{Gpa, GpaRange, Ram};

pub(crate) use bzimage::{BzImage, Entry, SETUP_HEADER};
pub(crate) use elf::Elf;
pub use packed::UNPACKED_MAX;

use crate::Contents;
use crate::map::low;
use crate::source::{Source, SourceError};
use packed::Compression;

/// As many bytes at an image's beginning as tell what kind of kernel it is, and hold its headers.
const HEAD: usize = 4096;
/// As many as it takes to name what is no kernel.
const NAMED_BY: usize = 0x8800;

/// A kernel that skep can start.
#[derive(Debug)]
pub struct KernelImage {
    source: Source,
    format: Format,
}

/// How a kernel is entered, and what its headers say.
#[derive(Debug)]
pub(crate) enum Format {
    /// An uncompressed kernel with a PVH entry point.
    Pvh(Elf),
    /// A compressed Linux kernel.
    BzImage(BzImage),
}

/// Why a kernel cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is something else.
    #[error(
        "{} is {what}, not a kernel that skep can start. Give a bzImage (a distribution's /boot/vmlinuz) or a vmlinux with a PVH entry.",
        .path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        what: String,
    },
    /// It is a kernel of a kind that cannot be started.
    #[error("the kernel {} {what}. {hint}", .path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is or lacks.
        what: String,
        /// What a person can do.
        hint: &'static str,
    },
    /// Its headers contradict themselves or the file's length.
    #[error("the kernel {} is damaged: {what}. Get a fresh copy of it.", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// It does not fit into RAM.
    #[error(
        "the kernel {} needs the RAM at {needs}, but the VM's low RAM ends at {end}. {}",
        .path.display(), enough(needs.end())
    )]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Where it would lie.
        needs: GpaRange,
        /// Where RAM ends.
        end: Gpa,
    },
}

/// MiB, rounded up.
pub(crate) fn mib(bytes: Gpa) -> u64 {
    bytes.0.div_ceil(1 << 20)
}

/// What to do where RAM has to reach `end`. A VM's RAM comes in units of 2 MiB.
pub(crate) fn give(end: Gpa) -> String {
    format!("Give the VM at least {} MiB of memory.", mib(end).next_multiple_of(2))
}

fn enough(end: Gpa) -> String {
    if end <= memory::LOW_RAM_END {
        give(end)
    } else {
        "More memory would not help: the file is damaged or made for another kind of machine.".into()
    }
}

impl KernelImage {
    /// Opens a kernel and checks its headers: an ELF with a PVH note, or a bzImage with an entry in long or protected mode.
    /// One that is compressed as a file (gzip, xz, zstd) is unpacked, to [`UNPACKED_MAX`] bytes at most, and keeps that
    /// memory.
    pub fn open(path: &Path) -> Result<KernelImage, KernelError> {
        KernelImage::recognise(Source::open("kernel", path)?)
    }

    /// The same for a kernel in memory. `name` is what errors call it.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<KernelImage, KernelError> {
        KernelImage::recognise(Source::from_bytes(name, bytes))
    }

    fn recognise(source: Source) -> Result<KernelImage, KernelError> {
        let start = head(&source, HEAD)?;
        let Some(compression) = Compression::of(&start) else { return KernelImage::plain(source, &start) };
        let unpacked = packed::unpack(&source, compression)?;
        let start = head(&unpacked, HEAD)?;
        KernelImage::plain(unpacked, &start)
    }

    fn plain(source: Source, start: &[u8]) -> Result<KernelImage, KernelError> {
        let format = if start.starts_with(elf::MAGIC) {
            Format::Pvh(Elf::parse(&source, start)?)
        } else if BzImage::is_one(start) {
            Format::BzImage(BzImage::parse(&source, start)?)
        } else {
            let what = other::describe(&head(&source, NAMED_BY)?);
            return Err(KernelError::NotAKernel { path: source.name().to_path_buf(), what });
        };
        Ok(KernelImage { source, format })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.source.name()
    }

    pub(crate) fn format(&self) -> &Format {
        &self.format
    }

    /// The range that the kernel takes, its zeroed and working memory included.
    pub(crate) fn range(&self) -> GpaRange {
        match &self.format {
            Format::Pvh(elf) => elf.range(),
            Format::BzImage(image) => image.range(),
        }
    }

    /// Checks that the kernel fits into low RAM, which ends at `end`.
    pub(crate) fn fits(&self, end: Gpa) -> Result<(), KernelError> {
        let needs = self.range();
        if needs.start() < low::HIGH {
            let what = format!("wants to lie at {needs}, below 1 MiB, where its boot data lies");
            let hint = "Link it at 1 MiB or above.";
            return Err(KernelError::Unsupported { path: self.path().to_path_buf(), what, hint });
        }
        if needs.end() > end {
            return Err(KernelError::NoRoom { path: self.path().to_path_buf(), needs, end });
        }
        Ok(())
    }

    /// Copies the kernel to its place, for which [`KernelImage::fits`] has been asked.
    pub(crate) fn copy(&self, ram: &Ram, contents: Contents) -> Result<(), crate::LoadError> {
        let clear = |from: u64, len: u64| match contents {
            Contents::New => Ok(()),
            Contents::Used => ram.zero(Gpa(from), len),
        };
        match &self.format {
            Format::Pvh(elf) => {
                for part in elf.parts() {
                    let start = part.range.start();
                    if part.in_file > 0 {
                        self.source.read_into(ram, start, part.offset, part.in_file)?;
                    }
                    clear(start.0 + part.in_file, part.range.len() - part.in_file)?;
                }
            }
            Format::BzImage(image) => {
                let (code, start) = (image.code(), image.range().start());
                let in_file = code.end - code.start;
                self.source.read_into(ram, start, code.start, in_file)?;
                clear(start.0 + in_file, in_file.next_multiple_of(bzimage::PARAGRAPH) - in_file)?;
            }
        }
        Ok(())
    }
}

/// The first bytes of an image, as many as it has up to `len`.
fn head(source: &Source, len: usize) -> Result<Vec<u8>, SourceError> {
    let mut start = vec![0; len];
    let len = source.read_start(&mut start)?;
    start.truncate(len);
    Ok(start)
}

/// Whether what begins with these bytes is to be a kernel.
pub(crate) fn is_kernel(start: &[u8]) -> bool {
    start.starts_with(elf::MAGIC) || BzImage::is_one(start)
}

/// What errors about one image need.
pub(crate) fn damaged(source: &Source, what: impl Into<String>) -> KernelError {
    KernelError::Damaged { path: source.name().to_path_buf(), what: what.into() }
}

pub(crate) fn unsupported(source: &Source, what: impl Into<String>, hint: &'static str) -> KernelError {
    KernelError::Unsupported { path: source.name().to_path_buf(), what: what.into(), hint }
}

/// Little-endian numbers out of a header; `None` where it is too short.
pub(crate) struct Header<'a>(pub(crate) &'a [u8]);

impl Header<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    pub(crate) fn u8(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    pub(crate) fn u16(&self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&self, at: usize) -> Option<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }
}
