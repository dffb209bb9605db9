//! Starting a kernel without firmware: reading its image into guest RAM, and writing what a guest finds
//! there when it wakes up: command line, initrd, memory map, ACPI tables, SMBIOS.
//!
//! [`load`] does all of it and returns the state in which the boot CPU must enter, as plain data. Nothing
//! here knows about KVM. The machine that the tables describe is a [`platform::Platform`]; its fixed ports,
//! interrupts and addresses are named in [`platform`], once, for the device models too.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod acpi;
mod cpu;
pub mod firmware;
mod initrd;
mod kernel;
mod linux;
mod map;
pub mod platform;
mod pvh;
pub mod smbios;
mod source;

use memory::{Gpa, GpaRange, OutsideRam, Ram, RamError};

pub use cpu::{CpuState, Segment, Table};
pub use initrd::{Initrd, InitrdError};
pub use kernel::{KernelError, KernelImage, UNPACKED_MAX};
pub use map::{MapEntry, MemoryKind, memory_map};
pub use source::SourceError;

use kernel::{Entry, Format};
use map::low;
use platform::{LayoutError, Platform};

/// What is to be started.
#[derive(Debug)]
pub struct LinuxBoot<'a> {
    /// The kernel.
    pub kernel: &'a KernelImage,
    /// Its initial RAM disk.
    pub initrd: Option<&'a Initrd>,
    /// Its command line.
    pub command_line: &'a str,
}

/// Why a VM could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The machine's layout is impossible.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The kernel cannot be started.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initrd cannot be given to it.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// A file could not be read while it was copied.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The command line is longer than the kernel takes.
    #[error("the kernel's command line has {len} bytes, but this kernel takes {max} at most. Shorten it.")]
    CommandLineTooLong {
        /// Its length in bytes.
        len: usize,
        /// The kernel's limit.
        max: u64,
    },
    /// The command line holds a zero byte, which would end it.
    #[error("the kernel's command line has a zero byte at offset {at}, which would cut it there. Remove it.")]
    CommandLineZero {
        /// The byte's place.
        at: usize,
    },
    /// The host does not give the RAM that they go to.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// There is no RAM where every PC has some.
    #[error(
        "the VM has no RAM from address 0 to 1 MiB, where its tables go. Give it at least 16 MiB of memory."
    )]
    NoLowRam,
    /// Too many pieces of RAM.
    #[error(
        "the memory map has {count} ranges, but a kernel takes {} at most. Use fewer pieces of RAM.",
        map::MAX_ENTRIES
    )]
    MapTooLong {
        /// How many they are.
        count: usize,
    },
    /// The tables do not fit into the space that a PC has for them.
    #[error("the {what} tables take {len} bytes, but there is room for {room} at {place}. Use fewer CPUs.", room = .place.len())]
    TablesTooLarge {
        /// "ACPI" or "SMBIOS".
        what: &'static str,
        /// Their length in bytes.
        len: u64,
        /// Their place.
        place: GpaRange,
    },
    /// A write missed RAM: RAM was not what the layout said.
    #[error("cannot write the boot data: {0}. Give the VM at least 16 MiB of memory.")]
    OutsideRam(#[from] OutsideRam),
}

/// What every boot protocol hands to the kernel, besides the command line at its fixed place.
struct Handover {
    map: Vec<MapEntry>,
    initrd: Option<GpaRange>,
    rsdp: Gpa,
}

/// Everything that keeps a kernel, an initrd and a command line from RAM at these places, as far as they are known: what
/// is `None` is not looked at. Nothing is read but what was read when they were opened.
pub fn check(
    kernel: Option<&KernelImage>,
    initrd: Option<&Initrd>,
    command_line: Option<&str>,
    ram: &[GpaRange],
) -> Vec<LoadError> {
    let low_end = ram.iter().find(|range| range.contains(Gpa(0))).map_or(Gpa(0), |range| range.end());
    if low_end < low::HIGH {
        return vec![LoadError::NoLowRam];
    }
    let limits = kernel.map_or(Limits::LEAST_STRICT, Limits::of);
    let behind = kernel.map_or(low::HIGH, |kernel| kernel.range().end());
    let fits = kernel.and_then(|kernel| kernel.fits(low_end).err()).map(LoadError::from);
    let room = initrd.and_then(|initrd| initrd.place(behind, low_end, limits.initrd).err());
    let line = command_line.and_then(|line| terminated(line, limits.command_line).err());
    fits.into_iter().chain(room.map(LoadError::from)).chain(line).collect()
}

/// What a kernel's way to boot allows.
struct Limits {
    /// The last byte that the initrd may have.
    initrd: Gpa,
    /// Bytes of the command line.
    command_line: u32,
}

impl Limits {
    const LEAST_STRICT: Limits = Limits { initrd: Gpa(u64::MAX), command_line: u32::MAX };

    fn of(kernel: &KernelImage) -> Limits {
        match kernel.format() {
            Format::Pvh(_) => Limits { initrd: pvh::INITRD_MAX, command_line: pvh::COMMAND_LINE_MAX },
            Format::BzImage(image) => {
                Limits { initrd: image.initrd_max(), command_line: image.command_line_max() }
            }
        }
    }
}

/// What is in guest RAM before a kernel is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Zeroes: it is new, and so nothing of it need be cleared.
    New,
    /// What a guest and its devices left there.
    Used,
}

/// Loads a kernel and everything it needs into `ram`, and returns how the boot CPU must enter it.
///
/// Everything is checked before the first write, and what can be known without RAM by [`check`] before that; only a file
/// that cannot be read any more fails later. It may be called again for the same RAM, which then is
/// [`Used`](Contents::Used), to restart a guest: all that a kernel relies on is written anew.
pub fn load(
    boot: &LinuxBoot<'_>,
    platform: &Platform,
    ram: &Ram,
    contents: Contents,
) -> Result<CpuState, LoadError> {
    platform.check(ram)?;
    let low_end = Gpa(ram.contiguous(Gpa(0)));
    if low_end < low::HIGH {
        return Err(LoadError::NoLowRam);
    }
    let kernel = boot.kernel;
    kernel.fits(low_end)?;
    let limits = Limits::of(kernel);
    let command_line = terminated(boot.command_line, limits.command_line)?;
    let initrd =
        boot.initrd.map(|initrd| initrd.place(kernel.range().end(), low_end, limits.initrd)).transpose()?;
    let map = memory_map(platform, ram);
    if map.len() > map::MAX_ENTRIES {
        return Err(LoadError::MapTooLong { count: map.len() });
    }
    let acpi = acpi::tables(platform, ram, low::acpi(), low::FACS)?;
    let smbios = smbios::tables(platform, ram, low::smbios())?;

    let tables = GpaRange::new(Gpa(0), low::HIGH.0).expect("below 1 MiB");
    for range in [tables, kernel.range()].into_iter().chain(initrd) {
        ram.make_present(range)?;
    }
    kernel.copy(ram, contents)?;
    if let Some((image, place)) = boot.initrd.zip(initrd) {
        image.copy(ram, place)?;
    }
    ram.write(low::COMMAND_LINE, &command_line)?;
    for table in acpi.tables.iter().chain([&smbios]) {
        ram.write(table.at, &table.bytes)?;
    }
    let given = Handover { map, initrd, rsdp: acpi.rsdp };
    match kernel.format() {
        Format::Pvh(elf) => {
            pvh::write_start_info(ram, &given)?;
            cpu::enter_pvh(ram, elf.entry(), low::START_INFO)
        }
        Format::BzImage(image) => {
            linux::write_zero_page(ram, image, &given)?;
            match image.entry() {
                Entry::Long(entry) => cpu::enter_long(ram, entry, low::ZERO_PAGE),
                Entry::Protected(entry) => cpu::enter_protected(ram, entry, low::ZERO_PAGE),
            }
        }
    }
}

/// A table and the guest address at which it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedTable {
    /// Where.
    pub at: Gpa,
    /// What.
    pub bytes: Vec<u8>,
}

/// The command line with its final zero.
fn terminated(line: &str, max: u32) -> Result<Vec<u8>, LoadError> {
    let room = low::CONVENTIONAL_END.0 - low::COMMAND_LINE.0 - 1;
    let max = room.min(max.into());
    if line.len() as u64 > max {
        return Err(LoadError::CommandLineTooLong { len: line.len(), max });
    }
    if let Some(at) = line.bytes().position(|byte| byte == 0) {
        return Err(LoadError::CommandLineZero { at });
    }
    Ok([line.as_bytes(), &[0]].concat())
}

#[cfg(test)]
mod tests;
