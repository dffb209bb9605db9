//! What firmware leaves in the CPUs and in the 8259s before an operating system starts. There is no firmware, so skep
//! leaves it. docs/pc.md has all of it in a table, with what it follows.

use boot::platform::gsi;
use kvm_bindings::{CpuId, kvm_lapic_state, kvm_msr_entry, kvm_pic_state};
use memory::HIGH_RAM_START;

use crate::board::layout::Layout;
use crate::cpu::cpuid::maker_has_svm;

/// Memory type range registers (Intel SDM vol. 3A, 12.11; AMD APM vol. 2, 7.7).
mod mtrr {
    /// Base and mask of the first variable range; the others follow.
    pub const BASE0: u32 = 0x200;
    /// 0 to 0x7ffff, a byte for each 64 KiB.
    pub const FIXED_64K: u32 = 0x250;
    /// From 0x80000 and from 0xa0000 on, a byte for each 16 KiB.
    pub const FIXED_16K: [u32; 2] = [0x258, 0x259];
    /// From 0xc0000 to 0xfffff, a byte for each 4 KiB.
    pub const FIXED_4K: std::ops::RangeInclusive<u32> = 0x268..=0x26f;
    /// Default type, and what is switched on.
    pub const DEFAULT: u32 = 0x2ff;

    /// In each byte: uncacheable, write-protected, write-back.
    pub const UNCACHEABLE: u64 = 0;
    pub const WRITE_PROTECTED: u64 = 0x0505_0505_0505_0505;
    pub const WRITE_BACK: u64 = 0x0606_0606_0606_0606;

    /// Of the default: ranges (E) and fixed ranges (FE) count, everything else is write-back.
    pub const ON: u64 = 1 << 11 | 1 << 10 | 6;
    /// Of a mask: the range counts.
    pub const VALID: u64 = 1 << 11;
}

/// Microcode's version (Intel SDM vol. 3A, 10.11.7; AMD's patch level is the same register).
pub const MICROCODE: u32 = 0x8b;
/// Features that can be switched off (Intel SDM vol. 4, table 2-2). KVM's own value lacks bit 0: fast string
/// instructions, without which Linux does not use them on Intel's CPUs.
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// What firmware allows (Intel SDM vol. 3C, 24.7): locked, and VMX outside of SMX. AMD's CPUs do not have it; KVM lets it
/// be read there all the same, and refuses writes.
const FEATURE_CONTROL: u32 = 0x3a;
const LOCKED: u64 = 1 << 0;
const VMX_ALLOWED: u64 = 1 << 2;

/// What differs from one VM to the next.
pub struct Firmware {
    /// What is no RAM below 4 GiB.
    hole: std::ops::Range<u64>,
    address_bits: u8,
    microcode: Option<u64>,
    virtualization: Virtualization,
}

/// What the guest's firmware says about VMs inside the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Virtualization {
    /// SVM, which firmware need not allow.
    Svm,
    /// VMX, forbidden.
    VmxForbidden,
    /// VMX, allowed.
    VmxAllowed,
}

impl Virtualization {
    /// On a CPU that KVM describes so; `nested` is whether the guest can run VMs of its own.
    pub fn of(supported: &CpuId, nested: bool) -> Virtualization {
        match (maker_has_svm(supported), nested) {
            (true, _) => Virtualization::Svm,
            (false, false) => Virtualization::VmxForbidden,
            (false, true) => Virtualization::VmxAllowed,
        }
    }
}

impl Firmware {
    /// Of a machine with this layout, on a CPU with this microcode.
    pub fn new(layout: &Layout, microcode: Option<u64>, virtualization: Virtualization) -> Firmware {
        let hole = layout.windows.memory32.start().0..HIGH_RAM_START.0;
        Firmware { hole, address_bits: layout.address_bits, microcode, virtualization }
    }

    /// The registers that firmware changes, all in one list for KVM_SET_MSRS, given those that a CPU has at power-on.
    pub fn registers(&self, power_on: &[kvm_msr_entry]) -> Vec<kvm_msr_entry> {
        let now = |index| power_on.iter().find(|msr| msr.index == index).map(|msr| msr.data);
        let mut all = vec![(mtrr::FIXED_64K, mtrr::WRITE_BACK)];
        // RAM, then where VGA's memory is on a PC, then where its ROMs are: what lies there is read and not written.
        all.extend(mtrr::FIXED_16K.into_iter().zip([mtrr::WRITE_BACK, mtrr::UNCACHEABLE]));
        all.extend(mtrr::FIXED_4K.map(|index| (index, mtrr::WRITE_PROTECTED)));
        all.extend(self.variable_ranges());
        all.push((mtrr::DEFAULT, mtrr::ON));
        all.extend(now(MISC_ENABLE).map(|value| (MISC_ENABLE, value | FAST_STRINGS)));
        all.extend(self.microcode.map(|version| (MICROCODE, version)));
        all.extend(match self.virtualization {
            Virtualization::Svm => None,
            Virtualization::VmxForbidden => Some((FEATURE_CONTROL, LOCKED)),
            Virtualization::VmxAllowed => Some((FEATURE_CONTROL, LOCKED | VMX_ALLOWED)),
        });
        // A CPU may lack some of them, and registers that KVM does not keep are not set.
        let changed = all.into_iter().filter(|(index, value)| now(*index).is_some_and(|now| now != *value));
        changed.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect()
    }

    /// The hole as variable ranges: each a power of two that begins at a multiple of itself.
    fn variable_ranges(&self) -> impl Iterator<Item = (u32, u64)> {
        let addresses = (1u64 << self.address_bits) - 1;
        let mut from = self.hole.start;
        let ranges = std::iter::from_fn(move || {
            let left = self.hole.end.checked_sub(from).filter(|left| *left > 0)?;
            let len = (1 << left.ilog2()).min(1 << from.trailing_zeros());
            let range = [from | mtrr::UNCACHEABLE, !(len - 1) & addresses | mtrr::VALID];
            from += len;
            Some(range)
        });
        (mtrr::BASE0..).zip(ranges.flatten())
    }
}

/// The boot CPU's local APIC in virtual wire mode (Intel MultiProcessor Specification 1.4, 3.6.2.2): switched on, the
/// 8259's interrupts at LINT0, NMI at LINT1. The other CPUs' is left alone, for the INIT that starts them masks both
/// again (Intel SDM vol. 3A, 11.4.7.3).
pub fn wire_local_apic(apic: &mut kvm_lapic_state) {
    const SPURIOUS: (usize, u32) = (0xf0, 1 << 8 | 0xff);
    const LINT0: (usize, u32) = (0x350, 7 << 8);
    const LINT1: (usize, u32) = (0x360, 4 << 8);
    for (at, value) in [SPURIOUS, LINT0, LINT1] {
        for (to, byte) in apic.regs[at..].iter_mut().zip(value.to_le_bytes()) {
            *to = byte as _;
        }
    }
}

/// An 8259 that was initialised and masks everything (Intel 8259A data sheet): `first` is the first interrupt's
/// number on a PC, 0 or 8. ACPI's interrupt is level-triggered (82371AB data sheet, "Edge and level control registers").
pub fn initialise_8259(chip: &mut kvm_pic_state, first: u8) {
    const VECTORS: [u8; 2] = [0x08, 0x70];
    chip.irq_base = VECTORS[usize::from(first / 8)];
    chip.imr = 0xff;
    if let Some(bit) = gsi::SCI.checked_sub(first).filter(|bit| *bit < 8) {
        chip.elcr |= 1 << bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;
    use proptest::prelude::*;

    fn firmware(virtualization: Virtualization) -> Firmware {
        Firmware::new(&Layout::new(256 << 20, 39, &[]).unwrap(), Some(0x42 << 32), virtualization)
    }

    fn power_on(indices: impl IntoIterator<Item = u32>) -> Vec<kvm_msr_entry> {
        indices.into_iter().map(|index| kvm_msr_entry { index, ..Default::default() }).collect()
    }

    /// Everything that KVM keeps on an Intel CPU.
    fn intel() -> Vec<kvm_msr_entry> {
        let mut all = power_on([0x3a, 0x8b, 0x250, 0x258, 0x259, 0x2ff]);
        all.extend(power_on((0x200..=0x20f).chain(0x268..=0x26f)));
        all.push(kvm_msr_entry { index: MISC_ENABLE, data: 0x1800, ..Default::default() });
        all
    }

    /// The memory type of an address by the registers' rules: fixed ranges first, then variable ones, then the default.
    fn memory_type(registers: &[kvm_msr_entry], address: u64) -> u64 {
        let of = |index| registers.iter().find(|msr| msr.index == index).map_or(0, |msr| msr.data);
        let (index, byte) = match address {
            0..0x8_0000 => (0x250, address >> 16),
            0x8_0000..0xc_0000 => (0x258 + ((address - 0x8_0000) >> 17) as u32, address >> 14 & 7),
            0xc_0000..0x10_0000 => (0x268 + ((address - 0xc_0000) >> 15) as u32, address >> 12 & 7),
            _ => (0, 0),
        };
        if index != 0 {
            return of(index) >> (byte * 8) & 0xff;
        }
        let hit = (0x200..0x210).step_by(2).find(|base| {
            let mask = of(base + 1);
            mask & 1 << 11 != 0 && address & mask & !0xfff == of(*base) & mask & !0xfff
        });
        hit.map_or(of(0x2ff), of) & 0xff
    }

    #[test]
    fn ram_is_write_back_the_hole_uncacheable_and_roms_write_protected() {
        let registers = firmware(Virtualization::VmxForbidden).registers(&intel());
        let kind = |address| memory_type(&registers, address);
        assert_eq!([0, 0x7_ffff, 0x8_0000, 0x9_ffff].map(kind), [6; 4]);
        assert_eq!([0xa_0000, 0xb_ffff].map(kind), [0; 2]);
        assert_eq!([0xc_0000, 0xe_0000, 0xf_ffff].map(kind), [5; 3]);
        assert_eq!([0x10_0000, 0xbfff_ffff, 1 << 32, (1 << 39) - 1].map(kind), [6; 4]);
        assert_eq!([0xc000_0000, 0xe000_0000, 0xfee0_0000, 0xffff_ffff].map(kind), [0; 4]);
        let default = registers.iter().find(|msr| msr.index == 0x2ff).unwrap();
        assert_eq!(default.data, 0xc06);
        let masks: Vec<_> = registers.iter().filter(|msr| (0x200..0x210).contains(&msr.index)).collect();
        assert_eq!(masks.len(), 2, "one range");
        assert_eq!((masks[0].data, masks[1].data), (0xc000_0000, 0x7f_c000_0800));
    }

    proptest! {
        #[test]
        fn whatever_hole_there_is_becomes_ranges_that_cover_it_alone(start in 1u64..1 << 20, bits in 36u8..52) {
            let hole = start << 12..1 << 32;
            let ranges: Vec<_> = Firmware { hole: hole.clone(), ..firmware(Virtualization::VmxForbidden) }.variable_ranges().collect();
            let all: Vec<_> = Firmware { hole: hole.clone(), address_bits: bits, ..firmware(Virtualization::VmxForbidden) }
                .variable_ranges()
                .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() })
                .collect();
            prop_assert_eq!(all.len(), ranges.len());
            prop_assert!(all.iter().all(|msr| msr.data >> bits == 0), "no reserved bits");
            let covered = |address: u64| all.chunks(2).any(|pair| {
                let mask = pair[1].data & !0xfff;
                address & mask == pair[0].data & mask
            });
            prop_assert!(covered(hole.start) && covered(hole.end - 4096));
            prop_assert!(!covered(hole.start - 4096) && !covered(hole.end) && !covered(0));
        }
    }

    #[test]
    fn what_a_cpu_does_not_have_is_not_set_and_what_kvm_says_of_it_stays() {
        let of = |registers: &[kvm_msr_entry], index| {
            registers.iter().find(|msr| msr.index == index).map(|msr| msr.data)
        };
        let registers = firmware(Virtualization::VmxForbidden).registers(&intel());
        assert_eq!(of(&registers, 0x1a0), Some(0x1801));
        assert_eq!((of(&registers, 0x8b), of(&registers, 0x3a)), (Some(0x42 << 32), Some(1)));
        assert_eq!(of(&firmware(Virtualization::VmxAllowed).registers(&intel()), 0x3a), Some(5));
        let amd = firmware(Virtualization::Svm).registers(&power_on([0x3a, 0x8b, 0x2ff]));
        assert_eq!(amd.iter().map(|msr| msr.index).collect::<Vec<_>>(), [0x2ff, 0x8b]);
    }

    #[test]
    fn a_cpus_maker_says_whether_firmware_has_vmx_to_allow() {
        let of = |name: &[u8; 12], nested| {
            let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
            let leaf = kvm_cpuid_entry2 { ebx: word(0), edx: word(4), ecx: word(8), ..Default::default() };
            Virtualization::of(&CpuId::from_entries(&[leaf]).unwrap(), nested)
        };
        assert_eq!(of(b"GenuineIntel", false), Virtualization::VmxForbidden);
        assert_eq!(of(b"GenuineIntel", true), Virtualization::VmxAllowed);
        assert_eq!(of(b"AuthenticAMD", true), Virtualization::Svm);
        assert_eq!(of(b"HygonGenuine", false), Virtualization::Svm);
    }

    #[test]
    fn the_boot_cpu_is_wired_to_the_8259_and_to_nmi() {
        let mut apic = kvm_lapic_state::default();
        wire_local_apic(&mut apic);
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| apic.regs[at + byte] as u8));
        assert_eq!([0xf0, 0x350, 0x360].map(word), [0x1ff, 0x700, 0x400]);
    }

    #[test]
    fn the_8259s_let_nothing_through_and_acpis_interrupt_is_level_triggered() {
        let mut chips = [kvm_pic_state::default(); 2];
        initialise_8259(&mut chips[0], 0);
        initialise_8259(&mut chips[1], 8);
        let seen = chips.map(|chip| (chip.irq_base, chip.imr, chip.elcr));
        assert_eq!(seen, [(0x08, 0xff, 0), (0x70, 0xff, 2)]);
    }
}
