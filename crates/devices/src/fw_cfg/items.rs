//! What firmware can ask for: numbered items, and files by name. QEMU, docs/specs/fw_cfg.rst.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use memory::{Gpa, Ram};

/// A name has so many bytes at most, and a zero behind it.
const NAME_MAX: usize = 55;
const ENTRY: usize = 64;

/// Items with fixed numbers.
pub mod key {
    /// The letters "QEMU".
    pub const SIGNATURE: u16 = 0x00;
    /// Which interfaces there are.
    pub const INTERFACES: u16 = 0x01;
    /// How many CPUs run at power-on, 16 bits.
    pub const CPUS: u16 = 0x05;
    /// Length of the initial RAM disk, 32 bits.
    pub const INITRD_SIZE: u16 = 0x0b;
    /// The initial RAM disk.
    pub const INITRD: u16 = 0x12;
    /// Length of the kernel without its setup part, 32 bits.
    pub const KERNEL_SIZE: u16 = 0x08;
    /// The kernel without its setup part.
    pub const KERNEL: u16 = 0x11;
    /// Length of the command line with its final zero, 32 bits.
    pub const COMMAND_LINE_SIZE: u16 = 0x14;
    /// The command line with its final zero.
    pub const COMMAND_LINE: u16 = 0x15;
    /// Length of the kernel's setup part, 32 bits.
    pub const SETUP_SIZE: u16 = 0x17;
    /// The kernel's setup part.
    pub const SETUP: u16 = 0x18;
    /// Whether a menu is shown, 16 bits.
    pub const BOOT_MENU: u16 = 0x0e;
    /// CPUs with those that may come, 16 bits.
    pub const CPUS_MAX: u16 = 0x0f;
    /// The list of files.
    pub const FILES: u16 = 0x19;
    /// The first file's; the others follow.
    pub const FIRST_FILE: u16 = 0x20;
    /// Numbers end here; the bits above have meanings of their own.
    pub const END: u16 = 0x4000;
}

/// An item's bytes.
#[derive(Debug)]
pub enum Content {
    /// Kept in memory.
    Bytes(Vec<u8>),
    /// A part of a file of the host.
    File {
        /// The file.
        file: File,
        /// Where the item begins in it.
        offset: u64,
        /// The item's length in bytes.
        len: u32,
    },
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Content {
        Content::Bytes(bytes)
    }
}

impl Content {
    /// Its length in bytes.
    pub fn len(&self) -> u32 {
        match self {
            // Items are made by the machine, and small.
            Content::Bytes(bytes) => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            Content::File { len, .. } => *len,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The byte at an offset; zero behind the end, and where a file cannot be read.
    pub(super) fn byte(&self, at: u32) -> u8 {
        match self {
            Content::Bytes(bytes) => bytes.get(at as usize).copied().unwrap_or(0),
            Content::File { file, offset, len } => {
                let mut byte = [0];
                let read = at < *len && file.read_exact_at(&mut byte, offset + u64::from(at)).is_ok();
                if read { byte[0] } else { 0 }
            }
        }
    }

    /// Copies `len` bytes from an offset on into guest RAM, zeroes behind the end.
    pub(super) fn copy(&self, at: u32, ram: &Ram, gpa: Gpa, len: u32) -> io::Result<()> {
        let outside = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        // All of it lies in RAM, or nothing is copied.
        ram.slice(gpa, len.into()).map_err(outside)?;
        let there = self.len().saturating_sub(at).min(len);
        match self {
            Content::Bytes(bytes) => {
                let from = bytes.get(at as usize..).map_or(&[][..], |rest| &rest[..there as usize]);
                ram.write(gpa, from).map_err(outside)?;
            }
            Content::File { file, offset, .. } => {
                ram.read_file(gpa, file, offset + u64::from(at), there.into())?;
            }
        }
        ram.zero(Gpa(gpa.0 + u64::from(there)), (len - there).into()).map_err(outside)
    }
}

/// A file's name that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Too long, empty, or with bytes that are no letters.
    #[error("a name of 1 to {NAME_MAX} printable characters is needed, not {0:?}")]
    Bad(String),
    /// Given twice.
    #[error("there are two files {0:?} for the firmware")]
    Twice(String),
    /// More than there are numbers for.
    #[error("there are more files for the firmware than it has numbers for")]
    TooMany,
}

/// Which start of a guest it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Start {
    /// That at power-on.
    #[default]
    First,
    /// One after a reset.
    Again,
}

/// All items of a machine.
#[derive(Debug)]
pub struct Items {
    numbered: BTreeMap<u16, Content>,
    files: Vec<ConfigFile>,
    /// What [`key::FILES`] gives at the first start, and at others.
    lists: [Content; 2],
}

#[derive(Debug)]
struct ConfigFile {
    name: String,
    content: Content,
    /// What it has after a reset, if that is something else.
    again: Option<Content>,
}

impl ConfigFile {
    fn at(&self, start: Start) -> &Content {
        self.again.as_ref().filter(|_| start == Start::Again).unwrap_or(&self.content)
    }
}

impl Default for Items {
    fn default() -> Items {
        // Bit 0: registers; bit 1: DMA.
        let interfaces = 0b11u32.to_le_bytes().to_vec();
        let fixed = [(key::SIGNATURE, b"QEMU".to_vec()), (key::INTERFACES, interfaces)];
        let numbered = fixed.map(|(key, bytes)| (key, Content::Bytes(bytes))).into();
        Items { numbered, files: Vec::new(), lists: lists(&[]) }
    }
}

impl Items {
    /// Sets an item of a fixed number.
    pub fn set(&mut self, key: u16, content: impl Into<Content>) {
        self.numbered.insert(key, content.into());
    }

    /// Adds a file.
    pub fn add(&mut self, name: &str, content: impl Into<Content>) -> Result<(), NameError> {
        self.add_file(name, content.into(), None)
    }

    /// Adds a file that has something else after a reset.
    pub fn add_changing(&mut self, name: &str, first: Vec<u8>, again: Vec<u8>) -> Result<(), NameError> {
        self.add_file(name, first.into(), Some(again.into()))
    }

    fn add_file(&mut self, name: &str, content: Content, again: Option<Content>) -> Result<(), NameError> {
        let printable = name.bytes().all(|byte| byte.is_ascii_graphic());
        if !(1..=NAME_MAX).contains(&name.len()) || !printable {
            return Err(NameError::Bad(name.to_owned()));
        }
        if self.files.iter().any(|file| file.name == name) {
            return Err(NameError::Twice(name.to_owned()));
        }
        if self.files.len() >= usize::from(key::END - key::FIRST_FILE) {
            return Err(NameError::TooMany);
        }
        self.files.push(ConfigFile { name: name.to_owned(), content, again });
        self.lists = lists(&self.files);
        Ok(())
    }

    /// The item of a number, if there is one.
    pub(super) fn get(&self, key: u16, start: Start) -> Option<&Content> {
        if key == key::FILES {
            let [first, again] = &self.lists;
            return Some(if start == Start::First { first } else { again });
        }
        let file = || Some(self.files.get(usize::from(key.checked_sub(key::FIRST_FILE)?))?.at(start));
        self.numbered.get(&key).or_else(file)
    }
}

fn lists(files: &[ConfigFile]) -> [Content; 2] {
    [Start::First, Start::Again].map(|start| list(files, start))
}

/// How many files, then for each: length, number, two bytes that are reserved, name. Big-endian.
fn list(files: &[ConfigFile], start: Start) -> Content {
    let mut bytes = (files.len() as u32).to_be_bytes().to_vec();
    for (key, file) in (key::FIRST_FILE..).zip(files) {
        let end = bytes.len() + ENTRY;
        bytes.extend(file.at(start).len().to_be_bytes());
        bytes.extend(key.to_be_bytes());
        bytes.extend([0; 2]);
        bytes.extend(file.name.bytes());
        bytes.resize(end, 0);
    }
    Content::Bytes(bytes)
}
