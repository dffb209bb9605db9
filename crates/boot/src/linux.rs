//! Linux's boot parameters (the "zero page"), for bzImages.
//! Documentation/arch/x86/{boot,zero-page}.rst.

use memory::Ram;

use crate::kernel::{BzImage, SETUP_HEADER};
use crate::map::low;
use crate::{Handover, LoadError};

// Offsets into the boot parameters.
const ACPI_RSDP: usize = 0x070;
const MAP_ENTRIES: usize = 0x1e8;
const VIDEO_MODE: usize = 0x1fa;
const LOADER: usize = 0x210;
const CODE32_START: usize = 0x214;
const INITRD_ADDRESS: usize = 0x218;
const INITRD_SIZE: usize = 0x21c;
const COMMAND_LINE: usize = 0x228;
const MAP: usize = 0x2d0;
const MAP_ENTRY: usize = 20;

/// "Unknown" boot loader: skep has no number of its own.
const LOADER_OTHER: u8 = 0xff;
/// "Normal" text mode; there may be no screen at all.
const VIDEO_NORMAL: u16 = 0xffff;

/// Writes the boot parameters to [`low::ZERO_PAGE`].
pub(crate) fn write_zero_page(ram: &Ram, image: &BzImage, given: &Handover) -> Result<(), LoadError> {
    let mut page = [0u8; 4096];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(SETUP_HEADER, image.header());
    put(VIDEO_MODE, &VIDEO_NORMAL.to_le_bytes());
    put(LOADER, &[LOADER_OTHER]);
    // All of these lie below 4 GiB: the kernel and the initrd in low RAM, the command line below 1 MiB.
    put(CODE32_START, &(image.range().start().0 as u32).to_le_bytes());
    if let Some(initrd) = given.initrd {
        put(INITRD_ADDRESS, &(initrd.start().0 as u32).to_le_bytes());
        put(INITRD_SIZE, &(initrd.len() as u32).to_le_bytes());
    }
    put(COMMAND_LINE, &(low::COMMAND_LINE.0 as u32).to_le_bytes());
    put(ACPI_RSDP, &given.rsdp.0.to_le_bytes());
    put(MAP_ENTRIES, &[given.map.len() as u8]);
    for (index, entry) in given.map.iter().enumerate() {
        let at = MAP + index * MAP_ENTRY;
        put(at, &entry.range.start().0.to_le_bytes());
        put(at + 8, &entry.range.len().to_le_bytes());
        put(at + 16, &(entry.kind as u32).to_le_bytes());
    }
    Ok(ram.write(low::ZERO_PAGE, &page)?)
}
