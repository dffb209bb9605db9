//! The state in which the boot CPU enters a kernel, as data that maps one to one onto `kvm_regs` and
//! `kvm_sregs`.

use memory::{Gpa, Ram};

use crate::LoadError;
use crate::map::low;

/// Registers of the boot CPU. What is not named here is 0, and interrupts are off.
///
/// Other CPUs wait for INIT and SIPI; nothing here is for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuState {
    /// Instruction pointer: a guest address, for paging is off or an identity.
    pub rip: u64,
    /// Flags: only bit 1, which is always set.
    pub rflags: u64,
    /// PVH: the address of the start info.
    pub rbx: u64,
    /// Linux's 32- and 64-bit protocols: the address of the boot parameters.
    pub rsi: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Page table root; 0 without paging.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// Data segment, for DS, ES, FS, GS and SS.
    pub data: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table, already in RAM.
    pub gdt: Table,
    /// Interrupt descriptor table: empty.
    pub idt: Table,
}

/// A segment register with its hidden part; the fields of `kvm_segment`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Index into the descriptor table, times 8.
    pub selector: u16,
    /// First address.
    pub base: u64,
    /// Last offset in bytes.
    pub limit: u32,
    /// Type field.
    pub kind: u8,
    /// Present. A segment that is not is unusable.
    pub present: bool,
    /// Privilege level.
    pub dpl: u8,
    /// Code or data (S), not a system segment.
    pub code_or_data: bool,
    /// 32-bit (D/B).
    pub big: bool,
    /// 64-bit code (L).
    pub long: bool,
    /// The limit was counted in pages (G).
    pub pages: bool,
}

impl Segment {
    /// What the CPU would load from this descriptor. Intel SDM vol. 3A, 3.4.5.
    const fn from_descriptor(selector: u16, descriptor: u64) -> Segment {
        let pages = descriptor >> 55 & 1 == 1;
        let raw = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
        Segment {
            selector,
            base: descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000,
            limit: if pages { raw << 12 | 0xfff } else { raw },
            kind: (descriptor >> 40 & 0xf) as u8,
            present: descriptor >> 47 & 1 == 1,
            dpl: (descriptor >> 45 & 3) as u8,
            code_or_data: descriptor >> 44 & 1 == 1,
            big: descriptor >> 54 & 1 == 1,
            long: descriptor >> 53 & 1 == 1,
            pages,
        }
    }
}

/// A descriptor table register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// Where it is.
    pub base: Gpa,
    /// Its length in bytes, less one.
    pub limit: u16,
}

// Selectors are those that Linux's protocols ask for: __BOOT_CS and __BOOT_DS.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

// Descriptors: flat, ring 0, accessed. Code is execute/read, data read/write.
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
const CODE64: u64 = 0x00af_9b00_0000_ffff;
const DATA_FLAT: u64 = 0x00cf_9300_0000_ffff;
/// A busy 32-bit task state segment at 0, which in 64-bit mode is taken as a 64-bit one. Nothing uses it; CPUs
/// with VMX demand that there is one.
const TASK_BUSY: u64 = 0x0000_8b00_0000_0067;

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_ENABLED: u64 = 1 << 8;
const EFER_LONG_ACTIVE: u64 = 1 << 10;

/// Enters by the PVH protocol: 32-bit protected mode, flat segments, paging off, EBX is the start info
/// (xen/include/public/arch-x86/hvm/start_info.h). Writes the descriptor table.
pub(crate) fn enter_pvh(ram: &Ram, entry: u32, start_info: Gpa) -> Result<CpuState, LoadError> {
    Ok(CpuState { rip: entry.into(), rbx: start_info.0, ..flat(ram, CODE32)? })
}

/// Enters by Linux's 64-bit protocol: long mode, the first 4 GiB mapped one to one, CS 0x10, data segments
/// 0x18, RSI is the boot parameters (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"). Writes the
/// descriptor table and the page tables.
pub(crate) fn enter_long(ram: &Ram, entry: Gpa, zero_page: Gpa) -> Result<CpuState, LoadError> {
    write_page_tables(ram)?;
    let state = flat(ram, CODE64)?;
    Ok(CpuState {
        rip: entry.0,
        rsi: zero_page.0,
        cr0: state.cr0 | CR0_PAGING,
        cr3: low::PAGE_TABLES.0,
        cr4: CR4_PAE,
        efer: EFER_LONG_ENABLED | EFER_LONG_ACTIVE,
        ..state
    })
}

/// Enters by Linux's 32-bit protocol: protected mode, flat segments, paging off, CS 0x10, data segments 0x18, ESI is the
/// boot parameters, EBP, EDI and EBX are 0 (Documentation/arch/x86/boot.rst, "32-bit Boot Protocol"). Writes the
/// descriptor table.
pub(crate) fn enter_protected(ram: &Ram, entry: Gpa, zero_page: Gpa) -> Result<CpuState, LoadError> {
    Ok(CpuState { rip: entry.0, rsi: zero_page.0, ..flat(ram, CODE32)? })
}

/// Protected mode with flat segments and no paging.
fn flat(ram: &Ram, code: u64) -> Result<CpuState, LoadError> {
    let table: [u64; 5] = [0, 0, code, DATA_FLAT, TASK_BUSY];
    ram.write_obj(low::GDT, &table)?;
    Ok(CpuState {
        rip: 0,
        rflags: 2,
        rbx: 0,
        rsi: 0,
        cr0: CR0_PROTECTED | CR0_EXTENSION_TYPE,
        cr3: 0,
        cr4: 0,
        efer: 0,
        cs: Segment::from_descriptor(CODE, code),
        data: Segment::from_descriptor(DATA, DATA_FLAT),
        tr: Segment::from_descriptor(TASK, TASK_BUSY),
        gdt: Table { base: low::GDT, limit: size_of_val(&table) as u16 - 1 },
        idt: Table { base: Gpa(0), limit: 0 },
    })
}

/// Maps the first 4 GiB to themselves in pages of 2 MiB, which every x86-64 CPU has.
fn write_page_tables(ram: &Ram) -> Result<(), LoadError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let table = |index: u64| low::PAGE_TABLES.0 + index * 4096;

    let mut root = [0u64; 512];
    root[0] = table(1) | PRESENT_WRITABLE;
    ram.write_obj(Gpa(table(0)), &root)?;
    let mut pointers = [0u64; 512];
    for gib in 0..4 {
        pointers[gib as usize] = table(2 + gib) | PRESENT_WRITABLE;
        let directory: [u64; 512] =
            std::array::from_fn(|page| gib << 30 | (page as u64) << 21 | LARGE | PRESENT_WRITABLE);
        ram.write_obj(Gpa(table(2 + gib)), &directory)?;
    }
    ram.write_obj(Gpa(table(1)), &pointers)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ram() -> Ram {
        Ram::new(&memory::ram_ranges(1 << 20)).unwrap()
    }

    #[test]
    fn pvh_enters_in_flat_protected_mode_without_paging() {
        let ram = ram();
        let state = enter_pvh(&ram, 0x100_0000, low::START_INFO).unwrap();
        assert_eq!(
            (state.rip, state.rbx, state.cr0, state.cr4, state.efer),
            (0x100_0000, 0x2000, 0x11, 0, 0)
        );
        assert_eq!((state.cs.base, state.cs.limit, state.cs.kind), (0, u32::MAX, 0xb));
        assert!(
            state.cs.big && !state.cs.long && state.cs.pages && state.cs.code_or_data && state.cs.present
        );
        assert_eq!((state.data.base, state.data.limit, state.data.kind), (0, u32::MAX, 3));
        assert_eq!(
            (state.tr.base, state.tr.limit, state.tr.kind, state.tr.code_or_data),
            (0, 0x67, 0xb, false)
        );
    }

    #[test]
    fn long_mode_entry_has_a_64_bit_code_segment_at_0x10_and_data_at_0x18() {
        let ram = ram();
        let state = enter_long(&ram, Gpa(0x100_0200), low::ZERO_PAGE).unwrap();
        assert!(state.cs.long && !state.cs.big);
        assert_eq!((state.cs.selector, state.data.selector, state.rsi), (0x10, 0x18, 0x7000));
        assert_eq!((state.cr0, state.cr4, state.efer), (0x8000_0011, 0x20, 0x500));
        let code: u64 = ram.read_obj(Gpa(state.gdt.base.0 + u64::from(state.cs.selector))).unwrap();
        assert_eq!(Segment::from_descriptor(0x10, code), state.cs);
    }

    proptest! {
        #[test]
        fn every_address_below_4_gib_maps_to_itself(address in 0u64..1 << 32) {
            let ram = ram();
            let state = enter_long(&ram, Gpa(0), Gpa(0)).unwrap();
            let step = |table: u64, shift: u32| -> u64 {
                ram.read_obj(Gpa((table & !0xfff) + (address >> shift & 511) * 8)).unwrap()
            };
            let page = step(step(step(state.cr3, 39), 30), 21);
            prop_assert_eq!(page & 0x83, 0x83);
            prop_assert_eq!((page & !0x1f_ffff) | (address & 0x1f_ffff), address);
        }
    }
}
