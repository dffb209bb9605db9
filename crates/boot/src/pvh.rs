//! PVH's start info. xen/include/public/arch-x86/hvm/start_info.h.

use memory::{Gpa, Ram};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::map::low;
use crate::{Handover, LoadError};

/// The longest command line, without its final zero: Linux cuts longer ones in silence (COMMAND_LINE_SIZE).
pub(crate) const COMMAND_LINE_MAX: u32 = 2047;
/// Linux takes an initrd's address for 32 bits.
pub(crate) const INITRD_MAX: Gpa = Gpa(u32::MAX as u64);

const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const VERSION: u32 = 1;

#[derive(IntoBytes, Immutable, FromBytes)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    map: u64,
    map_entries: u32,
    reserved: u32,
}

#[derive(IntoBytes, Immutable, FromBytes)]
#[repr(C)]
struct Module {
    address: u64,
    size: u64,
    command_line: u64,
    reserved: u64,
}

#[derive(IntoBytes, Immutable, FromBytes)]
#[repr(C)]
struct Range {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// Writes the start info to [`low::START_INFO`], its module list behind it, and the memory map.
pub(crate) fn write_start_info(ram: &Ram, given: &Handover) -> Result<(), LoadError> {
    let module_list = Gpa(low::START_INFO.0 + size_of::<StartInfo>() as u64);
    if let Some(initrd) = given.initrd {
        let module = Module { address: initrd.start().0, size: initrd.len(), command_line: 0, reserved: 0 };
        ram.write_obj(module_list, &module)?;
    }
    for (index, entry) in given.map.iter().enumerate() {
        let (address, size) = (entry.range.start().0, entry.range.len());
        let range = Range { address, size, kind: entry.kind as u32, reserved: 0 };
        ram.write_obj(Gpa(low::PVH_MAP.0 + (index * size_of::<Range>()) as u64), &range)?;
    }
    let info = StartInfo {
        magic: MAGIC,
        version: VERSION,
        flags: 0,
        modules: given.initrd.is_some().into(),
        module_list: given.initrd.map_or(0, |_| module_list.0),
        command_line: low::COMMAND_LINE.0,
        rsdp: given.rsdp.0,
        map: low::PVH_MAP.0,
        map_entries: given.map.len() as u32,
        reserved: 0,
    };
    Ok(ram.write_obj(low::START_INFO, &info)?)
}
